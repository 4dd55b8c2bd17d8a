// What the policy said: the untrained model's episodes beside those of a later step, with their rewards.

import { get } from "../api.js";
import { h, setText } from "../dom.js";
import { number } from "../format.js";
import { guarded } from "../live.js";
import { conversation } from "./messages.js";

const PER_SIDE = 24;

export function samples(root, { path }) {
  const left = side("step-left", "Earlier episodes", 1);
  const right = side("step-right", "Later episodes", null);
  const order = h("select", { id: "order" }, [["", "as played"], ["best", "best reward first"], ["worst", "worst reward first"]]
    .map(([value, label]) => h("option", { value }, label)));
  root.append(
    h("div", { class: "title" }, h("label", { for: "order" }, "Order"), order),
    h("div", { class: "sides" }, left.node, right.node));
  let newest = 0;

  const load = (one) => guarded(async () => {
    const step = Number(one.step.value);
    if (!step) return;
    const { episodes } = await get(`${path}/trajectories?step=${step}&limit=${PER_SIDE}`);
    one.episodes = episodes;
    draw(one, order.value);
  });
  for (const one of [left, right]) one.step.addEventListener("change", () => load(one));
  order.addEventListener("change", () => [left, right].forEach((one) => draw(one, order.value)));
  load(left);

  return {
    async update(job) {
      if (job.progress.current_step === newest) return;
      const following = !right.step.value || Number(right.step.value) === newest;
      newest = job.progress.current_step;
      for (const one of [left, right]) one.step.max = String(newest);
      if (following) right.step.value = String(newest);
      await Promise.all([following ? load(right) : null, left.episodes.length ? null : load(left)]);
    },
  };
}

function side(id, label, step) {
  const input = h("input", { id, type: "number", min: 1, value: step, class: "short" });
  const heading = h("h2");
  const summary = h("p", { class: "muted" });
  const list = h("div", { class: "episodes" });
  const node = h("section", { class: "card", "aria-label": label },
    h("div", { class: "title" }, heading, h("span", { class: "grow" }), h("label", { for: id }, "Step"), input),
    summary, list);
  return { node, step: input, heading, summary, list, episodes: [] };
}

function draw({ episodes, step, heading, summary, list }, order) {
  // The episodes of a step are played before its update.
  const updates = Number(step.value) - 1;
  setText(heading, updates > 0 ? `After ${updates} update${updates > 1 ? "s" : ""}` : "Untrained model");
  setText(summary, episodes.length ? `${episodes.length} episode${episodes.length > 1 ? "s" : ""}, mean reward ${number(meanReward(episodes))}` : "No episodes of this step yet");
  const direction = { best: -1, worst: 1 }[order] ?? 0;
  const groups = [...Map.groupBy(episodes, (e) => e.group_id).values()]
    .sort((a, b) => direction * (meanReward(a) - meanReward(b)));
  list.replaceChildren(...groups.flatMap((group) => [
    h("h3", {}, group[0].task.messages.at(-1)?.content ?? group[0].task.task_id),
    ...[...group].sort((a, b) => direction * (rewardOf(a) - rewardOf(b))).map(episode),
  ]));
}

const rewardOf = (e) => e.episode.reward ?? 0;
const meanReward = (episodes) => episodes.reduce((sum, e) => sum + rewardOf(e), 0) / episodes.length;

function episode({ task, episode: played, generation }) {
  const parts = Object.entries(played.breakdown ?? {}).map(([name, value]) => `${name} ${number(value)}`).join(" · ");
  const reply = played.messages.findLast((m) => m.role === "assistant")?.content ?? "";
  return h("details", {},
    h("summary", {},
      h("span", { class: "reward", "data-good": String((played.reward ?? 0) > 0) }, number(played.reward)),
      h("span", { class: "clip" }, reply || "(said nothing)")),
    h("div", { class: "talk" }, conversation(played.messages)),
    h("p", { class: "muted" }, `${parts || "no reward"} · try ${generation + 1}`,
      played.truncated ? " · cut off" : "", task.answer ? ` · wanted ${task.answer}` : ""));
}
