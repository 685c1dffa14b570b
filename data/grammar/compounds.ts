/**
 * Sentences of two clauses, and requests.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { activity, placeOfAction, render, someClause, type Tense } from "./clauses.ts";
import { ADJECTIVES, SPOTS } from "./lexicon.ts";
import { choose, inGroup, nounPhrase, objectOf, type Phrase, shortSubject } from "./phrases.ts";
import { be, type Sentence, statement } from "./sentence.ts";

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
export function reasoning(random: Random): Sentence {
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
export function compound(random: Random): Sentence {
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
export function request(random: Random): Sentence {
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
