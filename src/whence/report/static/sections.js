"use strict";
/* The page around the ranking: the answer, the spread, layers, sources, questions, provenance. */

function answerSection() {
  const query = DATA.queries[VIEW.q];
  const section = el("section", { id: "answer", "aria-labelledby": "asked" });
  const place = [DATA.queries.length > 1 && `Question ${VIEW.q + 1} of ${DATA.queries.length}`, query.id, query.view, query.location === query.id ? "" : query.location].filter(Boolean).join(" \u00b7 ");
  add(section, said("p", "eyebrow", DATA.summary), said("p", "eyebrow", place), el("h1", { id: "asked", class: "unseen" }, DATA.title), picture(query.image, "Image asked about: " + query.id), askedNode(query), said("p", "lead", query.answer), verdicts(query), warningsNode(query));
  const sides = el("div", { class: "sides" }, strongest(query, 1), strongest(query, -1));
  return add(section, sides);
}

/* The prompt in a quieter tone, the response in ink: what was asked and what came back. */
function askedNode(query) {
  const most = 1500, node = el("blockquote", { class: "asked" });
  const text = query.text, tokens = query.query_tokens;
  const scale = tokens ? Math.max(...tokens.scores.map(Math.abs), 0) : 0;
  const show = (to) => {
    node.replaceChildren(richText("div", "said" + (query.parts.some(([kind]) => RESPONSES.has(kind)) || query.label ? " split" : ""), text, { parts: query.parts, tokens, scale, to }));
    if (to < text.length) add(node, el("button", { type: "button", class: "button", onclick: () => show(text.length) }, `Show all ${count(text.length)} characters`));
    if (query.label) add(node, el("p", { class: "labelled" }, el("span", { class: "quiet" }, "label "), said("span", "response", query.label)));
    if (!text) add(node, el("p", { class: "note" }, "The text of this question was not kept."));
  };
  show(Math.min(most, text.length));
  if (tokens) add(node, armQuestion(node, query), el("p", { class: "note" }, "Tint: what the strongest proponents together give to each token; blue with a solid line for it, orange with a dotted line against it."));
  return node;
}

function verdicts(query) {
  const spread = query.distribution;
  const list = el("div", { class: "verdicts" });
  if (spread) {
    add(list, el("div", { class: "verdict" }, el("h2", {}, "How concentrated"), el("p", { class: "big" }, percent(spread.top_10)),
      shareBar(spread.top_10), el("p", {}, query.concentration)));
  }
  if (query.lexical) {
    const bad = query.lexical.level === "explains";
    add(list, el("div", { class: "verdict" + (bad ? " caution" : "") }, el("h2", {}, "Words or influence"),
      el("p", { class: "big" }, `${query.lexical.overlap} of ${query.lexical.of}`), shareBar(query.lexical.overlap / query.lexical.of), el("p", {}, query.lexical.sentence)));
  }
  const sure = DATA.trust.level === "validated";
  add(list, el("div", { class: "verdict" + (sure ? "" : " unsure") }, el("h2", {}, "How far to trust it"), el("p", { class: "big" }, sure ? "Validated" : "Not validated"), sure ? shareBar(1) : el("div", { class: "dashes", "aria-hidden": "true" }), said("p", "", DATA.trust.sentence)));
  return list;
}

