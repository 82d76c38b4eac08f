"""``limerank store``: change the format of an event store, or copy it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from limerank.cli.options import Quiet
from limerank.errors import SpecError, check_choice

INTERRUPTED = "run the same command again to continue"


def store(
    action: Annotated[str, typer.Argument(help="migrate or copy.")],
    store: Annotated[
        str,
        typer.Argument(
            help="Event store: SQLite file, valkey://HOST:PORT/0 or valkey+cluster://HOST:PORT,..."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Argument(help="copy: the store to add to (an SQLite file is created if missing)."),
    ] = None,
    buckets: Annotated[
        int | None,
        typer.Option(
            help="Parts into which a new Valkey store divides its users, for a cluster to spread "
            "over its servers: several times the number of servers that it will ever have.",
            show_default="256",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Change the format of an event store, or copy it into another one.

    **migrate** gives the keys of a Valkey store that an earlier version of limerank wrote the
    present format. Stop the servers that use the store first, and start them again afterwards. Keys
    are renamed in place: no event is lost, and no memory is needed. States are deleted; `limerank
    states rebuild` computes them. SQLite files need no migration.

    **copy** adds the events, features, exposures and live items of a store to another one, such as
    those of a file to a cluster. Servers may use the source meanwhile. To change to the new store
    without losing an event: copy, stop the servers, copy again (which adds what is new), and start
    the servers with the new store.

    Both skip what is done already, so that either can be repeated.

    Examples:

        limerank store migrate valkey://localhost:6379/0

        limerank store copy events.db valkey+cluster://10.0.0.1:6379,10.0.0.2:6379
    """
    from limerank.serving.stores import existing
    from limerank.serving.stores.valkey_layout import BUCKETS
    from limerank.serving.stores.valkey_server import redacted

    check_choice("action", action, ("migrate", "copy"))
    if (action == "copy") == (to is None):
        raise SpecError(
            "give the store to copy to: limerank store copy FROM TO"
            if to is None
            else f"migrate takes one store, got {to} as well"
        )
    written = store if to is None else to
    if buckets is not None and "://" not in written:
        raise SpecError(
            f"--buckets is of Valkey stores; {redacted(written)} is an SQLite file, which has none"
        )
    count = BUCKETS if buckets is None else buckets
    if to is None:
        _migrate(store, count, quiet)
    else:
        _copy(existing(store), to, count, quiet)


def _migrate(store: str, buckets: int, quiet: bool) -> None:
    from limerank.serving.stores import exists, migrate_store
    from limerank.serving.stores.valkey_server import redacted

    if "://" not in store:
        if not exists(store):
            raise SpecError(f"the store {store}: no such file")
        print(f"{store}: an SQLite file needs no migration")
        return
    done = migrate_store(store, buckets=buckets, quiet=quiet)
    print(f"{redacted(store)}: {done.users:,} users moved to the present format")
    if done.joined:
        print(f"  {done.joined:,} users were joined with others of the same id")


def _copy(source: str, target: str, buckets: int, quiet: bool) -> None:
    from limerank.serving.copying import copy_store
    from limerank.serving.stores import open_store
    from limerank.serving.stores.valkey_server import redacted

    if source == target or (
        "://" not in target and os.path.realpath(source) == os.path.realpath(target)
    ):
        raise SpecError(
            f"{redacted(target)} is the store to copy from, too; give another one to copy to"
        )
    with open_store(source) as old, open_store(target, buckets=buckets) as new:
        done = copy_store(old, new, quiet=quiet)
        print(
            f"{new.address}: {done.events:,} new events and {done.exposures:,} new exposures of "
            f"{done.changed:,} of {done.users:,} users; {done.items:,} live items"
        )
    print("Next: stop the servers, run the same command again, and start them with the new store")
