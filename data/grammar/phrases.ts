/**
 * Noun phrases, subjects and times of the built-in corpus.
 *
 * @module
 */
import type { Random } from "../random.ts";
import {
  ADJECTIVES,
  ANIMALS,
  COLORS,
  NAMES,
  type Noun,
  PEOPLE,
  RELATIVES,
  SUBSTANCES,
  THINGS,
} from "./lexicon.ts";
import { chineseCount, englishNumber } from "./numerals.ts";

/** A phrase in both languages. */
export interface Phrase {
  en: string;
  zh: string;
}

/** How the verb agrees with a subject: I, he or she, or the rest. */
export type Person = "first" | "third" | "plural";

/** A phrase that can be a subject. */
export interface Subject extends Phrase {
  person: Person;
  /** "each" takes 都 before the verb. */
  all: boolean;
}

/** A noun phrase and what it is about. */
export interface NounPhrase extends Subject {
  noun: Noun;
}

/** Draws one of several makers, by weight. */
export function choose<T>(random: Random, options: readonly (readonly [number, () => T])[]): T {
  let at = random.next() * options.reduce((sum, [weight]) => sum + weight, 0);
  for (const [weight, make] of options) {
    at -= weight;
    if (at < 0) return make();
  }
  throw new RangeError("Cannot choose as there must be an option with a weight above 0");
}

/** Every noun that is counted. */
export const NOUNS: readonly Noun[] = [...PEOPLE, ...ANIMALS, ...THINGS];

const GROUPS = new Map<string, Noun[]>();
for (const noun of NOUNS) {
  for (const group of noun.groups) GROUPS.set(group, [...GROUPS.get(group) ?? [], noun]);
}

/** The nouns of a group or kind. */
export function inGroup(group: string): readonly Noun[] {
  return GROUPS.get(group) ?? [];
}

const POSSESSIVES: readonly Phrase[] = [
  { en: "my", zh: "我" },
  { en: "your", zh: "你" },
  { en: "his", zh: "他" },
  { en: "her", zh: "她" },
  { en: "our", zh: "我们" },
  { en: "their", zh: "他们" },
];

const PRONOUNS: readonly (readonly [string, string, string, Person])[] = [
  ["I", "me", "我", "first"],
  ["you", "you", "你", "plural"],
  ["he", "him", "他", "third"],
  ["she", "her", "她", "third"],
  ["we", "us", "我们", "plural"],
  ["they", "them", "他们", "plural"],
];

/** "a" or "an" before a word. */
export function article(next: string): string {
  return /^[aeiou]/.test(next) && !/^uni/.test(next) ? "an" : "a";
}

/** A number as it is drawn most: small ones often. */
export function smallNumber(random: Random): number {
  return choose(random, [[6, () => 2 + random.int(4)], [3, () => 2 + random.int(9)], [
    1,
    () => 11 + random.int(89),
  ]]);
}

/** An adjective or colour that fits a noun, or nothing. */
function attribute(random: Random, noun: Noun, probability: number): Phrase {
  if (!random.chance(probability)) return { en: "", zh: "" };
  if (noun.groups.includes("colored") && random.chance(0.5)) {
    const [en, zh] = random.pick(COLORS);
    return { en: `${en} `, zh };
  }
  const fitting = ADJECTIVES.filter((adjective) =>
    adjective.groups.some((group) => noun.groups.includes(group))
  );
  if (fitting.length === 0) return { en: "", zh: "" };
  const adjective = random.pick(fitting);
  return { en: `${adjective.en} `, zh: adjective.attributive };
}

/** How a noun is determined. */
export type Determiner = "a" | "the" | "this" | "number" | "possessive" | "quantity" | "bare";

