import { assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { createCommand, exitCodeOf, suggestion, UsageError } from "../../experiment/cli.ts";
import {
  addConfigOptions,
  checkSettings,
  CONFIG_KEYS,
  flagOf,
  givenSettings,
  parseConfigFile,
  presetOf,
  resolveConfig,
  resumeConfig,
  SCHEMA,
} from "../../experiment/config.ts";

/** Parses flags as `train` does; an error is thrown instead of ending the process. */
function parseFlags(...flags: string[]): Record<string, unknown> {
  const command = createCommand("train", "test").exitOverride().configureOutput({ writeErr: () => {} });
  addConfigOptions(command);
  return command.parse(flags, { from: "user" }).opts() as Record<string, unknown>;
}

Deno.test("resolveConfig() lets the later layer win", () => {
  const config = resolveConfig(presetOf("small"), { dModel: 64, heads: 2 }, { dModel: 128 });
  assertEquals(config.dModel, 128);
  assertEquals(config.heads, 2);
  assertEquals(config.encoderLayers, 4, "from the preset");
  assertEquals(config.beta2, SCHEMA.beta2.initial, "from the schema");
});

Deno.test("the preset seed is the earlier project's configuration", () => {
  const config = resolveConfig(presetOf("seed"));
  const expected = {
    encoderLayers: 6,
    decoderLayers: 6,
    dModel: 512,
    heads: 8,
    ff: 2048,
    dropout: 0.1,
    batchSentences: 32,
    epochs: 40,
    maxLen: 60,
    beam: 3,
    schedule: "noam",
    lr: 1,
    warmup: 10000,
    labelSmoothing: 0,
    vocabSize: 32000,
    sharedVocab: false,
    tied: false,
  };
  for (const [key, value] of Object.entries(expected)) {
    assertEquals(config[key as keyof typeof expected], value, key);
  }
});

Deno.test("every preset is valid", () => {
  for (const name of ["tiny", "small", "base", "seed"]) {
    checkSettings(presetOf(name), name);
    resolveConfig(presetOf(name));
  }
});

Deno.test("presetOf() names the nearest preset", () => {
  const error = assertThrows(() => presetOf("smal"), UsageError);
  assertStringIncludes(error.message, "did you mean small?");
  assertThrows(() => presetOf("constructor"), UsageError);
});

Deno.test("checkSettings() names the nearest key of an unknown one", () => {
  const error = assertThrows(() => checkSettings({ dmodel: 64 }, "my.json"), UsageError);
  assertEquals(error.message, 'Cannot use key "dmodel" in my.json as there is none (did you mean dModel?)');
});

Deno.test.each<[string, unknown]>([
  ["dModel", -8],
  ["dModel", 0],
  ["dModel", 12.5],
  ["dModel", "128"],
  ["heads", 0],
  ["encoderLayers", 0],
  ["vocabSize", 100],
  ["dropout", 1],
  ["dropout", -0.1],
  ["lr", Infinity],
  ["lr", null],
  ["attn", "flash"],
  ["tied", 1],
  ["data", ""],
  ["epochs", 1e300],
  ["maxTime", -1],
])("checkSettings() refuses %s %s", (key, value) => {
  const error = assertThrows(() => checkSettings({ [key]: value }, "a file"), RangeError);
  assertMatch(error.message, new RegExp(`^Cannot use ${key} of a file as it must be .*: current value is `));
});

Deno.test("resolveConfig() refuses heads that do not divide dModel", () => {
  const error = assertThrows(() => resolveConfig({ dModel: 128, heads: 3 }), RangeError);
  assertStringIncludes(error.message, "Cannot use heads 3 as it must divide dModel: current dModel is 128");
});

Deno.test("resolveConfig() refuses a head dimension without a kernel", () => {
  assertThrows(() => resolveConfig({ dModel: 36, heads: 3 }), RangeError, "36 / 3 = 12");
  assertThrows(() => resolveConfig({ dModel: 512, heads: 2 }), RangeError, "512 / 2 = 256");
});

Deno.test("parseConfigFile() reads JSON with comments and trailing commas", () => {
  const file = parseConfigFile(
    '{ // a comment, with "quotes"\n "preset": "small", /* and\n another */ "data": "a//b/*c*/,}",\n "lr": 1e-3, }',
    "x",
  );
  assertEquals(file, { preset: "small", settings: { data: "a//b/*c*/,}", lr: 0.001 } });
});

Deno.test("parseConfigFile() refuses what is not a JSON object, naming the file", () => {
  assertThrows(() => parseConfigFile("{", "broken.json"), SyntaxError, "broken.json");
  assertThrows(
    () => parseConfigFile("[1]", "list.json"),
    SyntaxError,
    "list.json as it must be a JSON object",
  );
  assertThrows(() => parseConfigFile('{"preset": 3}', "preset.json"), RangeError, "preset.json");
});

Deno.test("flags exist for every key and read its values", () => {
  assertEquals(flagOf("dModel"), "--d-model");
  const flags: string[] = [];
  for (const key of CONFIG_KEYS) {
    const { initial, placeholder } = SCHEMA[key];
    if (placeholder === "") flags.push(initial ? flagOf(key) : flagOf(key).replace("--", "--no-"));
    else flags.push(flagOf(key), String(initial));
  }
  assertEquals(resolveConfig(givenSettings(parseFlags(...flags))), resolveConfig());
});

Deno.test("flags that are not given leave the layers below alone", () => {
  assertEquals(givenSettings(parseFlags()), {});
  assertEquals(givenSettings(parseFlags("--no-tied")), { tied: false });
  assertEquals(givenSettings(parseFlags("--tied")), { tied: true });
});

Deno.test("--attn_type stands for --attn", () => {
  assertEquals(givenSettings(parseFlags("--attn_type", "dotscale")), { attn: "dotscale" });
});

Deno.test("a flag's bad value names the key and the rule", () => {
  assertThrows(() => parseFlags("--d-model", "-3"), Error, "Cannot use dModel as it must be a whole number");
  assertThrows(() => parseFlags("--attn", "flash"), Error, "one of dotscale, flash_attn, imp_flash_attn");
  assertThrows(() => parseFlags("--dropout", "x"), Error, "dropout");
});

Deno.test("an unknown flag names the nearest one", () => {
  assertThrows(() => parseFlags("--atn", "dotscale"), Error, "Did you mean --attn?");
});

Deno.test("resumeConfig() takes what steers the run and refuses what changes the model", () => {
  const saved = resolveConfig({ epochs: 2 });
  assertEquals(resumeConfig(saved, { epochs: 5, dModel: saved.dModel }).epochs, 5);
  assertThrows(() => resumeConfig(saved, { dModel: 64 }), UsageError, "--d-model 64");
});

Deno.test("suggestion() stays silent where nothing is near", () => {
  assertEquals(suggestion("xyzzy", ["dModel", "heads"]), "");
  assertEquals(suggestion("head", ["dModel", "heads"]), " (did you mean heads?)");
});

Deno.test("errors stand for the exit codes", () => {
  assertEquals(exitCodeOf(new RangeError("x")), 1);
  assertEquals(exitCodeOf(new UsageError("x")), 1);
  assertEquals(exitCodeOf(Object.assign(new Error("x"), { name: "LibraryError" })), 2);
  assertEquals(exitCodeOf(new Error("No space left on device (os error 28)")), 2);
  assertEquals(exitCodeOf(new Deno.errors.NotFound("x")), 1);
});
