/**
 * The kinds of sentences of the built-in corpus, and how often each is drawn.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { choose } from "./phrases.ts";
import { type Sentence } from "./sentence.ts";
import {
  adverbQuestion,
  disposal,
  journey,
  objectQuestion,
  passive,
  plainStatement,
  purchaseFor,
  subjectQuestion,
  yesNoQuestion,
} from "./events.ts";
import {
  comparison,
  description,
  existence,
  identity,
  lastingState,
  occupation,
  ofNumber,
  superlative,
} from "./states.ts";
import { amounts, figures } from "./figures.ts";
import { relativeSentence } from "./relatives.ts";
import { compound, reasoning, request } from "./compounds.ts";

/** Draws one sentence of the grammar. */
export function drawSentence(random: Random): Sentence {
  return choose(random, [
    [28, () => plainStatement(random)],
    [8, () => yesNoQuestion(random)],
    [6, () => objectQuestion(random)],
    [3, () => subjectQuestion(random)],
    [5, () => adverbQuestion(random)],
    [6, () => journey(random)],
    [3, () => purchaseFor(random)],
    [4, () => disposal(random)],
    [4, () => passive(random)],
    [5, () => existence(random)],
    [3, () => lastingState(random)],
    [3, () => identity(random)],
    [5, () => description(random)],
    [5, () => comparison(random)],
    [1, () => superlative(random)],
    [6, () => relativeSentence(random)],
    [4, () => figures(random)],
    [3, () => amounts(random)],
    [3, () => reasoning(random)],
    [3, () => compound(random)],
    [3, () => request(random)],
    [1, () => occupation(random)],
    [2, () => ofNumber(random)],
  ]);
}
