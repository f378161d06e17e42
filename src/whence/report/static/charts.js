"use strict";
/* Five kinds of chart, drawn as SVG at the width of their place and redrawn when it changes. */

function figure(title, caption, draw, height) {
  const place = el("div", { class: "plot" });
  const node = el("figure", { class: "chart" }, el("h3", {}, title), place, caption && el("figcaption", {}, caption));
  let last = 0;
  const paint = () => {
    const width = Math.round(place.clientWidth);
    if (!width || width === last) return;
    last = width;
    const high = typeof height === "function" ? height(width) : height || 220;
    const canvas = el("svg", { viewBox: `0 0 ${width} ${high}`, width, height: high, role: "img", "aria-label": title + ". " + (caption || "") });
    draw(canvas, width, high);
    place.replaceChildren(canvas);
  };
  new ResizeObserver(paint).observe(place);
  return node;
}

function label(x, y, text, anchor = "middle", className = "tick") {
  return el("text", { x, y, "text-anchor": anchor, class: className }, text);
}
function rule(x1, y1, x2, y2, className = "grid") { return el("line", { x1, y1, x2, y2, class: className }); }
function bar(x, y, width, height, className, tip) {
  const node = el("rect", { x, y, width: Math.max(0, width), height: Math.max(0, height), class: className });
  if (tip) add(node, el("title", { svg: true }, tip));
  return node;
}
function decades(low, high) {
  const powers = [];
  for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.floor(Math.log10(high) + 1e-9); p++) powers.push(p);
  const step = Math.ceil(powers.length / 6);
  return powers.filter((_, i) => i % step === 0).map((p) => 10 ** p);
}
function tiny(value) {
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return (+value.toPrecision(2)).toLocaleString("en-US", { maximumFractionDigits: 6 });
  return value.toExponential(0).replace("e-", "e\u2212").replace("e+", "e");
}

function drawHistogram(spread) {
  return (canvas, width, height) => {
    const left = 40, right = 8, top = 18, bottom = 40;
    const bins = spread.counts.length, step = (width - left - right) / bins;
    const most = Math.max(...spread.counts, 1), up = (n) => (height - top - bottom) * Math.log10(1 + n) / Math.log10(1 + most);
    const base = height - bottom;
    for (const n of [1, 10, 100, 1000, 10000].filter((n) => n <= most)) {
      add(canvas, rule(left, base - up(n), width - right, base - up(n)), label(left - 6, base - up(n) + 4, count(n), "end"));
    }
    spread.counts.forEach((n, i) => {
      const [a, b] = [spread.edges[i], spread.edges[i + 1]];
      const kind = a >= 0 ? "pro" : b <= 0 ? "opp" : "none";
      if (n) add(canvas, bar(left + i * step + 0.5, base - up(n), step - 1, up(n), "fill-" + kind, `${plural(n, "row")} from ${signed(a)} to ${signed(b)} ${DATA.unit}`));
    });
    add(canvas, rule(left, base, width - right, base, "axis"));
    const side = (bins - 1) / 2;
    if (bins > 1) {
      const at = (i, text) => add(canvas, label(left + i * step, base + 16, text));
      const largest = spread.edges.at(-1), where = (v) => side + 1 + side * (1 + Math.log10(v / largest) / 4);
      const shown = decades(largest * 1e-4, largest).filter((v) => where(v) - side > 3).filter((_, i, all) => width > 420 || (all.length - i) % 2);
      for (const v of shown) { at(where(v), "+" + tiny(v)); at(bins - where(v), "\u2212" + tiny(v)); }
      at(side + 0.5, "0");
    }
    add(canvas, label(left, height - 6, "\u25bc against", "start", "tick opp-text"), label(width - right, height - 6, "for \u25b2", "end", "tick pro-text"),
      label(left + (width - left - right) / 2, height - 6, DATA.unit + ", log scale either side"), label(2, 8, "rows", "start", "tick unit"));
  };
}

