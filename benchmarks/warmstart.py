"""A week of daily warm starts, beside training from random weights every day and a fixed model.

    python -m benchmarks.warmstart --data FOLDER    # FOLDER holds kuairand_slice/; resumable
    python -m benchmarks.warmstart --only synth_days shop_days
    python -m benchmarks.warmstart --only synth_days --set replay=0         # other warm starts
    python -m benchmarks.warmstart --only synth_days --without-optimiser

Each of the last seven days of a log is a test. Its dataset is prepared from the log's start, with
the day before as validation; training ends where that begins. So codes, buckets and scales of two
days differ. Three models are measured on each day: *scratch* is trained from random weights,
*warm* starts from the warm model of the day before (on the first day it is that of scratch), and
*frozen* is the model of the first day. All have the same settings, small ones; what a warm start
changes is as in ``limerank train --from``. Times are
seconds of the processor for a full ``train`` with one thread: statistics, validations, peers and
checkpoints included.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.datasets import WORK
from benchmarks.rows import has_row, write_row

if TYPE_CHECKING:
    from limerank.data.dataset import Dataset
    from limerank.data.spec import Spec
    from limerank.models import Ranker

OPTIMISER = "optimiser.safetensors"
DAY = 86_400_000
DAYS = 7
END = "2026-11-29T12:00:00Z"
"""Of the simulated shop's log, so that it is the same on every day."""
FEED: dict[str, Any] = {"users": 800, "items": 600, "events": 36_000, "days": 21, "history": 32}
SHOP: dict[str, Any] = {"users": 3000, "items": 1000, "events": 80_000, "days": 30}
LOGS = ("synth_days", "shop_days", "kuairand_slice")
MODEL = "lime-mha"
SETTINGS: dict[str, Any] = {"width": 32, "history": 32}
"""Of all models: small, so that a week takes minutes."""
SCRATCH: dict[str, dict[str, Any]] = {
    "synth_days": {"epochs": 3, "batch_size": 256},
    "shop_days": {"epochs": 4, "batch_size": 64},
    "kuairand_slice": {"epochs": 3, "batch_size": 256},
}
"""Of a training from random weights; warm starts have its batches."""
METRICS = "auc", "gauc", "ne", "hr@10", "ndcg@10"


def describe_log(name: str, data: Path | None) -> tuple[Spec, Path] | None:
    """The description of a log, and the folder that its paths are relative to; None where its files
    are missing. Simulated logs are made on first use."""
    from benchmarks.datasets import describe
    from limerank.data.description import load_spec
    from limerank.data.synthetic import simulate
    from limerank.data.synthetic.shop import simulate_shop

    base = WORK / "logs" / name
    if name == "synth_days":
        if not base.exists():
            simulate(base, seed=1, **FEED)
        return load_spec(base / "spec.toml"), base
    if name == "shop_days":
        if not base.exists():
            simulate_shop(base, seed=1, end=END, **SHOP)
        return load_spec(base / "shop.toml"), base
    return describe(name, data)


def midnights(spec: Spec, base: Path, folder: Path) -> list[int]:
    """The begin of each day that is a test, and the end of the last one, in milliseconds."""
    from limerank.data.dataset import Dataset
    from limerank.data.prepare import prepare

    if not folder.exists():
        prepare(spec, folder, base=base)
    last = Dataset(folder).manifest["summary"]["time"]["last"]
    end = last // DAY * DAY  # the last day is not complete
    return [end - (DAYS - day) * DAY for day in range(DAYS + 1)]


def prepare_day(spec: Spec, base: Path, out: Path, begin: int) -> Path:
    """The dataset of the day that begins at ``begin``, prepared on first use."""
    from limerank.data.prepare import prepare
    from limerank.data.protocol import Split

    if not out.exists():
        validation, test = (
            datetime.fromtimestamp(moment / 1000, UTC).isoformat()
            for moment in (begin - DAY, begin)
        )
        split = Split(validation_from=validation, test_from=test)
        prepare(spec.model_copy(update={"split": split}), out, base=base)
    return out


def day_requests(dataset: Dataset, begin: int) -> np.ndarray[Any, Any]:
    """Rows of the requests of the day that begins at ``begin``."""
    rows = dataset.requests_of("test")
    times = np.asarray(dataset.events["time"])[dataset.requests["first"][rows]]
    chosen: np.ndarray[Any, Any] = rows[times < begin + DAY]
    return chosen


def measured(ranker: Ranker, dataset: Dataset, begin: int, seed: int) -> dict[str, float]:
    """Metrics of the first task of a ranker of this dataset on the requests of a day."""
    from limerank.models.config import TrainConfig
    from limerank.models.registry import model_of
    from limerank.training.objectives import objective_on

    objective = objective_on(dataset, TrainConfig(seed=seed))
    rows = day_requests(dataset, begin)
    objective.check(model_of(ranker.config.model), rows)
    found = objective.measure(ranker.eval(), rows).metrics
    of_task = found[objective.stopping()[0]]
    return {name: round(of_task[name], 6) for name in METRICS if name in of_task} | {
        "requests": len(rows)
    }


