/**
 * The one schema of a training run. It gives the flags of `train`, the keys of a configuration file, the presets and the
 * saved config.json, so that the four cannot disagree. Later wins: preset, then configuration file, then flags.
 *
 * @module
 */

import { type Command, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { suggestion, UsageError } from "./cli.ts";

/** One setting: what values it takes and what it is for. */
export interface Field<T> {
  /** Value in the preset `tiny`. */
  readonly initial: T;
  /** What the value stands for in the help text; "" for a switch. */
  readonly placeholder: string;
  /** What it is for, in a line. */
  readonly help: string;
  /** What a value must be, as in "must be ...". */
  readonly rule: string;
  /** Reads a value written on the command line; undefined where it cannot be read. */
  readonly read: (text: string) => T | undefined;
  /** Whether a value of any type, from a file, is allowed. */
  readonly accepts: (value: unknown) => boolean;
  /** Whether a resumed run may change it: it steers the run but not what is computed. */
  readonly free: boolean;
}

function toNumber(text: string): number | undefined {
  const value = text.trim() === "" ? NaN : Number(text);
  return Number.isNaN(value) ? undefined : value;
}

function whole(initial: number, minimum: number, help: string, free = false): Field<number> {
  return {
    initial,
    placeholder: "n",
    help,
    rule: `a whole number of at least ${minimum}`,
    read: toNumber,
    accepts: (value) => typeof value === "number" && Number.isSafeInteger(value) && value >= minimum,
    free,
  };
}

function wholeUpTo(initial: number, minimum: number, maximum: number, help: string): Field<number> {
  const field = whole(initial, minimum, help, true);
  return {
    ...field,
    rule: `a whole number from ${minimum} to ${maximum}`,
    accepts: (value) => field.accepts(value) && Number(value) <= maximum,
  };
}

function real(initial: number, low: number, high: number, help: string, free = false): Field<number> {
  const inRange = (value: number): boolean =>
    value >= low && (high === Infinity ? value < high : value <= high);
  return {
    initial,
    placeholder: "x",
    help,
    rule: high === Infinity ? `a number of at least ${low}` : `a number from ${low} to ${high}`,
    read: toNumber,
    accepts: (value) => typeof value === "number" && inRange(value),
    free,
  };
}

function text(initial: string, placeholder: string, help: string): Field<string> {
  return {
    initial,
    placeholder,
    help,
    rule: "a text that is not empty",
    read: (value) => value,
    accepts: (value) => typeof value === "string" && value !== "",
    free: false,
  };
}

function choice<const T extends string>(
  names: readonly T[],
  initial: NoInfer<T>,
  help: string,
  free = false,
): Field<T> {
  return {
    initial,
    placeholder: "name",
    help: `${help}: ${names.join(", ")}`,
    rule: `one of ${names.join(", ")}`,
    read: (value) => names.find((name) => name === value),
    accepts: (value) => names.some((name) => name === value),
    free,
  };
}

function toggle(initial: boolean, help: string): Field<boolean> {
  return {
    initial,
    placeholder: "",
    help,
    rule: "true or false",
    read: (value) => value === "true" ? true : value === "false" ? false : undefined,
    accepts: (value) => typeof value === "boolean",
    free: false,
  };
}

const ATTENTION = ["dotscale", "flash_attn", "imp_flash_attn"] as const;

/** Every setting of a training run, with the values of the preset `tiny`. */
export const SCHEMA = {
  data: text("built-in", "folder", "folder with train, dev and test files, or built-in"),
  src: text("auto", "language", "source language (auto: en, or what the files leave no choice about)"),
  tgt: text("auto", "language", "target language (auto: zh, likewise)"),
  trainPairs: whole(0, 0, "train on the first n pairs only (0: all)"),
  devPairs: whole(500, 1, "dev pairs that loss and BLEU are measured on each epoch"),
  testPairs: whole(0, 0, "test pairs translated at the end (0: all)", true),
  maxTrainLength: whole(256, 4, "leave out training pairs with more tokens on a side"),
  vocabSize: whole(2000, 264, "entries of a vocabulary, 256 bytes and 4 marks included"),
  sharedVocab: toggle(true, "one vocabulary for both languages"),
  encoderLayers: whole(2, 1, "layers of the encoder"),
  decoderLayers: whole(2, 1, "layers of the decoder"),
  dModel: whole(128, 8, "width of the model"),
  heads: whole(4, 1, "attention heads"),
  ff: whole(512, 1, "width of the feed-forward layers"),
  dropout: real(0, 0, 0.95, "dropout probability"),
  tied: toggle(
    true,
    "the output layer shares the target embedding (with one vocabulary: the source embedding too)",
  ),
  attn: choice(ATTENTION, "imp_flash_attn", "attention form"),
  batchTokens: whole(1024, 1, "tokens of a batch on its longer side (ignored where batchSentences is given)"),
  batchSentences: whole(0, 0, "sentences of a batch (0: batches by tokens)"),
  accumulate: whole(1, 1, "batches whose gradients are added up to one step"),
  epochs: whole(8, 1, "passes over the training data", true),
  maxSteps: whole(0, 0, "stop after n steps (0: no limit)", true),
  maxTime: real(0, 0, Infinity, "stop after this many seconds of training (0: no limit)", true),
  schedule: choice(["noam", "inverse_sqrt", "constant"], "inverse_sqrt", "course of the learning rate"),
  lr: real(0.003, 0, Infinity, "peak learning rate (inverse_sqrt), the rate (constant) or the factor (noam)"),
  warmup: whole(200, 0, "steps of linear warm-up"),
  labelSmoothing: real(0.1, 0, 0.95, "label smoothing"),
  beta1: real(0.9, 0, 0.9999, "Adam: decay of the first moment"),
  beta2: real(0.98, 0, 0.99999, "Adam: decay of the second moment"),
  eps: real(1e-9, 1e-20, 1, "Adam: added to the denominator"),
  weightDecay: real(0, 0, 1, "decoupled weight decay"),
  clipNorm: real(1, 0, Infinity, "clip the gradient to this norm (0: never)"),
  patience: whole(0, 0, "stop after n epochs without a better dev BLEU (0: never)", true),
  nonFiniteLimit: whole(5, 1, "stop after n steps in a row whose loss is not a finite number", true),
  beam: wholeUpTo(4, 1, 32, "hypotheses of the beam search on the test set"),
  lengthPenalty: real(0.6, 0, 10, "exponent a of the length penalty ((5 + length) / 6)^a", true),
  maxLen: whole(0, 0, "most tokens of a translation (0: 1.5 times the source plus 10)", true),
  device: choice(["auto", "cuda", "cpu"], "auto", "device", true),
  deterministic: toggle(false, "the same run bit for bit on the GPU as well (the CPU always is)"),
  seed: whole(1, 0, "seed of weights, order and dropout"),
} as const;

/** Name of a setting. */
export type ConfigKey = keyof typeof SCHEMA;

/** A complete configuration. */
export type Config = {
  readonly [K in ConfigKey]: (typeof SCHEMA)[K] extends Field<infer T> ? T : never;
};

/** Some settings of a configuration. */
export type PartialConfig = { readonly [K in ConfigKey]?: Config[K] };

/** The settings' names in the order of the schema. */
export const CONFIG_KEYS: readonly ConfigKey[] = Object.keys(SCHEMA).filter((key) => isKey(key));

function isKey(key: string): key is ConfigKey {
  return Object.hasOwn(SCHEMA, key);
}

/**
 * Named configurations, as what they change of the schema's values.
 *
 * - tiny: the built-in corpus in minutes on two CPU cores
 * - small: tens of thousands of real sentence pairs
 * - base: Vaswani et al. 2017, table 3, base, on hundreds of thousands of pairs and more
 * - seed: the FlashAttentionNMT course project's config.py and main.py: batches of 32 sentences, Noam with 10000 warm-up
 *   steps, two vocabularies of 32000, nothing tied, no label smoothing, beam 3
 */
export const PRESETS: Readonly<Record<string, PartialConfig>> = {
  tiny: {},
  small: {
    vocabSize: 8000,
    encoderLayers: 4,
    decoderLayers: 4,
    dModel: 256,
    heads: 4,
    ff: 1024,
    dropout: 0.2,
    batchTokens: 4096,
    epochs: 30,
    lr: 0.001,
    warmup: 2000,
    patience: 5,
  },
  base: {
    vocabSize: 32000,
    encoderLayers: 6,
    decoderLayers: 6,
    dModel: 512,
    heads: 8,
    ff: 2048,
    dropout: 0.1,
    batchTokens: 16384,
    epochs: 40,
    lr: 0.0007,
    warmup: 4000,
    patience: 5,
    devPairs: 2000,
  },
  seed: {
    vocabSize: 32000,
    sharedVocab: false,
    encoderLayers: 6,
    decoderLayers: 6,
    dModel: 512,
    heads: 8,
    ff: 2048,
    dropout: 0.1,
    tied: false,
    attn: "dotscale",
    batchSentences: 32,
    epochs: 40,
    schedule: "noam",
    lr: 1,
    warmup: 10000,
    labelSmoothing: 0,
    clipNorm: 0,
    patience: 5,
    beam: 3,
    lengthPenalty: 0,
    maxLen: 60,
    devPairs: 2000,
  },
};

/** Names of the presets. */
export const PRESET_NAMES: readonly string[] = Object.keys(PRESETS);

/** `dModel` as the flag `--d-model`. */
export function flagOf(key: ConfigKey): string {
  return "--" + key.replace(/[A-Z]/g, (letter) => "-" + letter.toLowerCase());
}

function shown(value: unknown): string {
  return typeof value === "number" ? String(value) : JSON.stringify(value) ?? String(value);
}

/**
 * The settings of a preset.
 *
 * @throws {UsageError} If there is none of that name.
 */
export function presetOf(name: string): PartialConfig {
  const preset = Object.hasOwn(PRESETS, name) ? PRESETS[name] : undefined;
  if (preset === undefined) {
    throw new UsageError(
      `Cannot use preset "${name}" as presets are ${PRESET_NAMES.join(", ")}${
        suggestion(name, PRESET_NAMES)
      }`,
    );
  }
  return preset;
}

/**
 * Checks settings that come from outside the program.
 *
 * @param values Keys and values of any kind.
 * @param where Where they come from, for the message: a file's name.
 * @throws {UsageError} If a key is unknown; the nearest key is named.
 * @throws {RangeError} If a value is not one that the key takes.
 */
export function checkSettings(values: Readonly<Record<string, unknown>>, where: string): PartialConfig {
  const checked: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(values)) {
    if (!isKey(key)) {
      throw new UsageError(
        `Cannot use key "${key}" in ${where} as there is none${suggestion(key, CONFIG_KEYS)}`,
      );
    }
    const field = SCHEMA[key];
    if (!field.accepts(value)) {
      throw new RangeError(
        `Cannot use ${key} of ${where} as it must be ${field.rule}: current value is ${shown(value)}`,
      );
    }
    checked[key] = value;
  }
  return checked;
}

