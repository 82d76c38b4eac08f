"""The pages on cold starts, on exact histories and on what each part of LIME is worth."""

from __future__ import annotations

import statistics

from benchmarks.tables import (
    COLOURS,
    DOCS,
    GREY,
    MODELS,
    Row,
    grouped,
    machines,
    number,
    spread_of,
    table,
)

OF_ITEMS = (
    "auc",
    "auc through the index",
    "ne",
    "impressions",
    "auc of all items",
    "items added to the index",
    "ms to add them",
)
AS_IS = "as it is"
NOISE = 0.001
"""Differences in validation AUC on ml1m that another seed may make."""
COSTS = ("score_multiply_adds_per_candidate", "user_multiply_adds")


def coldstart(found: list[Row]) -> str:
    """Held-out items by their content; held-out users by how much of their history is seen."""
    lines = [
        "# Cold starts",
        "",
        "A tenth of the items, the last to appear, and a tenth of the users were held out of",
        "training. AUC of the main task, mean over seeds with the largest distance of a seed from",
        "it. `popularity` is a model of item ids and content, user features and context, without",
        "history: of a held-out item it knows the content, as all models do. LIME was asked about",
        "them a second time through an index that was built without them: they were added to it",
        "as a server adds items, with no training between.",
        "Reproduce with `python -m benchmarks.coldstart --data FOLDER`.",
        "",
        *machines(found),
    ]
    by_dataset = grouped(found, lambda row: row["case"]["dataset"])
    plot_coldstart(by_dataset)
    lines += ["", "![AUC by events seen](coldstart.svg)"]
    for dataset, of_dataset in by_dataset.items():
        models = by_model(of_dataset)
        items = {m: [r for r in part if r["case"]["what"] == "items"] for m, part in models.items()}
        lines += ["", f"## {dataset}", "", "Held-out items in the test split:", ""]
        body = [[name, *(spread_of(part, name) for part in items.values())] for name in OF_ITEMS]
        lines += table(["", *models], body)
        lines += ["", "Held-out users, the same requests with more and more of the history:", ""]
        body = [
            [str(events), *(spread_of(of_users(part, events), "auc") for part in models.values())]
            for events in steps(of_dataset)
        ]
        lines += table(["events seen", *models], body)
    return "\n".join(lines)


def by_model(found: list[Row]) -> dict[str, list[Row]]:
    groups = grouped(found, lambda row: row["case"]["model"])
    return {name: groups[name] for name in MODELS if name in groups}


def steps(found: list[Row]) -> list[int | str]:
    """How many events were seen, in order; "all" last."""
    seen = {row["case"]["events"] for row in found if row["case"]["what"] == "users"}
    return [*sorted(events for events in seen if events != "all"), "all"]


def of_users(found: list[Row], events: int | str) -> list[Row]:
    return [row for row in found if row["case"].get("events") == events]


def plot_coldstart(by_dataset: dict[str, list[Row]]) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(by_dataset), figsize=(3.6 * len(by_dataset), 3))
    panels = [panels] if len(by_dataset) == 1 else list(panels)
    for axes, (dataset, of_dataset) in zip(panels, by_dataset.items(), strict=True):
        seen = steps(of_dataset)
        for model, part in by_model(of_dataset).items():
            values = [[row["metrics"]["auc"] for row in of_users(part, step)] for step in seen]
            means = [statistics.mean(of_step) for of_step in values]
            style = "--" if model in ("popularity", "two-tower") else "-"
            colour = COLOURS.get(model, GREY if model == "popularity" else "#444444")
            axes.plot(range(len(seen)), means, style, marker="o", ms=3, color=colour, label=model)
        axes.set_xticks(range(len(seen)), [str(step) for step in seen])
        axes.set_xlabel("events of a held-out user that are seen")
        axes.set_title(f"{dataset}, AUC", loc="left", fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "coldstart.svg", metadata={"Date": None})
    plt.close(figure)


