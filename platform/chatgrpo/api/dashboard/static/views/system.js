// How the platform is: parts, machine, requests, models.

import { get } from "../api.js";
import { h, keyed, setText, table } from "../dom.js";
import { bytes, duration, number, percent } from "../format.js";
import { follow } from "../live.js";
import { listen } from "../socket.js";
import { advice } from "./advice.js";

export function show(root) {
  const alerts = h("ul", { class: "alerts", "aria-live": "polite", "aria-label": "Alerts" });
  const parts = table("Parts of the platform", ["Part", "State", "Answers in", "Message"]);
  const machine = h("div", { class: "meters" });
  const facts = h("dl", { class: "facts" });
  const advised = advice();
  root.append(h("h1", {}, "System"), alerts, facts, h("h2", {}, "Parts"), parts.node, h("h2", {}, "Machine"), machine,
    advised.node,
    h("p", {}, h("a", { href: "/docs" }, "API reference"), " · ", h("a", { href: "/metrics" }, "Prometheus metrics")));
  let status = null;
  let alarms = [];
  const draw = (metrics) => {
    // Parts that are down are told at once; the alert about them comes later and would say it twice.
    const down = metrics.alerts.filter((a) => a.component);
    const firing = alarms.filter((a) => a.state === "firing" && !a.labels.component);
    keyed(alerts, [...down, ...firing], (a) => `${a.name} ${a.component ?? JSON.stringify(a.labels)}`, alert);
    keyed(parts.body, Object.entries(metrics.components), ([name]) => name, part);
    keyed(machine, meters(metrics.system_metrics), (m) => m.name, meter);
    keyed(facts, figures(status, metrics), ([name]) => name, fact);
  };
  const deaf = listen(["metrics"], (metrics) => status && draw(metrics));
  const stop = follow(["alerts"], async () => {
    const [now, metrics, found] = await Promise.all([
      get("/api/v2/system/status"), get("/api/v2/metrics"), get("/api/v2/alerts"),
    ]);
    [status, alarms] = [now, found.alerts];
    draw(metrics);
  });
  return () => {
    stop();
    deaf();
    advised.stop();
  };
}

function figures(status, { api_metrics: api, chat_metrics: chat }) {
  return [
    ["Status", status.status], ["Up for", duration(status.uptime)], ["Requests", number(api.total_requests)],
    ["Errors", `${(100 * api.error_rate).toFixed(2)} %`], ["Mean response", `${number(1000 * api.average_response_time)} ms`],
    ["Open connections", number(api.active_connections)], ["Replies being written", number(chat.active_requests)],
    ["Tokens written", number(chat.tokens_generated)], ["Loaded models", (chat.loaded_models ?? []).join(", ") || "none"],
    ["Default model", status.default_model], ["State store", status.state_store], ["Version", status.version],
  ];
}

function meters(system) {
  const found = [
    { name: "Processor", value: system.cpu_percent, told: `${percent(system.cpu_percent)} of ${system.cpu_count} cores` },
    { name: "Memory", value: system.memory_percent, told: `${bytes(system.memory_used_bytes)} of ${bytes(system.memory_total_bytes)}` },
    { name: "Disk", value: system.disk_percent, told: `${percent(system.disk_percent)}, ${bytes(system.disk_free_bytes)} free` },
  ];
  for (const gpu of system.gpus) {
    found.push({ name: `GPU ${gpu.index}`, value: gpu.utilization_percent, told: `${gpu.name}: ${percent(gpu.utilization_percent)}` },
      { name: `GPU ${gpu.index} memory`, value: (100 * gpu.memory_used_bytes) / gpu.memory_total_bytes,
        told: `${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}` });
  }
  return found;
}

function meter({ name }) {
  const bar = h("meter", { min: 0, max: 100, high: 90, "aria-label": name });
  const told = h("span", { class: "muted" });
  return { node: h("div", {}, h("span", {}, name), bar, told), update(now) { bar.value = now.value; setText(told, now.told); } };
}

function fact([name]) {
  const value = h("dd");
  return { node: h("div", {}, h("dt", {}, name), value), update: ([, now]) => setText(value, String(now)) };
}

function part([name]) {
  const [state, time, message] = [h("span", { class: "badge" }), h("td", { class: "num" }), h("td")];
  return {
    node: h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, state), time, message),
    update([, now]) {
      setText(state, now.status);
      state.dataset.state = now.status;
      setText(time, now.latency_ms === undefined ? "–" : `${now.latency_ms.toFixed(1)} ms`);
      setText(message, now.message ?? "");
    },
  };
}

function alert({ severity }) {
  const text = h("span");
  const advice = h("small", { class: "muted block" });
  const kind = severity === "critical" ? "error" : "wait";
  return {
    node: h("li", { class: "note", "data-kind": kind }, h("strong", {}, `${severity}: `), text, advice),
    update(now) {
      setText(text, `${now.name} ${now.component ?? ""}: ${now.message}${now.silenced ? " (silenced)" : ""}`);
      setText(advice, now.advice ?? "");
    },
  };
}
