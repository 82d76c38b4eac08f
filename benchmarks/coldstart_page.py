"""The page on cold starts."""

from __future__ import annotations

import statistics

from benchmarks.tables import (
    COLOURS,
    DOCS,
    GREY,
    Row,
    by_model,
    grouped,
    machines,
    spread_of,
    table,
)
from limerank.models.config import ModelConfig

OF_ITEMS = (
    "auc",
    "auc through the index",
    "ne",
    "impressions",
    "auc of all items",
    "items added to the index",
    "ms to add them",
)


def coldstart(found: list[Row]) -> str:
    """Held-out items by their content; held-out users by the length of their history."""
    lines = [
        "# Cold starts",
        "",
        "A tenth of the items (the last to appear) and a tenth of the users were held out of",
        "training. Values are means over seeds, with the largest distance of a seed from the mean;",
        "AUC is that of the main task. `popularity` is a model of item ids and content, user",
        "features and context, without history: of a held-out item it knows the content, as all",
        "models do. LIME scored held-out items a second time, through an index that was built",
        "without them and to which they were added as a server adds items, without training.",
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
        lines += ["", "Held-out users: the same requests with more and more of the history:", ""]
        body = [
            [str(events), *(spread_of(of_users(part, events), "auc") for part in models.values())]
            for events in steps(of_dataset)
        ]
        lines += table(["events seen", *models], body)
        lines += hidden_ids(of_dataset)
    return "\n".join(lines)


def hidden_ids(found: list[Row]) -> list[str]:
    """What hiding a share of ids in training gains for items that have none."""
    others = grouped(
        [row for row in found if row["case"]["what"] == "id dropout"],
        lambda row: row["case"]["share"],
    )
    if not others:
        return []
    model = next(iter(others.values()))[0]["case"]["model"]
    usual = [r for r in found if r["case"]["what"] == "items" and r["case"]["model"] == model]
    shares = {**others, ModelConfig().id_dropout: usual}
    body = [
        [str(share), spread_of(part, "auc"), spread_of(part, "auc of all items"), str(len(part))]
        for share, part in sorted(shares.items())
    ]
    heads = ["share", "held-out items", "all items", "seeds"]
    return ["", f"AUC of {model} by the share of ids that training hides:", "", *table(heads, body)]


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
