"""Every user's best items, a batch of users at a time, into one Parquet or CSV file.

The users of a batch share one pass over the index. Finished parts are stored in ``OUT.partial``
until the file is complete: called again with the same arguments, a killed job resumes after them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from limerank.data.canonical import milliseconds
from limerank.errors import FormatError, check_integer
from limerank.files import (
    TABLE_ENDINGS,
    check_output,
    new_file,
    read_json,
    write_json,
)
from limerank.models.tasks import predictions
from limerank.progress import Bar
from limerank.ranking.recommender import Recommender
from limerank.ranking.rules import Rules, rules_of
from limerank.ranking.scorer import weights_of_tasks
from limerank.results import Result

PART = 8192
"""Users of a part: a killed job repeats about so many at most."""
BATCH = 32
"""Users that share one pass over the index."""


@dataclass(frozen=True, repr=False)
class BulkRanking(Result):
    """A file of many users' best items.

    Attributes:
        path: the file.
        users: number of users that were ranked for.
        rows: number of its rows, one per user and rank.
    """

    path: Path
    users: int
    rows: int

    def to_dict(self) -> dict[str, int]:
        return {"users": self.users, "rows": self.rows}

    def text(self) -> str:
        return f"{self.path}: {self.rows:,} ranked items of {self.users:,} users"

    def to_polars(self) -> pl.DataFrame:
        """The file, read into memory."""
        if self.path.suffix.lower() == ".csv":
            return pl.read_csv(self.path)
        return pl.read_parquet(self.path)


def rank_all(
    recommender: Recommender,
    out: str | os.PathLike[str],
    *,
    users: Sequence[Any] | None = None,
    k: int = 100,
    exclude_seen: bool = True,
    task_weights: Mapping[str, float] | None = None,
    time: int | str | datetime | None = None,
    rules: Rules | Mapping[str, Any] | str | None = None,
    batch: int = BATCH,
    overwrite: bool = False,
    quiet: bool = True,
) -> BulkRanking:
    """Rank the full catalogue for many users.

    The file has a row per user and rank: ``user``, ``rank`` (from 1), ``item``, ``value`` (the
    ranking value, f32) and one column per task, f32: a probability, or expected seconds.

    Args:
        recommender: the run, the index, the dataset and the scorer.
        out: the file, which appears when it is complete: CSV where its name ends in ``.csv``,
            else Parquet.
        users: external ids; all users of the dataset when not given.
        k: items for each; fewer where a user has seen nearly all.
        exclude_seen: leave out items that the user has seen.
        task_weights: as for :meth:`~limerank.ranking.recommender.Recommender.rank`.
        time: when the requests are made, as for
            :meth:`~limerank.ranking.recommender.Recommender.rank`; the end of the log when not
            given.
        rules: as for :meth:`~limerank.ranking.recommender.Recommender.rank`. With rules, users are
            ranked one after the other.
        batch: users that share one pass over the index.
        overwrite: replace ``out``, and discard the parts of a killed job with other arguments.
        quiet: show no progress.

    Raises:
        FormatError: ``out`` exists, or a killed job had other arguments, and ``overwrite`` is
            false; or ``out`` has another ending, or cannot be written.
        UnknownError: a user or a task is unknown.
        SpecError: k is below 1, or a rule is not valid.
    """
    out = check_output(out, TABLE_ENDINGS)
    if out.exists() and not overwrite:
        raise FormatError(f"{out} already exists; pass --overwrite or choose another file")
    check_integer("k", k, 1)
    weights_of_tasks(recommender.tasks, task_weights)
    checked = rules_of(rules)
    rows = recommender.user_rows(users)
    partial = out.with_name(f"{out.name}.partial")
    _begin(
        partial,
        {
            "fingerprint": recommender.run.fingerprint,
            "index": _hash(recommender.index.manifest),
            "data": _hash(recommender.dataset.manifest),
            "users": hashlib.sha256(rows.tobytes()).hexdigest(),
            "k": k,
            "exclude_seen": exclude_seen,
            "task_weights": None if task_weights is None else dict(task_weights),
            "scorer": recommender.scorer.name,
            **({} if time is None else {"time": milliseconds(time)}),
            **({} if checked is None else {"rules": checked.model_dump(mode="json")}),
        },
        overwrite,
    )
    parts = [rows[at : at + PART] for at in range(0, len(rows), PART)] or [rows]
    with Bar("ranking", total=len(rows), unit="users", quiet=quiet) as bar:
        for position, part in enumerate(parts):
            path = partial / f"part-{position:06d}.parquet"
            if path.exists():
                bar.advance(len(part))
                continue
            frames = []
            for at in range(0, max(len(part), 1), batch):
                some = part[at : at + batch]
                of_users = (recommender, some, k, exclude_seen, task_weights, time)
                frames.append(_ranked(*of_users) if checked is None else _ruled(*of_users, checked))
                bar.advance(len(some))
            with new_file(path) as fresh:
                pl.concat(frames).write_parquet(fresh)
    written = _join(
        [partial / f"part-{position:06d}.parquet" for position in range(len(parts))], out
    )
    shutil.rmtree(partial)
    return BulkRanking(out, len(rows), written)


def _hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _begin(partial: Path, job: dict[str, Any], overwrite: bool) -> None:
    """Make the folder for parts, or accept that of the same job."""
    if (partial / "job.json").exists():
        held = read_json(partial / "job.json", "a job that was stopped")
        if held == job:
            return
        if not overwrite:
            differs = ", ".join(name for name in job if held.get(name) != job[name])
            raise FormatError(
                f"{partial} holds the parts of a job that was stopped and had another {differs}; "
                "call it with the same arguments to resume, or pass --overwrite to start over"
            )
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_json(partial / "job.json", job)


def _ranked(
    recommender: Recommender,
    users: NDArray[np.int64],
    k: int,
    exclude_seen: bool,
    task_weights: Mapping[str, float] | None,
    time: int | str | datetime | None,
) -> pl.DataFrame:
    top = recommender.rank_users(
        users, k=k, exclude_seen=exclude_seen, task_weights=task_weights, time=time
    )
    found = top.rows >= 0
    tasks = recommender.tasks
    predicted = predictions(torch.from_numpy(top.logits[found]), tasks).numpy()
    ranks = np.broadcast_to(np.arange(1, top.rows.shape[1] + 1, dtype=np.int32), top.rows.shape)
    return pl.DataFrame(
        {
            "user": np.repeat(recommender.dataset.user_ids[users], found.sum(1)),
            "rank": ranks[found],
            "item": recommender.index.ids[top.rows[found]],
            "value": top.values[found],
            **{task.name: predicted[:, position] for position, task in enumerate(tasks)},
        }
    )


def _ruled(
    recommender: Recommender,
    users: NDArray[np.int64],
    k: int,
    exclude_seen: bool,
    task_weights: Mapping[str, float] | None,
    time: int | str | datetime | None,
    rules: Rules,
) -> pl.DataFrame:
    """As :func:`_ranked`, with rules."""
    names = [task.name for task in recommender.tasks]
    frames = [_ranked(recommender, users[:0], k, exclude_seen, task_weights, time)]
    for user in recommender.dataset.user_ids[users].tolist():
        found = recommender.rank(
            user, k=k, exclude_seen=exclude_seen, task_weights=task_weights, time=time, rules=rules
        ).items
        columns: dict[str, list[Any]] = {
            "user": [user] * len(found),
            "rank": list(range(1, len(found) + 1)),
            "item": [one.id for one in found],
            "value": [one.value for one in found],
            **{name: [one.scores[name] for one in found] for name in names},
        }
        frames.append(pl.DataFrame(columns, schema=frames[0].schema))
    return pl.concat(frames)


def _join(parts: list[Path], out: Path) -> int:
    """Write all parts to one file, which appears in one step; returns its number of rows."""
    rows = 0
    with new_file(out) as fresh:
        if out.suffix.lower() == ".csv":
            with open(fresh, "wb") as file:
                for position, part in enumerate(parts):
                    frame = pl.read_parquet(part)
                    rows += len(frame)
                    frame.write_csv(file, include_header=position == 0)
        else:
            with pq.ParquetWriter(fresh, pq.read_schema(parts[0])) as writer:
                for part in parts:
                    table = pq.read_table(part)
                    rows += len(table)
                    writer.write_table(table)
    return rows
