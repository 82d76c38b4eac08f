"""The plot of the latency study: time over candidates, history, width and links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.latency_rows import ORDER, POINT, Times, at_point, on_point, times_of
from benchmarks.tables import COLOURS, GREY, Row


def plot(timed: list[Row], path: Path) -> None:
    """As in the paper's first figure: time over candidates, history, width and links."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(8.4, 6.4))
    axes = panels.ravel()
    fresh = times_of(timed, "fresh")
    cached = times_of(timed, "cached")
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
        (f"candidates M (N = {n:,}; dashed: state cached)", "ms per request"),
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
    """The size that a plot goes through: the usual one, else the most frequent one."""
    sizes = [int(key[position]) for key in times]
    return wanted if wanted in sizes or not sizes else max(sizes, key=sizes.count)


def line(axes: Any, points: dict[int, float], label: str | None, style: dict[str, Any]) -> None:
    if points:
        sizes = sorted(points)
        axes.plot(sizes, [points[size] for size in sizes], label=label, **style)
