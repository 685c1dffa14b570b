/**
 * Reverse-mode differentiation: ops run forward at once and leave behind how to run backward.
 *
 * @module
 */

import { add, type Arena, type DType, type Tensor } from "../ffi/mod.ts";

/** A tensor on the tape, and the gradient that has reached it. */
export class Value {
  /** The numbers. */
  readonly data: Tensor;
  /** Gradient of the loss with respect to `data`, same shape; null while none has arrived. */
  gradient: Tensor | null = null;

  /** Wraps a tensor. */
  constructor(data: Tensor) {
    this.data = data;
  }
}

/** The ops of one forward pass. All tensors, gradients too, live in one arena and end with its reset. */
export class Tape {
  /** Owner of activations and their gradients. */
  readonly arena: Arena;
  /** Whether backward will be asked for: without, ops keep nothing for it. */
  readonly recording: boolean;
  readonly #backward: (() => void)[] = [];

  /** An empty tape. */
  constructor(arena: Arena, options: { recording: boolean }) {
    this.arena = arena;
    this.recording = options.recording;
  }

  /** A tensor of undefined content for an op to write. */
  tensor(shape: readonly number[], dtype?: DType): Tensor {
    return this.arena.tensor(shape, dtype);
  }

  /** Registers what an op does in the backward pass. */
  record(backward: () => void): void {
    if (this.recording) this.#backward.push(backward);
  }

  /** Runs the ops backward, last first, from the gradients that the loss has left. */
  backward(): void {
    for (let op = this.#backward.pop(); op !== undefined; op = this.#backward.pop()) op();
  }

  /** Adds `gradient` to what `value` has received; the tensor becomes the value's own. */
  give(value: Value, gradient: Tensor): void {
    const present = value.gradient;
    if (present === null) {
      value.gradient = gradient;
      return;
    }
    // A new tensor, since either may be shared with another value.
    const total = this.tensor(present.shape, present.dtype);
    add(total, present, gradient);
    value.gradient = total;
  }
}
