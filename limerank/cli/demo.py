"""``limerank demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Overwrite, Quiet
from limerank.errors import SpecError

INTERRUPTED = "the same command goes on; finished steps are kept"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path(
        "limerank-demo"
    ),
    small: Annotated[
        bool, typer.Option("--small", help="In a minute, only to see it work.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve the demo's model on this machine's address.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of --serve.")] = 8000,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The whole way on simulated logs: simulate, prepare, train, evaluate, index, rank, report."""
    from limerank.cli.walkthrough import demo as run

    if not 0 <= port < 65536:  # found now, and not after all the work
        raise SpecError(f"--port is {port}, expected 0 to 65535")
    if serve:
        from limerank.serving.http.run import listener

        with listener("127.0.0.1", port):
            pass  # it is free: found now, too
    made = run(out, small=small, overwrite=overwrite, quiet=quiet)
    if serve:
        from limerank.serving.fill import fill
        from limerank.serving.http.run import serve as serve_
        from limerank.serving.http.settings import Settings
        from limerank.serving.stores import SqliteStore

        events = out / "events.db"
        if not events.exists():
            with SqliteStore(events) as store:
                fill(store, out / "data", base=out / "logs", quiet=quiet)
        serve_(
            run=made["run"],
            index=out / "index",
            store=str(events),
            settings=Settings(open=True, port=port),
            items=out / "logs" / "items.parquet",
        )
