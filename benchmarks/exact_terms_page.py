"""The page on what anchored links and collaborative vectors are worth."""

from __future__ import annotations

import statistics

from benchmarks.exact_terms import ANCHORS, MODELS, VECTORS
from benchmarks.peers_page import about
from benchmarks.tables import Row, grouped, machines, spread_of, table

FORMS = [(anchors, vectors) for vectors in VECTORS for anchors in ANCHORS]
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
        "# Exact matches and collaborative vectors",
        "",
        "What are [anchored links](../model.md) and collaborative vectors worth on a log? Both",
        "forms of LIME are trained with the defaults of `limerank train`, and with one form of",
        "anchored links: none, those of items (*ids*), those of the values of content features",
        "(*values*), or both; with and without collaborative vectors of the items. The choice of",
        "a form belongs to the validation split. All other columns are of the test split: means",
        "over seeds, with the largest distance of a seed from the mean. **Repeat** impressions",
        "show an item that the user's history holds, **new** ones do not. Training times are",
        "medians, of a machine that also did other work.",
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
    """One model's forms on one log, the best validation AUC in bold."""
    cells = grouped(of_model, lambda row: (row["case"]["anchors"], row["case"]["vectors"]))
    validated = {
        form: statistics.mean(row["metrics"]["validation_auc"] for row in part)
        for form, part in cells.items()
    }
    best = max(validated.values())

    def line(form: tuple[str, str]) -> list[str]:
        part = cells[form]
        shown = [spread_of(part, name) for name in SHOWN if name != "train_s"]
        if validated[form] == best:
            shown[0] = f"**{shown[0]}**"
        seconds = statistics.median(row["metrics"]["train_s"] for row in part)
        return [*form, str(len(part)), *shown, f"{seconds:,.0f}"]

    return table(
        ["anchors", "vectors", "seeds", *SHOWN.values()],
        [line(form) for form in FORMS if form in cells],
    )
