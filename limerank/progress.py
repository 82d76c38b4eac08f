"""Progress of a command: a bar on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0
"""Off a terminal a line is printed at most this often."""


class Bar:
    """Progress of one job: ``with Bar("reading", total=n, unit="rows") as bar: bar.advance(k)``.

    Args:
        what: the job, in a few words.
        total: how many units there are; None: not known.
        unit: what is counted, in the plural.
        quiet: show nothing at all (library calls; the command line turns it on).
    """

    def __init__(
        self,
        what: str,
        *,
        total: float | None = None,
        unit: str = "",
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.done = 0.0
        self._note = ""
        self._stream = stream if stream is not None else sys.stderr
        self._rich: Progress | None = None
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Bar:
        self._started = self._printed = time.monotonic()
        if not self.quiet and self._stream.isatty():
            self._rich = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn() if self.total else MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._rich.start()
            self._task = self._rich.add_task(self.what, total=self.total, note="")
        return self

    def advance(self, count: float, note: str | None = None) -> None:
        """``count`` more units are done; ``note`` replaces the text beside the bar."""
        self.done += count
        if note is not None:
            self._note = note
        if self._rich is not None:
            text = self._note or self._speed()
            self._rich.update(self._task, advance=count, note=text)
        elif not self.quiet and time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            share = f" {100 * self.done / self.total:.0f} %" if self.total else ""
            print(f"{self.what}:{share} {self._note or self._speed()}", file=self._stream)

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self.done:,.0f} {self.unit}, {self.done / seconds:,.0f}/s"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif not self.quiet and error is None:
            seconds = time.monotonic() - self._started
            print(
                f"{self.what}: {self._note or self._speed()} in {seconds:.1f} s", file=self._stream
            )
