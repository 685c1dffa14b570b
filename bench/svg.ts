/**
 * Line charts as SVG text: axes with units, a legend, one panel beside another. No dependencies, no scripts inside.
 *
 * @module
 */

/** One line of a chart. */
export interface Series {
  /** Its name in the legend. */
  name: string;
  /** Points, by rising x. */
  points: readonly (readonly [number, number])[];
  /** Drawn thin and dashed: a peer, not one of ours. */
  faint?: boolean;
}

/** A chart. */
export interface Panel {
  /** Above it. */
  title: string;
  /** Label with unit. */
  x: string;
  /** Label with unit, and which direction is better. */
  y: string;
  /** Lines. */
  series: readonly Series[];
  /** Logarithmic y axis. */
  log?: boolean;
}

const WIDTH = 460;
const HEIGHT = 340;
const MARGIN = { left: 62, right: 14, top: 30, bottom: 44 };
// Okabe and Ito's palette, told apart by colour-blind readers too.
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#000000"];

/** Panels side by side under one title, with one legend; colours follow the names, the same in every panel. */
export function charts(title: string, panels: readonly Panel[], columns = 2): string {
  const names = [...new Set(panels.flatMap((panel) => panel.series.map((series) => series.name)))];
  const rows = Math.ceil(panels.length / columns);
  const width = Math.min(columns, panels.length) * WIDTH;
  const legendTop = 34 + rows * HEIGHT;
  const perLine = Math.max(1, Math.floor(width / 180));
  const height = legendTop + 22 * Math.ceil(names.length / perLine) + 8;
  const faint = new Set(panels.flatMap((panel) => panel.series.filter((s) => s.faint).map((s) => s.name)));
  const style = (name: string): string => {
    const color = COLORS[names.indexOf(name) % COLORS.length];
    return `stroke="${color}" stroke-width="${faint.has(name) ? 1.3 : 2.2}"` +
      (faint.has(name) ? ` stroke-dasharray="5 3"` : "");
  };
  const drawn = panels.map((panel, index) => {
    const [x, y] = [(index % columns) * WIDTH, 30 + Math.floor(index / columns) * HEIGHT];
    return `<g transform="translate(${x} ${y})">${drawPanel(panel, style)}</g>`;
  });
  const legend = names.map((name, index) => {
    const [x, y] = [20 + (index % perLine) * 180, legendTop + 22 * Math.floor(index / perLine)];
    return `<path d="M${x} ${y}h26" fill="none" ${style(name)}/>` + text(x + 32, y + 4, name, "start");
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n` +
    text(width / 2, 20, title, "middle", `font-size="15" font-weight="bold"`) + "\n" +
    [...drawn, ...legend].join("\n") + "\n</svg>\n";
}

function escape(words: string): string {
  return words.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}

function text(x: number, y: number, words: string, anchor: string, more = ""): string {
  return `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}" fill="#222" ${more}>${
    escape(words)
  }</text>`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

/** Round numbers that divide [low, high] into about `count` parts. */
export function ticks(low: number, high: number, count: number): number[] {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough) ?? rough;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low: number, high: number): number[] {
  const decades = ticks(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)), 99).filter(
    Number.isInteger,
  );
  return decades.flatMap((decade) => [1, 2, 5].map((digit) => digit * 10 ** decade))
    .filter((tick) => tick >= low && tick <= high);
}

interface Axis {
  /** Pixel of a value. */
  at: (value: number) => number;
  marks: number[];
}

function axis(values: readonly number[], from: number, to: number, log: boolean): Axis {
  const finite = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  let [low, high] = [Math.min(...finite), Math.max(...finite)];
  if (finite.length === 0) [low, high] = [log ? 1 : 0, 1];
  if (log) {
    const span = Math.log(high / low) || 1;
    const at = (value: number): number =>
      from + ((to - from) * (0.03 + 0.94 * (Math.log(value / low) / span)));
    return { at, marks: logTicks(low, high) };
  }
  const marks = ticks(Math.min(0, low), high * 1.02 || 1, 6);
  const [begin, end] = [Math.min(0, low), Math.max(high * 1.02, marks.at(-1) ?? 1) || 1];
  return { at: (value) => from + ((to - from) * (value - begin)) / (end - begin), marks };
}

function drawPanel(panel: Panel, style: (name: string) => string): string {
  const [left, right] = [MARGIN.left, WIDTH - MARGIN.right];
  const [top, bottom] = [MARGIN.top, HEIGHT - MARGIN.bottom];
  const points = panel.series.flatMap((series) => series.points);
  const x = axis(points.map(([value]) => value), left, right, false);
  const y = axis(points.map(([, value]) => value), bottom, top, panel.log === true);
  const grid = [
    ...x.marks.map((mark) => {
      const px = round(x.at(mark));
      return `<path d="M${px} ${top}V${bottom}" stroke="#eee"/>` + text(px, bottom + 16, `${mark}`, "middle");
    }),
    ...y.marks.map((mark) => {
      const py = round(y.at(mark));
      return `<path d="M${left} ${py}H${right}" stroke="#eee"/>` + text(left - 6, py + 4, `${mark}`, "end");
    }),
  ];
  const lines = panel.series.map(({ name, points }) => {
    const visible = points.filter(([, value]) => Number.isFinite(value) && (panel.log !== true || value > 0));
    const path = visible.map(([px, py]) => `${round(x.at(px))} ${round(y.at(py))}`).join("L");
    if (path === "") return "";
    const dots = visible.length > 30
      ? ""
      : visible.map(([px, py]) =>
        `<circle cx="${round(x.at(px))}" cy="${round(y.at(py))}" r="2.4" fill="#fff" ${style(name)}/>`
      ).join("");
    return `<path d="M${path}" fill="none" ${style(name)}/>${dots}`;
  });
  return grid.join("") + `<path d="M${left} ${top}V${bottom}H${right}" fill="none" stroke="#444"/>` +
    lines.join("") +
    text((left + right) / 2, 20, panel.title, "middle", `font-weight="bold"`) +
    text((left + right) / 2, HEIGHT - 10, panel.x, "middle") +
    text(0, 0, panel.y, "middle", `transform="translate(14 ${(top + bottom) / 2}) rotate(-90)"`);
}
