"""What differs between the demos: the log, the models, the table of results and the best possible.

Each kind names the log, the files that ``synth`` writes, the models, and the sizes of the demo and
of its small form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.data.synthetic import simulate
from limerank.data.synthetic.shop import simulate_shop
from limerank.evaluation.evaluate import Evaluation

DEPTH = 10
"""Of the lists that the shop's table shows."""
Ceiling = Mapping[str, float]
"""Metric -> the best possible value."""


@dataclass(frozen=True)
class DemoKind:
    """A demo.

    Attributes:
        about: what is simulated, for the heading of the first step.
        command: that does it.
        simulate: writes the log into a folder.
        description, items: names of the description and of the item table in that folder.
        models: that are trained and compared; those after ``indexed_from`` may be indexed.
        indexed_from: position in ``models``.
        split: what the models are evaluated on, in words.
        best_possible: metrics of the truth at the requests of the test split.
        table: the results, as text.
        quality: the metric by which the model to index is chosen; higher is better.
        legend: metrics that the table shows.
        sizes: settings of the demo, and of its small form: ``log``, ``train`` and ``users``.
    """

    about: str
    command: str
    simulate: Callable[..., Any]
    description: str
    items: str
    models: tuple[str, ...]
    indexed_from: int
    split: str
    best_possible: Callable[[Dataset, Path], dict[str, float]]
    table: Callable[[Mapping[str, Evaluation], Ceiling], str]
    quality: Callable[[Evaluation], float]
    legend: tuple[str, ...]
    sizes: Mapping[bool, dict[str, Any]]


def best_possible(dataset: Dataset, logs: Path) -> dict[str, float]:
    """Metrics of the simulator's own probabilities on the test split: the best possible ones.

    Returns:
        ``auc`` of the true click probability and ``xauc`` of the true expected watch time.
    """
    truth = pl.read_parquet(logs / "truth.parquet")
    requests = dataset.requests_of("test")
    counts = dataset.requests["count"][requests].astype(np.int64)
    rows = dataset.impression_rows(requests)
    shown = pl.DataFrame(
        {
            "user_id": dataset.user_ids[np.repeat(dataset.requests["user"][requests], counts)],
            "item_id": dataset.item_ids[dataset.events["item"][rows]],
            "time_ms": np.asarray(dataset.events["time"][rows]),
            "click": np.asarray(dataset.events["label_click"][rows]),
            "watch": np.asarray(dataset.events["label_watch"][rows]),
        }
    )
    both = shown.join(truth, on=["user_id", "item_id", "time_ms"], how="inner")
    assert len(both) == len(shown)
    return {
        "auc": metrics.auc(both["click"].to_numpy(), both["click_probability"].to_numpy()),
        "xauc": metrics.xauc(both["watch"].to_numpy(), both["watch_seconds"].to_numpy()),
    }


def comparison_text(results: Mapping[str, Evaluation], ceiling: Ceiling) -> str:
    """A table of the models' metrics and the best possible ones."""
    heads = f"{'click AUC':>10}{'GAUC':>8}{'NE':>8}{'ECE':>8}{'watch XAUC':>12}{'NDCG@10':>9}"
    lines = [f"  {'':<14}{heads}"]
    for model, found in results.items():
        click, watch, lists = found.tasks["click"], found.tasks["watch"], found.lists or {}
        lines.append(
            f"  {model:<14}{click['auc']:>10.4f}{click['gauc']:>8.4f}{click['ne']:>8.4f}"
            f"{click['ece']:>8.4f}{watch['xauc']:>12.4f}{lists.get('ndcg@10', 0.0):>9.4f}"
        )
    lines.append(f"  {'best possible':<14}{ceiling['auc']:>10.4f}{'':>24}{ceiling['xauc']:>12.4f}")
    return "\n".join(lines)


