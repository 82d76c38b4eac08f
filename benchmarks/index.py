"""The index and the torch scorers: building, size, opening, ranking.

    python -m benchmarks.index --items 1_000_000

A catalogue with five categorical features, a model with random weights (speed does not depend on
them), one user with a full history. Ranking: the best 100 of the whole catalogue, and 512 given
candidates, by the torch scorers; one request at a time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.rows import write_row
from limerank.checkpoint import create_run, load_run, save_weights
from limerank.config import DataShape, ModelConfig, TrainConfig
from limerank.dataset import Dataset
from limerank.index import Index
from limerank.indexing import build_index
from limerank.logs import prepare
from limerank.models import build
from limerank.rank import Recommender
from limerank.schema import Spec
from limerank.scorer import ModelScorer, QuantisedScorer, Scorer

FEATURES = {"author": 50_000, "category": 20, "brand": 5_000, "language": 30, "band": 100}


def catalogue(folder: Path, items: int, events: int = 100_000, seed: int = 0) -> Path:
    """A dataset with so many items, most of them never shown."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(0, size, items) for name, size in FEATURES.items()}
    pl.DataFrame({"item_id": np.arange(items), **columns}).write_parquet(folder / "items.parquet")
    pl.DataFrame(
        {
            "user_id": rng.integers(0, events // 200, events),
            "item_id": rng.integers(0, items, events),
            "time": np.sort(rng.integers(1_700_000_000, 1_702_000_000, events)),
            "click": rng.integers(0, 2, events),
        }
    ).write_parquet(folder / "events.parquet")
    spec = Spec.model_validate(
        {
            "name": "index-benchmark",
            "events": [{"files": ["events.parquet"], "time": "time"}],
            "labels": [{"name": "click", "kind": "binary"}],
            "items": {
                "files": ["items.parquet"],
                "id": "item_id",
                "features": [{"name": name, "kind": "categorical"} for name in FEATURES],
            },
        }
    )
    prepare(spec, folder / "data", base=folder)
    return folder / "data"


def random_run(path: Path, dataset: Dataset, config: ModelConfig) -> None:
    torch.manual_seed(0)
    shape = DataShape.of(dataset.manifest)
    path.mkdir()
    create_run(path, dataset, shape, config, TrainConfig())
    save_weights(path, build(shape, config))


def milliseconds(work: Callable[[], object], repeats: int) -> tuple[float, list[float]]:
    """Median and range of the time of a call, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken), [min(taken), max(taken)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--model", nargs="+", default=["lime-mha", "lime-xor", "two-tower"])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="limerank-index-") as held:
        for items in given.items:
            folder = Path(held) / str(items)
            folder.mkdir()
            dataset = Dataset(catalogue(folder, items))
            for model in given.model:
                config = ModelConfig(model=model, hidden=given.hidden)
                random_run(folder / model, dataset, config)
                measure(folder, model, dataset, given.threads, given.repeats)


def measure(folder: Path, model: str, dataset: Dataset, threads: int, repeats: int) -> None:
    run = load_run(folder / model)
    items, path = len(dataset.items), folder / f"index-{model}"
    builds = []
    for _ in range(3):
        started = time.perf_counter()
        build_index(run, path, data=dataset, overwrite=True)
        builds.append(items / (time.perf_counter() - started))
    opening, _ = milliseconds(lambda: Index.open(path), repeats)
    verifying, _ = milliseconds(lambda: Index.open(path, verify=True), 1)
    config = run.ranker.config
    write_row(
        "index",
        {"model": model, "items": items, "d": config.width, "threads": threads},
        {
            "items_per_s": statistics.median(builds),
            "bytes_per_item": sum(file.stat().st_size for file in path.iterdir()) / items,
            "open_ms": opening,
            "verify_ms": verifying,
        },
        repeats=len(builds),
        spread={"items_per_s": [min(builds), max(builds)]},
    )
    index = Index.open(path, run.fingerprint)
    scorers: list[Scorer] = [ModelScorer(run.ranker, index)]
    if index.weights is not None:
        scorers.append(QuantisedScorer(run.ranker, index))
    rng = np.random.default_rng(0)
    candidates = index.ids[rng.choice(items, 512, replace=False)].tolist()
    user = dataset.user_ids[np.argmax(np.bincount(dataset.requests["user"]))]
    for scorer in scorers:
        recommender = Recommender(run, index, dataset, scorer=scorer)
        for name, ids in (("all", None), ("512", candidates)):
            times: dict[str, list[float]] = {"user": [], "score": []}

            def work(ids: list[int] | None = ids, times: dict[str, list[float]] = times) -> None:
                ranking = recommender.rank(user, k=100, candidates=ids)  # noqa: B023  (called in this turn)
                for stage, values in times.items():
                    values.append(ranking.milliseconds[stage])

            count = repeats if ids is None else 10 * repeats
            median, spread = milliseconds(work, count)
            write_row(
                "ranking",
                {
                    "model": model,
                    "scorer": scorer.name,
                    "items": items,
                    "M": name,
                    "k": 100,
                    "weights": config.heads * config.links if model != "two-tower" else None,
                    "hidden": config.hidden,
                    "threads": threads,
                },
                {
                    "ms_p50": median,
                    **{f"{k}_ms_p50": statistics.median(v[1:]) for k, v in times.items()},
                },
                repeats=count,
                spread={"ms_p50": spread},
            )


if __name__ == "__main__":
    main()
