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
    "exports": "exports",
    "compared": "facts compared",
    "violations": "violations",
}
STORES = {"one": "one server", "cluster": "cluster"}
NETWORKS = {"proxies": "proxies", "namespaces": "namespaces"}
SLOWED = {
    "proxy": "by proxies that wait",
    "netem": "by netem",
    "tbf": "by a narrow line (tbf: the kernel of that machine has no netem)",
    "": "not at all (its kernel has neither netem nor tbf)",
}
"""What slows connections in a row -> how the page says it."""
LOSSES = {
    "failovers": "failovers",
    "events_lost_by_failovers": "events lost",
    "events_returned_by_failovers": "events of deleted users that returned",
    "items_lost_by_failovers": "changes of live items lost",
    "exposures_lost_by_failovers": "exposures lost",
}


def histories(found: list[Row]) -> str:
    """How many histories passed, and what failovers lost."""
    rows = sorted(found, key=_order)
    slowed = dict.fromkeys((row["case"]["network"], row["case"]["slowed_by"]) for row in rows)
    replicated = [row for row in rows if row["metrics"]["failovers"]]
    lines = [
        "# Histories under faults",
        "",
        "Two or three servers and a Valkey or Redis server, or a cluster of three primaries with a",
        "replica each, as real processes, under faults that a seed draws",
        "([Reliability](../reliability.md#several-servers-under-faults)). *Events* were",
        "acknowledged. *Exports* of the store were made meanwhile. *Facts compared*: parts of",
        "answers that a checker compared with what is promised. Reproduce with `make histories`.",
        "",
        "**Network.** *Namespaces*: each process has a network interface of its own, and a router",
        "between them drops what it should. *Proxies*: connections lead through proxies on one",
        "machine. Connections were slowed "
        + "; ".join(f"in {NETWORKS[name]} {SLOWED[how]}" for name, how in slowed)
        + ".",
        "",
        *machines(found),
        "",
        *table(
            ["store", "network", "failover", "seeds", "seconds each", *COUNTS.values()],
            [
                [
                    *_names(row),
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
            "second (`min-replicas-to-write 1`, `min-replicas-max-lag 1`). The servers of a",
            "cluster promote replicas themselves, also when a primary is stopped or separated from",
            "the others for more than a second. What was acknowledged before the promotion may be",
            "lost, and is counted here; anything else is a violation.",
            "",
            *table(
                ["store", "network", "failover", "seconds behind", *LOSSES.values()],
                [
                    [
                        *_names(row),
                        _behind(row),
                        *(f"{row['metrics'].get(name, 0):,.0f}" for name in LOSSES),
                    ]
                    for row in replicated
                ],
            ),
        ]
    return "\n".join(lines)


def _order(row: Row) -> tuple[int, ...]:
    case = row["case"]
    return (
        list(STORES).index(case["store"]),
        list(FAILOVERS).index(case["failover"]),
        -list(NETWORKS).index(case["network"]),
        row["metrics"]["first_seed"],
    )


def _names(row: Row) -> tuple[str, str, str]:
    """The store, the network and the failovers of a row."""
    case = row["case"]
    failover = "by its servers" if case["store"] == "cluster" else FAILOVERS[case["failover"]]
    return STORES[case["store"]], NETWORKS[case["network"]], failover


def _behind(row: Row) -> str:
    """Seconds that replicas were behind; few of a cluster's were held back before."""
    return "" if row["case"]["store"] == "cluster" else f"{row['metrics']['seconds_behind']:.1f}"
