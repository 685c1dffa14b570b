/**
 * Trains a translation model.
 *
 *     deno task train
 *     deno task train --data my/folder --src en --tgt de --preset small --run my-run
 *     deno task train --run my-run --resume
 *
 * @module
 */

import { join } from "@std/path";
import type { Corpus } from "../data/mod.ts";
import { Context } from "../ffi/mod.ts";
import { Transformer } from "../models/mod.ts";
import { type Checkpoint, expectTokenizer, openCheckpoint } from "./checkpoint.ts";
import { createCommand, messageOf, note, print, runMain, seconds, UsageError } from "./cli.ts";
import {
  addConfigOptions,
  type Config,
  givenSettings,
  parseConfigFile,
  type PartialConfig,
  PRESET_NAMES,
  presetOf,
  resolveConfig,
  resumeConfig,
} from "./config.ts";
import { openCorpus } from "./corpora.ts";
import { Progress } from "./progress.ts";
import { freeRun, latestRun, RunFolder, runPath } from "./run_folder.ts";
import { score, tokenizerFor } from "./scores.ts";
import { bestTexts, loadWeights, modelConfig, translateAll } from "./session.ts";
import { type Ending, samplesText, TrainingRun } from "./training.ts";
import { loadTokenizer, saveTokenizer, type Tokenizer, trainTokenizer } from "./vocabulary.ts";

/** What the command line asks for beside the configuration. */
interface Wishes {
  readonly preset: string | undefined;
  readonly configFile: string | undefined;
  readonly run: string | undefined;
  readonly resume: boolean;
  readonly overwrite: boolean;
  readonly initFrom: string | undefined;
  readonly given: PartialConfig;
}

/** A run that is ready to begin or to go on. */
interface Plan {
  readonly folder: RunFolder;
  readonly config: Config;
  /** The checkpoint to go on from, or undefined for a new run. */
  readonly resumed: Checkpoint | undefined;
  /** The checkpoint whose weights and vocabulary a new run begins with. */
  readonly initial: Checkpoint | undefined;
}

function readWishes(): Wishes {
  const command = createCommand(
    "train",
    "Train a translation model, by default the preset tiny on the built-in corpus.",
  )
    .option("--preset <name>", `start from these settings: ${PRESET_NAMES.join(", ")} (default: tiny)`)
    .option("--config <file>", "settings as JSON, comments allowed; flags win over it")
    .option("--run <name>", "folder of the run: a name in experiment/runs, or a path with a slash")
    .option("--resume", "go on with the run, as if it had never stopped")
    .option("--overwrite", "replace a run of that name")
    .option("--init-from <checkpoint>", "begin a new run with the weights and vocabulary of another");
  addConfigOptions(command);
  const options = command.parse().opts() as Record<string, unknown>;
  const textOption = (name: string): string | undefined => options[name] as string | undefined;
  const wishes = {
    preset: textOption("preset"),
    configFile: textOption("config"),
    run: textOption("run"),
    resume: options["resume"] === true,
    overwrite: options["overwrite"] === true,
    initFrom: textOption("initFrom"),
    given: givenSettings(options),
  };
  if (wishes.resume && (wishes.overwrite || wishes.initFrom !== undefined || wishes.preset !== undefined)) {
    throw new UsageError("Cannot combine --resume with --overwrite, --init-from or --preset");
  }
  return wishes;
}

async function readConfigFile(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    throw new UsageError(`Cannot read configuration ${path} as ${messageOf(error)}`, { cause: error });
  }
}

async function planNew(wishes: Wishes): Promise<Plan> {
  const file = wishes.configFile === undefined
    ? undefined
    : parseConfigFile(await readConfigFile(wishes.configFile), wishes.configFile);
  const preset = wishes.preset ?? file?.preset ?? "tiny";
  const initial = wishes.initFrom === undefined ? undefined : openCheckpoint(runOrPath(wishes.initFrom));
  const shape = initial === undefined ? {} : shapeOf(initial.config);
  const config = resolveConfig(presetOf(preset), shape, file?.settings ?? {}, wishes.given);
  const folder = new RunFolder(wishes.run === undefined ? freeRun(preset) : runPath(wishes.run));
  folder.expectFree(wishes.overwrite);
  return { folder, config, resumed: undefined, initial };
}

