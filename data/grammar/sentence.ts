/**
 * A sentence, and the small parts that several kinds of sentences share.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { clashes, inGroup, nounPhrase, type Phrase, someoneElse, type Subject } from "./phrases.ts";

/** A sentence without capital: the mark at the end says what it is. */
export interface Sentence extends Phrase {
  /** The mark at the end. */
  mark: "." | "?" | "!";
}

/** A sentence that states. */
export function statement(phrase: Phrase): Sentence {
  return { ...phrase, mark: "." };
}

/** A sentence that asks. */
export function question(phrase: Phrase): Sentence {
  return { ...phrase, mark: "?" };
}

/** The form of "be" for a subject. */
export function be(subject: Subject): string {
  return subject.person === "first" ? "am" : subject.person === "third" ? "is" : "are";
}

/** Someone who is not the subject itself. */
export function another(random: Random, subject: Subject): Phrase {
  let phrase = someoneElse(random);
  while (clashes(subject, phrase)) phrase = someoneElse(random);
  return phrase;
}

/** "a red hat" with the verb that fits: 戴着 for what goes on head or hand, else 穿着. */
export function clothing(random: Random): Phrase {
  const noun = random.pick(inGroup(random.chance(0.7) ? "clothes" : "headwear"));
  const phrase = nounPhrase(random, noun, "a", 0.6);
  return { en: phrase.en, zh: `${noun.groups.includes("headwear") ? "戴" : "穿"}着${phrase.zh}` };
}
