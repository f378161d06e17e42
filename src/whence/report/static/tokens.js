"use strict";
/* Tokens: the tint of a row, the tokens of the question, and the table between the two. */

const TOKEN_KINDS = { position: "by position: what acts here", output: "by loss: what learning this token does", input: "by input: what reading it does" };
const WIDEST = 16;  // row tokens in the table

/* The row's tint for one token of the question alone. */
function pairTrack(query, row, line) {
  const pairs = query.pairs[row], base = query.tokens[row][0];
  return { kind: "position", spans: base.spans, scores: pairs.cells[line].slice(0, base.spans.length), maskedSet: base.maskedSet, rest: 0 };
}

/* Line of the row's table that belongs to the picked token of the question; -1 for the whole answer. */
function pickedLine(query, row) {
  return VIEW.token === null || !query.pairs[row] ? -1 : query.pairs[row].lines.indexOf(VIEW.token);
}

function questionPiece(query, t) { const span = query.query_tokens?.spans[t]; return span ? query.text.slice(...span) : "(end)"; }

function tokenView(place, query, row) {
  const kinds = query.tokens[row] || [];
  const text = DATA.rows.text[row], parts = DATA.rows.parts[row];
  if (!kinds.length) {
    add(place, text ? richText("div", "full", text, { parts }) : el("p", { class: "note" }, "The text of this row was not kept."));
    if (text) add(place, el("p", { class: "note" }, Object.keys(query.tokens).length ? "Token scores were computed for the strongest rows only; this is not one of them." : DATA.untold || "Token scores were computed for the first questions only; this is not one of them."));
    return;
  }
  const draw = () => drawTokens(place, query, row, { kinds, text, parts, draw });
  draw();
}

function drawTokens(place, query, row, { kinds, text, parts, draw }) {
  const line = pickedLine(query, row);
  const tokens = line < 0 ? kinds[Math.min(VIEW.kind, kinds.length - 1)] : pairTrack(query, row, line);
  place.replaceChildren();
  const reader = el("output", { class: "reader" }, "Point at a token, or step through with the arrow keys, to read its value.");
  const full = richText("div", "full tokens", text, { parts, tokens, scale: tokenScale(query, tokens) });
  full.setAttribute("tabindex", "0"); full.setAttribute("role", "group"); full.setAttribute("aria-label", "Token scores");
  const tell = (t) => {
    reader.textContent = `${JSON.stringify(text.slice(...tokens.spans[t]))}: ${signed(tokens.scores[t])}` + (tokens.maskedSet.has(t) ? " (not trained on)" : "");
    full.querySelectorAll(".here").forEach((n) => n.classList.remove("here")); full.querySelectorAll(`[data-t="${t}"]`).forEach((n) => n.classList.add("here"));
  };
  let at = -1;
  full.addEventListener("mouseover", (e) => { const t = e.target.closest("[data-t]"); if (t) tell(at = +t.dataset.t); });
  full.addEventListener("keydown", (e) => { const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key]; if (step) { e.preventDefault(); at = Math.max(0, Math.min(tokens.spans.length - 1, at + step)); tell(at); } });
  add(place, tokenTools(query, row, kinds, line, draw), full, reader, tokenNote(tokens), line < 0 && pairTable(query, row, text));
}

function tokenTools(query, row, kinds, line, draw) {
  const pick = (name, title, options, now) => el("label", {}, el("span", {}, title), el("select", { onchange: (e) => { VIEW[name] = options[e.target.selectedIndex][0]; if (name === "token") { pickToken(VIEW.token); } draw(); } },
    options.map(([value, shown]) => { const o = said("option", "", shown, { value }); o.selected = now === value; return o; })));
  const pairs = query.pairs[row];
  return el("div", { class: "tools small" }, kinds.length > 1 && line < 0 && pick("kind", "Token score", kinds.map((k, i) => [i, TOKEN_KINDS[k.kind] || k.kind]), VIEW.kind),
    pairs && pick("token", "Because of", [[null, "the whole answer"], ...pairs.lines.map((t) => [t, JSON.stringify(questionPiece(query, t))])], VIEW.token),
    pick("scale", "Tint scaled to", [["row", "this row"], ["list", "the listed rows"], ["query", "the strongest row"]], VIEW.scale));
}

function tokenNote(tokens) {
  const said_ = ["Blue, solid line: for the answer. Orange, dotted line: against it."];
  if (tokens.maskedSet.size) said_.push("Grey italic: the model was not trained to say this token.");
  if (Math.abs(tokens.rest) > 0) said_.push(`Start, end and template tokens, which have no place in this text: ${signed(tokens.rest)}. All together are the row's score.`);
  return el("p", { class: "note legend" }, said_.join(" "));
}

function tokenScale(query, tokens) {
  const most = (t) => Math.max(...t.scores.map(Math.abs), 0);
  if (VIEW.scale === "row") return most(tokens);
  const all = Object.entries(query.tokens);
  if (VIEW.scale === "query") return Math.max(...(query.tokens[query.ranking.row[0]] || [tokens]).map(most));
  return Math.max(...all.flatMap(([, kinds]) => kinds.filter((k) => k.kind === tokens.kind).map(most)));
}

