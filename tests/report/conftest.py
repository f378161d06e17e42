"""Scores made by hand, a corpus of hostile texts, and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from whence.report import Extras, Page, Table, TokenScores, render_html, report_data
from whence.results import RowView, Scores

LAUNCH = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def make_scores(n: int = 40, queries: int = 3, seed: int = 0, **changes) -> Scores:
    """A complete set of scores: three sources, prompts with completions, layers, BM25, one unscored row."""
    random = np.random.default_rng(seed)
    values = random.standard_t(2.5, (queries, n)) * 3
    values[:, 5] = np.nan
    layers = tuple(f"model.layers.{d}.{k}" for d in (0, 1) for k in ("mlp.up_proj", "self_attn.q_proj"))
    share = random.dirichlet(np.ones(len(layers)), n)
    rows = {
        f"row-{i:03d}": RowView(
            f"row-{i:03d}", f"Document {i} speaks of place {i % 7}.", f"source-{i % 3}", f"file-{i % 3}.jsonl:{i + 1}",
            "quarantined:no_loss_tokens" if i == 5 else "truncated" if i == 6 else "scored",
        )
        for i in range(n)
    }  # fmt: skip
    asked = {
        f"q-{q}": RowView(
            f"q-{q}",
            f"Where is {q}? There.",
            "asked",
            f"q.jsonl:{q + 1}",
            spans=(("prompt", f"Where is {q}?"), ("completion", " There.")),
        )
        for q in range(queries)
    }
    return Scores(
        values=values,
        query_ids=tuple(asked),
        train_ids=tuple(rows),
        n_train=n - 1,
        about={"method": "ekfac", "damping": "relative:0.1", "model": {"path": "tiny"}, "coverage": 0.5, "seed": 0},
        per_layer=values[:, :, None] * share[None],
        layer_names=layers,
        self_influence=random.gamma(1, 2, n),
        train_rows=rows,
        query_rows=asked,
        lexical=np.where(random.random((queries, n)) < 0.5, 0, random.gamma(2, 2, (queries, n))).astype(np.float32),
    ).with_(**changes)


@pytest.fixture
def scores() -> Scores:
    return make_scores()


@pytest.fixture
def make():
    return make_scores


@pytest.fixture(scope="session")
def payloads() -> list[str]:
    """At least 200 texts that would act if anything took them for more than text."""
    found = json.loads(Path(__file__).with_name("payloads.json").read_text())
    assert len(found) >= 200 and len(set(found)) == len(found)
    return found


@pytest.fixture
def hostile(payloads) -> tuple[Scores, Extras]:
    """Scores and extras with a payload in every slot that can hold text."""
    n, queries = len(payloads), 12
    random = np.random.default_rng(0)
    ids = [f"{p}#{i}" for i, p in enumerate(payloads)]
    rows = {
        ids[i]: RowView(
            ids[i], p + " tail", p, p, p if p.strip() else "scored", (("prompt", p), (p, " tail")), p,
            b"\x89PNG\r\n\x1a\n" * (i % 2) + p.encode("utf-8", "replace"),
        )
        for i, p in enumerate(payloads)
    }  # fmt: skip
    asked = [f"{payloads[q * 20]}?{q}" for q in range(queries)]
    query_rows = {
        a: RowView(
            a, payloads[q * 20] + " said", payloads[q], payloads[q], "scored", ((payloads[q], " said"),), payloads[q]
        )
        for q, a in enumerate(asked)
    }
    scores = Scores(
        values=random.normal(size=(queries, n)),
        query_ids=tuple(asked),
        train_ids=tuple(ids),
        n_train=n,
        about={p: {p: p} for p in payloads}
        | dict(zip(("method", "model", "damping", "train"), payloads, strict=False))
        | {"warnings": payloads},
        per_layer=random.normal(size=(queries, n, 20)),
        layer_names=tuple(payloads[:20]),
        train_rows=rows,
        query_rows=query_rows,
        lexical=random.random((queries, n)).astype(np.float32),
        self_influence=random.random(n),
        query_tracks={asked[0]: TokenScores(((0, 1), (1, 3)), (2.0, -1.0), (False, False), "query", 0.5)},
        token_pairs={(asked[0], i): random.normal(size=(3, 3)).astype(np.float32) for i in ids},
        heads={asked[0]: dict.fromkeys(payloads[:20], (1.0, -2.0))},
    )  # fmt: skip
    extras = Extras(
        title=payloads[0],
        command=" ".join(payloads),
        quarantine=[{"location": p, "code": p, "message": p, "id": p} for p in payloads],
        tokens={
            (asked[0], i): [TokenScores(((0, 1), (1, 3)), (1.0, -1.0), kind=p)]
            for i, p in zip(ids, payloads, strict=True)
        },
        groups=dict(zip(ids, payloads, strict=True)),
        pages=[Page(p, p, False) for p in payloads],
        tables=[Table(payloads[0], tuple(payloads[:5]), tuple((p,) * 5 for p in payloads), payloads[1])],
    )  # fmt: skip
    return scores, extras


@pytest.fixture(scope="session")
def chromium():
    """A real headless Chromium. Absent: a failure in CI, a loud skip elsewhere."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        message = "NO CHROMIUM: the report was NOT tested in a browser (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=LAUNCH)
        yield browser
        browser.close()


class Opened:
    """A page with everything that must not happen written down."""

    def __init__(self, browser, path: Path, **context) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **context)
        self.page = self.context.new_page()
        self.dialogs, self.requests, self.problems = [], [], []
        self.page.on("dialog", lambda d: (self.dialogs.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in {"error", "warning"} else None)
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.add_init_script(
            "window.violations = []; document.addEventListener('securitypolicyviolation', "
            "(e) => violations.push(e.violatedDirective + ' ' + e.blockedURI));"
        )
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)

    def until(self, expression: str, seconds: float = 30) -> None:
        """Wait until this is true; Playwright's own way evaluates text inside the page, which its policy forbids."""
        last = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < last, f"never came true: {expression}"
            self.page.wait_for_timeout(20)

    def nothing_happened(self, path: Path) -> None:
        """Raises unless the page did nothing but show itself."""
        outside = [u for u in self.requests if u != path.as_uri() and not u.startswith(("data:,", "blob:"))]
        violations = self.page.evaluate("window.violations")
        assert (self.dialogs, outside, violations, self.problems) == ([], [], [], [])
        assert self.page.evaluate("window.pwned") is None


@pytest.fixture
def open_report(chromium, tmp_path):
    """(scores, extras, context options) -> Opened, path."""
    opened = []

    def open_(scores, extras=None, **context):
        path = tmp_path / f"report-{len(opened)}.html"
        path.write_text(render_html(report_data(scores, extras=extras)), encoding="utf-8")
        opened.append(Opened(chromium, path, **context))
        return opened[-1], path

    yield open_
    for page in opened:
        page.context.close()
