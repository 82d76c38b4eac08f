"""``limerank demo``: every step on simulated logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Overwrite, Quiet
from limerank.errors import SpecError

INTERRUPTED = "finished steps remain; run the same command again to continue"


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("limerank-demo"),
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="videos: impressions of a short-video app; shop: views, carts and purchases.",
        ),
    ] = "videos",
    small: Annotated[
        bool, typer.Option("--small", help="Small logs: takes a minute, metrics mean little.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="At the end, serve the model on 127.0.0.1.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of --serve.")] = 8000,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run every step on simulated logs: simulate, prepare, train, evaluate, index, rank, report.

    Run the same command again to continue an interrupted demo.

    Examples:

        limerank demo

        limerank demo --kind shop --out demo-shop

        limerank demo --small --out demo

        limerank demo --serve
    """
    from limerank.cli.walkthrough import demo as run

    if not 0 <= port < 65536:  # before the long steps
        raise SpecError(f"--port is {port}, expected 0 to 65535")
    if serve:
        from limerank.serving.http.run import listener

        with listener("127.0.0.1", port):
            pass  # the port is free
    made = run(out, kind=kind, small=small, overwrite=overwrite, quiet=quiet)
    if serve:
        from limerank.serving.arms import one_arm
        from limerank.serving.fill import fill
        from limerank.serving.http.run import serve as serve_
        from limerank.serving.http.settings import Settings
        from limerank.serving.stores import SqliteStore

        events = out / "events.db"
        if not events.exists():
            with SqliteStore(events) as store:
                fill(store, out / "data", base=out / "logs", quiet=quiet)
        serve_(
            arms=one_arm(made["run"], out / "index"),
            store=str(events),
            settings=Settings(open=True, port=port),
            items=made["items"],
        )
