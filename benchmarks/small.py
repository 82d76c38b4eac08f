"""A small log: do the defaults learn it, and does the scale of the initial embeddings matter?

    python -m benchmarks.small

A simulated shop has 150 users, 300 items in five categories, and 20,000 impressions, of which about
the first 9,000 are for training. Each user likes a category or not, at random; the probability of a
click is 0.5 or 0.12. Only the history shows which. Models are trained with the defaults of
``limerank train`` and several seeds, and evaluated once on the test split.

Two references need no model: *counting* the user's clicks in the category so far, and *knowing* the
probability. Models are trained with two scales of the initial outcome embeddings (clicks, watch
time): the default, and the smaller scale of all other embeddings.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from benchmarks.rows import write_row
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.evaluation.evaluate import evaluate
from limerank.metrics import auc
from limerank.models import towers
from limerank.models.config import ModelConfig, TrainConfig
from limerank.models.tables import TABLE_STD
from limerank.training.trainer import train
from limerank.validation import validate

USERS, ITEMS, CATEGORIES, EVENTS = 150, 300, 5, 20_000
LIKED, OTHERS = 0.5, 0.12
"""Probabilities of a click."""
BEGINS, VALIDATION, TEST = "2024-06-10", "2024-07-01", "2024-07-06"
"""Days with about 430 impressions each."""
SPEC = {
    "name": "small-shop",
    "events": [{"files": ["events.parquet"], "user": "user", "item": "item", "time": "time"}],
    "labels": [
        {"name": "click", "kind": "binary", "column": "click"},
        {"name": "watch", "kind": "duration", "column": "seconds"},
    ],
    "items": {
        "files": ["items.parquet"],
        "id": "item",
        "features": [{"name": "category", "kind": "categorical"}],
    },
    "split": {"validation_from": VALIDATION, "test_from": TEST},
}
STARTS = {"default": towers.OUTCOME_STD, "as small as other embeddings": TABLE_STD}
"""Standard deviation of the initial outcome embeddings."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["two-tower", "mha", "lime-mha", "lime-xor"])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="limerank-small-") as held:
        folder = Path(held)
        references = write_log(folder)
        prepare(validate(Spec, SPEC, "small-shop"), folder / "data", base=folder)
        for what, found in references.items():
            write_row("small", {"model": what, "start": None}, {"auc": found})
            print(f"{what}: AUC {found:.4f}", flush=True)
        for model in given.model:
            for start in STARTS:
                measure(folder, model, start, given.seeds)


def write_log(folder: Path) -> dict[str, float]:
    """Events and items; returns the test AUC of the references."""
    rng = np.random.default_rng(7)
    likes = rng.random((USERS, CATEGORIES)) < 0.4
    user, item = rng.integers(0, USERS, EVENTS), rng.integers(0, ITEMS, EVENTS)
    time = seconds_of(BEGINS) + np.cumsum(rng.integers(1, 400, EVENTS))
    known = np.where(likes[user, item % CATEGORIES], LIKED, OTHERS)
    click = (rng.random(EVENTS) < known).astype(np.int64)
    seconds = np.where(click, rng.exponential(20, EVENTS), 0.0)
    pl.DataFrame(
        {"user": user, "item": item, "time": time, "click": click, "seconds": seconds}
    ).write_parquet(folder / "events.parquet")
    items = np.arange(ITEMS)
    categories = [f"category {one}" for one in items % CATEGORIES]
    pl.DataFrame({"item": items, "category": categories}).write_parquet(folder / "items.parquet")
    test = time >= seconds_of(TEST)
    counted = counting(user, item % CATEGORIES, click)
    return {
        "counting": float(auc(click[test], counted[test])),
        "knowing": float(auc(click[test], known[test])),
    }


def seconds_of(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


def counting(
    user: NDArray[np.int64], category: NDArray[np.int64], click: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The user's click rate in the category before each event, smoothed by 4 impressions."""
    shown, clicked = np.full((USERS, CATEGORIES), 4.0), np.full((USERS, CATEGORIES), 1.0)
    found = np.empty(len(user))
    for position, (who, what, did) in enumerate(zip(user, category, click, strict=True)):
        found[position] = clicked[who, what] / shown[who, what]
        shown[who, what] += 1
        clicked[who, what] += did
    return found


def measure(folder: Path, model: str, start: str, seeds: int) -> None:
    """Train with each seed; write a row of the medians."""
    found = []
    for seed in range(seeds):
        run = folder / f"{model}-{start}-{seed}"
        with mock.patch.object(towers, "OUTCOME_STD", STARTS[start]):
            train(
                folder / "data",
                run,
                model=ModelConfig(model=model),
                config=TrainConfig(seed=seed),
                quiet=True,
            )
        found.append(evaluate(run, lists=0, quiet=True).tasks["click"]["auc"])
    write_row(
        "small",
        {"model": model, "start": start},
        {"auc": statistics.median(found)},
        repeats=seeds,
        spread={"auc": [min(found), max(found)]},
    )
    print(f"{model}, start {start}: AUC {' '.join(f'{one:.4f}' for one in found)}", flush=True)


if __name__ == "__main__":
    main()
