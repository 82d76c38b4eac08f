"""Rows -> docs/results: tables and plots, and nothing that was typed by hand.

python -m benchmarks.report
"""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl

from benchmarks.attempts import attempts
from benchmarks.parts_pages import ablation, coldstart
from benchmarks.quality_page import quality, search
from benchmarks.rows import RESULTS, rows
from benchmarks.scorer_page import fidelity, scorer
from benchmarks.tables import DOCS, Row, machines, number, ranged, table

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "limerank", "font.size": 9})


def main() -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    pages: dict[str, Callable[[list[Row]], str]] = {
        "quality": quality,
        "search": search,
        "coldstart": coldstart,
        "ablation": ablation,
        "training": training,
        "scorer": scorer,
        "fidelity": fidelity,
        "attempts": attempts,
    }
    found = sorted(path.stem for path in RESULTS.glob("*.jsonl"))
    written = []
    for bench in found:
        if bench == "paired":  # part of the page on quality
            continue
        page = pages.get(bench, plain)
        text = page(list(rows(bench)))
        (DOCS / f"{bench}.md").write_text(text + "\n", encoding="utf-8")
        written.append(bench)
    index = ["# Measurements", "", "Made by `python -m benchmarks.report` from the rows in"]
    index += ["`benchmarks/results`; every row names its machine, versions and commit.", ""]
    index += [f"- [{bench}]({bench}.md)" for bench in written]
    (DOCS / "README.md").write_text("\n".join(index) + "\n", encoding="utf-8")
    print(f"{DOCS}: {', '.join(written)}")


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


if __name__ == "__main__":
    main()
