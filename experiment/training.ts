/**
 * The training loop: epochs, evaluation on the dev set, checkpoints, early stopping, and a clean end at any moment.
 *
 * @module
 */

import { Batcher, type EncodedPairs, encodePairs, type PlanStatistics } from "../data/batching.ts";
import type { SentencePair } from "../data/formats.ts";
import { ELEMENT_BYTES, OutOfMemoryError } from "../ffi/mod.ts";
import {
  type Batch,
  evaluateLoss,
  type StepMetrics,
  Trainer,
  type TrainingMemory,
  trainingMemory,
  type Transformer,
} from "../models/mod.ts";
import { type Checkpoint, saveCheckpoint, type TrainState } from "./checkpoint.ts";
import { DivergedError, EnvironmentError, nextTurn, note, seconds, UsageError } from "./cli.ts";
import type { Config } from "./config.ts";
import { Progress } from "./progress.ts";
import type { RunFolder } from "./run_folder.ts";
import { score, tokenizerFor } from "./scores.ts";
import { bestTexts, namedTensors, scheduleOf, trainingTensors, translateAll } from "./session.ts";
import type { Tokenizer } from "./vocabulary.ts";

/** Milliseconds between two readings of the losses: each waits for the device. */
const READ_INTERVAL = 500;
/** Milliseconds between two progress lines where no bar is drawn. */
const LINE_INTERVAL = 15_000;
/** Dev sentences whose translations are kept, epoch by epoch. */
const SAMPLES = 5;

/** Why training ended. */
export type Ending = "epochs" | "steps" | "time" | "patience" | "signal";

/** What a training run works with. */
export interface TrainingParts {
  /** The run's folder. */
  readonly folder: RunFolder;
  /** Its configuration, languages resolved. */
  readonly config: Config;
  /** Training pairs. */
  readonly train: readonly SentencePair[];
  /** Dev pairs, cut to the number wanted. */
  readonly dev: readonly SentencePair[];
  /** The vocabularies. */
  readonly tokenizer: Tokenizer;
  /** The model, with the weights to begin from. */
  readonly model: Transformer;
  /** The signal that came, if any: SIGINT or SIGTERM. */
  readonly signal: () => Deno.Signal | undefined;
}

const FRESH: TrainState = {
  step: 0,
  epoch: 0,
  batch: 0,
  lossSum: 0,
  lossTokens: 0,
  seconds: 0,
  epochSeconds: 0,
  epochTokens: 0,
  bestBleu: -1,
  bestEpoch: 0,
  stalled: 0,
};

type Writable<T> = { -readonly [K in keyof T]: T[K] };

/** One training run, new or resumed. */
export class TrainingRun implements Disposable {
  readonly #parts: TrainingParts;
  readonly #trainer: Trainer;
  readonly #batcher: Batcher;
  readonly #devBatcher: Batcher;
  readonly #encoded: EncodedPairs;
  #state: Writable<TrainState> = { ...FRESH };
  #nonFinite = 0;
  #skipped = 0;
  #lastRead = performance.now();
  #lastLine = performance.now();
  #lastLoss = NaN;
  #clock = performance.now();

