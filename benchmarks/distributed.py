"""Training on several processes of one machine: bytes and processor time of a step.

    python -m benchmarks.distributed

LIME-MHA with d = 64 and the default settings, histories of 128 events, 16 impressions per request;
a table of 4 thousand item ids, or of a million. One thread per process, gloo on the loopback
interface. Bytes are what one process sends in a step, from the sizes of the tensors: of a sum
2 (W - 1) / W times its size, of what is gathered or exchanged the part for the others. Processor
time is that of one process. Efficiency is the processor time of one process that trains alone over
that of all processes together: what remains of each core where the network costs nothing. Elapsed
time is not given: two processes on two cores of one machine have no network, and the machine had
other work.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rows import write_row
from benchmarks.training import ITEMS, make_dataset
from limerank.data.dataset import Dataset
from limerank.models import build
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.training.distributed.group import processes
from limerank.training.distributed.tables import shard
from limerank.training.objectives import Impressions
from limerank.training.optim import Optimiser
from limerank.training.step import Step
from limerank.world import World

MODEL = "lime-mha"
LARGE = 1_000_000
WARM, STEPS, REPEATS = 3, 4, 5
CASES = [
    (processes, tables, rows, impressions)
    for rows, batches in ((ITEMS + 1, (1024, 4096)), (LARGE, (4096,)))
    for impressions in batches
    for processes, tables in ((1, "replicated"), (2, "replicated"), (2, "sharded"))
]
"""Processes, how the table is held, its rows, impressions of a batch."""


class Counting:
    """A world that counts the bytes that this process sends."""

    def __init__(self, world: World) -> None:
        self.world, self.rank, self.size = world, world.rank, world.size
        self.sent = 0

    def sum(self, values: Tensor) -> Tensor:
        self.sent += 2 * (self.size - 1) * values.nbytes // self.size
        return self.world.sum(values)

    def gather(self, values: Tensor) -> list[Tensor]:
        found = self.world.gather(values)
        row = values[:1].nbytes or found[-1][:1].nbytes
        self.sent += (self.size - 1) * (8 + max(map(len, found)) * row)
        return found

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int] | None = None) -> list[Tensor]:
        counts = 8 * (self.size - 1) if sizes is None else 0
        self.sent += counts + sum(one.nbytes for at, one in enumerate(parts) if at != self.rank)
        return self.world.exchange(parts, sizes)

    def from_first(self, values: Tensor) -> Tensor:
        return self.world.from_first(values)

    def barrier(self) -> None:
        self.world.barrier()


def measure(dataset: Dataset, tables: str, rows: int, impressions: int) -> list[dict[str, float]]:
    """Bytes and processor time of a step of this process, each over :data:`STEPS` steps."""
    torch.set_num_threads(1)
    config = TrainConfig(batch_size=impressions, history=128)
    shape = DataShape.of(dataset.manifest).model_copy(update={"item_ids": rows})
    with processes() as group:
        world = Counting(group)
        objective = Impressions(dataset, shape, config)
        objective.world = world
        torch.manual_seed(0)
        ranker = build(shape, ModelConfig(model=MODEL)).train()
        if tables == "sharded":
            shard(ranker, world)
        optimiser = Optimiser(ranker, config, 10_000, impressions)
        step = Step(ranker, objective, optimiser, config, world)
        plan = objective.plan(0)[: WARM + STEPS * REPEATS]
        found, number = [], 0
        batches = objective.batches(plan)
        for steps in (WARM, *[STEPS] * REPEATS):
            world.sent, began = 0, time.process_time()
            for _ in range(steps):
                step(next(batches), number)
                number += 1
            seconds = time.process_time() - began
            found.append({"mb_sent": world.sent / steps / 1e6, "cpu_ms": 1e3 * seconds / steps})
    return found[1:]


def worker(folder: Path, case: tuple[int, str, int, int]) -> None:
    """Measure in this process, one of those of a case."""
    found = measure(Dataset(folder / "data-16"), *case[1:])
    (folder / f"found-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def of_case(folder: Path, case: tuple[int, str, int, int]) -> list[list[dict[str, float]]]:
    """What each process of a case measures."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={case[0]}"]
    command = [sys.executable, *launcher, "-m", "benchmarks.distributed", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *map(str, case)], check=True, env=environment)
    files = (folder / f"found-{rank}.json" for rank in range(case[0]))
    return [json.loads(file.read_text()) for file in files]


def main() -> None:
    if len(sys.argv) > 1:
        folder, processes_given, tables_given, *numbers = sys.argv[1:]
        rows_given, batch = map(int, numbers)
        worker(Path(folder), (int(processes_given), tables_given, rows_given, batch))
        return
    alone: dict[tuple[int, int], float] = {}
    with tempfile.TemporaryDirectory(prefix="limerank-distributed-") as name:
        make_dataset(Path(name), 16)
        for case in CASES:
            count, tables, rows, impressions = case
            found = of_case(Path(name), case)
            cpu = [
                statistics.mean(one["cpu_ms"] for one in part) for part in zip(*found, strict=True)
            ]
            sent = [
                statistics.mean(one["mb_sent"] for one in part) for part in zip(*found, strict=True)
            ]
            metrics = {"cpu_ms_per_step": statistics.median(cpu)}
            if count == 1:
                alone[rows, impressions] = metrics["cpu_ms_per_step"]
            else:
                metrics["mb_sent_per_step"] = statistics.median(sent)
                of_one = alone[rows, impressions]
                metrics["efficiency"] = of_one / (count * metrics["cpu_ms_per_step"])
            write_row(
                "distributed",
                {
                    "model": MODEL,
                    "processes": count,
                    "tables": tables,
                    "item_ids": rows,
                    "impressions": impressions,
                },
                metrics,
                seed=0,
                repeats=REPEATS,
                spread={"cpu_ms_per_step": [min(cpu), max(cpu)]},
            )
            print(case, metrics, flush=True)


if __name__ == "__main__":
    main()
