"use strict";
/* The ranked rows: filter, sort, open, compare, select, export. Lines are drawn a page at a time. */

const PAGE = 50, MORE = 200;
const SORTS = {
  rank: { title: "#", help: "Rank among all scored rows; 1 supports most", value: (l) => l.rank, up: true },
  text: { title: "Training row", help: "Text, id, source and place", value: (l) => DATA.rows.id[l.row], up: true },
  effect: { title: "Effect", help: "Predicted rise of the loss if this row were left out of training", value: (l) => l.score, number: true },
  score: { title: "Score", help: "Raw score: effect times the number of training rows", value: (l) => l.score, number: true },
  size: { title: "Size", help: "Strongest either way", value: (l) => Math.abs(l.score), number: true, hidden: true },
  share: { title: "Share", help: "Of the influence on its side", value: (l) => l.share, number: true },
  percentile: { title: "Percentile", help: "Scored rows with a lower score", value: (l) => l.percentile, number: true },
  lexical: { title: "Words", help: "Word overlap: BM25 and its rank", value: (l) => l.lexical ?? -1, number: true },
  source: { title: "Source", value: (l) => DATA.rows.sources[DATA.rows.source[l.row]] + "\u0000" + DATA.rows.location[l.row], up: true, hidden: true },
  length: { title: "Length", value: (l) => DATA.rows.text[l.row].length, number: true, hidden: true },
  self: { title: "Self-influence", value: (l) => DATA.rows.self[l.row] ?? -Infinity, number: true, hidden: true },
};

function linesOf(q) {
  const query = DATA.queries[q];
  if (!query.lines) {
    const k = query.ranking;
    const spurious = new Set(k.spurious);
    query.lines = k.row.map((row, i) => {
      const score = k.score[i], mass = score > 0 ? k.positive_mass : k.negative_mass;
      return {
        row, score, rank: k.rank[i], effect: score / DATA.n_train, share: mass > 0 ? Math.abs(score) / mass : 0,
        percentile: 100 * (k.scored - k.rank[i]) / Math.max(1, k.scored - 1),
        lexical: k.lexical[i], lexicalRank: k.lexical_rank[i], spurious: spurious.has(row),
      };
    });
    query.at = new Map(query.lines.map((line) => [line.row, line]));
  }
  return query.lines;
}

function filtered() {
  const wanted = VIEW.search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = linesOf(VIEW.q).filter((line) => {
    if (VIEW.sign === "pro" && !(line.score > 0)) return false;
    if (VIEW.sign === "opp" && !(line.score < 0)) return false;
    if (VIEW.source !== "" && DATA.rows.source[line.row] !== +VIEW.source) return false;
    if (VIEW.status !== "" && DATA.rows.status[line.row] !== VIEW.status) return false;
    return !wanted.length || wanted.every((word) => haystack(line.row).includes(word));
  });
  const sort = SORTS[VIEW.sort], turn = VIEW.down ? -1 : 1;
  if (VIEW.sort === "rank" && !VIEW.down) return found;
  return found.map((line, i) => [sort.value(line), i, line])
    .sort((a, b) => (a[0] < b[0] ? -turn : a[0] > b[0] ? turn : a[1] - b[1])).map((entry) => entry[2]);
}

const HAYSTACKS = [];
function haystack(row) {
  const r = DATA.rows;
  return HAYSTACKS[row] ??= [r.id[row], r.text[row], r.location[row], r.sources[r.source[row]], r.label[row]].join("\n").toLowerCase();
}

function rankingSection() {
  const section = el("section", { id: "rows", "aria-labelledby": "rows-title" });
  const query = DATA.queries[VIEW.q];
  const k = query.ranking;
  const hidden = k.scored - k.row.length;
  add(section, el("h2", { id: "rows-title" }, "Every row, ranked"));
  add(section, el("p", { class: "note" }, `${plural(k.row.length, "row")} of ${count(DATA.n_train)}. A positive effect means: without this row the loss would be higher, so the row supports the answer.` +
    (hidden > 0 ? ` The ${count(hidden)} weakest in the middle are not listed.` : "")));
  if (DATA.pages.length) add(section, el("nav", { class: "pages", "aria-label": "Ranks" }, el("span", { class: "quiet" }, "Ranks "), DATA.pages.map((p) => el("a", { href: /^\?from=\d+$/.test(p.address) ? p.address : "#", "aria-current": p.current ? "page" : null, class: "pagelink" }, p.name))));
  add(section, toolbar());
  const table = el("table", { class: "ranking" });
  add(table, el("caption", { class: "unseen" }, "Training rows ranked by influence"), tableHead(), el("tbody", { id: "lines" }));
  add(section, table, el("div", { id: "more", class: "more" }));
  return section;
}

