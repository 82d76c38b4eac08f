"""Metrics of ranked lists, of a model and of what it should beat: item-kNN, popularity, chance."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.data.interactions import TrainingInteractions
from limerank.errors import SpecError, check_integer
from limerank.evaluation.lists import (
    LIST_DEPTHS,
    ListRequests,
    Lists,
    Seen,
    draw_requests,
    is_of_positives,
    rank_lists,
    ranking_task,
    seen_by_default,
)
from limerank.models import Ranker, build
from limerank.models.config import DataShape, ModelConfig
from limerank.models.registry import FITTED
from limerank.results import aligned, none_for_nan, rounded

CHANCE = "chance"
"""The name of lists in random order, beside the peers."""
Z = 1.96
"""Standard errors to both sides of a difference: a 95 % interval."""


@dataclass(frozen=True)
class Gain:
    """How much better a model's lists are than those of a peer: the mean difference of a metric
    over requests, and bounds that hold it with 95 % confidence, by the spread between users."""

    metric: str
    difference: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        bounds = {"low": none_for_nan(self.low), "high": none_for_nan(self.high)}
        return {**asdict(self), **bounds}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Gain:
        """From :meth:`to_dict`."""
        bounds = {
            name: math.nan if values[name] is None else float(values[name])
            for name in ("low", "high")
        }
        return cls(str(values["metric"]), float(values["difference"]), **bounds)


@dataclass(frozen=True)
class ListEvaluation:
    """How good ranked lists of the full catalogue are.

    Attributes:
        label: the label whose positives are relevant.
        seen: whether lists may hold items that the user has seen before.
        requests: that were ranked for.
        positive: requests with a positive; where there are more than ``requests``, those were
            drawn at random.
        catalogue: items that can be ranked.
        metrics: of the model: metric -> value.
        peers: the same of "item-knn", "most-popular" and "chance"; empty where peers were not
            asked for.
        gains: peer -> how much better the model is.
        positives: whether the log is one of positives.
    """

    label: str
    seen: Seen
    requests: int
    positive: int
    catalogue: int
    metrics: Mapping[str, float]
    peers: Mapping[str, Mapping[str, float]]
    gains: Mapping[str, Gain]
    positives: bool = False

    @property
    def numbers(self) -> dict[str, float]:
        """Numbers of requests and items, and the metrics of the model."""
        return {
            "requests": float(self.requests),
            "requests_with_positive": float(self.positive),
            "catalogue": float(self.catalogue),
            **self.metrics,
        }


def evaluate_lists(
    ranker: Ranker,
    dataset: Dataset,
    requests: NDArray[np.int64],
    *,
    most: int | None = None,
    depths: Sequence[int] = LIST_DEPTHS,
    seen: Seen | None = None,
    peers: bool = True,
    history: int | None = None,
    quiet: bool = True,
) -> ListEvaluation:
    """Rank the full catalogue for requests with a positive, and measure the lists.

    Args:
        ranker: the model.
        dataset: whose requests are ranked for. Peers are counted in its training window.
        requests: request rows, i64.
        most, seen: as of :func:`~limerank.evaluation.lists.draw_requests`; by default items that
            were seen are ranked in a log of positives, and are not in others.
        depths: k of the metrics at k.
        peers: whether to measure most-popular, item-kNN and chance as well.
        history: events of a history, at most; as many as the dataset holds when not given.
        quiet: show no progress.

    Raises:
        SpecError: a depth is not an integer of 1 or more.
    """
    depths = checked_depths(depths)
    seen = seen_by_default(dataset) if seen is None else seen
    label = ranker.shape.tasks[ranking_task(ranker.shape.tasks, dataset)].name
    chosen = draw_requests(dataset, requests, label, seen, most)
    rankers = {ranker.config.model: ranker}
    if peers and len(chosen):
        rankers |= {
            name: peer(dataset, name, quiet) for name in reversed(FITTED) if name not in rankers
        }
    lists = {
        name: rank_lists(
            one,
            dataset if one is ranker else dataset.own,  # peers have the codes of the dataset
            chosen,
            max(depths),
            history=history,
            name=f"lists of {name}",
            quiet=quiet,
        )
        for name, one in rankers.items()
    }
    counts = positive_counts(dataset.own)
    own = lists[ranker.config.model]
    found = {name: measure(one, chosen, dataset, counts, depths) for name, one in lists.items()}
    gains = {
        name: gain(own, one, chosen, dataset, depths[0])
        for name, one in lists.items()
        if one is not own
    }
    if peers and len(chosen):
        found[CHANCE] = by_chance(own, chosen, dataset, counts, depths)
    return ListEvaluation(
        label=label,
        seen=seen,
        requests=len(chosen),
        positive=chosen.positive,
        catalogue=int(dataset.candidate.sum()),
        metrics=found.pop(ranker.config.model),
        peers=found,
        gains=gains,
        positives=is_of_positives(dataset),
    )


def checked_depths(depths: Sequence[int]) -> tuple[int, ...]:
    """Depths in ascending order, each once.

    Raises:
        SpecError: there are none, or one is not an integer of 1 or more.
    """
    for depth in depths:
        check_integer("k", depth, 1)
    if not depths:
        raise SpecError("k is empty, expected one depth of lists or several, such as 10 and 50")
    return tuple(sorted(set(depths)))


def peer(dataset: Dataset, name: str, quiet: bool = True) -> Ranker:
    """A model that is fitted by counting, on the training window of a dataset; with progress unless
    ``quiet``."""
    return _peer(dataset.path.resolve(), _version(dataset), name, quiet)


def _version(dataset: Dataset) -> int:
    return (dataset.path / "dataset.json").stat().st_mtime_ns


@functools.lru_cache(maxsize=4)
def _peer(path: Path, version: int, name: str, quiet: bool) -> Ranker:
    """Cached for the evaluations of several runs by one process."""
    dataset = Dataset(path)
    ranker = build(DataShape.of(dataset.manifest), ModelConfig(model=name)).eval()
    with torch.no_grad():
        ranker.fit(TrainingInteractions(dataset), quiet)
    return ranker.requires_grad_(False)


def positive_counts(dataset: Dataset) -> NDArray[np.float64]:
    """Positives of each item in the training window, f64 [I]."""
    counts = np.zeros(len(dataset.items) + 1)
    for block in TrainingInteractions(dataset).blocks():
        counts += np.bincount(block.items[block.weights > 0], minlength=len(counts))
    return counts[1:]


def measure(
    lists: Lists,
    requests: ListRequests,
    dataset: Dataset,
    counts: NDArray[np.float64],
    depths: Sequence[int],
) -> dict[str, float]:
    """All metrics of lists: metric -> value; empty where there are no requests.

    Args:
        lists: of :func:`~limerank.evaluation.lists.rank_lists`.
        requests: that they are for.
        dataset: that they are of.
        counts: of :func:`positive_counts`.
        depths: k of the metrics at k.
    """
    found: dict[str, float] = {}
    if not len(requests):
        return found
    catalogue = max(int(dataset.candidate.sum()), 1)
    for depth in depths:
        top = lists.top[:, :depth]
        found[f"ndcg@{depth}"] = metrics.ndcg(lists.ranks, depth, requests.offsets)
        found[f"hr@{depth}"] = metrics.hit_rate(lists.ranks, depth, requests.offsets)
        found[f"recall@{depth}"] = metrics.recall(lists.ranks, depth, requests.offsets)
        found[f"coverage@{depth}"] = metrics.coverage(top, catalogue)
        found[f"novelty@{depth}"] = metrics.self_information(top, counts)
        found[f"concentration@{depth}"] = metrics.concentration(top, depth)
        if requests.seen == "in":
            filled = int((top >= 0).sum())
            found[f"repeats@{depth}"] = int(lists.repeated[:, :depth].sum()) / max(filled, 1)
    found["mrr"] = metrics.mrr(lists.ranks, requests.offsets)
    return found


def by_chance(
    lists: Lists,
    requests: ListRequests,
    dataset: Dataset,
    counts: NDArray[np.float64],
    depths: Sequence[int],
) -> dict[str, float]:
    """The metrics that lists in random order have on average; arguments as of :func:`measure`."""
    found: dict[str, float] = {}
    relevant = np.diff(requests.offsets)
    candidates = np.flatnonzero(dataset.candidate)
    for depth in depths:
        one = metrics.chance(relevant, lists.ranked, depth)
        drawn = np.minimum(depth / np.maximum(lists.ranked, 1), 1 - 1e-12)
        missed = float(np.log1p(-drawn).sum())
        found[f"ndcg@{depth}"] = one.ndcg
        found[f"hr@{depth}"] = one.hit_rate
        found[f"recall@{depth}"] = one.recall
        found[f"coverage@{depth}"] = float(-np.expm1(missed))
        found[f"novelty@{depth}"] = metrics.self_information(candidates, counts)
        found["mrr"] = one.mrr
    return found


def gain(ours: Lists, theirs: Lists, requests: ListRequests, dataset: Dataset, depth: int) -> Gain:
    """The difference in NDCG@k of two models on the same requests.

    The variance of the mean is that of sums over users: requests of one user are not independent.
    """
    difference = _ndcgs(ours, requests, depth) - _ndcgs(theirs, requests, depth)
    mean = float(difference.mean())
    users = np.unique(dataset.requests["user"][requests.rows], return_inverse=True)[1]
    sums = np.bincount(users, difference - mean)
    error = math.nan
    if len(sums) > 1:
        error = float(np.sqrt(np.square(sums).sum() * len(sums) / (len(sums) - 1)))
        error /= len(requests)
    return Gain(f"ndcg@{depth}", mean, mean - Z * error, mean + Z * error)


def _ndcgs(lists: Lists, requests: ListRequests, depth: int) -> NDArray[np.float64]:
    """NDCG@k of each request, f64 [R]."""
    gains = np.where(lists.ranks <= depth, 1 / np.log2(1 + lists.ranks), 0.0)
    relevant = np.minimum(np.diff(requests.offsets), depth)
    ideal = np.cumsum(1 / np.log2(1 + np.arange(1, depth + 1)))
    found: NDArray[np.float64] = np.add.reduceat(gains, requests.offsets[:-1]) / ideal[relevant - 1]
    return found


COLUMNS = ("hr", "ndcg", "recall", "mrr", "coverage", "novelty", "concentration", "repeats")
"""Metrics of a table, in its order."""


def list_table(
    model: str,
    lists: Mapping[str, float],
    peers: Mapping[str, Mapping[str, float]],
    gains: Mapping[str, Gain],
    seen: Seen | None,
) -> list[str]:
    """Lines of text: a table for each depth with a row for the model and for each peer, and how
    much better the model is.

    Args:
        model: name of the model.
        lists: of :attr:`ListEvaluation.numbers`.
        peers, gains, seen: of :class:`ListEvaluation`; None: an earlier version did not say.
    """
    requests, positive = lists["requests"], lists.get("requests_with_positive")
    drawn = "" if positive is None or positive <= requests else f" of {positive:,.0f}"
    out = "seen items left out"
    which = {"in": "seen items in (as limerank rank --seen)", "out": out, None: out}
    lines = [
        f"lists of the full catalogue of {lists['catalogue']:,.0f} items, {requests:,.0f} requests"
        f"{drawn} with a positive, {which[seen]}"
    ]
    if positive and not requests and seen == "out":
        lines.append(
            "  all positives are of items that their users have seen: rank seen items as well "
            "(--seen in)"
        )
    rows = {model: lists, **peers}
    depths = dict.fromkeys(int(name.partition("@")[2]) for name in lists if "@" in name)
    for depth in depths:
        names = [
            name
            for name in COLUMNS
            if f"{name}@{depth}" in lists or (name == "mrr" and name in lists)
        ]
        table = [(f"first {depth}", *names)]
        for one, found in rows.items():
            values = [found.get(f"{name}@{depth}", found.get(name)) for name in names]
            table.append((one, *("-" if value is None else rounded(value) for value in values)))
        lines += ["", *aligned(table, "<" + ">" * len(names), (16, *(len(n) + 2 for n in names)))]
    if gains:
        lines.append("")
    for one, more in gains.items():
        interval = ""
        if not math.isnan(more.low):
            interval = f" (95 % interval {more.low:+.4f} to {more.high:+.4f})"
        lines.append(f"{more.metric} minus that of {one}: {more.difference:+.4f}{interval}")
    return lines
