"""Building an index in parts, on one machine or many that share a folder.

A part encodes a range of the catalogue's chunks into ``.NAME.parts/part-000003-of-000016``, an
index of its own, which appears complete or not at all. The scales come first: the first part that
is called computes them from a sample of the full catalogue, and writes them into ``plan.json``,
which all others read. Joined, the parts are byte for byte the index that one process builds on such
a machine: every part encodes the same chunks with the same scales.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limerank.data.dataset import Dataset
from limerank.errors import FormatError
from limerank.files import (
    check_output,
    checksum,
    new_folder,
    remove_folder,
    sweep_folder,
    writes_to,
)
from limerank.index.building import (
    check_index_output,
    counted_in,
    of_dataset,
    publish,
    write_index,
)
from limerank.index.format import Scales
from limerank.index.gathering import Piece, gather
from limerank.index.items import SourceItems, SourceTable, read_source
from limerank.index.reading import Index
from limerank.index.results import IndexBuild, IndexPart
from limerank.index.scaling import sampled, scales_of
from limerank.index.writing import chunk_rows, commit, sweep
from limerank.parts import (
    Part,
    check_complete,
    check_same,
    digest_of,
    parts_folder,
    read_plan,
    settled,
)
from limerank.runs.folder import Run, load_run

FORMAT = 2
"""Version of ``plan.json``."""
PLAN = "plan.json"


@dataclass(frozen=True)
class Catalogue:
    """The items of a build: those of a dataset, of a table, or both. A table is encoded a range at
    a time.

    Attributes:
        dataset: the items of a dataset, without those of the table; None where there are none.
        table: a table in a file; None where there is none.
        counted: whose counters the items of the table get; None: those of the model.
    """

    dataset: SourceItems | None
    table: SourceTable | None
    counted: Dataset | None = None

    @property
    def lengths(self) -> list[int]:
        """Items of each source."""
        return [len(source) for source in (self.dataset, self.table) if source is not None]

    def take(self, rows: Sequence[slice]) -> list[SourceItems]:
        """Some rows of each source."""
        wanted = list(rows)
        found = []
        if self.dataset is not None:
            found.append(replace(self.dataset, rows=self.dataset.rows[wanted.pop(0)]))
        if self.table is not None:
            some = self.table.take(wanted.pop(0))
            found.append(some if self.counted is None else counted_in(self.counted, some))
        return found

    def sample(self) -> list[SourceItems]:
        """The items from which scales are computed; see :mod:`limerank.index.scaling`."""
        total = sum(self.lengths)
        return self.take([sampled(length, total) for length in self.lengths])


def build_part(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    part: Part,
    *,
    data: Dataset | str | os.PathLike[str] | None = None,
    items: str | os.PathLike[str] | None = None,
    merge: bool = False,
    quiet: bool = True,
) -> IndexPart:
    """Encode one part of the catalogue for the index ``out``; :func:`join_parts` ends the build.

    A part that is complete is not computed again. Parts may run in any order and at the same time,
    on machines that share the folder of ``out``.

    Args:
        run: whose model encodes.
        out: the index that the parts will be. It is not changed before the parts are joined.
        part: the part.
        data: as for :func:`~limerank.index.building.build_index`.
        items: a table in a file, as for :func:`~limerank.index.building.build_index`.
        merge: as for :func:`~limerank.index.building.build_index`.
        quiet: show no progress.

    Raises:
        DataError: an item id is given twice in this part, a column of the table is missing, or an
            item encodes to NaN.
        FormatError: the folder of parts is of another run, other items or another number of parts;
            or it cannot be written to.
        SpecError: ``items`` is given and the run's data had no item table.
    """
    run = run if isinstance(run, Run) else load_run(run)
    out = Path(out)
    folder = parts_folder(out)
    check_output(folder / PLAN)
    with writes_to(folder):
        sweep_folder(folder)  # of a call of join_parts that was killed
    dataset = run.dataset(data) if items is None or merge or data is not None else None
    job = {
        "fingerprint": run.fingerprint,
        "parts": part.of,
        "data": None if dataset is None else digest_of(dataset.manifest),
        "items": None if items is None else checksum(items),
    }
    plan = None
    if (folder / PLAN).exists():
        plan = read_plan(folder / PLAN, "an index in parts", FORMAT)
        check_same(folder, plan["job"], job)
        complete = _part_of(folder, plan, part.number)
        if complete is not None:
            return IndexPart(complete.path, part, len(complete), False)
    table = None if items is None else read_source(run, items)
    counted = run.ranker.counters is not None
    of_data = None
    if dataset is not None and (table is None or merge):
        without = None if table is None else table.ids
        of_data = of_dataset(dataset, without, counted=counted)
    catalogue = Catalogue(of_data, table, dataset if counted else None)
    if plan is None:
        scales = scales_of(run.ranker, catalogue.sample()).to_dict() if run.ranker.folds else None
        plan = settled(folder / PLAN, {"format": FORMAT, "job": job, "scales": scales})
        check_same(folder, plan["job"], job)
    chosen = catalogue.take(chunk_rows(catalogue.lengths, part.number, part.of))
    own = None if plan["scales"] is None else Scales.of(plan["scales"])
    path = folder / part.folder
    try:
        with new_folder(path, mark="manifest.json") as fresh:
            manifest = write_index(fresh, run, chosen, None, quiet, own)
            manifest["part"] = {"number": part.number, "of": part.of, "plan": digest_of(plan)}
            sweep(fresh, commit(fresh, manifest))
    except FormatError:
        if _part_of(folder, plan, part.number) is None:
            raise  # else another process was faster
        return IndexPart(path, part, len(Index(path)), False)
    return IndexPart(path, part, manifest["rows"], True)


def join_parts(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    quiet: bool = True,
) -> IndexBuild:
    """Join the parts of :func:`build_part` into the index ``out``, and remove them.

    Every file of every part is compared with its checksum. A killed call is repeated.

    Args:
        run: that the parts were built with.
        out: the index, which appears in one step.
        overwrite: replace ``out`` where it is an index.
        quiet: show no progress.

    Raises:
        DataError: an item id is in two parts.
        FormatError: a part is missing, damaged or of another run; or ``out`` exists and
            ``overwrite`` is false, or it is not an index.
    """
    run = run if isinstance(run, Run) else load_run(run)
    out = Path(out)
    exists = check_index_output(out, overwrite)
    folder = parts_folder(out)
    if not (folder / PLAN).exists():
        raise FormatError(f"{folder} has no parts to join; build them with --part K/N first")
    plan = read_plan(folder / PLAN, "an index in parts", FORMAT)
    check_same(
        folder, {"fingerprint": plan["job"]["fingerprint"]}, {"fingerprint": run.fingerprint}
    )
    of = int(plan["job"]["parts"])
    parts = [_part_of(folder, plan, number) for number in range(1, of + 1)]
    check_complete(folder, (n for n, one in enumerate(parts, 1) if one is None), of)
    held = [one for one in parts if one is not None]
    for one in held:
        one.verify()

    def write(into: Path) -> dict[str, Any]:
        if not exists:
            sweep(into, {"files": {}})
        return gather(into, [Piece(one, 0, len(one)) for one in held], "joining", quiet)

    manifest = publish(out, exists, write)
    remove_folder(folder)
    return IndexBuild.of(out, manifest, None)


def _part_of(folder: Path, plan: dict[str, Any], number: int) -> Index | None:
    """A part that is complete; None where it is not.

    Raises:
        FormatError: it is damaged, or was built with another plan.
    """
    part = Part(number, int(plan["job"]["parts"]))
    path = folder / part.folder
    if not path.exists():
        return None
    found = Index(path)
    if found.manifest.get("part", {}).get("plan") != digest_of(plan):
        raise FormatError(
            f"{path} was built with other scales or items than {folder / PLAN} has; remove it and "
            f"run --part {part} again"
        )
    return found
