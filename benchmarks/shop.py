"""The next purchase in a simulated shop, whose best lists are known.

    python -m benchmarks.shop                      # hours; resumable
    python -m benchmarks.shop --models lime-mha item-knn --seeds 1

Three logs of ``limerank synth --kind shop``, one for each seed, of some 300,000 views, carts and
purchases of 5,000 items. A request is a session; its history ends where the session begins, and
what is bought in it is to be found among all items, those that the user has seen included. By
default the last tenth of the purchases is the test; with ``--leave-last`` it is the last session
with a purchase of each user. Models have the defaults of ``limerank train``. *Truth* ranks by the
probability by which the simulator draws purchases: no lists can be expected to be better. Finished
rows are skipped, and interrupted training runs resume.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.datasets import WORK
from benchmarks.jobs import finish, workers
from benchmarks.nextitem import COUNTED, train_and_rank
from benchmarks.rows import has_row, write_row

MODELS = (
    "lime-mha",
    "lime-xor",
    "two-tower",
    "sasrec",
    "lrea",
    "truncated-mha",
    "din",
    "mha",
    "hstu",
    "item-knn",
    "most-popular",
)
TRUTH = "truth"
END = "2026-11-29T12:00:00Z"
"""Of the logs, so that they are the same on every day."""
PROTOCOLS = {
    "time": "next session's purchases, split by time, full catalogue",
    "last": "purchases of the last session, leave-last-one-out, full catalogue",
}


def log_folder(seed: int, size: dict[str, Any] | None = None) -> Path:
    """The log, simulated on first use."""
    from limerank.data.synthetic.shop import simulate_shop

    out = WORK / "logs" / f"shop-{seed}"
    if not out.exists():
        simulate_shop(out, seed=seed, end=END, **(size or {}))
    return out


def prepare_shop(seed: int, protocol: str, size: dict[str, Any] | None = None) -> Path:
    """The dataset of a log, prepared on first use."""
    from limerank.data.description import load_spec
    from limerank.data.prepare import prepare
    from limerank.data.protocol import Split

    logs = log_folder(seed, size)
    out = WORK / "data-shop" / f"{protocol}-{seed}"
    if not out.exists():
        spec = load_spec(logs / "shop.toml")
        if protocol == "last":
            spec = spec.model_copy(update={"split": Split(leave_last=1)})
        prepare(spec, out, base=logs)
    return out


def case_of(model: str, protocol: str, settings: dict[str, Any]) -> dict[str, Any]:
    text = " ".join(f"{key}={value}" for key, value in settings.items())
    case = {"dataset": "shop", "model": model, "protocol": PROTOCOLS[protocol], "settings": text}
    return case


def measure(model: str, protocol: str, seed: int, settings: dict[str, Any], threads: int) -> None:
    """Train and evaluate once, on the log of this seed; writes a row."""
    folder = prepare_shop(seed, protocol)
    case = case_of(model, protocol, settings)
    run = WORK / "runs-shop" / "-".join([protocol, model, *case["settings"].split(), str(seed)])
    metrics = train_and_rank(folder, run, model, seed, settings, threads, seen="in")
    row = write_row("shop", case, metrics, seed=seed)
    print(model, seed, row["metrics"], flush=True)


def measure_truth(protocol: str, seed: int) -> None:
    """What lists by the true probabilities have on the same test requests; writes a row."""
    from limerank.cli.demo_kinds import best_lists
    from limerank.data.dataset import Dataset

    metrics = best_lists(Dataset(prepare_shop(seed, protocol)), log_folder(seed))
    write_row("shop", case_of(TRUTH, protocol, {}), metrics, seed=seed)
    print(TRUTH, seed, metrics, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--leave-last", action="store_true", help="test: each user's last session")
    parser.add_argument("--processes", type=int, default=1, help="trainings at the same time")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings, as in limerank train"
    )
    given = parser.parse_args(arguments)
    from limerank.cli.options import assignments

    more = assignments(given.set)
    protocol = "last" if given.leave_last else "time"
    threads = max(1, (os.cpu_count() or 1) // given.processes)
    waiting: list[Any] = []
    for seed in range(given.seeds):
        prepare_shop(seed, protocol)
        if not has_row("shop", case_of(TRUTH, protocol, {}), seed):
            measure_truth(protocol, seed)
        for model in given.models:
            settings = {} if model in COUNTED else more
            if not has_row("shop", case_of(model, protocol, settings), seed):
                waiting.append((measure, model, protocol, seed, settings, threads))
    with workers(given.processes) as pool:
        finish(pool, "runs", waiting)


if __name__ == "__main__":
    main()
