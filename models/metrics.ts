/**
 * Numbers of the training steps, kept on the device and read late.
 *
 * @module
 */

import { type Arena, copyRows, sum, type Tensor } from "../ffi/mod.ts";
import type { RowLosses } from "./ops.ts";

const ROW = 16; // f32 numbers of a step; each used one on 16 bytes, as kernels ask
const LOSS = 0;
const NLL = 4;
const NORM = 8;

/** What the host knows of a step when it starts. */
export interface StepFacts {
  /** Number of the step, from 1. */
  step: number;
  /** Target tokens: what the losses are means over. */
  tokens: number;
  /** Its learning rate. */
  learningRate: number;
}

/** One training step. */
export interface StepMetrics extends StepFacts {
  /** Mean loss of a target token with label smoothing, in nats. */
  loss: number;
  /** Mean of minus the log-probability of a target token. */
  nll: number;
  /** 2-norm of the gradient, before clipping. */
  gradientNorm: number;
  /** Whether the gradient was not finite, so that nothing changed. */
  skipped: boolean;
}

/** Steps since the last reading, and their means weighted by tokens. */
export interface TrainingMetrics {
  /** Each step. */
  steps: StepMetrics[];
  /** Mean loss of a target token with label smoothing, in nats; NaN without steps. */
  loss: number;
  /** Mean of minus the log-probability of a target token; NaN without steps. */
  nll: number;
  /** Target tokens of all steps. */
  tokens: number;
  /** Steps that changed nothing, since their gradient was not finite. */
  skipped: number;
}

/** Means over `steps`. */
export function summarise(steps: StepMetrics[]): TrainingMetrics {
  let [loss, nll, tokens, skipped] = [0, 0, 0, 0];
  for (const step of steps) {
    loss += step.loss * step.tokens;
    nll += step.nll * step.tokens;
    tokens += step.tokens;
    skipped += Number(step.skipped);
  }
  return { steps, loss: loss / tokens, nll: nll / tokens, tokens, skipped };
}

/** A ring of steps on the device. */
export class MetricsRing {
  readonly #facts: StepFacts[] = [];
  readonly #row: Tensor; // f32 [1, ROW]
  readonly #ring: Tensor; // f32 [K, ROW]
  readonly #slot: Tensor; // i32 [1]
  readonly #past: StepMetrics[] = [];

  /** Room for `capacity` steps between two readings of the device. */
  constructor(arena: Arena, capacity = 1024) {
    this.#row = arena.zeros([1, ROW], "f32");
    this.#ring = arena.zeros([capacity, ROW], "f32");
    this.#slot = arena.zeros([1], "i32");
  }

  /** f32 [2], for the gradient's norm and its clipping factor. */
  get norm(): Tensor {
    return this.#row.reshape(ROW).slice(NORM, 2);
  }

  /** Before a step: uploads its place in the ring. Reads the device first where the ring is full. */
  open(): void {
    if (this.#facts.length === this.#ring.rows) this.#collect();
    this.#slot.write(Int32Array.of(this.#facts.length));
  }

  /** After a step has been queued without error; one that failed leaves its place to the next. */
  commit(facts: StepFacts): void {
    this.#facts.push(facts);
  }

  /** Adds the losses of one micro-batch; the first of a step overwrites. */
  add(losses: RowLosses, first: boolean): void {
    const row = this.#row.reshape(ROW);
    sum(row.slice(LOSS, 1), losses.loss, !first);
    sum(row.slice(NLL, 1), losses.nll, !first);
  }

  /** Stores the step in the ring; part of the step's work on the device, as is {@linkcode add}. */
  close(): void {
    copyRows(this.#ring, this.#row, { rows: 1, dstIndex: this.#slot });
  }

  /** The steps since the last reading; waits for them. */
  read(): TrainingMetrics {
    this.#collect();
    return summarise(this.#past.splice(0));
  }

  #collect(): void {
    const facts = this.#facts.splice(0);
    if (facts.length === 0) return;
    const values = this.#ring.slice(0, facts.length).floats();
    facts.forEach((fact, i) => {
      const at = (column: number): number => values[i * ROW + column] ?? NaN;
      this.#past.push({
        ...fact,
        loss: at(LOSS) / fact.tokens,
        nll: at(NLL) / fact.tokens,
        gradientNorm: at(NORM),
        skipped: at(NORM + 1) === 0,
      });
    });
  }
}
