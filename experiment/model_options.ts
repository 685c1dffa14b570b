/**
 * The options of every script that uses a trained model: which one, on what device, and how it searches.
 *
 * @module
 */

import { Option } from "@commander-js/extra-typings";
import { ATTENTION_FORMS, type AttentionForm } from "../ffi/mod.ts";
import { integer, number, UsageError } from "./cli.ts";
import { latestRun, runPath } from "./run_folder.ts";
import { openTrained, type Trained } from "./session.ts";

/** Options for `Command.addOption`; what is not given is as in the run. */
export const MODEL_OPTIONS = {
  checkpoint: new Option("--checkpoint <folder>", "a checkpoint instead of a run's best"),
  beam: new Option("--beam <n>", "hypotheses of the beam search, 1: greedy (default: the run's)")
    .argParser(integer(1)),
  lengthPenalty: new Option("--length-penalty <a>", "exponent of the length penalty (default: the run's)")
    .argParser(number(0, 10)),
  maxLen: new Option("--max-len <n>", "most tokens of a translation (default: the run's)").argParser(
    integer(0),
  ),
  device: new Option("--device <device>", "where").choices(["auto", "cuda", "cpu"] as const)
    .default("auto" as const),
  attn: new Option("--attn <form>", "attention form (default: the run's)").choices(ATTENTION_FORMS),
  attnType: new Option("--attn_type <form>", "the same").choices(ATTENTION_FORMS).hideHelp(),
} as const;

/** What the options choose a model by. */
export interface ModelChoice {
  /** A run's name or path; the one trained last where neither it nor a checkpoint is given. */
  run?: string | undefined;
  /** A checkpoint's folder. */
  checkpoint?: string | undefined;
  /** Where to put the model. */
  device: "auto" | "cuda" | "cpu";
  /** Attention form; the run's own where it is not given. */
  attn?: AttentionForm | undefined;
  /** The same. */
  attn_type?: AttentionForm | undefined;
}

/**
 * Opens the model that the options name.
 *
 * @throws {UsageError} If they name both a run and a checkpoint, or there is none.
 */
export function openChosen({ run, checkpoint, device, attn, attn_type }: ModelChoice): Trained {
  if (run !== undefined && checkpoint !== undefined) {
    throw new UsageError("Cannot combine --run with --checkpoint");
  }
  const path = checkpoint ?? (run === undefined ? latestRun() : runPath(run));
  return openTrained(path, { device, attn: attn ?? attn_type });
}
