/** Warns that the gateway will end a kernel. */

import { Notification } from '@jupyterlab/apputils';
import type { Kernel, KernelMessage } from '@jupyterlab/services';
import { isWarning, warningText } from './culling-text.js';

/** Shows the warning in a message of the kernel, if it is one, until the user closes it or the kernel ends. */
export function showWarning(kernel: Kernel.IKernelConnection, name: string, msg: KernelMessage.IMessage): void {
  const content = msg.content as unknown;
  if (!isWarning(msg.header.msg_type, content)) {
    return;
  }
  const end = new Date(Date.parse(msg.header.date) + content.seconds * 1000);
  // A client that reconnects may receive an old warning.
  if (end.getTime() <= Date.now()) {
    return;
  }
  const keep = {
    label: 'Keep it running',
    callback: (): void => {
      // The gateway counts any message of the kernel as use.
      void kernel.requestKernelInfo().catch(() => undefined);
    }
  };
  const id = Notification.warning(warningText(name, content.reason, end), {
    autoClose: false,
    actions: content.idle ? [keep] : []
  });
  const dismiss = (): void => Notification.dismiss(id);
  kernel.disposed.connect(dismiss);
  const onStatus = (_: unknown, status: Kernel.Status): void => {
    if (status === 'busy' || status === 'dead') {
      kernel.statusChanged.disconnect(onStatus);
      dismiss();
    }
  };
  kernel.statusChanged.connect(onStatus);
}
