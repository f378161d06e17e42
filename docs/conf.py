"""Sphinx configuration. `make docs` builds strictly: every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generated  # next to this file
import notebook

import whence

project = "whence"
author = "The whence authors"
copyright = "The whence authors"
version = release = whence.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"whence {release}"
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_ivar = True


def setup(app: object) -> None:
    """Write the generated pages before Sphinx looks for its sources."""
    app.connect("builder-inited", lambda _app: generated.write(Path(__file__).parent / "reference"))
    app.connect("builder-inited", lambda _app: notebook.write_page())
