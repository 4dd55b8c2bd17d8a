// Builds elements. Text only ever enters the page as text nodes, so nothing a user or a model wrote can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** h("a", {href: "#/jobs", onclick: f}, "Jobs", child). Children that are null or false are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG elements. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Sets text only when it changed, so that screen readers and selections are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Makes `parent` show one node an item, in order. Nodes of items that stay are kept, and with them focus.
 *  `make(item)` returns {node, update(item)}. */
export function keyed(parent, items, keyOf, make) {
  const known = (parent.keyed ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, row] of known) {
    if (wanted.has(key)) continue;
    row.node.remove();
    known.delete(key);
  }
  items.forEach((item, i) => {
    const key = keyOf(item);
    if (!known.has(key)) known.set(key, make(item));
    const row = known.get(key);
    row.update(item);
    if (parent.children[i] !== row.node) parent.insertBefore(row.node, parent.children[i] ?? null);
  });
}

/** A table with a caption for screen readers; returns {node, body}. */
export function table(caption, columns) {
  const body = h("tbody");
  const head = columns.map((column) => h("th", { scope: "col" }, column));
  const node = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, head)), body));
  return { node, body };
}
