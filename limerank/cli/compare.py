"""``limerank compare``: confidence bounds of a difference in AUC, or in NDCG@10 of lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Data, Quiet

INTERRUPTED = "nothing was written"


def compare(
    ours: Annotated[
        list[Path], typer.Argument(help="Run folders of the first model, one per seed.")
    ],
    against: Annotated[
        list[Path],
        typer.Option("--with", help="Run folder of the second model. Repeat it: one per seed."),
    ],
    data: Data = None,
    split: Annotated[
        str, typer.Option(help="train, validation, test, or held-out: users outside of training.")
    ] = "test",
    task: Annotated[
        str | None, typer.Option(help="A binary task.", show_default="the first one")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="auc, or ndcg@10 of lists of the full catalogue.",
            show_default="auc where the log has a binary task",
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Number of bootstrap samples.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare two models on the same requests, with 95 % bounds over users.

    The metric is the AUC of a binary task, in all and by slice; in a log of positives it is NDCG@10
    of ranked lists. The models may be of different days: yesterday's and today's, say, on today's
    dataset.

    Give the runs of both models in the same order of seeds.

    Examples:

        limerank compare runs/lime --with runs/two-tower

        limerank compare runs/today --with runs/yesterday --data data/today

        limerank compare runs/lime-0 runs/lime-1 --with runs/din-0 --with runs/din-1
    """
    import json

    from limerank.evaluation.compare import compare as run

    result = run(
        ours,
        against,
        data=data,
        split=split,
        task=task,
        metric=metric,
        resamples=resamples,
        quiet=quiet,
    )
    print(json.dumps(result.to_dict()) if as_json else f"{result.text()}\n\n{result.legend()}")
