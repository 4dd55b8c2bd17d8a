// The frame: which view the address names, the theme, the key.

import { useKey } from "./api.js";
import { h } from "./dom.js";
import * as admin from "./views/admin.js";
import * as chat from "./views/chat.js";
import * as compare from "./views/compare.js";
import * as job from "./views/job.js";
import * as jobs from "./views/jobs.js";
import * as queue from "./views/queue.js";
import * as submit from "./views/submit.js";
import * as system from "./views/system.js";

// First match wins. A view is `show(root, {parts, query})` and returns the function that ends it.
const VIEWS = [
  [/^\/jobs\/([^/]+)(?:\/(\w+))?$/, job],
  [/^\/jobs$/, jobs],
  [/^\/queue$/, queue],
  [/^\/compare$/, compare],
  [/^\/chat$/, chat],
  [/^\/system$/, system],
  [/^\/admin$/, admin],
  [/^\/new$/, submit],
];

const root = document.getElementById("main");
let leave = () => {};
let first = true;

function navigate() {
  const [path, search] = (location.hash.slice(1) || "/jobs").split("?");
  // "#main" is the skip link, not a view.
  if (path === "main") return root.focus();
  leave();
  leave = () => {};
  const [view, match] = find(path);
  for (const link of document.querySelectorAll("#nav a")) {
    const here = path.startsWith(link.getAttribute("href").slice(1));
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  root.replaceChildren();
  if (view === null) {
    root.append(h("h1", {}, "Nothing here"), h("p", {}, h("a", { href: "#/jobs" }, "Back to the jobs")));
    return;
  }
  leave = view.show(root, { parts: match.slice(1), query: new URLSearchParams(search) }) ?? leave;
  document.title = `${root.querySelector("h1")?.textContent ?? "Dashboard"} · chatgrpo`;
  // After a change of view a screen reader should be at its top, as after a page load.
  if (!first) root.focus({ preventScroll: true });
  first = false;
  scrollTo(0, 0);
}

function find(path) {
  for (const [pattern, view] of VIEWS) {
    const match = pattern.exec(path);
    if (match) return [view, match];
  }
  return [null, []];
}

const THEMES = ["auto", "light", "dark"];

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[theme];
  button.setAttribute("aria-label", `Theme: ${theme}. Press to change.`);
}

function initTheme() {
  let theme = localStorage.getItem("chatgrpo.theme") ?? "auto";
  if (!THEMES.includes(theme)) theme = "auto";
  applyTheme(theme);
  document.getElementById("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem("chatgrpo.theme", theme);
    applyTheme(theme);
  });
}

function initKey() {
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key");
  let declined = false;
  document.addEventListener("key-needed", () => {
    if (!dialog.open && !declined) dialog.showModal();
  });
  dialog.addEventListener("close", () => {
    declined = dialog.returnValue !== "use";
    if (!declined) {
      useKey(field.value.trim());
      navigate();
    }
    field.value = "";
  });
}

initTheme();
initKey();
addEventListener("hashchange", navigate);
navigate();
