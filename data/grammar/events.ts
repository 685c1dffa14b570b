/**
 * Sentences about what is done: statements and questions, journeys, giving, 把 and 被.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { type Clause, type Mood, render, someClause, someTense, type Tense } from "./clauses.ts";
import { ANIMALS, CITIES, PLACES, SPOTS, TRANSITIVES } from "./lexicon.ts";
import {
  choose,
  inGroup,
  nounPhrase,
  type Phrase,
  shortSubject,
  someone,
  someoneElse,
  type Subject,
  thingSubject,
  timeOf,
} from "./phrases.ts";
import { another, question, type Sentence, statement } from "./sentence.ts";

/** A statement of any tense. */
export function plainStatement(random: Random): Sentence {
  return statement(render(someClause(random, { subject: someone(random) })));
}

/** A question to be answered by yes or no: 吗. */
export function yesNoQuestion(random: Random): Sentence {
  const tense = someTense(random, [
    "past",
    "present",
    "progressive",
    "future",
    "going",
    "experience",
    "can",
    "want",
  ]);
  return question(render(someClause(random, { tense, negative: false, short: true }), "question"));
}

const ASKED: readonly Tense[] = ["past", "present", "progressive", "future", "going", "want", "should"];

/** "What did Tom buy yesterday?": the question word stays where the object would be. */
export function objectQuestion(random: Random): Sentence {
  const clause = someClause(random, {
    tense: someTense(random, ASKED),
    negative: false,
    activities: 0,
    short: true,
  });
  const verb = TRANSITIVES.find((candidate) => candidate.base === clause.predicate.verb.base);
  const groups = verb?.takes ?? [];
  const isPerson = groups[0] === "human" && groups.length === 1;
  const counted = [...new Set(groups.flatMap(inGroup))];
  const [en, zh] = choose(random, [
    [4, () => isPerson ? ["who", "谁"] : ["what", "什么"]],
    [counted.length > 0 ? 3 : 0, () => {
      const noun = random.pick(counted);
      return choose(random, [
        [2, () => [`how many ${noun.plural}`, `几${noun.measure}${noun.zh}`]],
        [1, () => [`which ${noun.en}`, `哪${noun.measure}${noun.zh}`]],
        [1, () => [`whose ${noun.en}`, `谁的${noun.zh}`]],
      ]);
    }],
  ]);
  const predicate = { ...clause.predicate, tail: "", object: zh ?? "" };
  return question(render({ ...clause, predicate }, { fronted: en ?? "" }));
}

/** "Who bought the book?" */
export function subjectQuestion(random: Random): Sentence {
  const subject: Subject = { en: "who", zh: "谁", person: "third", all: false };
  const tense = someTense(random, ["past", "present", "progressive", "future", "can", "want"]);
  return question(
    render({ ...someClause(random, { subject, tense, negative: false, short: true }), timeFirst: false }),
  );
}

/** Where, when and why. */
export function adverbQuestion(random: Random): Sentence {
  const kind = random.pick(["where", "when", "why"] as const);
  const tense = someTense(random, kind === "when" ? ["past", "future", "going"] : ASKED);
  const clause = someClause(random, { tense, negative: kind === "why" && random.chance(0.3), short: true });
  let mood: Mood;
  let asked: Clause = clause;
  if (kind === "where") {
    mood = { fronted: "where" };
    asked = { ...clause, place: { en: "", zh: "哪里" } };
  } else if (kind === "when") {
    mood = { fronted: "when" };
    asked = { ...clause, time: { en: "", zh: "什么时候" } };
  } else {
    mood = { fronted: "why", reason: true };
  }
  return question(render(asked, mood));
}

/** "went to Shanghai by train with Mary": means and company come first in Chinese. */
export function journey(random: Random): Sentence {
  const subject = random.chance(0.5) ? shortSubject(random) : someone(random);
  const [place, zhPlace] = random.pick(
    random.chance(0.5) ? CITIES : PLACES.map(([en, zh]) => [`the ${en}`, zh] as const),
  );
  const means = choose<Phrase | undefined>(random, [
    [2, () => undefined],
    [1, () => ({ en: "by train", zh: "坐火车" })],
    [1, () => ({ en: "by bus", zh: "坐公共汽车" })],
    [1, () => ({ en: "by plane", zh: "坐飞机" })],
    [1, () => ({ en: "by bicycle", zh: "骑自行车" })],
    [1, () => ({ en: "by car", zh: "开车" })],
  ]);
  const tense = someTense(random, ["past", "present", "future", "going", "want", "should", "must"]);
  const negative = random.chance(0.15);
  const went = { base: "go", third: "goes", past: "went", participle: "gone", ing: "going", zh: "去" };
  const clause = someClause(random, { subject, tense, negative, activities: 1 });
  const company = random.chance(0.25) ? another(random, subject) : undefined;
  const together = company === undefined ? "" : `和${company.zh}一起`;
  const tail = `to ${place}${means === undefined ? "" : ` ${means.en}`}${
    company === undefined ? "" : ` with ${company.en}`
  }`;
  const predicate = {
    verb: went,
    tail,
    zh: `${means?.zh ?? ""}去`,
    object: zhPlace,
    flags: [],
    isActivity: false,
  };
  const plain = {
    ...clause,
    predicate,
    place: undefined,
    manner: undefined,
    company: undefined,
    length: undefined,
  };
  // Company stands before the means, which is part of the verb here.
  const joined = { ...plain, predicate: { ...predicate, zh: together + predicate.zh } };
  const usual = tense === "present" && !negative && clause.frequency === undefined &&
    clause.time === undefined;
  return statement(render(usual ? { ...joined, time: timeOf(random, "habit") } : joined));
}

