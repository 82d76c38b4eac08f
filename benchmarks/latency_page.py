"""The page on latency: plots over candidates, history, width and links, and what the ratios are."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import COLOURS, DOCS, GREY, Row, grouped, machines, table

ORDER = ("two-tower", "lime-mha", "lime-xor", "mha", "hstu", "faiss-flat")
LIMES = ("lime-mha", "lime-xor")
POINT = {"N": 1024, "M": 512, "d": 64, "batch": 1}
"""Where the sweeps of everything but the grid were made, unless the rows say otherwise."""
FLAT_FROM, FLAT_TO, FLAT = 64, 4096, 2.0
LINEAR = (4096, 16384, 4.5)
PEAK_FROM, PEAK = 1024, 0.5
Times = dict[tuple[str, int, int], float]
"""(model, N, M) -> milliseconds of a whole request."""


def latency(found: list[Row], docs: Path | None = DOCS) -> str:
    """The page; plots go to ``docs``, nowhere when None."""
    lines = [
        "# Latency of whole requests",
        "",
        "User stage, scoring and the best 100, for a history of N events and M candidates in any",
        "order; d = 64 and 32 links unless said otherwise. What a model can know of items is",
        "computed beforehand; with `fresh` user states the history is encoded within the request,",
        "with `kept` ones that is at hand. Models took turns at each point, so that ratios compare",
        "times of the same minute; medians over calls. Each was checked against its reference. On",
        "a processor LIME is C++ (its user stage and its scorer), the others torch operations",
        "without gradients; FAISS is C++.",
        "Reproduce with `python -m benchmarks.latency`.",
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
    """All of one device and number of threads."""
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
        "With the user's state kept", grid_table(timed, "kept", ("N", "M"), cells=None)
    )
    lines += section_of("Over the width", sweep_table(timed, "d"))
    lines += section_of("Over the links", sweep_table(timed, "links", LIMES))
    lines += section_of("Several requests at once", batch_table(timed))
    lines += section_of("LIME's user stage", stage_table(stages))
    if left:
        lines += ["", "### Left out", "", "A call was expected to take too long, in seconds:", ""]
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


def at_point(row: Row, *but: str) -> bool:
    """Whether a row is of the usual width, links and batch, but for what is varied."""
    case = row["case"]
    usual = {**POINT, "links": 32 if case["links"] is not None else None}
    return all(case[key] == usual[key] for key in ("d", "links", "batch") if key not in but)


def times_of(found: list[Row], state: str) -> Times:
    """Of the grid: whole requests by model, history and candidates."""
    return {
        (row["case"]["model"], row["case"]["N"], row["case"]["M"]): row["metrics"]["ms_p50"]
        for row in found
        if row["case"]["state"] == state and at_point(row)
    }


# Ratios


def goals(timed: list[Row], stages: list[Row]) -> list[str]:
    """What was wanted, what was measured, and whether that is it; "-" where rows are missing."""
    times = times_of(timed, "fresh")
    body = [
        against(times, "lime-mha", "mha", 1, "LIME-MHA is never slower than MHA"),
        against(
            times,
            "lime-xor",
            "mha",
            1,
            "LIME-XOR is faster than MHA from 512 candidates on",
            lambda _, m: m >= 512,
        ),
    ]
    for model in LIMES:
        body.append(against(times, model, "hstu", 10, f"{shown(model)}: 10 times faster than HSTU"))
    for model in LIMES:
        for peer, least in (("mha", 30), ("hstu", 100)):
            body.append(
                against(
                    times,
                    model,
                    peer,
                    least,
                    f"{shown(model)}: {least} times faster than {shown(peer)} at N = 1,024, "
                    "M = 32,768",
                    lambda n, m: (n, m) == (1024, 32768),
                )
            )
    for model in LIMES:
        body.append(flatness(times, model))
    body.append(linearity(stages, timed))
    body += peaks(stages)
    lines = table(["goal", "measured", "met"], body)
    cached = times_of(timed, "kept")
    body = [
        against(cached, model, peer, 1, f"{shown(model)}, {shown(peer)}")[:2]
        for model in LIMES
        for peer in ("mha", "hstu")
    ]
    if any(line[1] != "-" for line in body):
        lines += ["", "The same with the user's state kept, how many times as fast:", ""]
        lines += table(["", "least"], body)
    return lines


def against(
    times: Times,
    model: str,
    peer: str,
    least: float,
    goal: str,
    holds: Callable[[int, int], bool] = lambda n, m: True,
) -> list[str]:
    """How many times as fast as its peer a model is where that is least."""
    ratios = {
        (n, m): times[peer, n, m] / ms
        for (name, n, m), ms in times.items()
        if name == model and (peer, n, m) in times and holds(n, m)
    }
    if not ratios:
        return [goal, "-", "-"]
    (n, m), worst = min(ratios.items(), key=lambda one: one[1])
    missed = sum(ratio < least for ratio in ratios.values())
    text = f"{worst:.2f} times as fast at N = {n:,}, M = {m:,}"
    if len(ratios) > 1:
        text = f"at least {text}; {len(ratios) - missed} of {len(ratios)} points meet it"
    return [goal, text, "yes" if not missed else "no"]


def flatness(times: Times, model: str) -> list[str]:
    """Cost against candidates: a + b M, fitted, and how far it is from flat."""
    goal = (
        f"{shown(model)}: M = {FLAT_TO:,} costs at most {FLAT:.0f} times what M = {FLAT_FROM} costs"
    )
    ratios = {
        n: times[model, n, FLAT_TO] / times[model, n, FLAT_FROM]
        for name, n, m in times
        if (name, m) == (model, FLAT_TO) and (model, n, FLAT_FROM) in times
    }
    if not ratios:
        return [goal, "-", "-"]
    n, worst = max(ratios.items(), key=lambda one: one[1])
    at = POINT["N"] if POINT["N"] in ratios else n
    base, each = fitted({m: ms for (name, of, m), ms in times.items() if (name, of) == (model, at)})
    text = f"at most {worst:.2f} times, at N = {n:,}"
    text += f"; at N = {at:,} about {base:.3f} ms + {1e3 * each:.3f} ms per 1,000 candidates"
    return [goal, text, "yes" if worst <= FLAT else "no"]


def fitted(points: dict[int, float]) -> tuple[float, float]:
    """a and b of ms = a + b M by least squares of relative errors."""
    s0 = s1 = s2 = t0 = t1 = 0.0
    for m, ms in points.items():
        weight = 1 / ms**2
        s0, s1, s2 = s0 + weight, s1 + weight * m, s2 + weight * m * m
        t0, t1 = t0 + weight * ms, t1 + weight * m * ms
    apart = s0 * s2 - s1 * s1
    if apart == 0:
        return t0 / s0, 0.0
    return (t0 * s2 - t1 * s1) / apart, (s0 * t1 - s1 * t0) / apart


def linearity(stages: list[Row], timed: list[Row]) -> list[str]:
    """How LIME-XOR's user stage grows with the history."""
    low, high, most = LINEAR
    goal = f"LIME-XOR's user stage: {high:,} events take at most {most} times what {low:,} take"
    users = {
        row["case"]["N"]: row["metrics"]["user_ms_p50"]
        for row in [*timed, *stages]
        if row["case"]["model"] == "lime-xor" and row["case"]["state"] == "fresh" and at_point(row)
        if row["case"]["M"] in (None, POINT["M"])
    }
    if low not in users or high not in users:
        return [goal, "-", "-"]
    ratio = users[high] / users[low]
    return [goal, f"{ratio:.2f} times", "yes" if ratio <= most else "no"]


