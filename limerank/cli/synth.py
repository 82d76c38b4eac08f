"""``limerank synth``: simulated logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Overwrite, Quiet

INTERRUPTED = "nothing was written"


def synth(
    out: Annotated[Path, typer.Option(help="Output folder.")],
    users: Annotated[int, typer.Option(help="Number of users; they arrive over time.")] = 2000,
    items: Annotated[
        int, typer.Option(help="Number of items; they are uploaded over time.")
    ] = 2000,
    events: Annotated[int, typer.Option(help="Exact number of impressions.")] = 200_000,
    days: Annotated[int, typer.Option(help="Length of the log in days.")] = 30,
    history: Annotated[int, typer.Option(help="history.length in the written spec.toml.")] = 128,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same log.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Simulate the logs of a short-video app, with the true probability of every click.

    Writes events, item and user tables, a dataset description (spec.toml), and the true click
    probability and expected watch time of every impression (truth.parquet). A model can then be
    compared with the best possible one.

    Example:

        limerank synth --users 5000 --items 3000 --events 500000 --out logs/sim
    """
    from limerank.data.synthetic import simulate

    simulate(
        out,
        users=users,
        items=items,
        events=events,
        days=days,
        history=history,
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
    )
    print(f"{out}: {events:,} events. Next: limerank prepare {out}/spec.toml --out data/sim")
