"""What each arm of the online test may compute: the engagement and the CPU time of its
configurations, measured on the log before the test.

A configuration is a number of history events and, where a retriever stands before the ranker, a
number of candidates. All models are trained once, with full histories; a shorter history is what a
configuration reads when it ranks. CPU time is that of the models alone: encoding the history, and
finding the best items. Reading the history from a store, HTTP and JSON are left out, since an arm
needs them whatever it computes; the online test measures the processor time of the server as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.abtest_world import LENGTH, Population, Size, begin_of, moves_of
from limerank.data.dataset import Dataset
from limerank.index.building import build_index
from limerank.models.config import configs_of
from limerank.models.registry import FITTED
from limerank.ranking.recommender import Recommender
from limerank.ranking.request import seen_rows
from limerank.training.trainer import train

RETRIEVER = "two-tower"
FULL = ("lime-mha", RETRIEVER, "item-knn", "most-popular")
"""Models that rank the whole catalogue."""
STAGED = ("hstu", "mha")
"""Models that rank what the retriever found."""
UNTIMED = 5
"""Users before the measured ones."""
Ids = NDArray[np.int64]


class Ranked(NamedTuple):
    """External ids of a ranking, best first, and the CPU time of the models."""

    ids: Ids
    cpu_ms: float


def settings_of(size: Size, model: str, history: int) -> dict[str, Any]:
    """Settings of the model and of training of an arm."""
    if model in FITTED:
        return {"history": history}
    return {"width": size.width, "epochs": size.epochs, "history": history}


def trained(folder: Path, data: Path, size: Size, models: Sequence[str]) -> dict[str, Recommender]:
    """Every model trained on a dataset, with its index; what exists is opened."""
    found = {}
    for model in models:
        run, index = folder / f"run-{model}", folder / f"index-{model}"
        if not index.exists():
            began = time.monotonic()
            of_model, of_training = configs_of(model, settings_of(size, model, size.history))
            train(data, run, model=of_model, config=of_training)
            build_index(run, index, data=data)
            print(f"trained {model} in {time.monotonic() - began:.0f} s", flush=True)
        found[model] = Recommender(run, index, data)
    return found


def measure(folder: Path, data: Path, size: Size, seed: int) -> list[dict[str, Any]]:
    """Engagement and CPU time of every configuration, and of two rankings by the truth: the best
    possible one, and one at random.

    Returns:
        Of each: ``arm``, ``history``, ``candidates`` (0: the whole catalogue), ``expected`` clicks
        per request with the bounds ``low`` and ``high`` of a 95 % interval, and ``cpu_ms``.
    """
    world, now = Population(size, seed), begin_of(size, 0)
    world.move(next(moves_of(size, 0)))
    made = trained(folder, data, size, (*FULL, *STAGED))
    dataset = Dataset(data)
    rng = np.random.default_rng([seed, 3])
    chosen = rng.choice(len(dataset.user_ids), size.asked + UNTIMED, replace=False)
    users = [(int(row), int(dataset.user_ids[row]) - 1) for row in chosen]
    found = [truth_of(world, dataset, users[UNTIMED:], rng, best) for best in (True, False)]
    for model in FULL:
        histories = size.histories if model != "most-popular" else size.histories[-1:]
        for history in histories:
            rank = full(made[model], history, now)
            found.append(measured(world, users, rank, model, history, 0))
    for model in STAGED:
        for history in size.histories:
            for candidates in size.candidates:
                rank = staged(made[RETRIEVER], made[model], history, candidates, now)
                found.append(measured(world, users, rank, model, history, candidates))
    return found


def full(model: Recommender, history: int, now: int) -> Callable[[int], Ranked]:
    """A model that ranks the whole catalogue for the user of a row."""

    def rank(row: int) -> Ranked:
        return ranked(model, row, history, LENGTH, now)

    return rank


def staged(
    retriever: Recommender, model: Recommender, history: int, candidates: int, now: int
) -> Callable[[int], Ranked]:
    """A model that ranks what a retriever found. The retriever reads the full history."""
    length = retriever.run.history

    def rank(row: int) -> Ranked:
        found = ranked(retriever, row, length, candidates, now)
        best = ranked(model, row, history, LENGTH, now, candidates=found.ids)
        return Ranked(best.ids, found.cpu_ms + best.cpu_ms)

    return rank


def ranked(
    model: Recommender, row: int, history: int, k: int, now: int, candidates: Ids | None = None
) -> Ranked:
    """The best items that a user has not seen.

    Args:
        row: of the user in the dataset.
        history: events that the model reads, at most.
        candidates: external ids; the whole catalogue if not given.
    """
    model.length = history
    log = model._log(row, now)
    past, seen = model._past(log, row, now, {}), seen_rows(model.index, log)
    rows = None if candidates is None else model.index.ids.find(candidates)
    began = time.thread_time()
    with torch.inference_mode():
        state = model.ranker.encode_users(past.users, past.vectors)
    top = model.scorer.top(state, k, rows=rows, exclude=[seen])
    taken = 1000 * (time.thread_time() - began)
    best = top.rows[0][top.rows[0] >= 0]
    return Ranked(np.asarray(model.index.ids[best], dtype=np.int64), taken)


def measured(
    world: Population,
    users: Sequence[tuple[int, int]],
    rank: Callable[[int], Ranked],
    arm: str,
    history: int,
    candidates: int,
) -> dict[str, Any]:
    """Rank for each user.

    Args:
        users: their rows of the dataset, and their numbers in the population.
        rank: the ranking for the user of a row.
    """
    clicks, taken = [], []
    for row, user in users:
        one = rank(row)
        taken.append(one.cpu_ms)
        clicks.append(float(world.expected(user, one.ids).sum()))
    found = {
        "arm": arm, "history": history, "candidates": candidates,
        **mean_of(clicks[UNTIMED:]), "cpu_ms": float(np.mean(taken[UNTIMED:])),
    }  # fmt: skip
    print(
        ", ".join(
            f"{name} {x:.3f}" if isinstance(x, float) else f"{name} {x}"
            for name, x in found.items()
        ),
        flush=True,
    )
    return found


def truth_of(
    world: Population,
    dataset: Dataset,
    users: Sequence[tuple[int, int]],
    rng: np.random.Generator,
    best: bool,
) -> dict[str, Any]:
    """The best possible ranking of items that each user has not seen, or one at random."""
    clicks = []
    for row, user in users:
        begin, end = dataset.event_offsets[row : row + 2]
        seen = dataset.item_ids[np.asarray(dataset.events["item"][begin:end])]
        ids = np.setdiff1d(np.arange(1, world.items.live + 1), seen.astype(np.int64))
        if best:
            ids = ids[np.argsort(-world.chances(user, ids))[:LENGTH]]
        else:
            ids = rng.choice(ids, LENGTH, replace=False)
        clicks.append(float(world.expected(user, ids).sum()))
    name = "the truth" if best else "random"
    return {"arm": name, "history": 0, "candidates": 0, **mean_of(clicks), "cpu_ms": None}


def mean_of(values: Sequence[float]) -> dict[str, float]:
    """The mean, with a 95 % interval over users."""
    mean = float(np.mean(values))
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"expected": mean, "low": mean - half, "high": mean + half}


def within(found: Sequence[Mapping[str, Any]], arm: str, budget: float) -> Mapping[str, Any] | None:
    """The configuration of an arm with most engagement among those that stay within a budget of
    CPU milliseconds; None where each takes longer."""
    some = [
        one
        for one in found
        if one["arm"] == arm and one["cpu_ms"] is not None and one["cpu_ms"] <= budget
    ]
    return max(some, key=lambda one: (one["expected"], -one["cpu_ms"]), default=None)
