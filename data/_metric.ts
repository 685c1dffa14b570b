/**
 * What BLEU and chrF share: Python's idea of white space and of printing numbers, references, signatures and bootstrap
 * confidence intervals, all as sacreBLEU 2.6.0 has them.
 *
 * @module
 */
import { Random } from "./random.ts";

/** Version printed in signatures: equal in result to sacreBLEU 2.6.0, but not it. */
const VERSION = "2.6.0-compat";

/** What Python's str.split() and str.strip() take for white space; JavaScript's \s lacks 1C-1F and 85 and adds FEFF. */
const SPACES = "\\x09-\\x0d\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const SPACE = new RegExp(`[${SPACES}]`);
const SPACE_RUN = new RegExp(`[${SPACES}]+`);

/** Words between white space, as Python's split(). */
export function splitWords(text: string): string[] {
  return text.split(SPACE_RUN).filter((word) => word !== "");
}

/** Without white space at the end, as Python's rstrip(). */
export function trimEnd(text: string): string {
  let end = text.length;
  while (end > 0 && SPACE.test(text.charAt(end - 1))) end--;
  return text.slice(0, end);
}

/** Without white space at both ends, as Python's strip(). */
export function trim(text: string): string {
  let start = 0;
  while (start < text.length && SPACE.test(text.charAt(start))) start++;
  return trimEnd(text.slice(start));
}

/** A number with fixed digits as Python prints it: a tie goes to the even digit, where toFixed() goes up. */
export function fixed(value: number, digits: number): string {
  const scale = 10 ** digits;
  const scaled = Math.abs(value) * scale;
  // Only numbers that end in 5 in binary as in decimal are ties; for them this product is exact.
  if (scaled < 2 ** 40 && scaled % 1 === 0.5 && (Math.abs(value) * 1024) % 1 === 0) {
    const floor = Math.floor(scaled);
    return (Math.sign(value) * (floor + floor % 2) / scale).toFixed(digits);
  }
  return value.toFixed(digits);
}

/** Counts of a list's values. */
export function countAll(values: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

/**
 * References: one for each hypothesis; or several sets, each with one for each hypothesis, where null stands for none.
 */
export type References = readonly string[] | readonly (readonly (string | null)[])[];

/** The references of each segment, and their number ("var" where it varies). */
export function gatherReferences(
  hypotheses: readonly string[],
  references: References,
): { segments: string[][]; count: number | "var" } {
  const isOneSet = references.every((entry) => typeof entry === "string");
  const sets =
    (isOneSet && references.length + hypotheses.length > 0 ? [references] : references) as readonly (
      readonly (string | null)[]
    )[];
  for (const set of sets) {
    if (set.length !== hypotheses.length) {
      throw new RangeError(
        `Cannot score a translation as there must be a reference for each hypothesis: there are ` +
          `${hypotheses.length} hypotheses and ${set.length} references`,
      );
    }
  }
  const segments = hypotheses.map((_, i) =>
    sets.map((set) => set[i]).filter((text) => typeof text === "string")
  );
  const empty = segments.findIndex((segment) => segment.length === 0);
  if (empty >= 0) {
    throw new RangeError(
      `Cannot score a translation as each segment needs a reference: segment ${empty + 1} has none`,
    );
  }
  const counts = new Set(segments.map((segment) => segment.length));
  const [first] = counts;
  return { segments, count: counts.size > 1 ? "var" : first ?? sets.length };
}

/** Sum of equally long rows of numbers. */
export function sumRows(rows: readonly (readonly number[])[], length: number): number[] {
  const sum = new Array<number>(length).fill(0);
  for (const row of rows) for (let i = 0; i < length; i++) sum[i] = (sum[i] ?? 0) + (row[i] ?? 0);
  return sum;
}

/** Bootstrap resampling of the segments (Koehn 2004). */
export interface BootstrapOptions {
  /** Number of resamples; 0 for none. Default 0. */
  bootstrap?: number;
  /** Default 12345. The generator is this project's, so the interval differs from sacreBLEU's by its noise. */
  seed?: number;
}

/** A confidence interval of 95 %: mean and half width. */
export interface Confidence {
  /** Mean of the resampled scores. */
  mean: number;
  /** Half the width of the interval. */
  margin: number;
}

/** Scores resampled segments. Undefined where none are asked for. */
export function bootstrapConfidence(
  rows: readonly (readonly number[])[],
  length: number,
  score: (sum: number[]) => number,
  options: BootstrapOptions,
): Confidence | undefined {
  const { bootstrap = 0, seed = 12345 } = options;
  if (bootstrap < 2 || rows.length === 0) return undefined;
  const random = new Random(seed);
  const scores = Float64Array.from({ length: bootstrap }, () => {
    const sample = rows.map(() => rows[random.int(rows.length)] ?? []);
    return score(sumRows(sample, length));
  }).sort();
  const lowest = Math.floor(bootstrap / 40);
  const margin = ((scores[bootstrap - lowest - 1] ?? 0) - (scores[lowest] ?? 0)) / 2;
  return { mean: scores.reduce((sum, value) => sum + value, 0) / bootstrap, margin };
}

const SHORT: Record<string, string> = {
  nrefs: "#",
  seed: "rs",
  case: "c",
  eff: "e",
  smooth: "s",
  space: "s",
};

/** The signature, long and short, that states how a score was computed. */
export function signatures(
  entries: Record<string, string | number>,
  nrefs: number | "var",
  options: BootstrapOptions,
): { signature: string; shortSignature: string } {
  const { bootstrap = 0, seed = 12345 } = options;
  const all = { nrefs, ...(bootstrap > 1 ? { bs: bootstrap, seed } : {}), ...entries };
  const pairs = Object.entries(all);
  return {
    signature: [...pairs.map(([key, value]) => `${key}:${value}`), `version:${VERSION}`].join("|"),
    shortSignature: [...pairs.map(([key, value]) => `${SHORT[key] ?? key}:${value}`), `v:${VERSION}`].join(
      "|",
    ),
  };
}

/** "57.31" or "57.31 (μ = 57.30 ± 0.90)". */
export function scoreText(score: number, confidence: Confidence | undefined): string {
  if (confidence === undefined || confidence.mean <= 0) return fixed(score, 2);
  return `${fixed(score, 2)} (μ = ${fixed(confidence.mean, 2)} ± ${fixed(confidence.margin, 2)})`;
}
