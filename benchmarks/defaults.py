"""Defaults: how the settings of training compare on every log, by the validation split alone.

    python -m benchmarks.defaults --data FOLDER
    python -m benchmarks.defaults --data FOLDER --only trivago --setting "2 epochs"

A default has to be good on logs of all sizes and densities, so each row is one training with the
defaults of ``limerank train``, or with one setting changed. The best validation decides, calibrated
as the run is; the test split is not read. Finished rows are skipped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.datasets import LOGS, QUICK, prepare_dataset
from benchmarks.jobs import Job, finish, workers
from benchmarks.peers import one_thread
from benchmarks.rows import has_row, write_row

BENCH = "defaults"
MODELS = ("lime-mha", "lime-xor")
DEFAULTS = "the defaults"
SETTINGS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    "1 epoch": {"epochs": 1},
    "2 epochs": {"epochs": 2},
    "3 epochs": {"epochs": 3},
    "8 epochs": {"epochs": 8},
    "dropout 0.2": {"dropout": 0.2},
    "no dropout": {"dropout": 0.0},
    "ids hidden 0.3": {"id_dropout": 0.3},
    "learning rate 1.5e-3": {"learning_rate": 1.5e-3},
    "learning rate 6e-3": {"learning_rate": 6e-3},
    "table learning rate 0.05": {"table_learning_rate": 0.05},
    "table learning rate 0.2": {"table_learning_rate": 0.2},
    "weight decay 0.1": {"weight_decay": 0.1},
}
"""Name -> settings that differ from the defaults."""


def case_of(name: str, model: str, setting: str) -> dict[str, Any]:
    return {"dataset": name, "model": model, "setting": setting}


def cases(
    folders: dict[str, Path], models: tuple[str, ...], settings: tuple[str, ...], seeds: int
) -> Iterator[Job]:
    """What has no row yet, the first seed of everything first."""
    for seed in range(seeds):
        for setting in settings:
            for name, folder in folders.items():
                for model in models:
                    if not has_row(BENCH, case_of(name, model, setting), seed):
                        yield measure, folder, name, model, setting, seed


def measure(folder: Path, name: str, model: str, setting: str, seed: int) -> None:
    """One row: train, and read the curve of the validation split."""
    from limerank.data.dataset import Dataset
    from limerank.data.interactions import main_label
    from limerank.models.config import configs_of
    from limerank.training.trainer import train

    label = main_label(Dataset(folder).manifest["encoding"]["labels"])
    assert label is not None
    config, training = configs_of(model, {**SETTINGS[setting], "seed": seed})
    with tempfile.TemporaryDirectory() as work:
        run = Path(work) / "run"
        train(folder, run, model=config, config=training, quiet=True)
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    curve = [line for line in map(json.loads, lines) if "validation" in line]
    of = last["metrics"][label["name"]]
    found = {
        "ne": of["calibrated_ne"],
        "auc": of["auc"],
        "best_epoch": 1 + [line["step"] for line in curve].index(last["best_step"]),
        "train_s": last["seconds"],
    }
    write_row(BENCH, case_of(name, model, setting), found, seed=seed)
    print(
        f"{name} {model} {setting}, seed {seed}: NE {found['ne']:.4f}, AUC {found['auc']:.4f}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument(
        "--only", choices=(*LOGS, QUICK), action="append", help="this log only (repeatable)"
    )
    parser.add_argument("--models", choices=MODELS, action="append", help="this model only")
    parser.add_argument("--setting", choices=tuple(SETTINGS), action="append")
    parser.add_argument("--seeds", type=int, default=1, help="0, 1, ... up to so many")
    parser.add_argument("--processes", type=int, default=2, help="models at a time, a thread each")
    given = parser.parse_args(arguments)
    one_thread()
    folders = {}
    for name in given.only or LOGS:
        if (folder := prepare_dataset(name, given.data)) is not None:
            folders[name] = folder
    models, settings = tuple(given.models or MODELS), tuple(given.setting or SETTINGS)
    with workers(given.processes) as pool:
        finish(pool, "trainings", cases(folders, models, settings, given.seeds))


if __name__ == "__main__":
    main()
