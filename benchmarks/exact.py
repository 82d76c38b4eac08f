"""Exact histories: what they gain in AUC and cost in time against requests of 16, 4 and 1.

    python -m benchmarks.exact --data FOLDER

LIME-MHA on ml1m, histories of up to 512 events, two epochs. Trained with requests of 16, of 4
and of 1 impressions (those of a request share the history before it), and in one pass over each
user's history with exactly the events before every impression. All are evaluated alike, twice: with
exactly the events before each test impression, and with requests of 16. Settings are those of
``benchmarks.quality``. Finished rows are kept.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import quality
from benchmarks.rows import has_row, write_row

DATASET, MODEL = "ml1m", "lime-mha"
HISTORY = 512
EPOCHS = 2
FORMS = ("16", "4", "1", "exact")


def prepare_sizes(data: Path) -> dict[str, Path]:
    """The data set with requests of each size."""
    from limerank.logs import prepare

    found = quality.describe(DATASET, data)
    if found is None:
        raise SystemExit(1)
    spec, base = found
    folders = {}
    for size in (16, 4, 1):
        folders[str(size)] = quality.WORK / "data-sizes" / str(size)
        if not folders[str(size)].exists():
            requests = spec.requests.model_copy(update={"size": size})
            sized = spec.model_copy(update={"requests": requests})
            prepare(sized, folders[str(size)], base=base)
    return folders


def measure(folders: dict[str, Path], form: str, seed: int) -> None:
    """Train in one form, evaluate in both."""
    from limerank.evaluate import evaluate

    setting: dict[str, Any] = {
        **quality.chosen(DATASET, MODEL),
        "history": HISTORY,
        "epochs": EPOCHS,
    }
    if form == "exact":
        setting["exact"] = True
    folder = folders.get(form, folders["16"])
    last = quality.fit(f"exact-{form}", folder, MODEL, seed, setting)
    run = quality.run_folder(f"exact-{form}", MODEL, seed, setting)
    metrics: dict[str, Any] = {}
    for name, read in (("exact histories", folders["1"]), ("requests of 16", folders["16"])):
        found = evaluate(run, data=read, lists=0, out=run / "read.json")
        task = next(iter(found["tasks"].values()))
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
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--forms", choices=FORMS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    folders = prepare_sizes(given.data)
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        waiting = [
            pool.submit(measure, folders, form, seed)
            for seed in range(given.seeds)
            for form in given.forms or FORMS
            if not has_row("exact", case_of(form), seed)
        ]
        print(f"{len(waiting)} to do", flush=True)
        for future in as_completed(waiting):
            future.result()


if __name__ == "__main__":
    main()
