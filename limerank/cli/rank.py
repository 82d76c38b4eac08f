"""``limerank rank``: ranked items for one user or many."""

from __future__ import annotations

import json
import time as clock
from pathlib import Path
from typing import Annotated, Any

import typer

from limerank.cli.options import (
    Data,
    Join,
    On,
    Overwrite,
    PartOption,
    Parts,
    Quiet,
    Retries,
    ids,
    run_on,
)
from limerank.cli.options import candidates as read_candidates
from limerank.errors import SpecError
from limerank.parts import parse_part

INTERRUPTED = "run the same command again to resume the output of --all-users or --users"


def rank(
    run: Annotated[Path, typer.Option(help="A run folder.")],
    index: Annotated[Path, typer.Option(help="The index of the run.")],
    user: Annotated[
        str | None, typer.Option(help="User id; the history comes from the dataset.")
    ] = None,
    history: Annotated[
        str | None,
        typer.Option(help="History of an anonymous user: item ids a,b,c, oldest first."),
    ] = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Rank for every user of the dataset, into --out.")
    ] = False,
    users: Annotated[
        str | None,
        typer.Option(help="Rank for these users (a,b,c or @FILE, one per line), into --out."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --all-users or --users: Parquet file, or CSV if the name ends in .csv."
        ),
    ] = None,
    overwrite: Overwrite = False,
    part: PartOption = None,
    join: Join = False,
    on: On = None,
    parts: Parts = 16,
    retries: Retries = 3,
    k: Annotated[int, typer.Option("-k", help="Number of items per user.")] = 20,
    candidates: Annotated[
        str | None,
        typer.Option(
            help="Rank only these items: ids a,b,c, or @FILE with an id per line, or with a JSON "
            'object that has values of impression features: {"item": 7, "price": 12.5}.'
        ),
    ] = None,
    skip_unknown: Annotated[
        bool,
        typer.Option(
            "--skip-unknown", help="With --candidates: ignore ids that are not in the index."
        ),
    ] = False,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            help="Filter, boosts, pins, limits per category and diversity: a .toml file, or TOML "
            "such as 'per = {category = 2}'. Repeatable; see docs/ranking.md."
        ),
    ] = None,
    item_table: Annotated[
        Path | None,
        typer.Option(
            "--items",
            help="Item table (CSV, TSV or Parquet) with the features that rules name.",
            show_default="the one that the dataset was prepared from",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which events of the history raised each item.")
    ] = False,
    seen: Annotated[
        bool, typer.Option("--seen/--no-seen", help="Include or exclude items of the history.")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="Time of the request: 2026-11-01T12:00 (UTC) or milliseconds since 1970. Later "
            "events are ignored.",
            show_default="the end of the log",
        ),
    ] = None,
    scorer: Annotated[
        str,
        typer.Option(
            help="auto, native (C++, 8-bit), quantised (the same in torch), or model (float32)."
        ),
    ] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of the native scorer.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    data: Data = None,
    quiet: Quiet = False,
) -> None:
    """Rank the catalogue, or given candidates, for one user; or the catalogue for many users.

    For one user (--user or --history) the items are printed. For many (--all-users or --users) they
    are written to --out, with the columns user, rank, item, value and one per task. Run the same
    command again to resume an interrupted output. With --rules, users are ranked one after the
    other.

    Many users are ranked in parts, by any number of processes and machines that share the folder of
    --out: each calls the command with --part K/N, and the same command with --join ends the job.
    The file is, byte for byte, the one that a single process writes. What is complete is not
    computed again.

    Examples:

        limerank rank --run runs/mine --index index/mine --user 17 -k 20 --explain

        limerank rank --run runs/mine --index index/mine --user 17 --rules 'per = {brand = 2}'

        limerank rank --run runs/mine --index index/mine --all-users -k 100 --out recs.parquet

        seq 16 | xargs -I K limerank rank --run runs/mine --index index/mine --all-users
        --out recs.parquet --part K/16

        limerank rank --run runs/mine --index index/mine --all-users --out recs.parquet --join
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
        if on is not None and (part is not None or join):
            raise SpecError("--on computes all parts and joins them: leave out --part and --join")
        if part is not None and (join or overwrite):
            raise SpecError(
                "--part computes a part of the file and does not write it: leave out "
                f"{'--join' if join else '--overwrite, which goes with --join'}"
            )
    else:
        if part is not None or join or on is not None:
            raise SpecError("--part, --join and --on go with --all-users or --users")
        if out is not None or overwrite:
            raise SpecError("--out and --overwrite go with --all-users or --users")
        if skip_unknown and candidates is None:
            raise SpecError("--skip-unknown goes with --candidates")
    mine = None if part is None else parse_part(part)
    chosen = None if users is None else ids(users)
    items = None if history is None else ids(history)
    only = None if candidates is None else read_candidates(candidates)

    from limerank.files import TABLE_ENDINGS, check_output
    from limerank.ranking.recommender import Recommender
    from limerank.ranking.rules import read_rules

    if out is not None:
        check_output(out, TABLE_ENDINGS)
    checked = read_rules(*rules) if rules else None
    recommender = Recommender(
        run,
        index,
        data,
        scorer=scorer,  # type: ignore[arg-type]  # Recommender checks the text
        threads=threads,
        items=item_table,
    )
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
            rules=checked,
        )
        print(json.dumps(ranking.to_dict(), indent=2) if as_json else ranking.text())
        return
    from limerank.ranking.bulk import join_ranked, rank_all, rank_part

    started = clock.perf_counter()
    of_users = (recommender, out)
    given: dict[str, Any] = {"users": chosen, "k": k, "exclude_seen": not seen}
    given |= {"time": time, "rules": checked}
    if mine is not None:
        ranked = rank_part(*of_users, mine, **given, quiet=quiet)
        print(f"{out}: part {mine}, {ranked:,} users are ranked; --join writes the file")
        return
    if on is not None:
        if out.exists() and not overwrite:  # before any work is done
            raise SpecError(f"{out} already exists; pass --overwrite or choose another file")
        job = {"command": "rank", "run": run, "index": index, "data": data, "items": item_table}
        job |= {"scorer": scorer, "threads": threads, "out": out, **given}
        if checked is not None:
            job["rules"] = checked.model_dump(mode="json", by_alias=True, exclude_none=True)
        run_on(on, job, parts, retries, quiet)
    if join or on is not None:
        print(join_ranked(*of_users, **given, overwrite=overwrite).text())
        return
    done = rank_all(*of_users, **given, overwrite=overwrite, quiet=quiet)
    seconds = clock.perf_counter() - started
    print(
        f"{out}: the best {k} of {len(recommender.index):,} items for {done.users:,} users, "
        f"{done.rows:,} rows in {seconds:.1f} s "
        f"(scorer {recommender.scorer.name}, {recommender.ranker.user_stage})"
    )
