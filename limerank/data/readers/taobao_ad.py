"""Taobao-Ad, also known as Ali_Display_Ad_Click (Tianchi data set 56): display ads and shopping.

================  ===================================  =========================================
file              official columns                     what becomes of them
================  ===================================  =========================================
raw_sample.csv    user, time_stamp (seconds),          user, time, item; context ``pid`` (the
(read in place)   adgroup_id, pid, nonclk, clk         position of the ad); label ``click``; nonclk
                                                       is left out: it is 1 - clk
ad_feature.csv    adgroup_id, cate_id, campaign_id,    item features; price as log1p
(converted)       customer, brand, price
user_profile.csv  userid, cms_segid, cms_group_id,     user features, all categories
(read in place)   final_gender_code, age_level,
                  pvalue_level, shopping_level,
                  occupation, new_user_class_level
behavior_log.csv  user, time_stamp, btag (pv, cart,    events that only histories hold; outcome
(converted)       fav, buy), cate, brand               ``btag`` ("ad" for ads)
================  ===================================  =========================================

A behaviour names no product, only its category and brand. It becomes an event of a *pseudo item*:
one for each (category, brand), whose content is that category and brand, so that it shares their
embeddings with the ads. Its id is negative, -(cate * 1,000,000,000 + brand) (brand 0: none), where
ads have positive ids; in the item table the column ``candidate`` is false for pseudo items, so that
rankings never offer one.

Histories hold behaviours (which count as clicks) and, as events like any other, ads that were
clicked; with ``unclicked`` those that were shown in vain as well.

The official split: 6 to 12 May 2017 (Beijing time) is training, of which the last day validates
here; 13 May is the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.labels import Label
from limerank.data.protocol import History, Split
from limerank.data.readers.layout import (
    ID_MIN_COUNT,
    ParquetSheet,
    column,
    header,
    named,
    pieces,
    read_csv,
    reference,
    size_of,
    split_by,
    wrong_folder,
)
from limerank.data.spec import EventFeature, EventSource, Feature, Spec, Table
from limerank.errors import DataError
from limerank.progress import Bar

BRANDS = 1_000_000_000
"""Room for brands in a pseudo item's id."""
USER_NAMES = ("user", "userid", "user_id", "nick")
PROFILE = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
FILES = ("raw_sample.csv", "ad_feature.csv", "user_profile.csv", "behavior_log.csv")
AD_COLUMNS = {
    "item_id": pl.Int64,
    "cate_id": pl.Int64,
    "campaign_id": pl.Int64,
    "customer": pl.Int64,
    "brand": pl.Int64,
    "price": pl.Float64,
    "candidate": pl.Boolean,
}


def read(
    directory: Path,
    work: Path,
    *,
    quiet: bool = True,
    history: int = 50,
    split: Split | str = "official",
    behaviours: bool = True,
    unclicked: bool = False,
) -> Spec:
    """Describe a Taobao-Ad folder.

    Args:
        directory: the folder.
        work: takes the converted behaviours (about 12 bytes each) and the item table.
        quiet: show no progress.
        history: events per history.
        split: "official" (days, see above), "time", "position", "leave-last" or a Split.
        behaviours: whether to read behavior_log.csv.
        unclicked: whether ads that were shown and not clicked enter histories.
    """
    needed = [name for name in FILES if behaviours or name != "behavior_log.csv"]
    files = {name: named(directory, name) for name in needed}
    missing = [name for name, found in files.items() if not found]
    if missing:
        raise wrong_folder(
            directory, "a Taobao-Ad folder", f"{', '.join(needed)} (missing: {', '.join(missing)})"
        )
    sample, profile = files["raw_sample.csv"][0], files["user_profile.csv"][0]
    for name in ("pid", "clk"):
        column(sample, name)
    sources = [
        EventSource(
            files=(reference(sample, directory),),
            user=column(sample, *USER_NAMES),
            item=column(sample, "adgroup_id"),
            time=column(sample, "time_stamp"),
            constant={"btag": "ad"} if behaviours else {},
        )
    ]
    features = [EventFeature(name="pid", kind="categorical", when="context")]
    pairs = np.zeros(0, dtype=np.int64)
    if behaviours:
        out = work / "behaviours.parquet"
        pairs = _behaviours(files["behavior_log.csv"][0], out, quiet)
        sources.append(
            EventSource(
                files=(reference(out, directory),),
                user="user",
                item="item_id",
                time="time_stamp",
                shown=False,
                constant={"clk": 1, "pid": ""},
            )
        )
        features.append(EventFeature(name="btag", kind="categorical"))
    return Spec(
        name="taobao-ad",
        events=tuple(sources),
        labels=(Label(name="click", kind="binary", column="clk"),),
        event_features=tuple(features),
        items=_items(directory, files["ad_feature.csv"][0], pairs, work / "items.parquet"),
        users=Table(
            files=(reference(profile, directory),),
            id=column(profile, "userid", *USER_NAMES),
            features=tuple(
                # The official header ends in "new_user_class_level ", with a blank.
                Feature(name=name, kind="categorical", column=column(profile, name))
                for name in PROFILE
            ),
        ),
        split=split_by(split, _official),
        history=History(length=history, keep=None if unclicked else "click"),
    )


