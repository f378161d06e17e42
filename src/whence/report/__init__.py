"""Show it: scores as plain records, one HTML file, a terminal page, CSV and JSONL. No torch in here."""

from whence.report.data import report_data
from whence.report.html import render_html
from whence.report.records import Extras, Page, ReportData, Table, TokenScores
from whence.report.text import render_text

__all__ = ["Extras", "Page", "ReportData", "Table", "TokenScores", "render_html", "render_text", "report_data"]