function planResumed(wishes: Wishes): Plan {
  const folder = new RunFolder(wishes.run === undefined ? latestRun() : runPath(wishes.run));
  const checkpoint = openCheckpoint(join(folder.path, "last"));
  const { maxSteps } = checkpoint.config;
  // A step limit that has ended the run before is not to end it again.
  const reached = maxSteps > 0 && checkpoint.state.step >= maxSteps ? { maxSteps: 0 } : {};
  const config = resumeConfig({ ...checkpoint.config, ...reached }, wishes.given);
  return { folder, config, resumed: checkpoint, initial: undefined };
}

/** The settings that fix a model's tensors: a run that begins with given weights takes them over. */
function shapeOf(config: Config): PartialConfig {
  const { encoderLayers, decoderLayers, dModel, heads, ff, tied } = config;
  return { encoderLayers, decoderLayers, dModel, heads, ff, tied };
}

/** A run's name or any path to a checkpoint. */
function runOrPath(name: string): string {
  return name.includes("/") ? name : runPath(name);
}

/** The run's tokenizer: of an earlier part of the run, of the weights that it begins with, or newly trained. */
function prepareTokenizer({ folder, config, resumed, initial }: Plan, corpus: Corpus): Tokenizer {
  const earlier = resumed ?? initial;
  if (earlier === undefined) return trainTokenizer(corpus.train, config.vocabSize, config.sharedVocab);
  const path = resumed === undefined ? join(earlier.run, "tokenizer.json") : folder.file("tokenizer.json");
  const tokenizer = loadTokenizer(path);
  expectTokenizer(earlier, tokenizer.hash);
  return tokenizer;
}

/** Watches for Ctrl-C and SIGTERM: the first asks for a clean end, the second ends at once. */
function watchSignals(): () => Deno.Signal | undefined {
  let seen: Deno.Signal | undefined;
  for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
    Deno.addSignalListener(signal, () => {
      if (seen !== undefined) Deno.exit(code);
      seen = signal;
      note("\nStopping after this step and saving; once more to stop at once.");
    });
  }
  return () => seen;
}

/** Scores the best checkpoint on the test set, saves the translations and shows some; nothing of it once `stop` says so. */
async function testBest(
  plan: Plan,
  corpus: Corpus,
  tokenizer: Tokenizer,
  model: Transformer,
  stop: () => boolean,
): Promise<void> {
  const { folder, config } = plan;
  const best = openCheckpoint(folder.path);
  loadWeights(model, best);
  const start = performance.now();
  const progress = new Progress("test", corpus.test.length);
  const translations = await translateAll(model, tokenizer, corpus.test.map((pair) => pair.source), {
    beam: config.beam,
    lengthPenalty: config.lengthPenalty,
    maxLen: config.maxLen,
    onProgress: (done) => progress.update(done),
    stop,
  });
  progress.clear();
  if (stop()) return;
  const texts = bestTexts(translations);
  const scores = score(texts, [corpus.test.map((pair) => pair.target)], tokenizerFor(config.tgt));
  folder.saveSamples("test.txt", texts.join("\n") + "\n");
  folder.log();
  folder.log(samplesText(corpus.test, texts).trimEnd());
  folder.log();
  const took = seconds((performance.now() - start) / 1000);
  folder.log(
    `test: ${corpus.test.length} sentences, checkpoint of step ${best.state.step}, beam ${config.beam}, in ${took}`,
  );
  folder.log(scores.chrf.verbose);
  folder.log(scores.bleu.verbose);
}

const ENDINGS: Readonly<Record<Exclude<Ending, "signal">, string>> = {
  epochs: "all epochs are done",
  steps: "the step limit is reached",
  time: "the time limit is reached",
  patience: "the dev BLEU no longer rises",
};

