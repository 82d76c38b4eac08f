"""``limerank report``: an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = "nothing was written"


def report(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders.")],
    out: Annotated[Path, typer.Option(help="HTML file to write (.html).")],
    index: Annotated[
        Path | None, typer.Option(help="Index of one of the runs, to show ranked items.")
    ] = None,
) -> None:
    """Write an HTML page that compares evaluated runs: metrics, slices, calibration, training.

    All runs must be on one dataset. The page is a single file and loads nothing from elsewhere.

    Example:

        limerank report runs/lime runs/two-tower --index index/lime --out report.html
    """
    from limerank.report.page import write_report

    write_report(out, runs=runs, index=index)
    print(f"{out} written")
