"""The notebooks of ``examples`` run from top to bottom, and are stored without output."""

from __future__ import annotations

import json
import re

import pytest

from tests.documents import ROOT, links, run_notebook

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_a_notebook_is_stored_without_output_and_its_links_exist(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        if cell["cell_type"] == "markdown":
            for link in links("".join(cell["source"])):
                assert (path.parent / link).exists(), link


@pytest.mark.slow
def test_own_logs_end_in_sensible_rankings(tmp_path):
    shown = run_notebook(ROOT / "examples" / "own_logs.ipynb", tmp_path)
    (favourite,) = re.findall(r"favourite genre: (\w+)", shown)
    table = shown.partition("favourite genre")[2].partition("because of")[0]
    genres = re.findall(r"┆ (crime|history|poetry|travel) ", table)
    assert len(genres) == 10
    assert genres.count(favourite) >= 6, "most of the first ten are of the genre that is liked"
    assert re.search(
        rf"\({favourite}\), because of\n(  book-\d+ \(\w+\), effect [+-][\d.]+\n){{3}}", shown
    )
    assert "book-new" in shown


@pytest.mark.slow
def test_models_are_compared_with_an_interval(tmp_path):
    shown = run_notebook(ROOT / "examples" / "compare_models.ipynb", tmp_path)
    for model in ("popularity", "two-tower", "lime-mha"):
        assert shown.count(f"│ {model} ") >= 2
    assert "lime-mha" in shown and "two-tower" in shown
    assert int(shown.split()[-1]) > 10_000