def exact(found: list[Row]) -> str:
    """What each form of training reached, read in two ways, and what it took."""
    lines = [
        "# Exact histories",
        "",
        "LIME-MHA on ml1m, histories of up to 512 events, two epochs. Impressions of a request",
        "share the history before it; `exact` trains each impression on exactly the events before",
        "it, 16 consecutive ones or all of a user in one pass (a step of about 1,024 impressions",
        "then sees some 64 users, or about 6). Test AUC, mean over seeds with the largest distance",
        "of a seed from it, once with exactly the events before each test impression and once with",
        "requests of 16. Times were taken with one thread while another run had the other core.",
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


BASE = "requests of 16"
EXACT_METRICS = {
    "auc, exact histories": "AUC, exact histories",
    "auc, requests of 16": "AUC, requests of 16",
    "ne, exact histories": "NE, exact histories",
    "ne, requests of 16": "NE, requests of 16",
    "train_impressions_per_s_one_thread": "impressions/s, training",
}


def ablations(found: list[Row]) -> str:
    """One part changed at a time, beside what a candidate then costs."""
    lines = [
        "# What each part of LIME is worth",
        "",
        "One part changed at a time, on ml1m, two epochs; mean over seeds with the largest",
        "distance of a seed from it. `difference` is to the unchanged model of the same seeds. A",
        "candidate's cost: scoring by the torch model, item and user encoded already, one thread;",
        "a user's: encoding the links from a full history.",
        "Reproduce with `python -m benchmarks.ablations --data FOLDER`.",
        "",
        *machines(found),
    ]
    models = by_model(found)
    plot_links(models)
    lines += ["", "![AUC and cost by links](ablations.svg)", "", *choices(models)]
    for model, of_model in models.items():
        base = {
            row["seed"]: row["metrics"]["auc"] for row in of_model if row["case"]["what"] == "base"
        }
        body = []
        changes = grouped(of_model, lambda row: f"{row['case']['what']}|{row['case']['value']}")
        for name, part in changes.items():
            gaps = [
                row["metrics"]["auc"] - base[row["seed"]] for row in part if row["seed"] in base
            ]
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


def choices(models: dict[str, list[Row]]) -> list[str]:
    """For each part what is best by validation, and what it costs; never by the test split."""
    body = []
    for model, of_model in models.items():
        base = [row for row in of_model if row["case"]["what"] == "base"]
        parts = grouped(of_model, lambda row: row["case"]["what"])
        for part, rows in parts.items():
            if part == "base" or not base:
                continue
            values = grouped(rows, lambda row: row["case"]["value"])
            seeds = {row["seed"] for row in base}
            for of in values.values():
                seeds &= {row["seed"] for row in of}
            if not seeds:  # values of different seeds do not compare
                continue
            values = {
                value: [row for row in of if row["seed"] in seeds] for value, of in values.items()
            }
            gains = {AS_IS: 0.0} | {value: gain(of, base) for value, of in values.items()}
            costs = {AS_IS: (1.0, 1.0)} | {value: cost(of, base) for value, of in values.items()}
            best = max(gains, key=lambda value: gains[value])
            good = [value for value in gains if gains[value] >= gains[best] - NOISE]
            choice = min(good, key=lambda value: (costs[value], value != AS_IS))
            body.append(
                [
                    model,
                    part,
                    choice,
                    f"{gains[choice]:+.4f}",
                    *(f"{share:.2f}" for share in costs[choice]),
                    f"{best}: {gains[best]:+.4f}, "
                    + ", ".join(f"{share:.2f}" for share in costs[best]),
                    str(len(seeds)),
                ]
            )
    told = [
        "## What should I choose?",
        "",
        "Of each part the cheapest value whose validation AUC is within",
        f"{NOISE:g} of the best one (seeds differ by as much), what it gained over the unchanged",
        "model, and what scoring a candidate and encoding a user cost beside it, in multiply-adds;",
        "by the seeds that all values of a part have.",
        "",
    ]
    heads = ["model", "part", "choose", "gain", "candidate", "user"]
    heads += ["best: gain, candidate, user", "seeds"]
    return [*told, *table(heads, body)]


def gain(rows: list[Row], base: list[Row]) -> float:
    """Mean difference in validation AUC to the unchanged model of the same seeds."""
    of_base = {row["seed"]: row["metrics"]["best_like/auc"] for row in base}
    return statistics.mean(row["metrics"]["best_like/auc"] - of_base[row["seed"]] for row in rows)


def cost(rows: list[Row], base: list[Row]) -> tuple[float, float]:
    """Multiply-adds of a candidate and of a user, as shares of the unchanged model's."""

    def share(name: str) -> float:
        ours, theirs = (statistics.mean(row["metrics"][name] for row in of) for of in (rows, base))
        return ours / theirs

    return share(COSTS[0]), share(COSTS[1])


def plot_links(models: dict[str, list[Row]]) -> None:
    """Test AUC and scoring cost against the number of links."""
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(5, 4.4), sharex=True)
    every: set[int] = set()
    for model, of_model in models.items():
        points: dict[int, list[Row]] = {}
        for row in of_model:
            if row["case"]["what"] in ("links", "base"):
                points.setdefault(int(row["case"]["value"] or 32), []).append(row)
        links = sorted(points)
        every.update(links)
        for axes, name in ((upper, "auc"), (lower, "us_per_candidate")):
            values = [statistics.mean(r["metrics"][name] for r in points[n]) for n in links]
            axes.plot(links, values, "o-", ms=4, color=COLOURS[model], label=model)
    upper.set_xscale("log", base=2)
    upper.set_xticks(sorted(every), [str(n) for n in sorted(every)])
    upper.set_ylabel("test AUC")
    lower.set_ylabel("microseconds\nper candidate")
    lower.set_xlabel("links")
    lower.set_ylim(bottom=0)
    upper.legend(frameon=False)
    for axes in (upper, lower):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "ablations.svg", metadata={"Date": None})
    plt.close(figure)
