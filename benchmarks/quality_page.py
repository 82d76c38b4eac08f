"""The pages on quality: models side by side, their differences, and the settings tried."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.peer_models import PEERS
from benchmarks.peers_page import QUALITY, title
from benchmarks.peers_page import models as of_models
from benchmarks.quality import DATASETS
from benchmarks.quality_plots import LIME, plot_differences, plot_slices
from benchmarks.rows import rows
from benchmarks.tables import (
    MODELS,
    Row,
    by_model,
    grouped,
    interval,
    machines,
    number,
    spread_of,
    table,
)

PAPER = """## The paper's own figures

Not reproduced here, because the datasets are not available (LIME, arXiv 2510.18239, as cited by
others):

| dataset | metric | LIME-MHA | LIME-XOR | HSTU |
| --- | --- | --- | --- | --- |
| KuaiRand-1K, history 256 | click AUC | 0.7433 | 0.7448 | 0.7444 |
| Taobao-Ad, history 50 | click AUC | 0.6465 | 0.6467 | 0.6475 |

With the files, these commands train on the same datasets in this protocol, which differs from the
paper's in batches, features and search:

```
limerank prepare kuairand KuaiRand-1K -o history=256 --out data/kuairand-1k
limerank prepare taobao-ad TAOBAO --out data/taobao-ad
limerank train data/kuairand-1k --model lime-xor --bf16 --out runs/kuairand-1k
limerank evaluate runs/kuairand-1k
```"""


def quality(found: list[Row]) -> str:
    """One section per dataset: models side by side, mean and spread over seeds, and slices."""
    lines = [
        "# Quality",
        "",
        "How good is each model on the same log? Values are means over seeds, with the largest",
        "distance of a seed from the mean. All models of a dataset share requests, histories,",
        "features and towers; the impressions of a request share the history before its first one.",
        "Every model tried the same settings on each dataset, and the best by the validation",
        "metric was taken ([search](search.md)). Initial weights are part of a model: LIME's links",
        "start with equal similarity to items and events ([model](../model.md)), the other models",
        "as in their papers. A `+` marks a commit with uncommitted changes. Another processor may",
        "round differently and give other numbers from the same seed: on mind_sample they differ",
        "as much as two seeds do. Reproduce with `python -m benchmarks.quality --data FOLDER`.",
        "",
        *machines(found),
    ]
    by_dataset = sets(found)
    pairs = [row for part in sets(rows("paired")).values() for row in part]
    plot_differences(by_dataset, pairs)
    plot_slices(pairs)
    lines += [
        "",
        "![Difference to the two-tower](quality.svg)",
        "",
        "Differences are means over the seeds, with 95 % intervals of a paired bootstrap over",
        "users (the same draw for both models). The intervals describe other users, not other",
        "seeds.",
        "",
        *side_by_side(by_dataset, pairs),
        "",
        "By slice: LIME is below HSTU where the full line is left of 0.",
        "",
        "![Difference to HSTU in each slice](quality-slices.svg)",
        "",
        *below_and_above(pairs),
    ]
    of_peers = sets(row for row in rows("peers") if row["case"]["model"] in PEERS)
    for dataset, of_dataset in by_dataset.items():
        models = by_model(of_dataset)
        names = list(dict.fromkeys(key for row in of_dataset for key in row["metrics"]))
        seeds = sorted({row["seed"] for row in of_dataset})
        lines += ["", f"## {dataset}", "", f"Seeds: {', '.join(map(str, seeds))}.", ""]
        full = [name for name in names if " | " not in name]
        lines += table(
            ["metric", *models],
            [[name, *(spread_of(rows_, name) for rows_ in models.values())] for name in full],
        )
        lines += beside(of_dataset, of_peers.get(dataset, []))
        of_pairs = [row for row in pairs if row["case"]["dataset"] == dataset]
        if of_pairs:
            lines += difference_tables(of_pairs)
        lines += ["", f"Slices of {dataset}:", ""]
        lines += table(["slice", "impressions", "metric", *models], slice_lines(names, models))
    return "\n".join([*lines, "", PAPER])


def beside(of_dataset: list[Row], of_peers: list[Row]) -> list[str]:
    """What :mod:`benchmarks.peers` measured on the same test impressions."""
    shown = sum(
        value
        for name, value in of_dataset[0]["metrics"].items()
        if name.startswith("impressions | history ")
    )
    same = [row for row in of_peers if row["metrics"]["impressions"] == shown]
    if not same:
        return []
    return [
        "",
        "Peers on the same impressions ([more](peers.md)), by the first binary label:",
        "",
        *table(
            ["peer", "seeds", *QUALITY.values()],
            [
                [title(*key), str(len(part)), *(spread_of(part, name) for name in QUALITY)]
                for key, part in of_models(same).items()
            ],
        ),
    ]


def sets(found: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by dataset, in the order in which they are measured."""
    groups = grouped(found, lambda row: row["case"]["dataset"])
    return {name: groups[name] for name in DATASETS if name in groups}


