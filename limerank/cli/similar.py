"""``limerank similar``: the items that are most like a given one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import ids
from limerank.errors import SpecError

INTERRUPTED = "nothing was written"


def similar(
    index: Annotated[Path, typer.Argument(help="An index.")],
    items: Annotated[list[str], typer.Argument(metavar="ITEM...", help="Ids of items.")],
    k: Annotated[int, typer.Option("-k", help="Number of similar items.")] = 10,
    run: Annotated[
        Path | None,
        typer.Option(help="The run of the index; needed for item-knn and for --filter."),
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(
            help="Only items with these features, as TOML: 'category = [\"Tents\"]', "
            "'price = {from = 10, to = 50}'."
        ),
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Ids to leave out: a,b,c or @FILE, one per line.")
    ] = None,
    item_table: Annotated[
        Path | None,
        typer.Option(
            "--items",
            help="Item table (CSV, TSV or Parquet) with the features of --filter.",
            show_default="the one that the dataset was prepared from",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print the items that are most similar to each of some items, by what the model knows of them.

    The index alone is enough for models that learn. Similarities are cosines, from -1 to 1; those
    of item-knn are shares of common users.

    Examples:

        limerank similar index/mine 204 -k 5

        limerank similar index/mine 204 --run runs/mine --filter 'category = ["Tents"]'
    """
    if filter is not None and run is None:
        raise SpecError("--filter needs --run, whose description names the features")
    if item_table is not None and filter is None:
        raise SpecError("--items goes with --filter")
    excluded = [] if exclude is None else ids(exclude)

    if run is not None:
        from limerank.ranking.recommender import Recommender
        from limerank.ranking.rules import read_rules

        recommender = Recommender(run, index, items=item_table)
        conditions = None
        if filter is not None:
            conditions = read_rules(f"[filter]\n{filter}").filter
        found = [
            recommender.similar(item, k, filter=conditions, exclude=excluded) for item in items
        ]
    else:
        from limerank.index import Index
        from limerank.ranking.alike import alike
        from limerank.ranking.similar import similar_items

        opened = Index.open(index)
        opened.expect_all()
        of = alike(opened)
        found = [similar_items(of, item, k, exclude=excluded) for item in items]
    if as_json:
        print(json.dumps([one.to_dict() for one in found], indent=2))
    else:
        print("\n\n".join(one.text() for one in found))
