// A new job. The platform checks every field; what it refuses is shown where it was typed.

import { ApiError, get, post } from "../api.js";
import { h } from "../dom.js";
import { guarded } from "../live.js";
import { CHOICES, FIELDS, configOf } from "./train_fields.js";

export function show(root) {
  const summary = h("div", { class: "note", "data-kind": "error", role: "alert", hidden: true });
  const inputs = new Map();
  const fields = FIELDS.map((field) => fieldOf(field, inputs));
  const more = h("textarea", { id: "more", rows: 5, class: "mono", spellcheck: "false", placeholder: '{"lora": {"r": 16}, "learning_rate": 0.0005}' });
  const send = h("button", { class: "primary", type: "submit" }, "Start training");
  const form = h("form", { class: "card form", novalidate: true }, summary, h("div", { class: "grid" }, fields),
    h("details", {}, h("summary", {}, "Any other field, as JSON"),
      h("label", { for: "more" }, "Merged over the fields above; the names are those of a file under configs/train"), more),
    h("p", {}, send));
  root.append(h("h1", {}, "New job"), form);

  const source = inputs.get("environment.type").input;
  const follow = () => {
    for (const { field, box } of inputs.values()) box.hidden = Boolean(field.only) && !field.only.includes(source.value);
  };
  source.addEventListener("change", follow);
  follow();
  guarded(async () => {
    const { models } = await get("/api/v2/models");
    inputs.get("model").box.append(h("datalist", { id: "models" }, models.map((m) => h("option", { value: m.id }, m.description))));
    inputs.get("model").input.setAttribute("list", "models");
    inputs.get("model").input.value ||= models.find((m) => m.default)?.id ?? "";
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    clear(inputs, summary);
    send.disabled = true;
    try {
      const typed = Object.fromEntries([...inputs].filter(([, { box }]) => !box.hidden).map(([name, { input }]) => [name, input.value]));
      const { job_id: id } = await post("/api/v2/train", configOf(typed, more.value));
      location.hash = `#/jobs/${encodeURIComponent(id)}`;
    } catch (error) {
      refuse(error, inputs, summary);
    } finally {
      send.disabled = false;
    }
  });
}

function fieldOf(field, inputs) {
  const { name, label, help, value = "", choices } = field;
  const id = `field-${name.replaceAll(".", "-")}`;
  const attributes = { id, name, "aria-describedby": `${id}-help ${id}-error` };
  const input = choices
    ? h("select", attributes, choices.map((c) => h("option", { value: c }, CHOICES[c] ?? c)))
    : h("input", { ...attributes, type: "text", value, inputmode: field.kind === "number" ? "decimal" : "text", autocomplete: "off", spellcheck: "false" });
  const error = h("p", { id: `${id}-error`, class: "refused" });
  const box = h("div", { class: "field" }, h("label", { for: id }, label), input, h("small", { id: `${id}-help`, class: "muted" }, help), error);
  inputs.set(name, { field, input, error, box });
  return box;
}

function clear(inputs, summary) {
  summary.hidden = true;
  summary.replaceChildren();
  for (const { input, error } of inputs.values()) {
    input.removeAttribute("aria-invalid");
    error.textContent = "";
  }
}

/** Puts every refusal at its field; what belongs to no field of the form is told on top. */
function refuse(error, inputs, summary) {
  const details = error instanceof ApiError && error.details.length ? error.details : [{ field: "", message: error.message }];
  const elsewhere = [];
  let first = null;
  for (const { field, message } of details) {
    const found = inputs.get(field) ?? inputs.get(field.replace(/\[\d+\].*$/, ""));
    if (!found || found.box.hidden) {
      elsewhere.push(field ? `${field}: ${message}` : message);
      continue;
    }
    found.input.setAttribute("aria-invalid", "true");
    found.error.textContent = message;
    first ??= found.input;
  }
  summary.append(h("strong", {}, "The job was refused. "), elsewhere.join("; ") || `${details.length} field${details.length > 1 ? "s need" : " needs"} another value.`);
  summary.hidden = false;
  first?.focus();
}
