"""The page of costs on paper: tables over items and users, the assumptions, the measured values."""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from pathlib import Path

from benchmarks.cost_inputs import Assumptions, Measured
from benchmarks.cost_model import MOST_ROWS, Costs
from benchmarks.tables import COLOURS, DOCS, GREY, Row, machines, table

ITEMS = (1e6, 1e7, 1e8, 1e9)
USERS = (1e6, 1e7, 1e8, 1e9)
TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def page(costs: Costs, found: list[Row], docs: Path | None = DOCS) -> str:
    """The page; its plot goes to ``docs``, nowhere when None."""
    a = costs.assumptions
    lines = [
        "# Costs on paper",
        "",
        "How many machines do many items and many users need? Nothing of this was measured at its",
        "scale: this page is arithmetic on measured rows and on assumptions, both listed below.",
        "Take it as the order of magnitude, and put in your own numbers:",
        "`python -m benchmarks.costs --set cores=32` prints the page with them.",
        "",
        *conclusion(costs),
    ]
    if docs is not None:
        plot(costs, docs / "costs.svg")
        lines += ["", "![Machines by items](costs.svg)"]
    for title, part in (
        ("The index", index(costs)),
        ("The full catalogue in every request", catalogue(costs)),
        ("Candidates of a retriever", candidates(costs)),
        ("Fan-out to shards", fan_out(costs)),
        ("States of users", states(costs)),
        ("The event store", store(costs)),
        ("Training", training(costs)),
        ("Prepare", prepare(costs)),
        ("Bulk ranking", bulk(costs)),
        ("Assumptions", assumptions(a)),
        ("Measured", sources(costs.measured)),
    ):
        lines += ["", f"## {title}", "", *part]
    return "\n".join([*filled(lines), "", *machines(found)])


def filled(lines: list[str]) -> list[str]:
    """The lines, with those of each paragraph filled up to 100 characters."""
    groups = itertools.groupby(lines, lambda line: line[:1] in ("", "|", "#", "!"))
    return [
        line
        for as_is, group in groups
        for line in (group if as_is else textwrap.wrap(" ".join(group), 100))
    ]


def conclusion(costs: Costs) -> list[str]:
    """Where ranking the full catalogue stops making sense."""
    a, m = costs.assumptions, costs.measured
    body = [
        [
            short(users),
            f"{costs.peak_requests(users):,.0f}",
            f"{short(costs.most_items(users, m.scan_large))} to "
            f"{short(costs.most_items(users, m.scan))}",
            counted(costs.candidate_machines(users)),
        ]
        for users in USERS
    ]
    return [
        "**Ranking the full catalogue stops making sense where it needs",
        f"{a.machines_limit:,.0f} machines.** Which catalogue that is depends on the number of",
        "users. Beyond it, a retriever",
        "stands before limerank: it finds some candidates, and limerank ranks",
        f"{a.candidates:,.0f} of",
        "them.",
        "",
        *table(
            [
                "users",
                "requests/s at the peak",
                f"items that {a.machines_limit:,.0f} machines rank in full",
                f"machines for {a.candidates:,.0f} candidates",
            ],
            body,
        ),
        "",
        "A range has two ends: the first from a complete ranking of ten million items, the second",
        "from the scorer alone. In a catalogue of",
        f"{short(costs.equal_items)} items the scan takes as long as all else of a request:",
        "below that a retriever saves less than half of the processor time, less its own.",
    ]


def index(costs: Costs) -> list[str]:
    m, a = costs.measured, costs.assumptions
    body = [
        [
            short(items),
            size(items * m.item_bytes),
            size(items * costs.scanned_bytes),
            size(items * costs.resident_bytes),
            f"{items / m.encoded:,.0f}",
            f"{costs.build_seconds(items):,.1f}",
            f"{costs.copy_seconds(items):,.1f}",
        ]
        for items in ITEMS
    ]
    return [
        f"LIME-MHA, width 64, 32 links. Built in parts on {a.index_machines:,.0f} machines;",
        "joining",
        "on one machine is not counted. An index has at most 2,147,483,647 rows.",
        "",
        *table(
            [
                "items",
                "index",
                "scanned",
                "in memory",
                "core seconds",
                "seconds to build",
                "seconds to copy",
            ],
            body,
        ),
    ]


def catalogue(costs: Costs) -> list[str]:
    m = costs.measured
    body = [
        [
            short(items),
            between(items * m.scan, items * m.scan_large, "{:,.3g}"),
            *(
                between(
                    costs.scan_machines(items, users, m.scan),
                    costs.scan_machines(items, users, m.scan_large),
                )
                for users in USERS
            ),
        ]
        for items in ITEMS
    ]
    return [
        "Machines for the requests of the peak: what processors, the bandwidth of the memory",
        "and its",
        "size ask for, whichever is most. Updates of states and the front are not in it.",
        "",
        *table(
            ["items", "core seconds a request", *(f"{short(users)} users" for users in USERS)], body
        ),
    ]


