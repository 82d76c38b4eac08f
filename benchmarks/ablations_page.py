"""The page on what each part of LIME contributes, and which settings to choose."""

from __future__ import annotations

import statistics

from benchmarks.tables import (
    COLOURS,
    DOCS,
    Row,
    by_model,
    grouped,
    machines,
    number,
    spread_of,
    table,
)

DEFAULTS: dict[str, str] = {
    "links": "32",
    "heads": "1",
    "blocks": "3",
    "mask": "links and events attend to each other",
    "phi": "SiLU",
    "reading": "attention as in LIME-MHA",
    "contextual links": "on",
    "item weights": "from raw links",
    "head": "gated ReLU, 32 units",
    "hidden": "32",
    "id dropout": "0.1",
    "history": "128",
}
"""Part -> its default, in words."""
BASE = "base"
NOISE = 0.001
"""Validation AUC on ml1m differs by this much between seeds."""
COSTS = ("score_multiply_adds_per_candidate", "user_multiply_adds")


def ablations(found: list[Row]) -> str:
    """One part changed at a time: quality, and the cost of a candidate and of a user."""
    lines = [
        "# What each part of LIME contributes",
        "",
        "One part of the model is changed at a time, on ml1m, with two epochs. Values are means",
        "over seeds, with the largest distance of a seed from the mean. `difference` compares with",
        "the unchanged model of the same seeds. The cost of a candidate is that of scoring it with",
        "the torch model on one thread, when item and user are already encoded; the cost of a user",
        "is that of encoding the links from a full history. Other runs shared the machine while",
        "microseconds were taken: compare multiply-adds.",
        "Reproduce with `python -m benchmarks.ablations --data FOLDER`.",
        "",
        *machines(found),
    ]
    models = by_model(sorted(found, key=in_order))
    plot_links(models)
    plot_parts(models)
    lines += ["", "![AUC and cost by links](ablations.svg)", "", *choices(models)]
    lines += ["", "![Change of the AUC by part](ablations-parts.svg)", ""]
    lines += ["Grey: difference between seeds. In brackets: cost of a candidate, default 1."]
    for model, of_model in models.items():
        base = {row["seed"]: row for row in of_model if row["case"]["what"] == BASE}
        body = []
        changes = grouped(of_model, lambda row: f"{row['case']['what']}|{row['case']['value']}")
        for name, part in changes.items():
            gaps = [gap(row, base, "auc") for row in part if row["seed"] in base]
            body.append(
                [
                    *name.split("|"),
                    spread_of(part, "auc"),
                    f"{statistics.mean(gaps):+.4f}" if gaps and "base|" not in name else "",
                    number(statistics.mean(r["metrics"]["best_like/auc"] for r in part)),
                    *(spread_of(part, name) for name in COSTS),
                    number(statistics.median(r["metrics"]["us_per_candidate"] for r in part)),
                    str(len(part)),
                ]
            )
        heads = ["part", "changed to", "test AUC", "difference", "validation AUC"]
        heads += ["multiply-adds of a candidate", "of a user", "microseconds", "seeds"]
        lines += ["", f"## {model}", "", *table(heads, body)]
    return "\n".join(lines)


def in_order(row: Row) -> tuple[int, float]:
    """The unchanged model, then part by part; numbers ascend, other values keep their order."""
    what, value = row["case"]["what"], row["case"]["value"]
    number_of_it = value.replace(".", "", 1).isdigit()
    return [BASE, *DEFAULTS].index(what), float(value) if number_of_it else 0.0


def choices(models: dict[str, list[Row]]) -> list[str]:
    """For each part the cheapest value that is as good and the best one, by validation alone."""
    body = []
    for model, of_model in models.items():
        base = [row for row in of_model if row["case"]["what"] == BASE]
        for part, rows in grouped(of_model, lambda row: row["case"]["what"]).items():
            if part == BASE:
                continue
            values = grouped(rows, lambda row: row["case"]["value"])
            seeds = {row["seed"] for row in base}
            for of in values.values():
                seeds &= {row["seed"] for row in of}
            if not seeds:  # values of different seeds do not compare
                continue
            found = {
                value: (gain(of, base), *cost(of, base))
                for value, rows in values.items()
                if (of := [row for row in rows if row["seed"] in seeds])
            }
            less = [
                value
                for value, (gained, candidate, user) in found.items()
                if gained >= -NOISE and max(candidate, user) <= 1.01 and min(candidate, user) < 0.99
            ]
            more = [value for value, (gained, _, _) in found.items() if gained >= NOISE]
            body.append(
                [
                    model,
                    part,
                    DEFAULTS[part],
                    described(found, min(less, key=lambda value: found[value][1:], default=None)),
                    described(found, max(more, key=lambda value: found[value][0], default=None)),
                    str(len(seeds)),
                ]
            )
    words = [
        "## What should I choose?",
        "",
        "Start with the defaults. For each part the table names two alternatives: the cheapest",
        f"value whose validation AUC is at most {NOISE:g} below the default's (seeds differ by as",
        "much), and the best value, if it gains at least that. Brackets hold the difference in",
        "validation AUC, then the multiply-adds of scoring a candidate and of encoding a user,",
        "relative to the default. Two epochs favour settings that learn fast. Hiding ids helps",
        "items that have none; [cold starts](coldstart.md) shows how much, and what it costs all",
        "items after more epochs.",
        "",
    ]
    heads = ["model", "part", "default", "as good and cheaper", "better", "seeds"]
    return [*words, *table(heads, body)]


