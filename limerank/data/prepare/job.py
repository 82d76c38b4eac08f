"""Logs in, dataset out: ``limerank prepare``.

Rows are read in batches, checked, and spooled to disk in partitions by user
(:mod:`~limerank.data.prepare.spooling`); each partition is sorted by user and time in memory
(:mod:`~limerank.data.prepare.sorting`); then the sorted events are streamed twice, once to learn
vocabularies from the training window and once to write codes and requests. Memory stays below the
limit for logs of any size, apart from the vocabularies and tables of users and items and apart from
the events of a single user, which are sorted together.

The folder's format is described in :mod:`limerank.data.folder`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from limerank.data.description import write_spec
from limerank.data.folder import MANIFEST
from limerank.data.prepare.inputs import Description, Input, Inputs, inputs_of
from limerank.data.prepare.learning import learn
from limerank.data.prepare.manifest import manifest_of
from limerank.data.prepare.sorting import SortedEvents
from limerank.data.prepare.splitting import Splitter
from limerank.data.prepare.spooling import Spooling
from limerank.data.prepare.tables import TableWriter
from limerank.data.prepare.writing import EventWriter
from limerank.data.summary import DatasetSummary
from limerank.files import new_folder, write_json

LIBRARY_BYTES = 320 << 20
"""What Python and the libraries take before any work is done."""


def prepare(
    spec: Description,
    out: str | Path,
    *,
    events: Input | Sequence[Input | None] | None = None,
    items: Input | None = None,
    users: Input | None = None,
    base: str | Path | None = None,
    memory: int = 2 << 30,
    overwrite: bool = False,
    quiet: bool = True,
) -> DatasetSummary:
    """Turn logs into a dataset folder; returns its summary.

    The rows are in the files that the description names, or are passed along: frames are read by
    the rules of Parquet files, and give the same dataset. ::

        prepare("shop.toml", "data/shop")
        prepare(
            {
                "name": "shop",
                "events": [{"time": "time", "time_unit": "ms"}],
                "labels": [{"name": "click", "kind": "binary"}],
            },
            "data/shop",
            events=clicks,  # a Polars or pandas DataFrame, or a pyarrow Table
        )

    Args:
        spec: what the columns are: the path of a description in TOML, a mapping of the same shape,
            or a :class:`~limerank.data.spec.Spec`.
        out: the dataset's folder. It appears only when it is complete.
        events: rows of events in place of the files of the description: a Polars or pandas
            DataFrame, a pyarrow Table or another object that exports an Arrow stream, or the name
            or pattern of files, relative to the working directory. With several ``[[events]]`` in
            the description a list with one of these, or None for its files, for each.
        items, users: the same for the item table and the user table.
        base: the folder that names of files in the description are relative to. Not given: the
            folder of the TOML file, else the working directory.
        memory: bytes that the process may use, apart from frames that are passed, vocabularies,
            the item and user tables, and the events of a single user. (Python and the libraries
            take about 200 MiB of it; a limit below 512 MiB only makes the parts smaller.)
        overwrite: replace ``out`` where it exists.
        quiet: show no progress.

    Raises:
        SpecError: the description is not valid, or rows are passed that it does not describe.
        DataError: a file or a column is missing, an argument is not a frame, or too many rows are
            bad (with the reasons).
        FormatError: ``out`` exists and ``overwrite`` is false.
    """
    inputs = inputs_of(spec, base, events=events, items=items, users=users)
    with new_folder(out, overwrite=overwrite, mark=MANIFEST) as folder:
        return DatasetSummary.of(_prepare(inputs, folder, memory, quiet))


def _prepare(inputs: Inputs, folder: Path, memory: int, quiet: bool) -> dict[str, Any]:
    """Fill the dataset's folder; returns the manifest."""
    room = max(memory - LIBRARY_BYTES, memory // 8)
    table_limit = max(memory >> 8, 1 << 16)  # codes in a smaller range are counted in tables
    spools = Spooling(inputs, folder / "work", room, quiet)
    spools.read()
    events = SortedEvents(spools, folder)
    with ThreadPoolExecutor(1) as aside:
        events.sort(aside)
        splitter = Splitter(inputs.spec, events, table_limit)
        learned = learn(spools, events, splitter, folder, table_limit, quiet)
        tables = TableWriter(spools, events, learned, folder, table_limit)
        tables.write_items()
        tables.write_users()
        writer = EventWriter(spools, events, splitter, learned, tables.item_map, folder, quiet)
        stats = writer.write()
        shutil.rmtree(folder / "work")
        manifest = manifest_of(spools, events, splitter, learned, tables, stats)
        write_spec(folder / "spec.toml", inputs.spec, inputs.base)
        write_json(folder / MANIFEST, manifest)
    return manifest
