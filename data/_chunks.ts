/**
 * How text is cut before any merge: BPE never joins across a space, nor across kinds of characters.
 *
 * @module
 */

const OTHER = 0;
const LETTER = 1;
const UNSPACED = 2;
const DIGIT = 3;
/** Combining marks, joiners and variation selectors: they belong to whatever stands before them. */
const INHERIT = 4;

let table: Uint8Array | undefined;

function buildTable(): Uint8Array {
  const classes = new Uint8Array(65536);
  for (let code = 0; code < 65536; code++) {
    const char = String.fromCharCode(code);
    if (/\p{M}|\u200d/u.test(char)) classes[code] = INHERIT;
    else if (/\p{Script=Han}|\p{Script=Hiragana}|\p{Script=Katakana}/u.test(char)) classes[code] = UNSPACED;
    else if (/\p{L}/u.test(char)) classes[code] = LETTER;
    else if (/\p{Nd}/u.test(char)) classes[code] = DIGIT;
  }
  return classes;
}

/**
 * Normalisation before BPE: runs of ASCII white space become one space, the ends are trimmed, lone surrogates become
 * U+FFFD. Nothing else changes: full-width punctuation and the ideographic space stay as they are.
 */
export function collapse(text: string): string {
  // The test costs less than the replacement, and most lines are clean.
  const clean = /[\t-\r]|^ | $| {2}/.test(text)
    ? text.replace(/[\t-\r ]+/g, " ").replace(/^ | $/g, "")
    : text;
  return clean.isWellFormed() ? clean : clean.toWellFormed();
}

/**
 * Calls `visit` with each chunk of a collapsed text, in order; together they are the text. A chunk is an optional
 * space and a run of one kind: letters (an apostrophe between letters counts as one), characters of scripts written
 * without spaces, digits, or the rest.
 *
 * @param limit Longest chunk in UTF-16 code units (it may be exceeded by one, never inside a surrogate pair).
 */
export function forEachChunk(text: string, limit: number, visit: (chunk: string) => void): void {
  table ??= buildTable();
  const classes = table;
  const length = text.length;
  let start = 0;
  while (start < length) {
    let end = start;
    if (text.charCodeAt(end) === 32) end++;
    let kind = -1;
    while (end < length && (end - start < limit || kind < 0)) {
      const code = text.charCodeAt(end);
      if (code === 32) break;
      const high = code >= 0xd800 && code < 0xdc00;
      // Of the planes above the first, only 2 and 3 (Han extensions: high surrogates d840 to d8bf) are told apart.
      let next = high ? (code >= 0xd840 && code < 0xd8c0 ? UNSPACED : OTHER) : classes[code] ?? OTHER;
      if (
        kind === LETTER && (code === 39 || code === 0x2019) && classes[text.charCodeAt(end + 1)] === LETTER
      ) {
        next = LETTER;
      }
      if (next === INHERIT) next = kind < 0 ? OTHER : kind;
      if (kind < 0) kind = next;
      else if (next !== kind) break;
      end += high ? 2 : 1;
    }
    visit(text.slice(start, end));
    start = end;
  }
}
