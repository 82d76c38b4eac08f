"""Retailrocket (kaggle.com/datasets/retailrocket/ecommerce-dataset): views, carts, transactions.

=======================  ========================  ================================================
file                     official columns          what becomes of them
=======================  ========================  ================================================
events.csv               timestamp (ms),           time, user, item; ``event`` is the type of the
                         visitorid, event,         event: "view", "addtocart" or "transaction";
                         itemid, transactionid     label ``purchase``: the types in ``target``
item_properties_part*    timestamp (ms), itemid,   ``category``: the property "categoryid";
.csv                     property, value           ``available``: the property "available", 0 or 1
category_tree.csv        categoryid, parentid      ``categories``: the category and all above it
=======================  ========================  ================================================

The events are read in place; the properties and the tree become a small table of items. Properties
change over time. An item has the latest value before the end of training (at the share of the
target's events that ``split = "time"`` trains on), and where there is none, its first one; so
nothing is known of an item that only the time of the test shows. With another split it has its
newest value. The other properties are hashed words and are left out, and so is transactionid.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from limerank.data.labels import Label
from limerank.data.protocol import History, Split
from limerank.data.readers.layout import (
    column,
    concatenated,
    named,
    pieces,
    read_csv,
    reference,
    size_of,
    split_by,
    wrong_folder,
)
from limerank.data.spec import EventSource, Feature, Spec, Table
from limerank.progress import Bar

EVENTS = {
    "timestamp": pl.Int64,
    "visitorid": pl.String,
    "event": pl.String,
    "itemid": pl.Int64,
    "transactionid": pl.String,
}
PROPERTIES = {
    "timestamp": pl.Int64,
    "itemid": pl.Int64,
    "property": pl.String,
    "value": pl.String,
}
FEATURES = {"categoryid": "category", "available": "available"}
"""Property -> feature."""
LEVELS = 32
"""Categories above one another, at most: a tree with a circle ends there."""


def read(
    directory: Path,
    work: Path,
    *,
    quiet: bool = True,
    history: int = 128,
    split: Split | str = "time",
    target: tuple[str, ...] = ("transaction",),
    available_only: bool = False,
) -> Spec:
    """Describe a Retailrocket folder.

    Args:
        directory: the folder.
        work: takes the table of items.
        quiet: show no progress.
        history: events per history.
        split: "time" (the same cut points for all users), "position" (within each user),
            "leave-last" or a Split.
        target: the types of events to predict, such as "addtocart,transaction".
        available_only: whether items whose newest known property "available" is 0 are never
            recommended.
    """
    events = named(directory, "events.csv")
    if not events:
        raise wrong_folder(
            directory,
            "a Retailrocket folder",
            "events.csv, and for items item_properties_part1.csv, item_properties_part2.csv and "
            "category_tree.csv",
        )
    path = events[0]
    for name in EVENTS:
        column(path, name)
    rule = split_by(split)
    properties = named(directory, "item_properties*.csv")
    items = None
    if properties:
        end = _end_of_training(path, target, rule, quiet)
        tree = named(directory, "category_tree.csv")
        table = _items(properties, tree, end, quiet)
        work.mkdir(parents=True, exist_ok=True)
        table.write_parquet(work / "items.parquet")
        items = Table(
            files=(reference(work / "items.parquet", directory),),
            id="itemid",
            features=tuple(
                Feature(name=name, kind="categorical")
                for name in ("category", "categories", "available")
                if name in table.columns
            ),
            candidate="available" if available_only else None,
        )
    return Spec(
        name=directory.name or "retailrocket",
        events=(
            EventSource(
                files=(reference(path, directory),),
                user=column(path, "visitorid"),
                item=column(path, "itemid"),
                time=column(path, "timestamp"),
                time_unit="ms",
            ),
        ),
        labels=(Label(name="purchase", kind="positive", column="event", any_of=target),),
        items=items,
        split=rule,
        history=History(length=history),
    )


def _end_of_training(path: Path, target: tuple[str, ...], split: Split, quiet: bool) -> int | None:
    """The time at which training ends; None: the split is not by time."""
    if split.cuts is not None:
        return split.cuts[0]
    if split.by == "position" or split.leave_last is not None or split.column is not None:
        return None
    wanted = [one.lower() for one in target]
    with Bar("events", total=size_of([path]), unit="bytes", quiet=quiet) as bar:
        parts = [
            frame.filter(pl.col("event").str.to_lowercase().is_in(wanted))["timestamp"]
            for frame in pieces(path, EVENTS, separator=",", skip_header=True, bar=bar)
        ]
    times = pl.concat(parts).drop_nulls().sort()
    return int(times[min(int(split.train * len(times)), len(times) - 1)]) if len(times) else None


def _items(properties: list[Path], tree: list[Path], end: int | None, quiet: bool) -> pl.DataFrame:
    """A row of each item, with its properties before ``end`` (ms; None: its newest ones)."""
    with Bar("properties", total=size_of(properties), unit="bytes", quiet=quiet) as bar:
        parts: Iterable[pl.DataFrame] = (
            frame.filter(pl.col("property").is_in(list(FEATURES)))
            for path in properties
            for frame in pieces(path, PROPERTIES, separator=",", skip_header=True, bar=bar)
        )
        found = concatenated(parts, PROPERTIES).drop_nulls()
    before = pl.lit(True) if end is None else pl.col("timestamp") < end
    rank = pl.when(before).then(pl.col("timestamp")).otherwise(-pl.col("timestamp"))
    latest = (
        found.with_columns(rank.alias("rank"))
        .sort("rank", maintain_order=True)
        .group_by("itemid", "property", maintain_order=True)
        .last()
    )
    table = found.select("itemid").unique(maintain_order=True).sort("itemid")
    for name, feature in FEATURES.items():
        values = latest.filter(pl.col("property") == name).select(
            "itemid", pl.col("value").alias(feature)
        )
        table = table.join(values, on="itemid", how="left", maintain_order="left")
    if tree:
        above = _above(tree[0])
        paths = pl.Series(
            "categories",
            [None if one is None else _path(one, above) for one in table["category"].to_list()],
            dtype=pl.List(pl.String),
        )
        table = table.with_columns(paths)
    return table


def _above(path: Path) -> dict[str, str]:
    """Category -> the one above it."""
    table = read_csv(path).select(column(path, "categoryid"), column(path, "parentid"))
    return {
        category: parent
        for category, parent in table.iter_rows()
        if category is not None and parent is not None
    }


def _path(category: str, above: dict[str, str]) -> list[str]:
    """A category and those above it."""
    found = [category]
    while found[-1] in above and len(found) < LEVELS and above[found[-1]] not in found:
        found.append(above[found[-1]])
    return found
