/**
 * Sentences about what is: existence, lasting states, identity, description, comparison.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { ADJECTIVES, COLORS, NAMES, type Noun, PEOPLE, PLACES, SPOTS, THINGS } from "./lexicon.ts";
import { chineseCount, englishNumber } from "./numerals.ts";
import {
  article,
  choose,
  inGroup,
  nounPhrase,
  type Phrase,
  shortSubject,
  smallNumber,
  someone,
  type Subject,
  thingSubject,
} from "./phrases.ts";
import { be, clothing, question, type Sentence, statement } from "./sentence.ts";

/** There is, there are. */
export function existence(random: Random): Sentence {
  const [en, zh] = random.pick(SPOTS);
  const groups = ["small", "small", "food"];
  if (!/box|bag/.test(en)) groups.push("pet");
  if (/front|behind|next|garden|room/.test(en)) groups.push("person");
  const noun = random.pick(inGroup(random.pick(groups)));
  return choose(random, [
    [4, () => {
      const phrase = nounPhrase(random, noun, random.pick(["a", "number", "quantity"] as const));
      return statement({ en: `there ${be(phrase)} ${phrase.en} ${en}`, zh: `${zh}有${phrase.zh}` });
    }],
    [1, () => statement({ en: `there are no ${noun.plural} ${en}`, zh: `${zh}没有${noun.zh}` })],
    [1, () => question({ en: `are there any ${noun.plural} ${en}`, zh: `${zh}有${noun.zh}吗` })],
    [
      1,
      () =>
        question({ en: `how many ${noun.plural} are there ${en}`, zh: `${zh}有几${noun.measure}${noun.zh}` }),
    ],
    [2, () => {
      const phrase = thingSubject(random, noun);
      return statement({ en: `${phrase.en} ${be(phrase)} ${en}`, zh: `${phrase.zh}在${zh}` });
    }],
    [1, () => {
      const phrase = thingSubject(random, noun);
      return question({ en: `where ${be(phrase)} ${phrase.en}`, zh: `${phrase.zh}在哪里` });
    }],
  ]);
}

/** 着: a state that lasts. */
export function lastingState(random: Random): Sentence {
  return choose(random, [
    [3, () => {
      const subject = shortSubject(random);
      const { en, zh } = clothing(random);
      return statement({ en: `${subject.en} ${be(subject)} wearing ${en}`, zh: subject.zh + zh });
    }],
    [2, () => {
      const [verb, sign] = random.pick([["sitting", "坐"], ["standing", "站"], ["lying", "躺"]] as const);
      const [en, zh] = random.pick(SPOTS.filter(([spot]) => !/box|bag/.test(spot)));
      const phrase = nounPhrase(random, random.pick(PEOPLE), random.pick(["a", "number"] as const), 0.2);
      return statement({ en: `${phrase.en} ${be(phrase)} ${verb} ${en}`, zh: `${zh}${sign}着${phrase.zh}` });
    }],
    [2, () => {
      const [verb, sign] = random.pick([["sitting", "坐"], ["standing", "站"], ["lying", "躺"]] as const);
      const [en, zh] = random.pick(SPOTS.filter(([spot]) => !/box|bag/.test(spot)));
      const subject = shortSubject(random);
      return statement({
        en: `${subject.en} ${be(subject)} ${verb} ${en}`,
        zh: `${subject.zh}${sign}在${zh}`,
      });
    }],
    [1, () => {
      const noun = random.pick(inGroup("drawable").filter((candidate) => candidate.groups.includes("small")));
      const phrase = nounPhrase(random, noun, random.pick(["a", "number"] as const), 0.3);
      return statement({ en: `${phrase.en} ${be(phrase)} hanging on the wall`, zh: `墙上挂着${phrase.zh}` });
    }],
  ]);
}

/** 是: who or what somebody or something is. */
export function identity(random: Random): Sentence {
  const subject = shortSubject(random);
  return choose(random, [
    [3, () => {
      const noun = random.pick(PEOPLE.filter((person) => person.groups.includes("job")));
      if (subject.person === "plural" && subject.en !== "you") {
        return statement({ en: `${subject.en} are ${noun.plural}`, zh: `${subject.zh}是${noun.zh}` });
      }
      const phrase = nounPhrase(random, noun, "a", 0.4);
      const not = random.chance(0.2);
      return statement({
        en: `${subject.en} ${be(subject)}${not ? " not" : ""} ${phrase.en}`,
        zh: `${subject.zh}${not ? "不" : ""}是${phrase.zh}`,
      });
    }],
    [2, () => {
      const noun = random.pick(THINGS);
      const phrase = nounPhrase(random, noun, "possessive");
      const [en, zh] = random.pick([["this", "这"], ["that", "那"]] as const);
      return random.chance(0.7)
        ? statement({ en: `${en} is ${phrase.en}`, zh: `${zh}是${phrase.zh}` })
        : question({ en: `is ${en} ${phrase.en}`, zh: `${zh}是${phrase.zh}吗` });
    }],
    [1, () => {
      const noun = random.pick(THINGS);
      const [en, zh] = random.pick([["this", "这"], ["that", "那"]] as const);
      return question({ en: `whose ${noun.en} is ${en}`, zh: `${zh}是谁的${noun.zh}` });
    }],
  ]);
}

/** Someone or something, and adjectives that fit. */
function described(random: Random): { subject: Subject; fitting: typeof ADJECTIVES } {
  if (random.chance(0.5)) {
    const fitting = ADJECTIVES.filter(({ groups }) =>
      groups.includes("person") || groups.includes("person*")
    );
    return { subject: shortSubject(random), fitting };
  }
  const adjective = random.pick(
    ADJECTIVES.filter(({ groups }) => !groups.includes("person") && !groups.includes("person*")),
  );
  const noun = random.pick(inGroup(random.pick(adjective.groups)));
  return { subject: thingSubject(random, noun), fitting: [adjective] };
}

