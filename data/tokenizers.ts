/**
 * The tokenizers of BLEU, equal to sacreBLEU 2.6.0's, its slips included: a score is comparable only where they are.
 *
 * @module
 */
import { splitWords, trim } from "./_metric.ts";

/**
 * How text is split before n-grams are counted: `13a` for languages with spaces (the WMT standard), `zh` for Chinese,
 * `char` by character, `none` at spaces.
 */
export type BleuTokenizer = "13a" | "zh" | "char" | "none";

/** The tokenizers by name. */
export const BLEU_TOKENIZERS: readonly BleuTokenizer[] = ["13a", "zh", "char", "none"];

/** The rules that 13a and zh share: symbols stand alone; full stop and comma too, except between digits. */
function separateSymbols(text: string): string {
  const separated = text
    // { | } ~, [ \ ] ^ _ `, space ! " # $ % &, ( ) * +, : ; < = > ? @, /; not the apostrophe, comma, dash, full stop.
    .replace(/[{-~[-` -&(-+:-@/]/g, " $& ")
    .replace(/([^0-9])([.,])/gu, "$1 $2 ")
    .replace(/([.,])([^0-9])/gu, " $1 $2")
    .replace(/([0-9])(-)/g, "$1 $2 ");
  return splitWords(separated).join(" ");
}

function tokenize13a(text: string): string {
  let line = text.replaceAll("<skipped>", "").replaceAll("-\n", "").replaceAll("\n", " ");
  if (line.includes("&")) {
    line = line.replaceAll("&quot;", '"').replaceAll("&amp;", "&").replaceAll("&lt;", "<").replaceAll(
      "&gt;",
      ">",
    );
  }
  return separateSymbols(` ${line} `);
}

/**
 * What sacreBLEU takes for Chinese. The first range is its slip: meant as U+20000 to U+2A6D6, it reads U+2000 to U+2A6D,
 * so that quotes, dashes and the euro sign count as Chinese and Extension B does not.
 */
const CHINESE = new RegExp(
  "[\\u2001-\\u2a6d\\u2e80-\\u2fdf\\u2ff0-\\u303f\\u3100-\\u312f\\u31a0-\\u31ef\\u3200-\\u4db5\\u4e00-\\u9fbb" +
    "\\uf900-\\ufa2d\\ufa30-\\ufa6a\\ufa70-\\ufad9\\ufe10-\\ufe1f\\ufe30-\\ufe4f\\uff00-\\uffef]",
  "g",
);

/**
 * Splits one line as BLEU does.
 *
 * @returns The tokens with spaces between them; `splitWords` of it gives the list.
 */
export function tokenizeForBleu(text: string, tokenizer: BleuTokenizer): string {
  switch (tokenizer) {
    case "13a":
      return tokenize13a(text);
    case "zh":
      return separateSymbols(trim(text).replace(CHINESE, " $& "));
    case "char":
      return Array.from(text).join(" ");
    case "none":
      return text;
  }
}
