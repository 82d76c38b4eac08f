"""One process of several that train: ``python tests/distributed_worker.py TRAININGS.json``.

The file contains a list of keyword arguments of ``train``. With KILL=rank:step:marker in the
environment that process kills itself before that step, once: it leaves the file ``marker``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from limerank.training.distributed.group import processes  # noqa: E402  (after the threads)
from limerank.training.step import Step  # noqa: E402
from limerank.training.trainer import train  # noqa: E402


def killed_at(rank: int, number: int, marker: Path) -> None:
    """Make this process kill itself before a step."""
    make = Step.__call__

    def step(self, batch, at, *given):
        if at == number and self.world.rank == rank and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return make(self, batch, at, *given)

    Step.__call__ = step  # type: ignore[method-assign]


def main() -> None:
    if "KILL" in os.environ:
        rank, number, marker = os.environ["KILL"].split(":")
        killed_at(int(rank), int(number), Path(marker))
    with processes() as world:
        for training in json.loads(Path(sys.argv[1]).read_text()):
            train(**training, world=world)


if __name__ == "__main__":
    main()
