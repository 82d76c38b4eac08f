"""The page on the online test in simulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import abtest as bench
from benchmarks.abtest_budget import FULL, STAGED, within
from benchmarks.abtest_world import EXAMINED, LENGTH, Size
from benchmarks.tables import COLOURS, DOCS, GREY, Row, grouped, machines, number, table

BUDGETS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""CPU milliseconds of a ranking."""
SIZES = {"full": Size(), "small": bench.SMALL}
CONTROL = "lime"
ASSUMES = f"""\
The simulation is that of `limerank synth`: an item has a topic within a category, a user likes
a few topics and is shown a few others in vain, and interests end and are replaced. The
probability of a click is one documented function (`click_chances` in `limerank/data/synthetic`)
of user and item, times the probability that the user looks at the position, {EXAMINED:g} to the
power of the position less 1. No model has this form.

What it assumes: the topic, the quality and the length of an item matter, and nothing else;
clicks do not change a user's interests; a ranking is judged item by item; users come back
however good the rankings are. Most items have their topic among their tags, so that new items
can be ranked by content. Interests that last weeks favour models that read the history, and a
catalogue of many similar items favours ranking all of it: a shop of few products that everybody
buys is another world. All arms learn from one log, which holds what the others showed.
"""
CLICKS = """\
Clicks are counted as `limerank ab` does, with 95 % intervals over users. *Expected* clicks are
those of the truth for what was shown, without the chance of each click. *Model CPU* is the time
of the processor for encoding the history and finding the best items, measured before the test.
*Server CPU* is the time of the server's processor for a ranking during the test, with HTTP,
JSON and the store: *two-stage* sends two requests and so pays for them twice. *ms* is how long
the client waits, one request at a time; other programs ran on the machine.
"""
BUDGET = """\
Expected clicks per request, by the truth, for {asked} users at the end of the log before the
test; all models are trained on this log alone. Each cell has the best configuration within the
budget: its history events, and its candidates where a retriever (the two-tower model) stands
before the ranker. The best is chosen by these same users, for all models alike. *The truth* is
the best possible ranking. A dash: no configuration is that fast. Half of a 95 % interval over
users is about {half:.2f}; the users are the same for all models. A part of each time is that of
Python and torch, whatever a model computes; [Latency](latency.md) measures less of it.
"""


def abtest(found: list[Row]) -> str:
    """Arms, days, and engagement over the budget."""
    by_size = grouped(found, lambda row: row["case"]["size"])
    kind = next(
        name for name in SIZES if any(row["case"]["what"] == "arm" for row in by_size.get(name, []))
    )
    rows, size = by_size[kind], SIZES[kind]
    arms = [row for row in rows if row["case"]["what"] == "arm"]
    configurations = [row for row in rows if row["case"]["what"] == "configuration"]
    seed = arms[0]["seed"]
    plot(configurations, DOCS / "abtest.svg")
    documented = (bench.__doc__ or "").replace("``", "`").strip()
    days = arms[0]["case"]["days"]
    return "\n".join(
        [
            "# An online test in simulation",
            "",
            documented,
            "",
            f"These rows: {size.users:,} users, {size.items:,} items at the end, {size.requests:,}",
            f"requests a day of {LENGTH} shown items, {size.before} days of log before the test,",
            f"days of test: {days} of {size.days}, seed {seed},",
            f"models of width {size.width}, histories of at most {size.history} events",
            f"(`--{kind}`)." if kind == "small" else "(the full size).",
            "",
            *machines(rows),
            "",
            "## Where LIME wins, and where it does not",
            "",
            *stopped(days, size),
            *verdicts(arms),
            "",
            *of_arms(arms),
            "",
            CLICKS,
            "## Day by day",
            "",
            *by_day([row for row in rows if row["case"]["what"] == "day"]),
            "",
            "Expected clicks per request. The model that a day's log trains serves the next day,",
            "if the gate lets it pass.",
            "",
            "## Engagement over the budget",
            "",
            "![Expected clicks per request over CPU milliseconds](abtest.svg)",
            "",
            *over_budget(configurations),
            "",
            BUDGET.format(asked=size.asked, half=half_width(configurations)),
            "## What the simulation assumes",
            "",
            ASSUMES.strip(),
        ]
    )


def stopped(days: int, size: Size) -> list[str]:
    """A warning where the test has not run to its end."""
    if days >= size.days:
        return []
    return [
        f"**The test was stopped after {days} of {size.days} days: its intervals are wide, and it",
        "does not rank the arms.**",
        "",
    ]


