"""``limerank fill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Quiet, print_coverage

INTERRUPTED = "what was stored stays; the same command stores the rest"


def fill(
    store: Annotated[
        str,
        typer.Argument(help="An SQLite file, made if it is not there, or valkey://HOST:PORT/0."),
    ],
    data: Annotated[Path, typer.Option(help="A prepared dataset.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder that the description's paths begin in, to find the user table; where it "
            "was when the dataset was prepared if not given."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Put a dataset's events into an event store: a server then knows the users of the log.

    Filling again, from this log or from a later one that overlaps it, adds the events that the
    store does not hold: an event is known by its user, item, time and labels.
    """
    from limerank.data.dataset import Dataset
    from limerank.serving.fill import fill as run
    from limerank.serving.stores import open_store

    dataset = Dataset(data)  # before a store is made
    with open_store(store) as opened:
        done = run(opened, dataset, base=base, quiet=quiet)
    print(
        f"{opened.address}: {done.accepted:,} new of {done.events:,} events of {done.users:,} users"
    )
    if done.expired:
        print(f"  {done.expired:,} events are older than those that the store holds of their users")
    if done.features:
        print(f"  {done.features:,} users have features of the user table")
    print_coverage(done.table)
    if done.note:
        print(f"  warning: {done.note} (--base)")
    print(f"Next: limerank serve --run RUN --index INDEX --store {opened.address} --no-keys")
