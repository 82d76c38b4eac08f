"""Whether a table fits: the same report for every command that reads one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from limerank.data.coverage import TableCoverage, cover_features, cover_table, percent
from limerank.data.encoding import fit
from limerank.data.spec import Feature
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import change_items
from limerank.ranking.item_table import ItemTable
from limerank.runs.model import load_trained
from limerank.serving.fill import fill
from limerank.serving.stores import SqliteStore
from tests.catalogues import plain_log, shop

FEATURES = (
    Feature(name="genre", kind="categorical", split="|"),
    Feature(name="price", kind="numeric"),
    Feature(name="vector", kind="text-vector"),
)


def frame(**columns: list[Any]) -> pl.DataFrame:
    held: dict[str, Any] = {
        "id": [1, 2, 3, 4],
        "genre": ["a|b", "b", "", None],
        "price": ["1", "2 each", None, "3.5"],
        "vector": [[1.0, 2.0], None, [1.0, 0.0], [0.0, 0.0]],
    }
    return pl.DataFrame(held | columns, strict=False)


def encoding_of(table: pl.DataFrame) -> Any:
    return fit(table, FEATURES, np.array([True, True, False, False]), table["id"])


def test_values_are_counted_by_hand() -> None:
    table = frame()
    genre, price, vector = cover_features(
        frame(genre=["a|x", "x", "", "NULL"]), FEATURES, encoding_of(table)
    )
    assert (genre.rows, genre.present, genre.parsed, genre.known) == (4, 3, 3, 1)
    assert (genre.unknown, genre.missing_words, genre.word) == ("x", 1, "NULL")
    assert (price.present, price.parsed, price.known, price.unread) == (3, 2, 2, "2 each")
    assert (vector.present, vector.known) == (3, 3)


@pytest.mark.parametrize(
    ("log", "table", "matched", "used"),
    [
        ([1, 2, 9], [1, 2, 3, 4], 2, 2),
        (["1", "x"], ["1", "2", None, "4"], 1, 1),
        ([7, 8], ["SKU-7", "SKU-8", "a", "b"], 0, 0),
        ([], [1, 2, 3, 4], 0, 0),
    ],
)
def test_ids_of_both_sides(log: list[Any], table: list[Any], matched: int, used: int) -> None:
    rows = frame()
    found = cover_table("item", pl.Series(log), pl.Series(table), rows, FEATURES, encoding_of(rows))
    assert (found.ids, found.matched, found.used) == (len(log), matched, used)
    warned = [one for one in found.warnings() if "has a row for" in one]
    assert bool(warned) == (len(log) > 0 and matched == 0)
    if warned:
        assert "the log has such as '7', the table has such as 'SKU-7'" in warned[0]


@pytest.mark.parametrize(
    ("part", "total", "text"),
    [
        (0, 9, "0 %"),
        (9, 9, "100 %"),
        (1, 10**6, "0.1 %"),
        (10**6 - 1, 10**6, "99.9 %"),
        (1, 0, "-"),
    ],
)
def test_shares_are_0_or_100_only_where_they_are(part: int, total: int, text: str) -> None:
    assert percent(part, total) == text


def other_ids(path: Path) -> Path:
    items = pl.read_csv(plain_log() / "items.csv")
    name = "item" if "item" in items.columns else items.columns[0]
    items.with_columns(("SKU-" + pl.col(name).cast(pl.String)).alias(name)).write_csv(path)
    return path


@pytest.fixture(scope="module")
def text_shop(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return shop("two-tower")


def test_an_index_says_how_its_table_fits(text_shop: Any, tmp_path: Path) -> None:
    items = plain_log() / "items.csv"
    built = build_index(text_shop.run, tmp_path / "index", items=items)
    found = built.item_table
    assert found is not None
    assert found.matched == found.ids > 0
    assert found.warnings() == []
    again = change_items(text_shop.run, tmp_path / "index", put=items)
    assert [table.matched for table in again.tables] == [found.matched]


def test_tables_of_some_items_are_warned_of_where_their_ids_look_otherwise(
    text_shop: Any, tmp_path: Path, call: Any
) -> None:
    items = pl.read_csv(plain_log() / "items.csv")
    build_index(text_shop.run, tmp_path / "index", data=text_shop.data)
    id = text_shop.run.manifest["spec"]["items"]["id"]
    new = pl.col(id) + 5000
    sku = items.head(20).with_columns(("SKU-" + pl.col(id).cast(pl.String)).alias(id))
    assert TableCoverage("item", 9, 0, 9, 0, "A-B7", "7", ()).warnings(partial=True)
    assert not TableCoverage("item", 9, 0, 9, 0, "B07-X1", "BA1-77", ()).warnings(partial=True)
    for change, table, words in (
        ("--update", items.head(1), ""),
        ("--add", items.head(20).with_columns(new.alias(id)), ""),
        ("--put", items.head(2), ""),
        ("--put", sku, "no integer"),
    ):
        table.write_csv(tmp_path / "some.csv")
        path = tmp_path / "some.csv"
        _, _, output = call("index", text_shop.run.path, "--out", tmp_path / "index", change, path)
        assert (words in output) if words else ("warning" not in output), output


def test_a_server_says_how_its_table_fits(
    text_shop: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = load_trained(text_shop.run.path)
    index = Index.open(text_shop.index.path)
    good = ItemTable(trained, plain_log() / "items.csv").coverage(trained, index)
    assert good is not None
    assert good.matched == good.ids == index.items
    assert good.warnings() == []
    bad = ItemTable(trained, other_ids(tmp_path / "items.csv")).coverage(trained, index)
    assert bad is not None
    (warning,) = bad.warnings()
    assert f"has a row for 0 of {index.items} items of the index" in warning
    assert "the table has such as 'SKU-" in warning
    with caplog.at_level(logging.INFO, "limerank.serving"):
        assert ItemTable(trained, None).coverage(trained, index) is None


def test_fill_says_how_the_user_table_fits(text_shop: Any, tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "events.db") as store:
        done = fill(store, text_shop.data, base=plain_log())
    assert done.table is not None
    assert done.table.matched == done.features > 0
    assert done.table.warnings() == []
