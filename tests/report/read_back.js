/* Opens everything and reads back every text on the page. */
() => {
  const out = { rows: [], questions: [], facts: [], quarantine: [], tables: [], title: document.title };
  const text = (root, what) => root.querySelector(what)?.textContent ?? null;
  for (let q = 0; q < DATA.queries.length; q++) {
    showQuery(q);
    drawMore(10000);
    out.questions.push([text(document, '.asked .said'), text(document, '.labelled .response'), document.querySelectorAll('#question option')[q].textContent]);
    if (q === 0) {
      out.pages = [...document.querySelectorAll('.pagelink')].map((a) => [a.textContent, a.getAttribute('href')]);
      out.heads = [...document.querySelectorAll('#layers table.heat')].at(-1).querySelectorAll('tbody th').length;
      document.querySelector('.asked [role=button]').click();
      out.asked = text(document, '#asked-reader');
    }
    if (q > 1) continue;
    for (const line of VIEW.list) {
      toggleLine(line.row, true);
      const node = document.querySelector(`tr.line[data-row="${line.row}"]`), detail = node.nextElementSibling;
      const pairs = detail.querySelector('details.pairs');
      if (pairs && out.rows.length < 40) { pairs.open = true; pairs.dispatchEvent(new Event('toggle')); }
      out.rows.push([line.row, text(node, '.excerpt'), text(node, '.meta .id'), text(node, '.meta .place'), text(detail, '.full'), [...detail.querySelectorAll('dd')].map((d) => d.textContent)]);
    }
  }
  for (const row of document.querySelectorAll('.prov .facts > div')) out.facts.push([text(row, 'dt'), text(row, 'dd')]);
  for (const row of document.querySelectorAll('.quarantine tbody tr')) out.quarantine.push([...row.children].map((c) => c.textContent));
  for (const row of document.querySelectorAll('.extra tbody tr')) out.tables.push([...row.children].map((c) => c.textContent));
  out.command = text(document, '.command code');
  out.foreign = document.querySelectorAll('img:not(.picture[src^="data:image/png;base64,"]), iframe, object, embed, base, form, script[src], link:not([rel=icon]), meta[http-equiv=refresh], template, math, video, audio, marquee, animate, [style], [href]:not(.skip):not(.pagelink):not(link)').length;
  out.handlers = [...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => a.name.startsWith('on'))).length;
  out.scripts = document.scripts.length;
  return out;
}
