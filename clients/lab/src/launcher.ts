/** Cards in the launcher for the resource profiles of kernelspecs. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ILauncher } from '@jupyterlab/launcher';
import type { Contents } from '@jupyterlab/services';
import type { Gateway } from './gateway.js';
import { profileNames } from './profiles.js';

const CREATE = 'kernelmux:create-notebook';

interface CreateArgs {
  cwd?: string;
  kernelName?: string;
  displayName?: string;
  profile?: string;
}

export function addCards(app: JupyterFrontEnd, launcher: ILauncher, gateway: Gateway): void {
  const { commands, serviceManager } = app;
  const { kernelspecs } = serviceManager;
  commands.addCommand(CREATE, {
    label: args => {
      const { displayName, profile } = args as CreateArgs;
      return displayName ? `${displayName}: ${profile}` : 'New Notebook With Resources';
    },
    caption: args => `A notebook with the resources ${(args as CreateArgs).profile}`,
    execute: async args => {
      const { cwd, kernelName, profile } = args as CreateArgs;
      if (!kernelName || !profile) {
        return;
      }
      const untitled = { path: cwd, type: 'notebook' };
      const file = (await commands.execute('docmanager:new-untitled', untitled)) as Contents.IModel;
      // Set before the notebook is opened, because opening it starts its kernel.
      await gateway.setProfile(file.path, profile);
      await commands.execute('docmanager:open', { path: file.path, factory: 'Notebook', kernel: { name: kernelName } });
    }
  });
  let cards: { dispose(): void }[] = [];
  const update = (): void => {
    cards.forEach(card => card.dispose());
    cards = [];
    const specs = Object.values(kernelspecs.specs?.kernelspecs ?? {});
    for (const spec of specs) {
      for (const profile of profileNames(spec)) {
        const args = { kernelName: spec!.name, displayName: spec!.display_name, profile };
        const kernelIconUrl = spec!.resources['logo-svg'] || spec!.resources['logo-64x64'];
        cards.push(launcher.add({ command: CREATE, args, category: 'Notebook', rank: 1, kernelIconUrl }));
      }
    }
  };
  kernelspecs.specsChanged.connect(update);
  void kernelspecs.ready.then(update);
}
