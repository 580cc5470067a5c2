/** The status bar's text for a kernel. */

import type { KernelFacts, Progress } from './gateway.js';

const STEPS: Partial<Record<Progress['phase'], string>> = {
  queued: 'Kernel is waiting for a node',
  scheduled: 'Kernel has a node',
  pulling: 'Kernel image is being pulled',
  starting: 'Kernel is starting'
};

/** Where a kernel runs and since when; or the step of its start; or why it ended. */
export function statusText(facts: KernelFacts, time: (date: Date) => string): string {
  const ended = endText(facts);
  if (ended) {
    return ended;
  }
  if (facts.phase in STEPS) {
    return startText(facts);
  }
  const parts = [facts.place ?? '', resourcesText(facts), facts.started ? `since ${time(new Date(facts.started))}` : ''];
  return parts.filter(Boolean).join(' · ');
}

/** The step of a kernel's start, or why it failed; empty once it runs. */
export function startText(progress: Progress | KernelFacts): string {
  const step = STEPS[progress.phase];
  if (!step) {
    return endText(progress);
  }
  return step + (progress.reason ? `: ${progress.reason}` : '');
}

/** Why a kernel ended or did not start; empty if it runs. */
export function endText({ phase, reason }: Progress | KernelFacts): string {
  if (phase === 'failed') {
    return `Kernel did not start${reason ? `: ${reason}` : ''}`;
  }
  return phase === 'dead' ? `Kernel ended${reason ? `: ${reason}` : ''}` : '';
}

function resourcesText({ resources }: KernelFacts): string {
  const { cpu, memory, gpu } = resources ?? {};
  const parts = [cpu ? `${cpu} CPU` : '', memory ? `${memory}` : '', gpu ? `${gpu} GPU` : ''];
  return parts.filter(Boolean).join(', ');
}
