"""``limerank promote``: give the model that is rolled out to all users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = "run the same command again"


def promote(
    config: Annotated[Path, typer.Argument(help="TOML file of the daily loop.")],
) -> None:
    """Give the model that is rolled out to all users.

    A rollout begins where [publish] of the daily loop has a share below 1: limerank refresh then
    gives a new model to so many of the users. A server that watches the link loads the change
    within seconds. limerank rollback ends a rollout without the new model.

    Example:

        limerank ab --store events.db --share main=0.9 --share new=0.1

        limerank promote refresh.toml
    """
    from limerank.refresh.config import load_config
    from limerank.refresh.cycle import promote as run

    settings = load_config(config)
    left, found = run(settings.home, settings.publish.to)
    print(f"cycle {found} is live for all users, in place of {left}")
