"""The demo: simulate, prepare, train, evaluate, index, rank and report, in one folder."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limerank.cli.demo_kinds import DEMOS
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import FormatError, check_choice
from limerank.evaluation.evaluate import Evaluation, evaluate
from limerank.evaluation.legend import legend
from limerank.files import check_folder, check_output, read_json, write_json
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models.config import ModelConfig, TrainConfig
from limerank.ranking.fidelity import quantisation_report
from limerank.ranking.recommender import Recommender
from limerank.report.page import some_users, write_report
from limerank.runs.alarms import is_unfinished
from limerank.runs.folder import load_run
from limerank.training.trainer import train

FOLDER = "limerank-demo"
"""The default folder of a demo."""
DEFAULT = "videos"
"""The default kind of a demo."""
MARK = "demo.json"
"""The file that marks the folder of a demo; it contains the demo's settings."""

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
    kind: str = DEFAULT,
    small: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run every step in one folder. Steps whose output exists are skipped, so a demo can resume.

    Args:
        out: output folder for logs, dataset, runs, index and report.
        kind: the log, "videos" or "shop".
        small: use small logs. It takes a minute; the metrics mean little.
        overwrite: delete an earlier demo in ``out`` first.
        quiet: hide progress bars.
        echo: prints a text.

    Returns:
        ``ceiling``, ``results`` by model, ``quantisation``, ``report`` (path of the page), ``run``
        (path of the best LIME run), ``items`` (path of the item table) and ``seconds``.

    Raises:
        SpecError: there is no such kind.
        FormatError: ``out`` contains something else, or a demo with other settings.
    """
    out = Path(out)
    check_choice("kind of demo", kind, DEMOS)
    shown = DEMOS[kind]
    settings = shown.sizes[small]
    if overwrite:
        check_folder(out, overwrite=True, mark=MARK)
        shutil.rmtree(out, ignore_errors=True)
    _claim(out, settings if kind == DEFAULT else {"kind": kind, **settings})
    started = time.monotonic()

    def step(number: int, text: str) -> None:
        echo(f"\n[{number}/7] {text}  ({time.monotonic() - started:.0f} s)")

    step(1, f"Simulating {shown.about} ({shown.command})")
    if _missing(out / "logs", echo):
        shown.simulate(out / "logs", **settings["log"], quiet=quiet)

    step(2, "Preparing a dataset: sorting, encoding, splitting by time (limerank prepare)")
    if _missing(out / "data", echo):
        spec = load_spec(out / "logs" / shown.description)
        prepare(spec, out / "data", base=out / "logs", quiet=quiet)
    dataset = Dataset(out / "data")
    echo(dataset.summary.text())

    bf16 = has_bfloat16()
    models = shown.models
    step(3, f"Training {', '.join(models)} (limerank train{' --bf16' if bf16 else ''})")
    for model in models:
        folder = out / "runs" / model
        if (folder / "config.json").exists() and not is_unfinished(folder):
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

    step(4, f"Evaluating on {shown.split} (limerank evaluate)")
    results = {model: _evaluated(out / "runs" / model, quiet) for model in models}
    ceiling = shown.best_possible(dataset, out / "logs")
    echo(shown.table(results, ceiling))
    echo("  The best possible metrics are those of the simulator's own probabilities.")
    echo("\n".join(legend(shown.legend)))

    chosen = max(models[shown.indexed_from :], key=lambda model: shown.quality(results[model]))
    step(5, f"Indexing the catalogue with {chosen} (limerank index)")
    run_path, index_path = out / "runs" / chosen, out / "index"
    if _missing(index_path, echo):
        build_index(run_path, index_path, quiet=quiet)
    run = load_run(run_path)
    index = Index.open(index_path, fingerprint=run.fingerprint)
    quantised = quantisation_report(run, index, dataset, users=200, quiet=quiet)
    first = quantised.tasks[0]
    echo(
        f"8-bit instead of float32 scores: {first.task} {first.metric} {-first.lost:+.6f}, "
        f"{100 * quantised.overlap:.2f} % of the top 100 the same"
    )

    step(6, "Ranking the catalogue for a few users (limerank rank --explain)")
    recommender = Recommender(run_path, index_path)
    echo(
        "Columns: predictions; and the events that raised the item's logit most, by how much, then "
        "what the item has in common with them."
    )
    for user in some_users(dataset, settings["users"]):
        echo(recommender.rank(user, k=5, explain=5).text())

    step(7, "Writing a report (limerank report)")
    page = out / "report.html"
    write_report(
        page,
        runs=[out / "runs" / model for model in models],
        index=index_path,
        ceiling=ceiling,
        quantisation=quantised,
        title="limerank on simulated logs",
    )
    echo(f"{page.resolve()}: open it in a browser")
    options = "".join(
        [
            f" --kind {kind}" * (kind != DEFAULT),
            " --small" * small,
            f" --out {out}" * (out != Path(FOLDER)),
        ]
    )
    echo(NEXT.format(serve=f"limerank demo{options} --serve"))
    return {
        "ceiling": ceiling,
        "results": results,
        "quantisation": quantised,
        "report": page,
        "run": run_path,
        "items": out / "logs" / shown.items,
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
