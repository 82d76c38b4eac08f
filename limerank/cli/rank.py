"""``limerank rank``."""

from __future__ import annotations

import json
import time as clock
from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Data, Overwrite, Quiet, ids
from limerank.errors import SpecError

INTERRUPTED = "the same command goes on with --all-users or --users where it was"


def rank(
    run: Annotated[Path, typer.Option(help="A run folder.")],
    index: Annotated[Path, typer.Option(help="The index of the run.")],
    user: Annotated[str | None, typer.Option(help="User id, for the history in the log.")] = None,
    history: Annotated[
        str | None,
        typer.Option(help="A history given here: item ids, oldest first, separated by commas."),
    ] = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Rank for every user of the log, into --out.")
    ] = False,
    users: Annotated[
        str | None, typer.Option(help="Rank for these users (commas, or @FILE), into --out.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Parquet or CSV file (by its ending) for the items of --all-users."),
    ] = None,
    overwrite: Overwrite = False,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 20,
    candidates: Annotated[
        str | None, typer.Option(help="Only these item ids (commas), or @FILE with one per line.")
    ] = None,
    skip_unknown: Annotated[
        bool,
        typer.Option("--skip-unknown", help="Leave out candidates that are not in the index."),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the events that carried each item.")
    ] = False,
    seen: Annotated[
        bool, typer.Option("--seen/--no-seen", help="Whether items of the history may be ranked.")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="When the request is made: 2026-11-01T12:00 (UTC) or milliseconds since 1970; "
            "only events before it count. The end of the log if not given.",
        ),
    ] = None,
    scorer: Annotated[
        str, typer.Option(help="auto; native or quantised (LIME, bytes), or model (float32).")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of the native scorer.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    data: Data = None,
    quiet: Quiet = False,
) -> None:
    """Rank the whole catalogue, or some candidates, for one user; or the catalogue for many users.

    One user's items are printed. With --all-users or --users the items go to a file with the
    columns user, rank, item, value and one per task: CSV where its name ends in .csv, else Parquet.
    A killed job goes on when called again.

    Examples:

        limerank rank --run runs/mine --index index/mine --user 17 -k 20 --explain

        limerank rank --run runs/mine --index index/mine --all-users -k 100 --out recs.parquet
    """
    time = int(at) if at is not None and at.removeprefix("-").isdecimal() else at
    if all_users or users is not None:
        alone = {"--user": user, "--history": history, "--candidates": candidates}
        wrong = [name for name, value in alone.items() if value is not None]
        flags = {"--explain": explain, "--json": as_json, "--skip-unknown": skip_unknown}
        wrong += [name for name, value in flags.items() if value]
        if wrong:
            raise SpecError(f"{', '.join(wrong)} is for one user, not for --all-users or --users")
        if out is None:
            raise SpecError("--all-users and --users need --out, such as --out recs.parquet")
        if all_users and users is not None:
            raise SpecError("give either --all-users or --users")
    else:
        if out is not None or overwrite:
            raise SpecError("--out and --overwrite go with --all-users or --users")
        if skip_unknown and candidates is None:
            raise SpecError("--skip-unknown goes with --candidates")
    chosen = None if users is None else ids(users)
    items = None if history is None else ids(history)
    only = None if candidates is None else ids(candidates)

    from limerank.files import TABLE_ENDINGS, check_output
    from limerank.ranking.recommender import Recommender

    if out is not None:
        check_output(out, TABLE_ENDINGS)
    recommender = Recommender(run, index, data, scorer=scorer, threads=threads)  # type: ignore[arg-type]
    if out is None:
        ranking = recommender.rank(
            user,
            k=k,
            candidates=only,
            skip_unknown=skip_unknown,
            history=items,
            exclude_seen=not seen,
            explain=k if explain else 0,
            time=time,
        )
        print(json.dumps(ranking.to_dict(), indent=2) if as_json else ranking.text())
        return
    from limerank.ranking.bulk import rank_all

    started = clock.perf_counter()
    done = rank_all(
        recommender,
        out,
        users=chosen,
        k=k,
        exclude_seen=not seen,
        time=time,
        overwrite=overwrite,
        quiet=quiet,
    )
    seconds = clock.perf_counter() - started
    print(
        f"{out}: the best {k} of {len(recommender.index):,} items for {done['users']:,} users, "
        f"{done['rows']:,} rows in {seconds:.1f} s"
    )
