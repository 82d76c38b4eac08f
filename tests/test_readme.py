"""The README's description, commands and Python, and the imports and links of all documents."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.documents import PAGES, ROOT, anchors, blocks, links, run, texts_of
from tests.worlds import write_csv

README = (ROOT / "README.md").read_text(encoding="utf-8")
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def test_the_readmes_description_and_python(tmp_path, call):
    write_csv(tmp_path)
    given = next(code for code in blocks(README, "") if code.startswith("user_id,"))
    assert (tmp_path / "events.csv").read_text().startswith(given.splitlines()[0] + "\n")
    (spec,) = blocks(README, "toml")
    (tmp_path / "shop.toml").write_text(spec)
    assert call("prepare", tmp_path / "shop.toml", "--out", tmp_path / "data" / "shop")[0] == 0
    (example,) = blocks(README, "python")
    auc, *ranking = run(example, tmp_path).splitlines()
    assert 0 < float(auc) < 1
    assert len(ranking) == 5
    assert all("'click': " in line and "'watch': " in line for line in ranking)
    assert all(re.search(r"because of \[\d+", line) for line in ranking[:3])


def test_the_first_command_stands_early_in_the_readme():
    lines = README.splitlines()
    assert "make demo" in lines[:35]


@every_page
def test_imports_of_documents_exist(page):
    """And none gives a module where a function of its name is meant."""
    imports = [
        line
        for code in blocks(page.read_text(encoding="utf-8"), "python")
        for line in code.splitlines()
        if re.match(r"(from|import) limerank", line)
    ]
    names: dict[str, object] = {}
    exec("\n".join(imports), names)  # of our own pages
    assert not [name for name, value in names.items() if isinstance(value, ModuleType)]


@every_page
def test_links_of_documents_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: there is no {target}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(Path(target).read_text(encoding="utf-8")), link


def test_messages_that_the_page_on_checks_explains_exist():
    """Words of each message stand in a text of the package, or in one of pydantic's."""
    code = "\n".join(texts_of(ROOT / "limerank"))
    code += "\nInput should be a valid string\nExtra inputs are not permitted\nShould have at least"
    page = (ROOT / "docs" / "data" / "checks.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("|")]
    shown = [cell for cells in rows for cell in (cells[0], *cells[2:])]
    lacking = []
    for message in re.findall(r"`([^`]+)`", "\n".join(shown)):
        # Files, columns, numbers and types of the example; the package's text has gaps there.
        fixed = re.split(
            r"[.]{3}|: |'[^']*'|[(].*[)]|\d[\d-]*|NAME|click|csv|List|Binary|Movie", message
        )
        words = max(fixed, key=len).strip()
        if words not in code:
            lacking.append(f"{message}: no text of the package contains {words!r}")
    assert not lacking, "\n".join(lacking)


def test_the_page_on_python_has_every_public_name():
    import limerank

    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    errors = {name for name in limerank.__all__ if name.endswith("Error")}  # by their module
    assert "automodule:: limerank.errors" in page
    lacking = [name for name in limerank.__all__ if f"limerank.{name}" not in page]
    assert set(lacking) <= errors
