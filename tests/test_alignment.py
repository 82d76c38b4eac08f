"""Codes of one encoding in another: every code means the same item or value in both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from limerank.data.alignment import NONE, Alignment, Coded, align, bucket_codes
from limerank.data.dataset import Dataset
from limerank.data.history import GAP_EDGES_MS, EventEncoder
from limerank.data.prepare import prepare
from tests.worlds import write_log, write_pages


def coded(dataset: Dataset) -> Coded:
    return Coded(dataset.manifest, dataset.path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """A log's first half, and the full log: more items, other values, another item feature."""
    folder = tmp_path_factory.mktemp("pair")
    spec = write_log(folder / "full", users=40, items=30)
    events = pl.read_parquet(folder / "full" / "events.parquet").sort("time")
    found = []
    for name, rows, items in (("half", len(events) // 2, 20), ("full", len(events), 30)):
        some = events.head(rows).filter(pl.col("item_id") < items)
        table = pl.read_csv(folder / "full" / "items.csv").filter(pl.col("item_id") >= 30 - items)
        prepare(str(spec), folder / name / "data", events=some, items=table)
        found.append(Dataset(folder / name / "data"))
    return found[1], found[0]


@pytest.fixture(scope="module")
def alignment(pair: tuple[Dataset, Dataset]) -> Alignment:
    return align(coded(pair[0]), coded(pair[1]))


def test_items_have_the_id_of_the_same_item(
    pair: tuple[Dataset, Dataset], alignment: Alignment
) -> None:
    newer, earlier = pair
    known = {id: row + 1 for row, id in enumerate(earlier.item_ids[: earlier.trained_items])}
    assert alignment.items.tolist() == [known.get(id, 0) for id in newer.item_ids]
    assert 0 < np.count_nonzero(alignment.items) < len(newer.item_ids)


def test_content_tokens_mean_the_same_value(
    pair: tuple[Dataset, Dataset], alignment: Alignment
) -> None:
    names = []
    for dataset in pair:
        found: dict[int, tuple[str, str]] = {}
        for entry in dataset.encoding["items"]["features"]:
            if entry["kind"] == "categorical":
                table = pl.read_parquet(dataset.path / "vocab" / f"item_{entry['name']}.parquet")
                found[entry["start"]] = (entry["name"], "")
                for value, code in table.select("value", "code").iter_rows():
                    found[entry["start"] + code] = (entry["name"], value)
        names.append(found)
    row_of = {name: row for row, name in names[1].items()}
    assert len(names[0]) == len(alignment.item_tokens)
    for row, name in names[0].items():
        assert alignment.item_tokens[row] == row_of.get(name, NONE)


def test_numbers_are_the_same_column_only_on_the_same_scale(
    pair: tuple[Dataset, Dataset], alignment: Alignment
) -> None:
    assert alignment.item_numbers.tolist() == [NONE]  # another mean length of items
    itself = align(coded(pair[0]), coded(pair[0]))
    assert itself.item_numbers.tolist() == [0]
    assert itself.event_tokens.tolist() == list(range(pair[0].encoder.tokens))
    assert itself.context_tokens.tolist() == list(range(pair[0].encoder.context_tokens))
    assert itself.item_tokens.tolist() == list(range(pair[0].encoding["items"]["tokens"]))


def test_tokens_of_impressions_and_contexts(tmp_path: Path) -> None:
    spec = write_pages(tmp_path / "log")
    shown = pl.read_parquet(tmp_path / "log" / "shown.parquet").sort("time")
    first = shown.head(len(shown) // 2).filter(pl.col("device") != "d1")
    for name, rows in (("first", first), ("all", shown)):
        prepare(str(spec), tmp_path / name, events=[rows, str(tmp_path / "log/searched.parquet")])
    newer, earlier = Dataset(tmp_path / "all"), Dataset(tmp_path / "first")
    found = align(coded(newer), coded(earlier))
    for tokens, parts in (
        (found.event_tokens, "parts"),
        (found.context_tokens, "context_parts"),
    ):
        start, size = getattr(newer.encoder, parts)["feature_device"]
        first_row, _ = getattr(earlier.encoder, parts)["feature_device"]
        values = [{0: ""} for _ in range(2)]
        for at, dataset in enumerate((newer, earlier)):
            table = pl.read_parquet(dataset.path / "vocab" / "event_device.parquet")
            values[at] |= {code: value for value, code in table.iter_rows()}
        code_of = {value: code for code, value in values[1].items()}
        for code, value in values[0].items():
            expected = first_row + code_of[value] if value in code_of else NONE
            assert tokens[start + code] == expected
        assert size == 4
    assert found.impression_tokens[0] == 0
    assert len(found.impression_tokens) == newer.impressions.tokens
    assert found.impression_features[[0, 2]].tolist() == [0, 2]


def test_gaps_in_seconds_are_the_first_gap_of_former_datasets(
    pair: tuple[Dataset, Dataset],
) -> None:
    newer, earlier = coded(pair[0]), coded(pair[1])
    assert newer.encoding["gap_edges_ms"] == list(GAP_EDGES_MS)
    assert newer.manifest["format"] == 4
    encoding = {name: of for name, of in earlier.encoding.items() if name != "gap_edges_ms"}
    former = Coded({**earlier.manifest, "encoding": encoding}, pair[1].path)
    found = align(newer, former).context_tokens
    encoders = EventEncoder(newer.encoding, True), EventEncoder(encoding, True)
    nothing = {name: np.zeros(5, np.int64) for name in encoders[0].context_columns}
    newest = np.zeros(5, np.int64)
    time = np.array([0, 1_000, 30_000, 90_000, 7_200_000])
    tokens = [
        of.context(nothing, time, newest, np.array([0, 1, 1, 1, 1]))[:, -1] for of in encoders
    ]
    assert found[tokens[0]].tolist() == tokens[1].tolist()
    assert len(set(tokens[0].tolist())) == 5 and len(set(tokens[1].tolist())) == 4


def test_a_bucket_is_the_one_that_holds_its_lower_edge() -> None:
    codes = bucket_codes([1.0, 2.0, 3.0], [2.0])
    assert codes.tolist() == [0, 1, 1, 2, 2]
