/** The gateway's API. The notebook server adds the token and forwards only the requests that its users may make. */

import { URLExt } from '@jupyterlab/coreutils';
import type { IOutput } from '@jupyterlab/nbformat';
import { ServerConnection } from '@jupyterlab/services';
import type { Execution } from './execution.js';

/** The `kernelmux` member of a kernel's model. */
export interface KernelFacts {
  version: number;
  features: string[];
  phase: 'queued' | 'scheduled' | 'pulling' | 'starting' | 'ready' | 'failed' | 'dead';
  reason: string | null;
  kernelspec?: string;
  place?: string | null;
  started?: string;
  resources?: { cpu?: string | number; memory?: string | number; gpu?: string | number } | null;
  culled_at?: string | null;
}

export interface Progress {
  phase: KernelFacts['phase'];
  reason: string | null;
  culled_at?: string | null;
}

export interface Share {
  id: string;
  url: string;
  expires: string;
}

/** The server's record of a notebook's kernels. */
export interface NotebookFacts {
  /** The newest kernel that has ended. */
  previous: string | null;
  /** The id of a kernel that is being started. */
  starting: string | null;
  profile: string | null;
}

/** The page size of lists, which is the gateway's maximum. A page has up to 1 MiB of outputs. */
const PAGE = 500;
/** The maximum number of executions that are read for one kernel. */
const MAX_EXECUTIONS = 5000;

export class Gateway {
  constructor(private readonly settings: ServerConnection.ISettings) {}

  /** The kernel's facts; null if it is gone or its gateway is not kernelmux. */
  async kernel(id: string): Promise<KernelFacts | null> {
    const model = await this.get<{ kernelmux?: KernelFacts }>(`api/kernels/${id}`);
    return model?.kernelmux ?? null;
  }

  /**
   * The newest execution of each cell, also of an ended kernel; null if the kernel is unknown.
   *
   * @param outputsSince also lists small outputs of executions that ended after this time.
   */
  async latestOfCells(id: string, outputsSince?: Date): Promise<Execution[] | null> {
    const found: Execution[] = [];
    const outputs = outputsSince ? `&outputs=small&outputs_since=${outputsSince.toISOString()}` : '';
    let before = '';
    do {
      const url = `api/kernels/${id}/executions?latest=cell${outputs}&limit=${PAGE}${before}`;
      const page = await this.get<{ executions: Execution[]; next: number | null }>(url);
      if (!page) {
        return null;
      }
      found.push(...page.executions);
      before = page.next === null || page.next === undefined ? '' : `&before=${page.next}`;
    } while (before && found.length < MAX_EXECUTIONS);
    return found;
  }

  /** An execution with its outputs. */
  execution(id: string, msgId: string): Promise<(Execution & { code: string | null; outputs: IOutput[] }) | null> {
    return this.get(`api/kernels/${id}/executions/${encodeURIComponent(msgId)}`);
  }

  /** Runs code through the gateway, so that the page may be closed at once. */
  run(id: string, body: { code: string; cellId: string; msg_id: string }): Promise<Execution | null> {
    return this.send('POST', `api/kernels/${id}/executions`, body);
  }

  progress(id: string): Promise<Progress | null> {
    return this.get(`api/kernels/${id}/progress`);
  }

  share(id: string, body: { path: string; expires_in_s: number }): Promise<Share | null> {
    return this.send('POST', `api/kernels/${id}/shares`, body);
  }

  async shares(id: string): Promise<Share[]> {
    const answer = await this.get<{ shares: Share[] }>(`api/kernels/${id}/shares`);
    return answer?.shares ?? [];
  }

  revoke(id: string, share: string): Promise<unknown> {
    return this.send('DELETE', `api/kernels/${id}/shares/${encodeURIComponent(share)}`);
  }

  notebook(path: string): Promise<NotebookFacts | null> {
    return this.get(`notebook?path=${encodeURIComponent(path)}`);
  }

  /** The executions of a notebook's kernel, with outputs of those that ended since the document was saved. */
  ended(path: string): Promise<{ kernel: string | null; executions: Execution[] } | null> {
    return this.get(`ended?path=${encodeURIComponent(path)}`);
  }

  /** Chooses the resource profile of the notebook's next kernels. */
  setProfile(path: string, profile: string | null): Promise<unknown> {
    return this.send('PUT', 'notebook', { path, profile });
  }

  private get<T>(path: string): Promise<T | null> {
    return this.send('GET', path);
  }

  /**
   * Sends a request. Returns null if the path does not exist.
   *
   * @throws ServerConnection.ResponseError with the server's message.
   */
  private async send<T>(method: string, path: string, body?: unknown): Promise<T | null> {
    const url = URLExt.join(this.settings.baseUrl, 'kernelmux', path);
    const init = { method, body: body === undefined ? undefined : JSON.stringify(body) };
    const response = await ServerConnection.makeRequest(url, init, this.settings);
    if (response.status === 404) {
      return null;
    }
    if (!response.ok) {
      throw await ServerConnection.ResponseError.create(response);
    }
    return response.status === 204 ? null : ((await response.json()) as T);
  }
}
