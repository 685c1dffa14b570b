/**
 * Sentences with numbers: age, price, hour, amount.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { CITIES, PEOPLE, PLACES } from "./lexicon.ts";
import { chineseCount, chineseNumber, englishNumber } from "./numerals.ts";
import { choose, clock, duration, inGroup, shortSubject, thingSubject, weekday } from "./phrases.ts";
import { be, question, type Sentence, statement } from "./sentence.ts";

/** Age, price, hour, day. */
export function figures(random: Random): Sentence {
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
export function amounts(random: Random): Sentence {
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
