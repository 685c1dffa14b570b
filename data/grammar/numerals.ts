/**
 * Numbers in words, English and Chinese.
 *
 * @module
 */

const SMALL = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen " +
  "eighteen nineteen"
).split(" ");
const TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
const DIGITS = "零一二三四五六七八九";

/** 1 to 9,999 in English: "three hundred and twenty-one". */
export function englishNumber(n: number): string {
  if (n < 20) return SMALL[n] ?? "";
  if (n < 100) return (TENS[Math.floor(n / 10)] ?? "") + (n % 10 > 0 ? `-${SMALL[n % 10]}` : "");
  const [unit, name] = n < 1000 ? [100, "hundred"] as const : [1000, "thousand"] as const;
  const rest = n % unit;
  const joint = rest > 0 && rest < 100 ? " and " : " ";
  return `${englishNumber(Math.floor(n / unit))} ${name}${rest > 0 ? joint + englishNumber(rest) : ""}`;
}

/** 1 to 9,999 in Chinese as used in counting out: 二, 十二, 二十, 两百, 一百零五, 两千三百. */
export function chineseNumber(n: number): string {
  const digit = (value: number): string => DIGITS.charAt(value);
  if (n < 10) return digit(n);
  if (n < 20) return `十${n > 10 ? digit(n - 10) : ""}`;
  if (n < 100) return `${digit(Math.floor(n / 10))}十${n % 10 > 0 ? digit(n % 10) : ""}`;
  const [unit, name] = n < 1000 ? [100, "百"] as const : [1000, "千"] as const;
  const lead = Math.floor(n / unit);
  const rest = n % unit;
  const head = (lead === 2 ? "两" : digit(lead)) + name;
  if (rest === 0) return head;
  // Within a larger number ten is 一十, and a skipped place is 零.
  return head + (rest < unit / 10 ? "零" : "") + (rest >= 10 && rest < 20 ? "一" : "") + chineseNumber(rest);
}

/** A number before a measure word: two is 两, not 二. */
export function chineseCount(n: number): string {
  return n === 2 ? "两" : chineseNumber(n);
}
