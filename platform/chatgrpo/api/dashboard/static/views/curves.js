// What a run learns, step by step: the figures in which reinforcement learning fails quietly.

import { get } from "../api.js";
import { chart } from "../chart.js";
import { h } from "../dom.js";
import { smooth } from "../ticks.js";

// [title, figures drawn together, what to say when the run does not report them]
export const CHARTS = [
  ["Reward", ["reward", "eval_reward"], "The first step has not ended yet"],
  ["KL to the reference", ["kl"], "Measured when beta is above 0"],
  ["Completion length, tokens", ["completion_length"]],
  ["Entropy, nats a token", ["entropy"]],
  ["Share of groups that teach nothing", ["zero_variance_groups"]],
  ["Share of replies cut off", ["truncated"]],
  ["Clipped ratios", ["clip_fraction_low", "clip_fraction_high"]],
  ["Gradient norm", ["grad_norm"]],
  ["Seconds a step", ["time/rollout_s", "time/update_s", "time/step_s"]],
  ["Tokens a second while generating", ["rollout/tokens_per_s"]],
];
const NAMES = { reward: "training", eval_reward: "held-out", clip_fraction_low: "low", clip_fraction_high: "high",
  "time/rollout_s": "rollout", "time/update_s": "update", "time/step_s": "step" };
// From so many steps on a noisy reward is easier read as a moving average, with the raw values behind it.
const SMOOTH_FROM = 30;

/** [[step, value]...] of one figure. */
export function pointsOf(lines, figure) {
  return lines.filter((l) => Number.isFinite(l[figure])).map((l) => [l.step, l[figure]]);
}

/** Follows the steps of a run: each call asks for the new ones only and returns all. */
export function follower(path) {
  const bySteps = new Map();
  let last = -1;
  return async () => {
    // The newest line is asked for again: a step gets its evaluation after its training figures.
    const { steps } = await get(`${path}/metrics?after_step=${Math.max(-1, last - 1)}`);
    for (const line of steps) {
      bySteps.set(line.step, line);
      last = Math.max(last, line.step);
    }
    return [...bySteps.values()];
  };
}

export function curves(root, { path }) {
  const steps = follower(path);
  const charts = CHARTS.map(([title, figures, empty]) => ({ figures, drawn: chart(title, { empty }) }));
  root.append(h("div", { class: "charts" }, charts.map((c) => c.drawn.node)));
  return {
    async update() {
      const lines = await steps();
      for (const { figures, drawn } of charts) drawn.update(figures.flatMap((f, i) => seriesOf(lines, f, i)));
    },
    stop: () => charts.forEach((c) => c.drawn.stop()),
  };
}

function seriesOf(lines, figure, color) {
  const points = pointsOf(lines, figure);
  const name = NAMES[figure] ?? figure;
  const dots = figure === "eval_reward";
  if (figure !== "reward" || points.length < SMOOTH_FROM) return [{ name, points, color, dots }];
  return [{ name: "raw", points, color, faint: true }, { name: `${name}, smoothed`, points: smooth(points), color }];
}
