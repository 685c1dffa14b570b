/**
 * Sentences with a relative clause, which stands before its noun in Chinese.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { activity, placeOfAction, render, someClause } from "./clauses.ts";
import { ADJECTIVES, CITIES, NAMES, type Noun, PEOPLE, RELATIVES, TRANSITIVES } from "./lexicon.ts";
import { choose, inGroup, nounPhrase, type Phrase, shortSubject, type Subject, timeOf } from "./phrases.ts";
import { clothing, type Sentence, statement } from "./sentence.ts";

/** A noun with a clause on its object: "the book that Tom bought yesterday" is 汤姆昨天买的那本书. */
function objectRelative(random: Random): Phrase & { noun: Noun } {
  const verbs = TRANSITIVES.filter((verb) =>
    verb.past !== verb.base && !verb.flags.includes("stative") &&
    verb.takes.some((group) => inGroup(group).length > 0)
  );
  const verb = random.pick(verbs);
  const noun = random.pick(inGroup(random.pick(verb.takes.filter((group) => inGroup(group).length > 0))));
  const subject = shortSubject(random);
  const time = random.chance(0.4) ? timeOf(random, "past") : { en: "", zh: "" };
  const { en, zh } = nounPhrase(random, noun, "the", 0.15);
  // The plural of people loses its 们 here.
  const head = zh.replace(/们$/, "");
  const sign = head.startsWith("那") ? "" : "那些";
  return {
    en: `${en} that ${subject.en} ${verb.past}${time.en === "" ? "" : ` ${time.en}`}`,
    zh: `${subject.zh}${time.zh}${verb.zh}的${sign}${head}`,
    noun,
  };
}

/** A person with a clause: "the nurse who works in the hospital" is 在医院工作的那位护士. */
function subjectRelative(random: Random): Phrase {
  const noun = random.pick(PEOPLE);
  const who: Subject = { en: "who", zh: "", person: "third", all: false };
  const clause = choose<Phrase>(random, [
    [2, () => {
      const { en, zh } = clothing(random);
      return { en: `who is wearing ${en}`, zh };
    }],
    [2, () => {
      const [en, zh] = random.pick(CITIES);
      return { en: `who lives in ${en}`, zh: `住在${zh}` };
    }],
    [2, () => {
      const tense = random.pick(["progressive", "can", "like"] as const);
      return render({ subject: who, predicate: activity(random), tense, negative: false });
    }],
    [1, () => {
      const place = placeOfAction(random);
      return { en: `who works ${place.en}`, zh: `在${place.zh}工作` };
    }],
    [
      3,
      () =>
        render({
          ...someClause(random, { subject: who, tense: "past", negative: false, activities: 0, short: true }),
        }),
    ],
  ]);
  return { en: `the ${noun.en} ${clause.en}`, zh: `${clause.zh}的那${noun.measure}${noun.zh}` };
}

/** A sentence around a relative clause. */
export function relativeSentence(random: Random): Sentence {
  const subject = shortSubject(random);
  return choose(random, [
    [4, () => {
      const object = objectRelative(random);
      const fitting = ADJECTIVES.filter(({ groups }) =>
        groups.some((group) => object.noun.groups.includes(group))
      );
      if (fitting.length === 0) return relativeSentence(random);
      const { en, predicate } = random.pick(fitting);
      const plural = object.zh.includes("的那些");
      return statement({
        en: `${object.en} ${plural ? "are" : "is"} very ${en}`,
        zh: `${object.zh}非常${predicate}`,
      });
    }],
    [3, () => {
      const object = objectRelative(random);
      const kinds = object.noun.groups.concat(object.noun.kind === "person" ? "human" : []);
      const fitting = TRANSITIVES.filter(({ takes, past, base }) =>
        takes.some((group) => kinds.includes(group)) && past !== base
      );
      const verb = random.pick(fitting);
      const tense = verb.flags.includes("stative") ? "present" : random.pick(["past", "future"] as const);
      const predicate = {
        verb,
        tail: object.en,
        zh: verb.zh,
        object: object.zh,
        flags: [],
        isActivity: false,
      };
      return statement(render({ subject, predicate, tense, negative: random.chance(0.15) }));
    }],
    [3, () => {
      const person = subjectRelative(random);
      const role = random.pick([...RELATIVES, ...PEOPLE.slice(-3)]);
      const [name, zhName] = random.pick(NAMES);
      return statement({
        en: `${person.en} is ${name}'s ${role.en}`,
        zh: `${person.zh}是${zhName}的${role.zh}`,
      });
    }],
    [2, () => {
      const person = subjectRelative(random);
      const knows = subject.person === "third" ? "knows" : "know";
      return statement({ en: `${subject.en} ${knows} ${person.en}`, zh: `${subject.zh}认识${person.zh}` });
    }],
    [1, () => {
      const person = subjectRelative(random);
      const { en, predicate } = random.pick(ADJECTIVES.filter(({ groups }) => groups.includes("person")));
      return statement({ en: `${person.en} is very ${en}`, zh: `${person.zh}非常${predicate}` });
    }],
  ]);
}
