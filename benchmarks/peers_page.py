"""The page that compares this package's models with LightGBM, item-kNN, ALS and means."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks.datasets import ABOUT
from benchmarks.peers import MODELS, OURS, TRUTH
from benchmarks.tables import Row, grouped, interval, machines, number, spread_of, table

QUALITY = {
    "auc": "AUC",
    "gauc": "GAUC",
    "ne": "NE",
    "auc | repeat": "AUC, repeat",
    "auc | new": "AUC, new",
}
COSTS = {"train_s": "training, s", "predict_us_per_impression": "prediction, µs per impression"}
CHOSEN = (
    "shrinkage",
    "regularization",
    "alpha",
    "encoding",
    "num_leaves",
    "learning_rate",
    "feature_fraction",
    "trees",
    "columns",
)
"""Settings that validation chose, and the size of LightGBM's model."""
NAMES = {"lightgbm": "LightGBM", "als": "ALS", "item-knn": "item-kNN"}


def peers(every: list[Row]) -> str:
    """A section for each dataset: quality, costs, and the settings that validation chose."""
    found = [row for row in every if "against" not in row["case"]]
    pairs = grouped(
        [row for row in every if "against" in row["case"]], lambda row: row["case"]["dataset"]
    )
    lines = [
        "# Peers",
        "",
        "How do this package's models compare with what a shop may already have? Every model of a",
        "dataset is judged on the same test impressions, by the first binary label, and may read",
        "only what was known before a request.",
        "",
        "- **item mean**: the item's smoothed rate in the training window.",
        "- **user-item mean**: the log-odds of that rate and of the user's smoothed rate so far,",
        "  added.",
        "- **item-kNN**: mean cosine between a candidate and the positive items of the history, by",
        "  the users who liked both.",
        "- **ALS**: `implicit`'s matrix factorisation of the positives; the user's vector is",
        "  computed from the history before the request.",
        "- **LightGBM**: boosted trees on the hand-made features of",
        "  `benchmarks/peer_features.py`: rates, counts, exact matches with the history, and",
        "  similarity of co-occurrence vectors; with all of them, without similarity, and with all",
        "  and the counters of items that our models have by default; as an attempt, with those of",
        "  the values of item features, too.",
        "- **Our models** have the defaults of `limerank train`; nothing is tuned for a dataset.",
        "- **truth**, of simulated logs: the probability by which the log was drawn.",
        "",
        "LightGBM, item-kNN and ALS choose among a few settings by validation; the scores of the",
        "last two are mapped to probabilities there. Values are means over seeds, with the largest",
        "distance of a seed from the mean; models without a random part have one run.",
        "",
        "**AUC** is the share of pairs of a positive and a negative impression that are in the",
        "right order, **GAUC** the same within each user. **NE** is the log loss divided by that",
        "of the base rate: below 1 is better than the base rate, and lower is better. **Repeat**",
        "impressions show an item that the user's history holds, **new** ones do not.",
        "Training time of LightGBM includes its features; the search for settings is not counted.",
        "Times were taken with one thread on a machine that also did other work: read their order",
        "of magnitude only.",
        "",
        "Reproduce with `python -m benchmarks.peers --data FOLDER`.",
        "",
        *machines(found),
        "",
        "## Side by side",
        "",
        "AUC on the test split, the highest mean in bold; a dash where a model has no row yet:",
        "",
        *side_by_side(found),
    ]
    for dataset, of_dataset in grouped(found, lambda row: row["case"]["dataset"]).items():
        lines += ["", f"## {dataset}", "", f"{about(dataset)}.", "", *section(of_dataset)]
        lines += differences(pairs.get(dataset, []))
    return "\n".join(lines)


def models(found: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """(model, features) -> rows, in the order of the page."""
    order = list(MODELS)
    groups = grouped(found, lambda row: (row["case"]["model"], row["case"]["features"]))
    return dict(sorted(groups.items(), key=lambda one: (order.index(one[0][0]), one[0][1])))


def title(model: str, features: str) -> str:
    """The name of a line; peers that come in two forms name theirs."""
    name = NAMES.get(model, model)
    return f"{name}, {features}" if model == "lightgbm" and features != "all" else name


def median(rows: list[Row], name: str) -> str:
    """The median over seeds, to three digits."""
    value = statistics.median(row["metrics"][name] for row in rows)
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def side_by_side(found: list[Row]) -> list[str]:
    """Mean AUC of every model on every dataset."""
    datasets = list(dict.fromkeys(row["case"]["dataset"] for row in found))
    means = {
        (key, dataset): statistics.mean(row["metrics"]["auc"] for row in part)
        for key, rows in models(found).items()
        for dataset, part in grouped(rows, lambda row: row["case"]["dataset"]).items()
    }
    best = {
        of: max(mean for ((model, _), name), mean in means.items() if name == of and model != TRUTH)
        for of in datasets
    }

    def cell(key: tuple[str, str], dataset: str) -> str:
        mean = means.get((key, dataset))
        text = number(mean)
        return f"**{text}**" if mean == best[dataset] else text

    return table(
        ["model", *datasets],
        [[title(*key), *(cell(key, dataset) for dataset in datasets)] for key in models(found)],
    )


def about(dataset: str) -> str:
    """What a log holds."""
    text = ABOUT.get(dataset, "a small simulated log that tests the scripts")
    return text[0].upper() + text[1:]


def section(of_dataset: list[Row]) -> list[str]:
    """One dataset's impressions, its models' metrics and costs, and the settings chosen."""
    counts = of_dataset[0]["metrics"]
    text = f"{counts['impressions']:,} test impressions, {counts['positives']:,} of them positive"
    text += f"; {counts['impressions | repeat']:,} repeat an item of the history"
    text += f", {counts['positives | repeat']:,} of them positive."
    found = models(of_dataset)
    lines = [text, ""]
    lines += table(
        ["model", "seeds", *QUALITY.values(), *COSTS.values()],
        [
            [
                title(*key),
                str(len(rows)),
                *(spread_of(rows, name) for name in QUALITY),
                *(
                    f"{statistics.median(row['metrics'][name] for row in rows):.3g}"
                    for name in COSTS
                ),
            ]
            for key, rows in found.items()
        ],
    )
    chosen = [
        f"{title(*key)}: "
        + ", ".join(f"{name} {setting(rows[0]['metrics'][name])}" for name in CHOSEN
                    if name in rows[0]["metrics"])
        for key, rows in found.items()
        if any(name in rows[0]["metrics"] for name in CHOSEN)
    ]  # fmt: skip
    if chosen:
        lines += ["", f"Chosen by validation (seed 0). {'; '.join(chosen)}."]
    return lines


def setting(value: float | str) -> str:
    """A setting as text."""
    return value if isinstance(value, str) else f"{value:g}"


def differences(pairs: list[Row]) -> list[str]:
    """The AUC of our models minus that of LightGBM, with intervals."""
    if not pairs:
        return []
    others = sorted({row["case"]["against"] for row in pairs})
    cells = {(row["case"]["model"], row["case"]["against"]): row["metrics"] for row in pairs}
    heads = ["model", *(f"LightGBM, {other.partition(', ')[2]}" for other in others)]
    body = [
        [model, *(interval(cells.get((model, other)), "difference") for other in others)]
        for model in OURS
        if any(name == model for name, _ in cells)
    ]
    text = "AUC minus that of LightGBM, mean over seeds, with 95 % intervals of a paired bootstrap"
    return ["", f"{text} over users; bold where the interval excludes 0:", "", *table(heads, body)]
