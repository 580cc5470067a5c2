import { ServerConnection } from '@jupyterlab/services';

// A disposed manager leaves its poll's timer behind, of up to a minute: no timer keeps the process alive.
const { setTimeout } = globalThis;
globalThis.setTimeout = (...args) => setTimeout(...args).unref();

/**
 * Settings of a client of `gateway`, which may connect through a proxy.
 * @param {import('../../../clients/js/test/real-gateway.js').RealGateway} gateway
 */
export function serverSettings(gateway, url = gateway.url) {
  const { token } = gateway;
  return ServerConnection.makeSettings({ baseUrl: url, wsUrl: url.replace('http', 'ws'), appUrl: url, token });
}

/** Runs code; what its outputs say at the end, and the reply's content. */
export async function run(kernel, code, { onText = () => {}, onStdin } = {}) {
  const outputs = [];
  const future = kernel.requestExecute({ code, allow_stdin: Boolean(onStdin) });
  if (onStdin) future.onStdin = onStdin;
  future.onIOPub = ({ header, content }) => {
    if (header.msg_type === 'clear_output') outputs.length = 0;
    if (header.msg_type === 'stream') outputs.push(content.text);
    if (content.data) outputs.push(content.data['text/plain']);
    if (header.msg_type === 'error') outputs.push(content.ename);
    onText(outputs.join(''));
  };
  const { content } = await future.done;
  return { text: outputs.join(''), reply: content };
}

/** Resolves once `condition` holds, looked at now and at each emission of `signal`. */
export function until(signal, condition) {
  return new Promise((resolve) => {
    const look = () => {
      if (!condition()) return;
      signal.disconnect(look);
      resolve();
    };
    signal.connect(look);
    look();
  });
}
