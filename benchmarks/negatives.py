"""Quality of lists and training time by the number of negatives: from 100 to the full catalogue.

    python -m benchmarks.negatives                         # the simulated shop
    python -m benchmarks.negatives --data FOLDER           # and ml_latest_small/ of this folder

The requests of a batch share their negatives: ``negatives`` of them are drawn uniformly for each
batch, and the positives of the batch are added; *all* is the softmax over the full catalogue. Among
the numbers is the smallest one that ``limerank train`` chooses by itself, in the largest logs; in
small ones it chooses all items.

The shop has 300,000 events of 5,000 items (``benchmarks.shop``, a log for each seed), and MovieLens
9,724 films (``benchmarks.nextitem``). Trainings are short, with :data:`EPOCHS` epochs and one
thread, and have the defaults of ``limerank train`` besides. Finished rows are skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import nextitem, shop
from benchmarks.datasets import WORK
from benchmarks.rows import has_row, write_row
from limerank.training.catalogue import LEAST

ALL = 0
NUMBERS = (100, 300, 512, LEAST, 3000, ALL)
MODEL = "lime-mha"
SHOP, FILMS = "shop", "ml_latest_small"
EPOCHS = {SHOP: 2, FILMS: 1}


def prepared(dataset: str, seed: int, data: Path | None) -> Path | None:
    """The dataset, prepared on first use; None where its files are missing."""
    if dataset == SHOP:
        return shop.prepare_shop(seed, "time")
    return None if data is None else nextitem.prepare_next_item(dataset, data)


def case_of(dataset: str, negatives: int) -> dict[str, Any]:
    number = "all" if negatives == ALL else negatives
    return {"dataset": dataset, "model": MODEL, "epochs": EPOCHS[dataset], "negatives": number}


def measure(dataset: str, folder: Path, negatives: int, seed: int) -> None:
    """Train and evaluate once; writes a row."""
    settings = {"epochs": EPOCHS[dataset], "negatives": negatives}
    if dataset != SHOP:
        settings |= nextitem.COMMON
    run = WORK / "runs-negatives" / f"{dataset}-{negatives}-{seed}"
    seen = "in" if dataset == SHOP else "out"
    metrics = nextitem.train_and_rank(folder, run, MODEL, seed, settings, threads=1, seen=seen)
    row = write_row("negatives", case_of(dataset, negatives), metrics, seed=seed)
    print(dataset, negatives, seed, row["metrics"], flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument("--only", nargs="+", choices=(SHOP, FILMS), default=(SHOP, FILMS))
    parser.add_argument("--negatives", nargs="+", type=int, default=NUMBERS, help="0: all items")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    for dataset in given.only:
        for seed in range(given.seeds):
            folder = prepared(dataset, seed, given.data)
            if folder is None:
                continue
            for negatives in given.negatives:
                if not has_row("negatives", case_of(dataset, negatives), seed):
                    measure(dataset, folder, negatives, seed)


if __name__ == "__main__":
    main()