def best_lists(dataset: Dataset, logs: Path) -> dict[str, float]:
    """Metrics of lists by the true probabilities of a simulated shop, at the requests of the test
    split; definitions are those of ``limerank evaluate`` with seen items in.

    Args:
        dataset: of the log, whose requests are its sessions.
        logs: the folder that :func:`~limerank.data.synthetic.shop.simulate_shop` wrote.

    Returns:
        ``hr@10``, ``ndcg@10``, ``coverage@10`` and ``requests``, the number of those for which the
        truth is known.
    """
    requests = dataset.requests_of("test")
    events = pl.read_csv(logs / "events.csv", infer_schema=False).select(
        "session",
        user="user",
        time=pl.col("time")
        .str.to_datetime("%Y-%m-%dT%H:%M:%S%.3f%:z", time_unit="ms")
        .dt.epoch("ms"),
    )
    begins = events.group_by("session").agg(pl.col("user").first(), pl.col("time").min())
    asked = pl.DataFrame(
        {
            "user": dataset.user_ids[dataset.requests["user"][requests]].astype(str),
            "time": np.asarray(dataset.events["time"][dataset.requests["first"][requests]]),
        }
    )
    # A cut point of the split may divide a session; the sessions of a user do not overlap.
    sessions = asked.sort("time").join_asof(
        begins.sort("time"), on="time", by="user", check_sortedness=False
    )["session"]
    known = pl.DataFrame({"session": sessions.drop_nulls().unique()})
    truth = pl.read_parquet(logs / "truth.parquet").join(known, on="session", how="semi")
    lists = pl.read_parquet(logs / "truth-lists.parquet").join(known, on="session", how="semi")
    ranks = truth.sort("session", "rank").group_by("session", maintain_order=True).agg("rank")
    offsets = np.concatenate([[0], np.cumsum(ranks["rank"].list.len().to_numpy())]).astype(np.int64)
    flat = ranks["rank"].explode().to_numpy().astype(np.float64)
    shown = lists.filter(pl.col("rank") <= DEPTH)["item"].n_unique()
    return {
        f"hr@{DEPTH}": metrics.hit_rate(flat, DEPTH, offsets),
        f"ndcg@{DEPTH}": metrics.ndcg(flat, DEPTH, offsets),
        f"coverage@{DEPTH}": shown / int(dataset.candidate.sum()),
        "requests": float(len(ranks)),
    }


LISTS = {f"hr@{DEPTH}": "HR@10", f"ndcg@{DEPTH}": "NDCG@10", f"coverage@{DEPTH}": "coverage"}


def lists_text(results: Mapping[str, Evaluation], ceiling: Ceiling) -> str:
    """A table of the models' lists, of those of their peers, and of the best possible ones."""
    rows: dict[str, Mapping[str, float]] = {}
    for model, found in results.items():
        assert found.lists is not None
        rows[model] = found.lists
        rows |= {peer: lists for peer, lists in found.peers.items() if peer not in rows}
    peers = [name for name in rows if name not in results]
    lines = [f"  {'':<14}" + "".join(f"{head:>10}" for head in LISTS.values())]
    for name in (*results, *peers):
        lines.append(f"  {name:<14}" + "".join(_number(rows[name], key) for key in LISTS))
    lines.append(f"  {'best possible':<14}" + "".join(_number(ceiling, key) for key in LISTS))
    return "\n".join(lines)


def _number(found: Mapping[str, float], name: str) -> str:
    return f"{found[name]:>10.4f}" if name in found else " " * 10


VIDEOS = DemoKind(
    about="the logs of a short-video app",
    command="limerank synth",
    simulate=simulate,
    description="spec.toml",
    items="items.parquet",
    models=("two-tower", "lime-mha", "lime-xor"),
    indexed_from=1,
    split="the last tenth of the time",
    best_possible=best_possible,
    table=comparison_text,
    quality=lambda found: found.tasks["click"]["auc"],
    legend=("auc", "gauc", "ne", "ece", "xauc", "ndcg@10"),
    sizes={
        False: {
            "log": {"users": 2000, "items": 2000, "events": 200_000},
            "train": {"epochs": 3},
            "users": 3,
        },
        True: {
            "log": {"users": 300, "items": 300, "events": 20_000},
            "train": {"epochs": 2},
            "users": 2,
        },
    },
)
SHOP = DemoKind(
    about="the log of a shop: views, carts and purchases",
    command="limerank synth --kind shop",
    simulate=simulate_shop,
    description="shop.toml",
    items="items.csv",
    models=("lime-mha", "lime-xor"),
    indexed_from=0,
    split="the last tenth of the purchases",
    best_possible=best_lists,
    table=lists_text,
    quality=lambda found: (found.lists or {}).get(f"ndcg@{DEPTH}", 0.0),
    legend=tuple(LISTS),
    sizes={
        False: {
            "log": {"users": 3000, "items": 2000, "events": 100_000},
            "train": {},
            "users": 3,
        },
        True: {
            "log": {"users": 400, "items": 400, "events": 12_000, "days": 45},
            "train": {"epochs": 2},
            "users": 2,
        },
    },
)
DEMOS = {"videos": VIDEOS, "shop": SHOP}