def side_by_side(by_dataset: dict[str, list[Row]], pairs: list[Row]) -> list[str]:
    """Every model on every dataset: the main metric, and its difference to HSTU."""
    cells = {
        (dataset, model): part
        for dataset, of_dataset in by_dataset.items()
        for model, part in grouped(of_dataset, lambda row: row["case"]["model"]).items()
    }
    models = [model for model in MODELS if any(name == model for _, name in cells)]
    main = {
        dataset: next(iter(of_dataset[0]["metrics"])) for dataset, of_dataset in by_dataset.items()
    }
    best = {
        dataset: max(
            statistics.mean(row["metrics"][metric] for row in part)
            for (of, _), part in cells.items()
            if of == dataset
        )
        for dataset, metric in main.items()
    }

    def shown(dataset: str, model: str) -> str:
        part = cells.get((dataset, model))
        if part is None:
            return "-"
        text = spread_of(part, main[dataset])
        mean = statistics.mean(row["metrics"][main[dataset]] for row in part)
        return f"**{text}**" if mean == best[dataset] else text

    body = [[model, *(shown(dataset, model) for dataset in main)] for model in models]
    lines = ["## Side by side", "", "Main metric on the test split, the highest mean in bold:", ""]
    lines += table(["model", *(f"{name}, {metric}" for name, metric in main.items())], body)
    to_hstu = {
        (row["case"]["dataset"], row["case"]["model"]): row["metrics"]
        for row in pairs
        if row["case"]["against"] == "hstu"
    }
    lines += ["", "Difference to HSTU, bold where the interval excludes 0:", ""]
    lines += table(
        ["model", *main],
        [
            [model, *(interval(to_hstu.get((dataset, model)), "difference") for dataset in main)]
            for model in models
            if model != "hstu"
        ],
    )
    return lines


def below_and_above(pairs: list[Row]) -> list[str]:
    """In how many slices of all datasets each model is below and above HSTU, and where LIME is."""
    body = []
    losses = []
    for model, of_model in by_model([p for p in pairs if p["case"]["against"] == "hstu"]).items():
        signs = []
        for row in of_model:
            metrics = row["metrics"]
            for name in metrics:
                measure, _, part = name.partition(" | ")
                if measure == "low" and part:
                    low, high = metrics[name], metrics[f"high | {part}"]
                    signs.append((low > 0) - (high < 0))
                    if high < 0 and model in LIME:
                        where = f"{row['case']['dataset']}, {part}"
                        losses.append([model, where, interval(metrics, f"difference | {part}")])
        counts = [signs.count(sign) for sign in (-1, 0, 1)]
        body.append([model, str(len(signs)), *map(str, counts)])
    lines = [
        "Slices of all datasets by their interval: entirely below HSTU, including 0, or entirely",
        "above. Between two equal models, one slice in 40 is below and one in 40 above by chance;",
        "slices overlap.",
        "",
        *table(["model", "slices", "below", "level", "above"], body),
    ]
    if losses:
        lines += ["", "Where LIME is below:", ""]
        lines += table(["model", "slice", "difference to HSTU"], losses)
    return lines


def difference_tables(of_pairs: list[Row]) -> list[str]:
    """Each model against HSTU and against the two-tower, over all impressions and in each slice."""
    parts = list(dict.fromkeys(k for row in of_pairs for k in row["metrics"] if "difference" in k))
    lines = []
    for other in sorted({row["case"]["against"] for row in of_pairs}):
        found = {
            row["case"]["model"]: row["metrics"]
            for row in of_pairs
            if row["case"]["against"] == other
        }
        models = [model for model in MODELS if model in found]
        body = [
            [part.partition(" | ")[2] or "all", *(interval(found[model], part) for model in models)]
            for part in parts
        ]
        lines += ["", f"AUC of the main task minus that of {other}:", ""]
        lines += table(["impressions", *models], body)
    return lines


def slice_lines(names: list[str], models: dict[str, list[Row]]) -> list[list[str]]:
    """A line for each metric of each slice that has impressions."""
    any_row = next(iter(models.values()))[0]
    lines = []
    for name in names:
        metric, _, part = name.partition(" | ")
        impressions = any_row["metrics"].get(f"impressions | {part}")
        if part and metric != "impressions" and impressions:
            values = [spread_of(rows_, name) for rows_ in models.values()]
            lines.append([part, f"{impressions:,}", metric, *values])
    return lines


def search(found: list[Row]) -> str:
    """The settings that every model tried on each dataset, the chosen one in bold."""
    lines = [
        "# Settings tried",
        "",
        "The best validation metric of each training, for seed 0 or as the mean over several",
        "seeds. [Quality](quality.md) uses the best setting of each model (bold). The test split",
        "was not read. Made by `python -m benchmarks.quality --data FOLDER`.",
        "",
        *machines(found),
    ]
    keys = ("rate", "table_rate", "epochs")
    for dataset, of_dataset in sets(found).items():
        models = by_model(of_dataset)
        metric = next(name for name in of_dataset[0]["metrics"] if "/" in name)
        values = {
            name: {
                setting: statistics.mean(row["metrics"][metric] for row in tried)
                for setting, tried in grouped(
                    of_model, lambda row: tuple(row["case"][key] for key in keys)
                ).items()
            }
            for name, of_model in models.items()
        }
        seeds = sorted({row["seed"] for row in of_dataset})
        lines += ["", f"## {dataset}: {metric.removeprefix('best_')}, validation", ""]
        lines += [f"Seeds: {', '.join(map(str, seeds))}.", ""]
        lines += table(
            ["learning rate", "of tables", "epochs", *models],
            [
                [*map(str, setting), *(best_of(values[name], setting) for name in models)]
                for setting in sorted({s for of_model in values.values() for s in of_model})
            ],
        )
    return "\n".join(lines)


def best_of(values: dict[tuple[Any, ...], float], setting: tuple[Any, ...]) -> str:
    """One setting's value, bold where it is the highest."""
    if setting not in values:
        return "-"
    text = number(values[setting])
    return f"**{text}**" if values[setting] == max(values.values()) else text
