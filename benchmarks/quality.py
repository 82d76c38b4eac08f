"""Quality on real and simulated logs: every model, several seeds, all metrics and slices.

    python -m benchmarks.quality --data FOLDER          # FOLDER holds ml1m/, mind_sample/, ...
    python -m benchmarks.quality --data FOLDER --only ml1m --models mha --models lime-mha
    python -m benchmarks.quality --quick                # a small simulated log; writes no rows

There are three phases, each with its own rows in ``benchmarks/results``:

1. ``search``: every model is trained with the same few settings on each dataset and judged by the
   validation split alone, with seed 0, or with three seeds on the smallest datasets.
2. ``quality``: the best setting is trained with each seed and evaluated once on the test split.
3. ``paired``: differences in test AUC to the two-tower and to HSTU, over all impressions and in
   each slice, with intervals from a paired bootstrap over users.

Finished rows are skipped, and interrupted training runs resume.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.datasets import QUICK, WORK, prepare_dataset
from benchmarks.jobs import Job, finish, workers
from benchmarks.model_costs import costs
from benchmarks.rows import has_row, rows, write_row
from benchmarks.tables import MODELS

AGAINST = ("two-tower", "hstu")
DATASETS = (
    "ml1m",
    "kuairand_slice",
    "mind_sample",
    "synth_short",
    "synth_long",
)
RESAMPLES = 500
LISTS = 500
"""Requests for which the full catalogue is ranked."""
SEARCH: tuple[dict[str, Any], ...] = (
    {"rate": 0.001, "table_rate": 0.05, "epochs": 4},
    {"rate": 0.003, "table_rate": 0.1, "epochs": 2},
    {"rate": 0.003, "table_rate": 0.4, "epochs": 4},
)
"""Settings for datasets of some 100,000 impressions, where two epochs can be enough."""
SEARCH_LARGE = tuple({**setting, "epochs": 4} for setting in SEARCH)
"""Settings for datasets of a million impressions, where two epochs are too few."""
LARGE = ("ml1m",)
SEARCH_SEEDS = {"kuairand_slice": 3, "mind_sample": 3}
"""Dataset -> seeds per setting, where seeds differ by more than settings; elsewhere one."""


# Phase 1: settings


def settings(name: str) -> tuple[dict[str, Any], ...]:
    """The settings that every model tries on a dataset."""
    if name == QUICK:
        return SEARCH[:1]
    return SEARCH_LARGE if name in LARGE else SEARCH


def searches(folders: dict[str, Path], models: tuple[str, ...]) -> Iterator[Job]:
    """Trainings of the search that have no row yet."""
    for name, folder in folders.items():
        for model in models:
            for setting in settings(name):
                for seed in range(SEARCH_SEEDS.get(name, 1)):
                    if not has_row("search", {"dataset": name, "model": model, **setting}, seed):
                        yield search, name, folder, model, setting, seed


def search(name: str, folder: Path, model: str, setting: dict[str, Any], seed: int) -> None:
    """Write one row of the search: the best validation metrics of one setting."""
    last = fit(name, folder, model, seed, setting)
    metrics = validated(last)
    write_row("search", {"dataset": name, "model": model, **setting}, metrics, seed=seed)


def chosen(name: str, model: str) -> dict[str, Any]:
    """The setting with the best validation metric, in the mean over seeds."""
    case = {"dataset": name, "model": model}
    tried = [
        [row for row in rows("search") if row["case"] == {**case, **setting}]
        for setting in settings(name)
    ]
    if not all(tried):
        raise SystemExit(
            f"settings of {model} on {name} have no rows yet; first run "
            f"python -m benchmarks.quality --data FOLDER --only {name} --models {model}"
        )
    means = [
        statistics.mean(v for row in found for k, v in row["metrics"].items() if "/" in k)
        for found in tried
    ]
    return settings(name)[means.index(max(means))]


SETTINGS = {"rate": "learning_rate", "table_rate": "table_learning_rate"}
"""Name of a setting in the rows of ``search`` and ``quality`` -> its name in the configuration."""


def validated(last: dict[str, Any]) -> dict[str, float]:
    """For rows: the step of the stored weights, and the validation AUC (XAUC of a duration) of the
    first task, whichever metric chose them.

    Args:
        last: the last line of a run's curves.
    """
    task, found = next(iter(last["metrics"].items()))
    name, value = next(iter(found.items()))
    return {"best_step": last["best_step"], f"best_{task}/{name}": value}


def own_names(setting: dict[str, Any]) -> dict[str, Any]:
    """A setting by the names of the configuration."""
    return {SETTINGS.get(name, name): value for name, value in setting.items()}


def fit(name: str, folder: Path, model: str, seed: int, setting: dict[str, Any]) -> dict[str, Any]:
    """Train or resume a run, or find the finished one; returns the last line of its curves.

    ``setting`` may hold fields of the model's and of the training's configuration.
    """
    import torch

    from limerank.models.config import configs_of
    from limerank.training.trainer import train

    torch.set_num_threads(1)
    run = run_folder(name, model, seed, setting)
    if (run / "config.json").exists() and not (run / "trainer").exists():
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    shape, config = configs_of(model, {"seed": seed, "bf16": True, **own_names(setting)})
    run.parent.mkdir(parents=True, exist_ok=True)
    return train(folder, run, model=shape, config=config).to_dict()


def run_folder(name: str, model: str, seed: int, setting: dict[str, Any]) -> Path:
    """The folder of a run; each version of the package has its own."""
    version = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD:limerank"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    values = "-".join(f"{key}={plain(value)}" for key, value in setting.items())
    return WORK / "runs" / version / f"{name}-{model}-{values}-{seed}"


def plain(value: Any) -> str:
    """A setting's value in the name of a file."""
    text = "+".join(value) or "none" if isinstance(value, tuple) else str(value)
    return text.replace("/", "_")


