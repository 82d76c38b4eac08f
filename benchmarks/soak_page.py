"""A server with everything going on for hours: memory and latency of each part of the time."""

from __future__ import annotations

import statistics

from benchmarks.soak import WARM, verdict
from benchmarks.tables import Row, grouped, machines, table

PARTS = 24
"""Lines of a run, at most."""


def soak(found: list[Row]) -> str:
    """The runs, the longest first: a verdict and a table of each."""
    lines = [
        "# Soak",
        "",
        "One server and the daily loop, with days of some minutes, on the same cores: rankings",
        "(most logged as shown), events, explanations, live items, deleted users, exports,",
        "trainings, published models and reloads. Memory includes mapped files (indexes,",
        "libraries), own memory does not. Reproduce with `make soak`.",
        "",
        *machines(found),
    ]
    runs = grouped(found, lambda row: str({**row["case"], "minute": None}))
    for of in sorted(runs.values(), key=len, reverse=True):
        case = of[0]["case"]
        of = sorted(of, key=lambda row: row["case"]["minute"])
        size = -(-len(of) // PARTS)
        parts = [of[at : at + size] for at in range(0, len(of), size)]
        lines += [
            "",
            f"## {len(of)} minutes",
            "",
            f"{case['users']:,} users, {case['items']:,} items, {case['rate']:g} requests a",
            f"second, a day of the loop every {case['day']:g} minutes. {verdict(of)['text']}"
            f"{_growth(of)}",
            "",
            *table(
                ["minutes", "requests", "failed", "memory, MiB", "own, MiB", "threads", "files",
                 "store, MiB", "published", "p50, ms", "p99, ms"],
                [_line(part) for part in parts],
            ),
        ]  # fmt: skip
    return "\n".join(lines)


def _growth(of: list[Row]) -> str:
    """How own memory went on in both halves of a run, when caches were full."""
    own = [row["metrics"].get("own_mib") for row in of[WARM:]]
    if None in own or len(own) < 2:
        return ""
    first, half, last = own[0], own[len(own) // 2], own[-1]
    middle = len(of) // 2
    loads = [
        sum(row["metrics"]["published"] for row in part) for part in (of[:middle], of[middle:])
    ]
    return (
        f" Own memory changed by {half - first:+.1f} MiB in the first half, with {loads[0]} loaded "
        f"models, and by {last - half:+.1f} MiB in the second, with {loads[1]}."
    )


def _line(part: list[Row]) -> list[str]:
    first, last = part[0]["case"]["minute"], part[-1]["case"]["minute"]
    metrics = [row["metrics"] for row in part]

    def total(name: str) -> str:
        return f"{sum(one[name] for one in metrics):,}"

    def middle(name: str, form: str) -> str:
        return form.format(statistics.median(one[name] for one in metrics))

    return [
        f"{first}" if first == last else f"{first} to {last}",
        total("requests"),
        total("failed"),
        middle("rss_mib", "{:,.0f}"),
        middle("own_mib", "{:,.0f}") if all("own_mib" in one for one in metrics) else "-",
        middle("threads", "{:.0f}"),
        middle("files", "{:.0f}"),
        middle("store_mib", "{:.1f}"),
        total("published"),
        middle("ms_p50", "{:.1f}"),
        middle("ms_p99", "{:.1f}"),
    ]
