"""The native scorer: the full catalogue compared with a FAISS scan, candidate lists, many users.

    python -m benchmarks.scorer --items 1_000_000

The index has random items with 32 link weights each, built by a model with random weights (speed
does not depend on them). LIME and FAISS ``IndexFlatIP`` over as many vectors of 64 float32 take
turns within one run and with the same threads; each returns the best 100 of all items. Every row
also has a lower bound for the machine: the bytes read at the memory's bandwidth, or the
multiply-adds of bytes at their peak rate, whichever takes longer; both rates are measured in the
same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# OpenMP reads this when it loads: spinning threads of one peer would occupy the other's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
import numpy as np
import torch

from benchmarks.index import catalogue, random_run
from benchmarks.rows import write_row
from limerank.data.dataset import Dataset
from limerank.index import Index
from limerank.index.building import build_index
from limerank.kernels import _native
from limerank.models.links import LimeMhaConfig, LinkState
from limerank.ranking.scorer import NativeScorer, paths
from limerank.runs.folder import load_run

K = 100
CANDIDATES = 512
USERS = 64
HEADS: tuple[dict[str, Any], ...] = (
    {"hidden": 32, "gated": False, "activation": "relu"},
    {"hidden": 32, "gated": False, "activation": "hardswish"},
    {"hidden": 32, "gated": False, "activation": "silu"},
    {"hidden": 64, "gated": False, "activation": "relu"},
    {"hidden": 64, "gated": False, "activation": "silu"},
    {"hidden": 32, "gated": True, "activation": "relu"},
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=25)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="limerank-scorer-") as held:
        for items in given.items:
            folder = Path(held) / str(items)
            folder.mkdir()
            dataset = Dataset(catalogue(folder, items))
            flat = faiss.IndexFlatIP(64)
            rng = np.random.default_rng(0)
            for at in range(0, items, 1 << 16):
                size = min(1 << 16, items - at)
                flat.add(rng.normal(size=(size, 64)).astype(np.float32))
            for position, head in enumerate(HEADS):
                config = LimeMhaConfig(**head)
                run = folder / f"run-{position}"
                random_run(run, dataset, config)
                build_index(load_run(run), folder / "index", data=dataset, overwrite=True)
                index = Index.open(folder / "index")
                for threads in given.threads:
                    measure(run, index, flat, threads, given.repeats)


def measure(run: Path, index: Index, flat: Any, threads: int, repeats: int) -> None:
    ranker = load_run(run).ranker
    config, items = ranker.config, len(index)
    assert isinstance(config, LimeMhaConfig)
    sums = config.hidden * (2 if config.gated else 1)
    scorer = NativeScorer(ranker, index, threads=threads)
    torch.manual_seed(0)
    many = LinkState(torch.randn(USERS, config.links, config.width), torch.randn(USERS, sums))
    one = LinkState(many.links[:1], many.head[:1])
    query = np.random.default_rng(1).normal(size=(USERS, 64)).astype(np.float32)
    rows = np.random.default_rng(2).choice(items, CANDIDATES, replace=False)
    faiss.omp_set_num_threads(threads)
    works: dict[str, Callable[[], object]] = {
        "all": lambda: scorer.top(one, K),
        "faiss": lambda: flat.search(query[:1], K),
    }
    taken = in_turn(works, repeats)
    together = in_turn(
        {"all": lambda: scorer.top(many, K), "faiss": lambda: flat.search(query, K)},
        max(3, repeats // 8),
    )
    lists = in_turn({"list": lambda: scorer.top(one, 20, rows=rows)}, 40 * repeats)["list"]
    assert index.weights is not None
    columns = index.weights.shape[1]
    size, products = items * (columns + sums), items * columns * sums
    rate, peak = bandwidth(threads), dot_peak(scorer.path, threads)
    bound = 1e3 * max(size / rate, products / peak)
    ms, faiss_ms = (1e3 * statistics.median(taken[name]) for name in ("all", "faiss"))
    each = 1e3 * statistics.median(together["all"]) / USERS
    faiss_each = 1e3 * statistics.median(together["faiss"]) / USERS
    ratios = [a / b for a, b in zip(taken["all"], taken["faiss"], strict=True)]
    row = write_row(
        "scorer",
        {
            "items": items,
            "weights": columns,
            "hidden": config.hidden,
            "gated": config.gated,
            "activation": config.activation,
            "threads": threads,
            "k": K,
            "path": scorer.path,
        },
        {
            "ms_p50": ms,
            "faiss_ms_p50": faiss_ms,
            "ratio_to_faiss": ms / faiss_ms,
            "bound_ms": bound,
            "bound_is": "memory" if size / rate > products / peak else "products",
            "share_of_bound": bound / ms,
            "memory_gb_per_s": rate / 1e9,
            "peak_multiply_adds_per_s": peak,
            "list_candidates": CANDIDATES,
            "list_us_p50": 1e6 * statistics.median(lists),
            "together_users": USERS,
            "together_ms_per_user": each,
            "together_faiss_ms_per_user": faiss_each,
            "together_times_faster": ms / each,
        },
        repeats=repeats,
        spread={
            "ms_p50": _range(taken["all"], 1e3),
            "faiss_ms_p50": _range(taken["faiss"], 1e3),
            "ratio_to_faiss": _range(ratios, 1),
        },
    )
    print(
        row["case"],
        {k: v if isinstance(v, str) else round(v, 3) for k, v in row["metrics"].items()},
        flush=True,
    )


def _range(values: Sequence[float], unit: float) -> list[float]:
    return [unit * min(values), unit * max(values)]


def in_turn(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call; calls take turns, so that all run under the same load."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - started)
    return taken


def bandwidth(threads: int, size: int = 1 << 28) -> float:
    """Bytes per second that this many threads read at best."""
    parts = np.array_split(np.ones(size // 8), threads)
    return size / _best(threads, lambda position: float(parts[position].max()))


def dot_peak(path: str, threads: int, rounds: int = 20_000_000) -> float:
    """Multiply-adds of bytes per second that this many threads do in registers at best."""
    assert path in paths()
    done = _native.peak(path, rounds)
    return threads * done / _best(threads, lambda _: _native.peak(path, rounds))


def _best(threads: int, work: Callable[[int], object], repeats: int = 7) -> float:
    """Seconds of the fastest of several runs of ``work(thread)`` in all threads at once."""

    def run() -> Iterator[float]:
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(repeats):
                started = time.perf_counter()
                list(pool.map(work, range(threads)))
                yield time.perf_counter() - started

    return min(run())


if __name__ == "__main__":
    main()
