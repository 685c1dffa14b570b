/**
 * BLEU and chrF as the scripts print them.
 *
 * @module
 */

import { type BleuScore, corpusBleu } from "../data/bleu.ts";
import { type ChrfScore, corpusChrf } from "../data/chrf.ts";
import type { BleuTokenizer } from "../data/tokenizers.ts";
import { print } from "./cli.ts";

/** Both scores of a set of translations. */
export interface Scores {
  /** BLEU with its parts and signature. */
  readonly bleu: BleuScore;
  /** chrF2 with its signature. */
  readonly chrf: ChrfScore;
}

/** The BLEU tokenizer that suits a target language: `zh` for Chinese, `char` for Japanese, else `13a`. */
export function tokenizerFor(language: string): BleuTokenizer {
  if (/^(zh|cmn|yue|zho|ch)\b/i.test(language)) return "zh";
  return /^(ja|jpn)\b/i.test(language) ? "char" : "13a";
}

/** The BLEU tokenizer that suits a text: `zh` where its letters are mostly Chinese characters, else `13a`. */
export function tokenizerForText(lines: readonly string[]): BleuTokenizer {
  let chinese = 0;
  let other = 0;
  for (const line of lines) {
    chinese += line.match(/\p{Script=Han}/gu)?.length ?? 0;
    other += line.match(/\p{L}/gu)?.length ?? 0;
  }
  return 2 * chinese > other ? "zh" : "13a";
}

/**
 * Scores translations.
 *
 * @param references Sets of references, each with one for every hypothesis.
 */
export function score(
  hypotheses: readonly string[],
  references: readonly (readonly string[])[],
  tokenize: BleuTokenizer,
  lowercase = false,
): Scores {
  return {
    bleu: corpusBleu(hypotheses, references, { tokenize, lowercase }),
    chrf: corpusChrf(hypotheses, references, { lowercase }),
  };
}

/** Prints scores with their signatures, or as one JSON object. */
export function printScores(scores: Scores, json: boolean): void {
  const { bleu, chrf } = scores;
  if (json) {
    print(JSON.stringify({ bleu: bleu.score, chrf: chrf.score, signature: bleu.signature }));
    return;
  }
  print(bleu.verbose);
  print(chrf.verbose);
}
