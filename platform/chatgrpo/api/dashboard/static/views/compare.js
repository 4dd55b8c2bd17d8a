// Several runs in one picture: a curve each, their last figures, and the settings in which they differ.

import { get } from "../api.js";
import { chart } from "../chart.js";
import { h, table } from "../dom.js";
import { number } from "../format.js";
import { guarded, poll } from "../live.js";
import { follower, pointsOf } from "./curves.js";

const FIGURES = ["reward", "eval_reward", "kl", "completion_length", "entropy", "zero_variance_groups", "truncated",
  "grad_norm", "time/step_s", "rollout/tokens_per_s"];
const MOST = 6;

export function show(root, { query }) {
  const chosen = new Set((query.get("jobs") ?? "").split(",").filter(Boolean));
  const runs = new Map();
  const figure = h("select", { id: "figure" }, FIGURES.map((f) => h("option", { value: f }, f)));
  const choices = h("fieldset", { class: "choices" }, h("legend", {}, `Runs (at most ${MOST})`));
  const drawn = chart("Comparison", { empty: "Choose runs on the left", tall: true });
  const last = h("div");
  const differences = h("div");
  root.append(h("div", { class: "title" }, h("h1", {}, "Compare runs"), h("span", { class: "grow" }),
    h("label", { for: "figure" }, "Figure"), figure),
  h("div", { class: "beside" }, choices, h("div", {}, drawn.node, last, differences)));

  const draw = () => {
    const shown = [...chosen].filter((id) => runs.has(id)).map((id) => runs.get(id));
    drawn.update(shown.map(({ job, lines }) => ({ name: job.experiment_name || job.job_id, points: pointsOf(lines, figure.value), dots: figure.value === "eval_reward" })));
    last.replaceChildren(...(shown.length ? [lastFigures(shown)] : []));
    differences.replaceChildren(...(shown.length > 1 ? [settings(shown)] : []));
  };
  const load = async (id) => {
    const path = `/api/v2/jobs/${encodeURIComponent(id)}`;
    if (!runs.has(id)) runs.set(id, { steps: follower(path), lines: [], job: await get(path) });
    const run = runs.get(id);
    run.lines = await run.steps();
  };
  const toggle = (id, on) => {
    if (on) chosen.add(id);
    else chosen.delete(id);
    history.replaceState(null, "", `#/compare?jobs=${[...chosen].map(encodeURIComponent).join(",")}`);
    for (const box of choices.querySelectorAll("input")) box.disabled = chosen.size >= MOST && !box.checked;
    guarded(async () => {
      if (on) await load(id);
      draw();
    });
  };
  figure.addEventListener("change", draw);
  guarded(async () => {
    const { jobs } = await get("/api/v2/jobs?limit=100");
    choices.append(...jobs.map((job) => h("label", {}, h("input", {
      type: "checkbox", checked: chosen.has(job.job_id), onchange: (event) => toggle(job.job_id, event.target.checked),
    }), h("span", {}, job.experiment_name || job.job_id, h("small", { class: "muted block mono" }, job.job_id)))));
  });
  const stop = poll(async () => {
    await Promise.all([...chosen].slice(0, MOST).map(load));
    draw();
  }, 5000);
  return () => {
    stop();
    drawn.stop();
  };
}

function lastFigures(shown) {
  const found = table("Last figures", ["Run", ...FIGURES]);
  for (const { job, lines } of shown) {
    found.body.append(h("tr", {}, h("th", { scope: "row", class: "name" }, job.experiment_name || job.job_id),
      FIGURES.map((f) => h("td", { class: "num" }, number(pointsOf(lines, f).at(-1)?.[1])))));
  }
  return h("section", {}, h("h2", {}, "Last figures"), found.node);
}

function settings(shown) {
  const flat = shown.map(({ job }) => flatten(job.config ?? {}));
  const names = [...new Set(flat.flatMap(Object.keys))].filter((n) => new Set(flat.map((c) => c[n])).size > 1).sort();
  const found = table("Settings that differ", ["Setting", ...shown.map(({ job }) => h("span", { class: "clip name", title: job.experiment_name }, job.experiment_name || job.job_id))]);
  for (const name of names) {
    found.body.append(h("tr", {}, h("th", { scope: "row", class: "mono" }, name), flat.map((c) => h("td", {}, c[name] ?? "–"))));
  }
  return h("section", {}, h("h2", {}, "Settings that differ"), names.length ? found.node : h("p", { class: "muted" }, "None"));
}

function flatten(value, prefix = "") {
  if (typeof value === "number" && !Number.isInteger(value)) return { [prefix]: String(Number(value.toPrecision(6))) };
  if (value === null || typeof value !== "object") return { [prefix]: String(value) };
  return Object.assign({}, ...Object.entries(value).map(([k, v]) => flatten(v, prefix ? `${prefix}.${k}` : k)));
}
