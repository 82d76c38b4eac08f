"""Histories of real servers under faults, and what failovers of their store lose."""

from __future__ import annotations

from benchmarks.tables import Row, machines, table

FAILOVERS = {
    "none": "none",
    "asynchronous": "to a replica",
    "bounded": "to a replica, bounded",
}
"""Kind of failover in a row -> its name."""
COUNTS = {
    "histories": "histories",
    "requests": "requests",
    "unclear": "without a clear answer",
    "events": "events",
    "faults": "faults",
    "compared": "facts compared",
    "violations": "violations",
}
LOSSES = {
    "failovers": "failovers",
    "events_lost_by_failovers": "events lost",
    "events_returned_by_failovers": "events of deleted users that returned",
    "items_lost_by_failovers": "changes of live items lost",
    "exposures_lost_by_failovers": "exposures lost",
}


def histories(found: list[Row]) -> str:
    """How many histories passed, and what failovers lost."""
    rows = sorted(found, key=lambda row: list(FAILOVERS).index(row["case"]["failover"]))
    replicated = [row for row in rows if row["metrics"]["failovers"]]
    lines = [
        "# Histories under faults",
        "",
        "Two or three servers and a Valkey or Redis server as real processes, under faults that a",
        "seed draws ([Reliability](../reliability.md#several-servers-under-faults)). *Events* were",
        "acknowledged. *Facts compared*: parts of answers that a checker compared with what is",
        "promised. Reproduce with `make histories`.",
        "",
        *machines(found),
        "",
        *table(
            ["failover", "seeds", "seconds each", *COUNTS.values()],
            [
                [
                    FAILOVERS[row["case"]["failover"]],
                    f"{row['metrics']['first_seed']:.0f} to {row['metrics']['last_seed']:.0f}",
                    f"{row['case']['seconds']:g}",
                    *(f"{row['metrics'].get(name, 0):,.0f}" for name in COUNTS),
                ]
                for row in rows
            ],
        ),
    ]
    if replicated:
        lines += [
            "",
            "**Failovers.** A replica that follows asynchronously loses its primary, for as many",
            "seconds as the table has, on average; then the primary is killed and the replica",
            "promoted. *Bounded*: the primary refuses writes while no replica has followed for a",
            "second (`min-replicas-to-write 1`, `min-replicas-max-lag 1`). What was acknowledged",
            "before the promotion may be lost, and is counted here; anything else is a violation.",
            "",
            *table(
                ["failover", "seconds behind", *LOSSES.values()],
                [
                    [
                        FAILOVERS[row["case"]["failover"]],
                        f"{row['metrics']['seconds_behind']:.1f}",
                        *(f"{row['metrics'].get(name, 0):,.0f}" for name in LOSSES),
                    ]
                    for row in replicated
                ],
            ),
        ]
    return "\n".join(lines)
