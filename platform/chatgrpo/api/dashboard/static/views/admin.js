// Keys and the audit trail, for those whose key permits to manage them.

import { get, post, remove } from "../api.js";
import { h, keyed, setText, table } from "../dom.js";
import { follow, guarded } from "../live.js";

const ROLES = ["viewer", "user", "trainer", "operator", "admin"];
const ACTS = ["", "job.", "chat.", "conversation.", "snapshot.", "key.", "alerts."];

export function show(root) {
  const list = table("API keys, newest first", ["Name", "Role", "Tenant", "Made", "State", ""]);
  const none = h("p", { class: "note", "data-kind": "wait", hidden: true });
  const minted = h("div", { class: "note", role: "status", hidden: true });
  const trail = table("Acts, newest first", ["When", "Who", "What", "On", "Status"]);
  const which = h("select", { id: "acts" }, ACTS.map((act) => h("option", { value: act }, act ? act.slice(0, -1) : "all acts")));
  const more = h("button", { type: "button", hidden: true }, "Older acts");

  const shown = (key) => {
    minted.replaceChildren(h("strong", {}, "The key, shown this once: "), h("code", { class: "mono" }, key));
    minted.hidden = false;
  };
  const keys = async () => {
    try {
      const found = await get("/api/v2/keys?limit=200");
      keyed(list.body, found.keys, (key) => key.key_id, (key) => keyRow(key, keys, shown));
      none.hidden = true;
    } catch (error) {
      if (error.status !== 403) throw error;
      setText(none, error.message);
      none.hidden = false;
    }
  };
  let entries = [];
  const acts = async () => {
    const found = await get(`/api/v2/audit?limit=100${which.value ? `&what=${which.value}` : ""}`);
    // What was added at the end by "Older acts" stays.
    const oldest = found.entries.at(-1)?.number ?? 0;
    entries = [...found.entries, ...entries.filter((entry) => entry.number < oldest)];
    draw();
  };
  const draw = () => {
    keyed(trail.body, entries, (entry) => entry.number, act);
    more.hidden = !entries.length || entries.at(-1).number === 0;
  };
  which.addEventListener("change", () => {
    entries = [];
    guarded(acts);
  });
  more.addEventListener("click", () => guarded(async () => {
    const query = `before=${entries.at(-1).number}${which.value ? `&what=${which.value}` : ""}`;
    const found = await get(`/api/v2/audit?limit=100&${query}`);
    entries.push(...found.entries);
    draw();
    more.hidden ||= found.entries.length === 0;
  }));
  root.append(h("h1", {}, "Keys and audit"), h("h2", {}, "Keys"), none, minted, newKey(keys, shown), list.node,
    h("div", { class: "title" }, h("h2", {}, "Audit"), h("span", { class: "grow" }), h("label", { for: "acts" }, "Show"), which),
    trail.node, h("p", {}, more));
  return follow([], async () => {
    await keys();
    await acts();
  }, 10_000);
}

function newKey(refresh, shown) {
  const name = h("input", { id: "key-name", required: true, maxlength: 128, autocomplete: "off" });
  const role = h("select", { id: "key-role" }, ROLES.map((r) => h("option", { value: r }, r)));
  const form = h("form", { class: "title" }, h("label", { for: "key-name" }, "Name"), name, h("label", { for: "key-role" }, "Role"), role,
    h("button", { class: "primary", type: "submit" }, "Make a key"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(async () => {
      const made = await post("/api/v2/keys", { name: name.value, role: role.value });
      name.value = "";
      shown(made.key);
      await refresh();
    });
  });
  return form;
}

function keyRow(key, refresh, shown) {
  const path = `/api/v2/keys/${encodeURIComponent(key.key_id)}`;
  const state = h("td");
  const rotate = h("button", { type: "button", onclick: () => guarded(async () => {
    shown((await post(`${path}/rotate?overlap_s=3600`)).key);
    await refresh();
  }) }, "Rotate");
  const revoke = h("button", { type: "button", onclick: () => guarded(async () => {
    if (!confirm(`Revoke ${key.name} for good?`)) return;
    await remove(path);
    await refresh();
  }) }, "Revoke");
  return {
    node: h("tr", {}, h("th", { scope: "row" }, key.name, h("small", { class: "muted block mono" }, key.key_id)), h("td", {}, key.role),
      h("td", {}, key.tenant), h("td", {}, at(key.created_at), h("small", { class: "muted block" }, `by ${key.created_by}`)),
      state, h("td", {}, rotate, " ", revoke)),
    update(now) {
      const over = now.revoked_at ? `revoked ${at(now.revoked_at)}` : now.expires_at ? `until ${at(now.expires_at)}` : "works";
      setText(state, over);
      rotate.hidden = revoke.hidden = Boolean(now.revoked_at);
    },
  };
}

function act(entry) {
  return {
    node: h("tr", {}, h("td", {}, at(entry.at)), h("td", { class: "mono" }, entry.who), h("td", {}, entry.what),
      h("td", { class: "mono" }, entry.target), h("td", { class: "num" }, String(entry.facts.status ?? "–"))),
    update() {},
  };
}

const at = (seconds) => new Date(1000 * seconds).toLocaleString();