def candidates(costs: Costs) -> list[str]:
    a = costs.assumptions
    most = min(a.memory_gb * a.memory_used * 1e9 / costs.resident_bytes, MOST_ROWS)
    body = [
        [
            short(users),
            f"{costs.peak_requests(users):,.0f}",
            f"{costs.peak_requests(users) * costs.request_seconds:,.1f}",
            counted(costs.candidate_machines(users)),
        ]
        for users in USERS
    ]
    return [
        f"A request ranks {a.candidates:,.0f} candidates and adds an event to its user's state:",
        f"{1e3 * costs.request_seconds:.2f} core milliseconds, for any number of items. The",
        "retriever",
        "is not in it. Each machine maps the full index, and needs all but the vectors in memory:",
        f"that is at most {short(most)} items on a machine of {a.memory_gb:,.0f} GB.",
        "",
        *table(["users", "requests/s at the peak", "cores", "machines"], body),
    ]


def fan_out(costs: Costs) -> list[str]:
    m, a = costs.measured, costs.assumptions
    body = []
    for items in ITEMS:
        count = costs.shards(items)
        body.append(
            [
                short(items),
                f"{count:,}",
                f"{1e3 * items / count * m.scan:.1f}",
                size(count * m.asked_bytes),
                size(count * m.answered_bytes),
                f"{1e3 * costs.front_seconds(count):,.1f}",
            ]
        )
    return [
        "A request for the best 100 of the full catalogue, in shards that one core scans in",
        f"{a.shard_ms:g} ms. Shards shorten a request; they do not save processor time.",
        "Measured with",
        "up to four shards on one machine.",
        "",
        *table(
            [
                "items",
                "shards",
                "ms a shard",
                "bytes asked",
                "bytes answered",
                "core ms of the front",
            ],
            body,
        ),
    ]


def states(costs: Costs) -> list[str]:
    a = costs.assumptions
    body = [
        [
            short(users),
            size(users * costs.state_bytes),
            counted(costs.by_memory(a.copies * users * costs.state_bytes)),
            f"{costs.peak_requests(users) * costs.update_seconds:,.1f}",
        ]
        for users in USERS
    ]
    return [
        f"Streams of users with {a.stored_events:,.0f} stored events:",
        f"{size(costs.state_bytes)} each, all of them in memory, with copies.",
        "A stream grows with the items that its user has seen. One update a request at the peak.",
        "",
        *table(["users", "states", "machines", "cores that update them"], body),
    ]


def store(costs: Costs) -> list[str]:
    m, a = costs.measured, costs.assumptions
    body = [
        [
            short(users),
            f"{costs.peak_events(users):,.0f}",
            counted(costs.primaries(users)),
            size(costs.stored(users, m.valkey_event)),
            counted(costs.by_memory(a.copies * costs.stored(users, m.valkey_event))),
            size(costs.stored(users, m.sqlite_event)),
        ]
        for users in USERS
    ]
    return [
        f"{a.stored_events:,.0f} events of each user. A Valkey cluster needs primaries for the",
        "writes",
        "of the peak, and memory for all stored events, with copies. An SQLite store is for the",
        "servers of one machine.",
        "",
        *table(
            [
                "users",
                "events/s at the peak",
                "primaries",
                "Valkey: memory",
                "machines",
                "SQLite: disk",
            ],
            body,
        ),
    ]


def training(costs: Costs) -> list[str]:
    m, a = costs.measured, costs.assumptions
    body = []
    for users in USERS:
        day = costs.impressions(users)
        body.append(
            [
                short(users),
                short(day),
                f"{day / m.trained_mha / 3600:,.1f}",
                counted(costs.training_machines(users, m.trained_mha)),
                f"{day / m.trained_xor / 3600:,.1f}",
                counted(costs.training_machines(users, m.trained_xor)),
                counted(costs.training_network(users)),
            ]
        )
    tables = [
        [
            short(items),
            size(costs.table_bytes(items)),
            counted(costs.by_memory(costs.table_bytes(items))),
        ]
        for items in ITEMS
    ]
    return [
        f"One pass over the impressions of a day, within {a.job_hours:g} hours, in float32. A",
        "sharded",
        f"table sends at most {size(costs.step_bytes)} for an impression; the last column says",
        "how many",
        "machines have the network for that. The number of machines is the larger one, where more",
        "than one is needed. Efficiency was measured with two processes on one machine.",
        "",
        *table(
            [
                "users",
                "impressions",
                "LIME-MHA: core hours",
                "machines",
                "LIME-XOR: core hours",
                "machines",
                "machines for the network",
            ],
            body,
        ),
        "",
        "Embeddings of item ids, in a sharded table:",
        "",
        *table(["items", "table and optimiser", "machines"], tables),
    ]


