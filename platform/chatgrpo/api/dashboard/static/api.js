// The public API, as any other client uses it.

const KEY = "chatgrpo.key";

/** What the platform refused, with the fields it names. */
export class ApiError extends Error {
  constructor(status, info) {
    super(info.message ?? `the platform answered with status ${status}`);
    this.status = status;
    this.code = info.code ?? "";
    this.details = info.details ?? (info.field ? [{ field: info.field, message: this.message }] : []);
  }
}

export function useKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export const currentKey = () => sessionStorage.getItem(KEY);
export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body ?? {});
export const remove = (path) => ask("DELETE", path);

export async function getText(path) {
  return (await send("GET", path)).text();
}

/** Server-sent events of a POST, as {name, data}. Aborting `signal` cancels the request on the platform too. */
export async function* events(path, body, signal) {
  const answer = await send("POST", path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (buffer + value.replaceAll("\r\n", "\n")).split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}

function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}

async function ask(method, path, body) {
  return (await send(method, path, body)).json();
}

async function send(method, path, body, signal) {
  const headers = {};
  const key = currentKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({}));
  if (answer.status === 401) document.dispatchEvent(new Event("key-needed"));
  throw new ApiError(answer.status, found.error ?? {});
}
