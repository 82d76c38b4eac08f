"""Attempts to improve the models: one row for each finished run.

    python -m benchmarks.attempts RUN "what was tried"

The row holds the best validation metric of the run: attempts are judged by validation alone. The
description says so where the code of an attempt is no longer in the repository.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality import validated
from benchmarks.rows import write_row
from benchmarks.tables import Row, grouped, machines, number, table

SHOWN = {
    "model": "model",
    "rate": "learning_rate",
    "table_rate": "table_learning_rate",
    "epochs": "epochs",
}
"""Name in a row's case -> setting."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("description", help="what was tried")
    parser.add_argument("--dataset", help="name of the dataset (default: that of its folder)")
    given = parser.parse_args(arguments)
    config = json.loads((given.run / "config.json").read_text(encoding="utf-8"))
    last = json.loads((given.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    if not last.get("done"):
        raise SystemExit(f"{given.run} is not finished")
    settings = {**config["model"], **config["train"]}
    name, value = next((key, value) for key, value in validated(last).items() if "/" in key)
    case = {
        "dataset": given.dataset or Path(config["data"]).name,
        "tried": given.description,
        **{key: settings[name] for key, name in SHOWN.items()},
    }
    metrics = {"metric": name.removeprefix("best_"), "validation": value}
    if (ne := next(iter(last["metrics"].values())).get("calibrated_ne")) is not None:
        metrics["calibrated_ne"] = ne
    write_row("attempts", case, metrics, seed=settings["seed"])
    print(case, metrics)


def attempts(found: list[Row]) -> str:
    """The page: attempts by dataset and model."""
    lines = [
        "# Attempts to improve the models",
        "",
        "Each line is one run, judged by its best validation metric alone. Seeds of one setting",
        "differ by about 0.001 on ml1m, so smaller differences mean little. Results with several",
        "seeds and on the test split are in [quality](quality.md) and [ablations](ablations.md).",
        "In the descriptions, n is the number of impressions of a batch.",
        "`python -m benchmarks.attempts RUN DESCRIPTION` adds a line.",
        "",
        machines(found)[0],
    ]
    groups = grouped(found, lambda row: f"{row['case']['dataset']}, {row['case']['model']}")
    for name, part in groups.items():
        part = sorted(part, key=lambda row: -row["metrics"]["validation"])
        body = [
            [
                row["case"]["tried"],
                f"{rate(row['case']['rate'])}, {rate(row['case']['table_rate'])}",
                str(row["case"]["epochs"]),
                str(row["seed"]),
                number(row["metrics"]["validation"]),
                number(row["metrics"].get("calibrated_ne")),
            ]
            for row in part
        ]
        metric = part[0]["metrics"]["metric"]
        heads = ["attempt", "learning rate, of tables", "epochs", "seed", f"validation {metric}"]
        heads.append("NE, calibrated")
        lines += ["", f"## {name}", "", *table(heads, body)]
    return "\n".join(lines)


def rate(value: float | None) -> str:
    """A learning rate; "default" where it followed from the log."""
    return "default" if value is None else f"{value:g}"


if __name__ == "__main__":
    main()