/** A noun phrase with the determiner asked for. */
export function nounPhrase(random: Random, noun: Noun, determiner: Determiner, adjectives = 0.3): NounPhrase {
  const quality = attribute(random, noun, adjectives);
  const one = (en: string, zh: string): NounPhrase => ({
    en: `${en} ${quality.en}${noun.en}`,
    zh: `${zh}${noun.measure}${quality.zh}${noun.zh}`,
    person: "third",
    all: false,
    noun,
  });
  const many = (en: string, zh: string): NounPhrase => ({
    en: `${en}${quality.en}${noun.plural}`,
    zh: `${zh}${quality.zh}${noun.zh}`,
    person: "plural",
    all: false,
    noun,
  });
  switch (determiner) {
    case "a":
      return one(article(quality.en + noun.en), "一");
    case "the":
      if (random.chance(0.75)) return one("the", "那");
      // People in the plural take 们.
      return noun.kind === "person" ? pluralPeople(many("the ", "")) : many("the ", "那些");
    case "this":
      return choose(random, [
        [3, () => one("this", "这")],
        [3, () => one("that", "那")],
        [1, () => many("these ", "这些")],
        [1, () => many("those ", "那些")],
        [1, () => {
          const n = 2 + random.int(4);
          return many(`these ${englishNumber(n)} `, `这${chineseCount(n)}${noun.measure}`);
        }],
      ]);
    case "number": {
      const n = smallNumber(random);
      return many(`${englishNumber(n)} `, chineseCount(n) + noun.measure);
    }
    case "possessive":
      return possessed(random, noun, quality);
    case "quantity":
      return choose(random, [
        [2, () => many("many ", "很多")],
        [2, () => many("some ", "一些")],
        [2, () => many("several ", `几${noun.measure}`)],
      ]);
    case "bare":
      return many("", "");
  }
}

function pluralPeople(phrase: NounPhrase): NounPhrase {
  return { ...phrase, zh: `${phrase.zh}们` };
}

function possessed(random: Random, noun: Noun, quality: Phrase): NounPhrase {
  const owner = random.chance(0.7)
    ? random.pick(POSSESSIVES)
    : ((name) => ({ en: `${name[0]}'s`, zh: name[1] }))(random.pick(NAMES));
  const plural = noun.kind !== "thing" && random.chance(0.3);
  // One 的 is enough: 我的新书, but 我漂亮的大衣.
  const joint = quality.zh.endsWith("的") ? "" : "的";
  const zh = owner.zh + joint + quality.zh + noun.zh;
  const person = plural ? "plural" : "third";
  const en = `${owner.en} ${quality.en}${plural ? noun.plural : noun.en}`;
  return { en, zh: plural && noun.kind === "person" ? `${zh}们` : zh, person, all: false, noun };
}

/** Whether a pronoun would speak of the subject again, as in "I see me". */
export function clashes(subject: Phrase, object: Phrase): boolean {
  const who = subject.zh.charAt(0);
  return (who === "我" || who === "你") && subject.zh.length <= 2 &&
    new RegExp(`^${who}们?$`).test(object.zh);
}

/** "my mother": relatives lose 的 after a pronoun in the singular. */
function relative(random: Random): Subject {
  const noun = random.pick(RELATIVES);
  if (random.chance(0.25)) {
    const [en, zh] = random.pick(NAMES);
    return { en: `${en}'s ${noun.en}`, zh: `${zh}的${noun.zh}`, person: "third", all: false };
  }
  const owner = random.pick(POSSESSIVES);
  const joint = owner.zh.length === 1 ? "" : "的";
  return { en: `${owner.en} ${noun.en}`, zh: owner.zh + joint + noun.zh, person: "third", all: false };
}

function name(random: Random): Subject {
  const [en, zh] = random.pick(NAMES);
  return { en, zh, person: "third", all: false };
}

function twoNames(random: Random): Subject {
  const first = name(random);
  let second = name(random);
  while (second.en === first.en) second = name(random);
  return {
    en: `${first.en} and ${second.en}`,
    zh: `${first.zh}和${second.zh}`,
    person: "plural",
    all: false,
  };
}

