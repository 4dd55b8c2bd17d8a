// A conversation, as bubbles.

import { h } from "../dom.js";

const WHO = { system: "System", user: "User", assistant: "Model", tool: "Tool" };

/** One message; `text` is the node to append to while a reply streams. */
export function bubble(role, content = "", name = null) {
  const text = h("p", { class: "said" }, content);
  const who = `${WHO[role] ?? role}${name ? ` ${name}` : ""}`;
  return { node: h("article", { class: `bubble ${role}`, "aria-label": `${who} says` }, h("small", {}, who), text), text };
}

export function conversation(messages) {
  return messages.map((message) => {
    const { node, text } = bubble(message.role, message.content, message.name);
    for (const call of message.tool_calls ?? []) {
      text.after(h("pre", {}, `${call.function?.name ?? "call"}(${call.function?.arguments ?? ""})`));
    }
    return node;
  });
}
