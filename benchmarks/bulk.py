"""The best items of every user in one pass, compared with single requests and a FAISS batch.

    python -m benchmarks.bulk --items 100_000 1_000_000

Each user gets the best 100 of the full catalogue, seen items left out; the user stage is included.
`one by one` calls ``Recommender.rank`` for each user, as a server without batches would, with the
same threads. FAISS is ``IndexFlatIP`` over as many vectors of 64 float32 with as many queries, and
no user stage.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import torch

from benchmarks.index import catalogue, random_run
from benchmarks.rows import write_row
from limerank.data.dataset import Dataset
from limerank.index.building import build_index
from limerank.models.config import ModelConfig
from limerank.ranking.bulk import BATCH, rank_all
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_run

K = 100


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--model", nargs="+", default=["lime-mha", "lime-xor"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--users", type=int, default=256, help="at most this many")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="limerank-bulk-") as held:
        for items in given.items:
            folder = Path(held) / str(items)
            folder.mkdir()
            dataset = Dataset(catalogue(folder, items))
            for model in given.model:
                run = folder / model
                random_run(run, dataset, ModelConfig(model=model))
                build_index(load_run(run), folder / f"index-{model}", data=dataset)
                for threads in given.threads:
                    measure(folder, model, dataset, given.users, threads, given.repeats)


def measure(
    folder: Path, model: str, dataset: Dataset, most: int, threads: int, repeats: int
) -> None:
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    users = dataset.user_ids[:most].tolist()
    recommender = Recommender(folder / model, folder / f"index-{model}", dataset, threads=threads)
    items = len(recommender.index)
    flat = faiss.IndexFlatIP(64)
    rng = np.random.default_rng(0)
    for at in range(0, items, 1 << 16):
        size = min(1 << 16, items - at)
        flat.add(rng.normal(size=(size, 64)).astype(np.float32))
    queries = rng.normal(size=(len(users), 64)).astype(np.float32)
    few = users[: max(8, len(users) // 8)]
    recommender.rank(users[0], k=K)
    rates: dict[str, list[float]] = {"bulk": [], "one": [], "faiss": []}
    for _ in range(repeats):
        started = time.perf_counter()
        rank_all(recommender, folder / "out.parquet", users=users, k=K, overwrite=True)
        rates["bulk"].append(len(users) / (time.perf_counter() - started))
        started = time.perf_counter()
        for user in few:
            recommender.rank(user, k=K)
        rates["one"].append(len(few) / (time.perf_counter() - started))
        started = time.perf_counter()
        flat.search(queries, K)
        rates["faiss"].append(len(users) / (time.perf_counter() - started))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    ratios = [a / b for a, b in zip(rates["bulk"], rates["one"], strict=True)]
    ranker = recommender.ranker
    row = write_row(
        "bulk",
        {
            "model": model,
            "items": items,
            "weights": math.prod(ranker.link_shape or (0,)),
            "hidden": getattr(ranker.config, "hidden", None),
            "threads": threads,
            "k": K,
        },
        {
            "users": len(users),
            "batch": BATCH,
            "users_per_s": middle["bulk"],
            "users_per_s_one_by_one": middle["one"],
            "ratio_to_one_by_one": statistics.median(ratios),
            "faiss_users_per_s": middle["faiss"],
            "ratio_to_faiss": middle["bulk"] / middle["faiss"],
        },
        repeats=repeats,
        spread={
            "users_per_s": [min(rates["bulk"]), max(rates["bulk"])],
            "ratio_to_one_by_one": [min(ratios), max(ratios)],
        },
    )
    print(row["case"], {name: round(v, 2) for name, v in row["metrics"].items()}, flush=True)


if __name__ == "__main__":
    main()
