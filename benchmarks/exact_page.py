"""The page on exact histories."""

from __future__ import annotations

import statistics

from benchmarks.tables import Row, grouped, machines, spread_of, table

BASE = "requests of 16"
EXACT_METRICS = {
    "auc, exact histories": "AUC, exact histories",
    "auc, requests of 16": "AUC, requests of 16",
    "ne, exact histories": "NE, exact histories",
    "ne, requests of 16": "NE, requests of 16",
    "train_impressions_per_s_one_thread": "impressions/s, training",
}


def exact(found: list[Row]) -> str:
    """The quality of each form of training, evaluated with two kinds of histories, and its cost."""
    lines = [
        "# Exact histories",
        "",
        "LIME-MHA on ml1m, histories of up to 512 events, two epochs. The impressions of a request",
        "share the history before it. `exact` trains each impression on exactly the events before",
        "it: 16 consecutive impressions in one pass, or all of a user (a step of about 1,024",
        "impressions then has some 64 users, or about 6). Test AUC is evaluated once with exactly",
        "the events before each impression and once with requests of 16; values are means over",
        "seeds, with the largest distance of a seed from the mean. With requests of 1 a step has",
        "fewer impressions, because memory bounds the events of a step; the learning rates are the",
        "same. Times were taken with one thread while another run used the other core.",
        "Reproduce with `python -m benchmarks.exact --data FOLDER`.",
        "",
        *machines(found),
        "",
    ]
    base = {row["seed"]: row["metrics"] for row in found if row["case"]["trained with"] == BASE}
    body = []
    for form, part in grouped(found, lambda row: row["case"]["trained with"]).items():
        times = [
            row["metrics"]["train_seconds"] / base[row["seed"]]["train_seconds"]
            for row in part
            if row["seed"] in base
        ]
        body.append(
            [
                form,
                *(spread_of(part, name) for name in EXACT_METRICS),
                f"{statistics.median(times):.2f}" if times else "-",
                str(len(part)),
            ]
        )
    heads = ["trained with", *EXACT_METRICS.values(), f"time, {BASE} = 1", "seeds"]
    return "\n".join([*lines, *table(heads, body)])
