"""``whence view``: a whole run in the browser, page by page, from a server that only this machine can reach.

Bound to 127.0.0.1 on a free port. Every address starts with a token of this run of the server; requests with another
Host (DNS rebinding) or another Origin (other sites) are refused, nothing is shared across origins, the page may be in
nobody's frame, and its own policy (``report.html``) still forbids everything but its own script and style.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from whence.present import page
from whence.report import Extras, Page
from whence.results import Scores

HOST = "127.0.0.1"
ROWS = 2_000  # ranked rows per page
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def serve(scores: Scores, *, port: int = 0, token: str | None = None, rows: int = ROWS) -> Server:
    """A server for one result; ``serve_forever`` runs it, ``url`` is where it is.

    Args:
        scores: what to show.
        port: 0 = any free one.
        token: secret part of the address; random by default.
        rows: ranked rows per page.

    Raises:
        OSError: the port is taken.
    """
    return Server(partial(page_of, scores, rows=rows), token or secrets.token_urlsafe(24), port=port)


def page_of(scores: Scores, start: int, *, rows: int = ROWS) -> str:
    """The report with ``rows`` ranks of every question from ``start`` + 1 on, and links to the others."""
    known = max(scores.values.shape[1], 1)
    starts = range(0, known, rows)
    start = min(max(0, start) // rows * rows, starts[-1])
    pages = tuple(Page(f"{a + 1:,}–{min(a + rows, known):,}", f"?from={a}", a == start) for a in starts)
    window = (start, start + rows)
    return page(scores, Extras(window=window, pages=pages if len(pages) > 1 else ()))


class Server(ThreadingHTTPServer):
    """The server with its secret."""

    daemon_threads = True

    def __init__(self, render: Callable[[int], str], token: str, *, port: int) -> None:
        super().__init__((HOST, port), _Handler)
        self.render, self.token = render, token

    @property
    def address(self) -> str:
        """Host and port as a browser names them."""
        return f"{HOST}:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    """GET of one address; everything else is refused."""

    server: Server  # type: ignore[assignment]  # the only server that has this handler
    server_version, sys_version = "whence", ""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        refusal = self._refusal(asked.path)
        if refusal is not None:
            return self._send(refusal, refusal.phrase)
        given = parse_qs(asked.query).get("from", ["0"])[0]
        start = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else 0
        return self._send(HTTPStatus.OK, self.server.render(start))

    def _refusal(self, path: str) -> HTTPStatus | None:
        if self.headers.get_all("Host", []) != [self.server.address]:
            return HTTPStatus.MISDIRECTED_REQUEST
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.server.address}":
            return HTTPStatus.FORBIDDEN
        if self.headers.get("Sec-Fetch-Site") not in (None, "none", "same-origin"):
            return HTTPStatus.FORBIDDEN
        if not secrets.compare_digest(path.encode("utf-8", "replace"), f"/{self.server.token}/".encode()):
            return HTTPStatus.NOT_FOUND
        return None

    def _send(self, status: HTTPStatus, text: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the address holds a secret."""
