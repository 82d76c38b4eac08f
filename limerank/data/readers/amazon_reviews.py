"""Amazon reviews (jmcauley.ucsd.edu/data/amazon, amazon-reviews-2023.github.io): one category.

============================  ===========================  =========================================
file                          official columns             what becomes of them
============================  ===========================  =========================================
NAME.csv (2023, with header)  user_id, parent_asin,        user, item, ``rating``, time: ms in 2023,
NAME.csv, ratings_NAME.csv    rating, timestamp; user,     seconds before; ratings without a header
(2014, 2018, no header)       item, rating, timestamp      may have the item first: it is known by
                              (or the item first)          its ten characters
NAME.jsonl (2023)             user_id, parent_asin, asin,  the same; the item is parent_asin, so the
                              rating, timestamp, ...       colours of a product are one item
NAME.json (2014, 2018)        reviewerID, asin, overall,   the same
                              unixReviewTime, ...
meta_NAME.jsonl, .json        parent_asin (asin), price,   ``categories``, ``department`` (main
                              main_category, categories,   category), ``store`` (brand), ``price``
                              store (brand), ...
============================  ===========================  =========================================

Files may be compressed (``.gz``). Every review is a positive: its writer bought the product, or at
least chose it. ``at_least = 4`` takes only good ones; the others are then part of histories. The
rating is an outcome of histories. Mean ratings and numbers of ratings in meta files are left out:
they count reviews of the time of the test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limerank.data.labels import Label
from limerank.data.protocol import History, Split
from limerank.data.readers.layout import (
    ID_MIN_COUNT,
    first_objects,
    first_records,
    named,
    reference,
    split_by,
    wrong_folder,
)
from limerank.data.spec import EventFeature, EventSource, Feature, Spec, Table
from limerank.errors import DataError

ASIN = 10
"""Characters of a product's id; ids of users have 13 or more."""
MILLISECONDS = 1e11
"""Times from here on are milliseconds, others seconds."""
KEYS = (
    {"user": "user_id", "item": "parent_asin", "rating": "rating", "time": "timestamp"},
    {"user": "reviewerID", "item": "asin", "rating": "overall", "time": "unixReviewTime"},
)
"""Names of columns since 2023, and before."""
ORDERS = (("user", "item", "rating", "time"), ("item", "user", "rating", "time"))
"""Columns of ratings without a header."""


def read(
    directory: Path,
    work: Path,
    *,
    quiet: bool = True,
    history: int = 128,
    split: Split | str = "time",
    at_least: int = 0,
) -> Spec:
    """Describe a folder with the reviews of one category.

    Args:
        directory: the folder.
        work: not needed here: all files are read in place.
        quiet: not needed here.
        history: events per history.
        split: "time" (the same cut points for all users), "position" (within each user),
            "leave-last" (the last review of each user) or a Split.
        at_least: the rating from which a review is a positive; 0: every review is one.
    """
    meta = named(directory, "meta_*.jsonl", "meta_*.json")
    reviews = [
        path
        for path in named(directory, "*.csv", "*.jsonl", "*.json")
        if not path.name.startswith("meta_")
    ]
    if not reviews:
        raise wrong_folder(
            directory,
            "a folder of Amazon reviews",
            "the reviews of a category, such as All_Beauty.jsonl.gz or ratings_Beauty.csv, and for "
            "items meta_All_Beauty.jsonl.gz",
        )
    if len(reviews) > 1:
        names = ", ".join(path.name for path in reviews)
        raise DataError(
            f"{directory} has reviews in {names}; in two files the same reviews would count twice: "
            "leave one of them in the folder. To read several categories, write a description with "
            "--write-spec and add their files"
        )
    events, rating = _reviews(reviews[0], directory)
    label: dict[str, Any] = {"name": "review", "kind": "positive"}
    if at_least:
        label |= {"column": rating, "at_least": at_least}
    return Spec(
        name=directory.name or "amazon-reviews",
        events=(events,),
        labels=(Label(**label),),
        event_features=(EventFeature(name="rating", kind="categorical", column=rating),),
        items=_items(meta, directory) if meta else None,
        split=split_by(split),
        history=History(length=history),
    )


def _reviews(path: Path, directory: Path) -> tuple[EventSource, str]:
    """The source of a file of reviews, and its column of ratings."""
    files: dict[str, Any] = {"files": (reference(path, directory),)}
    if ".csv" in path.suffixes:
        records = first_records(path)
        keys = next((one for one in KEYS if set(one.values()) <= set(records[0])), None)
        names = tuple(records[0]) if keys is not None else _order(path, records)
        if keys is None:
            keys, files["columns"] = {name: name for name in names}, names
        rows = [dict(zip(names, one, strict=False)) for one in records]
    else:
        rows = first_objects(path)
        keys = next((one for one in KEYS if one["user"] in rows[0]), None)
        if keys is None:
            raise DataError(
                f"{path} has the keys {', '.join(rows[0])}, expected "
                f"{' or '.join(', '.join(one.values()) for one in KEYS)}"
            )
        files["format"] = "jsonl"
    times = [row.get(keys["time"]) for row in rows]
    return (
        EventSource(
            **files,
            user=keys["user"],
            item=keys["item"],
            time=keys["time"],
            time_unit="ms" if _milliseconds(times) else "s",
        ),
        keys["rating"],
    )


def _order(path: Path, records: list[list[str]]) -> tuple[str, ...]:
    """The columns of ratings without a header: the item's ids have ten characters."""
    full = [one for one in records if len(one) == len(ORDERS[0])]
    for order in ORDERS:
        at = order.index("item")
        if full and sum(len(one[at]) == ASIN for one in full) > len(full) / 2:
            return order
    raise DataError(
        f"{path} begins with {','.join(records[0])!r:.80}, expected user,item,rating,timestamp (or "
        f"the item first), where items have ids of {ASIN} characters"
    )


def _milliseconds(times: list[Any]) -> bool:
    """Whether most of some times are milliseconds, not seconds."""
    numbers = [float(time) for time in times if str(time).replace(".", "", 1).isdigit()]
    return sum(number >= MILLISECONDS for number in numbers) > len(numbers) / 2


def _items(meta: list[Path], directory: Path) -> Table:
    """The table of products in the meta files, read in place."""
    objects = [one for path in meta for one in first_objects(path)]
    keys = {key for one in objects for key in one}
    nested = {
        key
        for one in objects
        for key, value in one.items()
        if isinstance(value, list) and any(isinstance(part, (list, dict)) for part in value)
    }
    id = "parent_asin" if "parent_asin" in keys else "asin"
    features = [
        Feature(name=name, kind="categorical", column=column, min_count=count)
        for name, columns, count in (
            ("department", ("main_category", "main_cat"), 1),
            ("categories", ("categories", "category"), ID_MIN_COUNT),
            ("store", ("store", "brand"), ID_MIN_COUNT),
        )
        for column in [next((one for one in columns if one in keys - nested), "")]
        if column
    ]
    if "price" in keys:
        features.append(Feature(name="price", kind="numeric", transform="log1p"))
    return Table(
        files=tuple(reference(path, directory) for path in meta),
        format="jsonl",
        id=id,
        features=tuple(features),
    )
