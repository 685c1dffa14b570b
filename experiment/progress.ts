/**
 * Progress of long work: a bar with the time left on a terminal, plain lines elsewhere.
 *
 * @module
 */

import { noteRaw, seconds } from "./cli.ts";

const BAR_WIDTH = 24;

// Chinese characters and full-width forms take two columns.
const WIDE =
  /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\u{20000}-\u{3ffff}]/u;

/** Cuts `text` to `columns` terminal columns. */
function clip(text: string, columns: number): string {
  let width = 0;
  let kept = "";
  for (const character of text) {
    width += WIDE.test(character) ? 2 : 1;
    if (width > columns) break;
    kept += character;
  }
  return kept;
}

/** A counter of work done, drawn on standard error where that is a terminal. */
export class Progress {
  readonly #start = performance.now();
  readonly #tty = Deno.stderr.isTerminal();
  #drawn = false;
  #lastDraw = -Infinity;
  #done = 0;
  #skipped = 0;

  /**
   * @param label What is being done, in a word or two.
   * @param total Units of work in all.
   * @param done Units already done before this run: they count for the bar, not for the estimate of the time left.
   */
  constructor(readonly label: string, public total: number, done = 0) {
    this.#done = done;
    this.#skipped = done;
  }

  /** Whether a bar is drawn; where not, the caller prints lines. */
  get live(): boolean {
    return this.#tty;
  }

  /** Sets the work done so far and redraws, at most ten times a second. */
  update(done: number, detail = ""): void {
    this.#done = done;
    const now = performance.now();
    if (!this.#tty || now - this.#lastDraw < 100) return;
    this.#lastDraw = now;
    this.#draw(now, detail);
  }

  #draw(now: number, detail: string): void {
    const share = this.total > 0 ? Math.min(1, this.#done / this.total) : 1;
    const filled = Math.round(share * BAR_WIDTH);
    const elapsed = (now - this.#start) / 1000;
    const fresh = this.#done - this.#skipped;
    const left = fresh > 0 ? (elapsed / fresh) * Math.max(0, this.total - this.#done) : NaN;
    const eta = Number.isFinite(left) ? `  ${seconds(left)} left` : "";
    const bar = "#".repeat(filled) + "-".repeat(BAR_WIDTH - filled);
    let columns = 100;
    try {
      columns = Deno.consoleSize().columns || columns;
    } catch {
      // Not every terminal tells its size.
    }
    const percent = `${Math.floor(share * 100)}`.padStart(3);
    const line = `${this.label} [${bar}] ${percent} % ${this.#done}/${this.total}${eta}  ${detail}`;
    noteRaw(`\r\x1b[2K${clip(line, columns - 1)}`);
    this.#drawn = true;
  }

  /** Takes the bar away, so that a line can be printed; the next update draws it again. */
  clear(): void {
    if (this.#drawn) noteRaw("\r\x1b[2K");
    this.#drawn = false;
    this.#lastDraw = -Infinity;
  }
}
