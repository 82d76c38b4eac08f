"""Exact histories: AUC gained and time spent, compared with requests of 16, 4 and 1.

    python -m benchmarks.exact --data FOLDER

LIME-MHA on ml1m, histories of up to 512 events, two epochs. It is trained with requests of 16, 4
and 1 impressions (the impressions of a request share the history before it), and with exactly the
events before every impression: 16 impressions in one pass (a step then has as many users as with
requests of 16), or all impressions of a user in one pass. Every run is evaluated twice: with
exactly the events before each test impression, and with requests of 16. Settings are those of
``benchmarks.quality``. Finished rows are skipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import quality
from benchmarks.datasets import WORK, describe
from benchmarks.jobs import finish, workers
from benchmarks.rows import has_row, write_row

DATASET, MODEL = "ml1m", "lime-mha"
HISTORY = 512
EPOCHS = 2
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "requests of 16": ("16", {}),
    "requests of 4": ("4", {}),
    "requests of 1": ("1", {}),
    "exact, 16 in a pass": ("16", {"exact": True}),
    "exact, users in a pass": ("16", {"exact": True, "exact_requests": 0}),
}
"""Form of training -> size of requests, and the settings that differ."""


def prepare_sizes(data: Path) -> dict[str, Path]:
    """The dataset with requests of each size."""
    from limerank.data.prepare import prepare

    found = describe(DATASET, data)
    if found is None:
        raise SystemExit(1)
    spec, base = found
    folders = {}
    for size in (16, 4, 1):
        folders[str(size)] = WORK / "data-sizes" / str(size)
        if not folders[str(size)].exists():
            requests = spec.requests.model_copy(update={"size": size})
            sized = spec.model_copy(update={"requests": requests})
            prepare(sized, folders[str(size)], base=base)
    return folders


def measure(folders: dict[str, Path], form: str, seed: int) -> None:
    """Train in one form, evaluate with both kinds of histories."""
    from limerank.evaluation.evaluate import evaluate

    size, differs = FORMS[form]
    setting: dict[str, Any] = {
        **quality.chosen(DATASET, MODEL),
        "history": HISTORY,
        "epochs": EPOCHS,
        **differs,
    }
    last = quality.fit(f"exact-{size}", folders[size], MODEL, seed, setting)
    run = quality.run_folder(f"exact-{size}", MODEL, seed, setting)
    metrics: dict[str, Any] = {}
    for name, read in (("exact histories", folders["1"]), ("requests of 16", folders["16"])):
        found = evaluate(run, data=read, lists=0, out=run / "read.json")
        task = next(iter(found.tasks.values()))
        metrics |= {f"auc, {name}": task["auc"], f"ne, {name}": task["ne"]}
    metrics["train_impressions_per_s_one_thread"] = last["impressions_per_s"]
    metrics["train_seconds"] = last["seconds"]
    row = write_row("exact", case_of(form), metrics, seed=seed)
    print(form, seed, row["metrics"], flush=True)


def case_of(form: str) -> dict[str, Any]:
    return {"dataset": DATASET, "model": MODEL, "trained with": form}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the real datasets")
    parser.add_argument("--forms", choices=tuple(FORMS), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    folders = prepare_sizes(given.data)
    with workers(given.processes) as pool:
        waiting = [
            (measure, folders, form, seed)
            for seed in range(given.seeds)
            for form in given.forms or FORMS
            if not has_row("exact", case_of(form), seed)
        ]
        finish(pool, "runs", waiting)


if __name__ == "__main__":
    main()
