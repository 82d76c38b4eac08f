"""MovieLens (grouplens.org): 1M and 10M with ``::`` files, 20M, 25M, 32M and latest with CSV files.

===========  ================================  =================================================
file         official columns                  what becomes of them
===========  ================================  =================================================
ratings.csv  userId, movieId, rating,          user, item; label ``like``: rating >= 4; outcome
ratings.dat  timestamp (seconds)               ``rating`` (a category, so that histories know 3
                                               from 1); time
movies.csv   movieId, title ("Heat (1995)"),   ``genres``, multi-valued; ``year`` out of the
movies.dat   genres ("Action|Crime")           title; with ``title_words`` the title's words
users.dat    UserID, Gender, Age, Occupation,  ``gender``, ``age`` (a code), ``occupation``,
(1M only)    Zip-code                          ``region``: the first digit of the zip code
===========  ================================  =================================================

The ratings are read in place; the small tables of movies and users are converted. The 1M tables
are in Latin-1, all others in UTF-8. tags and links are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from limerank.data.labels import Label
from limerank.data.protocol import History, Split
from limerank.data.readers.layout import (
    ID_MIN_COUNT,
    column,
    named,
    read_bytes,
    read_csv,
    reference,
    split_by,
    words,
    wrong_folder,
)
from limerank.data.spec import EventFeature, EventSource, Feature, Spec, Table

LIKE = 4.0
"""Ratings from here on mean that the user liked the movie."""


def read(
    directory: Path,
    work: Path,
    *,
    quiet: bool = True,
    history: int = 128,
    split: Split | str = "time",
    title_words: bool = False,
    positives: bool = False,
) -> Spec:
    """Describe a MovieLens folder.

    Args:
        directory: the folder.
        work: takes the tables of movies and users.
        quiet: not needed here.
        history: events per history.
        split: "time" (the same cut points for all users), "position" (within each user),
            "leave-last" (the last rating of each user) or a Split.
        title_words: whether the words of titles are features of movies.
        positives: whether every rating is a positive, to predict which movie comes next, instead of
            whether it is liked.
    """
    ratings = named(directory, "ratings.csv") or named(directory, "ratings.dat")
    if not ratings:
        raise wrong_folder(
            directory,
            "a MovieLens folder",
            "ratings.csv and movies.csv, or ratings.dat, movies.dat and users.dat",
        )
    path = ratings[0]
    work.mkdir(parents=True, exist_ok=True)
    if path.name.startswith("ratings.csv"):
        column(path, "rating")
        events = EventSource(
            files=(reference(path, directory),),
            user=column(path, "userId"),
            item=column(path, "movieId"),
            time=column(path, "timestamp"),
        )
        movies, users = named(directory, "movies.csv"), []
    else:
        events = EventSource(
            files=(reference(path, directory),),
            format="csv",
            separator="::",
            columns=("user", "movie", "rating", "time"),
            user="user",
            item="movie",
            time="time",
        )
        movies, users = named(directory, "movies.dat"), named(directory, "users.dat")
    return Spec(
        name=directory.name or "movielens",
        events=(events,),
        labels=(
            Label(name="next", kind="positive")
            if positives
            else Label(name="like", kind="binary", column="rating", at_least=LIKE),
        ),
        event_features=(EventFeature(name="rating", kind="categorical"),),
        items=_movies(directory, movies[0], work / "movies.parquet", title_words)
        if movies
        else None,
        users=_users(directory, users[0], work / "users.parquet") if users else None,
        split=split_by(split),
        history=History(length=history),
    )


def _users(directory: Path, path: Path, out: Path) -> Table:
    table = _dat(path, ("user_id", "gender", "age", "occupation", "zip"))
    table.select(
        pl.col("user_id").cast(pl.Int64, strict=False),
        "gender",
        "age",
        "occupation",
        pl.col("zip").str.head(1).alias("region"),
    ).write_parquet(out)
    names = ("gender", "age", "occupation", "region")
    return Table(
        files=(reference(out, directory),),
        id="user_id",
        features=tuple(Feature(name=name, kind="categorical") for name in names),
    )


def _movies(directory: Path, path: Path, out: Path, title_words: bool) -> Table:
    names = ("movie_id", "title", "genres")
    if path.name.startswith("movies.csv"):
        written = (column(path, "movieId"), column(path, "title"), column(path, "genres"))
        table = read_csv(path).select(written)
        table = table.rename(dict(zip(written, names, strict=True)))
    else:
        table = _dat(path, names)
    table = table.with_columns(
        pl.col("movie_id").cast(pl.Int64, strict=False),
        pl.when(pl.col("genres") != "(no genres listed)").then("genres").alias("genres"),
        pl.col("title").str.extract(r"\((\d{4})[^()]*\)\s*$").alias("year"),
    )
    features = [
        Feature(name="genres", kind="categorical", split="|"),
        Feature(name="year", kind="categorical"),
    ]
    if title_words:
        title = pl.col("title").str.replace(r"\(\d{4}[^()]*\)\s*$", "")
        table = table.with_columns(words(title).alias("words"))
        features.append(Feature(name="words", kind="categorical", min_count=ID_MIN_COUNT))
    table.drop("title").write_parquet(out)
    return Table(files=(reference(out, directory),), id="movie_id", features=tuple(features))


def _dat(path: Path, names: Sequence[str]) -> pl.DataFrame:
    """A small ``::`` file as text; a line with other fields becomes a row of nulls."""
    raw = read_bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    rows: list[list[str | None]] = []
    for line in text.replace("\r\n", "\n").strip("\n").split("\n"):
        fields = line.split("::")
        rows.append([*fields] if len(fields) == len(names) else [None] * len(names))
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
