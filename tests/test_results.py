"""What results have in common: text, plain values, tables."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from rich.cells import cell_len

from limerank import results
from limerank.errors import SpecError
from limerank.ranking.anchored import AnchoredEffect
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
    assert table.columns == ["user", "rank", "item", "value", "click", "watch", "because"]
    assert table["rank"].to_list() == [1, 2, 3] and table["item"][0] == "<0>"


def test_the_columns_of_a_ranking_do_not_depend_on_its_contents():
    tasks = ("click", "watch")
    explanation = Explanation("<0>", 1.25, 0.5, (EventShare(0, 9, 5, 1.5, 1.0, 0.5),), None, None)
    explained = replace(ranking()[0], explanation=explanation)
    tables = [
        ranking().to_polars(),
        ranking(user="someone").to_polars(),
        ranking(user=None).to_polars(),
        Ranking((explained,), 7, True, 5, 9, tasks=tasks).to_polars(),
        Ranking((), 7, True, 5, 9, tasks=tasks).to_polars(),
    ]
    assert dict(tables[0].schema) == {
        "user": pl.String(), "rank": pl.Int64(), "item": pl.String(), "value": pl.Float64(),
        "click": pl.Float64(), "watch": pl.Float64(), "because": pl.List(pl.String()),
    }  # fmt: skip
    joined = pl.concat(tables)
    assert joined["user"].to_list() == ["7"] * 3 + ["someone"] * 3 + [None] * 3 + ["7"]
    assert joined["because"].to_list() == [None] * 9 + [["9"]]
    integers = Ranking((replace(explained, id=5),), 7, True, 5, 9, integer_ids=True)
    assert integers.to_polars()["item"].dtype == pl.Int64 and "because" in integers._repr_html_()


def test_rankings_are_compared_hashed_and_sliced():
    def explained(effect=float("nan"), links=1):
        events = (EventShare(0, 9, 5, 1.5, 1.0, float(effect)),)
        of = Explanation("<0>", 1.25, 0.5, events, np.full((2, 2), links), np.ones((2, 1)))
        items = (replace(ranking()[0], explanation=of), *ranking()[1:])
        return replace(ranking(), items=items)

    assert explained() == explained() and hash(explained()) == hash(explained())
    assert explained() != explained(0.5) and explained() != explained(links=2)
    assert explained() != ranking()
    assert len({ranking(), ranking(), ranking(2)}) == 2
    part = ranking()[1:]
    assert isinstance(part, Ranking) and [item.id for item in part] == ["<1>", "<2>"]
    assert part.to_polars()["rank"].to_list() == [1, 2] and part.candidates == 9


def test_control_characters_of_ids_are_escaped_in_texts_alone():
    red, turned = "\x1b[31mred", "a\n\u202eb"
    items = (Ranked(red, 0, 1.0, {"click": 0.5}), Ranked("👩\u200d🚀 東京", 1, 0.5, {"click": 0.5}))
    found = Ranking(items, turned, False, 0, 2)
    for text in (repr(found), found._repr_html_()):
        assert "\\x1b[31mred" in text and "a\\n\\u202eb" in text
        assert not {"\x1b", "\u202e"} & set(text)
        assert "👩\u200d🚀 東京" in text
    assert len(repr(found).splitlines()) == 4
    assert found.to_dict()["items"][0]["id"] == found.to_polars()["item"][0] == red


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


def test_a_ranking_names_events_and_then_anchored_links():
    events = (EventShare(0, 204, 5, 0.0, 0.7, 0.41), EventShare(1, 8, 6, 0.0, 0.3, -0.1))
    links = tuple(
        AnchoredEffect(kind, value, count, {"click": 1}, 0, 0.0, 6, effect, "in words")
        for kind, value, count, effect in (
            ("item", 3, 1, 0.35),
            ("genre", "Dra\x1bma", 12, 0.1),
            ("year", "1994", 2, 0.05),
            ("year", "1995", 2, -0.5),
        )
    )
    explanation = Explanation(3, 1.0, 0.5, events, None, None, (), links)
    item = Ranked(3, 0, 1.0, {"click": 0.25}, explanation)
    text = Ranking((item,), 7, True, 2, 9).text()
    assert "204 (+0.41); this item once (+0.35), genre Dra" in text and "12 times (+0.10)" in text
    assert "\x1b" not in text and "1994" not in text
    found = item.to_dict()
    assert [one["value"] for one in found["anchored"]] == [3, "Dra\x1bma", "1994"]
    assert found["anchored"][0]["effect"] == 0.35 and json.dumps(found)
    plain = Ranked(3, 0, 1.0, {"click": 0.25}, replace(explanation, anchored=()))
    assert "anchored" not in plain.to_dict()
