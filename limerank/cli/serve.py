"""``limerank serve``: rankings over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from limerank.cli.options import Set, assignments, ids
from limerank.errors import SpecError, check_choice, did_you_mean

OPTIONS = {
    "host": "--host",
    "port": "--port",
    "keys": "--keys",
    "open": "--no-keys",
    "proxies": "--proxy",
    "threads": "--workers",
    "rate": "--rate",
}
"""Settings of the server that have an option of their own."""


def serve(
    run: Annotated[Path | None, typer.Option(help="A run folder.")] = None,
    index: Annotated[Path | None, typer.Option(help="Index of the run.")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RUN,INDEX,SHARE",
            help="An arm of an experiment, in place of --run and --index: its models and its share "
            "of the users. NAME=ARM+ARM,SHARE interleaves two others. Repeatable.",
        ),
    ] = None,
    salt: Annotated[
        str,
        typer.Option(
            help="Text that decides, with a user's id, which arm the user has. Another one gives "
            "an independent choice. Keep it in all servers of an experiment."
        ),
    ] = "",
    store: Annotated[
        str,
        typer.Option(
            help="Event store: SQLite file (created if missing), valkey://HOST:PORT/0 or valkey+cluster://HOST:PORT,..."
        ),
    ] = "events.db",
    items: Annotated[
        Path | None, typer.Option(help="Item table, for filters and for features in responses.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 chooses a free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File of API keys. A line is `read KEY`, `write KEY` or `admin KEY`; a key has 16 "
            "characters or more."
        ),
    ] = None,
    open_: Annotated[
        bool,
        typer.Option(
            "--no-keys",
            "--open",
            help="Serve without keys, on a loopback address only. For development.",
        ),
    ] = False,
    state: Annotated[
        str,
        typer.Option(
            help="window: the latest events, as in evaluation; streaming: all events (lime-mha)."
        ),
    ] = "window",
    most: Annotated[
        int | None,
        typer.Option(help="Maximum number of events stored per user.", show_default="no limit"),
    ] = None,
    most_exposures: Annotated[
        int, typer.Option(help="Maximum number of shown rankings stored per user.")
    ] = 1000,
    threads: Annotated[int, typer.Option(help="Threads per ranking.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Requests computed at the same time.", show_default="the number of cores"
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Maximum number of requests per second and key.", show_default="no limit"
        ),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a reverse proxy whose X-Forwarded-For header is trusted. "
            "Repeatable."
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Folder with run and index, as folders or symbolic links, such as the daily "
            "loop's home/live; a JSON file that names both, or arms; or the URI of a published "
            "folder with both. The server reloads when they change."
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="URL,...",
            help="Servers of the shards of the index (limerank index --shards), that of shard 1 "
            "first: they rank the full catalogue in place of this server.",
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="kafka://HOST:9092,.../TOPIC",
            help="Event log: a Kafka topic that has each change before the store has it, and "
            "before it is acknowledged (limerank consume reads it).",
        ),
    ] = None,
    setting: Set = None,
) -> None:
    """Serve rankings over HTTP. It stores events, accepts new items and returns rankings.

    Requires the extra `serve`: pip install "limerank[serve]". API keys are read from --keys or from
    LIMERANK_READ_KEYS, LIMERANK_WRITE_KEYS and LIMERANK_ADMIN_KEYS. The page at / shows users,
    rankings and the state of the server; /openapi.json describes the API. `limerank settings
    server` lists the limits that --set changes.

    A catalogue too large for one machine is ranked by several: split the index, serve each shard
    with this command, and give their URLs to the servers that clients ask, which have the full
    index on their disk. LIMERANK_SHARD_KEY is the key that they send, with read access to the
    shards.

    With --log, an event is acknowledged when the brokers of a Kafka topic have it and the store has
    it, too. Needs the extra `kafka`. kafkas:// uses TLS; with kafka://USER@HOST, the password is
    read from LIMERANK_KAFKA_PASSWORD; settings of librdkafka follow after `?`.

    Examples:

        limerank serve --run runs/mine --index index/mine --store events.db --no-keys

        limerank serve --run runs/mine --index index/mine --keys keys.txt --host 0.0.0.0

        limerank serve --watch s3://shop/live --keys keys.txt --host 0.0.0.0

        limerank serve --arm a=runs/a,index/a,0.9 --arm b=runs/b,index/b,0.1 --no-keys

        limerank serve --run runs/mine --index index/mine --shards http://s1:8000,http://s2:8000

        limerank serve --run runs/mine --index index/mine --keys keys.txt
        --store valkey://10.0.0.1:6379/0 --log kafka://10.0.0.2:9092,10.0.0.3:9092/shop-events
    """
    from pydantic import ValidationError

    check_choice("state", state, ("window", "streaming"))
    given_both = run is not None or index is not None
    if (arm and given_both) or (run is None) != (index is None):
        raise SpecError("give --run and --index, or one --arm NAME=RUN,INDEX,SHARE or several")
    if not arm and not given_both and watch is None:
        raise SpecError(
            "give --run and --index, or one --arm NAME=RUN,INDEX,SHARE or several, or --watch "
            "with what names them"
        )
    for name, path in (("--run", run), ("--index", index), ("--items", items), ("--keys", keys)):
        if path is not None and not path.exists():
            raise SpecError(f"{name} {path}: no such file or folder")
    try:
        from limerank.serving.arms import one_arm, parse_arm
        from limerank.serving.http.run import serve as serve_
        from limerank.serving.http.settings import Settings, keys_of_environment
        from limerank.serving.kafka import parse_log
    except ImportError as error:
        raise SpecError(f'{error}: pip install "limerank[serve]"') from None

    try:
        given = assignments(setting)
        for name in given:
            if name in OPTIONS:
                raise SpecError(f"--set {name}: use the option {OPTIONS[name]}")
            if name not in Settings.model_fields:
                known = [one for one in Settings.model_fields if one not in OPTIONS]
                raise SpecError(
                    f"--set {name}: no such setting{did_you_mean(name, known)}; expected one of "
                    f"{', '.join(known)}"
                )
        if workers is not None:
            given["threads"] = workers
        settings = Settings(
            host=host,
            port=port,
            keys=keys_of_environment(keys),
            open=open_,
            rate=rate,
            proxies=tuple(proxy or ()),
            **given,
        )
    except ValidationError as error:
        raise SpecError(_settings_message(error.errors())) from None
    except UnicodeDecodeError:
        raise SpecError(f"{keys} is not a key file: it is not UTF-8 text") from None
    except ValueError as error:
        raise SpecError(str(error)) from None
    arms = tuple(map(parse_arm, arm or ()))
    if run is not None and index is not None:
        arms = one_arm(run, index)
    serve_(
        arms=arms,
        salt=salt,
        store=store,
        settings=settings,
        items=items,
        mode=state,  # type: ignore[arg-type]  # serve checks the text
        threads=threads,
        most=most,
        most_exposures=most_exposures,
        watch=watch,
        shards=[] if shards is None else ids(shards),
        shard_key=os.environ.get("LIMERANK_SHARD_KEY", ""),
        event_log=None if log is None else parse_log(log),
    )


def _settings_message(errors: Sequence[Any]) -> str:
    """Validation errors of server settings as one line, without the keys."""
    parts = []
    for one in errors:
        position = ".".join(map(str, one["loc"]))
        text = one["msg"].removeprefix("Value error, ")
        secret = position.startswith("keys")
        got = "" if secret or not position else f" is {one['input']!r}"
        parts.append(f"{position}{got}: {text}" if position else text)
    return "; ".join(parts)
