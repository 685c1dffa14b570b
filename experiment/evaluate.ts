/**
 * Scores translations: a checkpoint's on a test set, or those in a file.
 *
 *     deno task evaluate --run my-run
 *     deno task evaluate --hyp system.txt --ref reference.txt --tok zh --json
 *
 * @module
 */

import { Option } from "@commander-js/extra-typings";
import { BLEU_TOKENIZERS, type BleuTokenizer, readText, splitLines } from "../data/mod.ts";
import { buildNeeded } from "./build.ts";
import { writeFileSafely } from "./checkpoint.ts";
import { createCommand, note, runMain, seconds, UsageError } from "./cli.ts";
import { openCorpus } from "./corpora.ts";
import { MODEL_OPTIONS, openChosen } from "./model_options.ts";
import { Progress } from "./progress.ts";
import { shownPath } from "./run_folder.ts";
import { printScores, score, type Scores, tokenizerFor, tokenizerForText } from "./scores.ts";
import { bestTexts, translateAll } from "./session.ts";

type Options = ReturnType<typeof readOptions>;

// deno-lint-ignore explicit-function-return-type -- the type is what commander infers from the options
function readOptions() {
  return createCommand(
    "evaluate",
    "BLEU and chrF of a checkpoint on a test set, or of a file of translations.",
  )
    .option("--run <name>", "the run to evaluate (default: the one that was trained last)")
    .addOption(MODEL_OPTIONS.checkpoint)
    .option("--data <folder>", "corpus (default: the run's)")
    .addOption(
      new Option("--part <part>", "part of the corpus").choices(["test", "dev"] as const).default(
        "test" as const,
      ),
    )
    .addOption(MODEL_OPTIONS.beam)
    .addOption(MODEL_OPTIONS.lengthPenalty)
    .addOption(MODEL_OPTIONS.maxLen)
    .addOption(MODEL_OPTIONS.device)
    .addOption(MODEL_OPTIONS.attn)
    .addOption(MODEL_OPTIONS.attnType)
    .option("--out <file>", "write the translations there")
    .option("--hyp <file>", "score these translations, without a model")
    .option("--ref <file...>", "their references, a file for each set")
    .addOption(
      new Option("--tok <name>", "BLEU tokenizer (default: zh for Chinese, else 13a)").choices(
        BLEU_TOKENIZERS,
      ),
    )
    .option("--lowercase", "ignore case")
    .option("--json", 'print {"bleu", "chrf", "signature"}')
    .parse().opts();
}

async function readLines(path: string): Promise<string[]> {
  const lines = splitLines(await readText(path));
  if (lines.length === 0) throw new SyntaxError(`Cannot read ${path} as it must hold sentences: it is empty`);
  return lines;
}

/** Scores a file of translations. Needs no model and no library. */
async function scoreFiles(hyp: string, refs: readonly string[], options: Options): Promise<Scores> {
  const hypotheses = await readLines(hyp);
  const references: string[][] = [];
  for (const ref of refs) {
    const lines = await readLines(ref);
    if (lines.length !== hypotheses.length) {
      throw new RangeError(
        `Cannot score ${hyp} against ${ref} as they must have as many lines: there are ${hypotheses.length} and ${lines.length}`,
      );
    }
    references.push(lines);
  }
  const tokenizer = options.tok ?? tokenizerForText(references[0] ?? []);
  return score(hypotheses, references, tokenizer, options.lowercase === true);
}

/** Translates a test set and scores the translations. */
async function scoreModel(options: Options): Promise<Scores> {
  await buildNeeded();
  using trained = openChosen(options);
  const { config, state, run } = trained.checkpoint;
  const corpus = await openCorpus(
    { ...config, data: options.data ?? config.data, devPairs: 0, testPairs: 0 },
    [
      options.part,
    ],
  );
  const pairs = corpus[options.part];
  const start = performance.now();
  const progress = new Progress("translate", pairs.length);
  const beam = options.beam ?? config.beam;
  const translations = await translateAll(
    trained.model,
    trained.tokenizer,
    pairs.map((pair) => pair.source),
    {
      beam,
      lengthPenalty: options.lengthPenalty ?? config.lengthPenalty,
      maxLen: options.maxLen ?? config.maxLen,
      onProgress: (done) => progress.update(done),
    },
  );
  progress.clear();
  const texts = bestTexts(translations);
  note(
    `${shownPath(run)}, checkpoint of step ${state.step}: ${pairs.length} sentences of ${
      options.data ?? config.data
    } ` +
      `(${options.part}), beam ${beam}, in ${seconds((performance.now() - start) / 1000)}`,
  );
  if (options.out !== undefined) writeFileSafely(options.out, texts.join("\n") + "\n");
  const tokenizer: BleuTokenizer = options.tok ?? tokenizerFor(config.tgt);
  return score(texts, [pairs.map((pair) => pair.target)], tokenizer, options.lowercase === true);
}

async function main(): Promise<void> {
  const options = readOptions();
  const { hyp, ref } = options;
  if ((hyp === undefined) !== (ref === undefined)) {
    throw new UsageError("Cannot score files as --hyp and --ref must be given together");
  }
  if (hyp !== undefined && (options.run !== undefined || options.checkpoint !== undefined)) {
    throw new UsageError("Cannot combine --hyp with --run or --checkpoint: a file is scored without a model");
  }
  const scores = hyp !== undefined && ref !== undefined
    ? await scoreFiles(hyp, ref, options)
    : await scoreModel(options);
  printScores(scores, options.json === true);
}

if (import.meta.main) await runMain(main);
