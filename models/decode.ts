/**
 * Translation: greedy and beam search.
 *
 * Sentences of like length are decoded together. A finished hypothesis leaves its beam, a finished sentence leaves the
 * batch, so that late steps cost what is left to say.
 *
 * @module
 */

import { type Candidates, Decoder } from "./_decoder.ts";
import { BOS_ID, EOS_ID } from "./batch.ts";
import type { Transformer } from "./transformer.ts";

/** A translation. */
export interface Hypothesis {
  /** Target ids without BOS and EOS. */
  ids: number[];
  /** Log-probability over the length penalty: what hypotheses are ranked by. */
  score: number;
  /** Sum of the log-probabilities of its tokens, EOS included where it ended. */
  logProbability: number;
  /** Whether it ended with EOS, rather than at the length limit. */
  finished: boolean;
}

/** Options of {@linkcode greedy}. */
export interface DecodeOptions {
  /**
   * Most target tokens, EOS included, for a source of `length` tokens; default 1.5 * length + 10. The model's positions
   * bound it.
   */
  maxLength?: (length: number) => number;
  /** Most source tokens decoded together, sentences counted at the length of the longest; default 4096. */
  batchTokens?: number;
  /** Called after each group of sentences with the number done so far. */
  onProgress?: (done: number) => void;
}

/** Options of {@linkcode beamSearch}. */
export interface BeamOptions extends DecodeOptions {
  /** Hypotheses kept per sentence, 1 to 32; default 4. */
  beam?: number;
  /** Exponent of the length penalty ((5 + length) / 6)^alpha (Wu et al. 2016, equation 14); default 0.6, 0: none. */
  alpha?: number;
  /** Hypotheses returned per sentence, best first, at most `beam`; default 1. */
  nbest?: number;
}

/** The length penalty of Wu et al. 2016, equation 14, by which a log-probability is divided. */
export function lengthPenalty(length: number, alpha: number): number {
  return ((5 + length) / 6) ** alpha;
}

/**
 * The most probable token at each step; a list of one hypothesis for each sentence, in their order. Its score is its
 * log-probability.
 *
 * @param sources Source ids with EOS, as in training.
 * @throws {RangeError} If a source is longer than the model's positions, or an id is none of its vocabulary.
 */
export function greedy(
  model: Transformer,
  sources: readonly ArrayLike<number>[],
  options: DecodeOptions = {},
): Hypothesis[][] {
  const results: Hypothesis[][] = [];
  forEachGroup(model, sources, options, (group) => {
    const limits = group.map((index) => limitOf(model, sources[index]?.length ?? 0, options));
    const T = Math.max(...limits);
    using decoder = new Decoder(model, group.map((index) => sources[index] ?? []), group.length, T);
    const open = group.map((): Hypothesis => ({ ids: [], score: 0, logProbability: 0, finished: false }));
    let rows = group.map((_, b) => b); // sentence of each row
    let parents: number[] | null = null;
    while (rows.length > 0) {
      const counts: number[] = new Array(group.length).fill(0);
      for (const b of rows) counts[b] = 1;
      const last = rows.map((b) => open[b]?.ids.at(-1) ?? BOS_ID);
      const best = decoder.step(last, counts, parents, 1);
      const kept: number[] = [];
      rows.forEach((b, row) => {
        const hypothesis = open[b];
        if (hypothesis === undefined) return;
        const id = best.ids[row] ?? EOS_ID;
        hypothesis.logProbability += best.scores[row] ?? NaN;
        hypothesis.finished = id === EOS_ID;
        if (!hypothesis.finished) hypothesis.ids.push(id);
        if (!hypothesis.finished && hypothesis.ids.length < (limits[b] ?? 0)) kept.push(row);
      });
      parents = kept.length === rows.length ? null : kept;
      rows = kept.map((row) => rows[row] ?? 0);
    }
    group.forEach((index, b) => {
      const hypothesis = open[b];
      if (hypothesis !== undefined) results[index] = [{ ...hypothesis, score: hypothesis.logProbability }];
    });
  });
  return results;
}

/** A hypothesis still in the beam. */
interface Open {
  ids: number[];
  logProbability: number;
  /** Its row in the step before. */
  parent: number;
}

/** One sentence's search. */
interface Search {
  open: Open[];
  done: Hypothesis[];
  limit: number;
}

/**
 * Beam search: at each step, of all continuations of a sentence's hypotheses the best stay, one fewer for each that has
 * ended. A sentence is done when none is left, or when none left can overtake the `nbest` that have ended.
 *
 * @param sources Source ids with EOS, as in training.
 * @returns For each sentence, in their order, its `nbest` best hypotheses by score, ended ones first.
 * @throws {RangeError} If an option is out of range, a source is longer than the model's positions, or an id is none of
 * its vocabulary.
 */
