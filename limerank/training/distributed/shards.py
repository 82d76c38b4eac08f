"""Checkpoints of a training whose tables lie on several processes.

trainer/step-000000040/rest.safetensors     all but the sharded tables, written by process 0; its
                                            metadata has the progress
trainer/step-000000040/NAME.LO-HI.safetensors   positions LO .. HI - 1 of a table: "weight" and
                                            "sums", written by the process that owns them
trainer/latest.json                         format, step, tables and files: the commit mark

A step counts once ``latest.json`` names it, which is replaced after all files are on the disk. Any
number of processes reads it: each one the ranges that overlap with its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from limerank.errors import FormatError
from limerank.files import read_json, sync_directory, write_json
from limerank.runs.tensors import write_tensors
from limerank.training.distributed.tables import Layout, ShardedTable
from limerank.world import World, decided

FORMAT = 1
LATEST, REST = "latest.json", "rest.safetensors"


@dataclass(frozen=True)
class Shards:
    """A checkpoint that is complete.

    Attributes:
        folder: of its files.
        step: after which it was written.
        tables: name of a weight -> its rows.
        files: name -> bytes.
    """

    folder: Path
    step: int
    tables: dict[str, int]
    files: dict[str, int]

    def rest(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All but the tables, and the progress.

        Raises:
            FormatError: a file is missing or damaged.
        """
        file = self._file(REST)
        try:
            with safe_open(file, framework="pt") as opened:
                progress: dict[str, Any] = json.loads(opened.metadata()["progress"])
            return load_file(file), progress
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _damaged(file, str(error)) from None

    def positions(self, name: str, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Weights [high - low, d] and sums [high - low] of positions of a table.

        Raises:
            FormatError: a file is missing or damaged.
        """
        weights, sums, at = [], [], low
        for first, last, file in sorted(self._ranges(name)):
            start, end = max(first, at), min(last, high)
            if start != at or start >= end:
                continue
            try:
                with safe_open(self._file(file), framework="pt") as opened:
                    part = slice(start - first, end - first)
                    weights.append(opened.get_slice("weight")[part])
                    sums.append(opened.get_slice("sums")[part])
            except (SafetensorError, KeyError, ValueError) as error:
                raise _damaged(self.folder / file, str(error)) from None
            at = end
        if at < high:
            raise _damaged(self.folder, f"it lacks the positions {at} to {high} of {name}")
        if not weights:
            first, _, file = next(self._ranges(name))
            with safe_open(self._file(file), framework="pt") as opened:
                return opened.get_slice("weight")[:0], opened.get_slice("sums")[:0]
        return torch.cat(weights), torch.cat(sums)

    def full(self, name: str) -> tuple[Tensor, Tensor]:
        """Weights [R, d] and sums [R] of all rows of a table, in their order."""
        rows = self.tables[name]
        at = Layout(rows, 1).positions(torch.arange(rows))
        weights, sums = self.positions(name, 0, rows)
        return weights[at], sums[at]

    def _ranges(self, name: str) -> Any:
        for file in self.files:
            of, _, more = file.removesuffix(".safetensors").rpartition(".")
            if of == name:
                first, _, last = more.partition("-")
                yield int(first), int(last), file

    def _file(self, name: str) -> Path:
        file = self.folder / name
        size = file.stat().st_size if file.exists() else None
        if size != self.files[name]:
            expected = f"it has {size} bytes, expected {self.files[name]}"
            raise _damaged(file, "it is missing" if size is None else expected)
        return file


def newest(run: Path) -> Shards | None:
    """The last checkpoint that :func:`save` wrote into a run folder; None: there is none.

    Raises:
        FormatError: it is damaged, or of another version.
    """
    if not (run / "trainer" / LATEST).exists():
        return None
    mark = read_json(run / "trainer" / LATEST, "a checkpoint")
    if mark.get("format") != FORMAT:
        raise FormatError(
            f"the checkpoint in {run} has format {mark.get('format')!r:.40}, expected {FORMAT}; "
            "pass --overwrite to train from the start"
        )
    try:
        step = int(mark["step"])
        return Shards(_folder(run, step), step, dict(mark["tables"]), dict(mark["files"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(run / "trainer" / LATEST, str(error)) from None


def save(
    run: Path,
    world: World,
    tables: Mapping[str, ShardedTable],
    sums: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
    progress: Mapping[str, Any],
) -> None:
    """Write a checkpoint. All processes call it; each one writes the rows that it owns.

    Args:
        tables: name of a weight -> the table.
        sums: name of a weight -> what the optimiser has of the own rows.
        rest: all other tensors; those of process 0 are written.
        progress: written by process 0.
    """
    step = int(progress["step"])
    folder = _folder(run, step)
    decided(world, lambda: folder.mkdir(exist_ok=True))
    for name, table in tables.items():
        file = folder / f"{name}.{table.low:012d}-{table.high:012d}.safetensors"
        write_tensors(file, {"weight": table.weight.detach(), "sums": sums[name]}, {})
    if world.rank == 0:
        write_tensors(folder / REST, dict(rest), {"progress": json.dumps(progress)})
    world.barrier()

    def commit() -> None:
        for part in (folder, folder.parent):
            sync_directory(part)
        names = {REST}
        for name, table in tables.items():
            for rank in range(world.size):
                low, high = table.layout.range(rank)
                names.add(f"{name}.{low:012d}-{high:012d}.safetensors")
        files = {name: (folder / name).stat().st_size for name in sorted(names)}
        rows = {name: table.layout.rows for name, table in tables.items()}
        mark = {"format": FORMAT, "step": step, "tables": rows, "files": files}
        write_json(run / "trainer" / LATEST, mark)
        for other in (run / "trainer").glob("step-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    decided(world, commit)


def forget(run: Path) -> None:
    """Remove the checkpoint of a run folder, once another one has replaced it."""
    (run / "trainer" / LATEST).unlink(missing_ok=True)
    for folder in (run / "trainer").glob("step-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _folder(run: Path, step: int) -> Path:
    return run / "trainer" / f"step-{step:09d}"


def _damaged(file: Path, why: str) -> FormatError:
    return FormatError(
        f"{file} is damaged ({why}): the training cannot be resumed; pass --overwrite to train "
        "from the start"
    )
