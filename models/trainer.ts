/**
 * The training step: forward, loss, backward, gradient norm, Adam, as one unit of work on the device.
 *
 * @module
 */

import { Arena, type Graph, type Tensor } from "../ffi/mod.ts";
import { type Batch, type Capacity, capacityOf, checkBatch } from "./batch.ts";
import { MetricsRing, type TrainingMetrics } from "./metrics.ts";
import { Adam, type AdamOptions, HYPER_SIZE } from "./optimizer.ts";
import type { NamedArrays } from "./parameters.ts";
import { checkSchedule, learningRate, type Schedule } from "./schedule.ts";
import { StagedBatch } from "./staging.ts";
import { Tape } from "./tape.ts";
import type { Transformer } from "./transformer.ts";

/** Options of a {@linkcode Trainer}. */
export interface TrainerOptions {
  /** What to train. Borrowed: it must live as long. */
  model: Transformer;
  /** Learning rate by step. */
  schedule: Schedule;
  /** Constants of Adam, weight decay and gradient clipping. */
  optimizer?: AdamOptions;
  /** Label smoothing, 0 to less than 1; default 0. */
  smoothing?: number;
  /** Dropout of embeddings, attention, feed-forward and sublayers; default 0. */
  dropout?: number;
  /** Micro-batches of a step; default 1. */
  accumulate?: number;
  /** Seed of dropout; default 0. */
  seed?: number;
  /** Gradients that are the same bit for bit on a GPU; always so on the CPU. Default false. */
  deterministic?: boolean;
  /** Capture each shape of step as a graph and replay it; default on a GPU. Without, steps run call by call. */
  graph?: boolean;
  /** With `graph`: the room that every batch gets. Default: batches are rounded up to a few sizes, with a graph for each. */
  capacity?: Capacity;
}

/** All that a resumed run needs to go on as if it had never stopped. */
export interface TrainerState {
  /** Steps done. */
  step: number;
  /** Seed of dropout. */
  seed: number;
  /** Master weights, f32. */
  weights: NamedArrays;
  /** First moments. */
  m: NamedArrays;
  /** Second moments. */
  v: NamedArrays;
}

/** A shape of step: room for its batches, and its graph once captured. */
interface Slot {
  batches: StagedBatch[];
  graph: Graph | null;
  warm: boolean;
}

const RATE = 0; // places in the floats that a step uploads, each group on 16 bytes
const GRADIENT_SCALE = 4;
const CONTROL_SIZE = 8;
const CHUNK_BYTES = { cpu: 64 << 20, cuda: 512 << 20 };

/**
 * Trains a model step by step. A step returns once its work is queued; {@linkcode Trainer.readMetrics} waits.
 *
 * @example One step
 * ```ts
 * import type { Batch, Transformer } from "./mod.ts";
 * import { Trainer } from "./mod.ts";
 * export function once(model: Transformer, batch: Batch): number {
 *   using trainer = new Trainer({ model, schedule: { kind: "constant", rate: 1e-3 }, smoothing: 0.1 });
 *   trainer.step(batch);
 *   return trainer.readMetrics().loss;
 * }
 * ```
 */
export class Trainer implements Disposable {
  /** The model in training. */
  readonly model: Transformer;
  readonly #options: Required<Omit<TrainerOptions, "model" | "optimizer" | "capacity">>;
  readonly #capacity: Capacity | null;
  readonly #optimizer: Adam;
  readonly #state: Arena; // lives as long as the trainer
  readonly #activations: Arena; // reset every step
  readonly #metrics: MetricsRing;
  readonly #rng: Tensor; // u64 [accumulate * 2]: {seed, step} of each micro-batch
  readonly #control: Tensor; // f32 [CONTROL_SIZE]
  readonly #slots = new Map<string, Slot>();
  #step = 0;
  #seed: number;

