"""Rows -> docs/results: tables and plots, and nothing that was typed by hand.

python -m benchmarks.report
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.rows import RESULTS, rows

mpl.use("svg")
DOCS = Path("docs/results")
Row = dict[str, Any]
MODELS = ("two-tower", "lime-mha", "lime-xor")
COLOURS = {"two-tower": "#8a8f98", "lime-mha": "#0072b2", "lime-xor": "#d55e00"}


def main() -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    pages: dict[str, Callable[[list[Row]], str]] = {
        "quality": quality,
        "search": search,
        "training": training,
    }
    found = sorted(path.stem for path in RESULTS.glob("*.jsonl"))
    written = []
    for bench in found:
        page = pages.get(bench, plain)
        text = page(list(rows(bench)))
        (DOCS / f"{bench}.md").write_text(text + "\n", encoding="utf-8")
        written.append(bench)
    index = ["# Measurements", "", "Made by `python -m benchmarks.report` from the rows in"]
    index += ["`benchmarks/results`; every row names its machine, versions and commit.", ""]
    index += [f"- [{bench}]({bench}.md)" for bench in written]
    (DOCS / "README.md").write_text("\n".join(index) + "\n", encoding="utf-8")
    print(f"{DOCS}: {', '.join(written)}")


def quality(found: list[Row]) -> str:
    """One section per data set: models side by side, mean and spread over seeds, and slices."""
    lines = [
        "# Quality",
        "",
        "Mean over seeds, with the largest distance of a seed from it. All models of a data set",
        "share requests, histories, features and towers; impressions of a request share the",
        "history before its first one. Every model tried the same settings on each data set; the",
        "best by the validation metric of seed 0 was taken ([search](search.md)). Rows name the",
        "commits they are of; a `+` is a tree with changes not yet committed.",
        "Reproduce with `python -m benchmarks.quality --data FOLDER`.",
        "",
        *machines(found),
    ]
    by_dataset = grouped(found, lambda row: row["case"]["dataset"])
    plot_quality(by_dataset)
    lines += ["", "![Difference to the two-tower](quality.svg)"]
    for dataset, of_dataset in by_dataset.items():
        models = grouped(of_dataset, lambda row: row["case"]["model"])
        models = {name: models[name] for name in MODELS if name in models}
        names = list(dict.fromkeys(key for row in of_dataset for key in row["metrics"]))
        seeds = sorted({row["seed"] for row in of_dataset})
        lines += ["", f"## {dataset}", "", f"Seeds: {', '.join(map(str, seeds))}.", ""]
        whole = [name for name in names if " | " not in name]
        lines += table(
            ["metric", *models],
            [[name, *(spread_of(rows_, name) for rows_ in models.values())] for name in whole],
        )
        lines += ["", f"Slices of {dataset}:", ""]
        lines += table(["slice", "impressions", "metric", *models], slice_lines(names, models))
    return "\n".join(lines)


def slice_lines(names: list[str], models: dict[str, list[Row]]) -> list[list[str]]:
    """A line for each slice that holds impressions and each metric of it."""
    any_row = next(iter(models.values()))[0]
    lines = []
    for name in names:
        metric, _, part = name.partition(" | ")
        impressions = any_row["metrics"].get(f"impressions | {part}")
        if part and metric != "impressions" and impressions:
            values = [spread_of(rows_, name) for rows_ in models.values()]
            lines.append([part, f"{impressions:,}", metric, *values])
    return lines


def plot_quality(by_dataset: dict[str, list[Row]]) -> None:
    """AUC of the main task minus the two-tower's of the same seed, one dot a seed."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "limerank", "font.size": 9})
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.75 * len(by_dataset)))
    labels = []
    for place, (dataset, of_dataset) in enumerate(by_dataset.items()):
        main_metric = next(iter(of_dataset[0]["metrics"]))
        base = {
            row["seed"]: row["metrics"][main_metric]
            for row in of_dataset
            if row["case"]["model"] == "two-tower"
        }
        for offset, model in ((-0.14, "lime-mha"), (0.14, "lime-xor")):
            gains = [
                row["metrics"][main_metric] - base[row["seed"]]
                for row in of_dataset
                if row["case"]["model"] == model and row["seed"] in base
            ]
            if not gains:
                continue
            y = len(by_dataset) - place - offset
            axes.plot(gains, [y] * len(gains), "o", color=COLOURS[model], alpha=0.55, ms=5)
            mean = statistics.mean(gains)
            axes.plot([mean], [y], "|", color=COLOURS[model], ms=14, mew=2)
            axes.annotate(
                f"{model} {mean:+.4f}",
                (max(gains), y),
                xytext=(8, -3),
                textcoords="offset points",
                color=COLOURS[model],
            )
        labels.append(f"{dataset}\n{main_metric}")
    axes.axvline(0, color=COLOURS["two-tower"], lw=1)
    axes.set_yticks([len(by_dataset) - place for place in range(len(by_dataset))], labels)
    axes.set_xlabel("difference to the two-tower of the same seed (dots: seeds, bars: means)")
    axes.margins(x=0.3)
    axes.set_ylim(0.5, len(by_dataset) + 0.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "quality.svg", metadata={"Date": None})
    plt.close(figure)


