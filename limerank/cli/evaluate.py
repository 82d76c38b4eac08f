"""``limerank evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Data, Quiet

INTERRUPTED = "nothing was written"


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Data = None,
    split: Annotated[
        str, typer.Option(help="train, validation, test or held-out (users never trained on).")
    ] = "test",
    history: Annotated[
        int | None,
        typer.Option(help="See only so many of a user's latest events; 0: features alone."),
    ] = None,
    at_least: Annotated[
        int, typer.Option(help="Only requests with at least so many events before them.")
    ] = 0,
    lists: Annotated[
        int,
        typer.Option(help="Rank the whole catalogue at so many requests for NDCG, HR and MRR."),
    ] = 2000,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write instead of RUN/metrics.json (or metrics-SPLIT...)."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Parquet or CSV file for what was said of each impression, users named."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure a run exactly and print a table.

    All of it goes to metrics.json in the run folder, of another split to metrics-SPLIT.json.

    Example: limerank evaluate runs/mine --split validation --out metrics/mine.json
    """
    from limerank.evaluation.evaluate import evaluate as measure
    from limerank.evaluation.evaluate import table_text

    result = measure(
        run,
        data=data,
        split=split,
        history=history,
        at_least=at_least,
        lists=lists,
        out=out,
        predictions=predictions,
        quiet=quiet,
    )
    print(table_text(result))
