"""The index: building, size, opening, changing; ranking with every scorer.

    python -m benchmarks.index --items 1_000_000
    python -m benchmarks.index --items 100_000 --model lime-mha --hidden 32 --table 10_000_000

A catalogue with five categorical features, a model with random weights (speed does not depend on
them), and one user with a full history. Ranking returns the best 100 of the full catalogue, or of
512 given candidates, one request at a time; the user stage and the details of the best items are
included.

With ``--table`` the catalogue is a Parquet file of that many items, most of which are unknown to
the run, and ``--items`` is the size of the run's own catalogue. Another process ranks it with the
default scorer and reports its memory: the peak, the resident part of the index, and what the
process used before it opened the index.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.rows import write_row
from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import add_items, remove_items
from limerank.index.compaction import compact_index
from limerank.models import build
from limerank.models.config import DataShape, HeadConfig, ModelConfig, TrainConfig, config_class
from limerank.ranking.recommender import Recommender
from limerank.ranking.scorer import ModelScorer, NativeScorer, QuantisedScorer, Scorer
from limerank.runs.folder import Run, create_run, load_run, save_weights

FEATURES = {"author": 50_000, "category": 20, "brand": 5_000, "language": 30, "band": 100}


def catalogue(folder: Path, items: int, events: int = 100_000, seed: int = 0) -> Path:
    """A dataset with this many items, most of them never shown."""
    rng = np.random.default_rng(seed)
    write_items(folder / "items.parquet", items, rng)
    pl.DataFrame(
        {
            "user_id": rng.integers(0, events // 200, events),
            "item_id": rng.integers(0, items, events),
            "time": np.sort(rng.integers(1_700_000_000, 1_702_000_000, events)),
            "click": rng.integers(0, 2, events),
        }
    ).write_parquet(folder / "events.parquet")
    spec = Spec.model_validate(
        {
            "name": "index-benchmark",
            "events": [{"files": ["events.parquet"], "time": "time"}],
            "labels": [{"name": "click", "kind": "binary"}],
            "items": {
                "files": ["items.parquet"],
                "id": "item_id",
                "features": [{"name": name, "kind": "categorical"} for name in FEATURES],
            },
        }
    )
    prepare(spec, folder / "data", base=folder)
    return folder / "data"


def write_items(path: Path, items: int, rng: np.random.Generator) -> None:
    columns = {name: rng.integers(0, size, items) for name, size in FEATURES.items()}
    pl.DataFrame({"item_id": np.arange(items), **columns}).write_parquet(path)


def random_run(path: Path, dataset: Dataset, config: ModelConfig) -> None:
    torch.manual_seed(0)
    shape = DataShape.of(dataset.manifest)
    path.mkdir()
    create_run(path, dataset, shape, config, TrainConfig())
    save_weights(path, build(shape, config))


def milliseconds(work: Callable[[], object], repeats: int) -> tuple[float, list[float]]:
    """Median and range of the time of a call, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken), [min(taken), max(taken)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--model", nargs="+", default=["lime-mha", "lime-xor", "two-tower"])
    parser.add_argument("--hidden", type=int, default=HeadConfig.model_fields["hidden"].default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--table", type=int, help="items of a table to index with each run")
    parser.add_argument("--rank", type=Path, nargs=3, metavar=("RUN", "INDEX", "DATA"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if given.rank is not None:
        of_run, of_index, of_data = given.rank
        print(json.dumps(rank_and_weigh(of_run, of_index, of_data, given.repeats)))
        return
    with tempfile.TemporaryDirectory(prefix="limerank-index-") as held:
        for items in given.items:
            folder = Path(held) / str(items)
            folder.mkdir()
            dataset = Dataset(catalogue(folder, items))
            for model in given.model:
                own = (
                    {"hidden": given.hidden} if issubclass(config_class(model), HeadConfig) else {}
                )
                config = ModelConfig(model=model, **own)
                random_run(folder / model, dataset, config)
                if given.table is None:
                    measure(folder, model, dataset, given.threads, given.repeats)
                else:
                    measure_table(folder, model, given.table, given.threads, given.repeats)


def measure(folder: Path, model: str, dataset: Dataset, threads: int, repeats: int) -> None:
    run = load_run(folder / model)
    items, path = len(dataset.items), folder / f"index-{model}"
    builds, processor = [], []
    for _ in range(3):
        started, before = time.perf_counter(), time.process_time()
        build_index(run, path, data=dataset, overwrite=True)
        builds.append(items / (time.perf_counter() - started))
        processor.append(items / (time.process_time() - before))
    write_row(
        "index",
        case_of(run, items, "dataset", threads),
        {
            "items_per_s": statistics.median(builds),
            "items_per_processor_s": statistics.median(processor),
            **of_folder(path, items, repeats),
        },
        repeats=len(builds),
        spread={"items_per_s": [min(builds), max(builds)]},
    )
    index = Index.open(path, run.fingerprint)
    scorers: list[Scorer] = [ModelScorer(run.ranker, index)]
    if index.weights is not None:
        scorers.append(QuantisedScorer(run.ranker, index))
        scorers.append(NativeScorer(run.ranker, index, threads=threads))
    rng = np.random.default_rng(0)
    candidates = index.ids[rng.choice(items, 512, replace=False)].tolist()
    user = dataset.user_ids[np.argmax(np.bincount(dataset.requests["user"]))]
    for scorer in scorers:
        recommender = Recommender(run, index, dataset, scorer=scorer)
        for name, ids in (("all", None), ("512", candidates)):
            times: dict[str, list[float]] = {"user": [], "score": []}

            def work(ids: list[int] | None = ids, times: dict[str, list[float]] = times) -> None:
                ranking = recommender.rank(user, k=100, candidates=ids)  # noqa: B023  (called in this turn)
                for stage, values in times.items():
                    values.append(ranking.milliseconds[stage])

            count = repeats if ids is None else 10 * repeats
            median, spread = milliseconds(work, count)
            write_row(
                "ranking",
                {
                    "model": model,
                    "scorer": scorer.name,
                    "items": items,
                    "M": name,
                    "k": 100,
                    "weights": math.prod(links) if (links := run.ranker.link_shape) else None,
                    "hidden": getattr(run.ranker.config, "hidden", None),
                    "threads": threads,
                },
                {
                    "ms_p50": median,
                    **{f"{k}_ms_p50": statistics.median(v[1:]) for k, v in times.items()},
                },
                repeats=count,
                spread={"ms_p50": spread},
            )


def case_of(run: Run, items: int, source: str, threads: int) -> dict[str, object]:
    config = run.ranker.config
    shape = run.ranker.link_shape
    case = {"model": config.model, "items": items, "source": source, "d": config.width}
    return {
        **case,
        "links": shape and shape[1],
        "hidden": getattr(config, "hidden", None),
        "threads": threads,
    }


def of_folder(path: Path, items: int, repeats: int) -> dict[str, float]:
    """Size of an index, and the time to open it."""
    opening, _ = milliseconds(lambda: Index.open(path), repeats)
    verifying, _ = milliseconds(lambda: Index.open(path, verify=True), 1)
    size = sum(file.stat().st_size for file in path.iterdir())
    return {"bytes_per_item": size / items, "open_ms": opening, "verify_ms": verifying}


def measure_table(folder: Path, model: str, items: int, threads: int, repeats: int) -> None:
    """Build an index of a table, rank it in another process, change it."""
    run, path, table = load_run(folder / model), folder / f"table-{model}", folder / "table.parquet"
    if not table.exists():
        write_items(table, items, np.random.default_rng(1))
    case = case_of(run, items, "table", threads)
    started, before = time.perf_counter(), time.process_time()
    build_index(run, path, items=table)
    taken, processor = time.perf_counter() - started, time.process_time() - before
    command = [sys.executable, "-m", "benchmarks.index", "--threads", str(threads)]
    command += ["--repeats", str(repeats)]
    command += ["--rank", str(folder / model), str(path), str(folder / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    write_row(
        "index",
        case,
        {
            "items_per_s": items / taken,
            "items_per_processor_s": items / processor,
            **of_folder(path, items, repeats),
            **json.loads(done.stdout),
        },
        repeats=repeats,
    )
    rng, new = np.random.default_rng(2), iter(range(items, items + 1_000_000))

    def some(count: int) -> list[dict[str, int]]:
        drawn = {name: rng.integers(0, size, count) for name, size in FEATURES.items()}
        columns = {name: values.tolist() for name, values in drawn.items()}
        return [
            {"item_id": next(new), **{name: values[k] for name, values in columns.items()}}
            for k in range(count)
        ]

    one, many = [some(1) for _ in range(repeats + 1)], [some(10_000) for _ in range(repeats + 1)]
    removed = iter(range(items))
    one_ms, one_spread = milliseconds(lambda: add_items(run, path, one.pop()), repeats)
    many_ms, _ = milliseconds(lambda: add_items(run, path, many.pop()), repeats)
    remove_ms, _ = milliseconds(lambda: remove_items(path, [next(removed)]), repeats)
    started = time.perf_counter()
    compact_index(path)
    write_row(
        "index",
        {**case, "what": "changes"},
        {
            "add_one_ms": one_ms,
            "add_items_per_s": 1e3 * 10_000 / many_ms,
            "remove_one_ms": remove_ms,
            "compact_items_per_s": items / (time.perf_counter() - started),
        },
        repeats=repeats,
        spread={"add_one_ms": one_spread},
    )


def rank_and_weigh(run: Path, index: Path, data: Path, repeats: int) -> dict[str, float]:
    """Time to rank a full index for one user, and the memory of this process, which does nothing
    else."""
    loaded, dataset = load_run(run), Dataset(data)
    user = dataset.user_ids[np.argmax(np.bincount(dataset.requests["user"]))]
    start = _status("VmRSS")
    recommender = Recommender(loaded, index, dataset)
    ranked, spread = milliseconds(lambda: recommender.rank(user, k=100), repeats)
    peak, held, mapped = _status("VmHWM"), 0.0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapped = str(index.resolve()) in line
        elif mapped and line.startswith("Rss:"):
            held += int(line.split()[1]) / 1024
    size = sum(file.stat().st_size for file in index.iterdir()) / 2**20
    return {
        "rank_ms_p50": ranked,
        "rank_ms_max": spread[1],
        "index_mib": size,
        "peak_mib": peak,
        "peak_of_index_mib": held,
        "before_index_mib": start,
        "added_beyond_index_mib": peak - held - start,
    }


def _status(field: str) -> float:
    """A memory field of ``/proc/self/status``, MiB."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