/**
 * Puts layers of settings over the schema's values, and checks what no single key can tell.
 *
 * @param layers Settings, the later ones winning.
 * @throws {RangeError} If settings do not fit each other.
 */
export function resolveConfig(...layers: readonly PartialConfig[]): Config {
  const initial = Object.fromEntries(CONFIG_KEYS.map((key) => [key, SCHEMA[key].initial]));
  const config: Config = Object.assign(initial as unknown as Config, ...layers);
  const { dModel, heads } = config;
  if (dModel % heads !== 0) {
    throw new RangeError(`Cannot use heads ${heads} as it must divide dModel: current dModel is ${dModel}`);
  }
  const headDim = dModel / heads;
  if (headDim % 8 !== 0 || headDim > 128) {
    throw new RangeError(
      "Cannot use dModel with these heads as dModel / heads must be a multiple of 8 up to 128: " +
        `current value is ${dModel} / ${heads} = ${headDim}`,
    );
  }
  if (config.ff % 8 !== 0) {
    throw new RangeError(`Cannot use ff ${config.ff} as it must be a multiple of 8`);
  }
  if (config.src === config.tgt && config.src !== "auto") {
    throw new RangeError(`Cannot use tgt "${config.tgt}" as it must differ from src`);
  }
  return config;
}

