"""Runs with random weights and their indexes, built once, that several tests share."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from limerank.data.dataset import Dataset
from limerank.files import read_json, write_json
from limerank.index import Index, manifest_checksum
from limerank.index.building import build_index
from limerank.models import build, layers
from limerank.models.config import DataShape, TrainConfig
from limerank.models.lime import Lime
from limerank.ranking.scorer import ModelScorer, NativeScorer, QuantisedScorer, Scorer, paths
from limerank.runs.folder import Run, create_run, load_run, save_weights
from tests.worlds import ZERO_AT_START, config_of, prepare_log, random_lists

MODELS = ("lime-mha", "lime-xor", "two-tower", "mha", "din", "sasrec", "hstu")
SCORERS = ("model", "kept", "quantised", *(f"native-{path}" for path in paths()))
ITEMS = 90


@dataclass(frozen=True)
class Shop:
    """A dataset, a run on it and the index of its items."""

    data: Dataset
    run: Run
    index: Index

    def counted(self, rows: np.ndarray | slice = slice(None)) -> torch.Tensor | None:
        """Counters of index rows; None for a model without counters."""
        counters = self.index.counters
        return None if counters is None else torch.from_numpy(np.array(counters[rows]))

    def requests(self, count: int = 12) -> np.ndarray:
        """Requests of all lengths, the empty history included."""
        lengths = self.data.requests["history_end"] - self.data.requests["history_start"]
        order = np.argsort(lengths, kind="stable")
        return np.sort(order[np.linspace(0, len(order) - 1, count).astype(int)])

    def state(self, count: int = 12):
        """User states of :meth:`requests`."""
        batch = self.data.batch(self.requests(count))
        with torch.inference_mode():
            return self.run.ranker.encode_users(
                batch.users, self.run.ranker.item_vectors(batch.items)
            )


def counted_at_the_end(self: Dataset, items, requests, every: int) -> torch.Tensor:
    """In place of ``Dataset.counted_at``: counters as if all requests came after the log, which is
    when an index of it is built."""
    items = np.broadcast_arrays(items, requests)[0]
    latest = self.counters.latest(items.ravel())
    return torch.from_numpy(latest.reshape(*items.shape, -1))


@functools.cache
def folder() -> Path:
    held = tempfile.TemporaryDirectory(prefix="limerank-shops-")
    _HELD.append(held)
    return Path(held.name)


_HELD: list[tempfile.TemporaryDirectory] = []


@functools.cache
def data(**options: object) -> Dataset:
    name = "-".join(f"{key}={value}" for key, value in sorted(options.items())) or "plain"
    return Dataset(prepare_log(folder() / name, items=ITEMS, users=30, **options))


def plain_log() -> Path:
    """The folder of the log that ``data()`` was prepared from."""
    data()
    return folder() / "plain" / "log"


def make_run(path: Path, dataset: Dataset, seed: int = 1, **settings: object) -> Run:
    """A run with random weights, louder than at the start of a training, and by chance alone: how
    links and items are made alike at the start, and from what count of events and what size links
    are heard, is nothing that an index or a scorer knows of. A model with all anchored links has
    neighbours as well."""
    torch.manual_seed(seed)
    config = config_of(**{"width": 16, "heads": 2, "links": 5, "hidden": 12, **settings})
    given = "neighbours" in settings
    if not given and (config.anchors is None or (config.anchors and config.neighbours is None)):
        config = config.model_copy(update={"neighbours": 4})
    shape = DataShape.of(dataset.manifest)
    with (
        mock.patch.object(Lime, "_start_alike"),
        mock.patch.multiple(layers, START_EVENTS=1, START_FLOOR=1.0),
    ):
        ranker = build(shape, config)
    with torch.no_grad():
        for weight in ranker.parameters():
            if weight.dim() > 1:
                weight.mul_(1.7)
        for name, weight in ranker.named_parameters():
            if name.endswith(ZERO_AT_START):
                weight.normal_(std=0.3)
    if ranker.neighbour_table is not None:
        ranker.neighbour_table.set(random_lists(shape.item_ids, config.neighbours))
    if ranker.counters is not None:
        counted = torch.from_numpy(dataset.counters.latest(np.arange(dataset.trained_items)))
        ranker.counters.fit(counted)
        ranker.counters.values[1:] = counted
    path.mkdir(parents=True)
    create_run(path, dataset, shape, config, TrainConfig())
    save_weights(path, ranker)
    return load_run(path)


@functools.cache
def shop(model: str, **settings: object) -> Shop:
    name = "-".join(f"{key}={value}" for key, value in [("model", model), *settings.items()])
    run = make_run(folder() / f"run-{name}", data(), model=model, **settings)
    build_index(run, folder() / f"index-{name}", data=data())
    return Shop(data(), run, Index.open(folder() / f"index-{name}", fingerprint=run.fingerprint))


def make_scorer(name: str, of: Shop) -> Scorer:
    if name == "quantised":
        return QuantisedScorer(of.run.ranker, of.index)
    if name.startswith("native"):
        path = name.removeprefix("native").removeprefix("-") or None
        return NativeScorer(of.run.ranker, of.index, path=path, threads=2)
    return ModelScorer(of.run.ranker, of.index, keep=name == "kept")


def file_of(path: Path, name: str) -> Path:
    """The file that holds an array of an index."""
    file: str = read_json(path / "manifest.json", "an index")["files"][name]["file"]
    return path / file


def forge(path: Path, change: dict[str, object]) -> None:
    """Change a manifest as its owner might: with the right checksum."""
    manifest = {**read_json(path / "manifest.json", "an index"), **change}
    manifest["checksum"] = manifest_checksum(manifest)
    write_json(path / "manifest.json", manifest)


def content(index: Index) -> list[object]:
    """Everything that an index says, but its version."""
    return [
        index.ids[:].tolist(),
        index.ids.find(range(-1, 1000)).tolist(),
        [(key, index.manifest[key]) for key in ("fingerprint", "model", "scales", "items")],
        *(
            np.asarray(part).tobytes()
            for part in (index.vectors, index.weights, index.terms, index.hidden, index.removed)
        ),
        None
        if index.anchors is None
        else [part.tolist() for part in index.anchors.keys(slice(None))],
    ]
