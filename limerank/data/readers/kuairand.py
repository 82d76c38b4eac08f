"""KuaiRand-Pure, -1K and -27K (Gao et al., CIKM 2022; kuairand.com), read in place.

Files, in the folder or in its ``data/``: ``log_standard_*.csv`` (one, or several in time and in
parts), ``log_random_*.csv``, ``user_features_*.csv``, ``video_features_basic_*.csv``,
``video_features_statistic_*.csv``. Other slices named ``log_*.csv`` or ``log_*.tsv`` are read too,
with those of the columns that they have.

Log columns:

=====================  ========================================================================
user_id, video_id      user, item
time_ms                time
is_click               label ``click``: a click, or in the single-column feed a play of 7 s
long_view              label ``long_view``: a play of 18 s, or of the full video if it is shorter
play_time_ms           label ``watch``, seconds, at most 300; ``duration_ms`` is the full length
is_like, is_follow,    outcomes that histories hold: ``like`` ... ``profile_enter``; any of them
is_comment,            may be made a label with ``labels=``
is_forward, is_hate,
is_profile_enter
comment_stay_time      outcome, milliseconds
tab                    context: the scenario in the app
date, hourmin          left out: they are time_ms again
profile_stay_time      left out: nearly the same as ``is_profile_enter``
is_rand                left out: no ranker knows which exposures an experiment will randomise
=====================  ========================================================================

User columns: ``*_num`` and ``register_days`` are counts; the ranges, flags (-124 stands for "not
known" and is a category like any other), ``user_active_degree`` and the encrypted
``onehot_feat0`` .. ``17`` are categories. The publishers took this snapshot once, on a day that
they do not name.

Video columns: ``author_id``, ``video_type``, ``upload_type``, ``music_id``, ``music_type`` and
``tag`` ("12,65") are categories; ``video_duration``, ``server_width`` and ``server_height`` are
numbers. Left out: ``upload_dt`` (a time split tests on days that training has never seen),
``visible_status`` (it is the status after the month), and the full statistics
file: its averages run over the test period too, so they leak the future.

``log_durations`` is for slices whose video table covers few of their videos: the lengths of videos
are taken from the log too (a video has one length, and it is known before it is played; 0 is
what pictures have). It holds one row per video in memory.

Random exposures (``log_random_*``) are left out unless ``random`` is true, as in the published
comparisons; including them makes histories complete.
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
    header,
    named,
    read_csv,
    reference,
    separator_of,
    split_by,
    wrong_folder,
)
from limerank.data.spec import EventFeature, EventSource, Feature, Spec, Table
from limerank.errors import DataError, SpecError, did_you_mean
from limerank.progress import Bar

WATCH_CAP = 300.0
"""Seconds. Longer plays (1 in 1,000) are mostly an unattended screen."""

SIGNALS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "profile_enter": "is_profile_enter",
}
"""Binary signals: our name and the column."""

USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
USER_CATEGORIES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{position}" for position in range(18)),
)
VIDEO_FILES = "video_features_basic_*.csv"
VIDEO_IDS = ("author_id", "music_id")
VIDEO_CATEGORIES = ("video_type", "upload_type", "music_type")
VIDEO_NUMBERS = ("video_duration", "server_width", "server_height")


def read(
    directory: Path,
    work: Path,
    *,
    quiet: bool = True,
    history: int = 256,
    split: Split | str = "time",
    labels: Sequence[str] = ("click", "watch", "long_view"),
    random: bool = False,
    log_durations: bool = False,
) -> Spec:
    """Describe a KuaiRand folder. Nothing is converted but for ``log_durations``.

    Args:
        directory: the folder.
        work: takes the video table of ``log_durations``.
        quiet: show no progress of it.
        history: events per history.
        split: "time", "position", "leave-last" or a Split.
        labels: what to predict, the main task first: "watch" and names of :data:`SIGNALS`. The
            other signals become outcomes that histories hold.
        random: whether to read the random exposures as well.
        log_durations: whether to take the lengths of videos from the log too.
    """
    logs = _logs(directory, random)
    common = set.intersection(*(set(header(log)) for log in logs))
    for needed in ("user_id", "video_id", "time_ms"):
        for log in logs:
            column(log, needed)
    videos = _videos(directory, logs[0].parent)
    if log_durations:
        videos = _with_durations(videos, directory, logs, work / "videos.parquet", quiet)
    signals = {name: written for name, written in SIGNALS.items() if written in common}
    features = []
    chosen = [_label(name, signals, common, logs) for name in labels]
    for name, written in signals.items():
        if name not in labels:
            features.append(EventFeature(name=name, kind="categorical", column=written))
    if "watch" not in labels and "play_time_ms" in common:
        features.append(EventFeature(name="watch", kind="numeric", column="play_time_ms"))
    if "comment_stay_time" in common:
        features.append(
            EventFeature(name="comment_stay", kind="numeric", column="comment_stay_time")
        )
    if "tab" in common:
        features.append(EventFeature(name="tab", kind="categorical", when="context"))
    return Spec(
        name=_name(logs),
        events=(
            EventSource(
                files=tuple(reference(log, directory) for log in logs),
                user="user_id",
                item="video_id",
                time="time_ms",
                time_unit="ms",
            ),
        ),
        labels=tuple(chosen),
        event_features=tuple(features),
        items=videos,
        users=_users(directory, logs[0].parent),
        split=split_by(split),
        history=History(length=history),
    )


def _logs(directory: Path, random: bool) -> list[Path]:
    for folder in (directory, directory / "data"):
        logs = named(folder, "log_*.csv", "log_*.tsv")
        if not random:
            logs = [log for log in logs if not log.name.startswith("log_random_")]
        if logs:
            return logs
    raise wrong_folder(
        directory, "a KuaiRand folder", "log_standard_*.csv, here or in data/ (or other log_*.csv)"
    )


def _name(logs: Sequence[Path]) -> str:
    for version in ("pure", "1k", "27k"):
        if any(version in log.name.split(".")[0].split("_") for log in logs):
            return f"kuairand-{version}"
    return "kuairand"


def _label(name: str, signals: dict[str, str], common: set[str], logs: Sequence[Path]) -> Label:
    if name == "watch":
        if "play_time_ms" not in common:
            raise _no_label(name, "play_time_ms", logs)
        return Label(
            name="watch",
            kind="duration",
            column="play_time_ms",
            scale=0.001,
            cap=WATCH_CAP,
            of="duration_ms" if "duration_ms" in common else None,
        )
    if name not in SIGNALS:
        known = ("watch", *SIGNALS)
        raise SpecError(
            f"no label {name!r}; expected watch or one of {', '.join(SIGNALS)}"
            f"{did_you_mean(name, known)}"
        )
    if name not in signals:
        raise _no_label(name, SIGNALS[name], logs)
    return Label(name=name, kind="binary", column=signals[name])


def _no_label(name: str, written: str, logs: Sequence[Path]) -> DataError:
    for log in logs:
        if written not in (found := header(log)):
            return DataError(
                f"{log} has no column {written} for the label {name}; found {', '.join(found)}"
            )
    raise AssertionError(written)


def _users(directory: Path, folder: Path) -> Table | None:
    files = named(folder, "user_features_*.csv")
    if not files:
        return None
    found = header(files[0])
    return Table(
        files=tuple(reference(file, directory) for file in files),
        id=column(files[0], "user_id"),
        features=(
            *(Feature(name=name, kind="categorical") for name in USER_CATEGORIES if name in found),
            *(
                Feature(name=name, kind="numeric", transform="log1p")
                for name in USER_COUNTS
                if name in found
            ),
        ),
    )


def _videos(directory: Path, folder: Path) -> Table | None:
    files = named(folder, VIDEO_FILES)
    if not files:
        return None
    found = header(files[0])
    features = [
        *(
            Feature(name=name, kind="categorical", min_count=ID_MIN_COUNT)
            for name in VIDEO_IDS
            if name in found
        ),
        *(Feature(name=name, kind="categorical") for name in VIDEO_CATEGORIES if name in found),
        *(
            Feature(name=name, kind="numeric", transform="log1p")
            for name in VIDEO_NUMBERS
            if name in found
        ),
    ]
    if "tag" in found:
        features.append(Feature(name="tag", kind="categorical", split=","))
    return Table(
        files=tuple(reference(file, directory) for file in files),
        id=column(files[0], "video_id"),
        features=tuple(features),
    )


def _with_durations(
    videos: Table | None, directory: Path, logs: Sequence[Path], out: Path, quiet: bool
) -> Table:
    """The video table with lengths from the log, as Parquet."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with Bar("lengths of videos", total=len(logs), unit="logs", quiet=quiet) as bar:
        lengths = pl.DataFrame(schema={"video_id": pl.Int64, "log": pl.Int64})
        for log in logs:
            column(log, "duration_ms")
            seen = (
                pl.scan_csv(log, separator=separator_of(log), ignore_errors=True)
                .group_by(pl.col("video_id").cast(pl.Int64, strict=False))
                .agg(pl.col("duration_ms").cast(pl.Int64, strict=False).max().alias("log"))
                .collect(engine="streaming")
            )
            lengths = pl.concat([lengths, seen]).group_by("video_id").agg(pl.col("log").max())
            bar.advance(1)
    lengths = lengths.drop_nulls().sort("video_id")
    features = () if videos is None else videos.features
    if videos is not None:
        files = named(logs[0].parent, VIDEO_FILES)
        table = pl.concat([read_csv(file) for file in files]).rename({videos.id: "video_id"})
        table = table.with_columns(pl.col("video_id").cast(pl.Int64, strict=False))
        lengths = table.join(lengths, on="video_id", how="full", coalesce=True)
    if "video_duration" in lengths.columns:
        lengths = lengths.with_columns(
            pl.coalesce(pl.col("video_duration").cast(pl.Float64, strict=False), "log")
        )
    else:
        lengths = lengths.rename({"log": "video_duration"})
        features += (Feature(name="video_duration", kind="numeric", transform="log1p"),)
    lengths.select("video_id", *(feature.column for feature in features)).write_parquet(out)
    return Table(files=(reference(out, directory),), id="video_id", features=features)
