"use strict";
// Shared by all figures: data, the arms shown, SVG, axes, names, the tooltip.
const data = JSON.parse(document.getElementById("data").textContent);
const shown = new Set(data.arms.filter((arm) => arm.focus).map((arm) => arm.name));
const redraws = []; // each figure adds its own; all run when the arms shown or the width change

const colourOf = (arm) => `var(--arm-${arm.colour})`;
const inkOf = (arm) => `var(--ink-${arm.colour})`;
const visible = () => data.arms.filter((arm) => shown.has(arm.name));

function make(tag, attributes = {}, parent = null, text = null) {
  const svg = ["svg", "g", "path", "line", "rect", "text", "circle", "clipPath"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function short(value) { // 400k, 1.2M
  for (const [power, prefix] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= power) return `${+(value / power).toPrecision(3)}${prefix}`;
  return `${+value.toPrecision(3)}`;
}
const minus = (text) => String(text).replace("-", "\u2212");

function ticks(low, high, about) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
  const digits = [0, 1, 2, 3, 4, 5, 6].find((d) => Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6) ?? 6;
  return { values, digits };
}

// An empty drawing with axes, as wide as its container. Returns scales and the inner frame.
function frame(place, { height, x, y, xLabel, yLabel, xTicks, xShown = short, root = false, right = 12, label }) {
  const width = Math.max(280, place.clientWidth), left = 58, top = 12, bottom = 42;
  place.replaceChildren();
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, place);
  const inner = { left, top, right: width - right, bottom: height - bottom };
  const along = (v) => (root ? Math.sqrt(Math.max(0, v)) : v);
  const X = (v) => inner.left + (along(v) - along(x[0])) / (along(x[1]) - along(x[0])) * (inner.right - inner.left);
  const Y = (v) => inner.bottom - (v - y[0]) / (y[1] - y[0]) * (inner.bottom - inner.top);
  const invert = (px) => x[0] + (px - inner.left) / (inner.right - inner.left) * (x[1] - x[0]);
  const up = ticks(y[0], y[1], height / 60);
  for (const tick of up.values) {
    make("line", { class: "gridline", x1: inner.left, x2: inner.right, y1: Y(tick), y2: Y(tick) }, svg);
    make("text", { x: inner.left - 8, y: Y(tick) + 4, "text-anchor": "end" }, svg, minus(tick.toFixed(up.digits)));
  }
  for (const tick of xTicks ?? ticks(x[0], x[1], width / 110).values) {
    make("line", { class: "gridline", x1: X(tick), x2: X(tick), y1: inner.top, y2: inner.bottom }, svg);
    make("text", { x: X(tick), y: inner.bottom + 17, "text-anchor": "middle" }, svg, xShown(tick));
  }
  make("line", { class: "axis", x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom }, svg);
  make("text", { x: (inner.left + inner.right) / 2, y: height - 6, "text-anchor": "middle" }, svg, xLabel);
  const middle = (inner.top + inner.bottom) / 2;
  make("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, svg, yLabel);
  return { svg, X, Y, invert, inner, width };
}

// Positions near the wanted ones, at least `gap` pixels apart. Neighbours that are too
// close merge into blocks, each centred on the mean of its members (the least-squares answer).
function spread(wanted, gap, low, high) {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const blocks = [];
  for (const index of order) {
    blocks.push({ centre: wanted[index], members: [index] });
    for (;;) {
      const last = blocks.at(-1), room = gap * (last.members.length - 1) / 2;
      last.centre = Math.max(low + room, Math.min(high - room, last.centre));
      if (blocks.length < 2) break;
      const before = blocks.at(-2);
      if (last.centre - room - before.centre - gap * (before.members.length - 1) / 2 >= gap) break;
      const members = before.members.concat(last.members);
      const likes = members.map((m, i) => wanted[m] - gap * (i - (members.length - 1) / 2));
      blocks.splice(-2, 2, { centre: likes.reduce((a, b) => a + b) / likes.length, members });
    }
  }
  const places = [];
  for (const { centre, members } of blocks)
    members.forEach((index, i) => { places[index] = centre + gap * (i - (members.length - 1) / 2); });
  return places;
}

// Names at the right edge, joined to the ends of their lines; `ends` are {arm, x, y} in pixels.
function nameEnds(svg, ends, inner) {
  const heights = spread(ends.map((end) => end.y), 15, inner.top, inner.bottom);
  ends.forEach(({ arm, x, y }, i) => {
    make("path", { d: `M${x} ${y}L${inner.right + 18} ${heights[i]}`, stroke: colourOf(arm), "stroke-width": 0.8, opacity: 0.6, fill: "none" }, svg);
    make("text", { class: "name", x: inner.right + 22, y: heights[i] + 4, style: `fill:${inkOf(arm)}` }, svg, cut(arm.name));
  });
}
const cut = (name) => (name.length > 24 ? `${name.slice(0, 23)}…` : name);
const roomFor = (arms) => 34 + 7.4 * Math.max(0, ...arms.map((arm) => cut(arm.name).length));

const SHAPES = {
  o: "M4.5 0A4.5 4.5 0 1 1-4.5 0A4.5 4.5 0 1 1 4.5 0Z", s: "M-4-4H4V4H-4Z", "^": "M0-5L5 4H-5Z", v: "M0 5L5-4H-5Z",
  D: "M0-5.5L5.5 0 0 5.5-5.5 0Z", P: "M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
  p: "M0-5L4.8-1.5 2.9 4.1H-2.9L-4.8-1.5Z", X: "M-3-5L0-2 3-5 5-3 2 0 5 3 3 5 0 2-3 5-5 3-2 0-5-3Z",
};

const tip = document.getElementById("tip");
function showTip(event, heading, lines) {
  tip.replaceChildren();
  make("b", {}, tip, heading);
  for (const [left, right, arm] of lines) {
    const line = make("div", {}, tip);
    make("span", arm ? { style: `color:${inkOf(arm)}` } : {}, line, left);
    make("span", {}, line, right);
  }
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 16 + width > innerWidth ? event.clientX - width - 16 : event.clientX + 16;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.max(4, Math.min(innerHeight - height - 4, event.clientY - height / 2))}px`;
}
const hideTip = () => { tip.hidden = true; };

// A row of buttons, one of them pressed: calls `pick` with its value.
function choose(id, pick) {
  const buttons = [...document.getElementById(id).querySelectorAll("button")];
  for (const button of buttons)
    button.onclick = () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", other === button));
      pick(button.value);
    };
}