def renewed(run: Path, dataset: Dataset) -> Ranker:
    """The model of an earlier run, by the codes of a dataset: its predictions are those of the
    run, and items that the run does not have are unknown ones."""
    import torch

    from limerank.models import build
    from limerank.models.config import DataShape
    from limerank.training.numbering import numbering
    from limerank.training.replay import selection
    from limerank.training.warm import Start, open_parent

    parent = open_parent(run)
    earlier = parent.trained.ranker
    tasks = earlier.shape.tasks
    shape = DataShape.of(dataset.manifest).model_copy(update={"tasks": tasks})
    numbers = numbering(dataset, shape, earlier.config, parent.trained)
    chosen = selection(dataset, dataset.requests_of("train"), parent.until, 0.0, 0)
    torch.manual_seed(0)
    ranker = build(shape, earlier.config)
    Start(parent, numbers, chosen).load_weights(ranker)
    return ranker


def train_once(
    data: Path, run: Path, start: Path | None, config: dict[str, Any]
) -> dict[str, float]:
    """Train, with the seconds of the processor that it takes.

    Args:
        start: the run that it starts from; None: random weights.
        config: settings of the model and of training.
    """
    from limerank.models.config import configs_of
    from limerank.training.trainer import train

    began = time.process_time()
    if start is None:
        of_model, of_training = configs_of(MODEL, config)
        made = train(data, run, model=of_model, config=of_training, overwrite=True)
    else:
        made = train(data, run, config=config, start=start, overwrite=True)
    seconds = time.process_time() - began
    return {"cpu_seconds": round(seconds, 2), "impressions_per_s": made.impressions_per_s}


def forgetful(run: Path, out: Path) -> Path:
    """A copy of a run without what its optimiser had."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(run, out)
    (out / OPTIMISER).unlink()
    return out


def measure_log(
    name: str,
    data: Path | None,
    seed: int,
    settings: dict[str, Any],
    without_optimiser: bool = False,
) -> None:
    """All rows of a log that are missing.

    Args:
        settings: of warm starts.
        without_optimiser: whether they begin with a new optimiser.
    """
    from limerank.data.dataset import Dataset
    from limerank.runs.folder import load_run

    found = describe_log(name, data)
    if found is None:
        return
    spec, base = found
    work = WORK / "warmstart" / name
    begins = midnights(spec, base, work / "full")[:-1]

    texts = [f"{key}={one}" for key, one in settings.items()]
    texts += ["without the optimiser"] * without_optimiser
    text = " ".join(texts)

    def run_of(how: str, day: int) -> Path:
        return work / "-".join(
            ["run", how, *(text.split() if how == "warm" else []), str(seed), str(day)]
        )

    for day, begin in enumerate(begins, 1):
        folder = prepare_day(spec, base, work / f"day-{day}", begin)
        dataset = Dataset(folder)
        for how in ("scratch", "warm", "frozen"):
            case: dict[str, Any] = {"dataset": name, "model": MODEL, "how": how, "day": day}
            if how == "warm":
                case["settings"] = text
            run = run_of(how, day)
            if has_row("warmstart", case, seed) and (how == "frozen" or run.exists()):
                continue
            metrics: dict[str, float] = {}
            if how == "scratch" or (how == "warm" and day > 1):
                yesterday = run_of("warm" if day > 2 else "scratch", day - 1)
                start = None if how == "scratch" else yesterday
                config = settings if start else {**SETTINGS, **SCRATCH[name]}
                if without_optimiser and start is not None and day > 1:
                    start = forgetful(start, work / "forgetful")
                metrics = train_once(folder, run, start, {**config, "seed": seed})
                ranker = load_run(run).ranker
            else:
                ranker = renewed(run_of("scratch", 1), dataset)
            row = write_row(
                "warmstart", case, measured(ranker, dataset, begin, seed) | metrics, seed=seed
            )
            print(name, day, how, row["metrics"], flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument("--only", nargs="+", choices=LOGS, default=LOGS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of warm starts"
    )
    parser.add_argument(
        "--without-optimiser", action="store_true", help="warm starts with a new optimiser"
    )
    given = parser.parse_args(arguments)
    import torch

    from limerank.cli.options import assignments

    torch.set_num_threads(1)
    for name in given.only:
        for seed in range(given.seeds):
            more = assignments(given.set)
            measure_log(name, given.data, seed, more, given.without_optimiser)


if __name__ == "__main__":
    main()