/** Someone, as a subject. */
export function someone(random: Random): Subject {
  return choose(random, [
    [8, () => {
      const [en, , zh, person] = random.pick(PRONOUNS);
      return { en, zh, person, all: false };
    }],
    [8, () => name(random)],
    [2, () => twoNames(random)],
    [3, () => relative(random)],
    [5, () => {
      const noun = random.pick(PEOPLE);
      const determiner = choose<Determiner>(random, [
        [5, () => "the"],
        [2, () => "this"],
        [noun.groups.includes("known") ? 4 : 0, () => "possessive"],
        [1, () => "number"],
      ]);
      return nounPhrase(random, noun, determiner);
    }],
    [1, () => {
      const noun = random.pick(PEOPLE);
      return { en: `every ${noun.en}`, zh: `每${noun.measure}${noun.zh}`, person: "third", all: true };
    }],
  ]);
}

/** Someone short, for clauses within sentences. */
export function shortSubject(random: Random): Subject {
  return choose(random, [
    [4, () => {
      const [en, , zh, person] = random.pick(PRONOUNS);
      return { en, zh, person, all: false };
    }],
    [4, () => name(random)],
    [1, () => relative(random)],
    [1, () => nounPhrase(random, random.pick(PEOPLE), "the", 0.1)],
  ]);
}

/** Someone, as an object. */
export function someoneElse(random: Random): Phrase {
  return choose<Phrase>(random, [
    [3, () => {
      const [, en, zh] = random.pick(PRONOUNS);
      return { en, zh };
    }],
    [4, () => name(random)],
    [2, () => relative(random)],
    [
      3,
      () =>
        nounPhrase(
          random,
          random.pick(PEOPLE),
          choose<Determiner>(random, [[3, () => "the"], [2, () => "this"]]),
        ),
    ],
  ]);
}

/** How definite an object may be. */
export type ObjectStyle = "any" | "definite" | "general" | "negative";

/** An object out of one of the groups a verb takes. */
export function objectOf(random: Random, groups: readonly string[], style: ObjectStyle): Phrase {
  const group = random.pick(groups);
  if (group === "human") return someoneElse(random);
  if (group === "edible" || group === "drink") return substance(random, group === "drink", style);
  const noun = random.pick(inGroup(group));
  if (style === "negative" && random.chance(0.6)) return { en: `any ${noun.plural}`, zh: noun.zh };
  if (style === "general") return nounPhrase(random, noun, "bare");
  const definite = style !== "any";
  const determiner = choose<Determiner>(random, [
    [definite ? 0 : 4, () => "a"],
    [definite ? 0 : 4, () => "number"],
    [definite ? 0 : 2, () => "quantity"],
    [3, () => "the"],
    [2, () => "this"],
    [2, () => "possessive"],
  ]);
  const phrase = nounPhrase(random, noun, determiner);
  const others = inGroup(group).filter((candidate) => candidate !== noun);
  if (style !== "any" || others.length === 0 || !random.chance(0.06)) return phrase;
  const second = nounPhrase(random, random.pick(others), "a", 0);
  return { en: `${phrase.en} and ${second.en}`, zh: `${phrase.zh}和${second.zh}` };
}

function substance(random: Random, drink: boolean, style: ObjectStyle): Phrase {
  const { en, zh, container } = random.pick(SUBSTANCES.filter((candidate) => candidate.drink === drink));
  const [one, many, measure] = container;
  if (style === "negative") return { en: `any ${en}`, zh };
  if (style !== "any") return { en, zh };
  return choose(random, [
    [2, () => ({ en, zh })],
    [1, () => ({ en: `some ${en}`, zh: `一些${zh}` })],
    [2, () => ({ en: `a ${one} of ${en}`, zh: `一${measure}${zh}` })],
    [2, () => {
      const n = 2 + random.int(4);
      return { en: `${englishNumber(n)} ${many} of ${en}`, zh: chineseCount(n) + measure + zh };
    }],
  ]);
}

