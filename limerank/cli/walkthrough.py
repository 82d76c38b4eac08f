"""The demo: simulate, prepare, train, evaluate, index, rank and report, in one folder."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.data.synthetic import simulate
from limerank.errors import FormatError
from limerank.evaluation.evaluate import Evaluation, evaluate
from limerank.evaluation.legend import legend
from limerank.files import check_folder, check_output, read_json, write_json
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models.config import ModelConfig, TrainConfig
from limerank.ranking.fidelity import quantisation_report
from limerank.ranking.recommender import Recommender
from limerank.report.page import some_users, write_report
from limerank.runs.folder import load_run
from limerank.training.trainer import train

MODELS = ("two-tower", "lime-mha", "lime-xor")

FOLDER = "limerank-demo"
"""The default folder of a demo."""
MARK = "demo.json"
"""The file that marks the folder of a demo; it contains the demo's settings."""

FULL: dict[str, Any] = {
    "log": {"users": 2000, "items": 2000, "events": 200_000},
    "train": {"epochs": 3},
    "users": 3,
}
SMALL: dict[str, Any] = {
    "log": {"users": 300, "items": 300, "events": 20_000},
    "train": {"epochs": 2},
    "users": 2,
}

NEXT = """
Next, use your own logs. The README shows how to describe them in spec.toml:

  limerank prepare spec.toml --out data/mine
  limerank train data/mine --model lime-xor --out runs/mine
  limerank evaluate runs/mine
  limerank index runs/mine --out index/mine
  limerank rank --run runs/mine --index index/mine --user ID -k 20 --explain

Or serve this model over HTTP (docs/serving.md):

  {serve}
"""


