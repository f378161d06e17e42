"use strict";
/* Building blocks. The only way text enters the page is a text node; the only attributes are those listed here. */

const SVG = "http://www.w3.org/2000/svg";
const ATTRIBUTES = new Set(("class id type role tabindex for value scope dir title hidden colspan name placeholder checked " +
  "disabled download href open min max rows viewBox width height x y x1 x2 y1 y2 cx cy r d points transform fill stroke " +
  "text-anchor dominant-baseline preserveAspectRatio autocomplete spellcheck").split(" "));
const SVG_TAGS = new Set("svg g rect line path circle text polyline polygon title".split(" "));
let UNSEEN = null;  // matches characters that are invisible or steer text; built from the data's table

function el(tag, attributes, ...children) {
  const inSvg = attributes && attributes.svg || (SVG_TAGS.has(tag) && tag !== "title");
  const node = inSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false || name === "svg") continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (ATTRIBUTES.has(name) || /^(aria|data)-[a-z-]+$/.test(name)) node.setAttribute(name, value === true ? "" : value);
    else throw new Error("attribute not allowed: " + name);
  }
  return add(node, ...children);
}

function add(node, ...children) {
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

function learnUnseen(ranges) {
  const hex = (n) => "\\u{" + n.toString(16) + "}";
  UNSEEN = new RegExp("[" + ranges.map(([a, b]) => hex(a) + "-" + hex(b)).join("") + "]", "u");
}

function markOf(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  return code === 0x7f ? "\u2421" : "\u27e8" + code.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
}

/* Data text as nodes: every character stays in the DOM; the invisible ones carry a mark drawn by the style sheet. */
function dataNodes(text) {
  if (!UNSEEN || !UNSEEN.test(text)) return [document.createTextNode(text)];
  const nodes = [];
  let plain = "";
  for (const character of text) {
    if (!UNSEEN.test(character)) { plain += character; continue; }
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(el("span", { class: "mark", "data-mark": markOf(character) }, document.createTextNode(character)));
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

/* A small picture, from base64 and nothing else; null when there is none. */
function picture(base64, text) {
  if (!base64 || !/^[A-Za-z0-9+/=]+$/.test(base64)) return null;
  const node = el("img", { class: "picture" });
  node.alt = text;
  node.src = "data:image/png;base64," + base64;
  return node;
}

/* An element that holds untrusted text, isolated from the direction of its neighbours. */
function said(tag, className, text, more) {
  return add(el(tag, Object.assign({ class: className, dir: "auto" }, more || {})), dataNodes(text));
}

function plural(n, one, many) { return count(n) + " " + (n === 1 ? one : many || one + "s"); }

/* Formatters are made once: making one takes longer than using it a hundred times. */
const FORMATS = new Map();
function written(value, places) {
  if (!FORMATS.has(places)) FORMATS.set(places, new Intl.NumberFormat("en-US", places === undefined ? {} : { minimumFractionDigits: places, maximumFractionDigits: places }));
  return FORMATS.get(places).format(value);
}
function count(n) { return written(n); }

/* The same rules as words.number, words.signed and words.percent in Python. */
function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) {
    const [mantissa, power] = value.toExponential(digits - 1).split("e");
    return mantissa + "e" + (power[0] === "-" ? "-" : "+") + power.slice(1).padStart(2, "0");
  }
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return written(value, places);
}
function signed(value) {
  if (value === null || value === undefined) return "–";
  return (value > 0 ? "+" : value < 0 ? "\u2212" : "") + number(Math.abs(value));
}
function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "<0.1 %";
  return (Math.abs(value) < 10 && value !== Math.round(value) ? value.toFixed(1) : value.toFixed(0)) + " %";
}

function tellers(sign) {
  return sign > 0 ? { className: "pro", arrow: "\u25b2", word: "proponent" } : { className: "opp", arrow: "\u25bc", word: "opponent" };
}

/* One text with its parts (prompt, completion ...) and, if there, its token tint. Ranges are UTF-16 units. */
function richText(tag, className, text, options) {
  const { tokens = null, scale = 1, from = 0, to = text.length } = options || {};
  const parts = trimmed((options && options.parts) || [], text);
  const node = el(tag, { class: className, dir: "auto" });
  const cuts = new Set([from, to]);
  const inside = (n) => { if (n > from && n < to) cuts.add(n); };
  parts.forEach(([, a, b]) => { inside(a); inside(b); });
  if (tokens) tokens.spans.forEach(([a, b]) => { inside(a); inside(b); });
  const edges = [...cuts].sort((a, b) => a - b);
  let t = 0, p = 0;
  for (let i = 0; i + 1 < edges.length; i++) {
    const [a, b] = [edges[i], edges[i + 1]];
    while (p < parts.length && parts[p][2] <= a) p++;
    const part = p < parts.length && parts[p][1] <= a ? parts[p][0] : "";
    let piece = null;
    if (tokens) {
      while (t < tokens.spans.length && tokens.spans[t][1] <= a) t++;
      if (t < tokens.spans.length && tokens.spans[t][0] <= a) piece = tokenNode(text.slice(a, b), tokens, t, scale);
    }
    if (!piece && part) piece = add(el("span", {}), dataNodes(text.slice(a, b)));
    if (piece && part) piece.classList.add("part", RESPONSES.has(part) ? "response" : "prompt");
    add(node, piece || dataNodes(text.slice(a, b)));
  }
  return node;
}

/* Parts without the blanks at their edges, so that underlining starts at a word. */
function trimmed(parts, text) {
  return parts.map(([kind, a, b]) => {
    const piece = text.slice(a, b);
    return [kind, a + piece.length - piece.trimStart().length, b - piece.length + piece.trimEnd().length];
  }).filter(([, a, b]) => a < b);
}

const RESPONSES = new Set(["completion", "assistant", "response", "output", "answer", "chosen"]);

function tokenNode(text, tokens, t, scale) {
  const score = tokens.scores[t];
  const level = scale > 0 ? Math.min(10, Math.round(Math.abs(score || 0) / scale * 10)) : 0;
  const masked = tokens.maskedSet.has(t);
  const name = "tok " + (masked ? "masked " : "") + (level ? (score > 0 ? "pos" : "neg") + " s" + level : "");
  return add(el("span", { class: name.trim(), "data-t": t }), dataNodes(text));
}