function describe(
  plan: Plan,
  corpus: Corpus,
  tokenizer: Tokenizer,
  model: Transformer,
  run: TrainingRun,
): void {
  const { folder, config } = plan;
  const { context } = model;
  const { batches, sourceTokens, targetTokens } = run.statistics;
  const { source, target } = tokenizer;
  folder.log(
    `vocabulary: ${source === target ? `one of ${source.size}` : `${source.size} and ${target.size}`} pieces`,
  );
  folder.log(
    `model: ${config.encoderLayers}+${config.decoderLayers} layers, width ${config.dModel}, ${config.heads} heads, ` +
      `${model.parameterCount.toLocaleString("en")} parameters, attention ${config.attn}, ` +
      `on ${context.device} (${context.info().name})`,
  );
  const { parameters, activations } = run.memory;
  const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
  folder.log(
    `memory: ${gib(parameters)} for weights and optimizer, about ${gib(activations)} for a step; ` +
      `${gib(context.info().freeBytes + context.liveBytes)} are there`,
  );
  const dropped = run.dropped.long > 0
    ? `, ${run.dropped.long} longer than ${config.maxTrainLength} tokens left out`
    : "";
  folder.log(
    `data: ${config.data} ${corpus.source}-${corpus.target}, ${corpus.train.length} training pairs${dropped}, ` +
      `${corpus.dev.length} dev, ${corpus.test.length} test; an epoch is ${batches} batches, ` +
      `${sourceTokens + targetTokens} tokens`,
  );
}

/** Trains to the end and tests; or stops by a signal, with everything saved. */
async function work(plan: Plan, corpus: Corpus, tokenizer: Tokenizer, model: Transformer): Promise<void> {
  const { folder, config, resumed } = plan;
  // Not earlier: until there is something to save, a signal may end the process at once.
  const signal = watchSignals();
  const { train, dev } = corpus;
  using run = new TrainingRun({ folder, config, train, dev, tokenizer, model, signal });
  // Files change only now that all is known to fit.
  if (resumed === undefined) {
    folder.create(config);
    saveTokenizer(folder.file("tokenizer.json"), tokenizer);
  } else {
    run.resume(resumed);
    folder.saveConfig(config);
    folder.dropMetricsAfter(resumed.state.epoch);
    folder.log(`resumed after step ${run.state.step}, epoch ${run.state.epoch}`);
  }
  describe(plan, corpus, tokenizer, model, run);
  const ending = await run.run();
  if (ending !== "signal") {
    folder.log(`trained ${run.state.step} steps in ${seconds(run.state.seconds)}: ${ENDINGS[ending]}`);
    await testBest(plan, corpus, tokenizer, model, () => signal() !== undefined);
  }
  const stopped = signal();
  if (stopped !== undefined) {
    folder.log(
      `stopped by ${stopped} after step ${run.state.step}: go on with --run ${folder.shown} --resume`,
    );
    Deno.exit(stopped === "SIGTERM" ? 143 : 130);
  }
}

async function train(wishes: Wishes): Promise<void> {
  const planned = wishes.resume ? planResumed(wishes) : await planNew(wishes);
  using context = new Context({ device: planned.config.device });
  const corpus = await openCorpus(planned.config);
  const plan = { ...planned, config: { ...planned.config, src: corpus.source, tgt: corpus.target } };
  const { folder, config, initial } = plan;
  print(`run: ${folder.shown}`);
  folder.expectWritable();
  const tokenizer = prepareTokenizer(plan, corpus);
  using model = new Transformer(context, modelConfig(config, tokenizer), config.seed);
  if (initial !== undefined) loadWeights(model, initial);
  await work(plan, corpus, tokenizer, model);
  print(`translate with it: deno task translate --run ${folder.shown}`);
}

if (import.meta.main) {
  await runMain(async () => {
    await train(readWishes());
    Deno.exit(0);
  });
}