function toolbar() {
  const rows = DATA.rows;
  const statuses = [...new Set(rows.status)].sort();
  const choose = (name, title, options) => el("label", {}, el("span", {}, title),
    el("select", { id: "f-" + name, onchange: (e) => { VIEW[name] = e.target.value; refill(); } },
      options.map(([value, text]) => { const o = said("option", "", text, { value }); o.selected = String(VIEW[name]) === String(value); return o; })));
  const tools = el("div", { class: "tools", role: "search" },
    el("label", { class: "wide" }, el("span", {}, "Search"), el("input", {
      type: "search", id: "search", value: VIEW.search, placeholder: "words, id, file  ( / )", autocomplete: "off", spellcheck: "false",
      oninput: debounce((e) => { VIEW.search = e.target.value; refill(); }, 120) })),
    choose("sign", "Side", [["", "Both sides"], ["pro", "\u25b2 Proponents"], ["opp", "\u25bc Opponents"]]),
    rows.sources.length > 1 && choose("source", "Source", [["", "All sources"], ...rows.sources.map((s, i) => [i, s || "(no name)"])]),
    statuses.length > 1 && choose("status", "Status", [["", "Any status"], ...statuses.map((s) => [s, s])]),
    choose("sort", "Sort by", Object.entries(SORTS).filter(([key]) => key !== "self" || rows.self.some((v) => v !== null))
      .map(([key, s]) => [key, key === "rank" ? "Rank" : s.title])),
    DATA.queries.length > 1 && choose("compare", "Beside", [["", "Nothing"], ...DATA.queries.map((q, i) => [i, queryName(i)]).filter(([i]) => i !== VIEW.q)]));
  const out = el("div", { class: "export" }, el("span", { id: "shown", role: "status", "aria-live": "polite" }),
    el("button", { type: "button", class: "button", onclick: () => exportRows("csv") }, "CSV"),
    el("button", { type: "button", class: "button", onclick: () => exportRows("jsonl") }, "JSONL"));
  tools.querySelector("#f-sort").addEventListener("change", () => { VIEW.down = !SORTS[VIEW.sort].up; refill(); });
  return el("div", {}, tools, out);
}

function tableHead() {
  const head = el("tr", {}, el("th", { scope: "col", class: "pick" }, el("span", { class: "unseen" }, "Selected")));
  for (const [key, sort] of Object.entries(SORTS)) {
    if (sort.hidden || (key === "lexical" && !hasWords())) continue;
    const on = VIEW.sort === key;
    add(head, el("th", { scope: "col", class: sort.number ? "num " + key : key, "aria-sort": on ? (VIEW.down ? "descending" : "ascending") : "none", title: sort.help },
      el("button", { type: "button", class: "plain", onclick: () => { VIEW.down = on ? !VIEW.down : !sort.up; VIEW.sort = key; refill(key); } },
        key === "effect" ? `${sort.title}, ${DATA.unit}` : sort.title, el("span", { class: "sorted", "aria-hidden": "true" }, on ? (VIEW.down ? " \u2193" : " \u2191") : ""))));
  }
  if (VIEW.compare !== "") add(head, said("th", "num beside", "Effect: " + queryName(+VIEW.compare), { scope: "col" }));
  return el("thead", {}, head);
}

function hasWords() { return DATA.queries[VIEW.q].ranking.lexical.some((v) => v !== null); }

/* Draws the list anew after any change of filter, order or question. */
function refill(focusHead) {
  const table = document.querySelector("table.ranking");
  table.replaceChild(tableHead(), table.tHead);
  const sortBox = document.getElementById("f-sort");
  if (sortBox) sortBox.value = VIEW.sort;
  VIEW.list = filtered();
  VIEW.drawn = 0;
  document.getElementById("lines").replaceChildren();
  drawMore();
  tellShown();
  if (focusHead) table.querySelector(`th[aria-sort]:not([aria-sort=none]) button`)?.focus();
}

