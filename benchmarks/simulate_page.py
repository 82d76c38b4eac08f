"""Seeded histories of servers, their store and clients, each answer compared with a plain model."""

from __future__ import annotations

from benchmarks.tables import Row, machines, table

COLUMNS = {
    "histories": "histories",
    "operations": "operations",
    "faults": "faulty round trips",
    "turns": "turns",
    "answers": "values compared",
    "failures": "failures",
}


def simulate(found: list[Row]) -> str:
    """How many histories passed, and what they contain."""
    lines = [
        "# Simulation",
        "",
        "Histories of operations on one or two servers that share a store, drawn from a seed",
        "([Reliability](../reliability.md#simulation)). An operation runs until it asks the store;",
        "then a turn begins, in which any other may go on. *Values compared* are answers, or parts",
        "of them, that were compared with the plain model. Reproduce with `make simulate`.",
        "",
        *machines(found),
        "",
        *table(
            ["seeds", *COLUMNS.values(), "CPU seconds per history"],
            [
                [
                    f"{row['metrics']['first_seed']:,} to {row['metrics']['last_seed']:,}",
                    *(f"{row['metrics'][name]:,.0f}" for name in COLUMNS),
                    f"{row['metrics']['cpu_seconds'] / row['metrics']['histories']:.2f}",
                ]
                for row in found
            ],
        ),
    ]
    return "\n".join(lines)
