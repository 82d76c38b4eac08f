"""``limerank fill``: events of a dataset into an event store."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from limerank.cli.options import Quiet, print_coverage

INTERRUPTED = "stored events remain; run the same command again to store the rest"


def fill(
    store: Annotated[
        str,
        typer.Argument(
            help="SQLite file (created if missing), valkey://HOST:PORT/0 or valkey+cluster://HOST:PORT,..."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Prepared dataset.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="Base folder of the relative paths in the description, to find the user table.",
            show_default="as when the dataset was prepared",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Copy the events of a dataset into an event store, so that a server knows these users.

    The command can be repeated, with the same dataset or with a later one that overlaps it: events
    that the store already contains (same user, item, time and labels) are skipped.

    Example:

        limerank fill events.db --data data/mine
    """
    from limerank.data.dataset import Dataset
    from limerank.serving.fill import fill as run
    from limerank.serving.fill import item_file
    from limerank.serving.stores import open_store

    dataset = Dataset(data)  # before a store is made
    with open_store(store) as opened:
        done = run(opened, dataset, base=base, quiet=quiet)
    print(
        f"{opened.address}: {done.accepted:,} new of {done.events:,} events of {done.users:,} users"
    )
    if done.expired:
        print(f"  {done.expired:,} events were skipped: older than those stored for their users")
    if done.features:
        print(f"  {done.features:,} users have features from the user table")
    print_coverage(done.table)
    if done.note:
        print(f"  warning: {done.note} (--base)")
    items = item_file(dataset)
    table = "" if items is None else f" --items {quote(str(items))}"
    store_name = quote(opened.address)
    print(f"Next: limerank serve --run RUN --index INDEX --store {store_name}{table} --no-keys")