function tellShown() {
  const chosen = VIEW.picked.size;
  document.getElementById("shown").textContent = chosen ? `${plural(chosen, "row")} selected for export` :
    `${plural(VIEW.list.length, "row")} shown; export takes all of them, or those you select`;
}

function drawMore(upTo) {
  const body = document.getElementById("lines");
  const end = Math.min(VIEW.list.length, upTo ?? VIEW.drawn + (VIEW.drawn ? MORE : PAGE));
  const parts = document.createDocumentFragment();
  const largest = Math.max(...DATA.queries[VIEW.q].ranking.score.slice(0, 1).concat(DATA.queries[VIEW.q].ranking.score.slice(-1)).map(Math.abs), 1e-300);
  for (; VIEW.drawn < end; VIEW.drawn++) parts.append(...lineNodes(VIEW.list[VIEW.drawn], largest));
  body.append(parts);
  const more = document.getElementById("more");
  const left = VIEW.list.length - VIEW.drawn;
  more.replaceChildren();
  if (!VIEW.list.length) add(more, el("p", { class: "note" }, "No row fits these filters."));
  if (left > MORE) add(more, el("button", { type: "button", class: "button", onclick: () => drawMore() }, `Show ${MORE} more`));
  const many = Math.min(left, 1000);
  if (left > 0) add(more, el("button", { type: "button", class: "button", onclick: () => drawSteadily(VIEW.drawn + many) }, many === left ? `Show all ${count(VIEW.list.length)}` : "Show 1,000 more"));
}

/* Many lines, some per frame, so that the page answers meanwhile; any new filter or question ends it. */
function drawSteadily(upTo) {
  const list = VIEW.list;
  const step = () => {
    if (VIEW.list !== list || VIEW.drawn >= Math.min(upTo, list.length)) return;
    drawMore(Math.min(upTo, VIEW.drawn + PAGE));
    requestAnimationFrame(step);
  };
  step();
}

function lineNodes(line, largest) {
  const id = DATA.rows.id[line.row], side = tellers(line.score), open = VIEW.open.has(line.row);
  const width = Math.abs(line.score) / largest * 64;
  const check = el("input", { type: "checkbox", "aria-label": "Select row " + id, onchange: (e) => { e.target.checked ? VIEW.picked.add(line.row) : VIEW.picked.delete(line.row); tellShown(); } });
  check.checked = VIEW.picked.has(line.row);
  const toggle = el("button", { type: "button", class: "plain open", "aria-expanded": String(open) },
    el("span", { class: "chevron", "aria-hidden": "true" }, "\u203a"), excerpt(line.row, 220, "span"));
  const node = el("tr", { class: "line " + side.className + (VIEW.current === line.row ? " current" : ""), "data-row": line.row },
    el("td", { class: "pick" }, check), el("td", { class: "rank" }, count(line.rank)),
    el("td", { class: "text" }, picture(DATA.rows.image[line.row], "Training image " + id), toggle, metaLine(line)),
    el("td", { class: "num effect", "data-name": "Effect" }, el("span", { class: "value " + side.className }, el("span", { class: "arrow", "aria-hidden": "true" }, side.arrow), signed(line.effect)),
      el("svg", { class: "minibar", width: 64, height: 4, "aria-hidden": "true" }, bar(64 - width, 0, width, 4, "fill-" + side.className))),
    el("td", { class: "num score", "data-name": "Score" }, signed(line.score)),
    el("td", { class: "num", "data-name": "Share" }, percent(line.share)),
    el("td", { class: "num percentile", "data-name": "Percentile" }, line.percentile.toFixed(1)),
    hasWords() && el("td", { class: "num words", "data-name": "Words" }, wordsCell(line)));
  if (VIEW.compare !== "") add(node, besideCell(line));
  toggle.addEventListener("click", () => toggleLine(line.row));
  return open ? [node, detailNode(line)] : [node];
}

