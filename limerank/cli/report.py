"""``limerank report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = "nothing was written"


def report(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    index: Annotated[Path | None, typer.Option(help="Index of one of the runs.")] = None,
) -> None:
    """Write a one-page HTML report of one or several evaluated runs."""
    from limerank.report.page import write_report

    write_report(out, runs=runs, index=index)
    print(f"{out} written")
