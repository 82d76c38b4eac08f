"""What results have in common: text, plain values, tables."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser

import polars as pl
import pytest
from rich.cells import cell_len

from limerank import results
from limerank.errors import SpecError
from limerank.ranking.explain import EventShare, Explanation
from limerank.ranking.results import Ranked, Ranking
from limerank.results import aligned


def ranking(count: int = 3, user: object = 7) -> Ranking:
    items = [Ranked(f"<{n}>", n, 1.5 - n, {"click": 0.25, "watch": 3.14159}) for n in range(count)]
    return Ranking(tuple(items), user, user == 7, 5, 9, {"user": 1.0, "score": 0.25})


def test_a_ranking_reads_well_in_a_console():
    assert repr(ranking()).splitlines() == [
        "user 7, 5 events: the best of 9 items (1.2 ms)",
        "        item       click     watch",
        "     1  <0>       0.2500    3.1416",
        "     2  <1>       0.2500    3.1416",
        "     3  <2>       0.2500    3.1416",
    ]
    assert repr(ranking(user=8)).startswith("unknown user 8, 5 events")
    assert repr(ranking(user=None)).startswith("an unknown user, 5 events")


def test_a_long_result_is_cut_in_its_repr_and_not_in_its_text():
    lines = repr(ranking(1000)).splitlines()
    assert len(lines) == results.SHOWN_LINES + 1
    assert lines[-1] == "... and 962 more lines: print text()"
    assert len(ranking(1000).text().splitlines()) == 1002


def test_a_ranking_is_a_table():
    table = ranking().to_polars()
    assert table.columns == ["user", "rank", "item", "value", "click", "watch"]
    assert table["rank"].to_list() == [1, 2, 3] and table["item"][0] == "<0>"
    assert ranking(0).to_polars().columns == ["user", "rank", "item", "value"]


def test_a_table_for_pandas():
    pandas = pytest.importorskip("pandas")
    table = ranking().to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table.to_dict("list") == ranking().to_polars().to_dict(as_series=False)


def test_pandas_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SpecError, match="pip install pandas; or use to_polars"):
        ranking().to_pandas()


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells[-1] += data


def test_a_notebook_shows_an_escaped_table():
    parser = _Cells()
    text = ranking(results.SHOWN_ROWS + 2)._repr_html_()
    parser.feed(text)
    assert not parser.open and "<0>" not in text
    assert parser.cells[0] == ranking(102).caption()
    assert parser.cells[1:13] == [
        "user", "rank", "item", "value", "click", "watch",
        "7", "1", "<0>", "1.5000", "0.2500", "3.1416",
    ]  # fmt: skip
    assert parser.cells[-1] == "... and 2 more rows"


def test_plain_values_are_json():
    found = json.loads(json.dumps(ranking().to_dict()))
    assert list(found) == ["user", "known", "events", "candidates", "items", "milliseconds"]
    assert found["items"][0] == {
        "id": "<0>", "value": 1.5, "scores": {"click": 0.25, "watch": 3.14159}
    }  # fmt: skip


def test_columns_are_aligned_however_wide_a_cell_is():
    lines = aligned([("a", "b"), ("the widest cell", "1"), ("漢字", "12")], "<>", (4, 3))
    assert [cell_len(line) for line in lines] == [23, 23, 23]
    assert [line.split() for line in lines][1:] == [["the", "widest", "cell", "1"], ["漢字", "12"]]


def test_frames_of_several_rankings_join():
    both = pl.concat([ranking().to_polars(), ranking(2).to_polars()])
    assert both["rank"].to_list() == [1, 2, 3, 1, 2]


def test_an_explanation_is_a_table_of_events():
    events = (
        EventShare(0, "a", 5, 1.5, 0.25, -0.5),
        EventShare(1, "b", 9, 0.0, 0.75, float("nan")),
        EventShare(2, "c", 9, 0.0, 0.0, 0.75),
    )
    explanation = Explanation("x", 1.25, 0.5, events, None, None)
    assert explanation.to_polars()["effect"].to_list() == [-0.5, None, 0.75]
    lines = repr(explanation).splitlines()
    assert lines[0] == "item x: value 1.2500, 0.5000 with an empty history"
    assert [line.split()[1] for line in lines[2:]] == ["c", "a", "b"]
    assert json.loads(json.dumps(explanation.to_dict()))["events"][1]["effect"] is None
