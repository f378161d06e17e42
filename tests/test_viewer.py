"""``whence view`` answers its own page and nobody else; every row of a run is on some page."""

from __future__ import annotations

import http.client
import importlib
import json
import re
import threading

import numpy as np
import pytest

from whence.report import Extras, report_data
from whence.results import RowView, Scores
from whence.viewer import HEADERS, page_of, serve


def some_scores(n=60, queries=1):
    values = np.random.default_rng(0).normal(size=(queries, n))
    rows = {f"r{i}": RowView(f"r{i}", f"text {i} is about number {i * 7}") for i in range(n)}
    asked = {f"q{q}": RowView(f"q{q}", "why?") for q in range(queries)}
    return Scores(values, tuple(asked), tuple(rows), n, about={"method": "ekfac"}, train_rows=rows, query_rows=asked)


@pytest.fixture(scope="module")
def server():
    found = serve(some_scores(), rows=25)
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def ask(server, path=None, method="GET", **headers):
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    connection.putrequest(method, path or f"/{server.token}/", skip_host=True)
    for name, value in {"Host": server.address, **headers}.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_only_this_machine_and_a_fresh_secret(server):
    assert server.server_address[0] == "127.0.0.1"
    other = serve(some_scores(3))
    assert other.token != server.token and len(other.token) >= 30
    assert other.server_address[1] != server.server_address[1]
    other.server_close()


def test_the_page_comes_with_its_headers(server):
    answer, body = ask(server)
    assert answer.status == 200
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in body
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert "python" not in (answer.headers["Server"] or "").lower()


WRONG = {
    "no token": ("/", {}, 404),
    "wrong token": ("/" + "x" * 32 + "/", {}, 404),
    "beside the page": ("/{token}/report.html", {}, 404),
    "climbing": ("/{token}/../../etc/passwd", {}, 404),
    "another host": (None, {"Host": "evil.example"}, 421),
    "rebinding with the port": (None, {"Host": "evil.example:{port}"}, 421),
    "localhost is another name": (None, {"Host": "localhost:{port}"}, 421),
    "no host": (None, {"Host": None}, 421),
    "another origin": (None, {"Origin": "http://evil.example"}, 403),
    "another port of this machine": (None, {"Origin": "http://127.0.0.1:1"}, 403),
    "a sandboxed page": (None, {"Origin": "null"}, 403),
    "a cross-site link": (None, {"Sec-Fetch-Site": "cross-site"}, 403),
}


@pytest.mark.parametrize("case", WRONG)
def test_strangers_are_refused(server, case):
    path, headers, status = WRONG[case]
    port = str(server.server_address[1])
    filled = {k: v and v.replace("{port}", port) for k, v in headers.items()}
    answer, body = ask(server, path and path.replace("{token}", server.token), **filled)
    assert answer.status == status
    assert "text 1" not in body and server.token not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "DELETE", "HEAD"])
def test_only_reading(server, method):
    assert ask(server, method=method)[0].status == 501


def test_its_own_origin_may_ask(server):
    assert ask(server, Origin=f"http://{server.address}", **{"Sec-Fetch-Site": "same-origin"})[0].status == 200


@pytest.mark.parametrize("start", ["abc", "-5", "9" * 30, "1e9", "٣", ""])
def test_odd_positions_are_the_nearest_page(server, start):
    assert ask(server, f"/{server.token}/?from={start}".encode("ascii", "ignore").decode())[0].status == 200


def test_every_row_is_on_some_page():
    scores, seen = some_scores(), set()
    for start in range(0, 60, 25):
        body = page_of(scores, start, rows=25)
        data = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', body, re.S)[1])
        assert [p["current"] for p in data["pages"]] == [p["address"] == f"?from={start}" for p in data["pages"]]
        seen |= {data["rows"]["id"][row] for row in data["queries"][0]["ranking"]["row"]}
        best = scores.proponents(0, 1)[0].train_id
        assert data["rows"]["id"][data["queries"][0]["ranking"]["row"][0]] == best
    assert seen == set(scores.train_ids)
    whole, part = (report_data(scores, extras=Extras(window=w)) for w in (None, (25, 50)))
    assert part.queries[0].answer == whole.queries[0].answer


def test_in_a_notebook_it_is_a_sandboxed_frame():
    importlib.import_module("whence.api")
    shown = some_scores()._repr_html_()
    assert re.match(r'<iframe title="whence report" sandbox="allow-scripts allow-downloads" srcdoc="', shown)
    assert "allow-same-origin" not in shown
    inside = shown.split('srcdoc="', 1)[1].split('"', 1)[0]
    assert "<" not in inside and "default-src &#x27;none&#x27;" in inside
