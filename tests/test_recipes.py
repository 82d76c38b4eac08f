"""Each recipe of the documentation on a small file of its layout, as its program writes it."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from tests.documents import ROOT, blocks

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = {
    title: text for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}
START = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
USERS, VISITS, ITEMS = 6, 10, 8
STEPS = ("view", "view", "cart", "purchase")
"""Of a visit: the first item is viewed, and the second one viewed and bought. Each other visit ends
with the cart."""


@dataclass(frozen=True)
class Step:
    """An event of a made-up log."""

    user: int
    visit: int
    item: int
    time: datetime
    kind: str


def steps() -> list[Step]:
    found = []
    for visit in range(VISITS):
        for user in range(USERS):
            begin = START + timedelta(days=2 * visit, hours=user)
            for at, kind in enumerate(STEPS if visit % 2 == 0 else STEPS[:3]):
                item = (user + 3 * visit + min(at, 1)) % ITEMS
                found.append(Step(user, visit, item, begin + timedelta(minutes=at), kind))
    return sorted(found, key=lambda step: step.time)


EVENTS = USERS * VISITS // 2 * 7
CARTS, PURCHASES = USERS * VISITS, USERS * VISITS // 2


def uuid(user: int) -> str:
    return str(UUID(int=0xA5 << 100 | user))


def write_csv(path: Path, columns: list[str], rows: list[list[Any]], mark: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=mark)
        writer.writerows([columns, *rows] if columns else rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def milliseconds(step: Step) -> int:
    return round(step.time.timestamp() * 1000)


def retailrocket(folder: Path) -> None:
    kinds = {"view": "view", "cart": "addtocart", "purchase": "transaction"}
    rows = [
        [
            milliseconds(one),
            one.user,
            kinds[one.kind],
            one.item,
            7 if one.kind == "purchase" else "",
        ]
        for one in steps()
    ]
    columns = ["timestamp", "visitorid", "event", "itemid", "transactionid"]
    write_csv(folder / "events.csv", columns, rows)


def one_file_each(folder: Path) -> None:
    for kind in ("view", "cart", "purchase"):
        rows = [
            [uuid(one.user), one.item, round(one.time.timestamp())]
            for one in steps()
            if one.kind == kind
        ]
        write_csv(folder / f"{kind}s.csv", ["user_id", "item_id", "time"], rows)


def rees46(folder: Path) -> None:
    rows = [
        [
            one.time.strftime("%Y-%m-%d %H:%M:%S UTC"), one.kind, 1000 + one.item,
            2053013552326770905, f"clothes.c{one.item % 3}" if one.item else "", "nord",
            f"{10 + one.item}.50", 500 + one.user, uuid(1000 * one.user + one.visit),
        ]
        for one in steps()
    ]  # fmt: skip
    columns = [
        "event_time", "event_type", "product_id", "category_id", "category_code", "brand",
        "price", "user_id", "user_session",
    ]  # fmt: skip
    write_csv(folder / "2019-Oct.csv", columns, rows[:100])
    write_csv(folder / "2019-Nov.csv", columns, rows[100:])


def ga4(folder: Path) -> None:
    """BigQuery writes integers of 64 bits as text, and leaves out what is null."""
    kinds = {"view": "view_item", "cart": "add_to_cart", "purchase": "purchase"}
    rows: list[dict[str, Any]] = []
    for one in steps():
        item = {
            "item_id": f"SKU_{one.item}",
            "item_name": f"Shirt {one.item}",
            "item_brand": "(not set)" if one.item == 0 else "Nord",
            "item_category": f"c{one.item % 3}",
            "price": 10.5 + one.item,
            "quantity": "1",
        }
        shared = {
            "event_date": one.time.strftime("%Y%m%d"),
            "event_timestamp": str(milliseconds(one) * 1000),
            "user_pseudo_id": f"{1000 + one.user}.{1700000000 + one.user}",
            "device": {"category": ("mobile", "desktop")[one.user % 2]},
            "event_params": [{"key": "ga_session_id", "value": {"int_value": str(one.visit)}}],
        }
        rows += [
            {**shared, "event_name": "page_view", "items": []},
            {**shared, "event_name": "view_item_list", "items": [item, item]},
            {**shared, "event_name": kinds[one.kind], "items": [item]},
        ]
    half = len(rows) // 2
    write_jsonl(folder / "events_20260301.jsonl.gz", rows[:half])
    write_jsonl(folder / "events_20260302.jsonl.gz", rows[half:])


def orders() -> dict[tuple[int, int], list[Step]]:
    """Purchases by order; each order has a second line."""
    found: dict[tuple[int, int], list[Step]] = {}
    for one in steps():
        if one.kind == "purchase":
            second = Step(one.user, one.visit, (one.item + 4) % ITEMS, one.time, one.kind)
            found[one.user, one.visit] = [one, second]
    return found


def shopify(folder: Path) -> None:
    """Fields of the order are in its first row only, but for name, e-mail and time."""
    columns = [
        "Name", "Email", "Financial Status", "Paid at", "Currency", "Total", "Created at",
        "Lineitem quantity", "Lineitem name", "Lineitem price", "Lineitem sku", "Vendor",
    ]  # fmt: skip
    rows = []
    for number, lines in enumerate(orders().values(), 1001):
        for at, one in enumerate(lines):
            time = (one.time + timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S +0200")
            first = ["paid", time, "EUR", "31.00"] if at == 0 else ["", "", "", ""]
            rows.append(
                [
                    f"#{number}",
                    f"Buyer{one.user}@example.com",
                    *first,
                    time,
                    1 + at,
                    f'Shirt "{one.item}", blue',
                    f"{10 + one.item}.50",
                    f"SHIRT-{one.item}",
                    f"Vendor {one.item % 3}",
                ]
            )
    write_csv(folder / "orders_export_1.csv", columns, rows)


def woocommerce(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "id": number,
            "status": ("completed", "processing")[number % 2],
            "date_created": (lines[0].time + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S"),
            "date_created_gmt": lines[0].time.strftime("%Y-%m-%dT%H:%M:%S"),
            "customer_id": 0,
            "billing": {"first_name": "A", "email": f"buyer{lines[0].user}@example.com"},
            "line_items": [
                {"id": at, "product_id": one.item, "quantity": 1 + at, "price": 10.5, "sku": ""}
                for at, one in enumerate(lines)
            ],
        }
        for number, lines in enumerate(orders().values(), 700)
    ]
    rows += [{**row, "id": row["id"] + 1000, "status": "cancelled"} for row in rows[:5]]
    write_jsonl(folder / "orders.jsonl", rows)
    products = [
        {
            "id": item,
            "name": f"Shirt {item}",
            "price": "" if item == 0 else f"{10 + item}.50",
            "categories": [{"id": 1, "name": "Shirts"}, {"id": 2, "name": f"c{item % 3}"}],
        }
        for item in range(ITEMS)
    ]
    write_jsonl(folder / "products.jsonl", products)


def snowplow(folder: Path) -> None:
    kinds = {"view": "product_view", "cart": "add_to_cart", "purchase": "transaction"}
    vendor = "com_snowplowanalytics_snowplow_ecommerce"
    rows: list[dict[str, Any]] = []
    for one in steps():
        shared = {
            "app_id": "shop",
            "derived_tstamp": one.time.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "domain_userid": uuid(one.user),
            "domain_sessionid": uuid(1000 * one.user + one.visit),
        }
        product = {
            "id": f"P{one.item}",
            "category": f"clothes/c{one.item % 3}",
            "price": 10.5,
            "currency": "EUR",
        }
        rows += [
            {**shared, "event": "page_view", "event_name": "page_view"},
            {
                **shared,
                "event": "unstruct",
                "event_name": "snowplow_ecommerce_action",
                f"unstruct_event_{vendor}_snowplow_ecommerce_action_1": {"type": kinds[one.kind]},
                f"contexts_{vendor}_product_1": [product],
            },
        ]
    write_jsonl(folder / "enriched" / "part-0.jsonl", rows)


def lastfm(folder: Path) -> None:
    rows = [
        [
            f"user_{one.user:06d}", one.time.strftime("%Y-%m-%dT%H:%M:%SZ"), "",
            f'The "{one.item}"', "", f"Song {one.visit}",
        ]
        for one in steps()
    ]  # fmt: skip
    path = folder / "userid-timestamp-artid-artname-traid-traname.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    users = [
        [
            f"user_{user:06d}",
            "mf"[user % 2],
            "" if user == 0 else 20 + user,
            "Norway",
            "Feb 1, 2006",
        ]
        for user in range(USERS)
    ]
    columns = ["#id", "gender", "age", "country", "registered"]
    write_csv(folder / "userid-profile.tsv", columns, users, "\t")


def amazon(folder: Path) -> None:
    rows = [
        {
            "rating": float(1 + at % 5),
            "title": "Fine",
            "images": [],
            "asin": f"B{one.item:08d}V",
            "parent_asin": f"B{one.item:08d}P",
            "user_id": f"AG{one.user}ABCDEFGHIJK",
            "timestamp": milliseconds(one),
            "verified_purchase": True,
        }
        for at, one in enumerate(steps())
    ]
    write_jsonl(folder / "All_Beauty.jsonl.gz", rows)
    meta = [
        {
            "main_category": "All Beauty",
            "price": None if item == 0 else 10.5,
            "store": "Soaps",
            "categories": ["Beauty", "Soap"],
            "parent_asin": f"B{item:08d}P",
        }
        for item in range(ITEMS)
    ]
    write_jsonl(folder / "meta_All_Beauty.jsonl.gz", meta)


@dataclass(frozen=True)
class Recipe:
    """What the log of a recipe contains."""

    write: Callable[[Path], None]
    events: int
    positives: int
    requests: int
    weight: float
    user: Any
    item: Any
    types: int = 0
    features: tuple[int, ...] = ()
    """Of each feature of the item table, how many items have a known value."""


WEIGHTED = CARTS + 3 * PURCHASES
RECIPES = {
    "Retailrocket": Recipe(
        retailrocket, EVENTS, CARTS + PURCHASES, CARTS + PURCHASES, WEIGHTED, 0, 3, 3
    ),
    "One file for each type of event": Recipe(
        one_file_each, EVENTS, PURCHASES, PURCHASES, PURCHASES, uuid(2), 3, 3
    ),
    "REES46 and other shops with one wide table": Recipe(
        rees46,
        EVENTS,
        CARTS + PURCHASES,
        CARTS + PURCHASES,
        WEIGHTED,
        502,
        1003,
        3,
        (ITEMS - 1, ITEMS, ITEMS),
    ),
    "Google Analytics 4": Recipe(
        ga4,
        EVENTS,
        CARTS + PURCHASES,
        CARTS + PURCHASES,
        WEIGHTED,
        "1002.1700000002",
        "SKU_3",
        3,
        (ITEMS, ITEMS - 1, ITEMS),
    ),
    "Shopify orders": Recipe(
        shopify,
        2 * PURCHASES,
        2 * PURCHASES,
        PURCHASES,
        2 * PURCHASES,
        "Buyer2@example.com",
        "SHIRT-3",
        features=(ITEMS, ITEMS),
    ),
    "WooCommerce orders": Recipe(
        woocommerce,
        2 * PURCHASES,
        2 * PURCHASES,
        PURCHASES,
        2 * PURCHASES,
        "buyer2@example.com",
        3,
        features=(ITEMS, ITEMS - 1),
    ),
    "Snowplow": Recipe(
        snowplow, EVENTS, PURCHASES, PURCHASES, PURCHASES, uuid(2), "P3", 3, (ITEMS, ITEMS)
    ),
    "Last.fm": Recipe(lastfm, EVENTS, EVENTS, EVENTS, EVENTS, "user_000002", 'The "3"'),
    "Amazon reviews": Recipe(
        amazon,
        EVENTS,
        EVENTS // 5 * 2,
        EVENTS // 5 * 2,
        EVENTS // 5 * 2,
        "AG2ABCDEFGHIJK",
        "B00000003P",
        features=(ITEMS, ITEMS, ITEMS, ITEMS - 1),
    ),
}


def test_every_recipe_is_tested() -> None:
    assert sorted(SECTIONS) == sorted(RECIPES)


@pytest.mark.parametrize("title", sorted(RECIPES))
def test_a_recipe(title: str, tmp_path: Path) -> None:
    recipe = RECIPES[title]
    (toml,) = blocks(SECTIONS[title], "toml")
    (tmp_path / "log.toml").write_text(toml, encoding="utf-8")
    recipe.write(tmp_path)
    summary = prepare(tmp_path / "log.toml", tmp_path / "out")
    data = Dataset(tmp_path / "out")
    assert summary.dropped == {}
    assert [one for one in summary.warnings if "sort" not in one] == []
    assert summary.events == recipe.events
    assert (summary.users, summary.items) == (USERS, ITEMS)
    assert recipe.user in data.user_ids.tolist()
    assert recipe.item in data.item_ids.tolist()
    assert int(data.events["time"].min()) == round(min(times_of(recipe)) * 1000)
    (label,) = data.encoding["labels"]
    assert label["kind"] == "positive"
    found = data.manifest["summary"]
    assert sum(found["positives"][label["name"]].values()) == recipe.positives
    assert data.events[f"label_{label['name']}"].sum() == recipe.weight
    assert sum(summary.requests.values()) == recipe.requests
    assert all(summary.requests[split] for split in ("train", "validation", "test"))
    assert sum(map(len, found["types"].values())) == recipe.types
    tables = found["tables"].get("item", {}).get("features", [])
    assert tuple(one["known"] for one in tables) == recipe.features


def times_of(recipe: Recipe) -> list[float]:
    """Of the events of its log."""
    some = [one for one in steps() if one.kind == "purchase" or recipe.events == EVENTS]
    return [one.time.timestamp() for one in some]


def test_recipes_say_which_visits_they_predict(tmp_path: Path) -> None:
    for title, text in SECTIONS.items():
        (tmp_path / "log.toml").write_text(blocks(text, "toml")[0], encoding="utf-8")
        by = load_spec(tmp_path / "log.toml").requests_by
        assert by == ("session" if title == "Snowplow" else "event")
