"""``limerank synth``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Overwrite, Quiet

INTERRUPTED = "nothing was written"


def synth(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    users: Annotated[int, typer.Option(help="How many users, arriving over time.")] = 2000,
    items: Annotated[int, typer.Option(help="How many items, uploaded over time.")] = 2000,
    events: Annotated[int, typer.Option(help="How many impressions, exactly.")] = 200_000,
    days: Annotated[int, typer.Option(help="Length of the log.")] = 30,
    history: Annotated[int, typer.Option(help="History length written into spec.toml.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same log.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Simulate short-video logs whose truth is known.

    Writes events, item and user tables, a ready spec.toml, and the true click probability and
    expected watch time of every impression, so that a model can be held against the best possible.

    Example: limerank synth --users 5000 --items 3000 --events 500000 --out logs/sim
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
    print(f"{out} holds {events:,} events. Next: limerank prepare {out}/spec.toml --out data/sim")
