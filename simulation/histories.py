"""Runs single histories in this process: by seed, or as given."""

from __future__ import annotations

import functools
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from simulation.operations import History, draw
from simulation.running import Simulation
from simulation.shrinking import shrunk
from simulation.world import Oracle, scratch, world


@dataclass(frozen=True)
class Result:
    """How a history went.

    Attributes:
        seed: of the history.
        operations: how many it has.
        faults: round trips that went wrong.
        steps: turns of its tasks.
        answers: answers and stored values that were compared with the plain model.
        error: why it failed; empty where it passed.
    """

    seed: int
    operations: int
    faults: int
    steps: int
    answers: int
    error: str


@functools.cache
def _shared() -> tuple[Oracle, Path]:
    """What all histories of a process use: the oracle, and a folder for their files."""
    return Oracle(world()), scratch()


def run_history(history: History) -> Result:
    """Run a history; a failure is in the result."""
    oracle, folder = _shared()
    path = folder / "history"
    path.mkdir()
    error = ""
    simulation = Simulation(history, oracle.world, oracle, path)
    try:
        simulation.run()
    except Exception as failure:  # noqa: BLE001  (any failure is a finding)
        error = f"{type(failure).__name__}: {failure}"
    finally:
        shutil.rmtree(path)
    return Result(
        history.seed,
        len(history.operations),
        simulation.faults,
        simulation.scheduler.step,
        simulation.checks.answers,
        error,
    )


def run_seed(seed: int) -> Result:
    """Run the history of a seed."""
    return run_history(draw(seed))


def shortest(history: History) -> History:
    """The shortest history found that fails as this one does."""
    kind = run_history(history).error.partition(":")[0]
    return shrunk(history, lambda one: run_history(one).error.partition(":")[0] == kind != "")


@dataclass(frozen=True)
class Part:
    """The results of the seeds from ``first`` until ``last``, and the seconds of the processor that
    they took."""

    first: int
    last: int
    results: list[Result]
    seconds: float


def begin() -> None:
    """Prepare a process: one thread is enough."""
    torch.set_num_threads(1)


def run_part(seeds: tuple[int, int]) -> Part:
    """Run the histories of some seeds: from the first until the last, that one excluded."""
    began = time.process_time()
    results = [run_seed(seed) for seed in range(*seeds)]
    return Part(*seeds, results, time.process_time() - began)
