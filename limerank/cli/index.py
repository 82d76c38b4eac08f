"""``limerank index``: build, change, compact or verify an index."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from limerank.cli.options import (
    Data,
    Join,
    On,
    Overwrite,
    PartOption,
    Parts,
    Quiet,
    Retries,
    ids,
    print_coverage,
    run_on,
)
from limerank.errors import SpecError
from limerank.parts import parse_part

INTERRUPTED = (
    "run the same command again to resume a build; a change of an existing index was not applied"
)


def index(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="Index folder.")],
    data: Data = None,
    items: Annotated[
        Path | None,
        typer.Option(
            help="Index the items of this table (same layout as the run's item table).",
            show_default="the items of the dataset",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="With --items: also index the other items of the dataset."),
    ] = False,
    add: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add new items from a table."),
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Encode items of the index again, from a table."),
    ] = None,
    put: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Add items, or update those that the index already contains."
        ),
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option(metavar="IDS", help="Remove these item ids: a,b,c or @FILE, one per line."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Delete obsolete rows that updates left in the files.")
    ] = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="With --compact: also delete the vectors of removed items, which histories use.",
        ),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all files and compare their checksums.")
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            metavar="S",
            help="Split the index into S shards beside it, NAME-shard-K-of-S, for limerank serve.",
        ),
    ] = None,
    part: PartOption = None,
    join: Join = False,
    on: On = None,
    parts: Parts = 16,
    retries: Retries = 3,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Encode the catalogue for ranking; or change, compact or verify an index.

    Without --add, --update, --put, --remove, --compact and --verify, the command builds an index.
    Run the same command again to resume an interrupted build.

    A large catalogue is built in parts, by any number of processes and machines that share the
    folder: each calls the command with --part K/N, and --join ends the build. The index is, byte
    for byte, the one that a single process builds. A part that is complete is not computed again,
    so a failed one is repeated by calling all of them again.

    Changes are made in place and are atomic: all changes of one command become visible together.
    Processes that have the index open continue to use the version that they opened. Tables have
    the layout of the run's item table (CSV, TSV or Parquet).

    Examples:

        limerank index runs/mine --out index/mine

        limerank index runs/mine --out index/mine --add new.csv --remove 17,42

        limerank index runs/mine --out index/mine --put changed.parquet --remove @removed.txt

        limerank index runs/mine --out index/mine --compact

        seq 16 | xargs -P 4 -I K limerank index runs/mine --out index/mine --part K/16

        limerank index runs/mine --out index/mine --join

        limerank index runs/mine --out index/mine --shards 4

        limerank index runs/mine --out index/mine --on ray --parts 64
    """
    building = {"--data": data, "--items": items, "--merge": merge, "--overwrite": overwrite}
    changing = {"--add": add, "--update": update, "--put": put, "--remove": remove}
    modes = {
        "building": [name for name, value in building.items() if value not in (None, False)],
        "changing": [name for name, value in changing.items() if value is not None],
        "compacting": ["--compact"] if compact else [],
        "verifying": ["--verify"] if verify else [],
        "joining": ["--join"] if join else [],
        "splitting": ["--shards"] if shards is not None else [],
    }
    if (join or shards is not None) and overwrite:  # it goes with these as well
        modes["building"].remove("--overwrite")
    given = [mode for mode, options in modes.items() if options]
    if len(given) > 1:
        options = ", ".join(option for mode in given for option in modes[mode])
        raise SpecError(f"{options}: give the options of one operation only ({' or '.join(given)})")
    if forget and not compact:
        raise SpecError("--forget goes with --compact")
    if part is not None and on is not None:
        raise SpecError("give --part, or --on for all parts")
    if on is not None:
        if given not in ([], ["building"]):
            raise SpecError(f"--on builds an index; leave out {modes[given[-1]][0]}")
        from limerank.index.building import check_index_output
        from limerank.index.parts import join_parts

        check_index_output(out, overwrite)
        job = {"command": "index", "run": run, "out": out, "data": data, "items": items}
        run_on(on, {**job, "merge": merge}, parts, retries, quiet)
        print(join_parts(run, out, overwrite=overwrite, quiet=quiet).text())
        return
    if part is not None:
        if given not in ([], ["building"]):
            raise SpecError(f"--part builds a part of an index; leave out {modes[given[-1]][0]}")
        if overwrite:
            raise SpecError(
                "--overwrite goes with --join, which replaces the index; not with --part"
            )
        from limerank.index.parts import build_part

        print(
            build_part(
                run, out, parse_part(part), data=data, items=items, merge=merge, quiet=quiet
            ).text()
        )
        return
    if join:
        from limerank.index.parts import join_parts

        print(join_parts(run, out, overwrite=overwrite, quiet=quiet).text())
        return
    if given in ([], ["building"]):
        from limerank.index.building import build_index

        built = build_index(
            run, out, data=data, items=items, merge=merge, overwrite=overwrite, quiet=quiet
        )
        print_coverage(built.item_table)
        names = f"--run {quote(str(run))} --index {quote(str(out))}"
        print(f"Next: limerank rank {names} --user ID -k 20 --explain")
        return
    from limerank.index import Index
    from limerank.index.changes import change_items
    from limerank.index.compaction import compact_index
    from limerank.runs.folder import load_run

    loaded = load_run(run)
    if shards is not None:
        from limerank.index.sharding import split_index

        Index.open(out, loaded.fingerprint)
        for path in split_index(out, shards, overwrite=overwrite, quiet=quiet):
            shard = Index.open(path)
            print(f"{path}: {shard.shard}, {shard.items:,} items")
        return
    if verify:
        opened = Index.open(out, loaded.fingerprint, verify=True)
        print(f"{out} is intact: {opened.items:,} items, version {opened.version}")
        return
    if compact:
        Index.open(out, loaded.fingerprint)
        change = compact_index(out, forget=forget, quiet=quiet)
    else:
        removed = None if remove is None else ids(remove)
        change = change_items(
            loaded, out, add=add, update=update, put=put, remove=removed, quiet=quiet
        )
    print(f"{out}: {change.text()}")
    for table in change.tables:
        print_coverage(table, partial=True)
    for advice in change.advice:
        print(f"advice: {advice}", file=sys.stderr)
