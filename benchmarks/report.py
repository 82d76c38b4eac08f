"""Write docs/results: tables and plots made from the rows alone.

python -m benchmarks.report
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

import matplotlib as mpl

from benchmarks.ablations_page import ablations
from benchmarks.abtest_page import abtest
from benchmarks.attempts import attempts
from benchmarks.coldstart_page import coldstart
from benchmarks.cost_inputs import Assumptions, Measured
from benchmarks.cost_model import Costs
from benchmarks.costs_page import page as costs_page
from benchmarks.defaults_page import defaults
from benchmarks.exact_page import exact
from benchmarks.exact_terms_page import exact_terms
from benchmarks.histories_page import histories
from benchmarks.latency_page import latency
from benchmarks.lists_page import nextitem, shop
from benchmarks.negatives_page import negatives
from benchmarks.peers_page import peers
from benchmarks.power.page import power
from benchmarks.quality_page import quality, search
from benchmarks.rows import RESULTS, rows
from benchmarks.scorer_page import fidelity, scorer
from benchmarks.similar_page import similar
from benchmarks.simulate_page import simulate
from benchmarks.soak_page import soak
from benchmarks.tables import DOCS, Row, grouped, machines, number, ranged, table
from benchmarks.warmstart_page import warmstart

MADE_BY = {
    "extend": "prepare",
    "parted": "prepare",
    "remote": "prepare",
    "histories": "histories_page",
    "ranking": "index",
    "search": "quality",
    "simulate": "simulate_page",
}
"""Benchmark -> the module that writes its rows, where the names differ."""

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "limerank", "font.size": 9})


def main() -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    pages: dict[str, Callable[[list[Row]], str]] = {
        "abtest": abtest,
        "quality": quality,
        "search": search,
        "peers": peers,
        "coldstart": coldstart,
        "defaults": defaults,
        "exact": exact,
        "exact_terms": exact_terms,
        "ablations": ablations,
        "latency": latency,
        "training": training,
        "scorer": scorer,
        "fidelity": fidelity,
        "attempts": attempts,
        "histories": histories,
        "negatives": negatives,
        "nextitem": nextitem,
        "power": power,
        "shop": shop,
        "similar": similar,
        "simulate": simulate,
        "soak": soak,
        "warmstart": warmstart,
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
    costs = costs_page(Costs(Measured.read(), Assumptions()), Measured.sources())
    (DOCS / "costs.md").write_text(costs + "\n", encoding="utf-8")
    written = sorted([*written, "costs"])
    index = [
        "# Measurements",
        "",
        "`python -m benchmarks.report` writes these pages from the rows in `benchmarks/results`.",
        "Every row names its machine, versions and commit. `make bench` measures the rows; targets",
        "such as `make bench-quality` and `make bench-latency` measure those that take hours.",
        "",
    ]
    for maker, pages_of in grouped(written, made_by).items():
        links = ", ".join(f"[{bench}]({bench}.md)" for bench in pages_of)
        first = documented(maker).replace("``", "`").split("\n\n")[0]
        what = " ".join(first.split()).split(". ")[0].rstrip(".")
        index.append(f"- {links}: {what[0].lower()}{what[1:]}")
    (DOCS / "README.md").write_text("\n".join(index) + "\n", encoding="utf-8")
    print(f"{DOCS}: {', '.join(written)}")


def training(found: list[Row]) -> str:
    """Throughput, and the cost of a large table."""
    speeds = [row for row in found if "bf16" in row["case"]]
    tables = [row for row in found if row["case"].get("what") == "table size"]
    lines = [
        "# Training speed",
        "",
        "Throughput of the training loop (loading, model, optimiser) with d = 64, histories of 128",
        "events and 16 impressions per request. Values are medians of repeats, with their range in",
        "brackets. `one by one` trains requests of a single impression. Reproduce with",
        "`python -m benchmarks.training`.",
        "",
        *machines(found),
        "",
        *table(
            ["model", "number format", "impressions/s", "one by one", "ratio"],
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
            f"{ranged(row, 'ratio_4m_to_4k_rows', '{:.2f}')} times as long as with 4 thousand rows "
            f"({found_metrics['ms_per_step_4m_rows']:.0f} ms and "
            f"{found_metrics['ms_per_step_4k_rows']:.0f} ms).",
        ]
    return "\n".join(lines)


def made_by(bench: str) -> str:
    return MADE_BY.get(bench, bench)


def documented(module: str) -> str:
    """The docstring of a module."""
    return inspect.getdoc(importlib.import_module(f"benchmarks.{module}")) or ""


def plain(found: list[Row]) -> str:
    """Any other benchmark: one line per row, one table for rows with the same metrics."""
    bench = found[0]["bench"]
    lines = [f"# {bench.capitalize()}", "", documented(made_by(bench)), "", *machines(found)]
    if any(row["spread"] for row in found):
        lines += ["", "Values are medians of repeats; brackets hold their range."]
    groups = grouped(
        found, lambda row: tuple(name for name, one in row["metrics"].items() if one is not None)
    )
    for names, part in groups.items():
        keys = [key for key in part[0]["case"] if any(row["case"].get(key) for row in part)]
        constant = [key for key in keys if len({str(row["case"].get(key)) for row in part}) == 1]
        if len(part) > 1:
            keys = [key for key in keys if key not in constant]
            if constant:
                caption = ", ".join(f"{key} {part[0]['case'][key]}" for key in constant)
                lines += ["", f"{caption}:"]
        lines.append("")
        lines += table(
            [name.replace("_", " ") for name in (*keys, *names)],
            [
                ["" if row["case"].get(key) is None else str(row["case"][key]) for key in keys]
                + [with_spread(row, name) for name in names]
                for row in part
            ],
        )
    return "\n".join(lines)


def with_spread(row: Row, name: str) -> str:
    """A number, and the range of its repeats where it is known."""
    documented, spread = number(row["metrics"][name]), (row["spread"] or {}).get(name)
    return f"{documented} [{number(spread[0])}, {number(spread[1])}]" if spread else documented


if __name__ == "__main__":
    main()
