/**
 * Clauses of the built-in corpus: a subject, a verb with tense and polarity, and what goes with them, put in order for
 * each language. English: subject, verb, object, manner, company, place, time. Chinese: subject, time, negation or
 * auxiliary, company, place, manner, verb with aspect, object.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { ACTIVITIES, PLACES, TRANSITIVES, type Verb } from "./lexicon.ts";
import {
  choose,
  clashes,
  duration,
  objectOf,
  type ObjectStyle,
  type Person,
  type Phrase,
  shortSubject,
  type Subject,
  timeOf,
} from "./phrases.ts";

/** Tenses, aspects and modals. */
export type Tense =
  | "present"
  | "past"
  | "progressive"
  | "future"
  | "going"
  | "perfect"
  | "experience"
  | "can"
  | "must"
  | "should"
  | "want"
  | "need"
  | "like";

/** A verb with its object. */
export interface Predicate {
  verb: Verb;
  /** What follows the verb in English: object and the rest. */
  tail: string;
  zh: string;
  object: string;
  flags: readonly string[];
  /** An activity takes 了 at its end ("游泳了"), a transitive verb before its object ("买了书"). */
  isActivity: boolean;
}

/** A clause before it is put in order. */
export interface Clause {
  subject: Subject;
  predicate: Predicate;
  tense: Tense;
  negative: boolean;
  /** "often": before the verb in both languages. */
  frequency?: Phrase | undefined;
  manner?: Phrase | undefined;
  company?: Phrase | undefined;
  place?: Phrase | undefined;
  time?: Phrase | undefined;
  /** "for two hours": 两个小时, before the object in Chinese. */
  length?: Phrase | undefined;
  /** Time comes first in both languages. */
  timeFirst?: boolean;
  /** 就 after the subject and time. */
  mark?: string;
}

/** What to make of a clause. `open` is the Chinese question word that already stands in its slot. */
export type Mood = "statement" | "question" | { fronted: string; reason?: boolean };

function be(person: Person): string {
  return person === "first" ? "am" : person === "third" ? "is" : "are";
}

/** The finite auxiliary (or none) and the rest of the verb group. */
function verbGroup(clause: Clause, support: boolean): { auxiliary: string; main: string } {
  const { tense, negative, predicate: { verb }, subject: { person } } = clause;
  const has = person === "third" ? "has" : "have";
  const does = person === "third" ? "does" : "do";
  const present = (base: string, third: string, rest: string): { auxiliary: string; main: string } =>
    support || negative ? { auxiliary: does, main: base + rest } : {
      auxiliary: "",
      main: (person === "third" ? third : base) + rest,
    };
  switch (tense) {
    case "present":
      return present(verb.base, verb.third, "");
    case "past":
      return support || negative ? { auxiliary: "did", main: verb.base } : { auxiliary: "", main: verb.past };
    case "progressive":
      return { auxiliary: be(person), main: verb.ing };
    case "future":
      return { auxiliary: "will", main: verb.base };
    case "going":
      return { auxiliary: be(person), main: `going to ${verb.base}` };
    case "perfect":
      return { auxiliary: has, main: negative ? verb.participle : `already ${verb.participle}` };
    case "experience":
      return { auxiliary: has, main: (negative ? "never " : support ? "ever " : "") + verb.participle };
    case "can":
    case "must":
    case "should":
      return { auxiliary: tense, main: verb.base };
    case "want":
    case "need":
    case "like":
      return present(tense, `${tense}s`, ` to ${verb.base}`);
  }
}

function words(...parts: (string | undefined)[]): string {
  return parts.filter((part) => part !== undefined && part !== "").join(" ");
}

function english(clause: Clause, mood: Mood): string {
  const { subject, tense, negative, predicate, timeFirst = false } = clause;
  const asks = mood !== "statement";
  const { auxiliary, main } = verbGroup(clause, asks);
  const not = negative && tense !== "experience" ? "not" : "";
  const finite = auxiliary === "can" && not !== "" && !asks ? "cannot" : words(auxiliary, asks ? "" : not);
  const rest = words(
    asks ? not : "",
    clause.frequency?.en,
    main,
    predicate.tail,
    clause.manner?.en,
    clause.company === undefined ? "" : `with ${clause.company.en}`,
    clause.place?.en,
    clause.length === undefined ? "" : `for ${clause.length.en}`,
    timeFirst ? "" : clause.time?.en,
    tense === "experience" && !negative && !asks ? "before" : "",
    tense === "perfect" && negative ? "yet" : "",
  );
  const front = timeFirst && clause.time !== undefined ? `${clause.time.en},` : "";
  if (!asks) return words(front, subject.en, finite, rest);
  return words(mood === "question" ? "" : mood.fronted, finite, subject.en, rest);
}

