"use strict";
/* State, address, keyboard, start. */

let DATA = null;
const VIEW = { q: 0, search: "", sign: "", source: "", status: "", compare: "", sort: "rank", down: false, scale: "row", kind: 0, token: null, open: new Set(), picked: new Set(), list: [], drawn: 0, current: null };

function debounce(act, wait) { let timer; return (event) => { clearTimeout(timer); timer = setTimeout(() => act(event), wait); }; }

function queryName(i) {
  const query = DATA.queries[i], text = query.text.replace(/\s+/g, " ").trim();
  const cut = [...text].slice(0, 70).join("");
  return (query.view ? query.view + ": " : "") + (text ? cut + (cut.length < text.length ? "\u2026" : "") : query.id);
}

function header() {
  const bar_ = document.getElementById("bar");
  const many = DATA.queries.length > 1;
  const step = (by) => () => showQuery((VIEW.q + by + DATA.queries.length) % DATA.queries.length);
  const select = el("select", { id: "question", "aria-label": "Question", onchange: (e) => showQuery(+e.target.value) }, DATA.queries.map((_, i) => said("option", "", `${i + 1}. ${queryName(i)}`, { value: i })));
  add(bar_, el("span", { class: "brand" }, "whence"), many ? el("div", { class: "switch" }, el("button", { type: "button", class: "button", "aria-label": "Previous question", onclick: step(-1) }, "\u2039"), select,
    el("button", { type: "button", class: "button", "aria-label": "Next question", onclick: step(1) }, "\u203a")) : el("span", { class: "switch" }),
    el("button", { type: "button", class: "button", id: "theme", onclick: turnTheme }, "Theme: auto"), el("button", { type: "button", class: "button", "aria-label": "Keyboard help", onclick: help }, "?"));
  const jumps = [["rows", "Rows"], ["spread", "Spread"], ["layers", "Layers"], ["sources", "Sources"], ["questions", "Questions"], ["provenance", "Provenance"]];
  add(bar_, el("nav", { class: "jumps", "aria-label": "Sections" }, jumps.map(([id, name]) => el("button", { type: "button", class: "plain", "data-jump": id, onclick: () => document.getElementById(id)?.scrollIntoView() }, name))));
}

const THEMES = ["auto", "light", "dark"];
function turnTheme() {
  const now = document.documentElement.dataset.theme || "auto", next = THEMES[(THEMES.indexOf(now) + 1) % 3];
  document.documentElement.dataset.theme = next;
  document.getElementById("theme").textContent = "Theme: " + next;
}

function showQuery(q) {
  VIEW.q = q; VIEW.current = null; VIEW.token = null; VIEW.open.clear();
  if (VIEW.compare !== "" && +VIEW.compare === q) VIEW.compare = "";
  const select = document.getElementById("question");
  if (select) select.value = q;
  const main = document.getElementById("main");
  main.replaceChildren();
  add(main, answerSection(), rankingSection(), spreadSection(), layersSection(), sourcesSection(), questionsSection(), tablesSections(), provenanceSection());
  document.querySelectorAll("[data-jump]").forEach((b) => { b.hidden = !document.getElementById(b.dataset.jump); });
  refill();
  writeHash();
}

function hashFor(q, row) { return "#q=" + (q + 1) + (row === null ? "" : "&row=" + encodeURIComponent(DATA.rows.id[row].toWellFormed?.() ?? DATA.rows.id[row])); }
function writeHash() { try { history.replaceState(null, "", hashFor(VIEW.q, VIEW.current)); } catch { /* a sandboxed frame has no address */ } }
function readHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const q = Math.min(DATA.queries.length, Math.max(1, parseInt(asked.get("q") || "1", 10) || 1)) - 1;
  const id = asked.get("row");
  showQuery(q);
  const row = id === null ? -1 : DATA.rows.id.indexOf(id);
  if (row >= 0) goTo(row);
}

async function copy(text, button) {
  const before = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { button.textContent = text; }
  setTimeout(() => { button.textContent = before; }, 1500);
}

const KEYS = [["/", "search the rows"], ["j, k", "next row, previous row"], ["Enter or o", "open or close the row"], ["x", "select the row for export"], ["[ , ]", "previous question, next question"], ["g, G", "top of the page, the ranked rows"], ["t", "theme"], ["?", "this help"]];
function help() {
  let box = document.getElementById("help");
  if (!box) {
    box = el("dialog", { id: "help", "aria-labelledby": "help-title" }, el("h2", { id: "help-title" }, "Keyboard"), el("dl", {}, KEYS.map(([key, what]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)))),
      el("label", {}, (() => { const c = el("input", { type: "checkbox", onchange: (e) => { VIEW.keys = e.target.checked; } }); c.checked = VIEW.keys !== false; return c; })(), " single-key shortcuts on"),
      el("button", { class: "button", type: "button", onclick: () => box.close() }, "Close"));
    document.body.append(box);
  }
  box.showModal();
}

function step(by) {
  if (!VIEW.list.length) return;
  const at = VIEW.list.findIndex((line) => line.row === VIEW.current);
  const next = Math.max(0, Math.min(VIEW.list.length - 1, at < 0 ? 0 : at + by));
  if (next >= VIEW.drawn) drawMore(next + PAGE);
  setCurrent(VIEW.list[next].row);
  const node = document.querySelector("tr.line.current");
  node.querySelector("button.open").focus({ preventScroll: true });
  node.scrollIntoView({ block: "nearest" });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || VIEW.keys === false && event.key !== "?" || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input[type=search], select, textarea, .tokens")) { if (event.key === "Escape") event.target.blur(); return; }
  const acts = {
    "/": () => document.getElementById("search").focus(), j: () => step(1), k: () => step(-1), o: () => VIEW.current !== null && toggleLine(VIEW.current),
    x: () => document.querySelector("tr.line.current input")?.click(), "[": () => showQuery((VIEW.q + DATA.queries.length - 1) % DATA.queries.length), "]": () => showQuery((VIEW.q + 1) % DATA.queries.length),
    g: () => window.scrollTo(0, 0), G: () => document.getElementById("rows").scrollIntoView(), t: turnTheme, "?": help,
  };
  if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
}

async function readData() {
  const island = document.getElementById("data");
  let text = island.textContent;
  if (island.dataset.encoding === "gzip") {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);  // a callback for every byte takes 200 ms on a large page
    text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  const data = JSON.parse(text);
  for (const query of data.queries) {
    for (const tokens of [query.query_tokens, ...Object.values(query.tokens).flat()]) if (tokens) tokens.maskedSet = new Set(tokens.masked);
  }
  return data;
}

async function start() {
  const main = document.getElementById("main");
  add(main, el("p", { class: "note opening" }, "Opening the report \u2026"));
  try { DATA = await readData(); } catch (problem) {
    main.replaceChildren(el("p", { class: "notice" }, "The data in this file cannot be read: " + problem.message)); return;
  }
  learnUnseen(DATA.unseen);
  document.title = DATA.title + " \u00b7 whence";
  header();
  add(document.getElementById("foot"), el("p", {}, "Positive = proponent: seeing the row more makes the answer more likely. Effects are in " + DATA.unit + ": score divided by the ", count(DATA.n_train), " training rows."), el("p", {}, "Made by whence. This file is complete: it loads nothing and sends nothing."));
  readHash();
  window.addEventListener("hashchange", readHash);
  document.addEventListener("keydown", onKey);
  document.documentElement.dataset.ready = "yes";
}

start();
