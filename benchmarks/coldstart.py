"""Cold starts: items and users that are absent from training.

    python -m benchmarks.coldstart --data FOLDER

A tenth of the items (the last to appear) and a tenth of the users are held out of training
(``held_out_items``, ``held_out_users`` of the description's split). Every model is then evaluated
on

- the held-out items in the test split, of which it knows the content alone;
- the held-out users' requests with at least 20 earlier events, given 0, 1, 2, 5, 10 or 20 of the
  latest ones or as many as in training: the same impressions every time.

LIME scores the held-out items a second time, through an index that was built without them and to
which they were then added, without further training.

Training hides a share of the ids so that the model learns to score items by content. LIME-MHA
measures what this gains for items without an id, and what it costs the others; all models have the
same towers.

``benchmarks.quality`` chose the settings on the full dataset. Finished rows are skipped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import quality
from benchmarks.datasets import WORK, describe, prepare_dataset
from benchmarks.jobs import Job, finish, workers
from benchmarks.rows import has_row, write_row

if TYPE_CHECKING:
    import polars as pl

    from limerank.evaluation.evaluate import Evaluation

DATASETS = ("ml1m", "synth_short")
MODELS = ("popularity", "two-tower", "lime-mha", "lime-xor")
SHARE = 0.1
EVENTS = (0, 1, 2, 5, 10, 20)
ID_DROPOUT = (0.0, 0.3)
"""Shares of hidden ids beside the default."""


def prepare_cold(name: str, data: Path | None) -> Path | None:
    """The dataset with a tenth of the users and items held out."""
    from limerank.data.prepare import prepare

    out = WORK / "data-cold" / name
    if not out.exists():
        found = describe(name, data)
        if found is None:
            return None
        spec, base = found
        held = {"held_out_users": SHARE, "held_out_items": SHARE}
        spec = spec.model_copy(update={"split": spec.split.model_copy(update=held)})
        prepare(spec, out, base=base)
    return out


def measure(name: str, data: Path | None, folder: Path, model: str, seed: int) -> None:
    """Train once, evaluate held-out items and users; a row each."""
    from limerank.evaluation.evaluate import evaluate

    setting = quality.chosen(name, model)
    quality.fit(f"cold-{name}", folder, model, seed, setting)
    run = quality.run_folder(f"cold-{name}", model, seed, setting)
    options: dict[str, Any] = {"data": folder, "lists": 0, "out": run / "cold.json"}
    for events in (*EVENTS, None):
        found = evaluate(run, split="held-out", history=events, at_least=max(EVENTS), **options)
        seen = "all" if events is None else events
        write_row(
            "coldstart",
            {"dataset": name, "model": model, "what": "users", "events": seen},
            {**first_task(found.tasks), "impressions": found.impressions},
            seed=seed,
        )
    metrics = of_items(evaluate(run, **options))
    if model.startswith("lime"):
        metrics |= added(run, folder, *item_table(name, data))
    write_row("coldstart", case_of(name, model), metrics, seed=seed)
    print(f"{name} {model} seed {seed}: {metrics}", flush=True)


def measure_share(name: str, folder: Path, share: float, seed: int) -> None:
    """Train with another share of hidden ids, evaluate held-out items."""
    from limerank.evaluation.evaluate import evaluate

    model = "lime-mha"
    setting = {**quality.chosen(name, model), "id_dropout": share}
    quality.fit(f"cold-{name}", folder, model, seed, setting)
    run = quality.run_folder(f"cold-{name}", model, seed, setting)
    metrics = of_items(evaluate(run, data=folder, lists=0, out=run / "cold.json"))
    write_row("coldstart", share_case(name, share), metrics, seed=seed)
    print(f"{name} id dropout {share} seed {seed}: {metrics}", flush=True)


def of_items(found: Evaluation) -> dict[str, float]:
    """The main task of the held-out items, and of all."""
    parts = {part.name: part for part in found.slices if part.kind == "item impressions"}
    return {
        **first_task(parts["0"].tasks),
        "impressions": parts["0"].impressions,
        **{f"{key} of all items": value for key, value in first_task(found.tasks).items()},
    }


def item_table(name: str, data: Path | None) -> tuple[pl.DataFrame, str]:
    """The dataset's item table before preparation, and its id column."""
    import polars as pl

    found = describe(name, data)
    assert found is not None, f"{name} is not in --data"
    table, base = found[0].items, found[1]
    assert table is not None, f"{name} has no item table"
    return pl.concat([pl.read_parquet(base / file) for file in table.files]), table.id


