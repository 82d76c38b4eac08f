"""Quality on real logs: every model, several seeds, all metrics and slices, one row per run.

    python -m benchmarks.quality --data FOLDER          # FOLDER holds ml1m/, mind_sample/, ...
    python -m benchmarks.quality --data FOLDER --only ml1m --seeds 1

First every model tries the same few settings on each data set, with seed 0 and on the validation
split alone (rows of ``search``); then the best of them is trained with each seed and read once on
the test split (rows of ``quality``). Finished rows are kept: an interrupted measurement goes on
where it was, within a run as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.rows import has_row, rows, write_row

MODELS = ("two-tower", "lime-mha", "lime-xor")
DATASETS = ("ml1m", "kuairand_slice", "mind_sample", "ml_latest_small")
WORK = Path("benchmarks/work")

SEARCH: tuple[dict[str, Any], ...] = tuple(
    {"rate": rate, "table_rate": table_rate, "epochs": 4}
    for rate in (0.003, 0.005)
    for table_rate in (0.05, 0.1)
)
"""What every model tries on every data set."""
BATCH = {"kuairand_slice": 512, "ml_latest_small": 512}
"""Impressions per batch where they are not the default: small logs want small batches."""


def prepare_dataset(name: str, data: Path) -> Path:
    """The prepared data set, made when it is not there yet."""
    from limerank.logs import prepare
    from limerank.readers import read
    from limerank.schema import load_spec

    out = WORK / "data" / name
    if out.exists():
        return out
    if name == "kuairand_slice":
        spec, base = read(
            "kuairand", data / name, WORK / "converted" / name, history=128, log_durations=True
        )
    elif name == "ml_latest_small":
        spec, base = read("movielens", data / name, WORK / "converted" / name, history=128)
    else:
        spec, base = load_spec(Path(__file__).parent / "specs" / f"{name}.toml"), data
    prepare(spec, out, base=base)
    return out


def fit(name: str, folder: Path, model: str, seed: int, setting: dict[str, Any]) -> dict[str, Any]:
    """Train, or go on training, or find the finished run; returns the last line of its curves."""
    import torch

    from limerank.config import ModelConfig, TrainConfig
    from limerank.train import train

    torch.set_num_threads(1)
    run = run_folder(name, model, seed, setting)
    if (run / "config.json").exists() and not (run / "trainer").exists():
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    batch = {"impressions": BATCH[name]} if name in BATCH else {}
    config = TrainConfig.model_validate({"seed": seed, "bf16": True, **batch, **setting})
    run.parent.mkdir(parents=True, exist_ok=True)
    return train(folder, run, model=ModelConfig.model_validate({"model": model}), config=config)


def run_folder(name: str, model: str, seed: int, setting: dict[str, Any]) -> Path:
    """Where a run lies: runs of other versions of the package are not taken for it."""
    version = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD:limerank"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    values = "-".join(str(value) for value in setting.values())
    return WORK / "runs" / version / f"{name}-{model}-{values}-{seed}"


def search(name: str, folder: Path, model: str, setting: dict[str, Any]) -> None:
    """One row of the search: the best validation metrics of one setting."""
    last = fit(name, folder, model, 0, setting)
    metrics = {key: value for key, value in last.items() if key.startswith("best_")}
    write_row("search", {"dataset": name, "model": model, **setting}, metrics, seed=0)


def chosen(name: str, model: str) -> dict[str, Any]:
    """The setting with the best validation metric."""
    case = {"dataset": name, "model": model}
    found = [row for row in rows("search") if row["case"] == {**row["case"], **case}]
    found = [row for row in found if {k: row["case"][k] for k in SEARCH[0]} in SEARCH]
    best = max(found, key=lambda row: next(v for k, v in row["metrics"].items() if "/" in k))
    return {key: best["case"][key] for key in SEARCH[0]}


def measure(name: str, folder: Path, model: str, seed: int) -> None:
    """One row of quality: the chosen setting, evaluated once on test."""
    from limerank.evaluate import evaluate

    setting = chosen(name, model)
    last = fit(name, folder, model, seed, setting)
    run = run_folder(name, model, seed, setting)
    result = evaluate(run, data=folder)
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
    metrics |= {key: value for key, value in last.items() if key.startswith("best_")}
    metrics["real_positions"] = real_positions(run)
    metrics["train_impressions_per_s_one_thread"] = last["impressions_per_s"]
    row = write_row("quality", case_of(name, model), metrics, seed=seed)
    main_metric = next(iter(metrics))
    print(
        f"{name} {model} seed {seed}: {main_metric} {row['metrics'][main_metric]:.4f}", flush=True
    )


def real_positions(run: Path) -> float:
    """Share of the history and candidate positions computed in training that are no padding."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line).get("real_positions") for line in lines]
    return statistics.mean(share for share in found if share is not None)


def case_of(name: str, model: str) -> dict[str, Any]:
    return {"dataset": name, "model": model, "split": "test"}


Job = tuple[Any, ...]


def searches(folders: dict[str, Path], models: tuple[str, ...]) -> Iterator[Job]:
    """What of the search is still to do."""
    for name, folder in folders.items():
        for model in models:
            for setting in SEARCH:
                if not has_row("search", {"dataset": name, "model": model, **setting}, 0):
                    yield search, name, folder, model, setting


def measurements(folders: dict[str, Path], models: tuple[str, ...], seeds: int) -> Iterator[Job]:
    """What of the table is still to do."""
    for name, folder in folders.items():
        for model in models:
            for seed in range(seeds):
                if not has_row("quality", case_of(name, model), seed):
                    yield measure, name, folder, model, seed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=DATASETS, action="append")
    parser.add_argument("--models", choices=MODELS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a thread each")
    given = parser.parse_args(arguments)
    folders = {}
    for name in given.only or DATASETS:
        if (given.data / name).exists():
            folders[name] = prepare_dataset(name, given.data)
        else:
            print(f"{name}: {given.data / name} is not there, left out", file=sys.stderr)
    models = tuple(given.models or MODELS)
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        for jobs in (searches(folders, models), measurements(folders, models, given.seeds)):
            waiting = [pool.submit(*job) for job in jobs]
            print(f"{len(waiting)} runs to do", flush=True)
            for future in as_completed(waiting):
                future.result()


if __name__ == "__main__":
    main()