const AUXILIARIES: Record<Tense, readonly [string, string]> = {
  present: ["", "不"],
  past: ["", "没有"],
  progressive: ["正在", "没有在"],
  future: ["会", "不会"],
  going: ["打算", "不打算"],
  perfect: ["已经", "还没有"],
  experience: ["以前", "从来没有"],
  can: ["能", "不能"],
  must: ["必须", "不可以"],
  should: ["应该", "不应该"],
  want: ["想", "不想"],
  need: ["需要", "不需要"],
  like: ["喜欢", "不喜欢"],
};

/** Verb, aspect, length and object. */
function chineseVerb(clause: Clause): string {
  const { tense, negative, predicate, length } = clause;
  const { zh, object, isActivity } = predicate;
  const done = !negative && (tense === "past" || tense === "perfect");
  if (tense === "experience") return `${zh}过${object}`;
  if (length !== undefined) {
    return `${zh}${done ? "了" : ""}${length.zh}${object === "" ? "" : `的${object}`}`;
  }
  if (!done) return zh + object;
  return isActivity ? `${zh}${object}了` : `${zh}了${object}`;
}

function chinese(clause: Clause, mood: Mood): string {
  const { subject, tense, negative, predicate, timeFirst = false } = clause;
  const asks = mood === "question";
  let [positive, negated] = AUXILIARIES[tense];
  if (tense === "can" && predicate.flags.includes("skill")) [positive, negated] = ["会", "不会"];
  // "Have you ever": the question has 过 alone.
  if (tense === "experience" && mood !== "statement") positive = "";
  let auxiliary = negative ? negated : positive;
  const company = clause.company === undefined ? "" : `和${clause.company.zh}一起`;
  let place = clause.place === undefined ? "" : `在${clause.place.zh}`;
  if (place !== "" && tense === "progressive") {
    // One 在 is enough: 正在图书馆, but 正和汤姆一起在图书馆.
    if (company === "") place = place.slice(1);
    else auxiliary = auxiliary.slice(0, -1);
  }
  const time = clause.time?.zh ?? "";
  const reason = typeof mood === "object" && mood.reason ? "为什么" : "";
  const middle = [
    reason,
    timeFirst ? "" : time,
    subject.all ? "都" : "",
    clause.mark ?? "",
    clause.frequency?.zh ?? "",
    auxiliary,
    company,
    place,
    clause.manner?.zh ?? "",
  ].join("");
  return `${timeFirst ? time : ""}${subject.zh}${middle}${chineseVerb(clause)}${asks ? "吗" : ""}`;
}

/** Puts a clause in order, without capital and full stop. */
export function render(clause: Clause, mood: Mood = "statement"): Phrase {
  return { en: english(clause, mood), zh: chinese(clause, mood) };
}

/** A transitive verb, by its base; without one, any that may stand in the tense. */
export function transitive(random: Random, tense: Tense, style: ObjectStyle): Predicate {
  const fitting = TRANSITIVES.filter((verb) => {
    if (verb.flags.includes("stative")) return tense === "present";
    return !verb.flags.includes("event") || ["past", "future", "perfect", "experience"].includes(tense);
  });
  const verb = random.pick(fitting);
  const liking = random.chance(0.5) ? "general" : "definite";
  const object = objectOf(random, verb.takes, verb.base === "like" ? liking : style);
  return { verb, tail: object.en, zh: verb.zh, object: object.zh, flags: verb.flags, isActivity: false };
}

/** An activity: "swim", "play football". */
export function activity(random: Random): Predicate {
  const verb = random.pick(ACTIVITIES);
  return { verb, tail: verb.tail, zh: verb.zh, object: verb.object, flags: verb.flags, isActivity: true };
}

const FREQUENCIES: readonly Phrase[] = [
  { en: "often", zh: "常常" },
  { en: "always", zh: "总是" },
  { en: "usually", zh: "通常" },
  { en: "sometimes", zh: "有时候" },
  { en: "seldom", zh: "很少" },
];

const MANNERS: readonly Phrase[] = [
  { en: "quickly", zh: "很快地" },
  { en: "slowly", zh: "慢慢地" },
  { en: "carefully", zh: "认真地" },
  { en: "happily", zh: "高兴地" },
  { en: "quietly", zh: "安静地" },
];

const CAREFUL = ["read", "write", "wash", "eat", "drink", "clean", "work", "study", "draw"];

/** A place where something is done: "in the library". */
export function placeOfAction(random: Random): Phrase {
  if (random.chance(0.12)) return { en: "at home", zh: "家里" };
  const [en, zh] = random.pick(PLACES);
  return { en: `in the ${en}`, zh };
}