function wordsCell(line) {
  if (line.lexical === null) return "–";
  if (!line.lexicalRank) return el("span", { class: "quiet" }, "none");
  return [el("span", { class: line.lexicalRank <= 10 ? "strong" : "" }, "#" + count(line.lexicalRank)), el("span", { class: "quiet" }, " " + number(line.lexical, 2))];
}

function besideCell(line) {
  linesOf(+VIEW.compare);
  const other = DATA.queries[+VIEW.compare].at.get(line.row);
  return el("td", { class: "num beside", "data-name": "Beside" }, other ? [signed(other.effect), el("span", { class: "quiet" }, " #" + count(other.rank))] : "not listed");
}

function excerpt(row, most, tag) {
  const text = DATA.rows.text[row];
  const node = said(tag, "excerpt", text.slice(0, most));
  if (text.length > most) add(node, "\u2026");
  if (!text) add(node, el("span", { class: "quiet" }, "(no text kept)"));
  return node;
}

function metaLine(line) {
  const r = DATA.rows, row = line.row, source = r.sources[r.source[row]];
  return el("span", { class: "meta" }, said("span", "id", r.id[row]), source && said("span", "", source), r.location[row] && said("span", "place", r.location[row]), badges(line));
}

function badges(line, brief) {
  const r = DATA.rows, row = line.row, same = r.group[row] ? sameRows(r.group[row]).length : 0;
  return [r.status[row] !== "scored" && ["warn", r.status[row]], same > 1 && ["", brief ? `\u00d7${same}` : `one of ${same} alike`], line.spurious && ["warn", "one token dominates"], r.label[row] && ["", "label " + r.label[row]]]
    .filter(Boolean).map(([kind, text]) => said("span", "badge " + kind, text, text.startsWith("\u00d7") ? { title: `one of ${same} rows with the same text` } : {}));
}

let GROUPS = null;
function sameRows(group) {
  if (!GROUPS) { GROUPS = new Map(); DATA.rows.group.forEach((g, i) => { if (g) GROUPS.set(g, [...(GROUPS.get(g) || []), i]); }); }
  return GROUPS.get(group) || [];
}

function toggleLine(row, force) {
  const line = DATA.queries[VIEW.q].at.get(row);
  const node = document.querySelector(`tr.line[data-row="${row}"]`);
  const open = force ?? !VIEW.open.has(row);
  const detail = node.nextElementSibling?.classList.contains("detail") ? node.nextElementSibling : null;
  if (detail) detail.remove();
  if (open) { VIEW.open.add(row); node.after(detailNode(line)); } else VIEW.open.delete(row);
  node.querySelector("button.open").setAttribute("aria-expanded", String(open));
  setCurrent(row);
}

function setCurrent(row) {
  document.querySelector("tr.line.current")?.classList.remove("current");
  VIEW.current = row;
  document.querySelector(`tr.line[data-row="${row}"]`)?.classList.add("current");
  writeHash();
}

/* Goes to a row: clears the filters if they hide it, draws far enough, opens it. */
function goTo(row) {
  linesOf(VIEW.q);
  if (!DATA.queries[VIEW.q].at.has(row)) return false;
  let at = VIEW.list.findIndex((line) => line.row === row);
  if (at < 0) {
    Object.assign(VIEW, { search: "", sign: "", source: "", status: "" });
    document.getElementById("rows").querySelectorAll("select, input[type=search]").forEach((box) => { if (["f-sign", "f-source", "f-status", "search"].includes(box.id)) box.value = ""; });
    refill();
    at = VIEW.list.findIndex((line) => line.row === row);
  }
  if (at >= VIEW.drawn) drawMore(at + 20);
  toggleLine(row, true);
  const node = document.querySelector(`tr.line[data-row="${row}"]`);
  node.scrollIntoView({ block: "center" });
  node.querySelector("button.open").focus({ preventScroll: true });
  return true;
}