export function beamSearch(
  model: Transformer,
  sources: readonly ArrayLike<number>[],
  options: BeamOptions = {},
): Hypothesis[][] {
  const { beam = 4, alpha = 0.6, nbest = 1 } = options;
  checkBeam(beam, alpha, nbest, model.config.targetVocabulary);
  const results: Hypothesis[][] = [];
  forEachGroup(model, sources, options, (group) => {
    const searches = group.map((index): Search => ({
      open: [{ ids: [], logProbability: 0, parent: 0 }],
      done: [],
      limit: limitOf(model, sources[index]?.length ?? 0, options),
    }));
    const T = Math.max(...searches.map((search) => search.limit));
    using decoder = new Decoder(model, group.map((index) => sources[index] ?? []), group.length * beam, T);
    let previous = 0; // rows of the step before
    while (searches.some((search) => search.open.length > 0)) {
      const rows = searches.flatMap((search) => search.open);
      const parents = rows.map((hypothesis) => hypothesis.parent);
      const moved = previous > 0 &&
        (rows.length !== previous || parents.some((parent, row) => parent !== row));
      const counts = searches.map((search) => search.open.length);
      const candidates = decoder.step(
        rows.map((hypothesis) => hypothesis.ids.at(-1) ?? BOS_ID),
        counts,
        moved ? parents : null,
        beam,
      );
      previous = rows.length;
      let row = 0;
      for (const search of searches) {
        const count = search.open.length;
        if (count > 0) advance(search, candidates, row, { beam, alpha, nbest });
        row += count;
      }
    }
    group.forEach((index, b) => results[index] = searches[b]?.done.sort(byRank).slice(0, nbest) ?? []);
  });
  return results;
}

/** Replaces a sentence's hypotheses by their best continuations; `first` is the row of its first. */
function advance(
  search: Search,
  candidates: Candidates,
  first: number,
  options: { beam: number; alpha: number; nbest: number },
): void {
  const { alpha, nbest } = options;
  const { k } = candidates;
  const width = options.beam - search.done.length;
  const choices = search.open.flatMap((hypothesis, i) =>
    Array.from({ length: k }, (_, j) => ({
      parent: first + i,
      from: hypothesis,
      id: candidates.ids[(first + i) * k + j] ?? EOS_ID,
      logProbability: hypothesis.logProbability + (candidates.scores[(first + i) * k + j] ?? NaN),
    }))
  );
  choices.sort((a, b) => b.logProbability - a.logProbability || a.parent - b.parent || a.id - b.id);
  search.open = [];
  for (const { parent, from, id, logProbability } of choices.slice(0, width)) {
    const finished = id === EOS_ID;
    const ids = finished ? from.ids : [...from.ids, id];
    if (finished || ids.length >= search.limit) {
      const score = logProbability / lengthPenalty(ids.length + Number(finished), alpha);
      search.done.push({ ids, score, logProbability, finished });
    } else {
      search.open.push({ ids, logProbability, parent });
    }
  }
  const ended = search.done.filter((hypothesis) => hypothesis.finished).map((hypothesis) => hypothesis.score);
  const toBeat = ended.sort((a, b) => b - a)[nbest - 1];
  if (toBeat === undefined) return;
  // Log-probabilities only fall, and the penalty is largest at the limit.
  const reach = (open: Open): number => open.logProbability / lengthPenalty(search.limit, alpha);
  if (search.open.every((open) => reach(open) <= toBeat)) search.open = [];
}

/** Ended hypotheses first, then by score. */
function byRank(a: Hypothesis, b: Hypothesis): number {
  return Number(b.finished) - Number(a.finished) || b.score - a.score;
}

function checkBeam(beam: number, alpha: number, nbest: number, vocabulary: number): void {
  const most = Math.min(32, vocabulary);
  if (!Number.isInteger(beam) || beam < 1 || beam > most) {
    throw new RangeError(`Cannot search as beam must be 1 to ${most}: current value is ${beam}`);
  }
  if (!Number.isInteger(nbest) || nbest < 1 || nbest > beam) {
    throw new RangeError(
      `Cannot search as nbest must be 1 to the beam of ${beam}: current value is ${nbest}`,
    );
  }
  if (!(alpha >= 0 && Number.isFinite(alpha))) {
    throw new RangeError(`Cannot search as alpha must be from 0: current value is ${alpha}`);
  }
}

function limitOf(model: Transformer, length: number, options: DecodeOptions): number {
  const wanted = (options.maxLength ?? ((tokens) => 1.5 * tokens + 10))(length);
  return Math.max(1, Math.min(Math.floor(wanted), model.config.maxLength));
}

/** Calls `decode` with the indices of sentences to be decoded together, longest first. */
function forEachGroup(
  model: Transformer,
  sources: readonly ArrayLike<number>[],
  options: DecodeOptions,
  decode: (group: number[]) => void,
): void {
  const { batchTokens = 4096 } = options;
  const { maxLength, sourceVocabulary } = model.config;
  sources.forEach((source, index) => {
    if (source.length > maxLength) {
      throw new RangeError(
        `Cannot decode sentence ${index} as it must have at most ${maxLength} tokens: it has ${source.length}`,
      );
    }
    for (let i = 0; i < source.length; i++) {
      const id = source[i] ?? -1;
      if (!Number.isInteger(id) || id < 0 || id >= sourceVocabulary) {
        throw new RangeError(
          `Cannot decode sentence ${index} as ids must be 0 to ${sourceVocabulary - 1}: one is ${id}`,
        );
      }
    }
  });
  const length = (index: number): number => sources[index]?.length ?? 0;
  const order = sources.map((_, index) => index).sort((a, b) => length(b) - length(a) || a - b);
  let done = 0;
  while (done < order.length) {
    const longest = Math.max(1, length(order[done] ?? 0));
    const group = order.slice(done, done + Math.max(1, Math.floor(batchTokens / longest)));
    decode(group);
    done += group.length;
    options.onProgress?.(done);
  }
}
