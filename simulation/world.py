"""Small runs and indexes that all histories share, and what the batch model says of them.

The runs have random weights: what a server does with a model does not depend on what it learned.
They are built once per process. :class:`Oracle` computes what a ranking must contain from a user's
events, at once and without a store: by an index to which all live items were added in one step.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from limerank.data.dataset import Dataset
from limerank.data.event_log import EventForm
from limerank.data.events import Event
from limerank.index import Index, changes
from limerank.index.building import build_index
from limerank.index.changes import change_items
from limerank.index.items import SourceItems, of_source
from limerank.ranking.flow import RankingFlow
from limerank.ranking.request import seen_rows
from limerank.ranking.scorer import ScorerName, scorer_for
from limerank.runs.model import Trained, load_trained
from limerank.serving.state import Mode
from limerank.serving.state.stage import UserStage
from limerank.serving.state.user_features import UserFeatureCache
from limerank.serving.stores import Id
from simulation.truth import VARIANT
from tests import catalogues
from tests.worlds import ZERO_AT_START, prepare_log

ITEMS, LENGTH = 12, 6
"""Items of the log; events of a window."""
LIVE = (3, 5, 100, 101, 102)
"""Items that histories of operations put live: some of the log, and new ones."""
UNKNOWN = 900
"""An item that no index ever has."""
ALL = 1_000_000
"""A length of histories that no user reaches."""
REMEMBERED = 100_000
"""Results of an oracle that are remembered."""
MODELS: dict[str, dict[str, Any]] = {
    "mha": {"model": "lime-mha", "links": 3, "counter_hours": 1},
    "mha-more-links": {"model": "lime-mha", "links": 4, "counter_hours": 0},
    "xor": {"model": "lime-xor", "links": 3, "counter_hours": 2},
}
SILENT = tuple(name for name in ZERO_AT_START if "counters" not in name)
"""Weights that get random values. Those of counters stay zero: rankings do not depend on them, so
that an oracle need not know when a server refreshed them."""
OF_MODE: dict[Mode, tuple[str, str]] = {
    "streaming": ("mha", "mha-more-links"),
    "window": ("xor", "mha"),
}
"""The runs that servers of a mode serve."""
Content = tuple[tuple[Id, int, bool], ...]
"""What an index holds of live items: id, variant (0: as in the log), and whether it is removed."""


def columns_of(id: Id, variant: int) -> dict[str, Any]:
    """Columns of a live item."""
    number = int(id) + 7 * variant
    return {
        "item_id": id,
        "group": f"g{number % 5}",
        "tags": f"t{number % 3}|t{number % 7}",
        "length": 10 + number % ITEMS + VARIANT * variant,  # within the range of the log
    }


@dataclass(frozen=True)
class World:
    """Folders of runs and their indexes, by name."""

    folder: Path
    begin: int
    """The time at which histories begin, in milliseconds since 1970."""

    def run(self, name: str) -> Path:
        return self.folder / f"run-{name}"

    def index(self, name: str) -> Path:
        """The index as it was built; servers change copies of it."""
        return self.folder / f"index-{name}"

    @functools.cache  # noqa: B019 (one world lives as long as the process)
    def opened_index(self, name: str) -> Index:
        """The index as it was built, open."""
        return Index.open(self.index(name), trained(self.run(name)).fingerprint)

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Fingerprint of a run -> its name."""
        return {trained(self.run(name)).fingerprint: name for name in MODELS}


@functools.cache
def trained(run: Path) -> Trained:
    """A run, loaded once: servers do not change it."""
    return load_trained(run)


_features: dict[Path, UserFeatureCache] = {}


def user_features(run: Trained) -> UserFeatureCache:
    """The encoder of users' features of a run; all servers use one."""
    if run.path not in _features:
        _features[run.path] = UserFeatureCache(run)
    return _features[run.path]


_sources: dict[tuple[Path, str], SourceItems] = {}


def item_source(run: Trained, source: Any) -> SourceItems:
    """:func:`limerank.index.items.of_source`, whose results are remembered: reading the columns of
    a few items takes longer than a history without it."""
    key = run.path, repr(source)
    if key not in _sources:
        _sources[key] = of_source(run, source)
    return _sources[key]


_held: list[tempfile.TemporaryDirectory[str]] = []


