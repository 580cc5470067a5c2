import { ServerConnection } from '@jupyterlab/services';

// A disposed manager leaves a poll timer of up to a minute, so timers must not keep the process alive.
const { setTimeout } = globalThis;
globalThis.setTimeout = (...args) => setTimeout(...args).unref();

/**
 * Settings for a client of `gateway`; `url` can be a proxy's.
 * @param {import('../../../clients/js/test/real-gateway.js').RealGateway} gateway
 */
export function serverSettings(gateway, url = gateway.url) {
  const { token } = gateway;
  return ServerConnection.makeSettings({ baseUrl: url, wsUrl: url.replace('http', 'ws'), appUrl: url, token });
}

/** Runs code and returns the text of its outputs and the content of the reply. */
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

/** Resolves once `condition` holds. Checks it now and at each emission of `signal`. */
export function until(signal, condition) {
  return new Promise((resolve) => {
    const check = () => {
      if (!condition()) return;
      signal.disconnect(check);
      resolve();
    };
    signal.connect(check);
    check();
  });
}
