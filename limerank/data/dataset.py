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

from limerank.data.batch import Batch, Impressions, ItemKeys, Items, Sequences, Users
from limerank.data.batching import distinct_items, plan_batches
from limerank.data.counters import (
    HOUR,
    Block,
    Hourly,
    ItemCounters,
    counted_label,
    merged,
)
from limerank.data.features import FeatureTable, anchored_tokens, item_keys
from limerank.data.folder import DISPLAY, MANIFEST, READABLE, SPLITS, open_array
from limerank.data.history import EventEncoder, latest
from limerank.data.impressions import ImpressionEncoder
from limerank.data.pipeline import ahead
from limerank.data.ragged import ragged_index
from limerank.data.summary import DatasetSummary
from limerank.errors import DataError, FormatError, UnknownError, did_you_mean
from limerank.files import read_json
from limerank.storage.arguments import READ, with_uris

COUNTED = 1 << 22
"""Impressions that are counted at once."""


class Dataset:
    """A folder that ``limerank prepare`` wrote.

    Raises:
        FormatError: the folder is not a finished dataset of this format version.
    """

    @with_uris(path=READ)
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest = read_json(self.path / MANIFEST, "a dataset")
        if self.manifest.get("format") not in READABLE:
            raise FormatError(
                f"{self.path} has dataset format {self.manifest.get('format')}, expected "
                f"{' or '.join(map(str, READABLE))}; "
                "prepare it again with this version"
            )
        self.name: str = self.manifest["name"]
        self.clock: bool = self.manifest["clock"]
        self.encoding: dict[str, Any] = self.manifest["encoding"]
        self.trained_items: int = self.encoding["trained_items"]
        self.history_length: int = self.manifest["spec"]["history"]["length"]
        self.encoder = EventEncoder(self.encoding, self.clock)
        self.tasks: tuple[str, ...] = tuple(label["name"] for label in self.encoding["labels"])
        self.impressions = ImpressionEncoder(self.encoding)
        names = {"item", "time", *self.encoder.columns, *(f"label_{task}" for task in self.tasks)}
        names.update(self.impressions.columns)
        self.events = {name: open_array(self.path / "events" / f"{name}.npy") for name in names}
        self.users = FeatureTable.open(self.path / "users")
        self.items = FeatureTable.open(self.path / "items")
        self.anchored = anchored_tokens(self.encoding)
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
    def counters(self) -> ItemCounters | None:
        """Counters of its items, from the impressions of all splits; None where the log has no
        clock or no binary label."""
        label = counted_label(self.encoding["labels"])
        if label is None or not self.clock:
            return None
        times = self.events["time"]
        last = int(times.max()) if len(times) else -1
        hourly = merged(map(Hourly.of, self._impressions(f"label_{label['name']}")))
        return ItemCounters(hourly, label["mean"], last // HOUR + 1, after=last)

    def _impressions(self, label: str) -> Iterator[Block]:
        """All impressions with one of the labels, about :data:`COUNTED` at a time."""
        ends = np.cumsum(self.requests["count"], dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        cuts = np.searchsorted(ends, np.arange(COUNTED, total, COUNTED))
        for some in np.split(np.arange(len(ends)), cuts):
            rows = self.impression_rows(some)
            positive = np.asarray(self.events[label][rows]) > 0
            yield Block(self.events["item"][rows], self.events["time"][rows], positive)

    @cached_property
    def summary(self) -> DatasetSummary:
        """What the dataset contains, as text and as a table of its splits."""
        return DatasetSummary.of(self.manifest)

    @cached_property
    def item_ids(self) -> NDArray[Any]:
        """External ids by item row."""
        return self._vocabulary("items")

    @cached_property
    def display(self) -> dict[str, list[str]]:
        """What is shown of each item, by item row: name of the column -> texts; empty where the
        description has no ``display``."""
        import polars as pl

        path = self.path / "items" / DISPLAY
        if not path.exists():
            return {}
        return {name: values.to_list() for name, values in pl.read_parquet(path).to_dict().items()}

    def displayed(self, row: int) -> dict[str, str]:
        """What is shown of one item: name of the column -> text, without empty ones."""
        return {name: of[row] for name, of in self.display.items() if of[row]}

    @cached_property
    def user_ids(self) -> NDArray[Any]:
        """External ids by user row."""
        return self._vocabulary("users")

    def _vocabulary(self, name: str) -> NDArray[Any]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self.path / "vocab" / f"{name}.parquet")
        ids: NDArray[Any] = table["id"].to_numpy()
        return ids

    @property
    def own(self) -> Dataset:
        """The dataset with its own codes, where it is seen through those of a run."""
        return self

    def item_codes(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Ids of these item rows in a model's item table, i64; 0: unknown."""
        return np.where(rows < self.trained_items, rows + 1, 0).astype(np.int64)

    def item_batch(self, rows: NDArray[Any]) -> Items:
        """The inputs of the item tower for these item rows."""
        ids = self.item_codes(rows)
        return Items(ids=torch.from_numpy(ids), content=self.items.take(rows))

    def item_keys(self, rows: NDArray[np.int64]) -> ItemKeys:
        """The keys of these item rows (limerank.models.anchors); an item's number is its row."""
        return item_keys(self.items.take(rows), self.anchored, rows, self.item_codes(rows))

    def history_lengths(self, requests: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Events in the history of each request."""
        all_of_them = (
            self.requests["history_end"][requests] - self.requests["history_start"][requests]
        )
        lengths: NDArray[np.int64] = np.minimum(all_of_them, length)
        return lengths

    def batch(
        self,
        requests: NDArray[np.int64],
        length: int | None = None,
        shared: NDArray[np.int64] | None = None,
        counted: int = 0,
    ) -> Batch:
        """The requests with histories of at most ``length`` events and all their impressions.

        Args:
            requests: rows of requests.
            length: the dataset's where not given.
            shared: item rows of further candidates, the same for all requests.
            counted: hours from one refresh of counters to the next, for a batch with those of the
                candidates at the time of each request; 0: without.
        """
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
        more = np.zeros(0, np.int64) if shared is None else shared
        rows, distinct, candidate_positions, history_positions = distinct_items(
            np.concatenate([candidates[real], more.astype(np.int32)]), history.items[held]
        )
        candidate_index = np.zeros(real.shape, dtype=np.int64)
        own = len(candidate_positions) - len(more)
        candidate_index[real] = candidate_positions[:own]
        history_index = np.zeros(held.shape, dtype=np.int64)
        history_index[held] = history_positions
        context = self.encoder.context(
            {name: self.events[name][first] for name in self.encoder.context_columns},
            self.events["time"][first],
            history.newest,
            history.lengths,
        )
        items = self.item_batch(rows)
        return Batch(
            items=items,
            distinct=distinct,
            users=Users.from_history(
                history,
                items=history_index,
                features=self.users.take(columns["user"][requests]),
                context=torch.from_numpy(context),
                keys=item_keys(items.content, self.anchored, rows, items.ids.numpy()),
            ),
            candidates=torch.from_numpy(candidate_index),
            counts=torch.from_numpy(counts),
            labels=torch.from_numpy(labels),
            shown=self._shown(at, real),
            shared=None if shared is None else torch.from_numpy(candidate_positions[own:]),
            counted=self.counted_at(candidates, requests[:, None], counted) if counted else None,
        )

    def sequences(
        self,
        requests: NDArray[np.int64],
        shared: NDArray[np.int64] | None = None,
        counted: int = 0,
    ) -> Sequences:
        """The requests' impressions, each with exactly the events before it: consecutive requests
        of a user share one full history up to the last impression.

        Args:
            requests: rows of requests.
            shared: item rows of further candidates, the same for all impressions.
            counted: as for :meth:`batch`.
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
        more = np.zeros(0, np.int64) if shared is None else shared
        items, distinct, candidates, history_positions = distinct_items(
            np.concatenate([self.events["item"][row], more.astype(np.int32)]), history.items[held]
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
        of_request = np.repeat(requests, columns["count"][requests])
        item_m = self.events["item"][row]
        of_items = self.item_batch(items)
        return Sequences(
            items=of_items,
            distinct=distinct,
            users=Users.from_history(
                history,
                items=history_index,
                features=self.users.take(users),
                context=torch.zeros((len(users), 0), dtype=torch.int64),
                keys=item_keys(of_items.content, self.anchored, items, of_items.ids.numpy()),
            ),
            owner=torch.from_numpy(owner),
            prefix=torch.from_numpy(prefix),
            context=torch.from_numpy(context),
            candidates=torch.from_numpy(candidates[: len(row)]),
            labels=torch.from_numpy(labels.astype(np.float32)),
            shown=self._shown(row),
            shared=None if shared is None else torch.from_numpy(candidates[len(row) :]),
            counted=self.counted_at(item_m, of_request, counted) if counted else None,
        )

    def _shown(
        self, rows: NDArray[np.int64], real: NDArray[np.bool_] | None = None
    ) -> Impressions | None:
        """Impression features of these event rows, unknown where not ``real``."""
        if not self.impressions.columns:
            return None
        columns = {name: self.events[name][rows] for name in self.impressions.columns}
        shown = self.impressions.encode(columns)
        return shown if real is None else shown.where(torch.from_numpy(real[..., None]))

    def counted_at(
        self, items: NDArray[np.integer], requests: NDArray[np.int64], every: int
    ) -> torch.Tensor:
        """Counters of items at the times of requests, f32 [..., F].

        Args:
            items: item rows.
            requests: rows of requests, of a shape that broadcasts with that of ``items``.
            every: hours from one refresh of counters to the next.

        Raises:
            DataError: the log has none, see :attr:`counters`.
        """
        if self.counters is None:
            raise DataError(
                f"{self.path} has no counters of items: its log has no times, or no binary label"
            )
        times = self.events["time"][self.requests["first"][requests]]
        items, times = np.broadcast_arrays(items, times)
        return torch.from_numpy(self.counters.at(items, times, every))

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
        counts: NDArray[np.int64] | None = None,
    ) -> list[NDArray[np.int64]]:
        """Batches of requests of about ``impressions`` impressions; see
        :func:`~limerank.data.batching.plan_batches`.

        Args:
            requests: rows of requests, i64.
            length: events of a history, at most; None: the dataset's.
            generator, together: as there.
            counts: how many impressions each request counts as, i64; all that it has when not
                given.

        Returns:
            The rows of the requests of each batch.
        """
        if counts is None:
            counts = self.requests["count"][requests].astype(np.int64)
        lengths = self.history_lengths(requests, self.history_length if length is None else length)
        users = self.requests["user"][requests] if together != 1 else None
        plan = plan_batches(counts, lengths, impressions, users, generator, together)
        return [requests[rows] for rows in plan]

    def batches(
        self, plan: list[NDArray[np.int64]], length: int | None = None, counted: int = 0
    ) -> Iterator[Batch]:
        """The planned batches; each is made while the one before is in use."""
        return ahead(self.batch(requests, length, counted=counted) for requests in plan)

    def sequence_batches(
        self, plan: list[NDArray[np.int64]], counted: int = 0
    ) -> Iterator[Sequences]:
        """The same with exact histories."""
        return ahead(self.sequences(requests, counted=counted) for requests in plan)
