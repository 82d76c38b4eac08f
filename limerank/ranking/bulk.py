"""Every user's best items, a batch of users at a time, into one Parquet or CSV file.

The users of a batch share one pass over the index. Finished parts are stored in ``OUT.partial``
until the file is complete: called again with the same arguments, a killed job resumes after them.
"""

from __future__ import annotations

import hashlib
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
    write_json,
)
from limerank.models.tasks import predictions
from limerank.parts import Part, check_same, digest_of, read_sealed, sealed, settled
from limerank.progress import Bar
from limerank.ranking.recommender import Recommender
from limerank.ranking.rules import Rules, rules_of
from limerank.ranking.scorer import weights_of_tasks
from limerank.results import Result
from limerank.storage.arguments import NEW_FILE, with_uris

PART = 8192
"""Users of a part: a killed job repeats about so many at most."""
BATCH = 32
"""Users that share one pass over the index."""
JOB = "job.json"
"""In the folder of the parts: what they are parts of."""


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


@with_uris(out=NEW_FILE)
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
    asked = _asked(recommender, users, k, exclude_seen, task_weights, time, rules, batch)
    out = check_output(out, TABLE_ENDINGS)
    if out.exists() and not overwrite:
        raise FormatError(f"{out} already exists; pass --overwrite or choose another file")
    partial = partial_of(out)
    _begin(partial, asked.job, overwrite)
    _rank_parts(asked, partial, range(asked.parts), quiet)
    return _joined(asked, partial, out)


def rank_part(
    recommender: Recommender,
    out: str | os.PathLike[str],
    part: Part,
    *,
    users: Sequence[Any] | None = None,
    k: int = 100,
    exclude_seen: bool = True,
    task_weights: Mapping[str, float] | None = None,
    time: int | str | datetime | None = None,
    rules: Rules | Mapping[str, Any] | str | None = None,
    batch: int = BATCH,
    quiet: bool = True,
) -> int:
    """Rank for one part of the users of :func:`rank_all`, into ``OUT.partial``; :func:`join_ranked`
    writes ``out``, byte for byte as one process does.

    The users are split in order, in blocks of :data:`PART`. Parts may run in any order and at the
    same time, on machines that share the folder of ``out``; what is complete is not computed again.

    Returns:
        Number of users of this part.

    Raises:
        FormatError: the parts that are there are of another job.
        UnknownError, SpecError: as for :func:`rank_all`.
    """
    asked = _asked(recommender, users, k, exclude_seen, task_weights, time, rules, batch)
    partial = partial_of(check_output(out, TABLE_ENDINGS))
    check_same(partial, settled(partial / JOB, asked.job), asked.job)
    mine = part.range(asked.parts)
    _rank_parts(asked, partial, mine, quiet)
    return sum(len(asked.users_of(position)) for position in mine)


def join_ranked(
    recommender: Recommender,
    out: str | os.PathLike[str],
    *,
    users: Sequence[Any] | None = None,
    k: int = 100,
    exclude_seen: bool = True,
    task_weights: Mapping[str, float] | None = None,
    time: int | str | datetime | None = None,
    rules: Rules | Mapping[str, Any] | str | None = None,
    overwrite: bool = False,
) -> BulkRanking:
    """Join the parts of :func:`rank_part`, called with the same arguments, and remove them.

    Raises:
        FormatError: users are missing, the parts are of another job, or ``out`` exists and
            ``overwrite`` is false.
    """
    asked = _asked(recommender, users, k, exclude_seen, task_weights, time, rules, BATCH)
    out = check_output(out, TABLE_ENDINGS)
    if out.exists() and not overwrite:
        raise FormatError(f"{out} already exists; pass --overwrite or choose another file")
    partial = partial_of(out)
    if not (partial / JOB).exists():
        raise FormatError(f"{partial} has no parts to join; rank them with --part K/N first")
    check_same(partial, settled(partial / JOB, asked.job), asked.job)
    missing = [n for n in range(asked.parts) if not _path(partial, n).exists()]
    if missing:
        lacking = sum(len(asked.users_of(position)) for position in missing)
        raise FormatError(
            f"{partial} lacks {lacking:,} of {len(asked.rows):,} users, the first one at "
            f"{missing[0] * PART:,}: run the parts that failed with --part again, then join"
        )
    return _joined(asked, partial, out)


