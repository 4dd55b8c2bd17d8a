// What happened to a job and with which settings it runs.

import { get } from "../api.js";
import { h, keyed, setText, table } from "../dom.js";
import { bytes, number } from "../format.js";

export function history(root, { path }) {
  const events = table("Changes of state", ["When", "From", "To", "Cause"]);
  const kept = table("Checkpoints", ["Step", "Held-out reward", "Size", "Made"]);
  const used = h("p", { class: "muted" });
  const settings = h("pre", { class: "log", tabindex: "0", role: "region", "aria-label": "Settings" });
  root.append(h("h2", {}, "Changes of state"), events.node, h("h2", {}, "Checkpoints"), kept.node,
    h("h2", {}, "Settings"), used, settings);
  return {
    async update(job) {
      const [told, made] = await Promise.all([get(`${path}/events`), get(`${path}/checkpoints`)]);
      keyed(events.body, told.events.map((e, i) => ({ ...e, i })), (e) => e.i, (e) => cells(e.at ?? "", e.from ?? "", e.to, e.cause ?? ""));
      keyed(kept.body, made.checkpoints, (c) => c.step, (c) => cells(String(c.step), number(c.metrics?.eval_reward),
        c.size_bytes ? bytes(c.size_bytes) : "–", c.created_at ?? ""));
      if (job.usage) setText(used, `${number(job.usage.cpu_hours)} CPU hours, ${number(job.usage.gpu_hours)} GPU hours, attempt ${job.attempt}`);
      setText(settings, JSON.stringify(job.config ?? {}, null, 2));
    },
  };
}

function cells(...texts) {
  return { node: h("tr", {}, texts.map((text) => h("td", {}, text))), update() {} };
}