def _official() -> Split:
    return Split(validation_from="2017-05-12T00:00:00+08:00", test_from="2017-05-13T00:00:00+08:00")


def pseudo_items(cate: pl.Expr, brand: pl.Expr) -> pl.Expr:
    """Ids of pseudo items, i64 and negative; null where the category is not known."""
    brand = brand.fill_null(0)
    fits = cate.is_between(0, 1_000_000_000) & brand.is_between(0, BRANDS - 1)
    ids = -(cate * BRANDS + brand)
    return pl.when(fits & (ids < 0)).then(ids)


def _behaviours(path: Path, out: Path, quiet: bool) -> NDArray[np.int64]:
    """Convert the behaviours; returns the pseudo items that occur, sorted."""
    names = (column(path, *USER_NAMES), *(column(path, x) for x in ("time_stamp", "btag")))
    roles = dict(zip((*names, column(path, "cate"), column(path, "brand")), _ROLES, strict=True))
    types = {name: _ROLES[roles[name]] if name in roles else pl.String for name in header(path)}
    columns = {"user": pl.Int64, "time_stamp": pl.Int64, "btag": pl.String, "item_id": pl.Int64}
    known = np.zeros(0, dtype=np.int64)
    fresh: list[NDArray[np.int64]] = []
    with (
        Bar("behaviours", total=size_of([path]), unit="bytes", quiet=quiet) as bar,
        ParquetSheet(out, columns) as sheet,
    ):
        for piece in pieces(path, types, separator=",", skip_header=True, bar=bar):
            rows = piece.rename(roles).with_columns(
                pseudo_items(pl.col("cate"), pl.col("brand")).alias("item_id")
            )
            sheet.add(rows)
            fresh.append(rows["item_id"].drop_nulls().unique().to_numpy())
            if sum(map(len, fresh)) > max(1 << 20, len(known)):
                known, fresh = _distinct([known, *fresh]), []
    return _distinct([known, *fresh])


def _distinct(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The distinct values, sorted. (np.unique takes ten times as long on tens of millions.)"""
    values = np.sort(np.concatenate(parts))
    keep = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


_ROLES = {
    "user": pl.Int64,
    "time_stamp": pl.Int64,
    "btag": pl.String,
    "cate": pl.Int64,
    "brand": pl.Int64,
}


def _items(directory: Path, path: Path, pairs: NDArray[np.int64], out: Path) -> Table:
    """One table of the ads and the pseudo items."""
    names = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price")
    written = {
        column(path, name, *(("customer_id",) if name == "customer" else ())): name
        for name in names
    }
    ads = (
        read_csv(path)
        .rename(written)
        .rename({"adgroup_id": "item_id"})
        .with_columns(candidate=pl.lit(True))
    )
    # Ads without a brand have NULL; as a number that is null.
    ads = ads.select(pl.col(name).cast(kind, strict=False) for name, kind in AD_COLUMNS.items())
    if (ads["item_id"] <= 0).any():
        raise DataError(f"{path} has an adgroup_id below 1; those ids are used for behaviours")
    with ParquetSheet(out, AD_COLUMNS) as sheet:
        sheet.add(ads)
        for start in range(0, len(pairs), 1 << 20):
            ids = -pairs[start : start + (1 << 20)]
            sheet.add(
                pl.DataFrame(
                    {"item_id": -ids, "cate_id": ids // BRANDS, "brand": ids % BRANDS}
                ).with_columns(
                    pl.when(pl.col("brand") > 0).then("brand").alias("brand"),
                    pl.lit(None, pl.Int64).alias("campaign_id"),
                    pl.lit(None, pl.Int64).alias("customer"),
                    pl.lit(None, pl.Float64).alias("price"),
                    pl.lit(False).alias("candidate"),
                )
            )
    return Table(
        files=(reference(out, directory),),
        id="item_id",
        candidate="candidate",
        features=(
            Feature(name="cate_id", kind="categorical"),
            Feature(name="campaign_id", kind="categorical", min_count=ID_MIN_COUNT),
            Feature(name="customer", kind="categorical", min_count=ID_MIN_COUNT),
            Feature(name="brand", kind="categorical", min_count=ID_MIN_COUNT),
            Feature(name="price", kind="numeric", transform="log1p"),
        ),
    )
