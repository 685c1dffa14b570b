/**
 * Adam over the flat buffers of a parameter set.
 *
 * @module
 */

import { adam, gradNorm, type Tensor } from "../ffi/mod.ts";
import type { ParameterSet } from "./parameters.ts";

/** Constants of Adam. */
export interface AdamOptions {
  /** Decay of the first moments; default 0.9. */
  beta1?: number;
  /** Decay of the second moments; default 0.98 (Vaswani et al. 2017, section 5.3). */
  beta2?: number;
  /** Added to the root of the second moment; default 1e-9 (same place). */
  eps?: number;
  /** Decoupled weight decay of the matrices (Loshchilov & Hutter 2019); default 0: plain Adam. */
  weightDecay?: number;
  /** Largest 2-norm of the gradient (Pascanu et al. 2013); 0, the default, does not clip. */
  clip?: number;
}

/** f32 numbers that {@linkcode Adam.update} takes from the device: see {@linkcode Adam.hyper}. */
export const HYPER_SIZE = 3;

/** Adam with decoupled weight decay; at decay 0 that of Kingma & Ba 2015. */
export class Adam {
  readonly #set: ParameterSet;
  readonly #options: Required<AdamOptions>;

  /**
   * An optimizer of `set`, which keeps the moments.
   *
   * @throws {RangeError} If a constant is out of range.
   */
  constructor(set: ParameterSet, options: AdamOptions = {}) {
    this.#set = set;
    this.#options = { beta1: 0.9, beta2: 0.98, eps: 1e-9, weightDecay: 0, clip: 0, ...options };
    const { beta1, beta2, eps, weightDecay, clip } = this.#options;
    for (const [label, value] of Object.entries({ beta1, beta2 })) {
      if (!(value >= 0 && value < 1)) {
        throw new RangeError(
          `Cannot use Adam as ${label} must be from 0 to less than 1: current value is ${value}`,
        );
      }
    }
    for (const [label, value] of Object.entries({ eps, weightDecay, clip })) {
      if (!(value >= 0 && Number.isFinite(value))) {
        throw new RangeError(`Cannot use Adam as ${label} must be from 0: current value is ${value}`);
      }
    }
  }

  /** What changes from step to step, in float64 until it is uploaded: rate, 1 / (1 - beta1^t), 1 / (1 - beta2^t). */
  hyper(rate: number, step: number): readonly [number, number, number] {
    const { beta1, beta2 } = this.#options;
    return [rate, 1 / (1 - beta1 ** step), 1 / (1 - beta2 ** step)];
  }

  /**
   * One step from the gradients as they stand. A gradient that is not finite changes nothing.
   *
   * @param hyper f32 [3] on the device, as {@linkcode Adam.hyper} gives it.
   * @param norm f32 [2]: receives the gradient's norm, and the factor that clips it.
   */
  update(hyper: Tensor, norm: Tensor): void {
    const set = this.#set;
    const { gradient, m, v } = set.prepareTraining();
    const { beta1, beta2, eps, weightDecay, clip } = this.#options;
    gradNorm(norm, gradient, clip);
    const ranges = [[0, set.decaying, weightDecay], [set.decaying, set.size - set.decaying, 0]] as const;
    for (const [start, count, decay] of ranges) {
      if (count === 0) continue;
      const part = (flat: Tensor): Tensor => flat.slice(start, count);
      adam({
        weights: part(set.weights),
        master: part(set.master),
        m: part(m),
        v: part(v),
        grad: part(gradient),
        hyper,
        norm,
        beta1,
        beta2,
        eps,
        weightDecay: decay,
      });
    }
  }
}