function shareBar(share) {
  return el("svg", { class: "sharebar", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" }, bar(0, 0, 100, 4, "fill-track"), bar(0, 0, Math.min(100, 100 * share), 4, "fill-ink"));
}

function warningsNode(query) {
  const shown = query.warnings.filter((w) => !query.lexical || w !== query.lexical.sentence || query.lexical.level === "explains");
  if (!shown.length) return null;
  return el("ul", { class: "warnings", "aria-label": "Cautions" }, shown.map((text) => el("li", {}, el("strong", {}, "Caution. "), said("span", "", text))));
}

function strongest(query, sign) {
  const side = tellers(sign), lines = linesOf(VIEW.q).filter((line) => line.score * sign > 0);
  const top = sign > 0 ? lines.slice(0, 5) : lines.slice(-5).reverse();
  const largest = Math.abs(top[0]?.score || 1);
  const node = el("div", { class: "side " + side.className }, el("div", { class: "side-head" }, el("h2", {}, el("span", { class: "arrow", "aria-hidden": "true" }, side.arrow + " "), sign > 0 ? "Strongest proponents" : "Strongest opponents"),
    el("p", { class: "note" }, `Without these rows the answer would be ${sign > 0 ? "less" : "more"} likely. On the right: share of this side` + (hasWords() ? ", place by word overlap." : "."))));
  if (!top.length) return add(node, el("p", { class: "note" }, "There is none."));
  return add(node, el("ol", { class: "cards" }, top.map((line) => card(line, side, largest))));
}

function card(line, side, largest) {
  const r = DATA.rows, width = 100 * Math.abs(line.score) / largest;
  const words = line.lexical === null ? "" : line.lexicalRank ? ` \u00b7 overlap #${count(line.lexicalRank)}` : " \u00b7 no shared word";
  return el("li", { class: "card" },
    el("div", { class: "card-head" }, el("span", { class: "value " + side.className }, signed(line.effect), el("span", { class: "unit" }, " " + DATA.unit)), said("span", "id", r.id[line.row]),
      said("span", "place", (r.location[line.row] || r.sources[r.source[line.row]]).split("/").at(-1), { title: r.location[line.row] }), badges(line, true), el("span", { class: "end", title: "Share of all " + side.word + " influence" }, percent(line.share) + words)),
    el("svg", { class: "cardbar", viewBox: "0 0 100 3", preserveAspectRatio: "none", "aria-hidden": "true" }, bar(0, 0, width, 3, "fill-" + side.className)),
    el("button", { type: "button", class: "plain card-open", title: "Open in the list", onclick: () => goTo(line.row) }, picture(r.image[line.row], "Training image " + r.id[line.row]), tintedExcerpt(DATA.queries[VIEW.q], line.row, 130)));
}

function spreadSection() {
  const spread = DATA.queries[VIEW.q].distribution;
  if (!spread || !spread.cumulative.length) return null;
  const of = DATA.queries[VIEW.q].ranking, n = spread.cumulative.length ? spread.cumulative.at(-1)[0] : 1;
  const shares = [0, 0.25, 0.5, 0.75, 1].map((at) => ({ at, text: 100 * at + " %" }));
  const powers = (low, high) => decades(low, high).map((at) => ({ at, text: tiny(at) }));
  const charts = el("div", { class: "charts" });
  add(charts, figure("All scores", `${plural(of.proponents, "row")} for, ${count(of.opponents)} against; median ${signed(spread.median)} ${DATA.unit}.`, drawHistogram(spread)));
  add(charts, figure("How many rows carry how much", `Half of the positive influence sits in ${plural(spread.half_in, "row")}; the strongest 1 % of rows carry ${percent(spread.top_1_percent)}.`,
    drawCurve(spread.cumulative, { logX: true, xMin: 1, xMax: Math.max(2, n), yMin: 0, yMax: 1, xTicks: powers(1, Math.max(2, n)), yTicks: shares, xLabel: "strongest proponents taken together", yLabel: "", half: spread.half_in })));
  const tail = spread.tail, points = spread.survival.filter(([, share]) => share <= 0.95);
  const high = spread.survival[0][0], low = points.length ? points.at(-1)[0] : high, least = Math.min(...points.map((p) => p[1]));
  if (tail && points.length > 2) {
    const at = tail.count / n, end = Math.min(high, tail.minimum * (least / at) ** (-1 / (tail.exponent - 1)));
    const fit = [[tail.minimum, at], [end, at * (end / tail.minimum) ** (1 - tail.exponent)]];
    add(charts, figure("The tail", `Power law with exponent ${tail.exponent.toFixed(2)} fitted to the ${tail.count} strongest; ${tail.p_value < 0.1 ? "the fit is poor" : "the data do not rule it out"} (KS p = ${tail.p_value.toFixed(2)}).`,
      drawCurve(points, { logX: true, logY: true, xMin: low, xMax: high, yMin: least, yMax: 1, xTicks: powers(low, high), yTicks: powers(least, 1), xLabel: "at least this effect, " + DATA.unit, yLabel: "share of proponents", fit })));
  }
  add(charts, figure("Inequality", `Gini ${spread.gini.toFixed(2)}: 0 means that all proponents count alike, 1 that one has everything.`,
    drawCurve(spread.lorenz, { xMin: 0, xMax: 1, yMin: 0, yMax: 1, xTicks: shares, yTicks: shares, xLabel: "proponents, weakest first", yLabel: "", diagonal: true })));
  return el("section", { id: "spread", "aria-labelledby": "spread-title" }, el("h2", { id: "spread-title" }, "How the influence is spread"), charts);
}

function layersSection() {
  const sums = DATA.queries[VIEW.q].layers;
  if (!sums || !(sums.proponents.length || sums.opponents.length)) return null;
  const section = el("section", { id: "layers", "aria-labelledby": "layers-title" }, el("h2", { id: "layers-title" }, "Which layers carry it"),
    el("p", { class: "note" }, "Each layer's share of the proponents' total score. Layers add up to 100 %; a negative share works against the total."));
  const values = sums.proponents.length ? sums.proponents : sums.opponents, scale = Math.max(...values.map(Math.abs));
  if (DATA.grid) {
    const g = DATA.grid;
    add(section, heatTable({ caption: "Share by depth and kind of layer", corner: "depth", rows: g.depths, columns: g.kinds, scale,
      value: (r, c) => (g.cells[r][c] < 0 ? null : values[g.cells[r][c]]), format: (v) => (v < 0 ? "\u2212" : "") + percent(Math.abs(v)) }));
  }
  add(section, moduleCharts(), headTable());
  const items = values.map((value, i) => ({ name: DATA.layers[i], value }));
  const shown = DATA.grid ? [...items].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 12) : items.slice(0, 60);
  add(section, barFigure(DATA.grid ? "Strongest layers" : "Layers", items.length > shown.length ? `${shown.length} of ${items.length} layers.` : "", shown, (v) => (v < 0 ? "\u2212" : "") + percent(Math.abs(v))));
  return section;
}

function moduleCharts() {
  const all = DATA.queries[VIEW.q].modules, side = all.some((m) => m.proponents !== null) ? "proponents" : "opponents";
  const chart = (level, title) => {
    const items = all.filter((m) => m.level === level).map((m) => ({ name: `${m.name} (${plural(m.layers, "layer")})`, value: m[side] }));
    return items.length > 1 && barFigure(title, "", items, (v) => (v < 0 ? "\u2212" : "") + percent(Math.abs(v)));
  };
  return el("div", { class: "two" }, chart("part", "Attention and MLP"), chart("kind", "Kinds of module"));
}

function headTable() {
  const heads = DATA.queries[VIEW.q].heads;
  if (!heads) return null;
  const cells = heads.cells.map((line) => line.map((v) => (v === null ? null : v / DATA.n_train))), most = Math.max(...cells.flat().map(Math.abs));
  return heatTable({ caption: `Attention heads: effect of the strongest proponents through each head, ${DATA.unit}`, corner: "layer", rows: heads.layers, columns: Array.from({ length: heads.heads }, (_, i) => "head " + i), scale: most, value: (r, c) => cells[r][c], format: signed });
}

/* Questions x the rows that some question ranks first. */
function rowsByQuestion() {
  const asked = DATA.queries.map((_, i) => i).filter((i) => DATA.queries[i].view === DATA.queries[0].view).slice(0, 40);
  const rows = [...new Set(asked.flatMap((i) => linesOf(i).slice(0, 3).filter((l) => l.score > 0).map((l) => l.row)))].slice(0, 24);
  if (!rows.length) return null;
  const value = (r, c) => DATA.queries[asked[r]].at.get(rows[c])?.effect ?? null;
  const most = Math.max(...asked.flatMap((_, r) => rows.map((_, c) => Math.abs(value(r, c) ?? 0))));
  return heatTable({ caption: `Questions and the rows that rank first for one of them: effect in ${DATA.unit}; empty where the row is not listed`, corner: "question", rows: asked.map((i) => DATA.queries[i].id), columns: rows.map((row) => DATA.rows.id[row]), scale: most, value, format: signed,
    onpick: (r, c) => { showQuery(asked[r]); goTo(rows[c]); } });
}

function sourcesSection() {
  const sources = DATA.queries[VIEW.q].sources;
  if (!sources.length) return null;
  const items = sources.slice(0, 30).map((s) => ({ name: s.source || "(no name)", value: s.total, low: s.rows > 1 ? s.low : undefined, high: s.rows > 1 ? s.high : undefined, tip: `${s.source}: ${plural(s.rows, "row")}, ${s.top_100} of the 100 strongest proponents` }));
  const table = el("table", { class: "small" }, el("caption", { class: "unseen" }, "Totals by source"), el("thead", {}, el("tr", {}, ["Source", "Rows", "Total, " + DATA.unit, "95 % interval", "Of the top 100"].map((t, i) => el("th", { scope: "col", class: i ? "num" : "" }, t)))),
    el("tbody", {}, sources.slice(0, 30).map((s) => el("tr", {}, said("th", "", s.source || "(no name)", { scope: "row" }), el("td", { class: "num" }, count(s.rows)), el("td", { class: "num" }, signed(s.total)), el("td", { class: "num" }, s.rows > 1 ? `${signed(s.low)} to ${signed(s.high)}` : "one row"), el("td", { class: "num" }, count(s.top_100))))));
  return el("section", { id: "sources", "aria-labelledby": "sources-title" }, el("h2", { id: "sources-title" }, "Which sources it comes from"),
    el("p", { class: "note" }, "Summed effect of all rows of a source, with a 95 % bootstrap interval over its rows. Sums over many rows are only first-order estimates."),
    el("div", { class: "two" }, barFigure("Total effect by source", "", items, signed), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Totals by source" }, table)));
}

function questionsSection() {
  const section = el("section", { id: "questions", "aria-labelledby": "questions-title" }, el("h2", { id: "questions-title" }, "All questions"));
  if (DATA.queries.length < 2) return null;
  const table = el("table", { class: "small" }, el("caption", { class: "unseen" }, "All questions"), el("thead", {}, el("tr", {}, ["Question", "Strongest proponent", "Effect, " + DATA.unit, "Top 10 carry", "Words"].map((t, i) => el("th", { scope: "col", class: i > 1 ? "num" : "" }, t)))));
  const body = el("tbody", {}, DATA.queries.map((query, i) => {
    const top = query.ranking.score[0] > 0 ? query.ranking.row[0] : null;
    return el("tr", { class: i === VIEW.q ? "current" : "" }, el("th", { scope: "row" }, el("button", { type: "button", class: "plain link", onclick: () => { showQuery(i); window.scrollTo(0, 0); } }, said("span", "", queryName(i)))),
      top === null ? el("td", {}, "–") : said("td", "", DATA.rows.id[top]), el("td", { class: "num" }, top === null ? "–" : signed(query.ranking.score[0] / DATA.n_train)),
      el("td", { class: "num" }, query.distribution ? percent(query.distribution.top_10) : "–"), el("td", { class: "num" }, query.lexical ? `${query.lexical.overlap} of ${query.lexical.of}` : "–"));
  }));
  add(section, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All questions" }, add(table, body)));
  add(section, rowsByQuestion());
  if (DATA.similarity && DATA.similarity.length <= 40) {
    const names = DATA.similarity.map((_, i) => DATA.queries[i].id);
    add(section, heatTable({ caption: "How alike the rankings are (Spearman correlation of the scores)", rows: names, columns: names, scale: 1, value: (r, c) => DATA.similarity[r][c], format: (v) => v.toFixed(2).replace("-", "\u2212"), onpick: (r) => { showQuery(r); window.scrollTo(0, 0); } }));
  }
  return section;
}

function tablesSections() {
  return DATA.tables.map((t) => el("section", { class: "extra" }, said("h2", "", t.title), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t.title }, el("table", { class: "small" },
    el("thead", {}, el("tr", {}, t.columns.map((name, i) => said("th", i ? "num" : "", name, { scope: "col" })))),
    el("tbody", {}, t.rows.map((cells) => el("tr", {}, cells.map((cell, i) => said(i ? "td" : "th", i ? "num" : "", cell, i ? {} : { scope: "row" }))))))), t.note && said("p", "note", t.note)));
}

function provenanceSection() {
  const section = el("section", { id: "provenance", "aria-labelledby": "provenance-title" }, el("h2", { id: "provenance-title" }, "What this rests on"), said("p", "summary", DATA.summary));
  if (DATA.command) {
    const code = said("code", "", DATA.command);
    code.setAttribute("dir", "ltr");
    add(section, el("div", { class: "command" }, el("pre", {}, code), el("button", { type: "button", class: "button", onclick: (e) => copy(DATA.command, e.currentTarget) }, "Copy")));
  }
  add(section, el("div", { class: "limits" }, el("h3", {}, "Limits"), el("ul", {}, [...DATA.limits, DATA.untold].filter(Boolean).map((text) => said("li", "", text)))));
  const groups = Map.groupBy ? Map.groupBy(DATA.facts, (f) => f[0]) : DATA.facts.reduce((m, f) => m.set(f[0], [...(m.get(f[0]) || []), f]), new Map());
  const boxes = el("div", { class: "prov" });
  for (const [name, list] of groups) {
    add(boxes, el("div", {}, el("h3", {}, name), el("dl", { class: "facts" }, list.map(([, key, value]) => el("div", {}, said("dt", "", key), said("dd", "", value))))));
  }
  add(section, boxes);
  if (DATA.quarantined) {
    const body = el("tbody", {}, DATA.quarantine.map((x) => el("tr", {}, said("th", "", x.location || x.id || "–", { scope: "row" }), said("td", "", x.code), said("td", "", x.message))));
    add(section, el("details", { class: "quarantine" }, el("summary", {}, `${plural(DATA.quarantined, "row")} left out (quarantine)`),
      el("table", { class: "small" }, el("thead", {}, el("tr", {}, ["Place", "Reason", "What happened"].map((t) => el("th", { scope: "col" }, t)))), body),
      DATA.quarantined > DATA.quarantine.length && el("p", { class: "note" }, `The first ${DATA.quarantine.length} are shown; all are in quarantine.jsonl.`)));
  }
  return section;
}
