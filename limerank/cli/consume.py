"""``limerank consume``: the event log of a server into a store, and into Parquet files."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from limerank.cli.export import time_of
from limerank.cli.options import Quiet
from limerank.errors import SpecError
from limerank.parts import parse_part

INTERRUPTED = "what was written remains; run the same command again to continue"


def consume(
    log: Annotated[
        str, typer.Argument(metavar="kafka://HOST:9092,.../TOPIC", help="Event log of a server.")
    ],
    store: Annotated[
        str | None,
        typer.Option(
            help="Event store to apply the log to: SQLite file (created if missing), "
            "valkey://HOST:PORT/0 or valkey+cluster://HOST:PORT,..."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of Parquet parts with the rows of `limerank export`."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="With --out: dataset or description whose labels and features the parts have."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Begin with records written at this time, or with the `beginning`.",
            show_default="where the last call ended",
        ),
    ] = None,
    until_end: Annotated[
        bool,
        typer.Option(
            "--until-end", help="End at the end of the log, in place of waiting for more."
        ),
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="K/N",
            help="Only part K (from 1) of N of the topic's partitions, so that N processes share "
            "the work.",
        ),
    ] = None,
    window: Annotated[
        float,
        typer.Option(
            help="With --out: seconds after an item was shown in which an event counts as its "
            "outcome."
        ),
    ] = 3600.0,
    slice_: Annotated[
        float, typer.Option("--slice", help="With --out: seconds of the log in one part.")
    ] = 3600.0,
    dead_letters: Annotated[
        Path, typer.Option(help="File for records that cannot be read; they are skipped.")
    ] = Path("dead-letters.jsonl"),
    most_dead: Annotated[
        int, typer.Option(help="Records in this file, at most; more of them end the command.")
    ] = 1000,
    group: Annotated[
        str, typer.Option(help="Name under which the brokers store the position of --store.")
    ] = "limerank",
    rewind: Annotated[
        float,
        typer.Option(
            help="Seconds of the log that are applied again when a replica of the store was "
            "promoted, which may lack the latest changes."
        ),
    ] = 600.0,
    most: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of events stored per user, as the server has it.",
            show_default="no limit",
        ),
    ] = None,
    most_exposures: Annotated[
        int,
        typer.Option(
            help="Maximum number of shown rankings stored per user, as the server has it."
        ),
    ] = 1000,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds for which the brokers or the store may be unreachable before the command "
            "ends with an error."
        ),
    ] = 300.0,
    metrics: Annotated[
        int | None,
        typer.Option(help="Port of /metrics, for Prometheus; 0 chooses a free one."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Read the event log that `limerank serve --log` writes, from where the last call ended.

    **--store** applies the log to an event store: a new one, a second one elsewhere, or that of the
    servers. Whatever the store has counts once, so that a replay changes nothing; deleted users do
    not return. A store that is another one than before gets the log from its beginning, and one
    whose replica was promoted gets the last minutes again: what the failover lost.

    **--out** writes Parquet parts: items that were shown, with the outcomes that followed within
    the window, and other events. A part appears complete, when the window after its slice is over.
    Its name has the partition and the offsets, and a folder continues where its parts end.
    `prepare` reads them by the description log.toml in the folder.

    The command runs until it is stopped, and may be killed at any time: positions are stored after
    what they stand for. Needs the extra `kafka`; the password of kafka://USER@HOST is read from
    LIMERANK_KAFKA_PASSWORD.

    Examples:

        limerank consume kafka://10.0.0.3:9092/shop-events --store valkey://10.0.0.1:6379/0

        limerank consume kafka://10.0.0.3:9092/shop-events --out logs --like data/shop --until-end

        limerank consume kafka://10.0.0.3:9092/shop-events --store restored.db --since beginning
        --until-end
    """
    from limerank.serving.export.job import spec_like
    from limerank.serving.kafka.address import parse_log
    from limerank.serving.kafka.consuming import BEGINNING, Consuming, Metrics
    from limerank.serving.kafka.consuming import consume as run

    begin = None
    if since is not None:
        begin = BEGINNING if since == "beginning" else time_of("since", since)
    if like is not None and not like.exists():
        raise SpecError(f"--like {like}: no such file or folder")
    given = Consuming(
        parse_log(log),
        store=store,
        out=out,
        like=None if like is None else spec_like(like),
        dead=dead_letters,
        most_dead=most_dead,
        part=None if part is None else parse_part(part),
        group=group,
        since=begin,
        window=window,
        slice=slice_,
        rewind=rewind,
        most=most,
        most_exposures=most_exposures,
        patience=patience,
    )
    stop = threading.Event()
    numbers = None if metrics is None else Metrics(metrics)
    if numbers is not None:
        print(f"metrics on port {numbers.port}", flush=True)
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        done = run(given, until_end=until_end, metrics=numbers, quiet=quiet, stop=stop)
    finally:
        signal.signal(signal.SIGTERM, before)
        if numbers is not None:
            numbers.close()
    applied = done.applied
    if store is not None:
        print(
            f"{applied.records:,} records: {applied.accepted:,} new events and exposures, "
            f"{applied.duplicates:,} that the store had, {applied.replaced:,} features and items, "
            f"{applied.forgotten:,} users deleted"
        )
        if applied.expired:
            print(f"  {applied.expired:,} are older than what the store holds of their users")
    if out is not None:
        print(f"{out}: {done.parts:,} new parts with {done.rows:,} rows")
        print(f"Next: limerank prepare {quote(str(out / 'log.toml'))} --out DATA")
    if done.dead:
        print(f"  {done.dead:,} records cannot be read: see {dead_letters}")
