"""A prepared dataset: memory-mapped arrays, and the batches that models train on.

The folder is described in :mod:`limerank.data.folder`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.batch import Batch, Items, Sequences, Users
from limerank.data.features import FeatureTable
from limerank.data.folder import FORMAT, MANIFEST, SPLITS, open_array
from limerank.data.history import EventEncoder, latest
from limerank.data.pipeline import ahead
from limerank.data.ragged import ragged_index
from limerank.data.summary import DatasetSummary
from limerank.errors import FormatError, UnknownError, did_you_mean
from limerank.files import read_json

POOL_BATCHES = 128
"""Training batches are cut from pools of about so many batches, like requests together."""
EVENTS_PER_IMPRESSION = 64
"""A request with more history events per impression counts as more impressions in a batch."""


class Dataset:
    """A folder that ``limerank prepare`` wrote.

    Raises:
        FormatError: the folder is not a finished dataset of this format version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest = read_json(self.path / MANIFEST, "a dataset")
        if self.manifest.get("format") != FORMAT:
            raise FormatError(
                f"{self.path} has dataset format {self.manifest.get('format')}, expected {FORMAT}; "
                "prepare it again with this version"
            )
        self.name: str = self.manifest["name"]
        self.clock: bool = self.manifest["clock"]
        self.encoding: dict[str, Any] = self.manifest["encoding"]
        self.trained_items: int = self.encoding["trained_items"]
        self.history_length: int = self.manifest["spec"]["history"]["length"]
        self.encoder = EventEncoder(self.encoding, self.clock)
        self.tasks: tuple[str, ...] = tuple(label["name"] for label in self.encoding["labels"])
        names = {"item", "time", *self.encoder.columns, *(f"label_{task}" for task in self.tasks)}
        self.events = {name: open_array(self.path / "events" / f"{name}.npy") for name in names}
        self.users = FeatureTable.open(self.path / "users")
        self.items = FeatureTable.open(self.path / "items")
        self.train_count: NDArray[np.int64] = open_array(self.path / "items" / "train_count.npy")
        self.candidate: NDArray[np.bool_] = open_array(self.path / "items" / "candidate.npy")
        self.event_offsets: NDArray[np.int64] = open_array(
            self.path / "users" / "event_offsets.npy"
        )
        self.requests = {
            name: open_array(self.path / "requests" / f"{name}.npy")
            for name in ("user", "first", "count", "history_start", "history_end", "split")
        }
        retained = self.path / "history" / "rows.npy"
        self.retained: NDArray[np.int64] | None = (
            open_array(retained) if retained.exists() else None
        )
        lengths = {len(column) for column in self.events.values()}
        if lengths != {self.manifest["counts"]["events"]}:
            raise FormatError(f"{self.path} is damaged: its event columns differ in length")

    def requests_of(self, split: str) -> NDArray[np.int64]:
        """Rows of the requests of one split, in user order."""
        if split not in SPLITS:
            raise UnknownError(
                f"no split {split!r}; expected one of {', '.join(SPLITS)}"
                f"{did_you_mean(split, SPLITS)}"
            )
        return np.flatnonzero(self.requests["split"] == SPLITS.index(split))

    @cached_property
    def summary(self) -> DatasetSummary:
        """What the dataset contains, as text and as a table of its splits."""
        return DatasetSummary.of(self.manifest)

    @cached_property
    def item_ids(self) -> NDArray[Any]:
        """External ids by item row."""
        return self._vocabulary("items")

    @cached_property
    def user_ids(self) -> NDArray[Any]:
        """External ids by user row."""
        return self._vocabulary("users")

    def _vocabulary(self, name: str) -> NDArray[Any]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self.path / "vocab" / f"{name}.parquet")
        ids: NDArray[Any] = table["id"].to_numpy()
        return ids

    def item_batch(self, rows: NDArray[Any]) -> Items:
        """What the item tower reads of these item rows."""
        ids = np.where(rows < self.trained_items, rows + 1, 0).astype(np.int64)
        return Items(ids=torch.from_numpy(ids), content=self.items.take(rows))

    def history_lengths(self, requests: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Events in the history of each request."""
        all_of_them = (
            self.requests["history_end"][requests] - self.requests["history_start"][requests]
        )
        lengths: NDArray[np.int64] = np.minimum(all_of_them, length)
        return lengths

    def batch(self, requests: NDArray[np.int64], length: int | None = None) -> Batch:
        """The requests with histories of at most ``length`` events and all their impressions."""
        columns = self.requests
        history = latest(
            self.events,
            self.encoder,
            columns["history_start"][requests],
            columns["history_end"][requests],
            self.history_length if length is None else length,
            self.retained,
        )
        counts = columns["count"][requests].astype(np.int64)
        first = columns["first"][requests]
        width = int(counts.max(initial=0))
        real = np.arange(width) < counts[:, None]
        at = np.where(real, first[:, None] + np.arange(width), first[:, None])
        labels = np.stack([self.events[f"label_{task}"][at] for task in self.tasks], axis=-1)
        labels = np.where(real[..., None], labels, 0).astype(np.float32)
        candidates = self.events["item"][at]
        held = np.arange(history.items.shape[1]) < history.lengths[:, None]
        rows, distinct, candidate_positions, history_positions = _distinct(
            candidates[real], history.items[held]
        )
        candidate_index = np.zeros(real.shape, dtype=np.int64)
        candidate_index[real] = candidate_positions
        history_index = np.zeros(held.shape, dtype=np.int64)
        history_index[held] = history_positions
        context = self.encoder.context(
            {name: self.events[name][first] for name in self.encoder.context_columns},
            self.events["time"][first],
            history.newest,
            history.lengths,
        )
        return Batch(
            items=self.item_batch(rows),
            distinct=distinct,
            users=Users.from_history(
                history,
                items=history_index,
                features=self.users.take(columns["user"][requests]),
                context=torch.from_numpy(context),
            ),
            candidates=torch.from_numpy(candidate_index),
            counts=torch.from_numpy(counts),
            labels=torch.from_numpy(labels),
        )

    def sequences(self, requests: NDArray[np.int64]) -> Sequences:
        """The requests' impressions, each with exactly the events before it: consecutive requests
        of a user are one history, the whole of it up to the last impression.

        Args:
            requests: rows of requests.
        """
        columns = self.requests
        user = columns["user"][requests].astype(np.int64)
        apart = (np.diff(user) != 0) | (np.diff(requests) != 1)
        rows, prefixes, newest, starts = [], [], [], []
        for together in np.split(requests, np.flatnonzero(apart) + 1):
            one = columns["user"][together[0]]
            start, end = self.event_offsets[one : one + 2]
            if self.retained is not None:
                start, end = np.searchsorted(self.retained, [start, end])
            times = self.events["time"]
            times = times[start:end] if self.retained is None else times[self.retained[start:end]]
            shown = self.impression_rows(together)
            prefix = np.searchsorted(times, self.events["time"][shown], side="left")
            rows.append(shown)
            prefixes.append(prefix)
            newest.append(np.concatenate([[0], times])[prefix])
            starts.append(start)
        users = user[np.concatenate([[True], apart])]
        owner = np.repeat(np.arange(len(users)), [len(shown) for shown in rows])
        most = np.array([prefix.max() for prefix in prefixes])
        row, prefix, start = np.concatenate(rows), np.concatenate(prefixes), np.array(starts)
        history = latest(
            self.events, self.encoder, start, start + most, int(most.max()), self.retained
        )
        held = np.arange(history.items.shape[1]) < history.lengths[:, None]
        items, distinct, candidates, history_positions = _distinct(
            self.events["item"][row], history.items[held]
        )
        history_index = np.zeros(held.shape, dtype=np.int64)
        history_index[held] = history_positions
        context = self.encoder.context(
            {name: self.events[name][row] for name in self.encoder.context_columns},
            self.events["time"][row],
            np.concatenate(newest),
            prefix,
        )
        labels = np.stack([self.events[f"label_{task}"][row] for task in self.tasks], axis=-1)
        return Sequences(
            items=self.item_batch(items),
            distinct=distinct,
            users=Users.from_history(
                history,
                items=history_index,
                features=self.users.take(users),
                context=torch.zeros((len(users), 0), dtype=torch.int64),
            ),
            owner=torch.from_numpy(owner),
            prefix=torch.from_numpy(prefix),
            context=torch.from_numpy(context),
            candidates=torch.from_numpy(candidates),
            labels=torch.from_numpy(labels.astype(np.float32)),
        )

    def impression_rows(self, requests: NDArray[np.int64]) -> NDArray[np.int64]:
        """Event rows of the impressions of these requests, request by request."""
        return ragged_index(self.requests["first"][requests], self.requests["count"][requests])

    def plan(
        self,
        requests: NDArray[np.int64],
        impressions: int,
        length: int | None = None,
        generator: np.random.Generator | None = None,
        together: int = 1,
    ) -> list[NDArray[np.int64]]:
        """Batches of about ``impressions`` impressions, of requests that are alike in size.

        With a ``generator`` the order is random (shuffled, like ones gathered within pools, batches
        shuffled); without, all requests are one pool: the fewest padded positions. So many
        consecutive requests of a user stay ``together``; 0: all of them.
        """
        counts = self.requests["count"][requests].astype(np.int64)
        lengths = self.history_lengths(requests, self.history_length if length is None else length)
        first = np.arange(len(requests))
        if together != 1 and len(requests):
            user = self.requests["user"][requests]
            of_user = np.flatnonzero(np.diff(user, prepend=user[0] - 1))
            rank = first - np.repeat(of_user, np.diff(of_user, append=len(user)))
            first = np.flatnonzero(rank % together == 0 if together else rank == 0)
            counts = np.add.reduceat(counts, first)
            lengths = np.maximum.reduceat(lengths, first)
        order = np.arange(len(first))
        pools = [order]
        if generator is not None:
            order = generator.permutation(order)
            mean = max(counts.mean(), 1.0) if len(counts) else 1.0
            size = max(1, int(POOL_BATCHES * impressions / mean))
            pools = [order[at : at + size] for at in range(0, len(order), size)]
        size_of = np.diff(first, append=len(requests))
        batches = [
            requests[ragged_index(first[part], size_of[part])]
            for pool in pools
            if len(pool)
            for part in _alike(pool, lengths, counts, impressions)
        ]
        if generator is not None:
            batches = [batches[position] for position in generator.permutation(len(batches))]
        return batches

    def batches(self, plan: list[NDArray[np.int64]], length: int | None = None) -> Iterator[Batch]:
        """The planned batches, each made while the one before is in use."""
        return ahead(self.batch(requests, length) for requests in plan)

    def sequence_batches(self, plan: list[NDArray[np.int64]]) -> Iterator[Sequences]:
        """The same with exact histories."""
        return ahead(map(self.sequences, plan))


def _alike(
    pool: NDArray[np.int64],
    lengths: NDArray[np.int64],
    counts: NDArray[np.int64],
    impressions: int,
) -> list[NDArray[np.int64]]:
    """Cut a pool in two, by history length or by candidates, whichever leaves less padding; and
    again, until every part is a batch of about ``impressions`` impressions, or fewer where long
    histories with few impressions each would take too much memory."""
    sizes = np.maximum(counts, lengths / EVENTS_PER_IMPRESSION)
    total = float(sizes[pool].sum())
    parts = round(total / impressions)
    if parts < 2 or len(pool) == 1:
        return [pool]
    halves: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
    for key in (lengths, counts):
        ordered = pool[np.argsort(key[pool], kind="stable")]
        wanted = total * (parts // 2) / parts
        position = int(np.searchsorted(np.cumsum(sizes[ordered]), wanted))
        position = min(max(position, 1), len(pool) - 1)
        pair = ordered[:position], ordered[position:]
        computed = sum(len(half) * int(lengths[half].max() + counts[half].max()) for half in pair)
        halves.append((computed, *pair))
    _, first, second = min(halves, key=lambda half: half[0])
    return [part for half in (first, second) for part in _alike(half, lengths, counts, impressions)]


def _distinct(
    candidates: NDArray[np.int32], history: NDArray[np.int32]
) -> tuple[NDArray[np.int64], int, NDArray[np.int64], NDArray[np.int64]]:
    """Distinct item rows, candidates first; how many are candidates; each one's place."""
    rows, inverse = np.unique(np.concatenate([candidates, history]), return_inverse=True)
    is_candidate = np.zeros(len(rows), dtype=bool)
    is_candidate[inverse[: len(candidates)]] = True
    order = np.argsort(~is_candidate, kind="stable")
    position = np.empty(len(rows), dtype=np.int64)
    position[order] = np.arange(len(rows))
    positions = position[inverse]
    distinct = int(is_candidate.sum())
    return (
        rows[order].astype(np.int64),
        distinct,
        positions[: len(candidates)],
        positions[len(candidates) :],
    )