/** Adjectives are predicates by themselves in Chinese, with 很 where nothing else stands. */
export function description(random: Random): Sentence {
  const { subject, fitting } = described(random);
  const { en, predicate } = random.pick(fitting);
  const is = be(subject);
  return choose(random, [
    [3, () => statement({ en: `${subject.en} ${is} ${en}`, zh: `${subject.zh}很${predicate}` })],
    [2, () => statement({ en: `${subject.en} ${is} very ${en}`, zh: `${subject.zh}非常${predicate}` })],
    [1, () => statement({ en: `${subject.en} ${is} too ${en}`, zh: `${subject.zh}太${predicate}了` })],
    [2, () => statement({ en: `${subject.en} ${is} not ${en}`, zh: `${subject.zh}不${predicate}` })],
    [1, () => statement({ en: `${subject.en} ${is} not very ${en}`, zh: `${subject.zh}不太${predicate}` })],
    [2, () => question({ en: `${is} ${subject.en} ${en}`, zh: `${subject.zh}${predicate}吗` })],
    [1, () => {
      const thing = thingSubject(random, random.pick(inGroup("colored")));
      const [color, zh] = random.pick(COLORS);
      return statement({ en: `${thing.en} ${be(thing)} ${color}`, zh: `${thing.zh}是${zh}色的` });
    }],
  ]);
}

/** 比: "Tom is taller than Mary". */
export function comparison(random: Random): Sentence {
  if (random.chance(0.15)) return ageComparison(random);
  const { subject, fitting } = described(random);
  const adjective = random.pick(fitting);
  const noun = "noun" in subject ? (subject as Subject & { noun: Noun }).noun : undefined;
  const isThing = noun !== undefined && noun.kind !== "person";
  let other: Phrase = isThing ? thingSubject(random, noun) : plainName(random, subject);
  while (other.zh === subject.zh) other = thingSubject(random, noun ?? random.pick(THINGS));
  const { en, comparative, predicate } = adjective;
  const is = be(subject);
  return choose(random, [
    [4, () =>
      statement({
        en: `${subject.en} ${is} ${comparative} than ${other.en}`,
        zh: `${subject.zh}比${other.zh}${predicate}`,
      })],
    [2, () =>
      statement({
        en: `${subject.en} ${is} much ${comparative} than ${other.en}`,
        zh: `${subject.zh}比${other.zh}${predicate}得多`,
      })],
    [2, () =>
      statement({
        en: `${subject.en} ${is} as ${en} as ${other.en}`,
        zh: `${subject.zh}和${other.zh}一样${predicate}`,
      })],
    [2, () =>
      statement({
        en: `${subject.en} ${is} not as ${en} as ${other.en}`,
        zh: `${subject.zh}没有${other.zh}${predicate}`,
      })],
    [1, () =>
      question({
        en: `${is} ${subject.en} ${comparative} than ${other.en}`,
        zh: `${subject.zh}比${other.zh}${predicate}吗`,
      })],
  ]);
}

function plainName(random: Random, besides: Subject): Phrase {
  let [en, zh] = random.pick(NAMES);
  while (en === besides.en) [en, zh] = random.pick(NAMES);
  return { en, zh };
}

function ageComparison(random: Random): Sentence {
  const subject = shortSubject(random);
  const other = plainName(random, subject);
  const years = 2 + random.int(9);
  const [en, zh] = random.pick([["older", "大"], ["younger", "小"]] as const);
  return statement({
    en: `${subject.en} ${be(subject)} ${englishNumber(years)} years ${en} than ${other.en}`,
    zh: `${subject.zh}比${other.zh}${zh}${chineseCount(years)}岁`,
  });
}

/** 最: "the youngest writer in the bank". */
export function superlative(random: Random): Sentence {
  const [place, zhPlace] = random.pick(PLACES);
  const noun = random.pick(PEOPLE.filter((person) => person.groups.includes("job")));
  const { superlative, predicate } = random.pick(
    ADJECTIVES.filter(({ groups }) => groups.includes("person")),
  );
  const subject = shortSubject(random);
  if (subject.person === "plural" && subject.en !== "you") return description(random);
  return statement({
    en: `${subject.en} ${be(subject)} the ${superlative} ${noun.en} in the ${place}`,
    zh: `${subject.zh}是${zhPlace}里最${predicate}的${noun.zh}`,
  });
}

/** "wants to be a doctor". */
export function occupation(random: Random): Sentence {
  const noun = random.pick(PEOPLE.filter((person) => person.groups.includes("job")));
  const subject = shortSubject(random);
  const tense = subject.person === "third" ? "wants" : "want";
  if (subject.person === "plural" && subject.en !== "you") return identity(random);
  const en = `${article(noun.en)} ${noun.en}`;
  return statement({
    en: `${subject.en} ${tense} to be ${en}`,
    zh: `${subject.zh}想当一${noun.measure}${noun.zh}`,
  });
}

/** "has three horses": number and measure word. */
export function ofNumber(random: Random): Sentence {
  const n = smallNumber(random);
  const subject = someone(random);
  const noun = random.pick(inGroup(random.pick(["goods", "pet", "farm", "small"])));
  const have = subject.person === "third" ? "has" : "have";
  return statement({
    en: `${subject.en} ${have} ${englishNumber(n)} ${noun.plural}`,
    zh: `${subject.zh}${subject.all ? "都" : ""}有${chineseCount(n)}${noun.measure}${noun.zh}`,
  });
}