def demo(
    out: str | os.PathLike[str] = FOLDER,
    *,
    small: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run every step in one folder. Steps whose output exists are skipped, so a demo can resume.

    Args:
        out: output folder for logs, dataset, runs, index and report.
        small: use small logs. It takes a minute; the metrics mean little.
        overwrite: delete an earlier demo in ``out`` first.
        quiet: hide progress bars.
        echo: prints a text.

    Returns:
        ``ceiling``, ``results`` by model, ``quantisation``, ``report`` (path of the page), ``run``
        (path of the best LIME run) and ``seconds``.

    Raises:
        FormatError: ``out`` contains something else, or a demo with other settings.
    """
    out = Path(out)
    settings = SMALL if small else FULL
    if overwrite:
        check_folder(out, overwrite=True, mark=MARK)
        shutil.rmtree(out, ignore_errors=True)
    _claim(out, settings)
    started = time.monotonic()

    def step(number: int, text: str) -> None:
        echo(f"\n[{number}/7] {text}  ({time.monotonic() - started:.0f} s)")

    step(1, "Simulating the logs of a short-video app (limerank synth)")
    if _missing(out / "logs", echo):
        simulate(out / "logs", **settings["log"], quiet=quiet)

    step(2, "Preparing a dataset: sorting, encoding, splitting by time (limerank prepare)")
    if _missing(out / "data", echo):
        spec = load_spec(out / "logs" / "spec.toml")
        prepare(spec, out / "data", base=out / "logs", quiet=quiet)
    dataset = Dataset(out / "data")
    echo(dataset.summary.text())

    bf16 = has_bfloat16()
    step(3, f"Training {', '.join(MODELS)} (limerank train{' --bf16' if bf16 else ''})")
    for model in MODELS:
        folder = out / "runs" / model
        if (folder / "config.json").exists() and not (folder / "trainer").exists():
            echo(f"{folder}: exists, skipped")
            continue
        config = TrainConfig(bf16=bf16, **settings["train"])
        result = train(
            dataset,
            folder,
            model=ModelConfig(model=model),
            config=config,
            quiet=quiet,
        )
        echo(result.text())

    step(4, "Evaluating on the last tenth of the time (limerank evaluate)")
    results = {model: _evaluated(out / "runs" / model, quiet) for model in MODELS}
    ceiling = best_possible(dataset, out / "logs")
    echo(comparison_text(results, ceiling))
    echo("  The best possible metrics are those of the simulator's own probabilities.")
    echo("\n".join(legend(("auc", "gauc", "ne", "ece", "xauc", "ndcg@10"))))

    chosen = max(MODELS[1:], key=lambda model: results[model].tasks["click"]["auc"])
    step(5, f"Indexing the catalogue with {chosen} (limerank index)")
    run_path, index_path = out / "runs" / chosen, out / "index"
    if _missing(index_path, echo):
        build_index(run_path, index_path, quiet=quiet)
    run = load_run(run_path)
    index = Index.open(index_path, fingerprint=run.fingerprint)
    quantised = quantisation_report(run, index, dataset, users=200, quiet=quiet)
    echo(
        f"8-bit instead of float32 scores: click AUC {-quantised.tasks[0].lost:+.6f}, "
        f"{100 * quantised.overlap:.2f} % of the top 100 the same"
    )

    step(6, "Ranking the catalogue for a few users (limerank rank --explain)")
    recommender = Recommender(run_path, index_path)
    echo("Columns: predictions, and the events that raised the item's logit most, by how much.")
    for user in some_users(dataset, settings["users"]):
        echo(recommender.rank(user, k=5, explain=5).text())

    step(7, "Writing a report (limerank report)")
    page = out / "report.html"
    write_report(
        page,
        runs=[out / "runs" / model for model in MODELS],
        index=index_path,
        ceiling=ceiling,
        quantisation=quantised,
        title="limerank on simulated logs",
    )
    echo(f"{page.resolve()}: open it in a browser")
    options = "".join([" --small" * small, f" --out {out}" * (out != Path(FOLDER))])
    echo(NEXT.format(serve=f"limerank demo{options} --serve"))
    return {
        "ceiling": ceiling,
        "results": results,
        "quantisation": quantised,
        "report": page,
        "run": run_path,
        "seconds": time.monotonic() - started,
    }


def has_bfloat16() -> bool:
    """Whether this processor has bfloat16 matrix instructions; without them bfloat16 is slow."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


def best_possible(dataset: Dataset, logs: Path) -> dict[str, float]:
    """Metrics of the simulator's own probabilities on the test split: the best possible ones.

    Returns:
        ``auc`` of the true click probability and ``xauc`` of the true expected watch time.
    """
    truth = pl.read_parquet(logs / "truth.parquet")
    requests = dataset.requests_of("test")
    counts = dataset.requests["count"][requests].astype(np.int64)
    rows = dataset.impression_rows(requests)
    shown = pl.DataFrame(
        {
            "user_id": dataset.user_ids[np.repeat(dataset.requests["user"][requests], counts)],
            "item_id": dataset.item_ids[dataset.events["item"][rows]],
            "time_ms": np.asarray(dataset.events["time"][rows]),
            "click": np.asarray(dataset.events["label_click"][rows]),
            "watch": np.asarray(dataset.events["label_watch"][rows]),
        }
    )
    both = shown.join(truth, on=["user_id", "item_id", "time_ms"], how="inner")
    assert len(both) == len(shown)
    return {
        "auc": metrics.auc(both["click"].to_numpy(), both["click_probability"].to_numpy()),
        "xauc": metrics.xauc(both["watch"].to_numpy(), both["watch_seconds"].to_numpy()),
    }


def comparison_text(results: Mapping[str, Evaluation], ceiling: Mapping[str, float]) -> str:
    """A table of the models' metrics and the best possible ones."""
    heads = f"{'click AUC':>10}{'GAUC':>8}{'NE':>8}{'ECE':>8}{'watch XAUC':>12}{'NDCG@10':>9}"
    lines = [f"  {'':<14}{heads}"]
    for model, found in results.items():
        click, watch, lists = found.tasks["click"], found.tasks["watch"], found.lists or {}
        lines.append(
            f"  {model:<14}{click['auc']:>10.4f}{click['gauc']:>8.4f}{click['ne']:>8.4f}"
            f"{click['ece']:>8.4f}{watch['xauc']:>12.4f}{lists.get('ndcg@10', 0.0):>9.4f}"
        )
    lines.append(f"  {'best possible':<14}{ceiling['auc']:>10.4f}{'':>24}{ceiling['xauc']:>12.4f}")
    return "\n".join(lines)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    mark = out / MARK
    check_output(mark)
    if not out.exists() or not any(out.iterdir()):
        out.mkdir(parents=True, exist_ok=True)
        write_json(mark, settings)
    elif not mark.exists():
        raise FormatError(f"{out} contains something else; choose another folder with --out")
    elif json.dumps(read_json(mark, "a demo")) != json.dumps(settings):
        raise FormatError(
            f"{out} contains a demo with other settings; add --overwrite, or choose another --out"
        )


def _missing(path: Path, echo: Callable[[str], None]) -> bool:
    if path.exists():
        echo(f"{path}: exists, skipped")
        return False
    return True


def _evaluated(run: Path, quiet: bool) -> Evaluation:
    if not (run / "metrics.json").exists():
        evaluate(run, quiet=quiet)
    return Evaluation.read(run / "metrics.json")
