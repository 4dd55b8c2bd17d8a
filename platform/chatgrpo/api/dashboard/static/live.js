// Asks again and again while a view is open; rests while the tab is hidden, and says so when nobody answers.

import { setText } from "./dom.js";

const banner = () => document.getElementById("connection");

/** Runs `task` now and every `intervalMs` after it ended; returns the function that stops it. */
export function poll(task, intervalMs = 2000) {
  let timer = null;
  let stopped = false;
  let busy = false;
  const run = async () => {
    clearTimeout(timer);
    busy = true;
    if (!document.hidden) await guarded(task);
    busy = false;
    if (!stopped) timer = setTimeout(run, intervalMs);
  };
  const woken = () => {
    if (!document.hidden && !busy) run();
  };
  document.addEventListener("visibilitychange", woken);
  run();
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", woken);
  };
}

/** Runs `task` once; what goes wrong is shown above the page. */
export async function guarded(task) {
  try {
    await task();
    banner().hidden = true;
  } catch (error) {
    const unreachable = error instanceof TypeError && /fetch|network/i.test(error.message);
    setText(banner(), unreachable ? "The platform does not answer. Trying again…" : error.message);
    banner().hidden = false;
    if (!("status" in error) && !unreachable) throw error;
  }
}
