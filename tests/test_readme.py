"""The commands and examples of the README and the documents run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import write_csv

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(text) if name == language]


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_description_and_its_python_example(tmp_path, call):
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


@pytest.mark.parametrize(
    "page",
    [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))],
    ids=lambda page: page.name,
)
def test_what_documents_import_is_there(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    imports = [
        line
        for code in blocks(text, "python")
        for line in code.splitlines()
        if re.match(r"(from|import) limerank", line)
    ]
    reported = "from types import ModuleType as M\nprint([n for n, x in [*globals().items()]"
    reported += " if n[0] != '_' and isinstance(x, M)])"
    if imports:
        assert run("\n".join([*imports, reported]), tmp_path) == "[]\n"
