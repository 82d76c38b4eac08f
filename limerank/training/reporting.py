"""The curves of a training: ``metrics.jsonl``, TensorBoard, and other listeners."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from limerank.errors import SpecError
from limerank.files import sync_directory, sync_file, write_text, writes_to
from limerank.runs.alarms import STATE, Alarm, write_alarms
from limerank.training.checkpoints import Progress
from limerank.training.impressions import Examples
from limerank.training.step import Losses

Report = Callable[[dict[str, Any]], None]


class Curves:
    """Lines of numbers, one JSON object each, in ``metrics.jsonl``.

    Args:
        run: the run folder.
        listeners: called with every line.
    """

    def __init__(self, run: Path, listeners: list[Report]) -> None:
        self.path, self.listeners = run / "metrics.jsonl", listeners

    def resume(self, lines: int) -> None:
        """Drop lines that were written after the checkpoint; 0: begin a new file."""
        text = self.path.read_text(encoding="utf-8") if lines else ""
        write_text(self.path, "".join(text.splitlines(keepends=True)[:lines]))

    def lines(self) -> list[dict[str, Any]]:
        """All lines that were written so far."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def write(self, line: dict[str, Any], progress: Progress) -> None:
        """Append a line; ``progress`` counts it. FormatError where the file cannot be written."""
        with writes_to(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        progress.lines += 1
        for listener in self.listeners:
            listener(line)

    def sync(self) -> None:
        """Make all lines durable. FormatError where the file cannot be written."""
        with writes_to(self.path):
            sync_file(self.path)


def finish(run: Path, curves: Curves, alarms: Sequence[Alarm]) -> None:
    """The last step of a training: its alarms, which say that it has ended; and what it would be
    resumed from is removed. FormatError where the run cannot be written."""
    curves.sync()
    with writes_to(run):
        sync_directory(run)
        write_alarms(run, alarms)
        shutil.rmtree(run / STATE)
        sync_directory(run)


class Window:
    """Means over the steps since the last line."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.batches = self.impressions = 0
        self.losses: dict[str, torch.Tensor] = {}
        self.unpadded = self.computed = 0

    def add(self, losses: Losses, batch: Examples) -> None:
        """Count a step, and this process's part of its batch."""
        named = {"loss": losses.total, **{f"loss_{k}": v for k, v in losses.named.items()}}
        for name, value in named.items():
            self.losses[name] = self.losses[name] + value if name in self.losses else value
        self.batches += 1
        self.impressions += losses.impressions
        self.unpadded += batch.unpadded
        self.computed += batch.computed

    def line(self, progress: Progress, rate_share: float) -> dict[str, Any]:
        """The line; ``rate_share``: learning rates as a share of their peak."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        losses = {name: float(value) / self.batches for name, value in self.losses.items()}
        return {
            "step": progress.step,
            "epoch": progress.epoch,
            **{name: round(value, 6) for name, value in losses.items()},
            "rate_share": round(rate_share, 4),
            "impressions_per_s": round(self.impressions / seconds),
            "real_positions": round(self.unpadded / max(self.computed, 1), 4),
        }


def summary_writer() -> Any:
    """TensorBoard's class of writers; SpecError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SpecError(
            'TensorBoard is not installed: pip install "limerank[tensorboard]"'
        ) from None
    return SummaryWriter


def tensorboard_listener(folder: Path) -> Report:
    """A listener that draws every number of a line as a TensorBoard curve."""
    writer = summary_writer()(str(folder))

    def listen(line: dict[str, Any]) -> None:
        for name, value in _flat(line):
            if name != "step":
                writer.add_scalar(name, value, line["step"])
        if line.get("done"):
            writer.close()

    return listen


def _flat(line: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{above}{name}", value