/** JSON with comments and trailing commas, as plain JSON. Strings are left alone; line breaks stay for error messages. */
function withoutComments(json: string): string {
  const blank = (match: string): string => match.replace(/[^\n]/g, " ");
  return json
    .replace(/"(?:[^"\\\n]|\\.)*"|\/\/[^\n]*|\/\*[\s\S]*?\*\//g, (m) => m.startsWith('"') ? m : blank(m))
    .replace(/"(?:[^"\\\n]|\\.)*"|,(?=\s*[}\]])/g, (m) => m.startsWith('"') ? m : " ");
}

/** A configuration file: its settings, and the preset it names under the key "preset". */
export interface ConfigFile {
  /** The preset it starts from; undefined where it names none. */
  readonly preset: string | undefined;
  /** Its settings. */
  readonly settings: PartialConfig;
}

/**
 * Reads the text of a configuration file: a JSON object, comments allowed.
 *
 * @param path For the messages.
 * @throws {SyntaxError} If it is not a JSON object.
 */
export function parseConfigFile(content: string, path: string): ConfigFile {
  let parsed: unknown;
  try {
    parsed = JSON.parse(withoutComments(content));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new SyntaxError(`Cannot read configuration ${path} as it is not JSON: ${reason}`, { cause: error });
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new SyntaxError(
      `Cannot read configuration ${path} as it must be a JSON object: {"dModel": 128, ...}`,
    );
  }
  const { preset, ...rest } = parsed as Record<string, unknown>;
  if (preset !== undefined && typeof preset !== "string") {
    throw new RangeError(
      `Cannot use preset of ${path} as it must be a name: current value is ${shown(preset)}`,
    );
  }
  return { preset, settings: checkSettings(rest, path) };
}

