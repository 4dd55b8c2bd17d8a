// The page's one live socket. It is opened for the first who wants to know something, comes back by itself with what was
// missed, and is closed when nobody wants anything.

import { currentKey } from "./api.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 30_000;

const wanted = new Map();
let socket = null;
let lastId = null;
let wait = FIRST_WAIT_MS;
let timer = null;

/** Whether news arrive by themselves now. */
export const isLive = () => socket?.readyState === WebSocket.OPEN;

/** Calls `told(data)` when something happens on one of `topics`; returns the function that ends it. */
export function listen(topics, told) {
  for (const topic of topics) {
    if (!wanted.has(topic)) {
      wanted.set(topic, new Set());
      say({ type: "subscribe", topics: [topic] });
    }
    wanted.get(topic).add(told);
  }
  if (socket === null && timer === null) connect();
  return () => {
    for (const topic of topics) {
      wanted.get(topic)?.delete(told);
      if (wanted.get(topic)?.size === 0) {
        wanted.delete(topic);
        say({ type: "unsubscribe", topics: [topic] });
      }
    }
    if (wanted.size === 0) socket?.close();
  };
}

function connect() {
  timer = null;
  if (wanted.size === 0) return;
  const key = currentKey();
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  // A browser cannot send headers here; a key in the address would end in logs.
  const mine = new WebSocket(`${scheme}://${location.host}/ws/v2`, ["chatgrpo.v2", ...(key ? [`chatgrpo.key.${key}`] : [])]);
  socket = mine;
  mine.addEventListener("open", () => {
    wait = FIRST_WAIT_MS;
    if (wanted.size === 0) mine.close();
    else say({ type: "subscribe", topics: [...wanted.keys()], last_event_id: lastId });
  });
  mine.addEventListener("message", ({ data }) => heard(JSON.parse(data)));
  mine.addEventListener("close", () => {
    if (socket !== mine) return;
    socket = null;
    timer = setTimeout(connect, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT_MS);
  });
}

function heard(message) {
  if (message.type !== "event") return;
  lastId = message.id;
  for (const told of wanted.get(message.topic) ?? []) told(message.data);
}

function say(message) {
  if (isLive()) socket.send(JSON.stringify(message));
}
