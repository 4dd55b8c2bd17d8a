// What is used, what it costs, and what will be needed.

import { get } from "../api.js";
import { h, keyed, setText, table } from "../dom.js";
import { number, percent } from "../format.js";
import { poll } from "../live.js";

const NAMES = { chat_replicas: "Chat replicas", training_workers: "Training workers" };
const ROWS = [
  ["Requests a second", (w) => number(w.requests_per_s)], ["Errors", (w) => percent(100 * w.error_rate)],
  ["Half of the requests within", (w) => seconds(w.p50_s)], ["95 % within", (w) => seconds(w.p95_s)], ["99 % within", (w) => seconds(w.p99_s)],
  ["95 % of chats within", (w) => seconds(w.chat_p95_s)], ["Waited before the handler (95 %)", (w) => seconds(w.queue_p95_s)],
  ["Tokens a second in chats", (w) => number(w.chat_tokens_per_s)], ["Tokens a second in training", (w) => number(w.training_tokens_per_s)],
  ["Processor", (w) => (w.cpu_percent === null ? "–" : percent(w.cpu_percent))],
];

/** The sections "Advice" and "Use and cost"; returns {node, stop}. */
export function advice() {
  const list = h("ul", { class: "alerts", "aria-label": "Advice" });
  const use = table("Use over the last minutes and hour", ["", "5 minutes", "1 hour"]);
  const costs = h("p", { class: "muted" });
  const stop = poll(async () => {
    const found = await get("/api/v2/advice");
    keyed(list, found.advice, (item) => item.what, (item) => line(item, found.applied));
    keyed(use.body, ROWS.map(([name, of]) => ({ name, values: ["5m", "1h"].map((w) => of(found.windows[w])) })), (row) => row.name, figure);
    setText(costs, told(found.costs));
  }, 15_000);
  return { stop, node: h("section", {}, h("h2", {}, "Advice"), list, h("h2", {}, "Use and cost"), use.node, costs) };
}

function line({ what }, applied) {
  const head = h("strong");
  const reason = h("span");
  const sure = h("small", { class: "muted block" });
  const node = h("li", { class: "note" }, head, reason, sure);
  return {
    node,
    update(now) {
      node.dataset.kind = now.wanted === now.now ? "calm" : "wait";
      setText(head, now.wanted === now.now ? `${NAMES[what] ?? what}: ${now.now} will do. ` : `${NAMES[what] ?? what}: ${now.wanted} instead of ${now.now}. `);
      setText(reason, now.reason);
      setText(sure, `${percent(100 * now.confidence)} sure; ${applied && what === "chat_replicas" ? "Serve follows it" : "nothing is done by itself"}`);
    },
  };
}

function figure({ name }) {
  const cells = [h("td", { class: "num" }), h("td", { class: "num" })];
  return {
    node: h("tr", {}, h("th", { scope: "row" }, name), cells),
    update: ({ values }) => cells.forEach((cell, i) => setText(cell, values[i])),
  };
}

function told({ currency, per_1000_chats: chats, jobs }) {
  const sum = jobs.reduce((total, job) => total + job.cost, 0);
  const perChats = chats === null ? "Nobody chatted in the last hour" : `A thousand chats cost ${chats.toFixed(4)} ${currency}`;
  return `${perChats}; your newest ${jobs.length} jobs cost ${sum.toFixed(4)} ${currency}, at the prices in platform.yaml.`;
}

const seconds = (value) => (value === null ? "–" : value < 1 ? `${(1000 * value).toFixed(0)} ms` : `${value.toFixed(2)} s`);
