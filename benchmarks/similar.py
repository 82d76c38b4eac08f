"""Similar items compared with the truth of a simulated shop, and what diversity costs.

    python -m benchmarks.similar                 # minutes; resumable

A log of ``limerank synth --kind shop`` for each seed, of 600 products and some 40,000 events. Its
truth has the probability of every purchase in the sessions that end in one; two products are
similar in truth where the same sessions want both: the cosine of their probabilities over all
sessions. *truth cosine* is its mean over the ten most similar items of each product that the truth
knows, *share of best* that of the best possible lists, and *same category* the share of the ten
that have the product's category. ``vectors``, ``values`` (anchored values: category and brand),
``neighbours``, ``heads`` (the part of the head's first layer), ``keys`` and ``links`` are what an
index of LIME-MHA holds of an item; the package compares ``vectors+values+neighbours``. *category*
lists items of the same category at random, *chance* any items.

*diversity* ranks for requests of the test split with rules of this ``diversity``: NDCG@10 of what
was bought, the mean similarity of two items of a list, and the categories of a list.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from benchmarks.datasets import WORK
from benchmarks.rows import has_row, write_row
from benchmarks.shop import END
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.data.synthetic.shop import simulate_shop
from limerank.index import Index
from limerank.index.building import build_index
from limerank.metrics import ndcg
from limerank.models.config import ModelConfig, TrainConfig, config_class
from limerank.ranking.alike import Alike, ByTerms, alike, nearest
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_run
from limerank.training.trainer import train

SIZE: dict[str, Any] = {"users": 1200, "items": 600, "events": 40_000}
PARTS = (
    ("vectors", "values", "neighbours"),
    ("vectors", "values"),
    ("values", "neighbours"),
    ("neighbours",),
    ("vectors",),
    ("values",),
    ("heads",),
    ("keys",),
    ("links",),
    ("heads", "values"),
    ("vectors", "keys", "values"),
)
DIVERSITIES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
LIST = 10
REQUESTS = 400
"""Requests of the test split that are ranked, at most."""
LEAST = 20
"""Sessions that want a product, at least, for the truth to know what is similar to it."""

Values = NDArray[np.float64]


def run_of(model: str, seed: int) -> tuple[Path, Path, Path]:
    """The log, the run and the index of a model; made on first use."""
    logs, data = WORK / "logs" / f"alike-{seed}", WORK / "data-alike" / str(seed)
    run, index = (WORK / kind / f"{model}-{seed}" for kind in ("runs-alike", "index-alike"))
    if not logs.exists():
        simulate_shop(logs, seed=seed, end=END, **SIZE)
    if not data.exists():
        prepare(load_spec(logs / "shop.toml"), data, base=logs)
    if not run.exists():
        config: ModelConfig = config_class(model)(model=model)
        train(data, run, model=config, config=TrainConfig(seed=seed))
    if not index.exists():
        build_index(load_run(run), index)
    return logs, run, index


def true_cosines(logs: Path, ids: Sequence[str]) -> tuple[Values, NDArray[np.bool_]]:
    """Cosines of the probabilities of purchases over sessions, [n, n], and which items the truth
    knows, [n]."""
    lists = pl.read_parquet(logs / "truth-lists.parquet")
    column = {id: at for at, id in enumerate(ids)}
    lists = lists.filter(pl.col("item").is_in(list(column)))
    session = lists["session"].rank("dense").to_numpy().astype(np.int64) - 1
    item = np.array([column[id] for id in lists["item"]])
    chances = np.zeros((session.max() + 1, len(ids)))
    chances[session, item] = lists["probability"].to_numpy()
    wanted = (chances > 0).sum(0) >= LEAST
    norms = np.linalg.norm(chances, axis=0)
    cosines = chances.T @ chances / np.maximum(np.outer(norms, norms), 1e-12)
    np.fill_diagonal(cosines, -1.0)
    return cosines, wanted


def categories(logs: Path, ids: Sequence[str]) -> list[str]:
    """The category of each item."""
    table = pl.read_csv(logs / "items.csv", infer_schema=False)
    of = dict(zip(table["id"], table["category"], strict=True))
    return [of[id] for id in ids]


def figures(
    lists: dict[int, NDArray[np.int64]], cosines: Values, category: Sequence[str]
) -> dict[str, float]:
    """Metrics of the similar items of some items, by position."""
    found, best, same = [], [], []
    for at, near in lists.items():
        found.append(cosines[at, near].sum() / LIST)
        best.append(np.sort(cosines[at])[-LIST:].mean())
        same.append(np.mean([category[at] == category[one] for one in near] or [0.0]))
    return {
        "truth_cosine@10": float(np.mean(found)),
        "share_of_best": float(np.mean(found) / np.mean(best)),
        "same_category@10": float(np.mean(same)),
    }


def measure_alike(seed: int) -> None:
    """One row for each part of an index, for item-kNN, and for two lists by chance."""
    cases: dict[str, Any] = {"+".join(parts): parts for parts in PARTS}
    names = [*cases, "item-knn", "category", "chance"]
    if all(has_row("similar", {"what": "similar items", "by": name}, seed) for name in names):
        return
    logs, _, index_path = run_of("lime-mha", seed)
    index = Index.open(index_path)
    ids = index.ids[:].tolist()
    cosines, known = true_cosines(logs, ids)
    category = categories(logs, ids)
    some, rng = np.flatnonzero(known).tolist(), np.random.default_rng(seed)

    def by(of: Alike) -> dict[int, NDArray[np.int64]]:
        return {at: nearest(of, at, LIST).rows for at in some}

    lists = {name: by(ByTerms(index, parts)) for name, parts in cases.items()}
    _, counted, counted_index = run_of("item-knn", seed)
    opened = Index.open(counted_index)
    assert opened.ids[:].tolist() == ids
    lists["item-knn"] = by(alike(opened, load_run(counted).ranker))
    groups: dict[str, list[int]] = {}
    for at, name in enumerate(category):
        groups.setdefault(name, []).append(at)
    lists["category"], lists["chance"] = (
        {at: rng.permutation([one for one in of(at) if one != at])[:LIST] for at in some}
        for of in (lambda at: groups[category[at]], lambda at: range(len(ids)))
    )
    for name in names:
        metrics = figures(lists[name], cosines, category)
        write_row("similar", {"what": "similar items", "by": name}, metrics, seed=seed)
        print(seed, name, metrics, flush=True)


def measure_diversity(seed: int) -> None:
    """One row for each diversity."""
    case = {"what": "diversity", "model": "lime-mha"}
    left = [one for one in DIVERSITIES if not has_row("similar", {**case, "diversity": one}, seed)]
    if not left:
        return
    logs, run, index = run_of("lime-mha", seed)
    recommender = Recommender(run, index)
    of_item = dict(
        zip(recommender.index.ids[:].tolist(), range(len(recommender.index)), strict=True)
    )
    category, of = categories(logs, list(of_item)), ByTerms(recommender.index)
    dataset = recommender.dataset
    for diversity in left:
        ranks: list[float] = []
        offsets, alike_in_list, kinds = [0], [], []
        for user, time, bought in test_requests(dataset):
            ranking = recommender.rank(
                user, time=time, k=LIST, exclude_seen=False, rules={"diversity": diversity}
            )
            rows = np.array([item.row for item in ranking])
            at = {row: rank for rank, row in enumerate(rows.tolist(), 1)}
            ranks += [at.get(of_item[one], np.inf) for one in dict.fromkeys(bought)]
            offsets.append(len(ranks))
            cosines = np.array([of.to(row, rows) for row in rows.tolist()])
            alike_in_list.append(cosines[np.triu_indices(len(rows), 1)].mean())
            kinds.append(len({category[row] for row in rows}))
        metrics = {
            "ndcg@10": ndcg(ranks, LIST, offsets),
            "similarity_in_list": float(np.mean(alike_in_list)),
            "categories_in_list": float(np.mean(kinds)),
        }
        write_row("similar", {**case, "diversity": diversity}, metrics, seed=seed)
        print(seed, diversity, metrics, flush=True)


def test_requests(dataset: Dataset) -> list[tuple[Any, int, list[Any]]]:
    """User, time and purchases of requests of the test split."""
    found = []
    (label,) = dataset.tasks
    for request in dataset.requests_of("test").tolist():
        first, count = (int(dataset.requests[name][request]) for name in ("first", "count"))
        events = slice(first, first + count)
        positive = np.asarray(dataset.events[f"label_{label}"][events]) > 0
        bought = dataset.item_ids[np.asarray(dataset.events["item"][events])[positive]].tolist()
        if bought:
            user = dataset.user_ids[dataset.requests["user"][request]]
            found.append((user, int(dataset.events["time"][first]), bought))
    step = max(1, len(found) // REQUESTS)
    return found[::step][:REQUESTS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    for seed in range(given.seeds):
        measure_alike(seed)
        measure_diversity(seed)


if __name__ == "__main__":
    main()
