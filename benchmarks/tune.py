"""Settings: what a search with ``limerank tune`` gains over the defaults.

    python -m benchmarks.tune [--data FOLDER]

Each row is one search: its first trial has the defaults, the others are Optuna's. Validation alone
chooses the settings; both runs are then evaluated once on the test split. The gain in test AUC has
a 95 % interval, by a paired bootstrap over users. The simulated log needs no data;
``--data FOLDER`` adds real ones. Finished rows are skipped, and interrupted searches continue.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import QUICK, WORK, prepare_dataset
from benchmarks.rows import has_row, write_row

REAL = ("kuairand_slice",)


def case_of(dataset: str, model: str, trials: int) -> dict[str, Any]:
    return {"dataset": dataset, "model": model, "trials": trials}


def measure(dataset: str, data: Path, model: str, trials: int, seed: int) -> dict[str, Any]:
    """Search, evaluate both runs on the test split, and store the row."""
    from limerank.evaluation.compare import compare
    from limerank.evaluation.evaluate import evaluate
    from limerank.tuning.tuner import tune

    out = WORK / "tuned" / f"{dataset}-{model}-{seed}"
    found = tune(data, out, model=model, config={"seed": seed}, trials=trials, quiet=False)
    metrics: dict[str, Any] = {
        "metric": found.metric,
        "validation, defaults": found.defaults.value,
        "validation, tuned": found.best.value,
    }
    runs = {"defaults": out / "defaults", "tuned": found.run}
    tasks = {name: evaluate(run, lists=0).tasks for name, run in runs.items()}
    task = found.metric.partition("/")[0]
    for metric in ("auc", "ne"):
        metrics |= {f"test {metric}, {name}": tasks[name][task][metric] for name in runs}
    difference = compare(runs["tuned"], runs["defaults"], task=task).differences[0]
    metrics |= {
        "auc gain": difference.difference,
        "auc gain, low": difference.low,
        "auc gain, high": difference.high,
        "settings": found.best.assignments().replace("--set ", "") or "the defaults",
        "trials_pruned": sum(trial.state == "pruned" for trial in found.trials),
        "training_seconds": round(sum(trial.seconds for trial in found.trials)),
    }
    case = case_of(dataset, model, trials)
    return write_row("tune", case, metrics, seed=seed, packages=("optuna",))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument("--only", nargs="+", help="names of datasets")
    parser.add_argument("--model", nargs="+", default=["lime-mha"])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for dataset in given.only or (QUICK, *(REAL if given.data else ())):
        data = prepare_dataset(dataset, given.data)
        for model in given.model if data else ():
            for seed in range(given.seeds):
                if data and not has_row("tune", case_of(dataset, model, given.trials), seed):
                    row = measure(dataset, data, model, given.trials, seed)
                    print(row["case"], row["metrics"], flush=True)


if __name__ == "__main__":
    main()
