"""What is served: a run, a version of its index and the live items, loaded and checked.

A :class:`Served` never changes. Every change makes another one, which replaces it in one
assignment (:mod:`limerank.serving.current`). A request takes the one in use and keeps it until it
is answered, so no request sees parts of two.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from limerank.errors import FormatError
from limerank.index import Index
from limerank.index.format import PER_ROW
from limerank.ranking.anchored import AnchorNames
from limerank.ranking.flow import RankingFlow
from limerank.ranking.item_table import Filters, ItemTable
from limerank.ranking.scorer import Scorer, ScorerName, scorer_for
from limerank.runs import selftest
from limerank.runs.alarms import Alarm, read_alarms
from limerank.runs.model import Trained, load_trained
from limerank.serving.shards.answering import ShardRanker
from limerank.serving.shards.client import Shards
from limerank.serving.shards.scorer import ShardedScorer
from limerank.serving.state import STATE_BYTES, MarkedIndex, Mode, UserStates
from limerank.serving.stores import EventStore

log = logging.getLogger("limerank.serving")
WARM_ROWS = 4096
"""Rows that a server which ranks through shards ranks itself once, for warmth."""


@dataclass
class Check:
    """Result of comparing an index's files with their checksums, which runs in the background."""

    state: Literal["running", "passed", "damaged"] = "running"
    error: str = ""


@dataclass(frozen=True, eq=False)
class Served:
    """A run, a version of its index and live items, with all that a request needs of them.

    Attributes:
        trained: the run.
        states: the user states; shared by all versions of one model.
        marked: the version of the index, as requests name it to ``states``.
        scorer: the scorer over that index.
        items: the item table with the live items.
        filters: filters over that table and index.
        loaded: when the run was loaded, ISO 8601.
        live: how many of the store's changes of live items the table contains.
        pending: live items that the index lacks, since it could not be changed.
        check: of the index's files.
        names: of the values of anchored features, for explanations.
        alarms: reasons for not deploying the run; None if its folder states none, not even zero.
    """

    trained: Trained
    states: UserStates
    marked: MarkedIndex
    scorer: Scorer
    items: ItemTable
    filters: Filters
    loaded: str
    live: int = 0
    pending: int = 0
    check: Check = field(default_factory=Check)
    names: AnchorNames | None = None
    alarms: tuple[Alarm, ...] | None = None

    @property
    def index(self) -> Index:
        """The version of the index."""
        return self.marked.index

    @cached_property
    def flow(self) -> RankingFlow:
        """The ranking flow over this model and index."""
        form = self.states.form
        return RankingFlow(self.trained.ranker, self.index, self.scorer, form, names=self.names)

    @cached_property
    def shard(self) -> ShardRanker:
        """Answers servers that rank through this one; SpecError where the index is no shard."""
        like = self.states.ready(None).state
        return ShardRanker(self.scorer, self.trained.fingerprint, like)

    @property
    def rankable(self) -> int:
        """How many items of the index can be ranked."""
        return len(self.index) - len(self.index.hidden)


@dataclass(frozen=True)
class Loader:
    """Loads runs and indexes for one event store.

    Attributes:
        store: the event store.
        items: the item table; None: features are known of live items alone.
        mode: of the user states, see :class:`~limerank.serving.state.UserStates`.
        scorer: "auto", or a scorer by name; see :func:`~limerank.ranking.scorer.scorer_for`.
        threads: threads that one ranking uses.
        shards: servers of the shards of the index, which rank; None: this process ranks.
        keep: whether user states are also written to the store.
        memory: bytes of the user states of a model in memory, about.
    """

    store: EventStore
    items: Path | None = None
    mode: Mode = "window"
    scorer: ScorerName = "auto"
    threads: int = 1
    shards: Shards | None = None
    keep: bool = False
    memory: int = STATE_BYTES

    def load(self, run: Path, index: Path) -> Served:
        """Load a run and an index, test them, and rank once for warmth. Nothing in use changes.

        Raises:
            FormatError: the run or the index is damaged, fails its self-test, or ranks with
                numbers that are not finite.
            FingerprintError: the index was built by another model.
            ShardError: there are shards, and none answers.
        """
        trained = load_trained(run)
        if not selftest.passes(trained):
            log.warning("%s has no self-test: an earlier version of limerank trained it", run)
        if not trained.sealed:
            log.warning(
                "%s has no checksums of its present files: changes of its encoding and "
                "vocabularies are not noticed",
                run,
            )
        opened = Index.open(index, trained.fingerprint)
        states = UserStates(
            trained, opened, self.store, mode=self.mode, keep=self.keep, memory=self.memory
        )
        items = ItemTable(trained, self.items)
        served = Served(
            trained,
            states,
            states.marked(opened),
            self._scorer(trained, opened),
            items,
            Filters(items, opened),
            datetime.now(UTC).isoformat(timespec="seconds"),
            names=AnchorNames(trained),
            alarms=read_alarms(run),
        )
        for alarm in served.alarms or ():
            log.warning("alarm %s: %s. Try: %s", alarm.name, alarm.message, alarm.advice)
        self._report_coverage(served)
        nobody = states.ready(None)
        few = None if self.shards is None else slice(0, WARM_ROWS)
        top = served.scorer.top(nobody.state, min(10, max(1, len(opened))), rows=few)
        if not np.isfinite(top.values[top.rows >= 0]).all():
            raise FormatError(f"{run} ranks with numbers that are not finite; train it again")
        return served

    def reopened(self, served: Served, path: Path | None = None) -> Served:
        """The same run with the newest version of its index, or of a copy of it at ``path``."""
        index = Index.open(path or served.index.path, served.trained.fingerprint)
        return replace(
            served,
            marked=served.states.marked(index),
            scorer=self._scorer(served.trained, index),
            filters=Filters(served.items, index),
            # Versions of the same files share their older rows, whose bytes do not change.
            check=served.check if _same_files(index, served.index) else Check(),
        )

    def _scorer(self, trained: Trained, index: Index) -> Scorer:
        own = scorer_for(self.scorer, trained.ranker, index, threads=self.threads)
        if self.shards is None:
            return own
        if index.shard is not None:
            raise FormatError(
                f"{index.path} is {index.shard}; a server that ranks through shards needs the "
                "index that was split"
            )
        found = ShardedScorer(own, trained.fingerprint, self.shards)
        found.check()
        return found

    def _report_coverage(self, served: Served) -> None:
        fit = served.items.coverage(served.trained, served.index)
        if fit is None:
            return
        for line in fit.lines():
            log.info("%s", line)
        for warning in fit.warnings():
            log.warning("%s: %s", self.items, warning)


def _same_files(one: Index, other: Index) -> bool:
    """Whether all files with rows of two versions of an index are the same, or longer."""
    first, second = one.manifest["files"], other.manifest["files"]
    return all(first[name]["file"] == second[name]["file"] for name in PER_ROW if name in first)
