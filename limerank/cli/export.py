"""``limerank export``: a part of an event store as a log."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from limerank.cli.options import Overwrite, Quiet
from limerank.errors import SpecError

INTERRUPTED = "nothing was written"
Store = Annotated[
    str,
    typer.Option(
        help="Event store: SQLite file, valkey://HOST:PORT/0 or valkey+cluster://HOST:PORT,..."
    ),
]


def export(
    store: Store,
    out: Annotated[Path, typer.Option(help="Log to write: .parquet, .csv or .jsonl.")],
    since: Annotated[
        str | None,
        typer.Option(
            help="Time of the first rows: 2026-11-28, 2026-11-28T06:00:00Z, or milliseconds since "
            "1970.",
            show_default="all",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="End of the time, excluded.",
            show_default="a window before now, so that all outcomes are known",
        ),
    ] = None,
    window: Annotated[
        float,
        typer.Option(
            help="Seconds after an item was shown in which an event counts as its outcome."
        ),
    ] = 3600.0,
    describe: Annotated[
        bool,
        typer.Option(
            "--describe", help="Also write a description for prepare: OUT with the ending .toml."
        ),
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Dataset or description whose labels, features and tables the description gets; "
            "implies --describe."
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write events and shown rankings of an event store as a log that `prepare` reads.

    A row is an item that a user was shown (a client logged the ranking), with its position and
    the outcomes that followed: labels are 0 where no event followed within the window. Events that
    followed no shown ranking are rows of their own; they enter histories. So the next model also
    learns from what users did not choose.

    Rows belong to the time at which they were shown. Logs of adjacent times overlap nowhere and
    lose nothing: continue with the `--until` of the last export as `--since`. The same part of
    a store gives the same file.

    Examples:

        limerank export --store events.db --since 2026-11-28 --out day.parquet --like data/shop

        limerank prepare day.toml --out data/day
    """
    from limerank.serving.export import export as run
    from limerank.serving.stores import existing, open_store

    times = {
        name: time_of(name, given)
        for name, given in (("since", since), ("until", until))
        if given is not None
    }
    with open_store(existing(store)) as opened:
        done = run(
            opened,
            out,
            **times,
            window=window,
            describe=describe,
            like=like,
            overwrite=overwrite,
            quiet=quiet,
        )
    print(
        f"{out}: {done.shown:,} shown items of {done.rankings:,} rankings, {done.acted:,} of them "
        f"with an event; {done.events:,} other events; {done.users:,} users"
    )
    if done.description is not None:
        print(f"Next: limerank prepare {quote(str(done.description))} --out DATA")
    print(f"Continue later with --since {done.until}")


def time_of(name: str, given: str) -> int:
    """A time of an option, in milliseconds since 1970.

    Raises:
        SpecError: the text is no time.
    """
    from limerank.data.canonical import milliseconds
    from limerank.errors import DataError

    try:
        return milliseconds(int(given) if given.lstrip("-").isdecimal() else given)
    except DataError as error:
        raise SpecError(f"--{name}: {error}") from None
