"""Training speed: batches of requests compared with single impressions, and table sizes.

    python -m benchmarks.training

Every figure is that of the full training loop (data loading, model, optimiser) on all cores, on a
log with 16 impressions per request and histories of 128 events, with d = 64.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.rows import write_row
from limerank.data.batch import Batch
from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.models import build
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.models.tasks import task_losses, total_loss
from limerank.training.optim import Optimiser
from limerank.validation import validate

USERS, EVENTS, ITEMS = 1500, 320, 4000
REPEATS = 7
STEPS = 8


def make_dataset(folder: Path, size: int) -> Dataset:
    """A log without a clock: consecutive events of a user form requests of ``size``."""
    rng = np.random.default_rng(0)
    total = USERS * EVENTS
    pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(USERS), EVENTS),
            "item_id": (ITEMS * rng.random(total) ** 2).astype(np.int64),
            "position": np.tile(np.arange(EVENTS), USERS),
            "click": rng.integers(0, 2, total),
        }
    ).write_parquet(folder / "events.parquet")
    pl.DataFrame({"id": np.arange(ITEMS), "group": np.arange(ITEMS) % 50}).write_parquet(
        folder / "items.parquet"
    )
    values: dict[str, Any] = {
        "name": "speed",
        "events": [{"files": ["events.parquet"], "order": "position"}],
        "labels": [{"name": "click", "kind": "binary"}],
        "items": {
            "files": ["items.parquet"],
            "features": [{"name": "group", "kind": "categorical"}],
        },
        "split": {"by": "position"},
        "requests": {"size": size},
        "history": {"length": 128},
    }
    prepare(validate(Spec, values, "speed"), folder / f"data-{size}", base=folder)
    return Dataset(folder / f"data-{size}")


class Loop:
    """The training loop's step on batches of full histories."""

    def __init__(self, dataset: Dataset, model: str, bf16: bool, impressions: int = 4096) -> None:
        self.dataset, self.bf16 = dataset, bf16
        self.shape = DataShape.of(dataset.manifest)
        requests = dataset.requests_of("train")
        requests = requests[dataset.history_lengths(requests, 128) == 128]
        self.plan = dataset.plan(requests, impressions, None, np.random.default_rng(0))
        torch.manual_seed(0)
        self.ranker = build(self.shape, ModelConfig(model=model)).train()
        self.optimiser = Optimiser(self.ranker, TrainConfig(), 10_000)
        self.steps = 0

    def run(self, steps: int) -> float:
        """Impressions per second over this many steps, including loading."""
        at = self.steps % max(1, len(self.plan) - steps)
        done, started = 0, time.perf_counter()
        for batch in self.dataset.batches(self.plan[at : at + steps]):
            self.step(batch)
            done += int(batch.counts.sum())
        return done / (time.perf_counter() - started)

    def step(self, batch: Batch) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.ranker(batch)
        real = batch.real
        losses = task_losses(logits[real], batch.labels[real], self.shape.tasks)
        total_loss(losses, {}).backward()
        self.optimiser.step(self.steps)
        self.steps += 1


def request_batches(folder: Path) -> None:
    """Requests of 16 and requests of 1, in turn."""
    wide, single = make_dataset(folder, 16), make_dataset(folder, 1)
    models: tuple[str, ...] = ("two-tower", "lime-mha", "lime-xor")
    for model in models:
        for bf16 in (False, True):
            loops = Loop(wide, model, bf16), Loop(single, model, bf16, impressions=512)
            for loop in loops:
                loop.run(2)
            speeds = [(loops[0].run(STEPS), loops[1].run(STEPS)) for _ in range(REPEATS)]
            ratios = [of_requests / of_impressions for of_requests, of_impressions in speeds]
            metrics = {
                "impressions_per_s": statistics.median(s for s, _ in speeds),
                "impressions_per_s_one_by_one": statistics.median(s for _, s in speeds),
                "ratio_to_one_by_one": statistics.median(ratios),
            }
            write_row(
                "training",
                {"model": model, "d": 64, "N": 128, "per_request": 16, "bf16": bf16, "threads": 2},
                metrics,
                repeats=REPEATS,
                spread={
                    "impressions_per_s": [min(s for s, _ in speeds), max(s for s, _ in speeds)],
                    "ratio_to_one_by_one": [min(ratios), max(ratios)],
                },
            )
            print(model, "bf16" if bf16 else "float32", metrics, flush=True)


def table_sizes(folder: Path) -> None:
    """A step's time with an id table of 4 thousand and of 4 million rows, in turn."""
    dataset = make_dataset(folder, 16)
    loops = []
    for rows in (ITEMS + 1, 4_000_000):
        loop = Loop(dataset, "lime-mha", True)
        shape = loop.shape.model_copy(update={"item_ids": rows})
        loop.ranker = build(shape, ModelConfig(model="lime-mha")).train()
        loop.optimiser = Optimiser(loop.ranker, TrainConfig(), 10_000)
        loop.run(2)
        loops.append(loop)
    batches = [dataset.batch(requests) for requests in loops[0].plan[: STEPS * 2]]
    spread_out = []
    for batch in batches:  # the same work on ids spread over the large table
        ids = batch.items.ids * (4_000_000 // (ITEMS + 1))
        spread_out.append(replace(batch, items=replace(batch.items, ids=ids)))
    times: list[tuple[float, float]] = []
    for small, large in zip(batches, spread_out, strict=True):
        started = time.perf_counter()
        loops[0].step(small)
        between = time.perf_counter()
        loops[1].step(large)
        times.append((between - started, time.perf_counter() - between))
    ratios = [large / small for small, large in times]
    metrics = {
        "ms_per_step_4k_rows": 1e3 * statistics.median(small for small, _ in times),
        "ms_per_step_4m_rows": 1e3 * statistics.median(large for _, large in times),
        "ratio_4m_to_4k_rows": statistics.median(ratios),
    }
    write_row(
        "training",
        {"what": "table size", "model": "lime-mha", "d": 64, "N": 128, "per_request": 16},
        metrics,
        repeats=len(times),
        spread={"ratio_4m_to_4k_rows": [min(ratios), max(ratios)]},
    )
    print("table size", metrics)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        request_batches(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        table_sizes(Path(folder))


if __name__ == "__main__":
    main()
