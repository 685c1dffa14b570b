/**
 * Losses of a model on held-out batches.
 *
 * @module
 */

import { Arena, sum } from "../ffi/mod.ts";
import { type Batch, capacityOf, checkBatch } from "./batch.ts";
import type { RowLosses } from "./ops.ts";
import { StagedBatch } from "./staging.ts";
import { Tape } from "./tape.ts";
import type { Transformer } from "./transformer.ts";

/** Losses over all batches. */
export interface Evaluation {
  /** Mean loss of a target token with the label smoothing asked for, in nats. */
  loss: number;
  /** Mean of minus the log-probability of a target token, in nats; NaN without tokens. */
  nll: number;
  /** exp(nll). */
  perplexity: number;
  /** Target tokens. */
  tokens: number;
}

/**
 * Losses without dropout; changes nothing of the model.
 *
 * @param options.smoothing Label smoothing of `loss`; default 0.
 * @throws {RangeError} If a batch does not fit the model.
 */
export function evaluateLoss(
  model: Transformer,
  batches: Iterable<Batch>,
  options: { smoothing?: number } = {},
): Evaluation {
  using arena = new Arena(model.context);
  let [loss, nll, tokens] = [0, 0, 0];
  for (const batch of batches) {
    arena.reset();
    const total = arena.tensor([8], "f32"); // two sums, each on 16 bytes
    const rows = rowLosses(model, arena, batch, options.smoothing ?? 0); // [Rt]
    sum(total.slice(0, 1), rows.loss, false);
    sum(total.slice(4, 1), rows.nll, false);
    const values = total.floats();
    loss += values[0] ?? NaN;
    nll += values[4] ?? NaN;
    tokens += batch.targetTokens;
  }
  return { loss: loss / tokens, nll: nll / tokens, perplexity: Math.exp(nll / tokens), tokens };
}

/**
 * The log-probability of each target sentence of a batch given its source, EOS included, in nats.
 *
 * @throws {RangeError} If the batch does not fit the model.
 */
export function scoreSentences(model: Transformer, batch: Batch): number[] {
  using arena = new Arena(model.context);
  const nll = rowLosses(model, arena, batch, 0).nll.floats(); // [Rt]
  return Array.from({ length: batch.sentences }, (_, b) => {
    const rows = nll.subarray(batch.targetOffsets[b], batch.targetOffsets[b + 1]);
    return -rows.reduce((total, value) => total + value, 0);
  });
}

function rowLosses(model: Transformer, arena: Arena, batch: Batch, smoothing: number): RowLosses {
  checkBatch(batch, model.config);
  const padded = Boolean(batch.sourceKeyLengths || batch.targetKeyLengths);
  const staged = new StagedBatch(arena, capacityOf(batch), padded);
  staged.upload(batch);
  const pass = { tape: new Tape(arena, { recording: false }), dropout: null, deterministic: false };
  return model.forwardLoss(pass, staged.device, { smoothing, gradientScale: null });
}
