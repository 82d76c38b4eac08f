"""A dataset seen through the encoding of an earlier run: any log, as the run's model reads it.

Items and values are found by their ids and texts; those that the run does not know are unknown.
Bucket edges and scales are those of the run. For the same events and tables a run therefore reads
the same tokens and numbers, whatever dataset they are in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.alignment import Coded, item_ids, value_codes
from limerank.data.dataset import Dataset
from limerank.data.encoding import Encoding, encode
from limerank.data.features import FeatureTable, anchored_tokens
from limerank.data.folder import LOG, open_array
from limerank.data.history import EventEncoder
from limerank.data.impressions import ImpressionEncoder
from limerank.data.spec import Feature, Spec
from limerank.errors import FingerprintError, FormatError
from limerank.validation import validate


class RecodedDataset(Dataset):
    """A dataset whose items, users and events have the codes of a run.

    Requests, splits, rows of items and users, and counts stay those of the dataset; ``own`` is the
    dataset with its own codes.

    Args:
        path: the folder of the dataset.
        run: the encoding of the run.

    Raises:
        FingerprintError: the run reads labels or features that the dataset lacks, or other
            histories.
        FormatError: the folder is not a dataset, or an earlier version wrote it.
    """

    def __init__(self, path: str | os.PathLike[str], run: Coded) -> None:
        super().__init__(path)
        self._run = run
        spec = validate(Spec, self.manifest["spec"], str(self.path / "dataset.json"))
        _require(self, spec, run)
        own_encoding = self.encoding
        self.encoding = dict(run.encoding)
        self.history_length = run.manifest["spec"]["history"]["length"]
        self.encoder = EventEncoder(self.encoding, self.clock)
        self.impressions = ImpressionEncoder(self.encoding)
        self.tasks = tuple(label["name"] for label in self.encoding["labels"])
        self.anchored = anchored_tokens(self.encoding)
        coded = Coded(self.manifest, self.path)
        self._ids = item_ids(coded, run)
        columns = {"item": self.events["item"], "time": self.events["time"]}
        entries = {
            name: {one["name"]: one for one in of.get(name, [])}
            for of in (own_encoding,)
            for name in ("event_features", "impression_features")
        }
        for name in (*self.encoder.columns, *self.impressions.columns):
            kind, _, short = name.partition("_")
            if kind in ("label", "ratio"):
                columns[name] = self.events[name]
                continue
            group = "event_features" if kind == "feature" else "impression_features"
            own = entries[group][short]
            entry = next(one for one in self.encoding[group] if one["name"] == short)
            columns[name] = self._column(coded, name, own, entry)
        columns |= {f"label_{task}": self.events[f"label_{task}"] for task in self.tasks}
        self.events = columns
        self.items = self._content("item", spec.items.features if spec.items else ())
        self.users = self._content("user", spec.users.features if spec.users else ())

    @cached_property
    def own(self) -> Dataset:
        """The dataset with its own codes."""
        return Dataset(self.path)

    def item_codes(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        return self._ids[rows]

    def _column(
        self, coded: Coded, name: str, own: Mapping[str, Any], entry: Mapping[str, Any]
    ) -> NDArray[Any]:
        """A column of events with the codes of the run."""
        given, log = self.events[name], self.path / LOG
        if own["kind"] == "numeric":
            if name.startswith("impression_"):
                return given  # numbers as they were given
            numbers = open_array(log / f"{name}.npy")
            return cast(NDArray[Any], _Buckets(numbers, entry["edges"]))
        vocabulary = f"event_{own['name']}"
        codes = value_codes(coded, self._run, vocabulary, (own["size"], entry["size"]))
        table = pl.read_parquet(log / f"unknown_{own['name']}.parquet")
        known = self._run.codes(vocabulary, entry["size"])
        found = table.join(known, on="value", how="inner", suffix="_run")
        return cast(NDArray[Any], _Codes(given, codes, log, own["name"], found))

    def _content(self, kind: str, features: tuple[Feature, ...]) -> FeatureTable:
        """The content of all items or users as the run encodes it."""
        learned = self._run.encoding[f"{kind}s"]
        by_name = {one.name: one for one in features}
        wanted = [by_name[one["name"]] for one in learned["features"]]
        vocabularies = {
            one["name"]: self._run.codes(f"{kind}_{one['name']}", one["size"])
            for one in learned["features"]
            if one["kind"] == "categorical"
        }
        count = len(self.items if kind == "item" else self.users)
        frame, rows = pl.DataFrame(), np.zeros(0, np.int64)
        file = self.path / LOG / f"{kind}s.parquet"
        if wanted:
            frame = pl.read_parquet(file)
            rows = np.asarray(open_array(self.path / LOG / f"{kind}_rows.npy"))
        ids = frame.to_series(0) if wanted else pl.Series("id", [], dtype=pl.Int64)
        encoding = Encoding(learned, vocabularies)
        found = encode(frame, wanted, encoding, ids, rows=rows, count=count)
        return FeatureTable(found.tokens, found.weights, found.offsets, found.numeric)


def _require(dataset: Dataset, spec: Spec, run: Coded) -> None:
    """Refuse a dataset that lacks what a run reads."""
    if dataset.manifest.get("log") is None:
        raise FormatError(
            f"{dataset.path} has other codes than the data that {run.folder} was trained on, and "
            "was prepared by a version that did not record what seeing it through them needs; "
            "prepare it again"
        )
    lacking = [
        f"{what} {entry['name']} ({', '.join(str(entry[one]) for one in alike if entry.get(one))})"
        for what, alike, ours, theirs in _parts(dataset, run)
        for entry in theirs
        if not any(
            all(one.get(name) == entry.get(name) for name in ("name", *alike)) for one in ours
        )
    ]
    then = run.manifest["spec"]["history"]["keep"]
    if dataset.clock != run.manifest["clock"]:
        lacking.append("times" if run.manifest["clock"] else "an order without times")
    if then != spec.history.keep:
        lacking.append(f"histories with keep = {then!r} (it has {spec.history.keep!r})")
    if lacking:
        raise FingerprintError(
            f"{run.folder} reads what {dataset.path} does not have: {'; '.join(lacking)}. Prepare "
            "the dataset with a description that has them, or train on it"
        )


def _parts(dataset: Dataset, run: Coded) -> list[tuple[str, tuple[str, ...], list[Any], list[Any]]]:
    """What has to be in both: its name, the fields that must be equal, and the entries of both."""
    ours, theirs = dataset.encoding, run.encoding
    tables = [
        (f"{kind} feature", ("kind", "transform"), of_ours["features"], of_theirs["features"])
        for kind, of_ours, of_theirs in (
            ("item", ours["items"], theirs["items"]),
            ("user", ours["users"], theirs["users"]),
        )
    ]
    given = [[*one.get("impression_features", [])] for one in (ours, theirs)]
    return [
        ("label", ("kind", "ratio"), ours["labels"], theirs["labels"]),
        ("event feature", ("kind", "when"), ours["event_features"], theirs["event_features"]),
        ("impression feature", ("kind",), given[0], given[1]),
        *tables,
    ]


class _Column:
    """A column of codes that are computed where they are read."""

    dtype = np.dtype(np.int32)

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)


class _Buckets(_Column):
    """Codes of numbers by the edges of a run; 0: not known."""

    def __init__(self, values: NDArray[Any], edges: list[float]) -> None:
        super().__init__(values)
        self._edges = np.array(edges, np.float32)

    def __getitem__(self, at: Any) -> NDArray[np.int32]:
        values = self._values[at]
        codes = np.searchsorted(self._edges, values, side="right") + 1
        return np.where(np.isfinite(values), codes, 0).astype(np.int32)


class _Codes(_Column):
    """Codes of values in the vocabulary of a run; 0: unknown."""

    def __init__(
        self,
        values: NDArray[Any],
        codes: NDArray[np.int64],
        log: Path,
        name: str,
        found: pl.DataFrame,
    ) -> None:
        """``found`` has values without a code of the dataset: columns code and code_run."""
        super().__init__(values)
        self._codes = codes.astype(np.int32)
        self._rows = np.zeros(0, np.int64)
        if len(found):
            given = np.asarray(open_array(log / f"unknown_{name}_code.npy"))
            order = np.argsort(found["code"].to_numpy())
            known = found["code"].to_numpy()[order]
            at = np.minimum(np.searchsorted(known, given), len(known) - 1)
            held = known[at] == given
            self._rows = np.asarray(open_array(log / f"unknown_{name}_row.npy"))[held]
            self._later = found["code_run"].to_numpy()[order][at[held]].astype(np.int32)

    def __getitem__(self, at: Any) -> NDArray[np.int32]:
        codes = self._codes[self._values[at]]
        if len(self._rows):
            rows = np.arange(*at.indices(len(self))) if isinstance(at, slice) else np.asarray(at)
            position = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
            codes = np.where(self._rows[position] == rows, self._later[position], codes)
        return codes
