"""MIND, the Microsoft News Dataset, small and large (Wu et al., ACL 2020; msnews.github.io).

The folder is one part (MINDsmall_train ...) or holds parts (MINDsmall_train and MINDsmall_dev, or
train and dev). All files are tab separated, without a header, and are converted:

=============  ================================  ================================================
file           official columns                  what becomes of them
=============  ================================  ================================================
behaviors.tsv  impression id                     request (numbered on through the parts)
               user id                           user
               time, "11/15/2019 8:55:22 AM"     time (taken as UTC)
               history, "N1 N2", oldest first    clicks before the log began: events that only
                                                 histories hold
               impressions, "N3-0 N4-1"          one event each: item; label ``click``
news.tsv       news id                           item
               category, subcategory             categories
               title                             its ``words``
               abstract, url                     left out
               entities of title and abstract    ``entities``: their Wikidata ids
=============  ================================  ================================================

Histories hold clicks only. An impression without labels (the test part) is skipped, and their
number shown.

The official split: the train part, of which the last day (14 November 2019) validates here, and
the dev part, 15 November, as the test. It is the default where both parts are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from limerank.data.labels import Label
from limerank.data.protocol import History, Split
from limerank.data.readers.layout import (
    ID_MIN_COUNT,
    ParquetSheet,
    concatenated,
    named,
    pieces,
    reference,
    size_of,
    split_by,
    words,
    wrong_folder,
)
from limerank.data.spec import EventSource, Feature, Spec, Table
from limerank.errors import DataError
from limerank.progress import Bar

BEHAVIOURS = {
    "impression_id": pl.Int64,
    "user_id": pl.String,
    "time": pl.String,
    "history": pl.String,
    "impressions": pl.String,
}
NEWS = {
    name: pl.String
    for name in (
        "news_id",
        "category",
        "subcategory",
        "title",
        "abstract",
        "url",
        "title_entities",
        "abstract_entities",
    )
}
TIME = "%m/%d/%Y %I:%M:%S %p"
WORD_MIN_COUNT = 5
"""Rarer words are mostly names, and those are among the entities."""
PARTS = ("train", "dev", "valid", "test")
"""In order of time."""
PART_IDS = 10_000_000_000
"""Added to the impression ids of a part, which start again in each part."""


def read(
    directory: Path,
    work: Path,
    *,
    quiet: bool = True,
    history: int = 50,
    split: Split | str = "",
    title_words: bool = True,
    entities: bool = True,
) -> Spec:
    """Describe a MIND folder.

    Args:
        directory: the folder.
        work: takes the converted files.
        quiet: show no progress.
        history: clicks per history.
        split: "official" (days, see above), "time", "position", "leave-last" or a Split;
            "" is "official" where the train and dev parts are there, and else "time".
        title_words: whether the words of titles are features of news.
        entities: whether the entities of titles and abstracts are.
    """
    parts = _parts(directory)
    impressions, histories = work / "impressions.parquet", work / "histories.parquet"
    _behaviours([named(part, "behaviors.tsv")[0] for part in parts], impressions, histories, quiet)
    both = {"train", "dev"} <= {_kind(part) for part in parts}
    return Spec(
        name=directory.name.lower() or "mind",
        events=(
            EventSource(
                files=(reference(impressions, directory),),
                user="user_id",
                item="news_id",
                time="time",
                time_unit="ms",
                request="impression_id",
            ),
            EventSource(
                files=(reference(histories, directory),),
                user="user_id",
                item="history",
                time="time",
                time_unit="ms",
                shown=False,
                lists=True,
                constant={"click": 1},
            ),
        ),
        labels=(Label(name="click", kind="binary"),),
        items=_news(directory, parts, work / "news.parquet", title_words, entities),
        split=split_by(split or ("official" if both else "time"), _official),
        history=History(length=history, keep="click"),
    )


def _official() -> Split:
    return Split(validation_from="2019-11-14T00:00:00", test_from="2019-11-15T00:00:00")


def _kind(part: Path) -> str:
    """ "train" of MINDsmall_train."""
    return part.name.lower().rsplit("_", 1)[-1]


def _parts(directory: Path) -> list[Path]:
    """The folders with behaviors.tsv, in order of time."""
    inner = sorted(directory.iterdir()) if directory.is_dir() else []
    parts = [part for part in (directory, *inner) if part.is_dir() and named(part, "behaviors.tsv")]
    if not parts:
        raise wrong_folder(
            directory,
            "a MIND folder",
            "behaviors.tsv and news.tsv, here or in folders such as MINDsmall_train, MINDsmall_dev",
        )
    for part in parts:
        if not named(part, "news.tsv"):
            raise wrong_folder(part, "a part of MIND", "behaviors.tsv and news.tsv")
    kinds = [kind for kind in map(_kind, parts) if kind in PARTS]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise DataError(
            f"{directory} holds several {' and '.join(twice)} parts: "
            f"{', '.join(part.name for part in parts)}; name one data set, such as MINDsmall"
        )
    order = {kind: position for position, kind in enumerate(PARTS)}
    return sorted(parts, key=lambda part: (order.get(_kind(part), len(order)), part.name))


def _behaviours(paths: Sequence[Path], impressions: Path, histories: Path, quiet: bool) -> None:
    shown = {"impression_id": pl.Int64, "user_id": pl.String, "time": pl.Int64}
    skipped = 0
    with (
        Bar("behaviors.tsv", total=size_of(paths), unit="bytes", quiet=quiet) as bar,
        ParquetSheet(impressions, {**shown, "news_id": pl.String, "click": pl.Int8}) as shows,
        ParquetSheet(
            histories,
            {"user_id": pl.String, "time": pl.Int64, "history": pl.List(pl.String)},
        ) as lists,
    ):
        for position, path in enumerate(paths):
            for piece in pieces(path, BEHAVIOURS, separator="\t", skip_header=False, bar=bar):
                labelled = pl.col("impressions").str.contains(r"-[01]( |$)").fill_null(True)
                rows = piece.filter(labelled).select(
                    pl.col("impression_id") + position * PART_IDS,
                    "user_id",
                    pl.col("time")
                    .str.to_datetime(TIME, time_unit="ms", strict=False)
                    .dt.epoch("ms"),
                    pl.col("history").str.strip_chars().str.split(" "),
                    pl.col("impressions").str.strip_chars().str.split(" "),
                )
                skipped += piece.height - rows.height
                if skipped:
                    bar.advance(0, note=f"{skipped:,} impressions without labels skipped")
                lists.add(rows.drop("impressions").filter(pl.col("history").is_not_null()))
                mark = pl.col("impressions").str.tail(2)
                marked = mark.is_in(["-0", "-1"])
                shows.add(
                    rows.drop("history")
                    .explode("impressions")
                    .select(
                        *shown,
                        pl.when(marked)
                        .then(pl.col("impressions").str.head(-2))
                        .otherwise("impressions")
                        .alias("news_id"),
                        pl.when(marked).then((mark == "-1").cast(pl.Int8)).alias("click"),
                    )
                )
    if skipped and shows.rows == 0:
        raise DataError(
            f"{', '.join(map(str, paths))}: no impression has labels (N1-0 N2-1); "
            "this is a test part: add the train or dev part"
        )


def _news(
    directory: Path, parts: Sequence[Path], out: Path, title_words: bool, entities: bool
) -> Table:
    with Bar("news.tsv", quiet=True) as bar:
        frames = [
            piece
            for part in parts
            for piece in pieces(
                named(part, "news.tsv")[0], NEWS, separator="\t", skip_header=False, bar=bar
            )
        ]
    news = concatenated(frames, NEWS).unique("news_id", keep="first", maintain_order=True)
    columns = ["news_id", "category", "subcategory"]
    features = [Feature(name=name, kind="categorical") for name in ("category", "subcategory")]
    if title_words:
        columns.append("words")
        features.append(Feature(name="words", kind="categorical", min_count=WORD_MIN_COUNT))
        news = news.with_columns(words(pl.col("title")).alias("words"))
    if entities:
        columns.append("entities")
        features.append(Feature(name="entities", kind="categorical", min_count=ID_MIN_COUNT))
        found = pl.concat_str("title_entities", "abstract_entities", ignore_nulls=True)
        news = news.with_columns(
            found.str.extract_all(r'"WikidataId": ?"Q\d+"')
            .list.eval(pl.element().str.extract(r"(Q\d+)"))
            .list.unique(maintain_order=True)
            .alias("entities")
        )
    news.select(columns).write_parquet(out)
    return Table(files=(reference(out, directory),), id="news_id", features=tuple(features))
