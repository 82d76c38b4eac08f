"""Accuracy that the quantised index and the native scorer lose against the float32 model.

    python -m benchmarks.fidelity RUN [RUN ...]

For trained runs, on the test split of their data: AUC over the impressions, and the best 100 of the
full catalogue for 500 users. ``paths differ`` counts the list positions at which any two of this
machine's implementations disagree; it should be 0.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import write_row
from limerank.index import Index
from limerank.index.building import build_index
from limerank.ranking.fidelity import quantisation_report
from limerank.ranking.scorer import NativeScorer, paths
from limerank.runs.folder import load_run

USERS = 100


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="trained LIME runs")
    given = parser.parse_args(arguments)
    for path in given.runs:
        measure(path)


def measure(path: Path) -> None:
    run = load_run(path)
    dataset, config = run.dataset(None), run.ranker.config
    with tempfile.TemporaryDirectory(prefix="limerank-fidelity-") as folder:
        build_index(run, Path(folder) / "index", data=dataset)
        index = Index.open(Path(folder) / "index", run.fingerprint)
        metrics = quantisation_report(run, index, dataset).to_dict()
        requests = dataset.requests_of("test")[:USERS]
        batch = dataset.batch(requests, run.train.history)
        with torch.inference_mode():
            state = run.ranker.encode_users(batch.users, run.ranker.item_vectors(batch.items))
        lists = [NativeScorer(run.ranker, index, path=one).top(state, 100) for one in paths()]
        differ = sum(int(np.sum(lists[0].rows != other.rows)) for other in lists[1:])
    case = {
        "dataset": dataset.name,
        "model": config.model,
        **config.model_dump(include={"links", "hidden", "gated", "activation"}),
        "paths": ", ".join(paths()),
    }
    row = write_row("fidelity", case, {**metrics, "paths differ": differ})
    print(row["case"], row["metrics"], flush=True)


if __name__ == "__main__":
    main()
