/**
 * Learning rates by step.
 *
 * @module
 */

/** A learning-rate schedule; `step` counts from 1. */
export type Schedule =
  | { kind: "constant"; rate: number; warmup?: number }
  | { kind: "noam"; factor: number; width: number; warmup: number }
  | { kind: "inverse_sqrt"; rate: number; warmup: number }
  | { kind: "cosine"; rate: number; warmup: number; steps: number; floor?: number };

/**
 * The learning rate at `step`, from 1.
 *
 * - `noam`: factor * C^-0.5 * min(step^-0.5, step * warmup^-1.5) (Vaswani et al. 2017, equation 3)
 * - `inverse_sqrt`: linear warm-up to `rate`, then rate * sqrt(warmup / step)
 * - `cosine`: linear warm-up to `rate`, then half a cosine to `floor` at `steps` (Loshchilov & Hutter 2017)
 * - `constant`: linear warm-up (default none), then `rate`
 *
 * @throws {RangeError} If the step or a constant is out of range.
 */
export function learningRate(schedule: Schedule, step: number): number {
  checkSchedule(schedule);
  if (!Number.isSafeInteger(step) || step < 1) {
    throw new RangeError(
      `Cannot compute a learning rate as step must be a whole number from 1: current value is ${step}`,
    );
  }
  switch (schedule.kind) {
    case "constant":
      return schedule.rate * warm(step, schedule.warmup ?? 0);
    case "noam": {
      const { factor, width, warmup } = schedule;
      return factor * width ** -0.5 * Math.min(step ** -0.5, step * Math.max(1, warmup) ** -1.5);
    }
    case "inverse_sqrt": {
      const warmup = Math.max(1, schedule.warmup);
      return schedule.rate * (step < warmup ? step / warmup : Math.sqrt(warmup / step));
    }
    case "cosine": {
      const { rate, warmup, steps, floor = 0 } = schedule;
      if (step < warmup) return rate * step / warmup;
      const progress = Math.min(1, (step - warmup) / Math.max(1, steps - warmup));
      return floor + (rate - floor) * 0.5 * (1 + Math.cos(Math.PI * progress));
    }
  }
}

function warm(step: number, warmup: number): number {
  return step < warmup ? step / warmup : 1;
}

/**
 * Checks the constants of a schedule.
 *
 * @throws {RangeError} If one is negative or no number.
 */
export function checkSchedule(schedule: Schedule): void {
  for (const [key, value] of Object.entries(schedule)) {
    if (key === "kind") continue;
    if (typeof value !== "number" || !Number.isFinite(value) || value < 0) {
      throw new RangeError(
        `Cannot use a ${schedule.kind} schedule as ${key} must be from 0: current value is ${value}`,
      );
    }
  }
}
