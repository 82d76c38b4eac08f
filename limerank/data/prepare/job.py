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
from datetime import datetime
from pathlib import Path
from typing import Any

from limerank.data.description import write_spec
from limerank.data.folder import LOG, MANIFEST
from limerank.data.prepare.anchoring import choose_anchors
from limerank.data.prepare.asked import asked_of
from limerank.data.prepare.inputs import Description, Input
from limerank.data.prepare.learning import learn
from limerank.data.prepare.manifest import manifest_of
from limerank.data.prepare.sorting import SortedEvents
from limerank.data.prepare.splitting import Splitter
from limerank.data.prepare.spooling import Spooling
from limerank.data.prepare.tables import TableWriter
from limerank.data.prepare.writing import EventWriter
from limerank.data.summary import DatasetSummary
from limerank.files import new_folder, write_json
from limerank.storage.arguments import NEW_FOLDER, READ, with_uris


@with_uris(out=NEW_FOLDER, extend=READ, encoding=READ)
def prepare(
    spec: Description,
    out: str | Path,
    *,
    events: Input | Sequence[Input | None] | None = None,
    items: Input | None = None,
    users: Input | None = None,
    base: str | Path | None = None,
    extend: str | Path | None = None,
    encoding: str | Path | None = None,
    since: int | str | datetime | None = None,
    memory: int | str = 2 << 30,
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
        base: the folder, or its URI, that names of files in the description are relative to. Not
            given: the folder of the TOML file, else the working directory.
        extend: a dataset that was prepared earlier from this description. Its events, codes,
            bucket edges and scales are used again, and only rows that it does not have are read:
            files that it has not read, or frames that are passed. New users, items and values get
            the codes behind its own. The dataset itself is not changed.
        encoding: such a dataset, of which only codes, edges and scales are used; all rows are
            read.
        since: leave out events before this time: milliseconds since 1970, ISO 8601 text or a
            datetime (an order, where the log has no clock). Users and items that have no other
            events keep their codes, if they come from ``extend`` or ``encoding``.
        memory: bytes, or text such as "2GiB", that the process may use, apart from frames that are
            passed, vocabularies, the item and user tables, and the events of a single user.
            (Python and the libraries take about 200 MiB of it; a limit below 512 MiB only makes
            the parts smaller.)
        overwrite: replace ``out`` where it exists.
        quiet: show no progress.

    Raises:
        SpecError: the description is not valid, rows are passed that it does not describe, or
            ``memory`` is not an amount of memory.
        DataError: a file or a column is missing, an argument is not a frame, or too many rows are
            bad (with the reasons); a file that ``extend`` has read was changed; or the description
            reads other events than ``extend``.
        FormatError: ``out`` exists and ``overwrite`` is false; or ``extend`` or ``encoding`` is
            not a dataset that can be used for it.
    """
    asked = asked_of(
        spec,
        base,
        events=events,
        items=items,
        users=users,
        extend=extend,
        encoding=encoding,
        since=since,
        memory=memory,
    )
    with new_folder(out, overwrite=overwrite, mark=MANIFEST) as folder:
        spools = Spooling(asked, folder / "work", quiet)
        spools.read()
        found = write_dataset(spools, folder)
    return DatasetSummary.of(found)


def write_dataset(spools: Spooling, folder: Path) -> dict[str, Any]:
    """Sort and encode the events of spools, and fill the dataset's folder; returns the manifest."""
    asked, quiet = spools.asked, spools.quiet
    inputs, earlier, table_limit = asked.inputs, asked.earlier, asked.table_limit
    (folder / LOG).mkdir()
    events = SortedEvents(spools, folder)
    with ThreadPoolExecutor(1) as aside:
        files = aside.submit(spools.sealed_files)
        events.sort(aside)
        splitter = Splitter(inputs.spec, events, table_limit)
        learned = learn(spools, events, splitter, folder, table_limit, quiet)
        tables = TableWriter(spools, events, learned, folder, table_limit)
        tables.write_items()
        tables.write_users()
        writer = EventWriter(spools, events, splitter, learned, tables.item_map, folder, quiet)
        stats = writer.write()
        shutil.rmtree(folder / "work")
        anchors = choose_anchors(inputs.spec, tables.item_encoding.manifest, folder, earlier)
        manifest = manifest_of(
            spools, events, splitter, learned, tables, stats, anchors, files.result(), folder
        )
        write_spec(folder / "spec.toml", inputs.spec, inputs.base)
        write_json(folder / MANIFEST, manifest)
    return manifest
