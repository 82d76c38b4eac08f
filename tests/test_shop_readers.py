"""Readers of positives: Retailrocket and Amazon reviews, in files as publishers write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.data.readers import read
from limerank.data.spec import Spec
from limerank.errors import DataError
from tests.layouts import categories, content, events, item_row, write

DAY = 86_400_000
T0 = 1_433_221_332_117
"""June 2015, in milliseconds."""


def prepared(name: str, folder: Path, **options: Any) -> Dataset:
    spec, base = read(name, folder, folder.parent / "work", **options)
    prepare(spec, folder.parent / "out", base=base, overwrite=True)
    return Dataset(folder.parent / "out")


# Retailrocket


def retailrocket(folder: Path) -> None:
    """Twenty visits of five users: a view, a cart, and a transaction."""
    rows = []
    for k in range(20):
        user, item, time = k % 5, 100 + k % 4, T0 + k * DAY
        rows += [
            f"{time},{user},view,{item},",
            f"{time + 60_000},{user},addtocart,{item},",
            f"{time + 120_000},{user},transaction,{item},{4000 + k}",
        ]
    write(folder / "events.csv", "timestamp,visitorid,event,itemid,transactionid", *rows)
    write(
        folder / "item_properties_part1.csv",
        "timestamp,itemid,property,value",
        f"{T0 + 2 * DAY},100,categoryid,12",
        f"{T0},100,categoryid,11",
        f"{T0 + 19 * DAY},100,categoryid,13",
        f"{T0},100,available,1",
        f"{T0},100,888,n552.000 639502",
    )
    write(
        folder / "item_properties_part2.csv",
        "timestamp,itemid,property,value",
        f"{T0 + DAY},101,available,1",
        f"{T0 + 15 * DAY},101,available,0",
        f"{T0},101,categoryid,11",
        f"{T0 + 18 * DAY},102,categoryid,11",
        f"{T0 + 19 * DAY},102,categoryid,12",
        f"{T0},500,categoryid,99",
    )
    write(folder / "category_tree.csv", "categoryid,parentid", "11,1", "12,1", "13,2", "1,0", "0,")


def test_retailrocket(tmp_path: Path) -> None:
    retailrocket(tmp_path / "in")
    data = prepared("retailrocket", tmp_path / "in")
    log = events(data)
    assert len(log) == 60
    assert sorted(set(log["item"])) == [100, 101, 102, 103]
    assert log["label_purchase"].sum() == 20
    kinds = categories(data, "event", list(range(len(log))))
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "view": 20,
        "addtocart": 20,
        "transaction": 20,
    }
    assert sum(data.manifest["counts"]["requests"].values()) == 20
    assert data.manifest["summary"]["time"]["first"] == T0


def test_retailrocket_properties_are_those_of_the_end_of_training(tmp_path: Path) -> None:
    """Training ends on day 16: the category of day 2, not that of day 19; an item whose first
    property comes later has that one."""
    retailrocket(tmp_path / "in")
    data = prepared("retailrocket", tmp_path / "in")
    assert content(data, "item", item_row(data, 100)) == {
        "category": {"12"},
        "categories": {"12", "1", "0"},
        "available": {"1"},
    }
    assert content(data, "item", item_row(data, 101))["available"] == {"0"}
    assert content(data, "item", item_row(data, 102))["category"] == {"11"}
    newest = prepared("retailrocket", tmp_path / "in", split="leave-last")
    table = events(newest)
    assert len(table) == 60
    spec, _ = read("retailrocket", tmp_path / "in", tmp_path / "work", split="leave-last")
    assert spec.split.leave_last == 1
    rows = dict(zip(*_items_of(tmp_path / "work"), strict=True))
    assert rows == {100: "13", 101: "11", 102: "12", 500: "99"}


def _items_of(work: Path) -> tuple[list[int], list[str]]:
    import polars as pl

    table = pl.read_parquet(work / "items.parquet")
    return table["itemid"].to_list(), table["category"].to_list()


def test_retailrocket_options(tmp_path: Path) -> None:
    retailrocket(tmp_path / "in")
    data = prepared(
        "retailrocket", tmp_path / "in", target="addtocart, transaction", available_only=True
    )
    assert events(data)["label_purchase"].sum() == 40
    ranked = {id: bool(data.candidate[item_row(data, id)]) for id in (100, 101, 102, 103)}
    assert ranked == {100: True, 101: False, 102: True, 103: True}


def test_retailrocket_without_properties(tmp_path: Path) -> None:
    retailrocket(tmp_path / "in")
    for path in (tmp_path / "in").glob("[ci]*.csv"):
        path.unlink()
    data = prepared("retailrocket", tmp_path / "in")
    assert data.encoding["items"]["features"] == []


def test_retailrocket_tree_with_a_circle(tmp_path: Path) -> None:
    retailrocket(tmp_path / "in")
    write(tmp_path / "in" / "category_tree.csv", "categoryid,parentid", "12,1", "1,12")
    data = prepared("retailrocket", tmp_path / "in")
    assert content(data, "item", item_row(data, 100))["categories"] == {"12", "1"}


def test_descriptions_survive_json(tmp_path: Path) -> None:
    retailrocket(tmp_path / "r")
    jsonl(tmp_path / "a", "All_Beauty.jsonl", reviews_2023())
    for name, folder in (("retailrocket", "r"), ("amazon-reviews", "a")):
        spec, _ = read(name, tmp_path / folder, tmp_path / "work", history=7)
        assert spec.history.length == 7
        assert Spec.model_validate(json.loads(spec.model_dump_json())) == spec


# Amazon reviews


REVIEWS = [
    (f"AG{k % 4:02d}XXXXXXXXXX", f"B00{k % 3:02d}ZZZZZ"[:10], float(1 + k % 5), T0 + k * DAY)
    for k in range(24)
]


def jsonl(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows))
    if name.endswith(".gz"):
        (folder / name).write_bytes(gzip.compress(text.encode()))
    else:
        (folder / name).write_text(text, encoding="utf-8")


def reviews_2023() -> list[dict[str, Any]]:
    return [
        {
            "rating": rating,
            "title": "Fine, mostly",
            "text": "As described.",
            "images": [{"small_image_url": "x"}] if k % 7 == 0 else [],
            "asin": f"{item[:-1]}V",
            "parent_asin": item,
            "user_id": user,
            "timestamp": time,
            "helpful_vote": 0,
            "verified_purchase": True,
        }
        for k, (user, item, rating, time) in enumerate(REVIEWS)
    ]


META = [
    {
        "main_category": "All Beauty",
        "title": f"Soap {k}",
        "average_rating": 4.5,
        "rating_number": 10,
        "features": [],
        "description": [],
        "price": (12.99, None, "$1,012.50")[k],
        "images": [{"thumb": "x", "variant": "MAIN"}],
        "videos": [],
        "store": "Soaps Ltd",
        "categories": ["Beauty", "Soap"],
        "details": {"Brand": "x"},
        "parent_asin": item,
        "bought_together": None,
    }
    for k, item in enumerate(sorted({item for _, item, _, _ in REVIEWS}))
]


def test_amazon_reviews_of_2023(tmp_path: Path) -> None:
    jsonl(tmp_path / "in", "All_Beauty.jsonl.gz", reviews_2023())
    jsonl(tmp_path / "in", "meta_All_Beauty.jsonl", META)
    data = prepared("amazon-reviews", tmp_path / "in")
    log = events(data)
    assert len(log) == 24
    assert log["label_review"].sum() == 24
    assert data.manifest["summary"]["time"]["first"] == T0
    assert set(categories(data, "rating", list(range(24)))) == {"1", "2", "3", "4", "5"}
    assert content(data, "item", item_row(data, "B0000ZZZZZ")) == {
        "department": {"All Beauty"},
        "categories": {"Beauty", "Soap"},
        "store": {"Soaps Ltd"},
    }
    assert [one["name"] for one in data.encoding["items"]["features"]][-1] == "price"
    coverage = data.manifest["summary"]["tables"]["item"]["features"]
    assert [(one["name"], one["known"]) for one in coverage][-1] == ("price", 2)


def test_good_reviews_alone_are_positives(tmp_path: Path) -> None:
    """The others are part of histories."""
    jsonl(tmp_path / "in", "All_Beauty.jsonl", reviews_2023())
    data = prepared("amazon-reviews", tmp_path / "in", at_least=4)
    assert len(events(data)) == 24
    assert events(data)["label_review"].sum() == sum(r >= 4 for _, _, r, _ in REVIEWS)


@pytest.mark.parametrize(
    ("header", "order", "unit"),
    [
        ("user_id,parent_asin,rating,timestamp", (0, 1, 2, 3), 1),
        ("", (0, 1, 2, 3), 1000),
        ("", (1, 0, 2, 3), 1000),
    ],
)
def test_ratings_alone(tmp_path: Path, header: str, order: tuple[int, ...], unit: int) -> None:
    """2023, 2014 and 2018; seconds before 2023."""
    rows = [(user, item, rating, time // unit) for user, item, rating, time in REVIEWS]
    lines = [",".join(str(row[at]) for at in order) for row in rows]
    write(tmp_path / "in" / "ratings_Beauty.csv", *([header] if header else []), *lines)
    data = prepared("amazon-reviews", tmp_path / "in")
    assert sorted(data.user_ids) == sorted({user for user, *_ in REVIEWS})
    assert sorted(data.item_ids) == sorted({item for _, item, *_ in REVIEWS})
    assert data.manifest["summary"]["time"]["first"] == T0 // unit * unit
    assert len(events(data)) == 24


def test_amazon_reviews_before_2023(tmp_path: Path) -> None:
    old = [
        {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time // 1000}
        for user, item, rating, time in REVIEWS
    ]
    jsonl(tmp_path / "in", "reviews_Beauty_5.json.gz", old)
    meta = [
        {"asin": one["parent_asin"], "brand": "S", "categories": [["Beauty", "Soap"]]}
        for one in META
    ]
    jsonl(tmp_path / "in", "meta_Beauty.json.gz", meta)
    data = prepared("amazon-reviews", tmp_path / "in", split="leave-last")
    assert len(events(data)) == 24
    assert [one["name"] for one in data.encoding["items"]["features"]] == ["store"]


def test_amazon_folders_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "a" / "ratings_Beauty.csv", "one,two", "1,2")
    with pytest.raises(DataError, match=r"begins with 'one,two', expected user,item,rating,times"):
        read("amazon-reviews", tmp_path / "a", tmp_path / "work")
    write(tmp_path / "b" / "Beauty.json", "{'reviewerID': 'A1'}")
    with pytest.raises(DataError, match=r"has no JSON object.*single quotes is not JSON"):
        read("amazon-reviews", tmp_path / "b", tmp_path / "work")
    jsonl(tmp_path / "c", "x.jsonl", [{"who": 1}])
    with pytest.raises(DataError, match=r"has the keys who, expected user_id, parent_asin"):
        read("amazon-reviews", tmp_path / "c", tmp_path / "work")
    jsonl(tmp_path / "d", "x.jsonl", reviews_2023())
    jsonl(tmp_path / "d", "y.jsonl", reviews_2023())
    with pytest.raises(DataError, match=r"x.jsonl, y.jsonl; in two files .* count twice"):
        read("amazon-reviews", tmp_path / "d", tmp_path / "work")
