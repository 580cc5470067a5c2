/** The text of a warning that the gateway will end a kernel. */

/** The content of a warning. */
export interface Warning {
  /** In how many seconds the kernel ends, at the earliest. */
  seconds: number;
  reason: string;
  /** Whether using the kernel keeps it. */
  idle: boolean;
}

/** Whether a message is a warning. */
export function isWarning(type: string, content: unknown): content is Warning {
  const { event, seconds, reason } = (content ?? {}) as Record<string, unknown>;
  return (
    type === 'kernelmux_lifecycle' && event === 'culling' && typeof seconds === 'number' && typeof reason === 'string'
  );
}

/** What to tell the user of the notebook `name`, whose kernel ends at `end`. */
export function warningText(name: string, reason: string, end: Date): string {
  const time = end.toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
  return `The kernel of ${name} will be ended at ${time}: ${reason}. Outputs stay; variables are lost.`;
}