# Phase 2: the test split


def measurements(folders: dict[str, Path], models: tuple[str, ...], seeds: int) -> Iterator[Job]:
    """Evaluations on the test split that have no row yet."""
    for name, folder in folders.items():
        for model in models:
            for seed in range(seeds):
                if not measured(name, model, seed):
                    yield measure, name, folder, model, seed


def measured(name: str, model: str, seed: int) -> bool:
    """Whether there is a row with the setting that validation chooses now."""
    setting = chosen(name, model)
    return any(
        row["seed"] == seed
        and row["case"] == case_of(name, model)
        and all(row["metrics"].get(key) == value for key, value in setting.items())
        for row in rows("quality")
    )


def case_of(name: str, model: str) -> dict[str, Any]:
    return {"dataset": name, "model": model, "split": "test"}


def predictions_of(name: str, model: str, seed: int) -> Path:
    """The file of a run's test predictions."""
    return WORK / "predictions" / f"{name}-{model}-{seed}.parquet"


def measure(name: str, folder: Path, model: str, seed: int) -> None:
    """Write one row of quality: the chosen setting, evaluated once on the test split."""
    from limerank.evaluation.evaluate import evaluate

    setting = chosen(name, model)
    last = fit(name, folder, model, seed, setting)
    run, predicted = run_folder(name, model, seed, setting), predictions_of(name, model, seed)
    predicted.parent.mkdir(parents=True, exist_ok=True)
    result = evaluate(run, data=folder, lists=LISTS, predictions=predicted).to_dict()
    metrics: dict[str, Any] = {}
    for task, found in result["tasks"].items():
        metrics |= {f"{task}/{metric}": value for metric, value in found.items()}
    for part in result["slices"]:
        metrics[f"impressions | {part['kind']} {part['slice']}"] = part["impressions"]
        for task, found in part["tasks"].items():
            first = next(iter(found))
            metrics[f"{task}/{first} | {part['kind']} {part['slice']}"] = found[first]
    lists = result["lists"]
    metrics |= {f"lists/{key}": value for key, value in lists.items() if "@" in key or key == "mrr"}
    if "effective_links" in result:
        metrics["effective_links"] = result["effective_links"]
    metrics |= costs(run, folder)
    metrics |= validated(last)
    metrics |= setting
    metrics["real_positions"] = real_positions(run)
    metrics["train_impressions_per_s_one_thread"] = last["impressions_per_s"]
    row = write_row("quality", case_of(name, model), metrics, seed=seed)
    main_metric = next(iter(metrics))
    print(
        f"{name} {model} seed {seed}: {main_metric} {row['metrics'][main_metric]:.4f}", flush=True
    )


