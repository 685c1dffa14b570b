/**
 * The kinds of sentences of the built-in corpus.
 *
 * @module
 */
import type { Random } from "../random.ts";
import {
  activity,
  type Clause,
  type Mood,
  placeOfAction,
  render,
  someClause,
  someTense,
  type Tense,
} from "./clauses.ts";
import {
  ADJECTIVES,
  ANIMALS,
  CITIES,
  COLORS,
  NAMES,
  type Noun,
  PEOPLE,
  PLACES,
  RELATIVES,
  SPOTS,
  THINGS,
  TRANSITIVES,
} from "./lexicon.ts";
import { chineseCount, chineseNumber, englishNumber } from "./numerals.ts";
import {
  article,
  choose,
  clashes,
  clock,
  duration,
  inGroup,
  nounPhrase,
  objectOf,
  type Phrase,
  shortSubject,
  smallNumber,
  someone,
  someoneElse,
  type Subject,
  thingSubject,
  timeOf,
  weekday,
} from "./phrases.ts";

/** A sentence without capital: the mark at the end says what it is. */
export interface Sentence extends Phrase {
  mark: "." | "?" | "!";
}

function statement(phrase: Phrase): Sentence {
  return { ...phrase, mark: "." };
}

function question(phrase: Phrase): Sentence {
  return { ...phrase, mark: "?" };
}

function be(subject: Subject): string {
  return subject.person === "first" ? "am" : subject.person === "third" ? "is" : "are";
}

function plainStatement(random: Random): Sentence {
  return statement(render(someClause(random, { subject: someone(random) })));
}

