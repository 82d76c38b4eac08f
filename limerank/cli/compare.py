"""``limerank compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Data, Quiet

INTERRUPTED = "nothing was written"


def compare(
    ours: Annotated[list[Path], typer.Argument(help="Run folders of one model, one per seed.")],
    against: Annotated[
        list[Path], typer.Option("--with", help="A run of the other model; as many of them.")
    ],
    data: Data = None,
    split: Annotated[
        str, typer.Option(help="train, validation, test or held-out (users never trained on).")
    ] = "test",
    task: Annotated[str | None, typer.Option(help="A binary task; the first by default.")] = None,
    resamples: Annotated[int, typer.Option(help="Draws of users.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """How sure a difference in AUC is: bounds from a paired bootstrap over users.

    Example: limerank compare runs/lime --with runs/two-tower
    """
    import json

    from limerank.evaluation.compare import compare as run
    from limerank.evaluation.compare import comparison_text

    result = run(ours, against, data=data, split=split, task=task, resamples=resamples, quiet=quiet)
    print(json.dumps(result) if as_json else comparison_text(result))