def scratch() -> Path:
    """A folder for files, in memory where the system has such a file system."""
    memory = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(
        prefix="limerank-simulation-", dir=memory if memory.is_dir() else None
    )
    _held.append(made)
    return Path(made.name)


@functools.cache
def world() -> World:
    """The runs and indexes."""
    folder = scratch()
    data = Dataset(prepare_log(folder, items=ITEMS, users=10, history={"length": LENGTH}))
    for name, settings in MODELS.items():
        with mock.patch.object(catalogues, "ZERO_AT_START", SILENT):
            run = catalogues.make_run(folder / f"run-{name}", data, width=8, hidden=6, **settings)
        build_index(run, folder / f"index-{name}", data=data)
    return World(folder, int(data.manifest["summary"]["time"]["last"]))


@dataclass(frozen=True)
class Expected:
    """What a ranking must contain.

    Attributes:
        events: how many of the user's events the state holds.
        values: item -> ranking value, of all items that can be ranked and were not left out.
    """

    events: int
    values: Mapping[Id, float]


@dataclass(frozen=True)
class _Reference:
    """An index with some live items, and what ranks over it."""

    index: Index
    stage: UserStage
    flow: RankingFlow


class Oracle:
    """What the batch model says: see the module's docstring.

    Args:
        world: the runs.
    """

    def __init__(self, world: World) -> None:
        self.world, self._folder = world, scratch()
        self._count = 0
        self._reference = functools.lru_cache(maxsize=500)(self._built)
        self._results: dict[Any, Expected] = {}

    def expected(
        self,
        name: str,
        mode: Mode,
        scorer: ScorerName,
        content: Content,
        events: Sequence[Event],
        features: Mapping[str, Any],
        now: int,
        leave_out_seen: bool,
    ) -> Expected:
        """The ranking of the full catalogue for a user.

        Args:
            name: of the run.
            mode: ``window``: the latest events count; ``streaming``: all.
            scorer: of the servers; bytes of the native one are cut where a live item is beyond the
                range of the index, which a scorer by number does not show.
            content: the live items of the index.
            events: all events of the user that the request may see, in their order.
            features: the user's own features.
            now: the time of the request, in milliseconds since 1970.
            leave_out_seen: whether items that the user has seen are left out.
        """
        what = tuple((event.item, event.time, tuple(event.labels.items())) for event in events)
        key = name, mode, scorer, content, what, tuple(features.items()), now, leave_out_seen
        if key not in self._results:
            if len(self._results) >= REMEMBERED:
                self._results.clear()
            self._results[key] = self._computed(
                self._reference(name, mode, scorer, content), events, features, now, leave_out_seen
            )
        return self._results[key]

    def _computed(
        self,
        reference: _Reference,
        events: Sequence[Event],
        features: Mapping[str, Any],
        now: int,
        leave_out_seen: bool,
    ) -> Expected:
        stage, index = reference.stage, reference.index
        log = stage.form.log(events)
        past = stage.past(log, stage.user_features.of(features), now, {}, index)
        with torch.inference_mode():
            state = stage.trained.ranker.encode_users(past.users, past.vectors)
        seen = seen_rows(index, log) if leave_out_seen else np.zeros(0, np.int64)
        best = reference.flow.best(reference.flow.check(len(index)), state, seen=seen)
        ids = [int(id) if isinstance(id, np.integer) else id for id in best.ids]
        values = dict(zip(ids, map(float, best.values), strict=True))
        return Expected(int(past.users.lengths[0]), values)

    def _built(self, name: str, mode: Mode, scorer: ScorerName, content: Content) -> _Reference:
        self._count += 1
        path, run = self._folder / f"index-{self._count}", trained(self.world.run(name))
        shutil.copytree(self.world.index(name), path)
        put = [columns_of(id, variant) for id, variant, _ in content if variant]
        if put:
            with mock.patch.object(changes, "of_source", item_source):
                change_items(run, path, put=put)
        removed = [id for id, _, removed in content if removed]
        if removed:
            change_items(None, path, remove=removed)
        index = Index.open(path, run.fingerprint)
        form, length = EventForm(run.manifest, run.path), ALL if mode == "streaming" else LENGTH
        stage = UserStage(run, form, length, user_features(run))
        ranking = scorer_for(scorer, run.ranker, index, threads=1)
        found = _Reference(index, stage, RankingFlow(run.ranker, index, ranking, form))
        shutil.rmtree(path)  # it is mapped
        return found