/** A thing of a group, as a subject. */
export function thingSubject(random: Random, noun: Noun): NounPhrase {
  const determiner = choose<Determiner>(random, [[3, () => "the"], [3, () => "this"], [
    2,
    () => "possessive",
  ]]);
  return nounPhrase(random, noun, determiner, 0);
}

const WEEKDAYS: readonly (readonly [string, string])[] = [
  ["Monday", "一"],
  ["Tuesday", "二"],
  ["Wednesday", "三"],
  ["Thursday", "四"],
  ["Friday", "五"],
  ["Saturday", "六"],
  ["Sunday", "天"],
];

/** A day of the week: "Tuesday", 星期二. */
export function weekday(random: Random): Phrase {
  const [en, zh] = random.pick(WEEKDAYS);
  return { en, zh: `星期${zh}` };
}

/** An hour of the clock: "half past two", 两点半. */
export function clock(random: Random): Phrase {
  const hour = 1 + random.int(12);
  const word = englishNumber(hour);
  const zh = `${chineseCount(hour)}点`;
  return random.chance(0.6) ? { en: `${word} o'clock`, zh } : { en: `half past ${word}`, zh: `${zh}半` };
}

const UNITS: readonly (readonly [string, string])[] = [
  ["minute", "分钟"],
  ["hour", "个小时"],
  ["day", "天"],
  ["week", "个星期"],
  ["month", "个月"],
  ["year", "年"],
];

/** A length of time: "two hours", 两个小时. */
export function duration(random: Random, units: readonly number[] = [0, 1, 1, 1, 2, 4]): Phrase {
  const [en, zh] = UNITS[random.pick(units)] ?? ["hour", "个小时"];
  const n = en === "minute" ? 10 * (1 + random.int(5)) : 2 + random.int(9);
  return { en: `${englishNumber(n)} ${en}s`, zh: chineseCount(n) + zh };
}

const PAST: readonly (readonly [string, string])[] = [
  ["yesterday", "昨天"],
  ["yesterday morning", "昨天早上"],
  ["last night", "昨天晚上"],
  ["last week", "上周"],
  ["last month", "上个月"],
  ["last year", "去年"],
];
const FUTURE: readonly (readonly [string, string])[] = [
  ["tomorrow", "明天"],
  ["tomorrow morning", "明天早上"],
  ["tonight", "今天晚上"],
  ["next week", "下周"],
  ["next month", "下个月"],
  ["next year", "明年"],
];
const HABIT: readonly (readonly [string, string])[] = [
  ["every day", "每天"],
  ["every morning", "每天早上"],
  ["every evening", "每天晚上"],
  ["every week", "每周"],
  ["every year", "每年"],
];

/** When something happens that is over, to come, or usual. */
export function timeOf(random: Random, when: "past" | "future" | "habit"): Phrase {
  const list = when === "past" ? PAST : when === "future" ? FUTURE : HABIT;
  const [en, zh] = random.pick(list);
  return choose<Phrase>(random, [
    [6, () => ({ en, zh })],
    [1, () => {
      const day = weekday(random);
      const [word, sign] = when === "past"
        ? ["last", "上个"]
        : when === "future"
        ? ["next", "下个"]
        : ["every", "每个"];
      return { en: `${word} ${day.en}`, zh: sign + day.zh };
    }],
    [when === "past" ? 1 : 0, () => {
      const length = duration(random, [1, 2, 3, 4, 5]);
      return { en: `${length.en} ago`, zh: `${length.zh}前` };
    }],
    [1, () => {
      const hour = clock(random);
      const [day, tag] = random.pick(list.slice(0, 2));
      return { en: `at ${hour.en} ${day}`, zh: tag + hour.zh };
    }],
  ]);
}
