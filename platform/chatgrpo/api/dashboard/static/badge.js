// A job's state, told by word and by colour.

import { h, setText } from "./dom.js";

export function badge(state) {
  const node = h("span", { class: "badge" });
  const update = (now) => {
    node.dataset.state = now;
    setText(node, now);
  };
  update(state);
  return { node, update };
}