/* The passage around the strongest token of a row, tinted; without token scores its beginning. */
function tintedExcerpt(query, row, most) {
  const tokens = query.tokens[row]?.[0], text = DATA.rows.text[row];
  if (!tokens || !tokens.spans.length) return excerpt(row, most, "span");
  const top = tokens.scores.reduce((best, s, i) => (Math.abs(s) > Math.abs(tokens.scores[best]) ? i : best), 0);
  const peak = tokens.spans[top][0], cut = peak > most * 0.8 ? text.lastIndexOf(" ", peak - most / 3) + 1 : 0;
  const from = tokens.spans.find(([a]) => a >= cut)?.[0] ?? 0, to = tokens.spans.findLast(([, b]) => b <= from + most)?.[1] ?? text.length;
  const node = richText("span", "excerpt", text, { tokens, scale: tokenScale(query, tokens), from, to: Math.max(to, from + 1) });
  if (from > 0) node.prepend("\u2026 ");
  return to < text.length ? add(node, "\u2026") : node;
}

/* Tokens of the question x the strongest tokens of the row. */
function pairTable(query, row, text) {
  const pairs = query.pairs[row];
  if (!pairs || !pairs.lines.length) return null;
  const spans = query.tokens[row][0].spans, size = spans.map((_, c) => pairs.cells.reduce((sum, cells) => sum + Math.abs(cells[c]), 0));
  const columns = spans.map((_, c) => c).sort((a, b) => size[b] - size[a]).slice(0, WIDEST).sort((a, b) => a - b);
  const most = Math.max(...pairs.cells.map((cells) => Math.max(...cells.map(Math.abs))), 0);
  const name = el("summary", {}, "Which token of the answer by which token of this row"), box = el("details", { class: "pairs" }, name);
  const fill = () => {
    if (box.children.length > 1) return;
    add(box, heatTable({ caption: `Lines: tokens of the answer. Columns: the ${columns.length} strongest tokens of the row, in its order. All cells add up to the row's score.`, corner: "answer \u2193 row \u2192", scale: most,
      rows: pairs.lines.map((t) => questionPiece(query, t)), columns: columns.map((c) => text.slice(...spans[c])), value: (r, c) => pairs.cells[r][columns[c]], format: signed,
      onpick: (r) => { pickToken(pairs.lines[r]); refreshOpen(); } }));
  };
  name.addEventListener("click", fill);  // before the box opens: "toggle" comes a moment after, on a box that was empty
  box.addEventListener("toggle", () => { if (box.open) fill(); });  // opened by a script, or by find-in-page
  return box;
}

/* Picks a token of the question: the open rows show what they give to it alone. */
function pickToken(t) {
  const query = DATA.queries[VIEW.q], tokens = query.query_tokens;
  VIEW.token = t;
  document.querySelectorAll(".asked [data-t]").forEach((n) => n.setAttribute("aria-pressed", String(+n.dataset.t === t)));
  const reader = document.getElementById("asked-reader");
  if (!reader || !tokens) return;
  if (t === null) { reader.textContent = "Pick a token to see what explains it alone."; return; }
  const given = Object.entries(query.pairs).map(([row, p]) => [+row, p.lines.indexOf(t) < 0 ? 0 : p.cells[p.lines.indexOf(t)].reduce((a, b) => a + b, 0)]).sort((a, b) => b[1] - a[1]);
  reader.replaceChildren();
  add(reader, dataNodes(JSON.stringify(questionPiece(query, t))), `: ${signed(tokens.scores[t] / DATA.n_train)} ${DATA.unit} from the strongest proponents`,
    given.length ? [", most from ", el("button", { type: "button", class: "plain link", onclick: () => goTo(given[0][0]) }, said("span", "id", DATA.rows.id[given[0][0]])), ` (${signed(given[0][1] / DATA.n_train)})`] : null, ".");
}

function refreshOpen() {
  for (const row of VIEW.open) { if (document.querySelector(`tr.line[data-row="${row}"]`)) toggleLine(row, true); }
}

/* The question's own tokens as buttons. */
function armQuestion(node, query) {
  if (!Object.keys(query.pairs).length) return null;
  const lines = new Set(Object.values(query.pairs).flatMap((p) => p.lines));
  node.querySelectorAll("[data-t]").forEach((n) => {
    const blank = !n.textContent.trim(), whole = node.querySelectorAll(`[data-t="${n.dataset.t}"]`).length === 1;
    if (!lines.has(+n.dataset.t) || (blank && !whole)) return;  // the blank edge of a word is not a second button
    if (blank) n.setAttribute("aria-label", "blank");
    n.setAttribute("role", "button"); n.setAttribute("tabindex", "0"); n.setAttribute("aria-pressed", "false");
    const act = () => { pickToken(VIEW.token === +n.dataset.t ? null : +n.dataset.t); refreshOpen(); };
    n.addEventListener("click", act);
    n.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); e.stopPropagation(); act(); } });
  });
  return el("output", { class: "reader", id: "asked-reader" }, "Pick a token to see what explains it alone.");
}
