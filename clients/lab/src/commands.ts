/** The commands of the extension. */

import { Clipboard, Dialog, InputDialog, showDialog, showErrorMessage } from '@jupyterlab/apputils';
import type { CodeCell } from '@jupyterlab/cells';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import type { KernelSpec } from '@jupyterlab/services';
import type { CommandRegistry } from '@lumino/commands';
import { UUID } from '@lumino/coreutils';
import type { Gateway } from './gateway.js';
import { insertDeleted } from './deleted.js';
import { profilesOf } from './profiles.js';
import type { Restorer } from './restore.js';
import type { NotebookRestorers } from './restorers.js';

export const COMMANDS = {
  restore: 'kernelmux:restore-outputs',
  insertDeleted: 'kernelmux:insert-deleted',
  runDetached: 'kernelmux:run-detached',
  share: 'kernelmux:share',
  revoke: 'kernelmux:stop-sharing',
  profile: 'kernelmux:switch-resources'
} as const;

/** Lifetimes of a share, in seconds. */
const EXPIRIES: Record<string, number> = { '1 hour': 3600, '1 day': 86_400, '7 days': 604_800 };

interface Current {
  panel: NotebookPanel;
  restorer: Restorer;
}

export function addCommands(
  commands: CommandRegistry,
  tracker: INotebookTracker,
  restorers: NotebookRestorers,
  gateway: Gateway,
  specs: KernelSpec.IManager
): void {
  const current = (): Current | null => {
    const panel = tracker.currentWidget;
    const restorer = restorers.of(panel);
    return panel && restorer?.isSupported ? { panel, restorer } : null;
  };
  const add = (
    id: string,
    label: string,
    execute: (current: Current) => Promise<void>,
    isEnabled: (current: Current) => boolean = () => true
  ): void => {
    commands.addCommand(id, {
      label,
      isEnabled: () => {
        const found = current();
        return found !== null && isEnabled(found);
      },
      execute: async () => {
        const found = current();
        if (found) {
          await execute(found).catch(error => showErrorMessage(label, error));
        }
      }
    });
  };
  const has = (feature: string) => (found: Current) => Boolean(found.restorer.facts?.features.includes(feature));

  add(COMMANDS.restore, 'Bring Back Outputs From the Kernel', ({ restorer }) => restorer.restore(true));
  add(
    COMMANDS.insertDeleted,
    'Insert Cells for Outputs of Deleted Cells',
    ({ panel, restorer }) => insertDeleted(panel, restorer, gateway),
    ({ restorer }) => restorer.orphans.length > 0
  );
  add(
    COMMANDS.runDetached,
    'Run This Cell and Leave',
    ({ panel, restorer }) => runDetached(panel, restorer, gateway),
    ({ panel }) => panel.content.activeCell?.model.type === 'code'
  );
  add(COMMANDS.share, 'Share Live Outputs…', ({ panel, restorer }) => share(panel, restorer, gateway), has('shares'));
  add(COMMANDS.revoke, 'Stop Sharing Live Outputs', ({ restorer }) => revoke(restorer, gateway), has('shares'));
  add(
    COMMANDS.profile,
    'Switch to Other Resources…',
    ({ panel }) => switchProfile(panel, gateway, specs),
    ({ panel }) => profilesOf(specs, panel).length > 0
  );
}

/** Runs the active cell. The gateway sends the code to the kernel, so the page may be closed at once. */
async function runDetached(panel: NotebookPanel, restorer: Restorer, gateway: Gateway): Promise<void> {
  const cell = panel.content.activeCell as CodeCell;
  const code = cell.model.sharedModel.getSource();
  if (!code.trim()) {
    return;
  }
  const body = { code, cellId: cell.model.id, msg_id: UUID.uuid4() };
  const execution = await gateway.run(restorer.kernel.id, body);
  if (execution && !cell.isDisposed) {
    restorer.follow(cell, execution);
  }
}

async function share(panel: NotebookPanel, restorer: Restorer, gateway: Gateway): Promise<void> {
  const choice = await InputDialog.getItem({
    title: 'Share live outputs',
    label: 'Everyone with the link can read the outputs of this notebook for',
    items: Object.keys(EXPIRIES),
    current: 1
  });
  if (!choice.value) {
    return;
  }
  const body = { path: panel.context.path, expires_in_s: EXPIRIES[choice.value] };
  const made = await gateway.share(restorer.kernel.id, body);
  if (!made) {
    return;
  }
  const copy = await InputDialog.getText({
    title: 'The link to the live outputs',
    label: `It shows the cells and outputs, read-only, until ${new Date(made.expires).toLocaleString()}.`,
    text: made.url,
    okLabel: 'Copy'
  });
  if (copy.button.accept) {
    Clipboard.copyToSystem(made.url);
  }
}

async function revoke(restorer: Restorer, gateway: Gateway): Promise<void> {
  const shares = await gateway.shares(restorer.kernel.id);
  const answer = await showDialog({
    title: 'Stop sharing',
    body: shares.length ? `${shares.length} link(s) to this kernel's outputs will stop working.` : 'Nothing is shared.',
    buttons: shares.length ? [Dialog.cancelButton(), Dialog.warnButton({ label: 'Stop' })] : [Dialog.okButton()]
  });
  if (answer.button.accept) {
    await Promise.all(shares.map(({ id }) => gateway.revoke(restorer.kernel.id, id)));
  }
}

async function switchProfile(panel: NotebookPanel, gateway: Gateway, specs: KernelSpec.IManager): Promise<void> {
  const profiles = profilesOf(specs, panel);
  const { path, sessionContext } = panel.context;
  const now = (await gateway.notebook(path))?.profile;
  const choice = await InputDialog.getItem({
    title: 'Switch to other resources',
    label: `Now: ${now ?? 'the default'}. Switch to`,
    items: profiles
  });
  if (!choice.value) {
    return;
  }
  const answer = await showDialog({
    title: `Switch to ${choice.value}?`,
    body: 'The kernel is restarted with these resources. Its variables and running cells are lost; outputs stay.',
    buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: 'Switch' })]
  });
  const name = sessionContext.session?.kernel?.name;
  if (answer.button.accept && name) {
    await gateway.setProfile(path, choice.value);
    await sessionContext.changeKernel({ name });
  }
}
