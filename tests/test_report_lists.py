"""The report shows lists of users, by title and category, beside item-kNN's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from limerank.data.dataset import Dataset
from limerank.evaluation.evaluate import evaluate
from limerank.evaluation.list_metrics import peer
from limerank.evaluation.lists import draw_requests, rank_lists
from limerank.report.lists import ITEMS, ItemTexts, user_lists
from limerank.report.page import write_report
from limerank.training.trainer import train
from tests.test_display import write_titles


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_titles(tmp_path_factory.mktemp("report"), ["title", "image"])


def test_an_item_is_its_title_and_categories(data):
    dataset = Dataset(data)
    texts = ItemTexts(dataset)
    for row, id in enumerate(dataset.item_ids.tolist()):
        line = texts.line(row)
        tags = sorted({f"t{id % 3}", f"t{id % 7}"})
        parts = line.detail.split(", ")
        if id % 7 == 3:
            assert line.title == f"https://img.example/{id}.jpg"
        else:
            assert line.title == f"Item no. {id} – «é»"
        assert parts[0] == str(id)
        assert sorted(part for part in parts[1:] if part.startswith("t")) == tags
        assert [part for part in parts[1:] if part.startswith("g")] == [f"g{id % 5}"]


def test_lists_are_those_that_are_measured(data):
    dataset = Dataset(data)
    ranker = peer(dataset, "most-popular")
    found = user_lists("counts", ranker, dataset)
    assert 2 <= len(found) <= 4 and len({one.user for one in found}) == len(found)
    assert [one.events for one in found] and all(one.events > 0 for one in found)
    drawn = draw_requests(dataset, dataset.requests_of("test"), "click", "out")
    top = rank_lists(ranker, dataset, drawn, ITEMS).top
    texts = ItemTexts(dataset)
    titles = {
        (
            str(dataset.user_ids[dataset.requests["user"][request]]),
            tuple(texts.line(row).title for row in rows if row >= 0),
        )
        for request, rows in zip(drawn.rows.tolist(), top.tolist(), strict=True)
    }
    for one in found:
        assert list(one.columns) == ["history, newest first", "counts", "item-knn", "chosen next"]
        assert (one.user, tuple(line.title for line in one.columns["counts"])) in titles
        chosen = {line.title for line in one.columns["chosen next"]}
        for name in ("counts", "item-knn"):
            for line in one.columns[name]:
                assert line.chosen == (line.title in chosen)
        assert len(one.columns["history, newest first"]) == min(one.events, ITEMS)
        notes = {line.note for line in one.columns["history, newest first"]}
        assert notes <= {"", "click"}


def test_the_page_shows_lists_and_peers(data, tmp_path):
    train(data, tmp_path / "knn", model="item-knn")
    result = evaluate(tmp_path / "knn", k=(3,))
    write_report(tmp_path / "page.html", runs=[tmp_path / "knn"])
    page = (tmp_path / "page.html").read_text()
    assert "Lists of some users" in page and "Item no." in page and "✓" in page
    assert list(result.peers) == ["most-popular", "chance"]
    for name in ("most-popular", "chance"):
        row = re.search(rf"<tr><td>{name}</td>(.*?)</tr>", page)
        assert row is not None and f"{result.peers[name]['ndcg@3']:.4f}" in row[1]
    evaluate(tmp_path / "knn", lists=0)
    write_report(tmp_path / "page.html", runs=[tmp_path / "knn"])
    assert "Lists of some users" not in (tmp_path / "page.html").read_text()


def test_a_split_without_positives_has_no_lists(data):
    dataset = Dataset(data)
    held = np.flatnonzero(dataset.requests["split"] == 2)
    dataset.requests["split"] = np.where(
        np.isin(np.arange(len(dataset.requests["split"])), held), 0, dataset.requests["split"]
    )
    assert user_lists("counts", peer(dataset, "most-popular"), dataset) == []
