// Thumbs under a reply: an opinion that is kept with the conversation and can be trained on.

import { post } from "../api.js";
import { h, setText, svg } from "../dom.js";

const THUMB = "M2 9h3v9H2zM7 9l4-7c1.5 0 2.2 1 2 2.2L12.4 8H17c1 0 1.7 1 1.5 2l-1.4 6.6c-.2.9-.8 1.4-1.6 1.4H7z";
const OPINIONS = [["Good reply", 1, ""], ["Bad reply", -1, "rotate(180 10 10)"]];

/** `answer` is what POST /api/v2/chat returned; its version names the judged turn. */
export function thumbs({ conversation_id: id, version }) {
  const told = h("span", { role: "status" });
  const buttons = OPINIONS.map(([label, score, transform]) => h("button", {
    type: "button", "aria-label": label, title: label, "aria-pressed": "false", onclick: (event) => judge(event.currentTarget, score),
  }, svg("svg", { viewBox: "0 0 20 20", width: 15, height: 15, "aria-hidden": "true" }, svg("path", { d: THUMB, transform }))));
  const judge = async (pressed, score) => {
    try {
      await post(`/api/v2/conversations/${encodeURIComponent(id)}/feedback`, { version, score });
      for (const button of buttons) button.setAttribute("aria-pressed", String(button === pressed));
      setText(told, " kept");
    } catch (error) {
      setText(told, ` ${error.message}`);
    }
  };
  return h("span", { class: "thumbs" }, buttons, told);
}
