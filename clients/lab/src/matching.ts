/** Decides which executions belong to which cells of a notebook, and which cells need their outputs from the log. */

import { isOpen, type Execution } from './execution.js';
import { sha256 } from './sha256.js';

/** The properties of a cell that are compared. */
export interface CellFacts {
  id: string;
  source: string;
  /** The `msg_id` of the execution that the document marks as unfinished. */
  marker: string | null;
}

/** A cell and its newest execution. */
export interface Match {
  /** The index of the cell. */
  cell: number;
  execution: Execution;
  /** Whether the cell's code differs from the executed code. */
  edited: boolean;
}

export interface Matches {
  /** In the order of the requests. */
  matches: Match[];
  /** Executions without a cell in the notebook, from sessions that ran cells of the notebook. */
  orphans: Execution[];
}

const byRequest = (a: Execution, b: Execution): number => Date.parse(a.requested) - Date.parse(b.requested);

/**
 * Matches cells with executions.
 *
 * `idsAreKept` is whether the document keeps the ids of its cells. Documents below nbformat 4.5 do not: each page
 * gives their cells new ids, so cells and executions without a matching id are matched by code and order.
 */
export function match(cells: CellFacts[], executions: Execution[], idsAreKept: boolean): Matches {
  const newest = new Map<string, Execution>();
  for (const execution of [...executions].sort(byRequest)) {
    if (execution.cellId) {
      newest.set(execution.cellId, execution);
    }
  }
  const matches: Match[] = [];
  const unmatched: number[] = [];
  cells.forEach(({ id, source }, cell) => {
    const execution = newest.get(id);
    if (execution) {
      matches.push({ cell, execution, edited: isEdited(source, execution) });
      newest.delete(id);
    } else {
      unmatched.push(cell);
    }
  });
  let rest = [...newest.values()];
  if (!idsAreKept) {
    const byCode = matchByCode(cells, unmatched, rest);
    matches.push(...byCode);
    const used = new Set(byCode.map(({ execution }) => execution));
    rest = rest.filter(execution => !used.has(execution));
  }
  matches.sort((a, b) => byRequest(a.execution, b.execution));
  const sessions = new Set(matches.map(({ execution }) => execution.session));
  return { matches, orphans: rest.filter(({ session }) => sessions.has(session)) };
}

function isEdited(source: string, { code_hash }: Execution): boolean {
  return Boolean(code_hash) && sha256(source) !== code_hash;
}

/** Matches cells that have the same code with the newest executions of this code, in order. */
function matchByCode(cells: CellFacts[], unmatched: number[], executions: Execution[]): Match[] {
  const cellsByCode = new Map<string, number[]>();
  for (const cell of unmatched) {
    const hash = sha256(cells[cell].source);
    cellsByCode.set(hash, [...(cellsByCode.get(hash) ?? []), cell]);
  }
  const matches: Match[] = [];
  for (const [hash, group] of cellsByCode) {
    const runs = executions.filter(execution => execution.code_hash === hash).slice(-group.length);
    runs.forEach((execution, i) => matches.push({ cell: group[i], execution, edited: false }));
  }
  return matches;
}

/**
 * Whether outputs must come from the log.
 *
 * The document is complete if it was saved after the execution ended and the cell is not marked as unfinished. Then the
 * log is not used, so that outputs that a user cleared stay cleared.
 */
export function needsLog(execution: Execution, marker: string | null, lastModified: Date): boolean {
  if (isOpen(execution) || marker !== null) {
    return true;
  }
  return Boolean(execution.ended) && Date.parse(execution.ended!) > lastModified.getTime();
}
