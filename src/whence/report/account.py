"""The page of a choice (``select``, ``mixture``, ``bandit``, ``clean``): what was done and why. No script, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from whence.report.sheet import figure, folded, paragraphs, sheet, table


def account_page(account: Mapping[str, Any]) -> str:
    """The whole page as text; write it as UTF-8.

    Args:
        account: an ``Account`` as plain data.
    """
    parts = [
        paragraphs(account["words"]),
        *(table(t["title"], t["columns"], t["rows"]) for t in account["tables"]),
        *map(figure, account["charts"]),
        "<h2>Details</h2>",
        folded("Settings, versions, fingerprints, seconds", json.dumps(account["about"], indent=1, ensure_ascii=False)),
    ]
    return sheet(account["title"], account["verb"], "".join(parts))
