"""``limerank states``: states of users in an event store, computed before a run is served."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from limerank.cli.options import Quiet
from limerank.errors import SpecError, check_choice
from limerank.parts import parse_part

INTERRUPTED = "states that were written remain; run the same command again to continue"


def states(
    action: Annotated[str, typer.Argument(help="rebuild or drop.")],
    run: Annotated[Path, typer.Option(help="Run folder.")],
    index: Annotated[Path, typer.Option(help="Index of the run.")],
    store: Annotated[
        str,
        typer.Option(
            help="Event store: SQLite file, valkey://HOST:PORT/0 or valkey+cluster://HOST:PORT,..."
        ),
    ] = "events.db",
    state: Annotated[
        str, typer.Option(help="As the server will have it: window or streaming.")
    ] = "window",
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="K/N",
            help="Only part K (from 1) of N of the users, so that N processes share the work.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compute the states of all users before a run is served, so that none is computed again then.

    **rebuild** computes and stores the state of each user for a run and its index, while servers
    answer from another run. Servers that load the run afterwards read these states, and the events
    that arrived since. States that are up to date are skipped, so that the command can be repeated,
    and continues where it was interrupted. One user is in memory at a time.

    **drop** deletes the states of all other runs, when none of them is served any more. Without it,
    the store keeps the four latest ones of each user.

    Examples:

        limerank states rebuild --run runs/new --index index/new --store events.db --state streaming

        seq 8 | xargs -P 8 -I K limerank states rebuild --run runs/new --index index/new
        --store valkey://store:6379/0 --state streaming --part K/8
    """
    check_choice("action", action, ("rebuild", "drop"))
    check_choice("state", state, ("window", "streaming"))
    for name, path in (("--run", run), ("--index", index)):
        if not path.is_dir():
            raise SpecError(f"{name} {path}: no such folder")
    some = None if part is None else parse_part(part)

    from limerank.serving.rebuilding import drop_states, loaded_states, rebuild_states
    from limerank.serving.stores import existing, open_store

    with open_store(existing(store)) as opened:
        of = loaded_states(opened, run, index, state)  # type: ignore[arg-type]  # checked above
        if action == "drop":
            print(f"{drop_states(opened, {of.kind}, some, quiet=quiet):,} other states deleted")
            return
        done = rebuild_states(of, some, quiet=quiet)
    print(
        f"{done.written:,} states written for {done.users:,} users; the others were up to date"
        + (f"; {done.damaged:,} users are damaged and left out" if done.damaged else "")
    )
    names = f"--run {quote(str(run))} --index {quote(str(index))}"
    print(f"Next: limerank serve {names} --store {quote(opened.address)}")
