"""The pages on lists of the full catalogue: the next item of MovieLens, and a simulated shop."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from benchmarks.tables import Row, grouped, machines, spread_of, table

ORDER = (
    "truth",
    "lime-mha",
    "lime-xor",
    "hstu",
    "sasrec",
    "two-tower",
    "mha",
    "din",
    "lrea",
    "truncated-mha",
    "item-knn",
    "most-popular",
)
HEADS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "coverage@10": "coverage@10"}
BASE = "item-knn"


class Reported(NamedTuple):
    """A figure of another repository, which was not measured here."""

    model: str
    hr: float
    ndcg: float
    source: str


FACEBOOK = "[generative-recommenders](https://github.com/facebookresearch/generative-recommenders)"
RECTOOLS = "[RecTools](https://github.com/MobileTeleSystems/RecTools)"
REPORTED = {
    "ml1m": (
        Reported("SASRec", 0.2853, 0.1603, FACEBOOK),
        Reported("HSTU", 0.3097, 0.1720, FACEBOOK),
        Reported("HSTU-large", 0.3294, 0.1893, FACEBOOK),
        Reported("HSTU-large", 0.3642, 0.2164, RECTOOLS),
    )
}
"""Dataset -> figures of the same protocol, as their repositories report them."""


def nextitem(found: list[Row]) -> str:
    """The next item: models of the package, and what others report."""
    lines = [
        "# The next item",
        "",
        "Every rating is a positive. The last one of each user is the test, the one before it is",
        "validation; lists rank the full catalogue without the items that the user has rated",
        "before. HR@10 and NDCG@10 are means over users; values are means over seeds, with the",
        "largest distance of a seed from the mean. Ratings have the order of the file in `ml1m`,",
        "and of time, then of the file, in `ml_latest_small`. Times of training depend on the",
        "machine. Reproduce with `make bench-nextitem DATA=FOLDER`.",
        "",
        *machines(found),
    ]
    for name, part in grouped(found, lambda row: row["case"]["dataset"]).items():
        lines += ["", f"## {name}", "", *results(part)]
        if name in REPORTED:
            lines += [
                "",
                "Figures of the same protocol **as reported by other repositories**; they were not "
                "measured here, and the order of ratings with equal times may differ:",
                "",
                *table(
                    ["model", "HR@10", "NDCG@10", "reported by"],
                    [
                        [one.model, f"{one.hr:.4f}", f"{one.ndcg:.4f}", one.source]
                        for one in REPORTED[name]
                    ],
                ),
            ]
    return "\n".join(lines)


def shop(found: list[Row]) -> str:
    """The next purchase in a simulated shop."""
    lines = [
        "# A simulated shop",
        "",
        "The purchases of a user's next session in three logs of `limerank synth --kind shop`, of",
        "some 300,000 views, carts and purchases of 5,000 items each. Lists rank all items; those",
        "that the user has seen are not left out. Models have the defaults of `limerank train`.",
        "*truth* ranks by the probabilities by which the simulator draws purchases. Values are",
        "means over logs, with the largest distance of one from the mean. Reproduce with",
        "`python -m benchmarks.shop`.",
        "",
        *machines(found),
    ]
    for protocol, part in grouped(found, lambda row: row["case"]["protocol"]).items():
        lines += ["", f"## {protocol[0].upper()}{protocol[1:]}", "", *results(part)]
    return "\n".join(lines)


def results(found: list[Row]) -> list[str]:
    """A table: metrics of each model and setting, and ratios to item-kNN on the same logs."""
    base = {row["seed"]: row["metrics"] for row in found if row["case"]["model"] == BASE}
    one_base = len(base) == 1
    body = []
    groups = grouped(found, lambda row: (row["case"]["model"], row["case"]["settings"]))
    for (model, settings), part in sorted(groups.items(), key=lambda group: _position(group[0][0])):
        ratios = []
        for name in ("hr@10", "ndcg@10"):
            of_base = [
                (row, next(iter(base.values())) if one_base else base.get(row["seed"]))
                for row in part
            ]
            values = [
                row["metrics"][name] / other[name] for row, other in of_base if other is not None
            ]
            ratios.append(f"{statistics.mean(values):.2f}" if values else "-")
        body.append(
            [
                model,
                *(spread_of(part, name) for name in HEADS),
                *ratios,
                _seconds(part),
                settings or "-",
                str(len(part)),
            ]
        )
    return table(
        [
            "model",
            *HEADS.values(),
            "HR / item-kNN",
            "NDCG / item-kNN",
            "training, s",
            "settings",
            "seeds",
        ],
        body,
    )


def _position(model: str) -> int:
    return ORDER.index(model) if model in ORDER else len(ORDER)


def _seconds(found: list[Row]) -> str:
    known = [row["metrics"]["train_seconds"] for row in found if "train_seconds" in row["metrics"]]
    return f"{statistics.median(known):,.0f}" if known else "-"
