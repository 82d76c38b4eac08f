"""The plots of the page on quality: differences to a baseline, by model and by slice."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.tables import COLOURS, DOCS, GREY, MODELS, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIME = ("lime-mha", "lime-xor")
WIDE = 0.1
"""Wider intervals, of slices with few impressions, do not set the scale of a plot."""


def plot_differences(by_dataset: dict[str, list[Row]], pairs: list[Row]) -> None:
    """Main AUC minus the two-tower's: seeds as dots, the interval over users as a line."""
    import matplotlib.pyplot as plt

    shown = {
        dataset: [
            m
            for m in MODELS
            if m != "two-tower" and any(row["case"]["model"] == m for row in of_dataset)
        ]
        for dataset, of_dataset in by_dataset.items()
    }
    heights = [max(len(models), 1) + 0.8 for models in shown.values()]
    figure, panels = stacked(heights, 0.3)
    for axes, (dataset, models) in zip(panels, shown.items(), strict=True):
        main_metric = next(iter(by_dataset[dataset][0]["metrics"]))
        values = {
            (row["case"]["model"], row["seed"]): row["metrics"][main_metric]
            for row in by_dataset[dataset]
        }
        bounds = {
            row["case"]["model"]: row["metrics"]
            for row in pairs
            if row["case"]["dataset"] == dataset and row["case"]["against"] == "two-tower"
        }
        for y, model in enumerate(reversed(models)):
            colour = COLOURS.get(model, GREY)
            gains = [
                value - values["two-tower", seed]
                for (name, seed), value in values.items()
                if name == model and ("two-tower", seed) in values
            ]
            if model in bounds:
                axes.plot([bounds[model]["low"], bounds[model]["high"]], [y, y], color=colour, lw=1)
            axes.plot(gains, [y] * len(gains), "o", color=colour, alpha=0.55, ms=4)
            if gains:
                mean = statistics.mean(gains)
                axes.plot([mean], [y], "|", color=colour, ms=11, mew=2)
                axes.text(
                    1.01,
                    y,
                    f"{mean:+.4f}",
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    color=colour,
                )
        axes.axvline(0, color=GREY, lw=1)
        axes.set_yticks(range(len(models)), list(reversed(models)))
        axes.set_ylim(-0.7, len(models) - 0.3)
        axes.set_title(f"{dataset}, {main_metric}", loc="left", fontsize=9)
    panels[-1].set_xlabel(
        "difference to the two-tower (dots: seeds, ticks: means, lines: 95 % over users)"
    )
    figure.tight_layout()
    figure.savefig(DOCS / "quality.svg", metadata={"Date": None})
    plt.close(figure)


def stacked(heights: list[float], line: float) -> tuple[Figure, list[Axes]]:
    """Panels below each other; ``heights`` counts lines of ``line`` inches."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(heights),
        1,
        figsize=(7, 0.9 + line * sum(heights)),
        height_ratios=heights,
        squeeze=False,
    )
    for axes in panels[:, 0]:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure, list(panels[:, 0])


def plot_slices(pairs: list[Row]) -> None:
    """AUC of both forms of LIME minus HSTU's in each slice, with the interval over users."""
    import matplotlib.pyplot as plt

    found = {
        (row["case"]["dataset"], row["case"]["model"]): row["metrics"]
        for row in pairs
        if row["case"]["against"] == "hstu" and row["case"]["model"] in LIME
    }
    parts = {
        dataset: [
            key.removeprefix("difference | ")
            for key in reversed(metrics)
            if key.startswith("difference | ")
        ]
        for (dataset, _), metrics in found.items()
    }
    if not parts:
        return
    heights = [len(names) + 1.5 for names in parts.values()]
    figure, panels = stacked(heights, 0.22)
    for axes, (dataset, names) in zip(panels, parts.items(), strict=True):
        widest = 0.0
        for position, model in enumerate(LIME):
            metrics = found.get((dataset, model), {})
            for y, name in enumerate(names):
                if f"low | {name}" not in metrics:
                    continue
                low, middle, high = (
                    metrics[f"{what} | {name}"] for what in ("low", "difference", "high")
                )
                at, colour = y + 0.16 - 0.32 * position, COLOURS[model]
                axes.plot([low, high], [at, at], color=colour, lw=1.3)
                axes.plot([middle], [at], "o", color=colour, ms=4, label=model if not y else None)
                if high - low < WIDE:
                    widest = max(widest, abs(low), abs(high))
        axes.axvline(0, color=GREY, lw=1)
        axes.set_xlim(-widest, widest)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.set_title(f"{dataset}, AUC minus HSTU's", loc="left", fontsize=9)
    panels[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    panels[-1].set_xlabel(f"lines: 95 % over users; those wider than {WIDE} are cut off")
    figure.tight_layout()
    figure.savefig(DOCS / "quality-slices.svg", metadata={"Date": None})
    plt.close(figure)
