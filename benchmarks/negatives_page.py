"""The page on negatives: quality of lists and processor time by their number."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.tables import COLOURS, DOCS, GREY, Row, grouped, machines, spread_of, table

ALL = "all"
SHOWN = {"hr@10": "HR@10", "ndcg@10": "NDCG@10"}
TIME = "train_cpu_seconds"
GOAL = 0.98
"""Of the quality of the full softmax."""
ABOUT = {
    "shop": "a simulated shop of 5,000 items and 300,000 events",
    "ml_latest_small": "100,000 ratings of 9,724 films",
}


def negatives(found: list[Row]) -> str:
    """A table of each dataset, and the curves."""
    by_dataset = grouped(found, lambda row: row["case"]["dataset"])
    plot_negatives(by_dataset, DOCS / "negatives.svg")
    lines = [
        "# Negatives",
        "",
        "How many negatives does the catalogue objective need? The requests of a batch share them:",
        "that many items are drawn uniformly for each batch, the positives of the batch are added,",
        "and *all* is the softmax over the full catalogue. Trainings are short, and have the",
        "defaults of `limerank train` besides. Lists rank all items for the requests of the test",
        "and of the validation split. A value is the mean over the requests of both, and over",
        "seeds, with the largest distance of a seed from the mean. *Share* is NDCG@10 divided by",
        "that of *all* with the same seed. Seconds are those of the processor, of a training with",
        "its validations. Reproduce with `python -m benchmarks.negatives --data FOLDER`.",
        "",
        "![NDCG@10 as a share of the full softmax, and processor time](negatives.svg)",
        "",
        *machines(found),
    ]
    for dataset, part in by_dataset.items():
        case = part[0]["case"]
        epochs = f"{case['epochs']} epoch{'s' if case['epochs'] != 1 else ''}"
        requests = part[0]["metrics"]["requests"] + part[0]["metrics"]["validation_requests"]
        lines += [
            "",
            f"## {dataset}",
            "",
            f"{ABOUT[dataset][0].upper()}{ABOUT[dataset][1:]}; {case['model']}, {epochs}; "
            f"{requests:,.0f} requests, so that a share has a standard error of some per cent.",
            "",
            *_table(part),
        ]
        if enough := least(part):
            lines += ["", f"From {enough:,} negatives on, the share is {GOAL:.2f} or more."]
    return "\n".join(lines)


def numbers(found: list[Row]) -> list[int | str]:
    """Numbers of negatives in order, "all" last."""
    seen = {row["case"]["negatives"] for row in found}
    return [*sorted(one for one in seen if one != ALL), *([ALL] if ALL in seen else [])]


def both_splits(row: Row, name: str) -> float:
    """A metric over the requests of the test and of the validation split."""
    metrics = row["metrics"]
    sizes = metrics["requests"], metrics["validation_requests"]
    values = metrics[name], metrics[f"validation_{name}"]
    return float(sum(n * value for n, value in zip(sizes, values, strict=True)) / sum(sizes))


def shares(found: list[Row], number: int | str) -> list[float]:
    """NDCG@10 with so many negatives divided by that of all, of each seed that has both."""
    values = {(row["case"]["negatives"], row["seed"]): both_splits(row, "ndcg@10") for row in found}
    seeds = sorted(seed for of, seed in values if of == number and (ALL, seed) in values)
    return [values[number, seed] / values[ALL, seed] for seed in seeds]


def least(found: list[Row]) -> int | None:
    """The smallest number from which on no share is below :data:`GOAL`; None: there is none."""
    enough = None
    for number in reversed(numbers(found)):
        some = shares(found, number)
        if some and statistics.mean(some) < GOAL:
            break
        if some and number != ALL:
            enough = int(number)
    return enough


def _table(found: list[Row]) -> list[str]:
    body = []
    for number in numbers(found):
        part = [row for row in found if row["case"]["negatives"] == number]
        combined = [
            {"metrics": {name: both_splits(row, name) for name in SHOWN}, "case": row["case"]}
            for row in part
        ]
        some = shares(found, number)
        body.append(
            [
                number if isinstance(number, str) else f"{number:,}",
                *(spread_of(combined, name) for name in SHOWN),
                f"{statistics.mean(some):.3f}" if some else "-",
                f"{_seconds(part):,.0f}",
                str(len(part)),
            ]
        )
    return table(["negatives", *SHOWN.values(), "share", "processor, s", "seeds"], body)


def _seconds(found: list[Row]) -> float:
    return statistics.median(row["metrics"][TIME] for row in found)


def plot_negatives(by_dataset: dict[str, list[Row]], path: Path) -> None:
    """Share of the full softmax on the left, processor time on the right, by the number."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.0))
    every = [row for part in by_dataset.values() for row in part]
    order = numbers(every)
    colours = dict(zip(by_dataset, (COLOURS["lime-mha"], COLOURS["lime-xor"]), strict=False))
    for dataset, part in by_dataset.items():
        own = [number for number in numbers(part) if shares(part, number)]
        at = [order.index(number) for number in own]
        style = {"marker": "o", "ms": 3, "color": colours[dataset], "label": dataset}
        quality = [statistics.mean(shares(part, number)) for number in own]
        panels[0].plot(at, quality, **style)
        seconds = [
            _seconds([row for row in part if row["case"]["negatives"] == number]) for number in own
        ]
        panels[1].plot(at, seconds, **style)
    panels[0].axhline(GOAL, color=GREY, lw=0.8, ls="--")
    titles = "NDCG@10, share of the full softmax", "processor time of training, s"
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xticks(range(len(order)), [f"{one:,}" if one != ALL else ALL for one in order])
        axes.set_xlabel("negatives")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[1].set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
