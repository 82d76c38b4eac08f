"""Cold starts: items and users that training has never seen.

    python -m benchmarks.coldstart --data FOLDER

A tenth of the items (the last to appear) and a tenth of the users are held out of training
(``held_out_items``, ``held_out_users`` of the description's split). Then every model is asked

- about the held-out items in the test split: it knows their content alone;
- about the held-out users' requests with at least 20 events before them, seeing 0, 1, 2, 5, 10, 20
  of the latest ones or as many as in training: the same impressions every time.

Settings are those that ``benchmarks.quality`` chose on the whole data set. Finished rows are kept.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import quality
from benchmarks.rows import has_row, write_row

DATASETS = ("ml1m", "synth_short")
MODELS = ("popularity", "two-tower", "lime-mha", "lime-xor")
SHARE = 0.1
EVENTS = (0, 1, 2, 5, 10, 20)


def prepare_cold(name: str, data: Path | None) -> Path | None:
    """The data set with a tenth of users and items held out."""
    from limerank.logs import prepare

    out = quality.WORK / "data-cold" / name
    if not out.exists():
        found = quality.describe(name, data)
        if found is None:
            return None
        spec, base = found
        held = {"held_out_users": SHARE, "held_out_items": SHARE}
        spec = spec.model_copy(update={"split": spec.split.model_copy(update=held)})
        prepare(spec, out, base=base)
    return out


def measure(name: str, folder: Path, model: str, seed: int) -> None:
    """Train once, ask about items and users; a row each."""
    from limerank.evaluate import evaluate

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
            {**first_task(found["tasks"]), "impressions": found["impressions"]},
            seed=seed,
        )
    found = evaluate(run, **options)
    parts = {part["slice"]: part for part in found["slices"] if part["kind"] == "item impressions"}
    metrics = {
        **first_task(parts["0"]["tasks"]),
        "impressions": parts["0"]["impressions"],
        **{f"{key} of all items": value for key, value in first_task(found["tasks"]).items()},
    }
    write_row("coldstart", case_of(name, model), metrics, seed=seed)
    print(f"{name} {model} seed {seed}: {metrics}", flush=True)


def first_task(tasks: dict[str, dict[str, float]]) -> dict[str, float]:
    """AUC and NE of the main task."""
    found = next(iter(tasks.values()))
    return {"auc": found["auc"], "ne": found["ne"]}


def case_of(name: str, model: str) -> dict[str, Any]:
    """Of a model's last row: when it is there, all of them are."""
    return {"dataset": name, "model": model, "what": "items"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--only", choices=DATASETS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        whole = {
            name: folder
            for name in given.only or DATASETS
            if (folder := quality.prepare_dataset(name, given.data)) is not None
        }
        for future in as_completed([pool.submit(*job) for job in quality.searches(whole, MODELS)]):
            future.result()
        waiting = [
            pool.submit(measure, name, cold, model, seed)
            for name in whole
            if (cold := prepare_cold(name, given.data)) is not None
            for model in MODELS
            for seed in range(given.seeds)
            if not has_row("coldstart", case_of(name, model), seed)
        ]
        print(f"{len(waiting)} to do", flush=True)
        for future in as_completed(waiting):
            future.result()


if __name__ == "__main__":
    main()