def partial_of(out: Path) -> Path:
    """Where the parts of a file are until they are joined."""
    return out.with_name(f"{out.name}.partial")


@dataclass(frozen=True)
class _Asked:
    """What a job ranks, checked, and how its parts are identified."""

    recommender: Recommender
    rows: NDArray[np.int64]
    k: int
    exclude_seen: bool
    task_weights: Mapping[str, float] | None
    time: int | str | datetime | None
    rules: Rules | None
    batch: int

    @property
    def parts(self) -> int:
        """Number of files that the job is written in."""
        return max(1, -(-len(self.rows) // PART))

    def users_of(self, position: int) -> NDArray[np.int64]:
        """The users of a file."""
        return self.rows[position * PART : (position + 1) * PART]

    @property
    def job(self) -> dict[str, Any]:
        """What identifies the job."""
        of = self.recommender
        weights = None if self.task_weights is None else dict(self.task_weights)
        return {
            "fingerprint": of.run.fingerprint,
            "index": digest_of(of.index.manifest),
            "data": digest_of(of.dataset.manifest),
            "users": hashlib.sha256(self.rows.tobytes()).hexdigest(),
            "k": self.k,
            "exclude_seen": self.exclude_seen,
            "task_weights": weights,
            "scorer": of.scorer.name,
            **({} if self.time is None else {"time": milliseconds(self.time)}),
            **({} if self.rules is None else {"rules": self.rules.model_dump(mode="json")}),
        }

    def frame(self, users: NDArray[np.int64]) -> pl.DataFrame:
        """The best items of users that share one pass."""
        of_users = (
            self.recommender, users, self.k, self.exclude_seen, self.task_weights, self.time
        )  # fmt: skip
        return _ranked(*of_users) if self.rules is None else _ruled(*of_users, self.rules)


def _asked(
    recommender: Recommender,
    users: Sequence[Any] | None,
    k: int,
    exclude_seen: bool,
    task_weights: Mapping[str, float] | None,
    time: int | str | datetime | None,
    rules: Rules | Mapping[str, Any] | str | None,
    batch: int,
) -> _Asked:
    check_integer("k", k, 1)
    weights_of_tasks(recommender.tasks, task_weights)
    rows = recommender.user_rows(users)
    checked = rules_of(rules)
    return _Asked(recommender, rows, k, exclude_seen, task_weights, time, checked, batch)


def _rank_parts(asked: _Asked, partial: Path, positions: range, quiet: bool) -> None:
    """Write files of a job that are missing."""
    total = sum(len(asked.users_of(position)) for position in positions)
    with Bar("ranking", total=total, unit="users", quiet=quiet) as bar:
        for position in positions:
            path, part = _path(partial, position), asked.users_of(position)
            if path.exists():
                bar.advance(len(part))
                continue
            frames = []
            for at in range(0, max(len(part), 1), asked.batch):
                some = part[at : at + asked.batch]
                frames.append(asked.frame(some))
                bar.advance(len(some))
            with new_file(path) as fresh:
                pl.concat(frames).write_parquet(fresh)


def _path(partial: Path, position: int) -> Path:
    return partial / f"part-{position:06d}.parquet"


def _joined(asked: _Asked, partial: Path, out: Path) -> BulkRanking:
    written = _join([_path(partial, position) for position in range(asked.parts)], out)
    shutil.rmtree(partial)
    return BulkRanking(out, len(asked.rows), written)


def _begin(partial: Path, job: dict[str, Any], overwrite: bool) -> None:
    """Make the folder for parts, or accept that of the same job."""
    if (partial / JOB).exists():
        advice = f"Pass --overwrite, or remove {partial}, to start over"
        try:
            held = read_sealed(partial / JOB, "a job that was stopped", advice)
        except FormatError:
            if not overwrite:
                raise
            held = {}
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
    write_json(partial / JOB, sealed(job))


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
