"""The page on latency: goals, and tables over candidates, history, width, links and batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.latency_goals import goals
from benchmarks.latency_plot import plot
from benchmarks.latency_rows import LIMES, ORDER, at_point, on_point, times_of
from benchmarks.tables import DOCS, Row, grouped, machines, table


def latency(found: list[Row], docs: Path | None = DOCS) -> str:
    """The page; plots go to ``docs``, nowhere when None."""
    lines = [
        "# Latency of full requests",
        "",
        "How long does a request take? It encodes a history of N events, scores M candidates in",
        "any order and returns the best 100; d = 64 and 32 links unless stated otherwise. Whatever",
        "a model can compute for an item alone is computed beforehand. With a `fresh` user state",
        "the request encodes the history; with a `cached` one the encoded history is available.",
        "Models took turns at each point, so that ratios compare times of the same minute; times",
        "are medians over calls. Each model was checked against its reference. On a CPU LIME is",
        "C++ (user stage and scorer), FAISS is C++, and the others are torch operations without",
        "gradients. Reproduce with `python -m benchmarks.latency`.",
        "",
        *machines(found),
    ]
    for name, part in grouped(found, where).items():
        lines += ["", f"## {name}", *section(part, name, docs)]
    return "\n".join(lines)


def where(row: Row) -> str:
    """The device and the threads of a row, as a headline."""
    case = row["case"]
    if case["device"] == "cuda":
        return f"GPU: {row['machine'].get('gpu', 'unnamed')}"
    return f"CPU, {case['threads']} thread{'s' if case['threads'] != 1 else ''}"


def section(found: list[Row], name: str, docs: Path | None) -> list[str]:
    """All rows of one device and number of threads."""
    requests = [row for row in found if row["case"]["M"] is not None]
    timed = [row for row in requests if "ms_p50" in row["metrics"]]
    left = [row for row in requests if "ms_p50" not in row["metrics"]]
    stages = [row for row in found if row["case"]["M"] is None]
    lines: list[str] = []
    if timed and docs is not None:
        file = f"latency-{name.lower().replace(': ', '-').replace(', ', '-').replace(' ', '-')}.svg"
        plot(timed, docs / file)
        lines += ["", f"![Time of a request]({file})"]
    lines += ["", "### Goals", "", *goals(timed, stages)]
    lines += ["", "### Over candidates and history", ""]
    lines += grid_table(timed, "fresh", ("N", "M"))
    lines += section_of(
        "With a cached user state", grid_table(timed, "cached", ("N", "M"), cells=None)
    )
    lines += section_of("Over the width", sweep_table(timed, "d"))
    lines += section_of("Over the links", sweep_table(timed, "links", LIMES))
    lines += section_of("Several requests at once", batch_table(timed))
    lines += section_of("LIME's user stage", stage_table(stages))
    if left:
        lines += [
            "",
            "### Skipped cases",
            "",
            "A call was expected to take too long, in seconds:",
            "",
        ]
        lines += table(
            ["model", "N", "M", "state", "expected"],
            [
                [
                    *(str(row["case"][key]) for key in ("model", "N", "M", "state")),
                    f"{row['metrics']['expected_ms'] / 1e3:,.0f}",
                ]
                for row in left
            ],
        )
    return lines


def section_of(title: str, lines: list[str]) -> list[str]:
    return ["", f"### {title}", "", *lines] if lines else []


# Tables


def milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(max(value, 1e-3))))}f}"


def grid_table(
    timed: list[Row], state: str, keys: tuple[str, str], cells: int | None = 4
) -> list[str]:
    """Milliseconds by history and candidates: every ``cells``-th power of two, or all."""
    times = times_of(timed, state)
    if not times:
        return []
    some: set[tuple[Any, Any]] = {(n, m) for _, n, m in times}
    if cells is not None:
        some = {(n, m) for n, m in some if n is None or (coarse(n) and coarse(m))}
    models = [model for model in ORDER if any(name == model for name, _, _ in times)]
    body = []
    for n, m in sorted(some, key=lambda at: (at[0] is None, at[0] or 0, at[1])):
        line = [milliseconds(times.get((model, n, m))) for model in models]
        body.append([f"{n:,}" if n is not None else "-", f"{m:,}", *line])
    return ["Milliseconds.", "", *table([*keys, *models], body)]


def coarse(size: int) -> bool:
    """Whether a table shows a size: every other power of two, 512, 32,768, and other numbers."""
    return size.bit_count() > 1 or size.bit_length() % 2 == 1 or size in (512, 32768)


def sweep_table(timed: list[Row], key: str, models: tuple[str, ...] = ORDER) -> list[str]:
    """Milliseconds over one key through the usual point, for both states."""
    cells: dict[tuple[Any, str, str], float] = {}
    for row in timed:
        case = row["case"]
        if case["model"] in models and at_point(row, key) and on_point(row) and case["N"]:
            cells[case[key], case["state"], case["model"]] = row["metrics"]["ms_p50"]
    values = sorted({value for value, _, _ in cells if value is not None})
    if len(values) < 2:
        return []
    names = [m for m in ORDER if any(name == m for _, _, name in cells)]
    body = [
        [str(value), state, *(milliseconds(cells.get((value, state, name))) for name in names)]
        for state in ("fresh", "cached")
        for value in values
    ]
    return [*table([key, "user's state", *names], body)]


def batch_table(timed: list[Row]) -> list[str]:
    """Milliseconds of a batch and, in brackets, of as many single requests."""
    single = times_of(timed, "fresh")
    cells: dict[tuple[int, int, int, str], float] = {}
    for row in timed:
        case = row["case"]
        if case["batch"] > 1 and at_point(row, "batch") and case["state"] == "fresh":
            cells[case["batch"], case["N"], case["M"], case["model"]] = row["metrics"]["ms_p50"]
    if not cells:
        return []
    models = [model for model in ORDER if any(key[3] == model for key in cells)]
    body = []
    for batch, n, m in sorted({key[:3] for key in cells}):
        line = []
        for model in models:
            alone = single.get((model, n, m))
            text = milliseconds(cells.get((batch, n, m, model)))
            line.append(f"{text} ({milliseconds(batch * alone)})" if alone else text)
        body.append([str(batch), f"{n:,}", f"{m:,}", *line])
    lines = ["Milliseconds of a batch; in brackets those of its requests one after another.", ""]
    return [*lines, *table(["requests", "N", "M", *models], body)]


def stage_table(stages: list[Row]) -> list[str]:
    body = [
        [
            row["case"]["model"],
            f"{row['case']['N']:,}",
            str(row["case"]["d"]),
            *(
                milliseconds(row["metrics"].get(f"{form}user_ms_p50"))
                for form in ("", "bf16_", "compiled_")
            ),
            f"{row['metrics']['gflops']:.1f}",
            f"{row['metrics']['peak_gflops']:.1f}",
            f"{row['metrics']['share_of_peak']:.0%}",
        ]
        for row in sorted(stages, key=lambda row: [row["case"][key] for key in ("model", "d", "N")])
    ]
    if not body:
        return []
    lines = [
        "Throughput of the stage's matrix products, and `peak`: that of a product of two matrices",
        "of 1,024 x 1,024 that took turns with them (both in GFLOP/s). Where measured, the table",
        "also has the milliseconds of forms that the package does not use: bfloat16 by autocast,",
        "and torch.compile.",
        "",
    ]
    heads = ["model", "N", "d", "ms", "bfloat16", "compiled", "GFLOP/s", "peak", "share"]
    return [*lines, *table(heads, body)]
