"""The documentation site: the Markdown of this folder, built by Sphinx into build/docs.

The pages are written to be read in the repository as well. A page that lists others is also their
navigation (:func:`navigation`), and some pages only point to a file of the repository, whose text
the site shows in their place (:func:`embedded`).
"""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "limerank"
author = "The limerank developers"
copyright = author  # Sphinx asks for this name
release = metadata.version("limerank")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "index"
exclude_patterns = ["images"]
nitpicky = True

myst_enable_extensions = ["html_image", "colon_fence"]
myst_heading_anchors = 4
# Generated pages of results begin at a level of their own.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Docstrings and signatures also name what is not public, and other packages: none has a page here.
nitpick_ignore_regex = [("py:.*", r".*")]

html_theme = "pydata_sphinx_theme"
html_title = f"limerank {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
highlight_language = "none"  # of code blocks that name no language: commands, rows of CSV
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_depth": 3,
    "show_toc_level": 2,
    "show_prev_next": True,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# Pages whose list of links is the navigation below them.
LISTING = {
    "index",
    "start",
    "quickstarts/index",
    "guides",
    "data",
    "reference",
    "background",
    "results/README",
    "project/index",
}
# Pages that show another file of the repository.
EMBEDDED = {
    "deploying": "deploy/README.md",
    "notebooks/own-logs": "examples/own_logs.ipynb",
    "notebooks/compare-models": "examples/compare_models.ipynb",
    "project/contributing": "CONTRIBUTING.md",
    "project/changelog": "CHANGELOG.md",
}
PAGES = {name: f"/{page}.md" for page, name in EMBEDDED.items()} | {"README.md": "/index.md"}

ENTRY = re.compile(r"^- ((?:\[[^\]]+\]\([^)#]+\.md\)(?:, )?)+)", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)\.md\)")
TARGET = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")


def navigation(text: str) -> str:
    """The pages that the points of a list begin with, as a hidden table of contents."""
    entries = [
        f"{title} <{target}>"
        for points in ENTRY.findall(text)
        for title, target in LINK.findall(points)
    ]
    return "\n".join(["", "```{toctree}", ":hidden:", "", *entries, "```", ""])


def embedded(path: Path) -> str:
    """A file of the repository as Markdown; of a notebook its cells, which hold no output."""
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb":
        return text
    form = {"markdown": "{}", "code": "```python\n{}\n```"}
    return "\n\n".join(
        form[cell["cell_type"]].format("".join(cell["source"]))
        for cell in json.loads(text)["cells"]
    )


def relinked(text: str, source: Path, page: Path) -> str:
    """Links of a file of the repository as those of a page, and to pages that show a file."""

    def target(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(source.parent / match[0]))
        name = path.relative_to(ROOT).as_posix()
        return PAGES.get(name, Path(os.path.relpath(path, page.parent)).as_posix())

    return TARGET.sub(target, text)


def _read(app: Sphinx, page: str, content: list[str]) -> None:
    path = Path(app.srcdir) / f"{page}.md"
    source = ROOT / EMBEDDED[page] if page in EMBEDDED else path
    text = embedded(source) if page in EMBEDDED else content[0]
    app.env.note_dependency(str(source))
    content[0] = relinked(text, source, path) + (navigation(text) if page in LISTING else "")


def setup(app: Sphinx) -> None:
    """Sphinx calls this once, with the application that builds the site."""
    app.connect("source-read", _read)