def peaks(stages: list[Row]) -> list[list[str]]:
    shares = {
        (row["case"]["N"], row["case"]["d"]): row["metrics"]["share_of_peak"]
        for row in stages
        if row["case"]["model"] == "lime-xor" and row["case"]["N"] >= PEAK_FROM
    }
    goal = (
        f"LIME-XOR's user stage: at least {PEAK:.0%} of the matrix-product peak from N = 1,024 on"
    )
    if not shares:
        return [[goal, "-", "-"]]
    (n, d), worst = min(shares.items(), key=lambda one: one[1])
    text = f"at least {worst:.0%}, at N = {n:,}, d = {d}"
    return [[goal, text, "yes" if worst >= PEAK else "no"]]


def shown(model: str) -> str:
    return {"mha": "MHA", "hstu": "HSTU", "lime-mha": "LIME-MHA", "lime-xor": "LIME-XOR"}[model]


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
    """Sizes that tables show: every other power of two, 512, 32,768, and all other numbers."""
    return size.bit_count() > 1 or size.bit_length() % 2 == 1 or size in (512, 32768)


def sweep_table(timed: list[Row], key: str, models: tuple[str, ...] = ORDER) -> list[str]:
    """Milliseconds over one key through the usual point, both states."""
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
        for state in ("fresh", "kept")
        for value in values
    ]
    return [*table([key, "user's state", *names], body)]