/** Adds a flag for every key of the schema (or of `keys`) to a command. `--attn_type` stands for `--attn` as well. */
export function addConfigOptions(command: Command, keys: readonly ConfigKey[] = CONFIG_KEYS): void {
  for (const key of keys) {
    const field: Field<unknown> = SCHEMA[key];
    if (field.placeholder === "") {
      command.addOption(new Option(flagOf(key), `${field.help} (tiny: ${shown(field.initial)})`));
      command.addOption(new Option(flagOf(key).replace("--", "--no-"), `not ${flagOf(key)}`));
      continue;
    }
    const parser = (written: string): unknown => {
      const value = field.read(written);
      if (value === undefined || !field.accepts(value)) {
        throw new InvalidArgumentError(
          `Cannot use ${key} as it must be ${field.rule}: current value is ${written}.`,
        );
      }
      return value;
    };
    const description = `${field.help} (tiny: ${shown(field.initial)})`;
    command.addOption(new Option(`${flagOf(key)} <${field.placeholder}>`, description).argParser(parser));
    if (key === "attn") {
      command.addOption(new Option("--attn_type <name>", "the same as --attn").argParser(parser).hideHelp());
    }
  }
}

/** The settings among a command's parsed options: those whose flags were given. */
export function givenSettings(options: Readonly<Record<string, unknown>>): PartialConfig {
  const given: Record<string, unknown> = {};
  if (options["attn_type"] !== undefined) given["attn"] = options["attn_type"];
  for (const key of CONFIG_KEYS) if (options[key] !== undefined) given[key] = options[key];
  return given;
}

/**
 * The configuration of a resumed run: the saved one with the given settings over it.
 *
 * @throws {UsageError} If a given setting differs from the saved one and is not free to change.
 */
export function resumeConfig(saved: Config, given: PartialConfig): Config {
  for (const key of CONFIG_KEYS) {
    if (given[key] !== undefined && given[key] !== saved[key] && !SCHEMA[key].free) {
      throw new UsageError(
        `Cannot resume with ${flagOf(key)} ${given[key]} as the run was started with ${saved[key]}: ` +
          "leave the flag out, or start a new run with --init-from",
      );
    }
  }
  return resolveConfig(saved, given);
}