function yesNoQuestion(random: Random): Sentence {
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
function objectQuestion(random: Random): Sentence {
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

function subjectQuestion(random: Random): Sentence {
  const subject: Subject = { en: "who", zh: "谁", person: "third", all: false };
  const tense = someTense(random, ["past", "present", "progressive", "future", "can", "want"]);
  return question(
    render({ ...someClause(random, { subject, tense, negative: false, short: true }), timeFirst: false }),
  );
}

function adverbQuestion(random: Random): Sentence {
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

/** Someone who is not the subject itself. */
function another(random: Random, subject: Subject): Phrase {
  let phrase = someoneElse(random);
  while (clashes(subject, phrase)) phrase = someoneElse(random);
  return phrase;
}

/** "went to Shanghai by train with Mary": means and company come first in Chinese. */
function journey(random: Random): Sentence {
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

function purchaseFor(random: Random): Sentence {
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
function disposal(random: Random): Sentence {
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
function passive(random: Random): Sentence {
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

/** There is, there are. */
function existence(random: Random): Sentence {
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
function lastingState(random: Random): Sentence {
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

/** "a red hat" with the verb that fits: 戴着 for what goes on head or hand, else 穿着. */
function clothing(random: Random): Phrase {
  const noun = random.pick(inGroup(random.chance(0.7) ? "clothes" : "headwear"));
  const phrase = nounPhrase(random, noun, "a", 0.6);
  return { en: phrase.en, zh: `${noun.groups.includes("headwear") ? "戴" : "穿"}着${phrase.zh}` };
}

function identity(random: Random): Sentence {
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
function description(random: Random): Sentence {
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
function comparison(random: Random): Sentence {
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

function superlative(random: Random): Sentence {
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

function relativeSentence(random: Random): Sentence {
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

/** Age, price, hour, day. */
function figures(random: Random): Sentence {
  return choose(random, [
    [2, () => {
      const subject = shortSubject(random);
      const n = random.chance(0.4) ? 10 + random.int(10) : 3 + random.int(80);
      return statement({
        en: `${subject.en} ${be(subject)} ${englishNumber(n)} years old`,
        zh: `${subject.zh}${chineseNumber(n)}岁`,
      });
    }],
    [2, () => {
      const thing = thingSubject(random, random.pick(inGroup("goods")));
      const price = largeNumber(random);
      const costs = thing.person === "third" ? "costs" : "cost";
      return statement({
        en: `${thing.en} ${costs} ${englishNumber(price)} yuan`,
        zh: `${thing.zh}要${chineseCount(price)}元`,
      });
    }],
    [1, () => {
      const thing = thingSubject(random, random.pick(inGroup("goods")));
      return question({ en: `how much ${be(thing)} ${thing.en}`, zh: `${thing.zh}多少钱` });
    }],
    [1, () => {
      const hour = clock(random);
      return statement({ en: `it is ${hour.en} now`, zh: `现在${hour.zh}` });
    }],
    [1, () => {
      const day = weekday(random);
      const [en, zh] = random.pick([["today is", "今天是"], ["tomorrow is", "明天是"]] as const);
      return statement({ en: `${en} ${day.en}`, zh: zh + day.zh });
    }],
  ]);
}

/** Large amounts, times of events, lengths of stays. */
function amounts(random: Random): Sentence {
  return choose(random, [
    [2, () => {
      const [place, zhPlace] = random.pick(PLACES);
      const noun = random.pick(PEOPLE.filter((person) => person.groups.includes("job")));
      const n = largeNumber(random);
      return statement({
        en: `there are ${englishNumber(n)} ${noun.plural} in the ${place}`,
        zh: `${zhPlace}里有${chineseCount(n)}${noun.measure}${noun.zh}`,
      });
    }],
    [2, () => {
      const [en, zh] = random.pick([["meeting", "会议"], ["concert", "音乐会"], ["party", "聚会"]] as const);
      const [verb, zhVerb] = random.pick([["start", "开始"], ["end", "结束"]] as const);
      const hour = clock(random);
      const [day, zhDay] = random.pick([["", ""], [" tomorrow", "明天"], [" today", "今天"]] as const);
      return random.chance(0.6)
        ? statement({ en: `the ${en} ${verb}s at ${hour.en}${day}`, zh: `${zh}${zhDay}${hour.zh}${zhVerb}` })
        : question({ en: `when does the ${en} ${verb}${day}`, zh: `${zh}${zhDay}什么时候${zhVerb}` });
    }],
    [2, () => {
      const subject = shortSubject(random);
      const have = subject.person === "third" ? "has" : "have";
      const [city, zhCity] = random.pick(CITIES);
      const length = duration(random, [3, 4, 5]);
      return statement({
        en: `${subject.en} ${have} lived in ${city} for ${length.en}`,
        zh: `${subject.zh}在${zhCity}住了${length.zh}`,
      });
    }],
  ]);
}

function largeNumber(random: Random): number {
  return choose(random, [
    [3, () => 12 + random.int(88)],
    [3, () => 100 * (1 + random.int(9))],
    [2, () => 100 * (1 + random.int(9)) + 10 * (1 + random.int(9))],
    [1, () => 1000 * (1 + random.int(9))],
    [1, () => 1000 * (1 + random.int(9)) + 100 * (1 + random.int(9))],
  ]);
}

const WEATHER: readonly (readonly [string, string, string])[] = [
  ["it rained", "下雨了", "past"],
  ["it snowed", "下雪了", "past"],
  ["it was very cold", "非常冷", "past"],
  ["it was very hot", "非常热", "past"],
];

/** "He is very tired". */
function someState(random: Random): Phrase {
  const subject = shortSubject(random);
  const { en, predicate } = random.pick(ADJECTIVES.filter(({ groups }) => groups.includes("person*")));
  return { en: `${subject.en} ${be(subject)} very ${en}`, zh: `${subject.zh}非常${predicate}` };
}

/** A short clause for one half of a sentence. */
function half(random: Random, tense: Tense, mark = ""): Phrase {
  const negative = tense === "past" && random.chance(0.5);
  const clause = someClause(random, { tense, short: true, timeless: true, activities: 0.6, negative });
  return render({ ...clause, mark });
}

/** Because, so, although, if. */
function reasoning(random: Random): Sentence {
  return choose(random, [
    [2, () => {
      const [en, zh] = random.pick(WEATHER);
      const wish = { tense: "past", negative: true, short: true, timeless: true, activities: 0.7 } as const;
      const effect = render(someClause(random, wish));
      return statement({ en: `${effect.en} because ${en} yesterday`, zh: `因为昨天${zh}，所以${effect.zh}` });
    }],
    [2, () => {
      const cause = someState(random);
      const effect = half(random, random.pick(["want", "future", "should"]));
      return statement({ en: `${cause.en}, so ${effect.en}`, zh: `${cause.zh}，所以${effect.zh}` });
    }],
    [2, () => {
      const concession = someState(random);
      const fact = half(random, random.pick(["want", "progressive"]));
      return statement({
        en: `although ${concession.en}, ${fact.en}`,
        zh: `虽然${concession.zh}，但是${fact.zh}`,
      });
    }],
    [2, () => {
      const [en, zh] = random.pick(
        [["rains", "下雨"], ["snows", "下雪"], ["is hot", "很热"], ["is cold", "很冷"]] as const,
      );
      const effect = half(random, "future", "就");
      return statement({ en: `if it ${en} tomorrow, ${effect.en}`, zh: `如果明天${zh}，${effect.zh}` });
    }],
  ]);
}

/** Two clauses in a row, or one that is thought or known. */
function compound(random: Random): Sentence {
  return choose(random, [
    [2, () => {
      const first = half(random, "like");
      const second = half(random, "like");
      return statement({ en: `${first.en}, but ${second.en}`, zh: `${first.zh}，但是${second.zh}` });
    }],
    [3, () => {
      const subject = shortSubject(random);
      const third = subject.person === "third" ? "s" : "";
      const [en, zh] = random.pick([["think", "觉得"], ["know", "知道"], ["hope", "希望"]] as const);
      let content = someState(random);
      if (en === "hope") content = half(random, "future");
      else if (random.chance(0.5)) content = half(random, "past");
      return statement({
        en: `${subject.en} ${en}${third} that ${content.en}`,
        zh: `${subject.zh}${zh}${content.zh}`,
      });
    }],
    [2, () => {
      const [order, sign] = random.pick([["before", "以前"], ["after", "以后"]] as const);
      const first = activity(random);
      const wish = { tense: "past", negative: false, short: true, timeless: true, activities: 0 } as const;
      const phrase = render(someClause(random, wish));
      const ing = `${first.verb.ing}${first.tail === "" ? "" : ` ${first.tail}`}`;
      return statement({
        en: `${order} ${ing}, ${phrase.en}`,
        zh: `${first.zh}${first.object}${sign}，${phrase.zh}`,
      });
    }],
  ]);
}

/** Please, do not, let us. */
function request(random: Random): Sentence {
  const doing = activity(random);
  const phrase = `${doing.verb.base}${doing.tail === "" ? "" : ` ${doing.tail}`}`;
  const place = random.chance(0.6) ? placeOfAction(random) : undefined;
  const where = place === undefined ? "" : ` ${place.en}`;
  const zhWhere = place === undefined ? "" : `在${place.zh}`;
  const thing = (group: string): Phrase =>
    nounPhrase(random, random.pick(inGroup(group)), random.pick(["the", "this", "possessive"] as const), 0.2);
  return choose(random, [
    [3, () => {
      const [en, zh, group] = random.pick(
        [
          ["open", "打开", "opening"],
          ["close", "关上", "opening"],
          ["wash", "洗干净", "clothes"],
          ["repair", "修好", "machine"],
        ] as const,
      );
      const object = thing(group);
      return statement({ en: `please ${en} ${object.en}`, zh: `请把${object.zh}${zh}` });
    }],
    [2, () => {
      const object = thing("small");
      const [en, zh] = random.pick(SPOTS);
      return statement({ en: `please put ${object.en} ${en}`, zh: `请把${object.zh}放在${zh}` });
    }],
    [2, () => {
      const object = objectOf(random, ["goods"], "any");
      return statement({ en: `please give me ${object.en}`, zh: `请给我${object.zh}` });
    }],
    [2, () => statement({ en: `do not ${phrase}${where}`, zh: `不要${zhWhere}${doing.zh}${doing.object}` })],
    [
      2,
      () => ({ en: `let us ${phrase}${where}`, zh: `我们${zhWhere}${doing.zh}${doing.object}吧`, mark: "!" }),
    ],
  ]);
}

function occupation(random: Random): Sentence {
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

function ofNumber(random: Random): Sentence {
  const n = smallNumber(random);
  const subject = someone(random);
  const noun = random.pick(inGroup(random.pick(["goods", "pet", "farm", "small"])));
  const have = subject.person === "third" ? "has" : "have";
  return statement({
    en: `${subject.en} ${have} ${englishNumber(n)} ${noun.plural}`,
    zh: `${subject.zh}${subject.all ? "都" : ""}有${chineseCount(n)}${noun.measure}${noun.zh}`,
  });
}

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
