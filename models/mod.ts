/**
 * Models: the Transformer, its training and its decoding.
 *
 * @module
 */

export { type Batch, BOS_ID, type Capacity, capacityOf, EOS_ID, PAD_ID } from "./batch.ts";
export {
  checkModelConfig,
  type ModelConfig,
  parameterCount,
  trainingFlops,
  type TrainingMemory,
  trainingMemory,
  type Tying,
} from "./config.ts";
export {
  type BeamOptions,
  beamSearch,
  type DecodeOptions,
  greedy,
  type Hypothesis,
  lengthPenalty,
} from "./decode.ts";
export { evaluateLoss, type Evaluation, scoreSentences } from "./evaluate.ts";
export type { Pass } from "./layers.ts";
export { type StepFacts, type StepMetrics, summarise, type TrainingMetrics } from "./metrics.ts";
export type { AdamOptions } from "./optimizer.ts";
export type { CrossEntropyOptions, RowLosses } from "./ops.ts";
export {
  type Initial,
  type NamedArrays,
  Parameter,
  ParameterSet,
  type StateBuffer,
  type TrainingBuffers,
} from "./parameters.ts";
export { learningRate, type Schedule } from "./schedule.ts";
export { Tape, Value } from "./tape.ts";
export { Trainer, type TrainerOptions, type TrainerState } from "./trainer.ts";
export { type Attend, type DeviceBatch, type Sequences, Transformer } from "./transformer.ts";