def described(found: dict[str, tuple[float, float, float]], value: str | None) -> str:
    if value is None:
        return "-"
    gained, candidate, user = found[value]
    return f"{value} ({gained:+.4f}; {candidate:.2f}, {user:.2f})"


def gain(rows: list[Row], base: list[Row]) -> float:
    """Mean difference in validation AUC to the unchanged model of the same seeds."""
    of_base = {row["seed"]: row for row in base}
    return statistics.mean(gap(row, of_base, "best_like/auc") for row in rows)


def gap(row: Row, base: dict[int, Row], name: str) -> float:
    """A metric minus that of the unchanged model of the same seed."""
    change: float = row["metrics"][name] - base[row["seed"]]["metrics"][name]
    return change


def cost(rows: list[Row], base: list[Row]) -> tuple[float, float]:
    """Multiply-adds of a candidate and of a user, as shares of the unchanged model's."""

    def share(name: str) -> float:
        ours, theirs = (statistics.mean(row["metrics"][name] for row in of) for of in (rows, base))
        return ours / theirs

    return share(COSTS[0]), share(COSTS[1])


def plot_links(models: dict[str, list[Row]]) -> None:
    """Test AUC, and what a candidate and a user cost, against the number of links."""
    import matplotlib.pyplot as plt

    shown = {
        "test AUC": ("auc", 1.0),
        "multiply-adds of\na candidate, thousands": (COSTS[0], 1e3),
        "multiply-adds of\na user, millions": (COSTS[1], 1e6),
    }
    figure, panels = plt.subplots(len(shown), 1, figsize=(5, 6), sharex=True)
    every: set[int] = set()
    for number_of, (model, of_model) in enumerate(models.items()):
        points: dict[int, list[Row]] = {}
        for row in of_model:
            if row["case"]["what"] in ("links", BASE):
                points.setdefault(int(row["case"]["value"] or 32), []).append(row)
        links = sorted(points)
        every.update(links)
        for axes, (name, unit) in zip(panels, shown.values(), strict=True):
            values = [statistics.mean(r["metrics"][name] for r in points[n]) / unit for n in links]
            # A candidate costs the same in both: the later line is thinner.
            style = {"ms": 4, "lw": 3.0 - 1.8 * number_of, "color": COLOURS[model]}
            axes.plot(links, values, "o-", label=model, **style)
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks(sorted(every), [str(n) for n in sorted(every)])
    panels[0].legend(frameon=False)
    panels[-1].set_xlabel("links")
    for axes, label in zip(panels, shown, strict=True):
        axes.set_ylabel(label)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in panels[1:]:
        axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(DOCS / "ablations.svg", metadata={"Date": None})
    plt.close(figure)


def plot_parts(models: dict[str, list[Row]]) -> None:
    """The change of the test AUC by part and value, with the relative cost of a candidate."""
    import matplotlib.pyplot as plt

    bars = {}
    for model, of_model in models.items():
        base = {row["seed"]: row for row in of_model if row["case"]["what"] == BASE}
        values = grouped(of_model, lambda row: f"{row['case']['what']}: {row['case']['value']}")
        bars[model] = [
            (name, statistics.mean(gaps), cost(part, list(base.values()))[0])
            for name, part in values.items()
            if (gaps := [gap(row, base, "auc") for row in part if row["seed"] in base])
            and part[0]["case"]["what"] != BASE
        ]
    high = 0.19 * max(len(part) for part in bars.values()) + 0.8
    figure, panels = plt.subplots(1, len(bars), figsize=(4.8 * len(bars), high), squeeze=False)
    for axes, (model, part) in zip(panels[0], bars.items(), strict=True):
        positions = range(len(part))
        axes.axvspan(-NOISE, NOISE, color="#eeeeee")
        axes.hlines(positions, 0, [change for _, change, _ in part], color=COLOURS[model], lw=1)
        axes.plot([change for _, change, _ in part], positions, "o", ms=4, color=COLOURS[model])
        names = [f"{name}  (x {share:.2g})" for name, _, share in part]
        axes.set_yticks(positions, names, fontsize=7)
        axes.invert_yaxis()
        axes.set_title(model, loc="left", fontsize=9)
        axes.set_xlabel("change of the test AUC")
        axes.locator_params(axis="x", nbins=5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "ablations-parts.svg", metadata={"Date": None})
    plt.close(figure)