function detailNode(line) {
  const columns = document.querySelectorAll("table.ranking thead th").length;
  const r = DATA.rows, row = line.row, query = DATA.queries[VIEW.q];
  const body = el("div", { class: "detail-body" });
  const reading = el("div", { class: "reading" });
  tokenView(reading, query, row);
  if (r.clipped[row]) add(reading, el("p", { class: "note" }, `${count(r.clipped[row])} further characters are not in this report.`));
  const side = tellers(line.score);
  const list = [["Effect of removing it", signed(line.effect) + " " + DATA.unit], ["Score", signed(line.score)], ["Share of its side", percent(line.share)],
    ["Rank", `${count(line.rank)} of ${count(query.ranking.scored)}`], ["Percentile", line.percentile.toFixed(2)],
    line.lexical !== null && ["Word overlap (BM25)", line.lexicalRank ? `${number(line.lexical)}, rank ${count(line.lexicalRank)}` : "none"],
    r.self[row] !== null && ["Self-influence", number(r.self[row])], ["Status", r.status[row]], ["Source", r.sources[r.source[row]] || "–"], ["Place", r.location[row] || "–"], ["Id", r.id[row]]];
  const facts = el("dl", { class: "facts " + side.className }, list.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), said("dd", "", value))));
  const aside = el("div", { class: "aside" }, facts, sameText(row), otherQuestions(row), rowLayers(query, row),
    el("button", { type: "button", class: "button", onclick: (e) => copy(location.href.split("#")[0] + hashFor(VIEW.q, row), e.currentTarget) }, "Copy link to this row"));
  add(body, reading, aside);
  return el("tr", { class: "detail" }, el("td", { colspan: columns }, body));
}

function sameText(row) {
  const group = DATA.rows.group[row];
  if (!group) return null;
  const others = sameRows(group).filter((i) => i !== row);
  if (!others.length) return null;
  return el("div", {}, el("h4", {}, "Rows with (nearly) the same text"), el("p", { class: "ids" }, others.slice(0, 12).map((i) => said("span", "id", DATA.rows.id[i]))));
}

function otherQuestions(row) {
  if (DATA.queries.length < 2) return null;
  const found = DATA.queries.map((_, i) => { linesOf(i); return [i, DATA.queries[i].at.get(row)]; }).filter(([i, line]) => i !== VIEW.q && line);
  found.sort((a, b) => Math.abs(b[1].effect) - Math.abs(a[1].effect));
  if (!found.length) return null;
  return el("div", {}, el("h4", {}, "The same row under other questions"), el("table", { class: "others" }, el("tbody", {}, found.slice(0, 6).map(([i, line]) => el("tr", {},
    el("th", { scope: "row" }, el("button", { type: "button", class: "plain link", onclick: () => { showQuery(i); goTo(row); } }, said("span", "", queryName(i)))),
    el("td", { class: "num" }, signed(line.effect)), el("td", { class: "num quiet" }, "#" + count(line.rank)))))));
}

function rowLayers(query, row) {
  const scores = query.layers?.rows[row];
  if (!scores) return null;
  const items = scores.map((value, i) => ({ name: DATA.layers[i], value: value / DATA.n_train }));
  items.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  return barFigure("Its strongest layers", `In ${DATA.unit}; all layers add up to the effect.`, items.slice(0, 6), signed);
}

/* Export: the same columns as export.py, text cells disarmed for spreadsheets. */
const COLUMNS = ["query_id", "train_id", "rank", "score", "removal_effect", "share", "percentile", "lexical", "status", "source", "location", "text"];
function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const safe = new RegExp(DATA.formula, "u").test(value) ? "'" + value : value;
  return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}
function exportText(kind) {
  const r = DATA.rows, chosen = VIEW.picked.size ? linesOf(VIEW.q).filter((l) => VIEW.picked.has(l.row)) : VIEW.list;
  const records = chosen.map((l) => [DATA.queries[VIEW.q].id, r.id[l.row], l.rank, l.score, l.effect, l.share, l.percentile, l.lexical, r.status[l.row], r.sources[r.source[l.row]], r.location[l.row], r.text[l.row]]);
  if (kind === "csv") return [COLUMNS, ...records].map((record) => record.map(csvCell).join(",")).join("\r\n") + "\r\n";
  return records.map((record) => JSON.stringify(Object.fromEntries(COLUMNS.map((name, i) => [name, record[i]])))).join("\n") + "\n";
}
function exportRows(kind) {
  const link = el("a", { download: `whence-rows.${kind}` });
  link.href = URL.createObjectURL(new Blob([exportText(kind)], { type: kind === "csv" ? "text/csv" : "application/x-ndjson" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
