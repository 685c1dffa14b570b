/**
 * The text formats of sentence pairs. Pure functions from text to pairs; each error names the file and the line.
 *
 * @module
 */

/** One sentence and its translation. */
export interface SentencePair {
  /** The sentence. */
  source: string;
  /** Its translation. */
  target: string;
}

/** The languages of a corpus, as file names and JSON keys spell them: "en", "zh". */
export interface Languages {
  /** The language translated from. */
  source: string;
  /** The language translated into. */
  target: string;
}

function malformed(name: string, line: number, what: string): SyntaxError {
  return new SyntaxError(`Cannot read ${name} line ${line} as ${what}`);
}

function mustNotBeEmpty(text: string, name: string): void {
  if (text.trim() === "") throw new SyntaxError(`Cannot read ${name} as it must hold sentences: it is empty`);
}

/** Lines of a text; ends in "\n" or "\r\n", and the last may lack it. U+2028 and the like end no line. */
export function splitLines(text: string): string[] {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  return lines.map((line) => line.endsWith("\r") ? line.slice(0, -1) : line);
}

/**
 * UTF-8 bytes as text, without a leading byte order mark.
 *
 * @param name The file's name, for the error.
 * @throws {SyntaxError} If the bytes are no UTF-8; names the first line that is not.
 */
export function decodeUtf8(bytes: Uint8Array, name: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
  }
  let line = 1;
  for (let start = 0; start < bytes.length; line++) {
    const newline = bytes.indexOf(10, start);
    const end = newline < 0 ? bytes.length : newline;
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(start, end));
    } catch {
      break;
    }
    start = end + 1;
  }
  throw malformed(name, line, "it must be UTF-8: the bytes are not");
}

/**
 * Tab-separated pairs: source, tab, target. Further columns are ignored where every line has as many.
 *
 * @throws {SyntaxError} If the text is empty, or a line has one column or not as many as the first.
 */
export function parseTsv(text: string, name: string): SentencePair[] {
  mustNotBeEmpty(text, name);
  let columns = 0;
  return splitLines(text).map((line, i) => {
    const cells = line.split("\t");
    const [source, target] = cells;
    if (source === undefined || target === undefined) {
      throw malformed(name, i + 1, "it must be source, tab, target: there is one column");
    }
    if (i === 0) columns = cells.length;
    if (cells.length !== columns) {
      throw malformed(
        name,
        i + 1,
        `it must have ${columns} columns as line 1 has: there are ${cells.length}`,
      );
    }
    return { source, target };
  });
}

/** Number of newlines before a place in a text, plus 1. */
function lineAt(text: string, position: number): number {
  let line = 1;
  for (let at = text.indexOf("\n"); at >= 0 && at < position; at = text.indexOf("\n", at + 1)) line++;
  return line;
}

/** Where element `index` of a JSON array starts. Used to name a line once the text is known to be JSON. */
function elementPosition(text: string, index: number): number {
  let depth = 0;
  let seen = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (inString) {
      if (char === "\\") i++;
      else if (char === '"') inString = false;
      continue;
    }
    if (depth === 1 && char !== "]" && !/[\s,]/.test(char ?? "") && seen === index) return i;
    if (char === '"') inString = true;
    else if (char === "[" || char === "{") depth++;
    else if (char === "]" || char === "}") depth--;
    else if (char === "," && depth === 1) seen++;
  }
  return text.length;
}

function jsonError(error: unknown, text: string, name: string, firstLine: number): SyntaxError {
  const message = error instanceof Error ? error.message : String(error);
  const position = /position (\d+)/.exec(message)?.[1];
  const line = lineAt(text, position === undefined ? text.trimEnd().length : Number(position));
  const what = message.replace(/ (?:in JSON )?at position.*$/s, "").replace(/, ?(?:\.\.\.)?".*$/s, "");
  return malformed(name, firstLine + line - 1, `it must be JSON: ${what}`);
}

/** A pair from [s, t], {"source", "target"}, or an object keyed by language; undefined where it is none of these. */
function pairFrom(value: unknown, languages: Languages): SentencePair | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  if (Array.isArray(value)) {
    const [source, target]: unknown[] = value;
    return value.length === 2 && typeof source === "string" && typeof target === "string"
      ? { source, target }
      : undefined;
  }
  const record = value as Record<string, unknown>;
  for (const [first, second] of [["source", "target"], [languages.source, languages.target]] as const) {
    const source = Object.hasOwn(record, first) ? record[first] : undefined;
    const target = Object.hasOwn(record, second) ? record[second] : undefined;
    if (typeof source === "string" && typeof target === "string") return { source, target };
  }
  // The layout of the Hugging Face hub: {"translation": {"en": ..., "zh": ...}}.
  return Object.hasOwn(record, "translation") ? pairFrom(record.translation, languages) : undefined;
}

function pairShapes(languages: Languages): string {
  return `[source, target] or an object with "source" and "target", or "${languages.source}" and ` +
    `"${languages.target}"`;
}

/**
 * A JSON array of pairs.
 *
 * @param languages Keys that an element may have in the place of "source" and "target".
 * @throws {SyntaxError} If the text is empty or no JSON, or an element is no pair.
 */
export function parseJson(text: string, name: string, languages: Languages): SentencePair[] {
  mustNotBeEmpty(text, name);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw jsonError(error, text, name, 1);
  }
  if (!Array.isArray(value)) throw malformed(name, 1, "it must be an array of [source, target] pairs");
  if (value.length === 0) {
    throw new SyntaxError(`Cannot read ${name} as it must hold sentences: the array is empty`);
  }
  return value.map((element: unknown, i) => {
    const pair = pairFrom(element, languages);
    if (pair === undefined) {
      const line = lineAt(text, elementPosition(text, i));
      throw malformed(name, line, `element ${i} must be ${pairShapes(languages)}`);
    }
    return pair;
  });
}

/**
 * One JSON value a line; blank lines are skipped.
 *
 * @throws {SyntaxError} If the text is empty, or a line is no JSON or no pair.
 */
export function parseJsonl(text: string, name: string, languages: Languages): SentencePair[] {
  mustNotBeEmpty(text, name);
  const pairs: SentencePair[] = [];
  splitLines(text).forEach((line, i) => {
    if (line.trim() === "") return;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      throw jsonError(error, line, name, i + 1);
    }
    const pair = pairFrom(value, languages);
    if (pair === undefined) throw malformed(name, i + 1, `it must be ${pairShapes(languages)}`);
    pairs.push(pair);
  });
  return pairs;
}

/**
 * Parallel texts: line i of one is the translation of line i of the other.
 *
 * @throws {SyntaxError} If one is empty or they differ in length; gives both numbers of lines.
 */
export function parseParallel(
  source: { text: string; name: string },
  target: { text: string; name: string },
): SentencePair[] {
  mustNotBeEmpty(source.text, source.name);
  mustNotBeEmpty(target.text, target.name);
  const sources = splitLines(source.text);
  const targets = splitLines(target.text);
  if (sources.length !== targets.length) {
    throw new SyntaxError(
      `Cannot pair ${source.name} with ${target.name} as they must have equally many lines: there are ` +
        `${sources.length} and ${targets.length}`,
    );
  }
  return sources.map((line, i) => ({ source: line, target: targets[i] ?? "" }));
}