/** The time that goes with a tense, if any does. */
function timeFor(random: Random, tense: Tense): Phrase | undefined {
  switch (tense) {
    case "present":
      return random.chance(0.5) ? timeOf(random, "habit") : undefined;
    case "past":
      return random.chance(0.65) ? timeOf(random, "past") : undefined;
    case "future":
    case "going":
    case "should":
    case "must":
      return random.chance(0.5) ? timeOf(random, "future") : undefined;
    case "want":
    case "need":
      return random.chance(0.2) ? timeOf(random, "future") : undefined;
    case "progressive":
      return random.chance(0.2) ? { en: "now", zh: "现在" } : undefined;
    default:
      return undefined;
  }
}

/** How often each tense is drawn. */
const TENSES: readonly (readonly [number, Tense])[] = [
  [8, "past"],
  [8, "present"],
  [5, "progressive"],
  [4, "future"],
  [2, "going"],
  [2, "perfect"],
  [2, "experience"],
  [2, "can"],
  [1, "must"],
  [2, "should"],
  [2, "want"],
  [1, "need"],
  [1, "like"],
];

/** A tense; those given weigh as in all. */
export function someTense(random: Random, among?: readonly Tense[]): Tense {
  const fitting = TENSES.filter(([, tense]) => among === undefined || among.includes(tense));
  return choose(random, fitting.map(([weight, tense]) => [weight, () => tense] as const));
}

/** What a clause should have; the rest is drawn. */
export interface ClauseWish {
  subject?: Subject;
  tense?: Tense;
  negative?: boolean;
  style?: ObjectStyle;
  /** Share of activities among the verbs. Default 0.35. */
  activities?: number;
  /** Keep it short: no company, manner, length or fronted time. */
  short?: boolean;
  /** No time. */
  timeless?: boolean;
}

/** Draws a clause. */
export function someClause(random: Random, wish: ClauseWish = {}): Clause {
  const { short = false } = wish;
  const tense = wish.tense ?? someTense(random);
  const negative = wish.negative ?? random.chance(0.17);
  const isActivity = tense !== "perfect" && tense !== "experience" && random.chance(wish.activities ?? 0.35);
  const definite = tense === "experience" || tense === "perfect";
  const style = wish.style ??
    (negative ? "negative" : tense === "like" ? "general" : definite ? "definite" : "any");
  const subject = wish.subject ?? shortSubject(random);
  const another = <T>(draw: () => T, phrase: (drawn: T) => Phrase): T => {
    let drawn = draw();
    while (clashes(subject, phrase(drawn))) drawn = draw();
    return drawn;
  };
  const predicate = isActivity
    ? activity(random)
    : another(() => transitive(random, tense, style), ({ tail, object }) => ({ en: tail, zh: object }));
  const stative = predicate.flags.includes("stative");
  const active = !stative && !predicate.flags.includes("event");
  const ambiguous = tense === "past" && predicate.verb.past === predicate.verb.base;
  // "Does not swim every day" would deny the "every": 不每天.
  const denied = tense === "present" && negative;
  let time = stative || denied || wish.timeless ? undefined : timeFor(random, tense);
  // "They read books" is past or present: a past that looks like the present needs a time.
  if (ambiguous && !negative && time === undefined) time = timeOf(random, "past");
  const takesPlace = tense !== "perfect" && tense !== "experience" && !stative;
  const place = takesPlace && random.chance(isActivity ? 0.45 : 0.2) ? placeOfAction(random) : undefined;
  const company = !short && active && tense !== "perfect" && random.chance(0.1)
    ? shortObject(random)
    : undefined;
  const careful = CAREFUL.includes(predicate.verb.base) && !negative && company === undefined;
  const manner =
    careful && !short && ["past", "progressive", "should", "must"].includes(tense) && random.chance(0.3)
      ? random.pick(MANNERS)
      : undefined;
  const measured = isActivity && !negative && !short && manner === undefined &&
    ["past", "present", "future", "going"].includes(tense);
  const frequent = tense === "present" && !negative && !stative && time === undefined && random.chance(0.6);
  return {
    subject,
    predicate,
    tense,
    negative,
    frequency: frequent ? random.pick(FREQUENCIES) : undefined,
    manner,
    company,
    place,
    time,
    length: measured && random.chance(0.2) ? duration(random, [0, 1]) : undefined,
    timeFirst: !short && time !== undefined && random.chance(0.15),
  };
}

function shortObject(random: Random): Phrase {
  const subject = shortSubject(random);
  const objects: Record<string, string> = { I: "me", he: "him", she: "her", we: "us", they: "them" };
  return { en: objects[subject.en] ?? subject.en, zh: subject.zh };
}
