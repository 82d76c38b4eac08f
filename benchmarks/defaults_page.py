"""The page on how settings of training compare on every log."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.datasets import LOGS
from benchmarks.defaults import DEFAULTS, MODELS, SETTINGS
from benchmarks.tables import Row, grouped, machines, number, table


def defaults(found: list[Row]) -> str:
    """Of each model a table of NE and one of AUC: settings by logs."""
    lines = [
        "# Defaults",
        "",
        "Which settings are good on logs of all sizes? Each model is trained with the defaults of",
        "`limerank train`, and with one of them changed. The validation split decides, calibrated",
        "as the run is, and the test split is not read.",
        "",
        "**Change** is the mean over the logs of the relative change of NE against the defaults; a",
        "setting that has no row for some log yet is compared on the others. Negative is better.",
        "**Worst** is the largest change on a single log: a default should be near the best",
        "everywhere. Seeds of one setting differ by about 0.002, so that smaller differences on a",
        "single log mean little.",
        "",
        "Reproduce with `python -m benchmarks.defaults --data FOLDER`.",
        "",
        *machines(found),
    ]
    for model in MODELS:
        of_model = [row for row in found if row["case"]["model"] == model]
        if of_model:
            lines += ["", f"## {model}", "", "NE on the validation split, the lowest in bold:", ""]
            lines += compared(of_model, "ne", min, changes=True)
            lines += ["", "AUC on the validation split, the highest in bold:", ""]
            lines += compared(of_model, "auc", max)
            lines += ["", "Epoch of the best validation:", ""]
            lines += compared(of_model, "best_epoch")
    return "\n".join(lines)


def compared(
    of_model: list[Row],
    metric: str,
    best: Callable[[list[float]], float] | None = None,
    *,
    changes: bool = False,
) -> list[str]:
    """A line for each setting, a column for each log: means over seeds.

    Args:
        of_model: rows of one model.
        metric: what is shown.
        best: chooses the value of a log that is bold; None: none is.
        changes: whether relative changes against the defaults follow.
    """
    cells = {
        key: statistics.mean(row["metrics"][metric] for row in part)
        for key, part in grouped(
            of_model, lambda row: (row["case"]["setting"], row["case"]["dataset"])
        ).items()
    }
    logs = [log for log in LOGS if (DEFAULTS, log) in cells]
    columns = {log: [value for (_, of), value in cells.items() if of == log] for log in logs}
    bold = {log: best(column) for log, column in columns.items()} if best else {}
    body = []
    for setting in SETTINGS:
        found = {log: cells[setting, log] for log in logs if (setting, log) in cells}
        if not found:
            continue
        shown = {log: number(value) for log, value in found.items()}
        shown |= {log: f"**{shown[log]}**" for log in found if found[log] == bold.get(log)}
        line = [setting, *(shown.get(log, "-") for log in logs)]
        if changes:
            relative = [100 * (value / cells[DEFAULTS, log] - 1) for log, value in found.items()]
            both = statistics.mean(relative), max(relative)
            line += ["-", "-"] if setting == DEFAULTS else [f"{one:+.2f} %" for one in both]
        body.append(line)
    return table(["setting", *logs, *(["change", "worst"] if changes else [])], body)
