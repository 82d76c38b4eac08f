"""What documents tell their readers to type: code blocks, links, and how to run them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?:\]\(|src=\")([^)\s\"]+)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language; "" for those that name none."""
    return [code for name, code in _BLOCK.findall(text) if name == language]


def links(text: str) -> list[str]:
    """Targets of the links and images of a page, outside its code."""
    return _LINK.findall(re.sub(r"`[^`\n]+`", "", _BLOCK.sub("", text)))


def anchors(text: str) -> set[str]:
    """What links may name behind a ``#``: the headings of a page, as GitHub and the site do."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(_BLOCK.sub("", text))
    }


def run(code: str, folder: Path) -> str:
    """Standard output of Python code in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def texts_of(package: Path) -> list[str]:
    """The texts in the code of a package; those with values have a gap (NUL) for each."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
                )
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


_CELLS = """
import ast, json, sys
scope = {}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"<cell {number}>", "exec"), scope)
        if shown is not None:
            value = eval(compile(ast.Expression(shown.value), f"<cell {number}>", "eval"), scope)
            print(value, getattr(value, "_repr_html_", str)())
"""


def run_notebook(path: Path, folder: Path) -> str:
    """What the cells of a notebook show, in order: text, and HTML where the value has it.

    Cells run in one fresh process, as they would in a kernel; no Jupyter is needed for that.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", _CELLS, str(path)],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
