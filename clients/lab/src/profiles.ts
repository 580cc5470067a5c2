/** The resource profiles that a kernelspec offers. */

import type { NotebookPanel } from '@jupyterlab/notebook';
import type { KernelSpec } from '@jupyterlab/services';

interface Profile {
  name: string;
}

/** The names of the profiles of a kernelspec. */
export function profileNames(spec: KernelSpec.ISpecModel | undefined): string[] {
  const { kernelmux } = (spec?.metadata ?? {}) as { kernelmux?: { profiles?: Profile[] } };
  return (kernelmux?.profiles ?? []).map(({ name }) => name).filter(name => typeof name === 'string');
}

/** The names of the profiles that a notebook's kernel can have. */
export function profilesOf(specs: KernelSpec.IManager, panel: NotebookPanel): string[] {
  return profileNames(specs.specs?.kernelspecs[panel.sessionContext.session?.kernel?.name ?? '']);
}
