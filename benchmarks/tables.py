"""Parts of the pages: grouped rows, formatted numbers, Markdown tables."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

DOCS = Path("docs/results")
Row = dict[str, Any]
K = TypeVar("K")
V = TypeVar("V")
MODELS = (
    "popularity",
    "two-tower",
    "sasrec",
    "lrea",
    "truncated-mha",
    "din",
    "mha",
    "hstu",
    "lime-mha",
    "lime-xor",
)
COLOURS = {"lime-mha": "#0072b2", "lime-xor": "#d55e00", "hstu": "#009e73", "mha": "#cc79a7"}
GREY = "#8a8f98"


PRESENT = {
    "lime-mha": ("2026-11-23", "a softmax over events, its user stage torch operations"),
    "lime-xor": ("2026-11-23", "a last block like the others, its user stage torch operations"),
}
"""Model -> date of its present form, and what its former one had; older rows are of the former."""


def grouped(found: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    groups: dict[K, list[V]] = defaultdict(list)
    for one in found:
        groups[key(one)].append(one)
    return dict(groups)


def by_model(found: list[Row]) -> dict[str, list[Row]]:
    """Rows by model, in the order in which pages show them."""
    groups = grouped(found, lambda row: row["case"]["model"])
    return {name: groups[name] for name in MODELS if name in groups}


def machines(found: list[Row]) -> list[str]:
    """The machines, versions and commits of the rows."""
    where = {f"{row['machine']['processor']}, {row['machine']['cores']} cores" for row in found}
    versions = dict.fromkeys(f"{k} {v}" for row in found for k, v in row["versions"].items())
    commits = sorted({row["commit"] for row in found})
    lines = [
        f"Machine: {'; '.join(sorted(where))}. Versions: {', '.join(versions)}. "
        f"Commits: {', '.join(commits)}."
    ]
    for model, (since, had) in PRESENT.items():
        of_model = [row for row in found if row["case"].get("model") == model]
        if former := sum(row["date"] < since for row in of_model):
            some = "All" if former == len(of_model) else f"{former} of {len(of_model)}"
            lines += ["", f"**{some} rows of {model} are of its former form, {had}.**"]
    return lines


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


def interval(metrics: dict[str, float] | None, part: str) -> str:
    """A difference with its interval, if any; bold where the interval excludes 0."""
    if metrics is None or part not in metrics:
        return "-"
    if part.replace("difference", "low") not in metrics:
        return f"{metrics[part]:+.4f}"
    low, high = (metrics[part.replace("difference", bound)] for bound in ("low", "high"))
    text = f"{metrics[part]:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{text}**" if low > 0 or high < 0 else text
