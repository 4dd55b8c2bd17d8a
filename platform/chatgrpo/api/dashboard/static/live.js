// Asks again while a view is open: when the platform says that something happened, and now and then besides. Rests while
// the tab is hidden, and says so when nobody answers.

import { setText } from "./dom.js";
import { isLive, listen } from "./socket.js";

const banner = () => document.getElementById("connection");

// With a live socket asking is only for what the socket does not tell (a duration, a position in the queue).
const WHILE_LIVE_MS = 15_000;

/** Runs `task` now, whenever something happens on one of `topics`, and every `intervalMs` while nobody tells. Returns
 *  the function that stops it. */
export function follow(topics, task, intervalMs = 2000) {
  let timer = null;
  let stopped = false;
  let busy = false;
  let again = false;
  const run = async () => {
    clearTimeout(timer);
    busy = true;
    again = false;
    if (!document.hidden) await guarded(task);
    busy = false;
    if (stopped) return;
    timer = setTimeout(run, again ? 0 : topics.length && isLive() ? Math.max(intervalMs, WHILE_LIVE_MS) : intervalMs);
  };
  const told = () => {
    if (document.hidden) return;
    if (busy) again = true;
    else run();
  };
  document.addEventListener("visibilitychange", told);
  const deaf = topics.length ? listen(topics, told) : () => {};
  run();
  return () => {
    stopped = true;
    clearTimeout(timer);
    deaf();
    document.removeEventListener("visibilitychange", told);
  };
}

/** Runs `task` now and every `intervalMs` after it ended; returns the function that stops it. */
export const poll = (task, intervalMs = 2000) => follow([], task, intervalMs);

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
