"""The tutorial notebook: made from examples/look_closer.py, executed, and turned into a page of these docs.

``python docs/notebook.py`` executes every cell in a fresh kernel and writes docs/tutorial/look-closer.ipynb with its
outputs; ``python docs/notebook.py other.ipynb`` writes it elsewhere. A cell that raises ends it with its traceback.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "examples/look_closer.py"
NOTEBOOK = ROOT / "docs/tutorial/look-closer.ipynb"
SHOWN = ("text/html", "image/png", "text/plain")  # the best of these is kept of an output
MOST = 1_000_000  # bytes of the notebook with its outputs


def cells(script: str) -> list[Any]:
    """The cells of a script in the "percent" format; what stands before the first one is left out.

    A line ``# %name`` is a command of the notebook, which a script cannot have.
    """
    found = []
    for n, piece in enumerate(re.split(r"^# %%", script, flags=re.MULTILINE)[1:]):
        kind, _, body = piece.partition("\n")
        if "[markdown]" in kind:
            text = re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE)
            cell = nbformat.v4.new_markdown_cell(text)
        else:
            cell = nbformat.v4.new_code_cell(re.sub(r"^# (%\w)", r"\1", body.strip("\n"), flags=re.MULTILINE))
        cell["id"] = f"cell-{n}"
        found.append(cell)
    return found


def notebook() -> Any:
    """The notebook without outputs."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells(SOURCE.read_text(encoding="utf-8")), metadata=about)


def executed(book: Any) -> Any:
    """The notebook with the outputs of a fresh kernel, and nothing that changes from run to run beside them.

    Raises:
        CellExecutionError: a cell raised.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    files = Config({"KernelManager": {"transport": "ipc"}})  # sockets in the file system, not open ports
    NotebookClient(book, timeout=600, kernel_name="python3", config=files).execute()
    for cell in book.cells:
        cell["metadata"] = {}
        if cell.cell_type == "code":
            cell["outputs"] = slim(cell.outputs)
    nbformat.validate(book)
    return book


def slim(outputs: list[Any]) -> list[Any]:
    """What was printed as one text, every other output in its best form; warnings of other packages are dropped."""
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    kept = [nbformat.v4.new_output("stream", name="stdout", text=printed)] if printed else []
    for output in outputs:
        if "data" in output:
            best = next(kind for kind in SHOWN if kind in output["data"])
            kept.append(nbformat.v4.new_output("display_data", data={best: output["data"][best]}))
    return kept


def page(book: Any, folder: Path) -> str:
    """The notebook as a MyST page; its pictures are written into ``folder``."""
    parts = []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        source = re.sub(r"^%.*\n", "", cell.source, flags=re.MULTILINE)
        parts.append(f"```python\n{source}\n```")
        parts += [_shown(output, folder / f"{cell['id']}-{n}.png") for n, output in enumerate(cell.outputs)]
    return "\n\n".join(parts) + "\n"


def _shown(output: Any, picture: Path) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        return f"```{{raw}} html\n{data['text/html']}\n```"
    if "image/png" in data:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(data["image/png"]))
        return f"![Figure drawn by the cell above]({picture.name})"
    return f"```text\n{(output.get('text') or data.get('text/plain', '')).rstrip()}\n```"


def write_page() -> None:
    """Write docs/tutorial/look-closer.md from the executed notebook; Sphinx reads that."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    NOTEBOOK.with_suffix(".md").write_text(page(book, NOTEBOOK.parent), encoding="utf-8")


def main(target: Path) -> None:
    """Execute and write."""
    text = nbformat.writes(executed(notebook())) + "\n"
    if len(text) > MOST:
        raise SystemExit(f"{len(text):,} bytes: more than {MOST:,}")
    target.write_text(text, encoding="utf-8")
    print(f"{target}: {len(text):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK)