def prepare(costs: Costs) -> list[str]:
    m, a = costs.measured, costs.assumptions
    body = []
    for users in USERS:
        found = costs.log_rows(users)
        part = 3600 * a.job_hours * m.prepared_alone / found
        body.append(
            [
                short(users),
                short(found),
                f"{found / m.prepared / 3600:,.2f}",
                f"{found / m.prepared_alone / 3600:,.2f}",
                "all" if part >= 1 else f"{100 * part:.2g} %",
            ]
        )
    return [
        "The impressions and events of a day, from Parquet with integer ids. `limerank prepare` is",
        "one process: the last column says which part of a day it prepares in",
        f"{a.job_hours:g} hours. Where that is not all of it, train on a sample of the users.",
        "",
        *table(["users", "rows in a day", "core hours", "hours of one process", "part"], body),
    ]


def bulk(costs: Costs) -> list[str]:
    body = [
        [
            short(users),
            *(
                f"{users * costs.bulk_seconds(items) / 3600:,.0f} "
                f"({counted(costs.by_job(users * costs.bulk_seconds(items)))})"
                for items in ITEMS
            ),
        ]
        for users in USERS
    ]
    return [
        "Core hours for the best 100 of the full catalogue for every user; in brackets the",
        f"machines that do it within {costs.assumptions.job_hours:g} hours.",
        "",
        *table(["users", *(f"{short(items)} items" for items in ITEMS)], body),
    ]


def assumptions(a: Assumptions) -> list[str]:
    body = []
    for field in dataclasses.fields(a):
        value, unit, what = getattr(a, field.name), field.metadata["unit"], field.metadata["what"]
        body.append([f"`{field.name}`", f"{value:,g}", unit, what])
    return table(["name", "value", "unit", "of what"], body)


def sources(m: Measured) -> list[str]:
    """The measured values, and the pages of their rows."""
    body = [
        [
            field.metadata["what"],
            value_of(getattr(m, field.name), field.metadata["unit"]),
            f"[{field.metadata['bench']}]({field.metadata['bench']}.md)",
        ]
        for field in dataclasses.fields(m)
    ]
    return [
        "Values between and beyond two measured sizes lie on the line through both.",
        "",
        *table(["what", "value", "rows"], body),
    ]


def value_of(value: float, kind: str) -> str:
    """A measured value with its unit: of seconds "s", of bytes "B", else none."""
    if kind == "B":
        return size(value)
    if kind == "s":
        unit, name = next((one for one in TIMES if value >= one[0]), TIMES[-1])
        return f"{value / unit:.3g} {name}"
    return f"{value:,.0f}" if value >= 1e3 else f"{value:.3g}"


def short(count: float) -> str:
    """A count in words of three digits: 1.5 million."""
    for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= unit:
            return f"{float(f'{count / unit:.3g}'):g} {name}"
    return f"{count:.0f}"


def size(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit, name in UNITS:
        if count >= unit:
            return f"{float(f'{count / unit:.3g}'):g} {name}"
    return f"{count:.0f} B"


def counted(needed: float) -> str:
    """Machines: the next integer."""
    return f"{math.ceil(needed - 1e-9):,}"


def between(low: float, high: float, form: str = "") -> str:
    """Two ends of a range, or one number where they are equal; machines where no form is given."""
    first, second = (form.format(one) if form else counted(one) for one in (low, high))
    return first if first == second else f"{first} to {second}"


def plot(costs: Costs, path: Path) -> None:
    """Machines by items, for each number of users: the full catalogue, and candidates dashed."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    items = np.geomspace(ITEMS[0], ITEMS[-1], 61)
    scan, colours = costs.measured.scan, [*COLOURS.values()]
    for users, colour in zip(USERS, colours, strict=True):
        needed = [costs.scan_machines(one, users, scan) for one in items]
        axes.plot(items, needed, color=colour, label=f"{short(users)} users")
        axes.axhline(costs.candidate_machines(users), color=colour, ls="--", lw=0.9)
    axes.axhline(costs.assumptions.machines_limit, color=GREY, lw=3, alpha=0.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"items (dashed: {costs.assumptions.candidates:,.0f} candidates; grey: limit)")
    axes.set_ylabel("machines")
    axes.legend(frameon=False, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
