"""``limerank rollback``: make the model live that was live before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = "run the same command again"


def rollback(
    config: Annotated[Path, typer.Argument(help="TOML file of the daily loop.")],
) -> None:
    """Make the model and the index live that were live before the last published cycle.

    During a rollout, it ends the rollout: all users get the live model. A server that watches the
    link loads the change within seconds. The next cycle starts from what is live.

    Example:

        limerank rollback refresh.toml
    """
    from limerank.refresh.config import load_config
    from limerank.refresh.cycle import roll_back

    settings = load_config(config)
    left, found = roll_back(settings.home, settings.publish.to)
    print(f"cycle {found} is live for all users, cycle {left} is not")