  /**
   * Encodes the pairs and takes the device memory of training.
   *
   * @throws {UsageError} If no pair is left to train on.
   */
  constructor(parts: TrainingParts) {
    const { config, model, tokenizer } = parts;
    this.#parts = parts;
    const limits = { maxSource: config.maxTrainLength, maxTarget: config.maxTrainLength };
    this.#encoded = encodePairs(parts.train, tokenizer.source, tokenizer.target, limits);
    if (this.#encoded.source.count === 0) {
      throw new UsageError(
        `Cannot train on ${config.data} as no training pair has at most ${config.maxTrainLength} tokens: raise --max-train-length`,
      );
    }
    this.#batcher = new Batcher(this.#encoded, batching(config, true));
    const longest = model.config.maxLength;
    const dev = encodePairs(parts.dev, tokenizer.source, tokenizer.target, {
      maxSource: longest,
      maxTarget: longest,
    });
    this.#devBatcher = new Batcher(dev, {
      ...batching(config, false),
      rows: Math.max(config.batchTokens, longest),
    });
    this.#trainer = new Trainer({
      model,
      schedule: scheduleOf(config),
      optimizer: {
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
        weightDecay: config.weightDecay,
        clip: config.clipNorm,
      },
      smoothing: config.labelSmoothing,
      dropout: config.dropout,
      accumulate: config.accumulate,
      seed: config.seed,
      deterministic: config.deterministic,
    });
  }

  /** Where training stands. */
  get state(): TrainState {
    return this.#state;
  }

  /** Pairs left out of training, and why. */
  get dropped(): { readonly long: number; readonly empty: number } {
    return this.#encoded.dropped;
  }

  /** What an epoch amounts to. */
  get statistics(): PlanStatistics {
    return this.#batcher.statistics(this.#state.epoch);
  }

  /** Device memory that training needs, about. */
  get memory(): TrainingMemory {
    const { config, model } = this.#parts;
    const elementBytes = ELEMENT_BYTES[model.context.dtype];
    return trainingMemory(model.config, batching(config, true).rows, elementBytes);
  }

  /** Goes on from a checkpoint of this run. */
  resume(checkpoint: Checkpoint): void {
    const tensors = trainingTensors(this.#parts.model, checkpoint);
    this.#state = { ...checkpoint.state };
    this.#trainer.load({ step: this.#state.step, seed: this.#parts.config.seed, ...tensors });
  }

  /** Frees what training needed beside the model. */
  [Symbol.dispose](): void {
    this.#trainer[Symbol.dispose]();
  }

  /**
   * Trains until the epochs are done or something else ends it, and saves the state.
   *
   * @throws {DivergedError} If the loss stays without a finite value.
   * @throws {EnvironmentError} If the run's folder cannot be written.
   */
  async run(): Promise<Ending> {
    const { config } = this.#parts;
    const started = performance.now();
    const expired = (): boolean => config.maxTime > 0 && performance.now() - started > config.maxTime * 1000;
    while (this.#state.epoch < config.epochs) {
      if (config.patience > 0 && this.#state.stalled >= config.patience) return "patience";
      const ending = await this.#epoch(expired);
      if (ending === "signal") {
        this.#save(false);
        return ending;
      }
      if (ending !== undefined) {
        await this.#endEarly();
        return ending;
      }
      if (await this.#endEpoch() === "signal") return "signal";
    }
    return "epochs";
  }

  /** The rest of an epoch. @returns Why it ended early; undefined where it did not. */
  async #epoch(expired: () => boolean): Promise<Ending | undefined> {
    const { config, signal } = this.#parts;
    const { accumulate } = config;
    const state = this.#state;
    // Batches that make no whole step are left to the next epoch's shuffle.
    const count = this.#batcher.count(state.epoch);
    const usable = count - count % accumulate;
    if (usable === 0) {
      throw new UsageError(
        `Cannot accumulate ${accumulate} batches as an epoch has ${count}: lower --accumulate`,
      );
    }
    const progress = new Progress(`epoch ${state.epoch + 1}/${config.epochs}`, usable, state.batch);
    this.#clock = performance.now();
    try {
      while (state.batch < usable) {
        if (signal() !== undefined) return "signal";
        if (config.maxSteps > 0 && state.step >= config.maxSteps) return "steps";
        if (expired()) return "time";
        this.#step(state.batch, accumulate);
        await nextTurn();
        this.#report(progress);
      }
      return undefined;
    } finally {
      this.#readLosses();
      this.#tick();
      progress.clear();
    }
  }

  #step(first: number, count: number): void {
    const state = this.#state;
    const batches: Batch[] = [];
    for (let i = 0; i < count; i++) {
      const batch = this.#batcher.batch(state.epoch, first + i);
      state.epochTokens += batch.sourceTokens + batch.targetTokens;
      batches.push(batch);
    }
    try {
      state.step = this.#trainer.step(batches);
    } catch (cause) {
      if (!(cause instanceof OutOfMemoryError)) throw cause;
      const { batchSentences, batchTokens } = this.#parts.config;
      const flag = batchSentences > 0
        ? `--batch-sentences (now ${batchSentences})`
        : `--batch-tokens (now ${batchTokens})`;
      throw new EnvironmentError(`Cannot take a step as the device has no more memory: lower ${flag}`, {
        cause,
      });
    }
    state.batch += count;
  }

  /** Adds the time since the last call to the training time. */
  #tick(): void {
    const now = performance.now();
    const passed = (now - this.#clock) / 1000;
    this.#clock = now;
    this.#state.seconds += passed;
    this.#state.epochSeconds += passed;
  }

  #readLosses(): void {
    for (const step of this.#trainer.readMetrics().steps) this.#account(step);
    this.#lastRead = performance.now();
  }

  #account(step: StepMetrics): void {
    if (Number.isFinite(step.loss)) {
      this.#state.lossSum += step.loss * step.tokens;
      this.#state.lossTokens += step.tokens;
      this.#lastLoss = step.loss;
    }
    const bad = step.skipped || !Number.isFinite(step.loss);
    this.#nonFinite = bad ? this.#nonFinite + 1 : 0;
    if (bad) this.#skipped++;
    const { nonFiniteLimit, lr } = this.#parts.config;
    if (this.#nonFinite >= nonFiniteLimit) {
      throw new DivergedError(
        `Training diverged: loss or gradient of ${this.#nonFinite} steps in a row, the last of them step ${step.step}, ` +
          `is no finite number; lower --lr (now ${lr}) or set --clip-norm`,
      );
    }
  }

  #report(progress: Progress): void {
    const now = performance.now();
    if (now - this.#lastRead > READ_INTERVAL) this.#readLosses();
    const state = this.#state;
    progress.update(state.batch, `loss ${this.#lastLoss.toFixed(3)}`);
    if (progress.live || now - this.#lastLine < LINE_INTERVAL) return;
    this.#lastLine = now;
    this.#readLosses();
    this.#tick();
    const rate = state.epochTokens / state.epochSeconds;
    const left = state.epochSeconds / state.batch * (progress.total - state.batch);
    note(
      `${progress.label} | batch ${state.batch}/${progress.total} | loss ${this.#lastLoss.toFixed(3)} | ` +
        `${Math.round(rate)} tokens/s | ${seconds(left)} left in this epoch`,
    );
  }

  /** Loss and BLEU on the dev set. BLEU is that of greedy translations. */
  async #evaluate(name: string): Promise<{ loss: number; bleu: number }> {
    const { config, dev, folder, model, signal, tokenizer } = this.#parts;
    const { nll } = evaluateLoss(model, this.#devBatcher.epoch(0));
    const progress = new Progress("dev", dev.length);
    const translations = await translateAll(model, tokenizer, dev.map((pair) => pair.source), {
      beam: 1,
      lengthPenalty: 0,
      maxLen: config.maxLen,
      onProgress: (done) => progress.update(done),
      stop: () => signal() !== undefined,
    });
    progress.clear();
    const texts = bestTexts(translations);
    const { bleu } = score(texts, [dev.map((pair) => pair.target)], tokenizerFor(config.tgt));
    folder.saveSamples(`${name}.txt`, samplesText(dev, texts));
    return { loss: nll, bleu: bleu.score };
  }

  async #endEpoch(): Promise<Ending | undefined> {
    const { config, folder } = this.#parts;
    const state = this.#state;
    const before = { ...state };
    const epoch = state.epoch + 1;
    const { loss, bleu } = await this.#evaluate(`epoch-${String(epoch).padStart(4, "0")}`);
    if (this.#parts.signal() !== undefined) {
      // The scores are of a part of the dev set only: the epoch's end is done again when the run goes on.
      this.#state = before;
      this.#save(false);
      return "signal";
    }
    const best = bleu > state.bestBleu;
    this.#record(
      epoch,
      loss,
      bleu,
      best ? "best" : `best was ${state.bestBleu.toFixed(2)} in epoch ${state.bestEpoch}`,
    );
    Object.assign(state, { epoch, batch: 0, lossSum: 0, lossTokens: 0, epochSeconds: 0, epochTokens: 0 });
    if (best) Object.assign(state, { bestBleu: bleu, bestEpoch: epoch, stalled: 0 });
    else state.stalled++;
    this.#save(best);
    if (config.patience > 0 && state.stalled >= config.patience && epoch < config.epochs) {
      folder.log(`No better dev BLEU in ${state.stalled} epochs: training ends.`);
    }
    return undefined;
  }

  /** Stopped within an epoch by a limit: its part so far is measured, without changing how a resumed run goes on. */
  async #endEarly(): Promise<void> {
    const state = this.#state;
    if (state.batch === 0) {
      this.#save(state.bestBleu < 0);
      return;
    }
    const epoch = state.epoch + 1;
    const { loss, bleu } = await this.#evaluate(`step-${String(state.step).padStart(8, "0")}`);
    const best = bleu > state.bestBleu;
    this.#record(epoch, loss, bleu, best ? "best" : "");
    this.#save(best);
  }

  #record(epoch: number, devLoss: number, devBleu: number, remark: string): void {
    const { config, folder } = this.#parts;
    const state = this.#state;
    const trainLoss = state.lossSum / state.lossTokens;
    const rate = state.epochTokens / state.epochSeconds;
    const skipped = this.#skipped > 0 ? ` | ${this.#skipped} steps skipped` : "";
    this.#skipped = 0;
    folder.log(
      `epoch ${epoch}/${config.epochs} | step ${state.step} | train loss ${trainLoss.toFixed(4)} | ` +
        `dev loss ${devLoss.toFixed(4)} | dev BLEU ${devBleu.toFixed(2)} | ${
          seconds(state.epochSeconds)
        } | ` +
        `${Math.round(rate)} tokens/s${skipped}${remark === "" ? "" : ` | ${remark}`}`,
    );
    folder.addMetrics({
      epoch,
      step: state.step,
      train_loss: trainLoss,
      dev_loss: devLoss,
      dev_bleu: devBleu,
      seconds: Number(state.epochSeconds.toFixed(3)),
      tokens_per_second: Number(rate.toFixed(1)),
    });
  }

  #save(best: boolean): void {
    const { config, folder, model, tokenizer } = this.#parts;
    const { weights, m, v } = this.#trainer.state();
    saveCheckpoint(folder.path, {
      weights: namedTensors(model, weights),
      moments: [...namedTensors(model, m, "m."), ...namedTensors(model, v, "v.")],
      state: { ...this.#state },
      config,
      tokenizer: tokenizer.hash,
    }, best);
  }
}

function batching(config: Config, shuffle: boolean): ConstructorParameters<typeof Batcher>[1] {
  const { batchSentences, batchTokens, maxTrainLength, seed } = config;
  if (batchSentences > 0) {
    return { rows: batchSentences * maxTrainLength, sentences: batchSentences, shuffle, seed };
  }
  return { rows: Math.max(batchTokens, maxTrainLength), shuffle, seed };
}

/** Sentences with their reference and translation, three lines each. */
export function samplesText(pairs: readonly SentencePair[], translations: readonly string[]): string {
  return pairs.slice(0, SAMPLES).map(({ source, target }, i) =>
    `source      ${source}\nreference   ${target}\ntranslation ${translations[i] ?? ""}\n`
  ).join("\n");
}
