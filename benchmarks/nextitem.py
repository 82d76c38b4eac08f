"""The next item of every user among the full catalogue: MovieLens, leave-last-one-out.

    python -m benchmarks.nextitem --data FOLDER         # FOLDER holds ml1m/ and ml_latest_small/
    python -m benchmarks.nextitem --data FOLDER --only ml1m --models lime-mha item-knn

Every rating is a positive, as in published tables. The last one of each user is the test, the one
before it is validation, and all earlier ones are for training. A list ranks all items but those
that the user has rated before; HR@10 and NDCG@10 are means over users. The order of the ratings of
a user is that of ``ml1m``'s file; ``ml_latest_small`` has seconds, and ratings of the same second
are ordered as in the file. Settings are chosen on the validation split. Rows have the seconds of
training on the machine that they name, with one thread for each of its cores divided by
``--processes``. Finished rows are skipped, and interrupted training runs resume.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.datasets import WORK
from benchmarks.jobs import finish, workers
from benchmarks.rows import has_row, write_row

DATASETS = ("ml1m", "ml_latest_small")
MODELS = ("lime-mha", "lime-xor", "sasrec", "hstu", "item-knn", "most-popular")
SEEDS = {"sasrec": 1, "hstu": 1, "item-knn": 1, "most-popular": 1}
"""Most seeds of models that are no LIME; the last two have no randomness."""
PROTOCOL = "leave-last-one-out, full catalogue, seen items left out"
HISTORY, REQUEST = 200, 8
"""Events of a history, and ratings of a training request at most; ``specs/ml1m_next.toml`` has the
same."""
COMMON: dict[str, Any] = {"history": HISTORY}
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {}
"""Dataset and model -> settings that differ from the defaults, chosen on the validation split."""
COUNTED = ("item-knn", "most-popular")
"""Models that are counted, not trained: no setting applies."""
DEPTH = 10


def prepare_next_item(name: str, data: Path) -> Path | None:
    """The dataset, prepared on first use; None where its files are missing."""
    from limerank.data.prepare import prepare

    out = WORK / "data-nextitem" / name
    if out.exists():
        return out
    if not (data / name).exists():
        print(f"{name}: skipped, its files are not in --data")
        return None
    spec, base = describe_next_item(name, data)
    prepare(spec, out, base=base)
    return out


def describe_next_item(name: str, data: Path) -> tuple[Any, Path]:
    """The description of a dataset, and the folder that its paths are relative to."""
    from limerank.data.description import load_spec
    from limerank.data.protocol import History, Requests, Split
    from limerank.data.readers import read
    from limerank.data.spec import EventSource

    if name == "ml1m":
        return load_spec(Path(__file__).parent / "specs" / "ml1m_next.toml"), data
    work = WORK / "converted" / "nextitem" / name
    spec, base = read("movielens", data / name, work, positives=True)
    write_in_order(data / name / "ratings.csv", work / "ratings.parquet")
    events = EventSource(files=(str((work / "ratings.parquet").resolve()),), order="pos")
    own = {
        "events": (events,),
        "split": Split(leave_last=1),
        "requests": Requests(size=REQUEST),
        "history": History(length=HISTORY),
    }
    return spec.model_copy(update=own), base


def write_in_order(source: Path, out: Path) -> None:
    """Write the ratings of a MovieLens file with ``pos``, their order within each user: by time,
    and those of one second as in the file."""
    import polars as pl

    ratings = pl.read_csv(source).sort("userId", "timestamp", maintain_order=True)
    ratings.select(
        user_id="userId",
        item_id="movieId",
        rating="rating",
        pos=pl.int_range(pl.len()).over("userId"),
    ).write_parquet(out)


def settings_of(name: str, model: str) -> dict[str, Any]:
    """What is set for a model on a dataset; all else are defaults."""
    return {} if model in COUNTED else {**COMMON, **SETTINGS.get((name, model), {})}


def case_of(name: str, model: str, settings: dict[str, Any]) -> dict[str, Any]:
    text = " ".join(f"{key}={value}" for key, value in settings.items())
    return {"dataset": name, "model": model, "protocol": PROTOCOL, "settings": text}


def measure(
    name: str, folder: Path, model: str, seed: int, settings: dict[str, Any], threads: int
) -> None:
    """Train and evaluate once; writes a row."""
    run = WORK / "runs-nextitem" / "-".join([name, model, *_names(settings), str(seed)])
    metrics = train_and_rank(folder, run, model, seed, settings, threads, seen="out")
    row = write_row("nextitem", case_of(name, model, settings), metrics, seed=seed)
    print(name, model, seed, row["metrics"], flush=True)


def _names(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items() if COMMON.get(key) != value]


def train_and_rank(
    folder: Path,
    run: Path,
    model: str,
    seed: int,
    settings: dict[str, Any],
    threads: int,
    seen: Any,
) -> dict[str, float]:
    """Train or resume a run, and rank the catalogue for the test split.

    Args:
        folder: the dataset.
        run: the run's folder.
        model: its name.
        seed: of training.
        settings: of the model and of training that differ from the defaults.
        threads: of the CPU.
        seen: whether lists may hold items that the user has seen, "in" or "out".

    Returns:
        ``hr@10``, ``ndcg@10`` and ``coverage@10`` of the test split, the same of the validation
        split with the prefix ``validation_``; ``train_seconds``, and ``train_cpu_seconds`` of all
        threads, validations included, which other work on the machine hardly changes.
    """
    import torch

    from limerank.evaluation.evaluate import evaluate
    from limerank.models.config import configs_of
    from limerank.training.trainer import train

    torch.set_num_threads(threads)
    model_config, train_config = configs_of(model, {"seed": seed, **settings})
    started = time.process_time()
    made = train(folder, run, model=model_config, config=train_config, quiet=True)
    used = time.process_time() - started
    metrics = {"train_seconds": round(made.seconds, 1), "train_cpu_seconds": round(used, 1)}
    for split, prefix in (("test", ""), ("validation", "validation_")):
        found = evaluate(
            run,
            split=split,
            k=[DEPTH],
            seen=seen,
            peers=False,
            out=run / f"lists-{split}.json",
            quiet=True,
        )
        assert found.lists is not None
        for metric in ("hr", "ndcg", "coverage"):
            metrics[f"{prefix}{metric}@{DEPTH}"] = found.lists[f"{metric}@{DEPTH}"]
        metrics[f"{prefix}requests"] = found.lists["requests"]
    return metrics


def seeds_of(model: str, seeds: int) -> range:
    return range(min(seeds, SEEDS.get(model, seeds)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the real datasets")
    parser.add_argument("--only", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", type=int, default=3, help="of each LIME; others have one")
    parser.add_argument("--processes", type=int, default=1, help="trainings at the same time")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="further settings, as in train"
    )
    given = parser.parse_args(arguments)
    from limerank.cli.options import assignments

    more = assignments(given.set)
    threads = max(1, (os.cpu_count() or 1) // given.processes)
    with workers(given.processes) as pool:
        waiting: list[Any] = []
        for name in given.only:
            folder = prepare_next_item(name, given.data)
            for model in given.models if folder is not None else ():
                settings = settings_of(name, model) | ({} if model in COUNTED else more)
                waiting += [
                    (measure, name, folder, model, seed, settings, threads)
                    for seed in seeds_of(model, given.seeds)
                    if not has_row("nextitem", case_of(name, model, settings), seed)
                ]
        finish(pool, "runs", waiting)


if __name__ == "__main__":
    main()
