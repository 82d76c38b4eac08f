"""The page on warm starts: metrics by day, and what a day costs."""

from __future__ import annotations

import statistics

from benchmarks.tables import Row, grouped, machines, table

METRICS = {"auc": "AUC", "hr@10": "HR@10"}
"""What decides, the first that a row has."""
OTHERS = ("ne", "gauc", "ndcg@10")


def warmstart(found: list[Row]) -> str:
    """Daily warm starts beside training from random weights, and a model that stays."""
    lines = [
        "# Warm starts",
        "",
        "The last seven days of a log are tests, one after the other. *Scratch* is trained from",
        "random weights every day; *warm* starts from the warm model of the day before",
        "(`limerank train --from`); *frozen* is the model of the first day. Each day's dataset is",
        "prepared from the start, so codes, buckets and scales of two days differ. Seconds are",
        "those of the processor for a full `train` with one thread, the first day left out. Models",
        "are small (`benchmarks/warmstart.py` names the settings), and one seed was measured:",
        "differences of some thousandths between two models on one day are noise. Reproduce with",
        "`make bench-warmstart DATA=FOLDER`.",
        "",
        *machines(found),
        "",
        *summary(found),
    ]
    for name, part in grouped(found, lambda row: row["case"]["dataset"]).items():
        lines += ["", f"## {name}", "", *by_day(part)]
        lines += settings(part)
    return "\n".join(lines)


def metric_of(found: list[Row]) -> str:
    """The name of the metric that decides."""
    return next(name for name in METRICS if name in found[0]["metrics"])


def of(found: list[Row], how: str, settings: str = "") -> dict[int, Row]:
    """Day -> row of a method."""
    return {
        row["case"]["day"]: row
        for row in found
        if row["case"]["how"] == how and row["case"].get("settings", "") == settings
    }


def mean(found: dict[int, Row], metric: str, days: list[int]) -> float:
    """Mean of a metric over some days."""
    return statistics.mean(found[day]["metrics"][metric] for day in days)


def shared_days(*methods: dict[int, Row]) -> list[int]:
    """The days after the first that all methods have."""
    return sorted(set.intersection(*(set(one) for one in methods)) - {1})


def summary(found: list[Row]) -> list[str]:
    """Means over the days after the first, one line for each log."""
    body = []
    for name, part in grouped(found, lambda row: row["case"]["dataset"]).items():
        scratch, warm, frozen = (of(part, how) for how in ("scratch", "warm", "frozen"))
        days, metric = shared_days(scratch, warm, frozen), metric_of(part)
        if not days:
            continue
        means = [mean(one, metric, days) for one in (scratch, warm, frozen)]
        seconds = [mean(one, "cpu_seconds", days) for one in (scratch, warm)]
        body.append(
            [
                name,
                METRICS[metric],
                *(f"{one:.4f}" for one in means),
                f"{means[1] - means[0]:+.4f}",
                *(f"{one:.1f}" for one in seconds),
                f"{seconds[0] / seconds[1]:.1f}",
            ]
        )
    head = ["log", "metric", "scratch", "warm", "frozen", "warm - scratch"]
    return table([*head, "scratch, s", "warm, s", "times faster"], body)


def by_day(part: list[Row]) -> list[str]:
    """The metric of each day."""
    scratch, warm, frozen = (of(part, how) for how in ("scratch", "warm", "frozen"))
    metric = metric_of(part)
    second = next(name for name in OTHERS if name in part[0]["metrics"])
    head = ["day", "requests"]
    for name in (METRICS[metric], second.upper()):
        head += [f"{name}: scratch", "warm", "frozen"]
    body = []
    for day, row in sorted(scratch.items()):
        cells = [str(day), f"{row['metrics']['requests']:,}"]
        for name in (metric, second):
            cells += [
                f"{one[day]['metrics'][name]:.4f}" if day in one else "-"
                for one in (scratch, warm, frozen)
            ]
        seconds = [
            f"{one[day]['metrics']['cpu_seconds']:.1f}"
            if day in one and "cpu_seconds" in one[day]["metrics"]
            else "-"
            for one in (scratch, warm)
        ]
        body.append(cells + seconds)
    return table([*head, "seconds: scratch", "warm"], body)


def settings(part: list[Row]) -> list[str]:
    """Other settings of warm starts, as means over the days after the first."""
    scratch, metric = of(part, "scratch"), metric_of(part)
    kinds = sorted(
        {row["case"].get("settings", "") for row in part if row["case"]["how"] == "warm"}
    )
    if len(kinds) < 2:
        return []
    days = shared_days(scratch, *(of(part, "warm", kind) for kind in kinds))
    if not days:
        return []
    body = []
    for kind in kinds:
        own = of(part, "warm", kind)
        difference = mean(own, metric, days) - mean(scratch, metric, days)
        seconds = mean(own, "cpu_seconds", days)
        body.append([kind or "defaults", f"{difference:+.4f}", f"{seconds:.1f}"])
    return ["", *table(["settings of warm starts", "warm - scratch", "seconds"], body)]
