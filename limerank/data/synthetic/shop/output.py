"""The files of a simulated shop: CSV as shops have it, the truth, and a description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from limerank.data.synthetic.shop.products import Products
from limerank.data.synthetic.shop.truth import LIST, Truth, joined
from limerank.data.synthetic.shop.world import ShopWorld

Ints = npt.NDArray[np.int64]

OFFSETS = ("+01:00", "+00:00", "+02:00", "-05:00")
OFFSET_SHARES = (0.6, 0.15, 0.15, 0.1)
"""Of the users: where they are, so in which offset from UTC their times are written."""
NO_PRICE, TEXT_PRICE = 0.06, 0.03
"""Shares of the events without a price, and with the currency before it."""
NO_ITEM_PRICE, ON_REQUEST = 0.05, 0.01
"""Shares of the items without a price, and with a text in its position."""
NAMES = ("view", "cart", "purchase")


def uuids(n: int, rng: np.random.Generator) -> pl.Series:
    """Distinct ids such as ``3f2b8c1e-9a4d-4c07-8e5b-61d0c2a97f13``."""
    raw = bytearray(rng.bytes(16 * n))
    raw[6::16] = bytes(0x40 | byte & 0x0F for byte in raw[6::16])
    raw[8::16] = bytes(0x80 | byte & 0x3F for byte in raw[8::16])
    text = raw.hex()
    cuts = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
    return pl.Series(
        ["-".join(text[at + a : at + b] for a, b in cuts) for at in range(0, 32 * n, 32)],
        dtype=pl.String,
    )


def event_frame(
    columns: dict[str, Any], ids: dict[str, pl.Series], prices: Any, rng: np.random.Generator
) -> pl.DataFrame:
    """The events as the shop writes them, in order of time.

    Args:
        columns: ``time`` in ms since 1970, ``user``, ``session``, ``item`` and ``event``, numbers.
        ids: of users, sessions and items, as text.
        prices: of each item.
        rng: decides about offsets and prices.
    """
    n = len(columns["time"])
    offset = rng.choice(len(OFFSETS), len(ids["user"]), p=OFFSET_SHARES)[columns["user"]]
    seconds = np.array([int(text[:3]) * 3600 for text in OFFSETS])
    local = columns["time"] + 1000 * seconds[offset]
    chance = rng.random(n)
    price = pl.Series(prices[columns["item"]]).round(2).cast(pl.String)
    written = pl.DataFrame(
        {
            "local": pl.Series(local).cast(pl.Datetime("ms")),
            "offset": pl.Series(list(OFFSETS)).gather(offset),
            "user": ids["user"].gather(columns["user"]),
            "session": ids["session"].gather(columns["session"]),
            "event": pl.Series(list(NAMES)).gather(columns["event"]),
            "item": ids["item"].gather(columns["item"]),
            "price": price,
            "chance": chance,
        }
    )
    return written.select(
        time=pl.col("local").dt.strftime("%Y-%m-%dT%H:%M:%S%.3f") + pl.col("offset"),
        user="user",
        session="session",
        event="event",
        item="item",
        price=pl.when(pl.col("chance") < NO_PRICE)
        .then(None)
        .when(pl.col("chance") < NO_PRICE + TEXT_PRICE)
        .then(pl.lit("EUR ") + pl.col("price"))
        .otherwise(pl.col("price")),
    )


def item_frame(products: Products, ids: pl.Series, rng: np.random.Generator) -> pl.DataFrame:
    """The item table as the shop writes it."""
    chance = rng.random(len(ids))
    return pl.DataFrame(
        {
            "id": ids,
            "title": products.titles(),
            "category": products.category_names(),
            "brand": products.brand_names(),
            "price": pl.Series(products.price).round(2).cast(pl.String),
            "chance": chance,
        }
    ).select(
        "id",
        "title",
        "category",
        "brand",
        price=pl.when(pl.col("chance") < NO_ITEM_PRICE)
        .then(None)
        .when(pl.col("chance") < NO_ITEM_PRICE + ON_REQUEST)
        .then(pl.lit("on request"))
        .otherwise(pl.col("price")),
    )


def write_truth(folder: Path, truth: Truth, ids: dict[str, pl.Series]) -> None:
    """``truth.parquet``, a row for each purchase, and ``truth-lists.parquet``, one for each item of
    each list."""
    pl.DataFrame(
        {
            "session": ids["session"].gather(joined(truth.session)),
            "item": ids["item"].gather(joined(truth.item)),
            "probability": joined(truth.probability),
            "rank": joined(truth.rank),
        }
    ).write_parquet(folder / "truth.parquet")
    best = joined(truth.best, (0, LIST))
    n, width = best.shape
    pl.DataFrame(
        {
            "session": ids["session"].gather(joined(truth.listed).repeat(width)),
            "rank": np.tile(np.arange(1, width + 1), n),
            "item": ids["item"].gather(best.ravel()),
            "probability": joined(truth.best_probability, (0, LIST)).ravel(),
        }
    ).write_parquet(folder / "truth-lists.parquet")


def shop_spec(world: ShopWorld) -> str:
    """The description of the log, in TOML."""
    return f"""\
# What will a user buy in the next session? limerank prepare shop.toml --out data/shop
name = "shop-{world.seed}"

[[events]]
files = ["events.csv"]
user = "user"
item = "item"
time = "time"
time_unit = "text"                  # such as 2026-11-29T14:03:22.125+01:00
request = "session"                 # a history ends where the session begins

[[labels]]
name = "purchase"
kind = "positive"                   # purchases are to be predicted; views and carts are history
column = "event"
equals = "purchase"

[items]
files = ["items.csv"]
id = "id"
display = ["title"]                 # shown with rankings, never learned from
null_values = {{ price = ["on request"] }}
features = [
    {{ name = "category", kind = "categorical" }},
    {{ name = "brand", kind = "categorical" }},
    {{ name = "price", kind = "numeric", transform = "log1p" }},
]
"""
