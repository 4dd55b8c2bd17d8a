// Who waits, why, and what would let them start.

import { get } from "../api.js";
import { h, keyed, setText, table } from "../dom.js";
import { ago, duration } from "../format.js";
import { poll } from "../live.js";

export function show(root) {
  const counts = h("dl", { class: "facts" });
  const waiting = table("Waiting jobs, first in line first", ["Place", "Job", "Priority", "Waits because", "Starts when", "Since"]);
  const running = table("Running jobs", ["Job", "Step", "Time left", "Since"]);
  const empty = h("p", { class: "card empty", hidden: true }, "Nobody waits.");
  root.append(h("h1", {}, "Queue"), counts, h("h2", {}, "Waiting"), waiting.node, empty, h("h2", {}, "Running"), running.node);
  return poll(async () => {
    const [status, queued, active] = await Promise.all([
      get("/api/v2/system/status"), get("/api/v2/jobs?state=queued&limit=1000"), get("/api/v2/jobs?state=running&limit=1000"),
    ]);
    keyed(counts, Object.entries(status.queue.states ?? {}), ([state]) => state, fact);
    const line = [...queued.jobs].sort((a, b) => (a.pending?.position ?? Infinity) - (b.pending?.position ?? Infinity));
    keyed(waiting.body, line, (j) => j.job_id, waitingRow);
    keyed(running.body, active.jobs, (j) => j.job_id, runningRow);
    waiting.node.hidden = !line.length;
    empty.hidden = line.length > 0;
  });
}

function fact() {
  const value = h("dd");
  const name = h("dt");
  return { node: h("div", {}, name, value), update([state, count]) { setText(name, state); setText(value, String(count)); } };
}

const link = (job) => h("th", { scope: "row" }, h("a", { href: `#/jobs/${encodeURIComponent(job.job_id)}` }, job.experiment_name || job.job_id));

/** `prose`: which cells hold sentences, that may be broken into lines. */
function row(first, count, texts, prose = []) {
  const cells = Array.from({ length: count }, (_, i) => h("td", { class: prose.includes(i) ? "" : "num" }));
  return { node: h("tr", {}, first(cells)), update: (job) => texts(job).forEach((text, i) => setText(cells[i], text)) };
}

function waitingRow(job) {
  return row(([place, ...rest]) => [place, link(job), ...rest], 5, (j) => [
    String(j.pending?.position ?? "–"), String(j.priority ?? 1), j.pending?.reason ?? "", j.pending?.unblocked_by ?? "", ago(j.created_at),
  ], [2, 3]);
}

function runningRow(job) {
  return row((cells) => [link(job), ...cells], 3, (j) => [
    `${j.progress.current_step} of ${j.progress.total_steps || "?"}`, duration(j.progress.eta_s), ago(j.started_at ?? j.created_at),
  ]);
}
