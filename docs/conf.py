"""Sphinx configuration: furo, pages and notebooks by MyST, API pages from docstrings. It is built and read offline, formulas too."""

from __future__ import annotations

import inspect
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "diffx"
author = "The diffx developers"
copyright = "The diffx developers, Apache-2.0"
release = version = re.search(r'__version__ = "(.+)"', (ROOT / "diffx" / "version.py").read_text()).group(1)

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # a name in single backticks links to its page where there is one
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["attrs_block", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"  # pages show what the notebooks gave in this very build
nb_execution_timeout = 900
nb_execution_raise_on_error = True

napoleon_use_ivar = True
napoleon_custom_sections = [("Class attributes", "params_style")]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # Lightning's own pages explain Lightning's hooks
autodoc_default_options = {"members": True, "show-inheritance": True}

doctest_global_setup = """
import torch
torch.manual_seed(0)
"""

html_theme = "furo"
html_title = f"diffx {release}"
html_static_path = ["sounds", "style"]  # players on the pages point to _static
html_css_files = ["wide.css"]


# Docstrings are read in editors more often than here, so they hold Markdown tables and shapes such as (B, *). Both are translated.


def translated(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn Markdown tables into list tables and escape stars that are no emphasis; works on ``lines`` in place."""
    grouped = groupby(lines, lambda line: line.lstrip().startswith("|") and line.rstrip().endswith("|"))
    blocks = [(is_table, list(block)) for is_table, block in grouped]
    lines[:] = [line for is_table, block in blocks for line in (list_table(block) if is_table else map(escaped, block))]


def list_table(rows: list[str]) -> list[str]:
    """A Markdown table, its second line the rule below the heads, as a reStructuredText list table."""
    indent = " " * (len(rows[0]) - len(rows[0].lstrip()))
    out = ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in (rows[0], *rows[2:]):
        cells = row.strip().strip("|").split("|")
        out += [f"{indent}   {'  -' if number else '* -'} {escaped(cell.strip())}" for number, cell in enumerate(cells)]
    return [*out, ""]


def escaped(line: str) -> str:
    """Escape the stars outside code and emphasis: ``(B, *)``, ``a * b``."""
    parts = re.split(r"(`+[^`]*`+|(?<![*\w])(\*{1,2})(?=\w)[^*]*(?<=[\w.])\2(?![*\w]))", line)
    return "".join(part if number % 3 == 1 else part.replace("*", r"\*") for number, part in enumerate(parts) if number % 3 != 2)


def only_definitions(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out aliases and constants of a module: their docstring would be that of the type they are made of."""
    own = (inspect.isclass(obj) or inspect.isroutine(obj)) and str(getattr(obj, "__module__", "")).startswith("diffx")
    return None if what != "module" or own else True


def setup(app: Any) -> None:
    """Connect both to autodoc; the translation runs before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", translated, priority=400)
    app.connect("autodoc-skip-member", only_definitions)