def verdicts(arms: Sequence[Row]) -> list[str]:
    """A line for each arm: whether LIME is better."""
    lines = []
    for row in arms:
        name, metrics = row["case"]["arm"], row["metrics"]
        if name == CONTROL:
            continue
        low, high, value = (
            metrics[f"per_request_difference_{bound}"] for bound in ("low", "high", "value")
        )
        if low is None:
            what = "too few users for an interval"
        elif high < 0:
            what = "LIME wins"
        elif low > 0:
            what = f"LIME does not win: *{name}* is better"
        else:
            what = "undecided: the interval contains 0"
        lines.append(
            f"- *{name}* less *{CONTROL}*: {value:+.3f} clicks per request "
            f"({low:+.3f} to {high:+.3f}): {what}."
            if low is not None
            else f"- *{name}*: {what}."
        )
    return lines


def of_arms(arms: Sequence[Row]) -> list[str]:
    """The table of arms, the best first."""
    order = sorted(arms, key=lambda row: -row["metrics"]["per_request_value"])
    body = []
    for row in order:
        metrics = row["metrics"]
        candidates = metrics.get("candidates") or "all"
        body.append(
            [
                row["case"]["arm"],
                f"{metrics['model']}, {metrics['history']}, {candidates}",
                f"{metrics['users']:,}, {metrics['requests']:,}",
                between(metrics, "per_user"),
                between(metrics, "per_request"),
                f"{metrics['expected_per_request']:.3f}",
                f"{metrics['cpu_ms']:.2f}",
                f"{metrics['server_cpu_ms']:.1f}",
                f"{metrics['ms_p50']:.1f}, {metrics['ms_p99']:.1f}",
            ]
        )
    head = ["arm", "model, history, candidates", "users, requests", "clicks per user",
            "per request",
            "expected", "model CPU ms", "server CPU ms", "ms p50, p99"]  # fmt: skip
    return table(head, body)


def between(metrics: dict[str, Any], name: str) -> str:
    """A value with its bounds."""
    value, low, high = (metrics[f"{name}_{bound}"] for bound in ("value", "low", "high"))
    if low is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def by_day(found: Sequence[Row]) -> list[str]:
    """Expected clicks per request, a line for each day."""
    days = grouped(found, lambda row: row["case"]["day"])
    body = []
    for day, part in sorted(days.items()):
        values = {row["case"]["arm"]: row["metrics"] for row in part}
        body.append(
            [str(day)]
            + [f"{values[arm]['expected_per_request']:.3f}" for arm in bench.ARMS]
            + [values[CONTROL].get("refresh") or "-", number(values[CONTROL].get("refresh_s"))]
        )
    return table(["day", *bench.ARMS, "refresh of lime", "its seconds"], body)


def configurations_of(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as :func:`benchmarks.abtest_budget.measure` returns them."""
    return [{**row["case"], **row["metrics"]} for row in found]


def over_budget(found: Sequence[Row]) -> list[str]:
    """The best configuration of each model within each budget."""
    known = configurations_of(found)
    body = []
    for model in (*FULL, *STAGED):
        cells = []
        for budget in BUDGETS:
            best = within(known, model, budget)
            if best is None:
                cells.append("-")
                continue
            of = f"{best['history']}"
            of += f", {best['candidates']}" if best["candidates"] else ""
            cells.append(f"{best['expected']:.3f} ({of})")
        body.append([model + (" after two-tower" if model in STAGED else ""), *cells])
    for name in ("the truth", "random"):
        one = next(one for one in known if one["arm"] == name)
        body.append([name, *[f"{one['expected']:.3f}"] * len(BUDGETS)])
    return table(["CPU ms", *(f"{budget:g}" for budget in BUDGETS)], body)


def half_width(found: Sequence[Row]) -> float:
    """Half of the mean interval of the configurations."""
    widths = [row["metrics"]["high"] - row["metrics"]["low"] for row in found]
    return sum(widths) / len(widths) / 2


def plot(found: Sequence[Row], path: Path) -> None:
    """Expected clicks over CPU time: each configuration, and the best up to there as a line."""
    import matplotlib.pyplot as plt

    known = configurations_of(found)
    figure, axes = plt.subplots(figsize=(7.2, 4.0))
    more = {"two-tower": "#e69f00", "item-knn": "#56b4e9", "most-popular": GREY}
    for model in (*FULL, *STAGED):
        some = sorted(
            (one for one in known if one["arm"] == model), key=lambda one: float(one["cpu_ms"])
        )
        colour = COLOURS.get(model, more.get(model, GREY))
        times = [one["cpu_ms"] for one in some]
        values = [one["expected"] for one in some]
        axes.plot(times, values, "o", color=colour, ms=4, alpha=0.5)
        best = [max(values[: at + 1]) for at in range(len(values))]
        axes.step([*times, 100.0], [*best, best[-1]], where="post", color=colour, label=model)
    truth = next(one for one in known if one["arm"] == "the truth")
    axes.axhline(truth["expected"], color="#333333", ls=":", lw=1, label="the truth")
    axes.set_xscale("log")
    axes.set_xlim(right=100.0)
    axes.set_xlabel("CPU milliseconds of a ranking, at most")
    axes.set_ylabel("expected clicks per request")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
