/** The plugins of the lab extension. They do nothing unless the notebook server has a kernelmux gateway behind it. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { Dialog, ICommandPalette, showDialog } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import { ILauncher } from '@jupyterlab/launcher';
import { IMainMenu } from '@jupyterlab/mainmenu';
import { INotebookTracker, type NotebookPanel } from '@jupyterlab/notebook';
import { IStatusBar } from '@jupyterlab/statusbar';
import { addCommands, COMMANDS } from './commands.js';
import { Gateway } from './gateway.js';
import { addCards } from './launcher.js';
import { NotebookRestorers } from './restorers.js';
import { KernelStatus } from './status.js';

/**
 * Extensions that run cells on the notebook server, which writes the outputs into the document. A second writer would
 * duplicate them.
 */
const SERVER_SIDE_EXECUTION = /nbmodel|server-documents/;

const plugin: JupyterFrontEndPlugin<void> = {
  id: '@kernelmux/lab:plugin',
  description: 'Restores running cells, outputs, widgets and input prompts of kernels behind kernelmux.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ICommandPalette, IMainMenu, IStatusBar, ILauncher],
  activate: (
    app: JupyterFrontEnd,
    tracker: INotebookTracker,
    palette: ICommandPalette | null,
    menu: IMainMenu | null,
    statusBar: IStatusBar | null,
    launcher: ILauncher | null
  ): void => {
    // The server extension sets this option.
    if (PageConfig.getOption('kernelmux') !== 'true' || app.listPlugins().some(id => SERVER_SIDE_EXECUTION.test(id))) {
      return;
    }
    const { serverSettings, kernelspecs } = app.serviceManager;
    const gateway = new Gateway(serverSettings);
    const restorers = new NotebookRestorers(gateway);
    tracker.forEach(panel => restorers.add(panel));
    tracker.widgetAdded.connect((_, panel) => restorers.add(panel));
    addCommands(app.commands, tracker, restorers, gateway, kernelspecs);
    for (const command of Object.values(COMMANDS)) {
      palette?.addItem({ command, category: 'Kernel Operations' });
    }
    menu?.kernelMenu.addGroup(
      Object.values(COMMANDS).map(command => ({ command })),
      100
    );
    addStatus(app, tracker, restorers, statusBar);
    if (launcher) {
      addCards(app, launcher, gateway);
    }
  }
};

function addStatus(
  app: JupyterFrontEnd,
  tracker: INotebookTracker,
  restorers: NotebookRestorers,
  statusBar: IStatusBar | null
): void {
  const make = (): KernelStatus => new KernelStatus(() => void offerCommands(app));
  if (statusBar) {
    const item = make();
    const update = (): void => item.showKernel(tracker.currentWidget, restorers);
    statusBar.registerStatusItem('@kernelmux/lab:status', { item, align: 'left', rank: 3 });
    tracker.currentChanged.connect(update);
    restorers.changed.connect(update);
    update();
    return;
  }
  const items = new WeakMap<NotebookPanel, KernelStatus>();
  restorers.changed.connect((_, panel) => {
    let item = items.get(panel);
    if (!item) {
      item = make();
      items.set(panel, item);
      panel.toolbar.addItem('kernelmuxStatus', item);
    }
    item.showKernel(panel, restorers);
  });
}

/** Lets the user choose one of the enabled commands. */
async function offerCommands({ commands }: JupyterFrontEnd): Promise<void> {
  const possible = Object.values(COMMANDS).filter(id => commands.isEnabled(id));
  const buttons = possible.map(id => Dialog.okButton({ label: commands.label(id), caption: id }));
  const answer = await showDialog({
    title: 'The kernel behind kernelmux',
    body: document.querySelector('.kernelmux-status')?.textContent ?? '',
    buttons: [...buttons, Dialog.cancelButton()]
  });
  if (possible.includes(answer.button.caption as (typeof possible)[number])) {
    await commands.execute(answer.button.caption);
  }
}

export default plugin;
