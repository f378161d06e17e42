"""The page as a string: inert data, a policy that fits, a size that stays small."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np

from whence.report import Extras, render_html, report_data
from whence.report.pack import INLINE_MOST, page_data


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.head, self.held = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text):
        if self.tags:
            self.held.setdefault(len(self.tags) - 1, []).append(text)

    def content(self, tag, **wanted):
        found = [i for i, (t, a) in enumerate(self.tags) if t == tag and all(a.get(k) == v for k, v in wanted.items())]
        return ["".join(self.held.get(i, [])) for i in found]


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    return reader


def _data(page: str) -> dict:
    reader = _read(page)
    (text,) = reader.content("script", id="data")
    (attributes,) = [a for t, a in reader.tags if t == "script" and a.get("id") == "data"]
    if attributes["data-encoding"] == "gzip":
        return json.loads(gzip.decompress(base64.b64decode(text)))
    return json.loads(text)


def test_policy_comes_first_and_fits(scores):
    page = render_html(report_data(scores))
    reader = _read(page)
    head = [t for t, _ in reader.tags].index("head")
    tag, attributes = reader.tags[head + 1]
    assert (tag, attributes["http-equiv"]) == ("meta", "Content-Security-Policy")
    policy = dict(part.strip().split(" ", 1) for part in attributes["content"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        text = page.rpartition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[rule] == f"'sha256-{digest}'"
    assert page.index("charset") < 1024


def test_no_address_and_no_sink():
    page = render_html(report_data_of_nothing())
    code = re.sub(r'"http://www\.w3\.org/2000/svg"', "", page)
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", re.sub(r"/\*.*?\*/", "", code, flags=re.S))
    sinks = "innerHTML outerHTML insertAdjacentHTML document.write eval( Function( DOMParser createContextualFragment"
    for sink in (*sinks.split(), "srcdoc", "fetch(", "XMLHttpRequest", "import(", "style="):
        assert sink not in page, sink


def report_data_of_nothing():
    from whence.results import Scores

    return report_data(Scores(values=np.zeros((1, 1)), query_ids=("q",), train_ids=("t",), n_train=1))


def test_data_survive_both_encodings(make, hostile):
    scores, extras = hostile
    for data in (report_data(scores, extras=extras), report_data(make())):
        page = render_html(data)
        assert _data(page) == json.loads(json.dumps(page_data(data)))
    assert 'data-encoding="json"' in render_html(report_data(make()))


def test_inline_json_cannot_close_its_element(payloads, make):
    scores = make()
    rows = {i: v.__class__(i, p) for (i, v), p in zip(scores.train_rows.items(), payloads, strict=False)}
    page = render_html(report_data(scores.with_(train_rows=rows)))
    assert 'data-encoding="json"' in page
    island = page.split('id="data" data-encoding="json">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(island)
    tags = [t for t, _ in _read(page).tags]
    assert tags.count("script") == 2 and not {"img", "svg", "iframe"} & set(tags)
    page.encode("utf-8")


def test_a_few_thousand_rows_stay_small(make):
    random = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in random.integers(0, 26, 6)) for _ in range(4000)]
    scores = make(n=3000, queries=8)
    rows = {
        i: v.__class__(i, " ".join(random.choice(words, 60)), v.source, v.location)
        for i, v in scores.train_rows.items()
    }
    page = render_html(report_data(scores.with_(train_rows=rows)))
    assert INLINE_MOST < len(page) < 1_500_000


def test_long_texts_are_cut_and_said(make):
    scores = make()
    best = scores.proponents(0, 1)[0].train_id
    rows = dict(scores.train_rows)
    rows[best] = rows[best].__class__(best, "x" * 100_000)
    data = report_data(scores.with_(train_rows=rows), extras=Extras(max_text=1000))
    (row,) = [r for r in data.rows if r.id == best]
    assert len(row.text) == 1000 and row.clipped == 99_000


def test_same_data_same_page(scores):
    assert render_html(report_data(scores)) == render_html(report_data(scores))