/** "bought Mary a book": 给 says for whom. */
export function purchaseFor(random: Random): Sentence {
  const [verb, third, past, zh, groups] = random.pick(
    [
      ["give", "gives", "gave", "", ["goods"]],
      ["buy", "buys", "bought", "买", ["goods"]],
      ["write", "writes", "wrote", "写", ["mail", "writing"]],
      ["send", "sends", "sent", "寄", ["mail"]],
    ] as const,
  );
  const subject = shortSubject(random);
  const receiver = another(random, subject);
  const things = inGroup(random.pick(groups)).filter((noun) =>
    zh !== "写" || noun.groups.includes("writing")
  );
  const object = nounPhrase(random, random.pick(things), random.pick(["a", "a", "number"] as const));
  const tense = someTense(random, ["past", "future", "going", "want", "should"]);
  const clause = someClause(random, { subject, tense, negative: false, activities: 1, short: true });
  const forms = { base: verb, third, past, participle: past, ing: `${verb}ing`, zh };
  // 给 is the verb itself, or says for whom before another verb.
  const predicate = {
    verb: forms,
    tail: `${receiver.en} ${object.en}`,
    zh: zh === "" ? "给" : `给${receiver.zh}${zh}`,
    object: zh === "" ? receiver.zh + object.zh : object.zh,
    flags: [],
    isActivity: false,
  };
  return statement(render({ ...clause, predicate, place: undefined }));
}

/** 把: what is done to a thing, with its outcome. */
export function disposal(random: Random): Sentence {
  const tense = someTense(random, ["past", "future", "should", "must"]);
  const spot = random.pick(SPOTS);
  const subject = shortSubject(random);
  const [base, past, zh, tail, zhTail, group] = choose<
    readonly [string, string, string, string, string, string]
  >(random, [
    [5, () => ["put", "put", "放在", ` ${spot[0]}`, spot[1], "small"]],
    [2, () => {
      const receiver = another(random, subject);
      return ["give", "gave", "给", ` to ${receiver.en}`, receiver.zh, "goods"];
    }],
    [1, () => ["take", "took", "带到", " to the office", "办公室", "small"]],
    [1, () => ["take", "took", "带回", " home", "家", "small"]],
  ]);
  const object = nounPhrase(
    random,
    random.pick(inGroup(group)),
    random.pick(["the", "this", "possessive"] as const),
  );
  const clause = someClause(random, { subject, tense, negative: false, activities: 1, short: true });
  const time = tense === "past" && clause.time === undefined ? timeOf(random, "past") : clause.time;
  const predicate = {
    verb: { base, third: `${base}s`, past, participle: past, ing: base, zh },
    tail: object.en + tail,
    zh: `把${object.zh}${zh}`,
    object: zhTail,
    flags: [],
    isActivity: false,
  };
  return statement(render({ ...clause, predicate, place: undefined, time }));
}

const PASSIVES: readonly (readonly [string, string, string])[] = [
  ["broken", "打破", "fragile"],
  ["eaten", "吃掉", "food"],
  ["stolen", "偷走", "goods"],
  ["taken away", "拿走", "small"],
  ["found", "找到", "small"],
  ["repaired", "修好", "machine"],
  ["washed", "洗干净", "clothes"],
];

/** 被: what was done to a thing, and by whom. */
export function passive(random: Random): Sentence {
  const [en, zh, group] = random.pick(PASSIVES);
  const object = thingSubject(random, random.pick(inGroup(group)));
  const byAnimal = (group === "fragile" || group === "food") && random.chance(0.5);
  const agent = byAnimal ? nounPhrase(random, random.pick(ANIMALS), "the", 0.2) : someoneElse(random);
  const time = random.chance(0.5) ? timeOf(random, "past") : { en: "", zh: "" };
  const tail = time.en === "" ? "" : ` ${time.en}`;
  const was = object.person === "plural" ? "were" : "was";
  return choose(random, [
    [5, () =>
      statement({
        en: `${object.en} ${was} ${en} by ${agent.en}${tail}`,
        zh: `${object.zh}${time.zh}被${agent.zh}${zh}了`,
      })],
    [1, () =>
      statement({
        en: `${object.en} ${was} not ${en} by ${agent.en}${tail}`,
        zh: `${object.zh}${time.zh}没有被${agent.zh}${zh}`,
      })],
    [1, () =>
      question({
        en: `${was} ${object.en} ${en} by ${agent.en}${tail}`,
        zh: `${object.zh}${time.zh}被${agent.zh}${zh}了吗`,
      })],
  ]);
}