def search(found: list[Row]) -> str:
    """What every model tried on each data set, the taken one in bold."""
    lines = [
        "# Settings tried",
        "",
        "Seed 0; the best validation metric of each training. The best of each model (bold)",
        "went into [quality](quality.md); nothing here has read a test split.",
        "Made by `python -m benchmarks.quality --data FOLDER`.",
        "",
        *machines(found),
    ]
    keys = ("rate", "table_rate", "epochs")
    for dataset, of_dataset in grouped(found, lambda row: row["case"]["dataset"]).items():
        models = grouped(of_dataset, lambda row: row["case"]["model"])
        models = {name: models[name] for name in MODELS if name in models}
        metric = next(name for name in of_dataset[0]["metrics"] if "/" in name)
        values = {
            name: {
                tuple(row["case"][key] for key in keys): row["metrics"][metric] for row in of_model
            }
            for name, of_model in models.items()
        }
        lines += ["", f"## {dataset}: {metric.removeprefix('best_')}, validation", ""]
        lines += table(
            ["rate", "rate of tables", "epochs", *models],
            [
                [*map(str, setting), *(best_of(values[name], setting) for name in models)]
                for setting in sorted({s for of_model in values.values() for s in of_model})
            ],
        )
    return "\n".join(lines)


def best_of(values: dict[tuple[Any, ...], float], setting: tuple[Any, ...]) -> str:
    """One setting's value, bold where it is the greatest."""
    if setting not in values:
        return "-"
    text = number(values[setting])
    return f"**{text}**" if values[setting] == max(values.values()) else text


def training(found: list[Row]) -> str:
    """Throughput, and the cost of a large table."""
    speeds = [row for row in found if "bf16" in row["case"]]
    tables = [row for row in found if row["case"].get("what") == "table size"]
    lines = [
        "# Training speed",
        "",
        "The training loop (loading, model, optimiser), d = 64, histories of 128 events, 16",
        "impressions per request; medians over repeats, least and most in brackets. Reproduce with",
        "`python -m benchmarks.training`.",
        "",
        *machines(found),
        "",
        *table(
            ["model", "numbers", "impressions/s", "one by one", "ratio"],
            [
                [
                    row["case"]["model"],
                    "bfloat16" if row["case"]["bf16"] else "float32",
                    ranged(row, "impressions_per_s", "{:,.0f}"),
                    f"{row['metrics']['impressions_per_s_one_by_one']:,.0f}",
                    ranged(row, "ratio_to_one_by_one", "{:.1f}"),
                ]
                for row in speeds
            ],
        ),
    ]
    for row in tables:
        found_metrics = row["metrics"]
        lines += [
            "",
            "A step with an id table of 4 million rows takes "
            f"{ranged(row, 'ratio_4m_to_4k_rows', '{:.2f}')} times that with 4 thousand rows "
            f"({found_metrics['ms_per_step_4m_rows']:.0f} ms against "
            f"{found_metrics['ms_per_step_4k_rows']:.0f} ms).",
        ]
    return "\n".join(lines)


def plain(found: list[Row]) -> str:
    """Any other measurement: a row a line."""
    bench = found[0]["bench"]
    names = list(dict.fromkeys(name for row in found for name in row["metrics"]))
    keys = list(dict.fromkeys(name for row in found for name in row["case"]))
    lines = [f"# {bench.capitalize()}", "", f"Reproduce with `python -m benchmarks.{bench}`.", ""]
    lines += [*machines(found), ""]
    lines += table(
        [*keys, *names],
        [
            [str(row["case"].get(key, "")) for key in keys]
            + [number(row["metrics"].get(name)) for name in names]
            for row in found
        ],
    )
    return "\n".join(lines)


def grouped(found: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        groups[key(row)].append(row)
    return dict(groups)


def machines(found: list[Row]) -> list[str]:
    """Where and with what the rows were measured."""
    where = {f"{row['machine']['processor']}, {row['machine']['cores']} cores" for row in found}
    what = {", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in found}
    commits = sorted({row["commit"] for row in found})
    return [
        f"Machine: {'; '.join(sorted(where))}. Versions: {'; '.join(sorted(what))}. "
        f"Commits: {', '.join(commits)}."
    ]


def spread_of(found: list[Row], name: str) -> str:
    values = [row["metrics"].get(name) for row in found]
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = statistics.mean(known)
    if len(known) == 1 or all(value == known[0] for value in known):
        return number(mean)
    return f"{number(mean)} ± {number(max(abs(value - mean) for value in known))}"


def ranged(row: Row, name: str, form: str) -> str:
    text = form.format(row["metrics"][name])
    spread = (row["spread"] or {}).get(name)
    return f"{text} [{form.format(spread[0])}, {form.format(spread[1])}]" if spread else text


def number(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if isinstance(value, float) and abs(value) < 100:
        return f"{value:.4f}"
    return f"{value:,.0f}"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (head, ["---"] * len(head), *body)
    ]


if __name__ == "__main__":
    main()
