"""``limerank evaluate``: metrics of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from limerank.cli.options import Data, Quiet
from limerank.errors import SpecError

INTERRUPTED = "nothing was written"


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Data = None,
    split: Annotated[
        str, typer.Option(help="train, validation, test, or held-out: users outside of training.")
    ] = "test",
    history: Annotated[
        int | None,
        typer.Option(
            help="Limit histories to the latest N events; 0: features only.",
            metavar="N",
            show_default="as in training",
        ),
    ] = None,
    at_least: Annotated[
        int, typer.Option(help="Use only requests with N or more earlier events.", metavar="N")
    ] = 0,
    lists: Annotated[
        int | None,
        typer.Option(
            help="Requests with a positive to rank the full catalogue for (HR, NDCG, ...), drawn "
            "at random where there are more; 0: none.",
            metavar="N",
            show_default="all, up to 67 million pairs of request and item",
        ),
    ] = None,
    k: Annotated[
        str,
        typer.Option(
            "-k", help="First items of a list that count; several: 10,50.", metavar="K[,K...]"
        ),
    ] = "10,50",
    seen: Annotated[
        Literal["in", "out"] | None,
        typer.Option(
            help="in: lists may hold items that the user has seen; out: they may not.",
            show_default="in for a log of positives, else out",
        ),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers/--no-peers",
            help="Measure lists of most-popular, item-kNN and chance as well.",
        ),
    ] = True,
    impression_features: Annotated[
        Literal["all", "known", "none"],
        typer.Option(
            help="Impression features to use: all that the log has, those known to a ranking "
            "(without a bias such as the position), or none."
        ),
    ] = "all",
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file to write.", show_default="RUN/metrics.json, or RUN/metrics-SPLIT.json"
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Parquet or CSV file for the prediction of each impression, with user ids."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compute the metrics of a run on one split.

    Prints a table and writes all metrics, with slices, to a JSON file. Metrics are exact: nothing
    is sampled except the requests of --lists. ALARMS are reasons for not deploying the run.

    Lists of the full catalogue stand beside those of most-popular and item-kNN, which are counted
    in the training window of the dataset, and beside chance.

    Examples:

        limerank evaluate runs/mine

        limerank evaluate runs/mine --split validation --out metrics/mine.json

        limerank evaluate runs/mine -k 5,20 --seen out
    """
    from limerank.evaluation.evaluate import evaluate as measure

    result = measure(
        run,
        data=data,
        split=split,
        history=history,
        at_least=at_least,
        lists=lists,
        k=_depths(k),
        seen=seen,
        peers=peers,
        impression_features=impression_features,
        out=out,
        predictions=predictions,
        quiet=quiet,
    )
    print(f"{result.text()}\n\n{result.legend()}")


def _depths(text: str) -> list[int]:
    """Depths separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"-k is {text!r}, expected numbers such as 10 or 10,50") from None
