"""``limerank refresh``: one cycle of the daily loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Quiet

INTERRUPTED = "run the same command again to continue the cycle; what is live did not change"
PUBLISHED = ("published", "rolling out")
REFUSED = 3
"""Exit status where the new model was refused."""


def refresh(
    config: Annotated[Path, typer.Argument(help="TOML file of the daily loop.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what became of the cycle as JSON.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Learn the newest logs: extend the dataset, train from the live model, judge, publish.

    One cycle: prepare the dataset (the first time in full, later only the new files), check its new
    part, train (the first time from scratch, later from the live model), measure the new and the
    live model on the newest data, which neither has seen, and build an index. The new model goes
    live only if it passes the gate; else the old one stays, the reasons are printed and recorded,
    and the exit status is 3. Where the log has nothing new, nothing happens.

    With [publish], a new model goes to a share of the users first. While a rollout lasts, the
    command trains nothing: it decides the rollout and goes on, or says what is missing. limerank
    promote and limerank rollback end a rollout at any time.

    The same command continues a cycle that failed or was killed; a step that was done is not
    repeated. Start it once a day, from cron, a systemd timer or a Kubernetes CronJob.

    A configuration:

        home = "live"                 # datasets, runs, indexes; home/live links to what is live

        description = "shop.toml"     # what limerank prepare reads: files = ["logs/*.parquet"]

        model = "lime-mha"

        window = "90d"                # drop older events

        [export]                      # where the logs are those of a server

        store = "events.db"

        folder = "logs"

        since = "2026-11-28"          # the first day that other files in it do not contain

        [publish]                     # without it, a new model goes live for all users

        share = 0.1                   # a tenth of the users gets it first, as the arm "new"

        to = "s3://shop/live"         # what is live is published there for limerank pull

        decide = "ab"                 # the next cycle decides by what they did; or "person"

    Serve what is live: limerank serve --run live/live/run --index live/live/index --watch
    live/live --store events.db

    Example:

        limerank refresh refresh.toml
    """
    import json

    from limerank.refresh.config import load_config
    from limerank.refresh.cycle import refresh as run

    say = (lambda line: None) if quiet or as_json else print
    settings = load_config(config)
    entry = run(settings, say=say, quiet=quiet or as_json)
    if as_json:
        print(json.dumps(None if entry is None else entry.to_dict()))
    if entry is not None and entry.outcome in PUBLISHED and not (quiet or as_json):
        live = settings.home / "live"
        print(
            f"Serve what is live: limerank serve --run {live}/run --index {live}/index "
            f"--watch {live} --store events.db"
        )
    if entry is not None and entry.outcome == "refused":
        raise typer.Exit(REFUSED)