  /**
   * Takes memory for gradients and moments, once for a model.
   *
   * @throws {RangeError} If an option is out of range.
   * @throws {OutOfMemoryError} If the device has no room for gradients and moments.
   */
  constructor(options: TrainerOptions) {
    const { model, optimizer, capacity, ...rest } = options;
    const { context } = model;
    const defaults = { smoothing: 0, dropout: 0, accumulate: 1, seed: 0, deterministic: false };
    this.model = model;
    this.#options = { ...defaults, graph: context.device === "cuda", ...rest };
    this.#capacity = capacity ?? null;
    checkOptions(this.#options);
    this.#seed = this.#options.seed;
    this.#optimizer = new Adam(model.parameters, optimizer);
    this.#state = new Arena(context, { chunkBytes: 1 << 20 });
    this.#activations = new Arena(context, { chunkBytes: CHUNK_BYTES[context.device] });
    try {
      model.parameters.prepareTraining();
      this.#metrics = new MetricsRing(this.#state);
      this.#rng = this.#state.zeros([2 * this.#options.accumulate], "u64");
      this.#control = this.#state.zeros([CONTROL_SIZE], "f32");
    } catch (error) {
      this.#state[Symbol.dispose]();
      throw error;
    }
  }

  /** Steps done. */
  get steps(): number {
    return this.#step;
  }

  /** Device memory of activations so far, in bytes. */
  get activationBytes(): number {
    return this.#activations.capacity;
  }

  /**
   * One update of the parameters from `accumulate` micro-batches, as if they were one batch.
   *
   * @returns The number of the step, from 1.
   * @throws {RangeError} If there are not so many batches, or one does not fit the model.
   */
  step(batch: Batch | readonly Batch[]): number {
    const batches = "sentences" in batch ? [batch] : batch;
    const { accumulate, schedule } = this.#options;
    if (batches.length !== accumulate) {
      throw new RangeError(`Cannot step as it takes ${accumulate} batches: ${batches.length} given`);
    }
    for (const one of batches) checkBatch(one, this.model.config);
    const slot = this.#slot(batches);
    const step = this.#step + 1;
    const tokens = batches.reduce((sum, one) => sum + one.targetTokens, 0);
    const rate = learningRate(schedule, step);
    this.#upload(step, rate, tokens);
    slot.batches.forEach((staged, i) => {
      const one = batches[i];
      if (one !== undefined) staged.upload(one);
    });
    this.#metrics.open();
    this.#run(slot);
    this.#metrics.commit({ step, tokens, learningRate: rate });
    this.#step = step;
    return step;
  }

  /** Numbers of the steps since the last call; waits until they are done. */
  readMetrics(): TrainingMetrics {
    return this.#metrics.read();
  }

  /** Copies of all that training changes; waits. */
  state(): TrainerState {
    const { parameters } = this.model;
    const [weights, m, v] = [parameters.read("master"), parameters.read("m"), parameters.read("v")];
    return { step: this.#step, seed: this.#seed, weights, m, v };
  }

  /**
   * Goes on from `state`.
   *
   * @throws {TypeError} If a parameter is missing or unknown.
   * @throws {RangeError} If one has another size.
   */
  load(state: TrainerState): void {
    const { parameters } = this.model;
    if (!Number.isSafeInteger(state.step) || state.step < 0) {
      throw new RangeError(
        `Cannot load a state as step must be a whole number from 0: current value is ${state.step}`,
      );
    }
    parameters.write("master", state.weights);
    parameters.write("m", state.m);
    parameters.write("v", state.v);
    this.#step = state.step;
    this.#seed = state.seed;
  }

  /** Frees what training needed beside the model. Idempotent. */
  [Symbol.dispose](): void {
    for (const slot of this.#slots.values()) slot.graph?.[Symbol.dispose]();
    this.#slots.clear();
    this.#activations[Symbol.dispose]();
    this.#state[Symbol.dispose]();
  }

  /** Room for these batches: of a fixed capacity under a graph, else of their own size. */
  #slot(batches: readonly Batch[]): Slot {
    this.#activations.reset();
    const padded = batches.some((batch) => batch.sourceKeyLengths || batch.targetKeyLengths);
    if (!this.#options.graph) {
      const staged = batches.map((batch) => new StagedBatch(this.#activations, capacityOf(batch), padded));
      return { batches: staged, graph: null, warm: false };
    }
    const capacities = batches.map((batch) => this.#capacity ?? roundUp(capacityOf(batch)));
    const key = JSON.stringify([capacities.map((capacity) => Object.values(capacity)), padded]);
    const present = this.#slots.get(key);
    if (present !== undefined) return present;
    const staged = capacities.map((capacity) => new StagedBatch(this.#state, capacity, padded));
    const slot = { batches: staged, graph: null, warm: false };
    this.#slots.set(key, slot);
    return slot;
  }

  /** The first step of a shape runs call by call, which takes the memory; the second captures; the others replay. */
  #run(slot: Slot): void {
    if (!this.#options.graph || !slot.warm) {
      this.#body(slot.batches);
      slot.warm = true;
      return;
    }
    slot.graph ??= this.model.context.capture(() => this.#body(slot.batches));
    slot.graph.launch();
  }

  /** All that the device does in a step. Nothing here depends on what a batch holds, only on its room. */
  #body(batches: readonly StagedBatch[]): void {
    const { parameters } = this.model;
    parameters.renew();
    batches.forEach((batch, i) => {
      const mark = this.#activations.mark();
      this.#accumulate(batch, i);
      this.#activations.rewind(mark);
    });
    this.#optimizer.update(this.#control.slice(RATE, HYPER_SIZE), this.#metrics.norm);
    this.#metrics.close();
  }

  /** Forward and backward over one micro-batch. */
  #accumulate(batch: StagedBatch, index: number): void {
    const { dropout, smoothing, deterministic } = this.#options;
    const tape = new Tape(this.#activations, { recording: true });
    const rng = this.#rng.slice(2 * index, 2);
    const pass = { tape, dropout: dropout > 0 ? { p: dropout, rng } : null, deterministic };
    const gradientScale = this.#control.slice(GRADIENT_SCALE, 1);
    const losses = this.model.forwardLoss(pass, batch.device, { smoothing, gradientScale });
    this.#metrics.add(losses, index === 0);
    tape.backward();
  }

  /** Uploads what changes from step to step beside the batches. */
  #upload(step: number, rate: number, tokens: number): void {
    const { accumulate, dropout } = this.#options;
    const control = new Float32Array(CONTROL_SIZE);
    control.set(this.#optimizer.hyper(rate, step), RATE);
    control[GRADIENT_SCALE] = 1 / Math.max(1, tokens);
    this.#control.write(control);
    if (dropout === 0) return;
    const first = (step - 1) * accumulate;
    const rng = Array.from({ length: accumulate }, (_, i) => [BigInt(this.#seed), BigInt(first + i)]);
    this.#rng.write(BigUint64Array.from(rng.flat()));
  }
}

function checkOptions(
  options: Pick<Required<TrainerOptions>, "smoothing" | "dropout" | "accumulate" | "seed" | "schedule">,
): void {
  for (const key of ["smoothing", "dropout"] as const) {
    const value = options[key];
    if (!(value >= 0 && value < 1)) {
      throw new RangeError(`Cannot train as ${key} must be from 0 to less than 1: current value is ${value}`);
    }
  }
  for (const [key, lowest] of [["accumulate", 1], ["seed", 0]] as const) {
    const value = options[key];
    if (!Number.isSafeInteger(value) || value < lowest) {
      throw new RangeError(
        `Cannot train as ${key} must be a whole number from ${lowest}: current value is ${value}`,
      );
    }
  }
  checkSchedule(options.schedule);
}

/** The size that stands for all batches a little smaller, so that few graphs serve a corpus. */
function roundUp(capacity: Capacity): Capacity {
  const multiple = (value: number, of: number): number => Math.max(of, Math.ceil(value / of) * of);
  const power = (value: number): number => 2 ** Math.ceil(Math.log2(Math.max(16, value)));
  return {
    sourceRows: multiple(capacity.sourceRows, 512),
    targetRows: multiple(capacity.targetRows, 512),
    sentences: power(capacity.sentences),
    maxSource: power(capacity.maxSource),
    maxTarget: power(capacity.maxTarget),
  };
}
