"""The page on what each part beside the links is worth."""

from __future__ import annotations

import statistics

from benchmarks.exact_terms import FORMS, MODELS
from benchmarks.peers_page import about
from benchmarks.tables import Row, grouped, machines, spread_of, table

SHOWN = {
    "validation_auc": "AUC, validation",
    "validation_ne": "NE, validation",
    "auc": "AUC",
    "gauc": "GAUC",
    "ne": "NE",
    "auc | repeat": "AUC, repeat",
    "auc | new": "AUC, new",
    "train_s": "training, s",
}


def exact_terms(found: list[Row]) -> str:
    """A section for each log: every form of both models."""
    lines = [
        "# What each part is worth",
        "",
        "Beside its links, LIME has [anchored links](../model.md#anchored-links) of items and of",
        "the values of content features, [neighbours](../model.md#neighbours), collaborative",
        "vectors, base rates, [counters](../model.md#counters), a profile and curves of numeric",
        "features, and anchored links know the newest positive event. What is each worth?",
        "The models are trained with the defaults of `limerank train`, and with one part changed.",
        "The choice of a form belongs to the validation split (best NE in bold, calibrated as the",
        "run is). All other columns are of the test split: means over seeds, with the largest",
        "distance of a seed from the mean. **Repeat** impressions show an item that the user's",
        "history holds, **new** ones do not. Training times are medians, of a machine that also",
        "did other work.",
        "",
        "Reproduce with `python -m benchmarks.exact_terms --data FOLDER`.",
        "",
        *machines(found),
    ]
    for dataset, of_dataset in grouped(found, lambda row: row["case"]["dataset"]).items():
        lines += ["", f"## {dataset}", "", f"{about(dataset)}."]
        for model in MODELS:
            of_model = [row for row in of_dataset if row["case"]["model"] == model]
            if of_model:
                lines += ["", f"{model}:", "", *forms(of_model)]
    return "\n".join(lines)


def forms(of_model: list[Row]) -> list[str]:
    """One model's forms on one log, the best validation NE in bold."""
    cells = grouped(of_model, lambda row: row["case"]["form"])
    validated = {
        form: statistics.mean(row["metrics"]["validation_ne"] for row in part)
        for form, part in cells.items()
    }
    best = min(validated.values())

    def line(form: str) -> list[str]:
        part = cells[form]
        shown = [spread_of(part, name) for name in SHOWN if name != "train_s"]
        if validated[form] == best:
            at = list(SHOWN).index("validation_ne")
            shown[at] = f"**{shown[at]}**"
        seconds = statistics.median(row["metrics"]["train_s"] for row in part)
        return [form, str(len(part)), *shown, f"{seconds:,.0f}"]

    return table(
        ["form", "seeds", *SHOWN.values()],
        [line(form) for form in FORMS if form in cells],
    )
