// Small helpers. Everything shown goes through textContent: what a model or a neuron calls itself is never markup.

export const $ = (id) => document.getElementById(id);

/** Return a new element; `text` becomes its text, never HTML. */
export function make(tag, className = "", text = null) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  return element;
}

/** Set an element's text only if it differs, so that a selection in it survives. */
export function say(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/**
 * Make the children of `parent` match `items` in order. A child stays the same element while its key is there, so
 * that the focus and what is being typed stay where they are.
 */
export function sync(parent, items, keyOf, create, update) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = before.get(key);
    if (child) {
      before.delete(key);
    } else {
      child = create(item);
      child.dataset.key = key;
    }
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
    update(child, item);
  }
  for (const child of before.values()) child.remove();
}

/** Return MiB as text. */
export const mib = (value) => (value == null ? "–" : value >= 10240 ? `${(value / 1024).toFixed(1)} GiB` : `${value} MiB`);

/** Return seconds as text. */
export const seconds = (value) => (value == null ? "–" : value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`);

/** Return a time of day; `at`: seconds since 1970. */
export const clock = (at) => new Date(at * 1000).toTimeString().slice(0, 8);

/** Draw numbers as a line with an area below it; the svg is as wide as the page makes it. */
export function plot(svg, values, most) {
  const width = 240, height = 80, top = Math.max(most, 1e-9);
  svg.setAttribute("viewBox", `0 0 ${width} ${height + 4}`);
  svg.setAttribute("preserveAspectRatio", "none");
  if (!svg.firstChild) {
    for (const shape of ["polygon", "polyline"]) svg.append(document.createElementNS("http://www.w3.org/2000/svg", shape));
  }
  const step = width / Math.max(1, values.length - 1);
  const points = values.map((value, i) => `${(i * step).toFixed(1)},${(height + 2 - (value / top) * (height - 6)).toFixed(1)}`);
  svg.lastChild.setAttribute("points", points.join(" "));
  svg.firstChild.setAttribute("points", points.length ? `0,${height + 4} ${points.join(" ")} ${width},${height + 4}` : "");
}