def real_positions(run: Path) -> float:
    """Share of the history and candidate positions computed in training that are not padding."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line).get("real_positions") for line in lines]
    return statistics.mean(share for share in found if share is not None)


# Phase 3: differences


def comparisons(folders: dict[str, Path], models: tuple[str, ...], seeds: int) -> Iterator[Job]:
    """Pairs of models whose runs have all been evaluated."""
    for name in folders:
        done = {
            model
            for model in {*models, *AGAINST}
            if all(predictions_of(name, model, seed).exists() for seed in range(seeds))
        }
        for against in AGAINST:
            for model in models:
                if model != against and {model, against} <= done:
                    yield compare, name, model, against, seeds


def compare(name: str, model: str, against: str, seeds: int) -> None:
    """Write one row of paired: differences in the main task's AUC, with their intervals."""
    import polars as pl

    from limerank.evaluation.compare import differences
    from limerank.evaluation.slices import EDGES, column

    ours, theirs = (
        [pl.read_parquet(predictions_of(name, one, seed)) for seed in range(seeds)]
        for one in (model, against)
    )
    frame = ours[0]
    task = next(column for column in frame.columns if f"{column}_predicted" in frame.columns)
    for other in (*ours, *theirs):
        assert frame[["user", "item", "request", task]].equals(
            other[["user", "item", "request", task]]
        ), "the runs were evaluated on different impressions"
    metrics: dict[str, Any] = {}
    for part, _, found in differences(
        frame[task].to_numpy(),
        frame["user"].to_numpy(),
        [predicted[f"{task}_predicted"].to_numpy() for predicted in ours],
        [predicted[f"{task}_predicted"].to_numpy() for predicted in theirs],
        {kind: frame[column(kind)].to_numpy() for kind in EDGES if column(kind) in frame.columns},
        resamples=RESAMPLES,
    ):
        of_part = f" | {part}" if part else ""
        metrics[f"difference{of_part}"] = found.difference
        if not math.isnan(found.low):
            metrics[f"low{of_part}"], metrics[f"high{of_part}"] = found.low, found.high
    write_row(
        "paired", {"dataset": name, "model": model, "against": against}, metrics, repeats=seeds
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument(
        "--only", choices=(*DATASETS, QUICK), action="append", help="this dataset only (repeatable)"
    )
    parser.add_argument(
        "--models", choices=MODELS, action="append", help="this model only (repeatable)"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--processes", type=int, default=2, help="runs in parallel, one thread each"
    )
    parser.add_argument(
        "--quick", action="store_true", help="every phase on a small log, a minute or two"
    )
    given = parser.parse_args(arguments)
    if given.quick:
        quick(given.processes)
        return
    folders = {}
    for name in given.only or DATASETS:
        if (folder := prepare_dataset(name, given.data)) is not None:
            folders[name] = folder
    models = tuple(given.models or MODELS)
    with workers(given.processes) as pool:
        finish(pool, "settings", searches(folders, models))
        finish(pool, "runs", measurements(folders, models, given.seeds))
        finish(pool, "comparisons", comparisons(folders, models, given.seeds))


def quick(processes: int) -> None:
    """All phases for all models on a small simulated log, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="limerank-quick-") as folder:
        environment = {"BENCH_WORK": f"{folder}/work", "BENCH_RESULTS": f"{folder}/results"}
        again = [sys.executable, "-m", "benchmarks.quality", "--only", QUICK, "--seeds", "1"]
        subprocess.run(
            [*again, "--processes", str(processes)], check=True, env={**os.environ, **environment}
        )
        page = "from benchmarks import quality_page, rows; "
        page += "print(quality_page.difference_tables(list(rows.rows('paired')))[-1])"
        subprocess.run([sys.executable, "-c", page], check=True, env={**os.environ, **environment})


if __name__ == "__main__":
    main()
