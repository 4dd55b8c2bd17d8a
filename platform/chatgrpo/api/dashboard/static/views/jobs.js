// All jobs, newest first.

import { get } from "../api.js";
import { badge } from "../badge.js";
import { h, keyed, setText, table } from "../dom.js";
import { ago, duration, number, percent } from "../format.js";
import { poll } from "../live.js";

export function show(root) {
  const list = table("Jobs, newest first", ["Job", "State", "Progress", "Reward", "Held-out", "Length", "Submitted", ""]);
  const none = h("p", { class: "card empty", hidden: true }, "No job yet. ",
    h("a", { href: "#/new" }, "Start the first one"), ": a small model learns to add within minutes.");
  const filter = h("select", { id: "state" }, h("option", { value: "" }, "all states"),
    ["queued", "running", "paused", "succeeded", "failed", "cancelled"].map((s) => h("option", { value: s }, s)));
  root.append(
    h("div", { class: "title" }, h("h1", {}, "Jobs"), h("span", { class: "grow" }),
      h("label", { for: "state" }, "Show"), filter),
    list.node, none);

  const refresh = async () => {
    const query = filter.value ? `&state=${filter.value}` : "";
    const { jobs } = await get(`/api/v2/jobs?limit=200${query}`);
    keyed(list.body, jobs, (job) => job.job_id, row);
    list.node.hidden = !jobs.length;
    none.hidden = jobs.length > 0 || filter.value !== "";
  };
  filter.addEventListener("change", refresh);
  return poll(refresh);
}

function row(job) {
  const state = badge(job.status);
  const bar = h("progress", { max: 100, "aria-label": "progress" });
  const step = h("small");
  const [reward, held, length, when] = Array.from({ length: 4 }, () => h("td", { class: "num" }));
  const wait = h("small", { class: "muted block" });
  const node = h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `#/jobs/${encodeURIComponent(job.job_id)}` }, job.experiment_name || job.job_id),
      h("small", { class: "muted block mono" }, job.job_id)),
    h("td", {}, state.node, wait), h("td", { class: "num" }, bar, step), reward, held, length, when,
    h("td", {}, h("a", { href: `#/compare?jobs=${encodeURIComponent(job.job_id)}` }, "Compare")));
  return {
    node,
    update(now) {
      const { progress, metrics } = now;
      state.update(now.status);
      bar.value = progress.progress_percent;
      setText(step, `${percent(progress.progress_percent)}${progress.eta_s && now.status === "running" ? ` · ${duration(progress.eta_s)} left` : ""}`);
      setText(reward, number(metrics.reward));
      setText(held, number(metrics.eval_reward));
      setText(length, number(metrics.completion_length));
      setText(when, ago(now.created_at));
      when.title = now.created_at ?? "";
      setText(wait, now.pending?.reason ?? (now.status === "failed" ? now.error ?? "" : ""));
    },
  };
}
