"""Splitting an index into shards: ranges of its rows, each an index of its own.

Servers of the shards share the work of ranking the full catalogue; see
:mod:`limerank.serving.shards`. A shard has the scales of the index and the numbers of its anchored
values, so that it gives an item the same score, bit for bit.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from limerank.errors import FormatError, SpecError, check_integer
from limerank.files import check_folder, new_folder
from limerank.index.format import Shard
from limerank.index.gathering import Piece, gather
from limerank.index.reading import Index
from limerank.index.writing import commit, sweep
from limerank.parts import Part

MOST_SHARDS = 4096
"""Of an index."""


def shard_path(index: Path, number: int, of: int) -> Path:
    """Where a shard of an index is: beside it."""
    return index.with_name(f"{index.name}-shard-{number}-of-{of}")


def split_index(
    path: str | os.PathLike[str],
    shards: int,
    *,
    overwrite: bool = False,
    quiet: bool = True,
) -> list[Path]:
    """Write the shards of an index beside it, into ``NAME-shard-K-of-S``.

    Each has an even range of the rows, in order, and one further row that is hidden: it stands for
    the items of the other shards. The index stays as it is. Shards that are complete are not
    written again.

    Args:
        path: the index.
        shards: how many, S.
        overwrite: replace shards of another index of this name.
        quiet: show no progress.

    Returns:
        The folders of the shards.

    Raises:
        SpecError: there are more shards than rows, or the index is itself a shard.
        FormatError: the folder is not an index, or has old rows of updated items; or a shard exists
            and ``overwrite`` is false.
    """
    path = Path(path)
    check_integer("shards", shards, 1)
    index = Index.open(path, verify=True)
    if index.shard is not None:
        raise SpecError(f"{path} is {index.shard} of an index; split that index")
    if not shards <= min(len(index), MOST_SHARDS):
        raise SpecError(
            f"{shards} shards are asked for, expected at most {MOST_SHARDS:,}, and at most one for "
            f"each of the {len(index):,} rows"
        )
    if index.superseded:
        raise FormatError(
            f"{path} has {index.superseded:,} old rows of updated items; compact it (--compact), "
            "then split it"
        )
    wanted = []
    for number in range(1, shards + 1):
        rows = Part(number, shards).range(len(index))
        shard = Shard(number, shards, rows.start, len(rows), len(index), index.base)
        out = shard_path(path, number, shards)
        complete = False
        if (out / "manifest.json").exists():
            held = Index(out)
            complete = (held.shard, held.fingerprint) == (shard, index.fingerprint)
        if not complete:
            check_folder(out, overwrite=overwrite, mark="manifest.json")
        wanted.append((shard, out, complete))
    for shard, out, complete in wanted:
        if not complete:
            _write(index, shard, out, overwrite, quiet)
    return [out for _, out, _ in wanted]


def _write(index: Index, shard: Shard, out: Path, overwrite: bool, quiet: bool) -> None:
    first, end = shard.first, shard.first + shard.rows
    pieces = [Piece(index, first, end)]
    if shard.of > 1:
        other = end % len(index)
        pieces.append(Piece(index, other, other + 1, hidden=True))
    with new_folder(out, overwrite=overwrite, mark="manifest.json") as fresh:
        manifest = gather(fresh, pieces, f"shard {shard.number}", quiet)
        removed = len(pieces[0].rows(index.removed))
        manifest |= {
            "items": shard.rows - removed,
            "clamped": index.manifest["clamped"],
            "shard": asdict(shard),
        }
        sweep(fresh, commit(fresh, manifest))
