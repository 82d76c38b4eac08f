"""Ranking through shards of an index, compared with one scan of it: the cost of the fan-out.

    python -m benchmarks.shards --items 200_000 1_000_000

LIME-MHA with d = 64, all anchored links and random weights; users with histories of 20 events; the
best 100 of the full catalogue. Servers of the shards and the front are processes of one machine,
over its loopback interface, one thread per ranking: so S shards have the cores of one machine, and
no row shows the time that more machines save. Every ranking is compared with that of one
scan: the same items with the same values, bit for bit, or there is no row.

Milliseconds are of one ranking from a user's state, one at a time, by one scan and through the
shards in turn; processor time is that of the front, per ranking. Bytes are those of the questions
to all shards and of all answers. Other programs used the same two cores: elapsed times are upper
bounds, and comparable with each other alone.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.index import catalogue, random_run
from benchmarks.rows import write_row
from limerank.data.dataset import Dataset
from limerank.errors import ShardError
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.sharding import split_index
from limerank.models.config import ModelConfig
from limerank.ranking.scorer import Scorer, scorer_for
from limerank.runs.folder import Run, load_run
from limerank.serving.shards.client import Shards
from limerank.serving.shards.scorer import ShardedScorer
from limerank.serving.shards.wire import Answer

K, USERS = 100, 60
LINE = re.compile(r"serving .* on (http://\S+)")


class Counting(Shards):
    """Shards that count the bytes of questions, ``sent``, and of answers, ``received``."""

    sent = received = 0

    def ask(self, questions: Sequence[bytes | None]) -> list[Answer | ShardError | None]:
        self.sent += sum(len(one) for one in questions if one is not None)
        found = super().ask(questions)
        self.received += sum(len(one.to_bytes()) for one in found if isinstance(one, Answer))
        return found


@contextlib.contextmanager
def servers(run: Path, shards: Sequence[Path], store: Path) -> Iterator[list[str]]:
    """The servers of shards; their URLs."""
    running = []
    try:
        for number, shard in enumerate(shards):
            command = [sys.executable, "-m", "limerank", "serve", "--run", str(run)]
            command += ["--index", str(shard), "--port", "0", "--no-keys"]
            command += ["--store", str(store / f"{number}.db"), "--workers", "1"]
            running.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
        urls = []
        for one in running:
            assert one.stdout is not None
            found = LINE.search(one.stdout.readline())
            assert found is not None
            urls.append(found[1])
        yield urls
    finally:
        for one in running:
            one.terminate()
        for one in running:
            one.wait()


def states(run: Run, index: Index, users: int) -> list[object]:
    """User states over random histories of items of the index."""
    from limerank.ranking.recommender import Recommender

    recommender, rng, found = Recommender(run, index, run.dataset()), np.random.default_rng(0), []
    for _ in range(users):
        history = index.ids[rng.integers(0, len(index), 20)].tolist()
        log = recommender._given(history, None)
        past = recommender._past(log, None, recommender._log_end, {})
        with torch.inference_mode():
            found.append(run.ranker.encode_users(past.users, past.vectors))
    return found


def timed(scorer: Scorer, state: object) -> tuple[float, float]:
    """Milliseconds of a ranking, and those of the processor in this process."""
    started, before = time.perf_counter(), time.process_time()
    scorer.top(state, K)
    return 1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - before)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="limerank-shards-") as held:
        for items in given.items:
            folder = Path(held) / str(items)
            folder.mkdir()
            dataset = Dataset(catalogue(folder, items))
            random_run(folder / "run", dataset, ModelConfig(model="lime-mha"))
            run = load_run(folder / "run")
            build_index(run, folder / "index", data=dataset)
            index = Index.open(folder / "index")
            of = states(run, index, USERS)
            alone = scorer_for("auto", run.ranker, index)
            for count in given.shards:
                measure(folder, run, alone, of, count)


def measure(folder: Path, run: Run, alone: Scorer, of: Sequence[object], count: int) -> None:
    paths = split_index(folder / "index", count)
    store = folder / f"stores-{count}"
    store.mkdir()
    with servers(run.path, paths, store) as urls:
        shards = Counting(urls, seconds=60)
        scorer = ShardedScorer(alone, run.fingerprint, shards)
        scorer.check()
        for state in of:
            one, other = alone.top(state, K), scorer.top(state, K)
            assert (one.rows == other.rows).all() and (one.values == other.values).all()
        shards.sent = shards.received = 0
        scans, fans = zip(*((timed(alone, one), timed(scorer, one)) for one in of), strict=True)
        ms, front = ([taken[part] for taken in fans] for part in (0, 1))
        metrics = {
            "ms_of_one_scan": statistics.median(taken for taken, _ in scans),
            "ms": statistics.median(ms),
            "cpu_ms_of_front": statistics.mean(front),
            "kb_asked": shards.sent / USERS / 1e3,
            "kb_answered": shards.received / USERS / 1e3,
        }
        shards.close()
    low, high = np.percentile(ms, [5, 95])
    case = {"model": "lime-mha", "items": len(alone), "shards": count}
    write_row("shards", case, metrics, seed=0, repeats=USERS, spread={"ms": [low, high]})
    print(case, metrics, flush=True)


if __name__ == "__main__":
    main()
