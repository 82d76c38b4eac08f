"""``limerank index``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Data, Overwrite, Quiet, ids, print_coverage
from limerank.errors import SpecError

INTERRUPTED = "the same command goes on with a build; a change of an index was not made"


def index(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="The index folder.")],
    data: Data = None,
    items: Annotated[
        Path | None,
        typer.Option(help="Another item table in the layout of the run's: new items, cold start."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="With --items: the dataset's other items as well.")
    ] = False,
    add: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add the items of a table, all of them new."),
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Encode items anew that the index holds."),
    ] = None,
    put: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add items, or update those that the index holds."),
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option(metavar="IDS", help="Remove these item ids (commas), or @FILE with one each."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Drop what updates left behind.")
    ] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="With --compact: drop what histories need of removed items."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte and compare the checksums.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Encode the catalogue once, for ranking; or change, compact or verify an index.

    Without --add, --update, --put, --remove, --compact and --verify the index is built. A killed
    build goes on where it was when the same command is given again.

    An index is changed in place while others rank with it: they keep the version that they opened,
    and whoever opens it later sees the change. Tables have the layout of the run's item table (CSV,
    TSV or Parquet). Several changes in one command are one step, all of it or nothing.

    Examples:

        limerank index runs/mine --out index/mine

        limerank index runs/mine --out index/mine --add new.csv --remove 17,42

        limerank index runs/mine --out index/mine --put changed.parquet --remove @gone.txt

        limerank index runs/mine --out index/mine --compact
    """
    building = {"--data": data, "--items": items, "--merge": merge, "--overwrite": overwrite}
    changing = {"--add": add, "--update": update, "--put": put, "--remove": remove}
    modes = {
        "building": [name for name, value in building.items() if value not in (None, False)],
        "changing": [name for name, value in changing.items() if value is not None],
        "compacting": ["--compact"] if compact else [],
        "verifying": ["--verify"] if verify else [],
    }
    given = [mode for mode, options in modes.items() if options]
    if len(given) > 1:
        options = ", ".join(option for mode in given for option in modes[mode])
        raise SpecError(f"{options} are {' and '.join(given)} an index: one at a time, please")
    if forget and not compact:
        raise SpecError("--forget goes with --compact")
    if given in ([], ["building"]):
        from limerank.index.building import build_index

        built = build_index(
            run, out, data=data, items=items, merge=merge, overwrite=overwrite, quiet=quiet
        )
        print_coverage(built.get("item_table"))
        print(f"Next: limerank rank --run {run} --index {out} --user ID -k 20 --explain")
        return
    from limerank.index import Index
    from limerank.index.changes import change_items, change_text, compact_index
    from limerank.runs.folder import load_run

    loaded = load_run(run)
    if verify:
        held = Index.open(out, loaded.fingerprint, verify=True)
        print(f"{out} is whole: {held.items:,} items, version {held.version}")
        return
    if compact:
        Index.open(out, loaded.fingerprint)
        change = compact_index(out, forget=forget, quiet=quiet)
    else:
        removed = None if remove is None else ids(remove)
        change = change_items(
            loaded, out, add=add, update=update, put=put, remove=removed, quiet=quiet
        )
    print(f"{out}: {change_text(change)}")
    for table in change.tables:
        print_coverage(table, partial=True)
    for advice in change.advice:
        print(f"advice: {advice}", file=sys.stderr)
