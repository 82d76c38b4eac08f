"""Objects within rows: fields by dotted names, lists whose elements are rows, and selected rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.errors import DataError

ORDERS: list[dict[str, Any]] = [
    {
        "id": k,
        "status": ("completed", "cancelled", "Completed", "refunded")[k % 4],
        "created": f"2026-03-{1 + k:02d}T10:00:00+01:00",
        "customer": {"email": f"u{k % 3}@example.com", "address": {"country": "NO"}},
        "lines": [
            {"product": {"id": f"p{(k + j) % 5}"}, "price": 9.5 + j, "tags": ["a", "b"]}
            for j in range(k % 3)
        ],
    }
    for k in range(24)
]
"""Orders of 0, 1 and 2 lines."""
SOURCE: dict[str, Any] = {
    "user": "customer.email",
    "item": "lines.product.id",
    "time": "created",
    "time_unit": "text",
    "each": "lines",
}


def description(**more: Any) -> dict[str, Any]:
    return {
        "name": "orders",
        "events": [{**SOURCE, **more}],
        "labels": [{"name": "purchase", "kind": "positive"}],
        "event_features": [
            {"name": "price", "kind": "numeric", "column": "lines.price"},
            {"name": "country", "kind": "categorical", "column": "customer.address.country"},
        ],
    }


def lines(orders: list[dict[str, Any]] = ORDERS) -> list[str]:
    return [json.dumps(order) for order in orders]


def write(folder: Path, form: str) -> str:
    if form == "parquet":
        pl.DataFrame(ORDERS).write_parquet(folder / "orders.parquet")
    elif form == "jsonl.gz":
        (folder / "orders.jsonl.gz").write_bytes(gzip.compress("\n".join(lines()).encode()))
    else:
        (folder / f"orders.{form}").write_text("\n".join(lines()), encoding="utf-8")
    return f"orders.{form}"


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "ndjson", "parquet", "frame"])
def test_each_line_of_an_order_is_an_event(tmp_path: Path, form: str) -> None:
    files = [] if form == "frame" else [write(tmp_path, form)]
    frame = pl.DataFrame(ORDERS) if form == "frame" else None
    prepare(description(files=files), tmp_path / "out", events=frame, base=tmp_path)
    dataset = Dataset(tmp_path / "out")
    assert dataset.manifest["counts"]["events"] == 8 * (0 + 1 + 2)
    assert sorted(dataset.user_ids) == [f"u{k}@example.com" for k in (1, 2)]
    assert sorted(dataset.item_ids) == [f"p{k}" for k in range(5)]
    assert dataset.manifest["summary"]["noted"] == {"row without an element of lines": 8}
    user = dataset.user_ids.tolist().index("u1@example.com")
    events = slice(*dataset.event_offsets[user : user + 2])
    expected = [f"p{k % 5}" for k in range(24) if k % 3 == 1]
    assert dataset.item_ids[dataset.events["item"][events]].tolist() == expected
    shares = {one["name"]: one["known"] for one in dataset.manifest["summary"]["event_features"]}
    assert shares == {"price": 24, "country": 24}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_are_selected_by_words(tmp_path: Path, form: str) -> None:
    where = {"status": ["completed"], "customer.address.country": ["no"]}
    prepare(
        description(files=[write(tmp_path, form)], where=where), tmp_path / "out", base=tmp_path
    )
    dataset = Dataset(tmp_path / "out")
    completed = sum(len(one["lines"]) for k, one in enumerate(ORDERS) if k % 2 == 0)
    assert dataset.manifest["counts"]["events"] == completed
    assert dataset.manifest["summary"]["noted"]["row left out by where"] == 24 - completed


def test_values_that_no_row_has(tmp_path: Path) -> None:
    name = write(tmp_path, "jsonl")
    with pytest.raises(DataError, match=r"no row has status = paid .*'completed' \(6 rows\)"):
        prepare(
            description(files=[name], where={"status": ["paid"]}), tmp_path / "a", base=tmp_path
        )
    where = {"status": ["completed", "canceled"]}
    summary = prepare(description(files=[name], where=where), tmp_path / "b", base=tmp_path)
    assert any("did you mean 'cancelled'?" in warning for warning in summary.warnings)


def test_fields_of_the_item_table(tmp_path: Path) -> None:
    products = [
        {"ref": {"id": f"p{k}"}, "group": [{"name": "x"}, {"name": f"g{k}"}]} for k in range(5)
    ]
    (tmp_path / "products.jsonl").write_text("\n".join(lines(products)), encoding="utf-8")
    items = {
        "files": ["products.jsonl"],
        "id": "ref.id",
        "features": [{"name": "group", "kind": "categorical", "column": "group.name"}],
    }
    given = {**description(files=[write(tmp_path, "jsonl")]), "items": items}
    prepare(given, tmp_path / "out", base=tmp_path)
    assert Dataset(tmp_path / "out").encoding["items"]["tokens"] == 1 + 1 + 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"each": None}, r'each = "lines" makes a row of every element'),
        ({"each": "line"}, r"'line' of each does not exist; columns with lists: lines"),
        ({"each": "status"}, r"'status' of each holds String, not lists"),
        ({"user": "customer"}, r"name one of its fields customer.email, customer.address"),
        ({"user": "customer.mail"}, r"no column 'customer.mail'.*did you mean 'customer.email'"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_wrong_names(tmp_path: Path, form: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(
            description(files=[write(tmp_path, form)], **change), tmp_path / "out", base=tmp_path
        )


def test_a_column_with_dots_comes_before_a_field(tmp_path: Path) -> None:
    rows = [{"user.id": k % 3, "user": {"id": 9}, "item": k, "time": k} for k in range(12)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines(rows)), encoding="utf-8")
    for frame, files in ((pl.DataFrame(rows), []), (None, ["log.jsonl"])):
        source = {"files": files, "user": "user.id", "item": "item", "order": "time"}
        given = {
            "name": "dots",
            "events": [source],
            "labels": [{"name": "play", "kind": "positive"}],
        }
        prepare(given, tmp_path / "out", events=frame, base=tmp_path, overwrite=True)
        assert sorted(Dataset(tmp_path / "out").user_ids) == [0, 1, 2]


def test_a_list_of_plain_values(tmp_path: Path) -> None:
    """Such as a basket of item ids."""
    rows = [{"user": k % 3, "basket": [k, k + 1], "time": k} for k in range(12)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines(rows)), encoding="utf-8")
    source = {"files": ["log.jsonl"], "user": "user", "item": "basket", "each": "basket"}
    given = {
        "name": "baskets",
        "events": [{**source, "order": "time"}],
        "labels": [{"name": "purchase", "kind": "positive"}],
    }
    summary = prepare(given, tmp_path / "out", base=tmp_path)
    assert summary.events == 24
