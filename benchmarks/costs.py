"""Costs on paper: machines, bytes and seconds for up to a billion items and users, from rows.

    python -m benchmarks.costs                                   # the page, with the defaults
    python -m benchmarks.costs --set cores=32 --set requests=50  # with other assumptions

Nothing is measured here: the page is arithmetic on the rows of other benchmarks and on assumptions,
each of which has a name, a unit and a default (``--help`` lists them). ``python -m
benchmarks.report`` writes the page with the defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from benchmarks.cost_inputs import Assumptions, Measured
from benchmarks.cost_model import Costs
from benchmarks.costs_page import page
from limerank.errors import LimerankError


def main(arguments: Sequence[str] | None = None) -> None:
    listed = [
        f"  {field.name} = {field.default:g} {field.metadata['unit']}: {field.metadata['what']}"
        for field in dataclasses.fields(Assumptions)
    ]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.costs",
        description="Print the page on costs: machines, bytes and seconds, from measured rows.",
        epilog="\n".join(["assumptions:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="change an assumption; may be repeated",
    )
    given = parser.parse_args(arguments)
    try:
        costs = Costs(Measured.read(), Assumptions.of(given.set))
    except LimerankError as error:
        sys.exit(f"error: {error}")
    print(page(costs, Measured.sources(), None))


if __name__ == "__main__":
    main()
