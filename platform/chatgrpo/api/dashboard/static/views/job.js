// One job: how far it is, what it learns, what it said, what was logged.

import { get, post } from "../api.js";
import { badge } from "../badge.js";
import { h, setText } from "../dom.js";
import { duration, percent } from "../format.js";
import { follow, guarded } from "../live.js";
import { curves } from "./curves.js";
import { history } from "./history.js";
import { log } from "./log.js";
import { samples } from "./samples.js";

const TABS = { "": ["Curves", curves], samples: ["Samples", samples], log: ["Log", log], history: ["History and settings", history] };
// What can be done in which state, as the API allows it.
const ACTS = {
  pause: ["queued", "starting", "running"],
  resume: ["paused"],
  retry: ["failed", "cancelled"],
  cancel: ["queued", "starting", "running", "checkpointing", "paused", "preempted"],
};

export function show(root, { parts: [id, tab = ""] }) {
  const jobId = decodeURIComponent(id);
  const path = `/api/v2/jobs/${encodeURIComponent(jobId)}`;
  const [, panel] = TABS[tab] ?? TABS[""];
  const name = h("h1", {}, "Job");
  const state = badge("…");
  const bar = h("progress", { max: 100, "aria-label": "progress" });
  const told = h("span", { class: "muted" });
  const reason = h("p", { class: "note", hidden: true });
  const chat = h("a", { class: "button", href: `#/chat?model=${encodeURIComponent(jobId)}`, hidden: true }, "Chat with it");
  const acts = Object.keys(ACTS).map((act) => h("button", { type: "button", hidden: true, "data-act": act }, act));
  const body = h("section", { "aria-label": (TABS[tab] ?? TABS[""])[0] });
  root.append(
    h("div", { class: "title" }, name, state.node, h("span", { class: "grow" }), chat, acts),
    h("div", { class: "title" }, bar, told, h("span", { class: "grow" }), h("small", { class: "mono muted" }, jobId)),
    reason,
    h("nav", { class: "tabs", "aria-label": "Parts of this job" }, Object.entries(TABS).map(([key, [label]]) => h("a", {
      href: `#/jobs/${id}${key ? `/${key}` : ""}`, "aria-current": key === tab ? "page" : null,
    }, label))),
    body);

  const update = (job) => {
    setText(name, job.experiment_name || jobId);
    document.title = `${name.textContent} · chatgrpo`;
    state.update(job.status);
    const { progress_percent: done, current_step: step, total_steps: total, eta_s: eta } = job.progress;
    bar.value = done;
    const left = job.status === "running" && eta ? `, ${duration(eta)} left` : "";
    setText(told, total ? `step ${step} of ${total} (${percent(done)})${left}` : "not started");
    const why = job.error ?? (job.pending && `Waits: ${job.pending.reason}. Unblocked when ${job.pending.unblocked_by}.`);
    setText(reason, why ?? "");
    reason.hidden = !why;
    reason.dataset.kind = job.error ? "error" : "wait";
    chat.hidden = job.status !== "succeeded";
    for (const button of acts) button.hidden = !ACTS[button.dataset.act].includes(job.status);
  };
  const shown = panel(body, { jobId, path });
  const refresh = async () => {
    const job = await get(path);
    update(job);
    await shown.update?.(job);
  };
  for (const button of acts) {
    button.addEventListener("click", () => guarded(async () => {
      const act = button.dataset.act;
      if (act === "cancel" && !confirm("Cancel this job? Its checkpoints stay.")) return;
      await post(`${path}/${act}`);
      await refresh();
    }));
  }
  // Lines of a log come between the steps, and no event tells of them.
  const stop = follow(tab === "log" ? [] : [`job:${jobId}`], refresh);
  return () => {
    stop();
    shown.stop?.();
  };
}
