"""Quality on real logs: every model, several seeds, all metrics and slices, one row per run.

    python -m benchmarks.quality --data FOLDER          # FOLDER holds ml1m/, mind_sample/, ...
    python -m benchmarks.quality --data FOLDER --only ml1m --seeds 1

Finished rows are kept: an interrupted measurement goes on where it was. Settings were chosen on the
validation split; the test split is read once, at the end of each run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.rows import has_row, write_row

MODELS = ("two-tower", "lime-mha", "lime-xor")
DATASETS = ("ml1m", "kuairand_slice", "mind_sample", "ml_latest_small")
WORK = Path("benchmarks/work")

TRAIN: dict[str, dict[str, Any]] = {
    "ml1m": {},
    "kuairand_slice": {"impressions": 512},
    "mind_sample": {},
    "ml_latest_small": {"impressions": 512},
}
"""Training settings that differ from the defaults, by data set: small logs want small batches."""


CHOSEN: dict[tuple[str, str], dict[str, Any]] = {
    ("ml1m", "two-tower"): {"table_rate": 0.1},
    ("ml1m", "lime-mha"): {"rate": 0.005, "table_rate": 0.1},
    ("ml1m", "lime-xor"): {"epochs": 4},
}
"""What else validation chose for a model on a data set."""

MODEL: dict[str, dict[str, Any]] = {"lime-xor": {"heads": 2}}
"""Shapes that differ from the defaults, by model."""


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


def measure(name: str, folder: Path, model: str, seed: int) -> dict[str, Any]:
    """Train, choose by validation, evaluate once on test."""
    import torch

    from limerank.config import ModelConfig, TrainConfig
    from limerank.evaluate import evaluate
    from limerank.schema import validate
    from limerank.train import train

    torch.set_num_threads(1)
    run = WORK / "runs" / f"{name}-{model}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    config = TrainConfig(seed=seed, bf16=True, **{**TRAIN[name], **CHOSEN.get((name, model), {})})
    shape = validate(ModelConfig, {"model": model, **MODEL.get(model, {})}, "the model's settings")
    last = train(folder, run, model=shape, config=config)
    result = evaluate(run)
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
    metrics["train_impressions_per_s_one_thread"] = last["impressions_per_s"]
    return metrics


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=DATASETS, action="append")
    parser.add_argument("--models", choices=MODELS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a thread each")
    given = parser.parse_args(arguments)
    jobs = []
    for name in given.only or DATASETS:
        if not (given.data / name).exists():
            print(f"{name}: {given.data / name} is not there, left out", file=sys.stderr)
            continue
        folder = prepare_dataset(name, given.data)
        for model in given.models or MODELS:
            for seed in range(given.seeds):
                case = {"dataset": name, "model": model, "split": "test"}
                if not has_row("quality", case, seed):
                    jobs.append((name, folder, model, seed, case))
    print(f"{len(jobs)} runs to do")
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(measure, *job[:4]): job for job in jobs}
        for future in as_completed(waiting):
            name, _, model, seed, case = waiting[future]
            metrics = future.result()
            write_row("quality", case, metrics, seed=seed)
            main_metric = next(iter(metrics))
            print(
                f"{name} {model} seed {seed}: {main_metric} {metrics[main_metric]:.4f}", flush=True
            )


if __name__ == "__main__":
    main()
