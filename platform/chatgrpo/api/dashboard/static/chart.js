// A line chart as SVG. Points under the mouse, or chosen with the arrow keys, are read out below it.

import { h, setText, svg } from "./dom.js";
import { number } from "./format.js";
import { extent, thin, ticks } from "./ticks.js";

const HEIGHT = 200;
const EDGE = { top: 10, right: 12, bottom: 24, left: 46 };

/** `title` and `empty` (what to say when there is nothing to draw) are fixed; `update(series)` draws.
 *  series: [{name, points: [[x, y]...], faint, dots}]; colours follow their order, `color` overrides. */
export function chart(title, { empty = "No data yet", tall = false } = {}) {
  const height = tall ? 340 : HEIGHT;
  const plot = h("div", { class: "plot", tabindex: "0", role: "img" });
  const readout = h("p", { class: "readout", role: "status" });
  const legend = h("p", { class: "legend" });
  const node = h("figure", { class: "chart" }, h("figcaption", {}, title, legend), plot, readout);
  let series = [];
  let at = null;

  const draw = () => {
    const width = Math.max(260, plot.clientWidth || 360);
    const drawn = series.filter((s) => s.points.length);
    plot.setAttribute("aria-label", describe(title, drawn, empty));
    if (!drawn.length) {
      plot.replaceChildren(h("p", { class: "empty" }, empty));
      setText(readout, "");
      return;
    }
    const frame = frameOf(drawn, width, height);
    plot.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      axes(frame), drawn.map((s) => line(s, frame)), at === null ? null : cursor(at, frame)));
    setText(readout, at === null ? "" : readAt(drawn, at));
  };

  const choose = (x) => {
    at = x;
    draw();
  };
  plot.addEventListener("pointermove", (event) => {
    const drawn = series.filter((s) => s.points.length);
    if (!drawn.length) return;
    const frame = frameOf(drawn, Math.max(260, plot.clientWidth), height);
    const x = frame.invert(event.clientX - plot.getBoundingClientRect().left);
    choose(nearest(steps(drawn), x));
  });
  plot.addEventListener("pointerleave", () => choose(null));
  plot.addEventListener("blur", () => choose(null));
  plot.addEventListener("keydown", (event) => {
    const known = steps(series);
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || !known.length) return;
    event.preventDefault();
    const from = at === null ? (move > 0 ? -1 : known.length) : known.indexOf(at);
    choose(known[Math.min(known.length - 1, Math.max(0, from + move))]);
  });
  const resized = new ResizeObserver(draw);
  resized.observe(plot);

  const update = (next) => {
    series = next.map((s, i) => ({ color: i % 6, ...s }));
    const shown = series.filter((s) => !s.faint);
    legend.replaceChildren(...(shown.length > 1
      ? shown.map((s) => h("span", { class: `key s${s.color}` }, s.name)) : []));
    draw();
  };
  return { node, update, stop: () => resized.disconnect() };
}

function frameOf(drawn, width, height) {
  const points = drawn.flatMap((s) => s.points);
  const xs = points.map((p) => p[0]);
  const x0 = xs.reduce((a, b) => Math.min(a, b));
  const x1 = Math.max(xs.reduce((a, b) => Math.max(a, b)), x0 + 1);
  const [y0, y1] = extent(points.map((p) => p[1]));
  const inner = width - EDGE.left - EDGE.right;
  const low = height - EDGE.bottom;
  return {
    width, height, low, x0, x1, y0, y1, inner,
    x: (value) => EDGE.left + ((value - x0) / (x1 - x0)) * inner,
    y: (value) => low - ((value - y0) / (y1 - y0)) * (low - EDGE.top),
    invert: (pixel) => x0 + ((pixel - EDGE.left) / inner) * (x1 - x0),
  };
}

function axes(frame) {
  const across = ticks(frame.y0, frame.y1, 4).map((value) => svg("g", {},
    svg("line", { class: "grid", x1: EDGE.left, x2: frame.width - EDGE.right, y1: frame.y(value), y2: frame.y(value) }),
    svg("text", { class: "tick", x: EDGE.left - 6, y: frame.y(value) + 4, "text-anchor": "end" }, number(value))));
  const along = ticks(frame.x0, frame.x1, Math.max(2, Math.floor(frame.inner / 70))).filter(Number.isInteger)
    .map((value) => svg("text", {
      class: "tick", x: frame.x(value), y: frame.height - 7, "text-anchor": "middle",
    }, number(value)));
  return [...across, ...along];
}

function line({ points, color, faint, dots }, frame) {
  const shown = thin(points, 2 * frame.inner);
  const path = shown.map(([x, y], i) => `${i ? "L" : "M"}${frame.x(x).toFixed(1)} ${frame.y(y).toFixed(1)}`).join("");
  const single = dots || shown.length === 1;
  return svg("g", { class: `series s${color}${faint ? " faint" : ""}` }, svg("path", { d: path }),
    single ? shown.map(([x, y]) => svg("circle", { cx: frame.x(x), cy: frame.y(y), r: 3 })) : null);
}

function cursor(x, frame) {
  return svg("line", { class: "cursor", x1: frame.x(x), x2: frame.x(x), y1: EDGE.top, y2: frame.low });
}

const steps = (series) => [...new Set(series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);

function nearest(values, x) {
  return values.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
}

function readAt(series, x) {
  const found = series.flatMap((s) => s.points.filter((p) => p[0] === x).map((p) => `${s.name} ${number(p[1])}`));
  return `step ${x}: ${found.join(", ")}`;
}

function describe(title, drawn, empty) {
  if (!drawn.length) return `${title}: ${empty}`;
  const told = drawn.filter((s) => !s.faint).map(({ name, points }) => {
    const [first, last] = [points[0], points.at(-1)];
    return `${name} goes from ${number(first[1])} at step ${first[0]} to ${number(last[1])} at step ${last[0]}`;
  });
  return `Line chart ${title}: ${told.join("; ")}. Arrow keys read single steps.`;
}