def added(run: Path, folder: Path, items: pl.DataFrame, column: str) -> dict[str, float]:
    """AUC of the held-out items as a server scores them after they were added to an index, and the
    time of adding them, including the write to disk."""
    import tempfile

    import numpy as np
    import polars as pl
    import torch

    from limerank import Dataset, Index, add_items, build_index, load_run, metrics
    from limerank.ranking.scorer import scorer_for

    of, dataset = load_run(run), Dataset(folder)
    new = pl.col(column).is_in(dataset.item_ids[dataset.trained_items :].tolist())
    requests = dataset.requests_of("test")
    with tempfile.TemporaryDirectory(prefix="limerank-cold-") as scratch, torch.inference_mode():
        items.filter(~new).write_parquet(f"{scratch}/known.parquet")
        items.filter(new).write_parquet(f"{scratch}/new.parquet")
        build_index(of, f"{scratch}/index", items=f"{scratch}/known.parquet")
        started = time.perf_counter()
        change = add_items(of, f"{scratch}/index", f"{scratch}/new.parquet")
        taken = time.perf_counter() - started
        index = Index.open(f"{scratch}/index", of.fingerprint)
        scorer = scorer_for("native", of.ranker, index)
        predicted, labels = [], []
        for request in requests:
            first, count = (int(dataset.requests[key][request]) for key in ("first", "count"))
            asked = dataset.events["item"][first : first + count]
            cold = np.flatnonzero(asked >= dataset.trained_items)
            if len(cold):
                batch = dataset.batch(np.array([request]), of.train.history)
                state = of.ranker.encode_users(batch.users, of.ranker.item_vectors(batch.items))
                rows = index.ids.find(dataset.item_ids[asked[cold]])
                predicted.append(scorer.scores(state, rows)[0, :, 0])
                labels.append(batch.labels[0, cold, 0].numpy())
    return {
        "auc through the index": metrics.auc(np.concatenate(labels), np.concatenate(predicted)),
        "items added to the index": change.added,
        "ms to add them": 1e3 * taken,
    }


def first_task(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """AUC and NE of the main task."""
    found = next(iter(tasks.values()))
    return {"auc": found["auc"], "ne": found["ne"]}


def case_of(name: str, model: str) -> dict[str, Any]:
    """The case of a model's last row: if it exists, all rows of the model do."""
    return {"dataset": name, "model": model, "what": "items"}


def share_case(name: str, share: float) -> dict[str, Any]:
    return {"dataset": name, "model": "lime-mha", "what": "id dropout", "share": share}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument("--only", choices=DATASETS, action="append")
    parser.add_argument(
        "--models", choices=MODELS, action="append", help="this model only (repeatable)"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    with workers(given.processes) as pool:
        full = {
            name: folder
            for name in given.only or DATASETS
            if (folder := prepare_dataset(name, given.data)) is not None
        }
        models = tuple(given.models or MODELS)
        finish(pool, "settings", quality.searches(full, models))
        cold = {name: prepare_cold(name, given.data) for name in full}
        waiting: list[Job] = [
            (measure, name, given.data, folder, model, seed)
            for name, folder in cold.items()
            for model in models
            for seed in range(given.seeds)
            if folder and not has_row("coldstart", case_of(name, model), seed)
        ]
        waiting += [
            (measure_share, name, folder, share, seed)
            for name, folder in cold.items()
            for seed in range(given.seeds)
            for share in ID_DROPOUT
            if folder and not has_row("coldstart", share_case(name, share), seed)
            if "lime-mha" in models
        ]
        finish(pool, "runs", waiting)


if __name__ == "__main__":
    main()
