"""An operator who exports the store by the command, again and again, and kills it at times."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from pathlib import Path
from typing import Any

import polars as pl

from histories.clients import LATE, Book
from histories.record import Call, Fault, Status
from histories.world import World

PAUSE, KILLED = 1.0, 0.35
"""Seconds between two exports, on average; the share of those that are killed."""
LOOK, WRITING = 0.005, 0.2
"""Seconds between two looks at what an export writes, and until it is killed then, at most."""
PATIENCE = 90.0
"""Seconds that an export may take."""


class Exporter:
    """An operator.

    Args:
        book: in which the exports are written down.
        world: of the log's time.
        folder: of its own; the exports are written there.
        url: address of the store.
        prefix: words before the command, which run it on another machine.
        seed: of the pauses and the kills.

    Attributes:
        faults: exports that were killed.
    """

    def __init__(
        self, book: Book, world: World, folder: Path, url: str, prefix: list[str], seed: int
    ) -> None:
        self.book, self._world, self._folder = book, world, folder
        self._draws = random.Random(f"{seed} exporter")
        self._out = folder / "export.parquet"
        self._command = [
            *prefix,
            *(sys.executable, "-m", "limerank", "export", "--quiet", "--overwrite"),
            *("--store", url, "--until", str(world.begin + 10 * LATE), "--out", str(self._out)),
        ]
        self.faults: list[Fault] = []
        folder.mkdir()

    async def run(self, stop: asyncio.Event) -> None:
        """Export until it is stopped. After a kill, the same command is called again."""
        while not stop.is_set():
            if self._draws.random() < KILLED:
                await self._killed()
            await self.one()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PAUSE * self._draws.uniform(0.5, 1.5))

    async def _killed(self) -> None:
        """Begin an export, and kill it when it has begun to write."""
        begin, before = self.book.now, set(self._folder.iterdir())
        process = await self._begin()
        ended = asyncio.create_task(process.communicate())
        while not ended.done() and set(self._folder.iterdir()) <= before:
            await asyncio.wait((ended,), timeout=LOOK)
        await asyncio.wait((ended,), timeout=self._draws.uniform(0.0, WRITING))
        what = "an export ended before it was killed"
        if not ended.done():
            process.kill()
            what = "an export is killed"
        await ended
        self.faults.append(Fault("kill export", what, begin, self.book.now))

    async def _begin(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        )

    async def one(self) -> None:
        """Export all that is stored, and write down what the export has."""
        number, begin = next(self.book.numbers), self.book.now
        process = await self._begin()
        try:
            _, text = await asyncio.wait_for(process.communicate(), PATIENCE)
        finally:
            if process.returncode is None:
                process.kill()
        end, last = self.book.now, self.book.last
        status: Status = "fail" if process.returncode else "ok"
        answer: dict[str, Any] = {"error": text.decode()[-500:], "exit": process.returncode}
        if status == "ok":
            answer = await asyncio.to_thread(self._read)
        self.book.calls.append(
            Call(number, "export", -1, begin, end, status, answer=answer, last=last)
        )

    def _read(self) -> dict[str, Any]:
        rows = pl.read_parquet(self._out)
        shown = pl.col("position")
        events = rows.filter(shown.is_null()).select("user_id", "item_id")
        # A ranking is one exposure: its first position stands there once.
        rankings = rows.filter(shown == 1)["request"].to_list()
        beside = sorted(one.name for one in self._folder.iterdir() if one != self._out)
        return {"rankings": rankings, "events": [[user, int(item)] for user, item in events.rows()],
                "beside": beside}  # fmt: skip
