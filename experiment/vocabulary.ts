/**
 * The tokenizer file of a run: the vocabularies that its weights belong to.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { Bpe, trainVocabularies, type Vocabularies } from "../data/bpe.ts";
import type { SentencePair } from "../data/formats.ts";
import { writeFileSafely } from "./checkpoint.ts";
import { UsageError } from "./cli.ts";

/** A run's vocabularies, and the hash that its checkpoints carry. */
export interface Tokenizer extends Vocabularies {
  /** SHA-256 of the tokenizer file's content. */
  readonly hash: string;
  /** The file's content. */
  readonly json: string;
}

function seal(vocabularies: Vocabularies): Tokenizer {
  const { source, target } = vocabularies;
  const file = {
    joint: source === target,
    source: source.toJson(),
    target: source === target ? null : target.toJson(),
  };
  const json = JSON.stringify(file) + "\n";
  return { source, target, json, hash: createHash("sha256").update(json).digest("hex") };
}

/** Learns the vocabularies from training pairs. */
export function trainTokenizer(
  pairs: readonly SentencePair[],
  vocabSize: number,
  joint: boolean,
  coverage?: number,
): Tokenizer {
  const options = coverage === undefined ? {} : { coverage };
  return seal(trainVocabularies(pairs, { vocabSize, joint, ...options }));
}

/** Writes a tokenizer file. @throws {EnvironmentError} If it cannot be written. */
export function saveTokenizer(path: string, tokenizer: Tokenizer): void {
  writeFileSafely(path, tokenizer.json);
}

/**
 * Reads a tokenizer file.
 *
 * @throws {UsageError} If it is missing.
 * @throws {SyntaxError} If it is damaged.
 */
export function loadTokenizer(path: string): Tokenizer {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    throw new UsageError(`Cannot read tokenizer ${path} as the file is missing or may not be read`, {
      cause: error,
    });
  }
  try {
    const parsed = JSON.parse(text) as { joint?: unknown; source?: unknown; target?: unknown } | null;
    if (typeof parsed !== "object" || parsed === null) throw new SyntaxError("it must be a JSON object");
    const source = Bpe.fromJson(parsed.source);
    const target = parsed.joint === true ? source : Bpe.fromJson(parsed.target);
    return { source, target, json: text, hash: createHash("sha256").update(text).digest("hex") };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new SyntaxError(`Cannot read tokenizer ${path} as it is damaged: ${reason}`, { cause: error });
  }
}
