"""``limerank synth``: simulated logs."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from limerank.cli.options import Overwrite, Quiet
from limerank.errors import SpecError, check_choice

INTERRUPTED = "nothing was written"
KINDS = ("videos", "shop")
OF_KIND = {"history": "videos", "end": "shop"}
"""Options of one kind only."""
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        help="videos: impressions of short videos, watched or not; shop: views, carts and "
        "purchases, without what else was shown.",
    ),
]


def synth(
    out: Annotated[Path, typer.Option(help="Output folder.")],
    kind: Kind = "videos",
    users: Annotated[
        int | None,
        typer.Option(
            help="Number of users; they arrive over time.", show_default="2000; shop: 9000"
        ),
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(
            help="Number of items; they arrive over time.", show_default="2000; shop: 5000"
        ),
    ] = None,
    events: Annotated[
        int | None,
        typer.Option(
            help="Number of events; of a shop: about.", show_default="200000; shop: 300000"
        ),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(help="Length of the log in days.", show_default="30; shop: 90"),
    ] = None,
    history: Annotated[
        int | None,
        typer.Option(help="videos: history.length in the written spec.toml.", show_default="128"),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            help="shop: when the log ends, such as 2026-11-29T12:00:00Z. Give it for a log that "
            "is the same tomorrow.",
            show_default="now",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same log.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a log whose truth is known, so that a model can be compared with the best possible.

    --kind videos: impressions of a short-video app, with the true click probability and expected
    watch time of each, and the probability with which it was shown (truth.parquet).

    --kind shop: sessions of an online shop in CSV files, as shops have them: views, carts and
    purchases with zoned times, and an item table. The true probability of every purchase is
    known (truth.parquet), and so is the highest hit rate that lists can have (simulation.json).

    Both write a description of the log: spec.toml or shop.toml.

    Examples:

        limerank synth --users 5000 --items 3000 --events 500000 --out logs/sim

        limerank synth --kind shop --out logs/shop
    """
    check_choice("kind of log", kind, KINDS)
    given: dict[str, Any] = {
        "users": users,
        "items": items,
        "events": events,
        "days": days,
        "history": history,
        "end": end,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, only in OF_KIND.items():
        if name in given and kind != only:
            raise SpecError(f"--{name} is for --kind {only}; got --kind {kind}: leave it out")
    if kind == "shop":
        from limerank.data.synthetic.shop import simulate_shop

        made = simulate_shop(out, **given, seed=seed, overwrite=overwrite, quiet=quiet)
        counts, best = made["counts"], made["best"]["last"]["hr@10"]
        print(
            f"{out}: {counts['events']:,} events, {counts['purchase']:,} of them purchases. "
            + (f"HR@10 of the best possible lists: {best:.3f}. " if best is not None else "")
            + f"Next: limerank prepare {quote(str(out))}/shop.toml --out data/shop"
        )
        return
    from limerank.data.synthetic import simulate

    made = simulate(out, **given, seed=seed, overwrite=overwrite, quiet=quiet)
    print(
        f"{out}: {made['counts']['events']:,} events. "
        f"Next: limerank prepare {quote(str(out))}/spec.toml --out data/sim"
    )
