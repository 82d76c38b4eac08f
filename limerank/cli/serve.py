"""``limerank serve``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from limerank.errors import SpecError, check_choice


def serve(
    run: Annotated[Path, typer.Option(help="A run folder.")],
    index: Annotated[Path, typer.Option(help="The index of the run.")],
    store: Annotated[
        str,
        typer.Option(
            help="Events: an SQLite file, made if it is not there, or valkey://HOST:PORT/0."
        ),
    ] = "events.db",
    items: Annotated[
        Path | None, typer.Option(help="The item table, for filters and to show features.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File of keys: lines such as `read KEY`, `write KEY`, `admin KEY`; a key has at "
            "least 16 characters."
        ),
    ] = None,
    open_: Annotated[
        bool,
        typer.Option(
            "--no-keys",
            "--open",
            help="Serve without keys: on this machine's own address, for its own programs alone.",
        ),
    ] = False,
    state: Annotated[
        str,
        typer.Option(help="window: the latest events, as evaluated; streaming: all (lime-mha)."),
    ] = "window",
    most: Annotated[
        int | None, typer.Option(help="Events held of a user, at most; all if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of one ranking.")] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Requests computed at a time; the cores if not given.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second and key, at most.")] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a reverse proxy whose X-Forwarded-For is believed; may be "
            "given repeatedly."
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Folder with links run and index, or a JSON file of both: loaded when they change."
        ),
    ] = None,
) -> None:
    """Serve rankings over HTTP: events in, rankings out, new items rankable at once.

    Needs the extra `serve` (pip install "limerank[serve]"). Keys come from --keys or from
    LIMERANK_READ_KEYS, LIMERANK_WRITE_KEYS and LIMERANK_ADMIN_KEYS; /openapi.json describes the
    API.
    """
    from pydantic import ValidationError

    check_choice("state", state, ("window", "streaming"))
    for name, path in (("--run", run), ("--index", index), ("--items", items), ("--keys", keys)):
        if path is not None and not path.exists():
            raise SpecError(f"{name} {path}: there is no such file or folder")
    try:
        from limerank.serving.http.run import serve as serve_
        from limerank.serving.http.settings import Settings, keys_of_environment
    except ImportError as error:
        raise SpecError(f'{error}: pip install "limerank[serve]"') from None

    try:
        given = {"threads": workers} if workers is not None else {}
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
        raise SpecError(f"{keys} is no text file of keys in UTF-8") from None
    except ValueError as error:
        raise SpecError(str(error)) from None
    serve_(
        run=run,
        index=index,
        store=store,
        settings=settings,
        items=items,
        mode=state,  # type: ignore[arg-type]
        threads=threads,
        most=most,
        watch=watch,
    )


def _settings_message(errors: Sequence[Any]) -> str:
    """What pydantic says of a server's settings, in one line."""
    parts = []
    for one in errors:
        position = ".".join(map(str, one["loc"]))
        text = one["msg"].removeprefix("Value error, ")
        secret = position.startswith("keys")
        got = "" if secret or not position else f" is {one['input']!r}"
        parts.append(f"{position}{got}: {text}" if position else text)
    return "; ".join(parts)
