// The end of a run's log.

import { getText } from "../api.js";
import { h, setText } from "../dom.js";

export function log(root, { path }) {
  const text = h("pre", { class: "log", tabindex: "0", role: "log", "aria-label": "Log of the run" });
  root.append(text);
  return {
    async update() {
      const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
      setText(text, (await getText(`${path}/logs?tail=500`)) || "Nothing was logged yet.");
      // Follows the log unless its reader has scrolled up.
      if (atEnd) text.scrollTop = text.scrollHeight;
    },
  };
}