def on_point(row: Row) -> bool:
    """Whether a row has the history and candidates of the sweeps."""
    return all(row["case"][key] == POINT[key] for key in ("N", "M"))


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
    lines = ["Milliseconds of a batch; in brackets, of its requests one after another.", ""]
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
        "Multiply-adds of matrix products, beside what a product of matrices of 1,024 x 1,024",
        "reaches in turns with them (both as GFLOP/s). In milliseconds, where they were measured,",
        "also forms that are not in use: bfloat16 by autocast, and compiled by torch.compile.",
        "",
    ]
    heads = ["model", "N", "d", "ms", "bfloat16", "compiled", "GFLOP/s", "peak", "share"]
    return [*lines, *table(heads, body)]


# Plots


def plot(timed: list[Row], path: Path) -> None:
    """Like the paper's first figure: time against candidates and history, width and links."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(8.4, 6.4))
    axes = panels.ravel()
    fresh = times_of(timed, "fresh")
    cached = times_of(timed, "kept")
    n, m = usual(fresh, 1, POINT["N"]), usual(fresh, 2, POINT["M"])
    for model in ORDER:
        style = {"color": COLOURS.get(model, GREY), "marker": "o", "ms": 3, "lw": 1.4}
        if model == "faiss-flat":
            style |= {"marker": "x", "ls": ":"}
        by_m = {of_m: ms for (name, of_n, of_m), ms in fresh.items() if (name, of_n) == (model, n)}
        if model == "faiss-flat":
            by_m = {of_m: ms for (name, _, of_m), ms in cached.items() if name == model}
        else:
            cached_times = {
                k: ms for (name, of_n, k), ms in cached.items() if (name, of_n) == (model, n)
            }
            line(axes[0], cached_times, None, style | {"ls": "--", "lw": 0.9, "marker": ""})
        line(axes[0], by_m, model, style)
        by_n = {of_n: ms for (name, of_n, of_m), ms in fresh.items() if (name, of_m) == (model, m)}
        if model != "faiss-flat":
            line(axes[1], by_n, model, style)
        for position, key in ((2, "d"), (3, "links")):
            by_key = {
                row["case"][key]: row["metrics"]["ms_p50"]
                for row in timed
                if row["case"]["model"] == model and row["case"]["state"] == "fresh"
                if at_point(row, key) and on_point(row) and row["case"][key] is not None
            }
            line(axes[position], by_key, model, style)
    titles = (
        (f"candidates M (N = {n:,}; dashed: state kept)", "ms per request"),
        (f"history N (M = {m:,})", ""),
        ("width d (N = 1,024, M = 512)", "ms per request"),
        ("links (N = 1,024, M = 512)", ""),
    )
    for one, (xlabel, ylabel) in zip(axes, titles, strict=True):
        one.set_xscale("log", base=2)
        one.set_yscale("log")
        one.set_xlabel(xlabel)
        one.set_ylabel(ylabel)
        one.grid(axis="y", color="#dddddd", lw=0.6)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    names = axes[0].get_legend_handles_labels()
    figure.legend(*names, frameon=False, fontsize=9, ncols=len(ORDER), loc="upper center")
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def usual(times: Times, position: int, wanted: int) -> int:
    """The size that a plot goes through: the usual one, or the most frequent where it is absent."""
    sizes = [int(key[position]) for key in times]
    return wanted if wanted in sizes or not sizes else max(sizes, key=sizes.count)


def line(axes: Any, points: dict[int, float], label: str | None, style: dict[str, Any]) -> None:
    if points:
        sizes = sorted(points)
        axes.plot(sizes, [points[size] for size in sizes], label=label, **style)