function drawCurve(points, options) {
  const { logX, logY, xLabel, yLabel, xMin, xMax, yMin, yMax, xTicks, yTicks, fit, diagonal, half } = options;
  return (canvas, width, height) => {
    const left = 48, right = 22, top = yLabel ? 26 : 10, bottom = 40;
    const scale = (v, low, high, log) => log ? Math.log(v / low) / Math.log(high / low || 2) : (v - low) / (high - low || 1);
    const X = (v) => left + (width - left - right) * scale(v, xMin, xMax, logX);
    const Y = (v) => height - bottom - (height - top - bottom) * scale(v, yMin, yMax, logY);
    for (const t of yTicks) add(canvas, rule(left, Y(t.at), width - right, Y(t.at)), label(left - 6, Y(t.at) + 4, t.text, "end"));
    let lastX = -1e9;
    for (const t of xTicks) {
      if (X(t.at) - lastX < 34) continue;
      lastX = X(t.at);
      add(canvas, rule(X(t.at), height - bottom, X(t.at), height - bottom + 4, "axis"), label(X(t.at), height - bottom + 16, t.text));
    }
    add(canvas, rule(left, height - bottom, width - right, height - bottom, "axis"));
    if (diagonal) add(canvas, rule(X(0), Y(0), X(1), Y(1), "dashed"));
    const path = points.map(([x, y], i) => (i ? "L" : "M") + X(x).toFixed(1) + " " + Y(y).toFixed(1)).join("");
    add(canvas, el("path", { d: path, class: "curve" }));
    if (points.length <= 70) for (const [x, y] of points) add(canvas, el("circle", { cx: X(x), cy: Y(y), r: 2, class: "dot" }));
    if (fit) add(canvas, rule(X(fit[0][0]), Y(fit[0][1]), X(fit[1][0]), Y(fit[1][1]), "fit"));
    if (half) {
      const share = (points.find(([x]) => x >= half) || [0, 0.5])[1];
      add(canvas, rule(X(half), Y(share), X(half), height - bottom, "dashed"), el("circle", { cx: X(half), cy: Y(share), r: 4, class: "point" }));
    }
    add(canvas, label((left + width - right) / 2, height - 6, xLabel), label(2, 12, yLabel, "start", "tick unit"));
  };
}

/* Signed horizontal bars: [{name, value, low, high, tip}]; on narrow screens every name stands above its bar. */
const NARROW = 460;
function barFigure(title, caption, items, format) {
  return figure(title, caption, drawBars(items, format), (width) => items.length * (width < NARROW ? 42 : 24) + 6);
}

function drawBars(items, format) {
  return (canvas, width) => {
    const above = width < NARROW ? 18 : 0, line = 24 + above;
    const names = above ? 0 : Math.min(220, width * 0.34), right = 66;
    const low = Math.min(0, ...items.map((d) => d.low ?? d.value)), high = Math.max(0, ...items.map((d) => d.high ?? d.value));
    const X = (v) => names + 50 * (low < 0) + (width - names - right - 50 * (low < 0)) * (v - low) / (high - low || 1);
    items.forEach((d, i) => {
      const y = i * line + 4 + above, room = Math.floor(((above ? width : names) - 12) / 6.6);
      const text = d.name.length > room ? "\u2026" + d.name.slice(-room + 1) : d.name;
      const name = add(el("text", { x: above ? 2 : names - 8, y: above ? y - 3 : y + 13, "text-anchor": above ? "start" : "end", class: "tick name" }), dataNodesSvg(text));
      add(name, add(el("title", { svg: true }), document.createTextNode(d.name)));
      add(canvas, name, bar(Math.min(X(0), X(d.value)), y + 2, Math.abs(X(d.value) - X(0)), 14, "fill-" + (d.value >= 0 ? "pro" : "opp"), d.tip));
      if (d.low !== undefined) add(canvas, rule(X(d.low), y + 9, X(d.high), y + 9, "whisker"));
      const end = d.value >= 0 ? Math.max(X(d.value), d.high !== undefined ? X(d.high) : 0) : Math.min(X(d.value), d.low !== undefined ? X(d.low) : width);
      add(canvas, label(end + (d.value >= 0 ? 6 : -6), y + 13, format(d.value), d.value >= 0 ? "start" : "end", "tick value"));
    });
    add(canvas, rule(X(0), 0, X(0), items.length * line + 2, "axis"));
  };
}

/* SVG text cannot hold marked spans; invisible characters are shown by their marks here. */
function dataNodesSvg(text) {
  return document.createTextNode([...text].map((c) => (UNSEEN && UNSEEN.test(c) ? markOf(c) : c)).join(""));
}

/* Heat map as a real table: cells say their value, tint says size, arrow says sign. */
function heatTable(options) {
  const { caption, rows, columns, value, format, corner, scale, onpick } = options;
  const table = el("table", { class: "heat" }, el("caption", {}, caption));
  add(table, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, corner || ""), columns.map((name) => said("th", "", name, { scope: "col" })))));
  const body = el("tbody", {});
  rows.forEach((name, r) => {
    const cells = columns.map((_, c) => {
      const v = value(r, c);
      if (v === null) return el("td", { class: "empty" }, "");
      const level = scale > 0 ? Math.min(10, Math.round(Math.abs(v) / scale * 10)) : 0;
      const tint = level ? (v > 0 ? "pos s" : "neg s") + level : "";
      return el("td", { class: tint }, onpick ? el("button", { type: "button", class: "plain", onclick: () => onpick(r, c) }, format(v)) : format(v));
    });
    add(body, el("tr", {}, said("th", "", name, { scope: "row" }), cells));
  });
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, add(table, body));
}
