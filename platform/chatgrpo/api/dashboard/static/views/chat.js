// A playground: talk to any model that can be had, as it streams.

import { events, get } from "../api.js";
import { h } from "../dom.js";
import { guarded } from "../live.js";
import { thumbs } from "./feedback.js";
import { bubble } from "./messages.js";

export function show(root, { query }) {
  const model = h("select", { id: "model" });
  const strategy = h("select", { id: "strategy" });
  const talk = h("div", { class: "talk", role: "log", "aria-label": "Conversation", tabindex: "0" });
  const text = h("textarea", { id: "message", rows: 3, placeholder: "Say something. Enter sends, Shift+Enter starts a new line." });
  const send = h("button", { class: "primary", type: "submit" }, "Send");
  const stop = h("button", { type: "button", hidden: true }, "Stop");
  const fresh = h("button", { class: "quiet", type: "button" }, "New conversation");
  const form = h("form", { class: "say" }, h("label", { for: "message", class: "hidden" }, "Message"), text, h("div", { class: "column" }, send, stop));
  root.append(
    h("div", { class: "title" }, h("h1", {}, "Chat"), h("span", { class: "grow" }),
      h("label", { for: "model" }, "Model"), model, h("label", { for: "strategy" }, "Decoding"), strategy, fresh),
    h("div", { class: "card playground" }, talk, form));

  let conversation = null;
  let running = null;
  const restart = () => {
    running?.abort();
    conversation = null;
    talk.replaceChildren(h("p", { class: "empty" }, "A new conversation. Replies stream in as the model writes them."));
  };

  const reply = async (message) => {
    talk.querySelector(".empty")?.remove();
    const said = bubble("assistant");
    talk.append(bubble("user", message).node, said.node);
    said.node.setAttribute("aria-busy", "true");
    running = new AbortController();
    busy(true);
    try {
      const body = { message, model: model.value, strategy: strategy.value, conversation_id: conversation, stream: true };
      for await (const event of events("/api/v2/chat", body, running.signal)) {
        if (event.name === "delta") said.text.append(event.data.text);
        if (event.name === "error") throw new Error(event.data.error.message);
        if (event.name === "done") done(said, event.data);
        talk.scrollTop = talk.scrollHeight;
      }
    } catch (error) {
      const told = error.name === "AbortError" ? "Stopped; this exchange is not kept." : error.message;
      said.node.append(h("p", { class: "note", "data-kind": "error", role: "alert" }, told));
    } finally {
      said.node.removeAttribute("aria-busy");
      running = null;
      busy(false);
    }
  };

  const done = (said, answer) => {
    conversation = answer.conversation_id;
    const { tokens_generated: tokens, response_time: seconds, model: name, finish_reason: reason } = answer.metadata;
    said.node.append(h("p", { class: "muted" }, `${name} · ${tokens} tokens in ${seconds.toFixed(1)} s${reason === "length" ? " · cut off" : ""} `, thumbs(answer)));
  };

  const busy = (now) => {
    send.disabled = now;
    stop.hidden = !now;
    if (!now) text.focus();
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const message = text.value.trim();
    if (!message || running) return;
    text.value = "";
    reply(message);
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  fresh.addEventListener("click", restart);
  restart();
  guarded(() => offer(model, strategy, query.get("model")));
  return () => running?.abort();
}

async function offer(model, strategy, wanted) {
  const [{ models }, status] = await Promise.all([get("/api/v2/models"), get("/api/v2/system/status")]);
  model.append(...models.map((m) => h("option", {
    value: m.id, disabled: !m.available, title: m.reason ?? m.description, selected: wanted ? m.id === wanted : m.default,
  }, m.source === "job" ? `${m.description}` : m.id)));
  strategy.append(...status.strategies.map((s) => h("option", { value: s, selected: s === "default" }, s)));
}
