"""The page on similar items and the price of diversity."""

from __future__ import annotations

from benchmarks import similar as bench
from benchmarks.tables import Row, grouped, machines, spread_of, table

ALIKE = ("truth_cosine@10", "share_of_best", "same_category@10")
DIVERSE = ("ndcg@10", "similarity_in_list", "categories_in_list")


def similar(found: list[Row]) -> str:
    """Two tables, of means over seeds."""
    what = grouped(found, lambda row: row["case"]["what"])
    documented = (bench.__doc__ or "").replace("``", "`").strip()
    return "\n".join(
        [
            "# Similar items",
            "",
            documented,
            "",
            "Values are means over logs, with the largest distance of one from the mean.",
            "",
            *machines(found),
            "",
            "## Similar items",
            "",
            *results(what.get("similar items", []), "by", ALIKE),
            "",
            "## What diversity costs",
            "",
            *results(what.get("diversity", []), "diversity", DIVERSE),
        ]
    )


def results(found: list[Row], key: str, names: tuple[str, ...]) -> list[str]:
    """A row of means for each value of a case's key."""
    groups = grouped(found, lambda row: row["case"][key])
    body = [
        [str(value), *(spread_of(part, name) for name in names), str(len(part))]
        for value, part in groups.items()
    ]
    return table([key, *(name.replace("_", " ") for name in names), "logs"], body)
