"""ReportData -> one HTML file that needs nothing else: no network, no build step, no fonts.

The data are untrusted. They travel as inert JSON (or gzip + base64) and become text nodes only; the page's own script
and style are allowed by their hashes in a Content-Security-Policy that forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from whence.report.pack import island
from whence.report.records import ReportData

SCRIPTS = ("dom.js", "charts.js", "tokens.js", "ranking.js", "sections.js", "report.js")
STYLES = ("report.css",)


def render_html(data: ReportData) -> str:
    """The whole page as text; write it as UTF-8."""
    text, encoding = island(data)
    style, script = _static(STYLES), _static(SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "style": style, "script": script, "data": text, "encoding": encoding}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _static(("report.html",)))


@cache
def _static(names: tuple[str, ...]) -> str:
    folder = resources.files("whence.report") / "static"
    return "\n".join((folder / name).read_text("utf-8") for name in names)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
