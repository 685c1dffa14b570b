/**
 * Translates standard input to standard output, one line in, one line out; on a terminal it prompts.
 *
 *     echo "I have two books." | deno task translate
 *     deno task translate --run my-run --beam 5 --nbest 3 --scores < source.txt > target.txt
 *
 * @module
 */

import { createCommand, integer, note, noteRaw, print, runMain } from "./cli.ts";
import { MODEL_OPTIONS, openChosen } from "./model_options.ts";
import { Progress } from "./progress.ts";
import { shownPath } from "./run_folder.ts";
import { type Trained, translateAll, type TranslateOptions, type Translation } from "./session.ts";

/** Lines translated together at most: enough to sort by length, few enough for output to begin soon. */
const WINDOW = 1024;
const NEWLINE = 10;

/** How translations are written. */
interface Format {
  readonly nbest: number;
  readonly scores: boolean;
}

/** Lines of standard input as they come: each time all that have arrived, at most {@linkcode WINDOW}. */
async function* arrivingLines(): AsyncGenerator<string[]> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = new Uint8Array(0);
  let number = 0;
  const decode = (bytes: Uint8Array): string => {
    number++;
    try {
      return decoder.decode(bytes).replace(/\r$/, "");
    } catch (error) {
      throw new SyntaxError(
        `Cannot read standard input line ${number} as it must be UTF-8: the bytes are not`,
        {
          cause: error,
        },
      );
    }
  };
  for await (const chunk of Deno.stdin.readable) {
    const bytes = new Uint8Array(rest.length + chunk.length);
    bytes.set(rest);
    bytes.set(chunk, rest.length);
    const lines: string[] = [];
    let start = 0;
    for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, start)) {
      lines.push(decode(bytes.subarray(start, end)));
      start = end + 1;
    }
    rest = bytes.slice(start);
    for (let at = 0; at < lines.length; at += WINDOW) yield lines.slice(at, at + WINDOW);
  }
  if (rest.length > 0) yield [decode(rest)];
}

/** The output lines of one input line; `index` counts from 1. */
function outputLines(
  translations: readonly Translation[],
  index: number,
  { nbest, scores }: Format,
): string[] {
  return translations.map(({ text, score }) => {
    // A translation is one line, whatever the model wrote.
    const line = text.replace(/[\r\n]+/g, " ");
    const fields = [...(nbest > 1 ? [String(index)] : []), ...(scores ? [score.toFixed(4)] : []), line];
    return fields.join("\t");
  });
}

async function translateStream(trained: Trained, options: TranslateOptions, format: Format): Promise<void> {
  const prompting = Deno.stdin.isTerminal();
  const prompt = (): void => {
    if (prompting) noteRaw("> ");
  };
  if (prompting) note("Type a sentence and press Enter; end with Ctrl-D.");
  let index = 0;
  prompt();
  for await (const lines of arrivingLines()) {
    const progress = new Progress("translate", lines.length);
    const quiet = prompting || Deno.stdout.isTerminal() || lines.length < 64;
    const found = await translateAll(trained.model, trained.tokenizer, lines, {
      ...options,
      onProgress: (done) => {
        if (!quiet) progress.update(done);
      },
      onCut: (place) => note(`line ${index + place + 1} is longer than the model takes: its end is left out`),
    });
    progress.clear();
    for (const translations of found) {
      index++;
      for (const line of outputLines(translations, index, format)) print(line);
    }
    prompt();
  }
  if (prompting) note();
}

async function main(): Promise<void> {
  const options = createCommand("translate", "Translate standard input, one line in, one line out.")
    .option("--run <name>", "the run to translate with (default: the one that was trained last)")
    .addOption(MODEL_OPTIONS.checkpoint)
    .addOption(MODEL_OPTIONS.beam)
    .option("--nbest <n>", "translations of each line, best first, as NUMBER<tab>TEXT", integer(1), 1)
    .option("--scores", "put each translation's score and a tab before it")
    .addOption(MODEL_OPTIONS.lengthPenalty)
    .addOption(MODEL_OPTIONS.maxLen)
    .addOption(MODEL_OPTIONS.device)
    .addOption(MODEL_OPTIONS.attn)
    .addOption(MODEL_OPTIONS.attnType)
    .parse().opts();
  using trained = openChosen(options);
  const { config, state } = trained.checkpoint;
  if (Deno.stdin.isTerminal()) {
    note(`${shownPath(trained.checkpoint.run)}, step ${state.step}: ${config.src} to ${config.tgt}`);
  }
  const beam = options.beam ?? Math.max(config.beam, options.nbest);
  if (options.nbest > beam) {
    throw new RangeError(
      `Cannot give nbest ${options.nbest} translations as beam must be as many: current value is ${beam}`,
    );
  }
  await translateStream(trained, {
    beam,
    nbest: options.nbest,
    lengthPenalty: options.lengthPenalty ?? config.lengthPenalty,
    maxLen: options.maxLen ?? config.maxLen,
  }, { nbest: options.nbest, scores: options.scores === true });
}

if (import.meta.main) await runMain(main);
