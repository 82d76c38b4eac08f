"""``limerank settings``: the reference of settings."""

from __future__ import annotations

from typing import Annotated

import typer


def settings(
    topic: Annotated[
        str,
        typer.Argument(
            help="training, models, the name of a model, tune, dataset, refresh or server.",
            show_default="all",
        ),
    ] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page of the documentation.")
    ] = False,
) -> None:
    """List all settings: default, possible values and meaning.

    Examples:

        limerank settings lime-mha

        limerank settings refresh

        limerank settings server
    """
    from limerank.cli import reference

    if markdown:
        print(reference.markdown(), end="")
        return
    from rich.console import Console

    console = Console()
    for section in reference.sections(topic):
        console.print(section.text.replace("`", ""), highlight=False, markup=False)
        console.print(reference.listing(section))
