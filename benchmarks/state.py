"""Live state: bytes per user in the embedded store, and the time of an event.

    python -m benchmarks.state                                         # 2,000 users x 200 events
    python -m benchmarks.state --users 1_000_000 --folder /large/disk  # 11 GB, an hour
    python -m benchmarks.state --valkey            # memory of a Valkey or Redis server alone

The store is filled with the events of 64 users at a time. Then single events of random users are
measured: appends that are durable when they return, reads of all events of a user, and events per
second with 1, 8 and 32 writing threads (group commit). Much of it depends on the disk:
``fsync_ms_p50`` is the time to flush a small file in the same folder. With ``--valkey`` the same
events are written to a Valkey or Redis server, whose ``used_memory`` is read before and after.

User states are those of LIME-MHA with random weights. Measured is the time from a new event in the
store to a state that can be scored: streaming (``streaming_update``: one event is merged), by a
window (``window_update``: the latest events are read and encoded again), rebuilt from all stored
events (``rebuild``), and without a new event (``unchanged``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.index import catalogue
from benchmarks.rows import write_row
from benchmarks.serving import valkey
from limerank.data.dataset import Dataset
from limerank.data.events import Event, event_of
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models import build
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.progress import Bar
from limerank.runs.folder import create_run, load_run, save_weights
from limerank.runs.model import Trained
from limerank.serving.state import Mode, UserStates
from limerank.serving.stores import EventStore, SqliteStore, ValkeyStore

ITEMS = 20_000
TOGETHER = 64
"""Users whose events are written at once when the store is filled."""
START = 1_700_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--valkey", action="store_true", help="measure the memory of Valkey alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="limerank-state-") as name:
        folder = Path(name)
        if options.valkey:
            measure_memory(folder, options.users, options.events)
            return
        measure_store(folder, options)
        for events in (options.events, 10 * options.events):
            measure_states(folder, events, min(options.samples, 200))


def random_event(rng: np.random.Generator, user: int, at: int) -> Event:
    labels = {"click": float(rng.random() < 0.3)}
    return event_of(
        {"user": user, "item": int(rng.integers(ITEMS)), "time": START + at, "labels": labels}
    )


def histories(rng: np.random.Generator, users: range, events: int) -> list[Event]:
    """Events like those of :func:`random_event`, for many users at once and without its checks."""
    many = len(users) * events
    items, clicks = rng.integers(ITEMS, size=many).tolist(), rng.random(many) < 0.3
    ids, labels = rng.bytes(11 * many), ({"click": 0.0}, {"click": 1.0})
    return [
        Event(
            users[at // events],
            items[at],
            START + 60_000 * (at % events),
            labels[int(clicks[at])],
            id=b"\0" + ids[11 * at : 11 * at + 11],
        )
        for at in range(many)
    ]


def measure_store(folder: Path, options: argparse.Namespace) -> None:
    users, events = options.users, options.events
    with SqliteStore(folder / "events.db") as store:
        filling = fill(store, users, events)
    filled = users * events / filling
    size = (folder / "events.db").stat().st_size  # closed: nothing is left in the log
    with SqliteStore(folder / "events.db") as store:
        measure_access(
            store,
            folder,
            options,
            {
                "bytes_per_user": round(size / users),
                "bytes_per_event": round(size / users / events, 1),
                "fill_events_per_s": round(filled),
            },
        )


def fill(store: EventStore, users: int, events: int) -> float:
    """Write the events of all users; returns the seconds that the store took."""
    rng, filling = np.random.default_rng(0), 0.0
    with Bar("filling the store", total=users, unit="users") as bar:
        for first in range(0, users, TOGETHER):
            some = range(first, min(first + TOGETHER, users))
            lot = histories(rng, some, events)
            filling += once(lambda lot=lot: store.append(lot))  # type: ignore[misc]
            bar.advance(len(some))
    return filling


def measure_memory(folder: Path, users: int, events: int) -> None:
    """Bytes of a Valkey server's memory for each event, its keys and indexes included."""
    with valkey(folder) as address:
        if address is None:
            return
        from valkey import Valkey

        with ValkeyStore(address) as store, Valkey.from_url(address) as server:
            before = server.info("memory")["used_memory"]
            fill(store, users, events)
            used = server.info("memory")["used_memory"] - before
            version = server.info("server")["redis_version"]
    metrics: dict[str, float | str]
    metrics = {"bytes_per_user": round(used / users), "bytes_per_event": used / users / events}
    metrics |= {"server": version}
    case = {"what": "memory", "store": "valkey", "users": users, "events": events}
    print(write_row("state", case, metrics)["metrics"])


def measure_access(
    store: SqliteStore, folder: Path, options: argparse.Namespace, metrics: dict[str, float]
) -> None:
    rng, users, events = np.random.default_rng(1), options.users, options.events
    drawn = rng.integers(0, users, options.samples).tolist()
    fresh = [random_event(rng, user, 10**9 + k) for k, user in enumerate(drawn)]
    appends = times(lambda k: store.append([fresh[k]]), options.samples)
    versions = times(lambda k: store.version(drawn[k]), options.samples)
    reads = times(lambda k: store.held(drawn[k]), options.samples)
    latest = times(lambda k: store.latest(drawn[k], 128), options.samples)
    group = [random_event(rng, user, 3 * 10**9 + k) for k, user in enumerate(100 * drawn[:20])]
    started = time.perf_counter()
    for at in range(0, len(group), 100):
        store.append(group[at : at + 100])
    metrics |= {
        "events_per_s_100_at_once": round(len(group) / (time.perf_counter() - started)),
        "fsync_ms_p50": flush(folder),
        **quantiles("append", appends),
        **quantiles("version", versions),
        **quantiles("read", reads),
        **quantiles("latest_128", latest),
    }
    for threads in (1, 8, 32):
        metrics[f"events_per_s_{threads}_threads"] = together(
            store, users, threads, options.seconds
        )
    case = {"what": "store", "store": "sqlite", "users": users, "events": events}
    print(write_row("state", case, metrics)["metrics"])


def together(store: SqliteStore, users: int, threads: int, seconds: float) -> int:
    """Single events that this many threads write in a second, each durable before the next."""
    done, end = [0] * threads, time.perf_counter() + seconds

    def work(thread: int) -> None:
        rng = np.random.default_rng(thread)
        while time.perf_counter() < end:
            at = 2 * 10**9 + threads * 10**7 + thread * 10**5 + done[thread]
            store.append([random_event(rng, int(rng.integers(users)), at)])
            done[thread] += 1

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return round(sum(done) / (time.perf_counter() - started))


def measure_states(folder: Path, events: int, samples: int) -> None:
    trained, index = model_of(folder)
    rng = np.random.default_rng(1)
    with SqliteStore(folder / f"states-{events}.db") as store:
        store.append([random_event(rng, 1, 60_000 * k) for k in range(events)])
        metrics: dict[str, float] = {}
        modes: tuple[Mode, ...] = ("streaming", "window")
        for mode in modes:
            states = UserStates(trained, index, store, mode=mode)
            states.ready(1)
            found = []
            for at in range(samples):
                store.append([random_event(rng, 1, 10**10 + at)])
                found.append(once(lambda s=states: s.ready(1)))  # type: ignore[misc]
            metrics |= quantiles(f"{mode}_update", found)
            unchanged = times(lambda _, s=states: s.ready(1), samples)  # type: ignore[misc]
            metrics |= quantiles(f"{mode}_unchanged", unchanged)
            rebuilt = []
            for _ in range(20):
                fresh = UserStates(trained, index, store, mode=mode)
                fresh.ready(None)  # vocabularies and the like are read
                rebuilt.append(once(lambda s=fresh: s.ready(1)))  # type: ignore[misc]
            metrics |= quantiles(f"{mode}_rebuild", rebuilt)
            states.rebuild()
            stored = store.state(1, states.kind)
            metrics[f"{mode}_bytes"] = 0 if stored is None else len(stored.data)
        metrics["update_ratio_to_rebuild"] = round(
            metrics["streaming_update_ms_p50"] / metrics["streaming_rebuild_ms_p50"], 3
        )
    config = trained.ranker.config
    case = {"what": "states", "model": config.model, "events": events, "window": trained.history}
    case |= config.model_dump(include={"links"}) | {"d": config.width}
    print(write_row("state", case, metrics)["metrics"])


def model_of(folder: Path) -> tuple[Trained, Index]:
    """A run with random weights, and its index."""
    if not (folder / "run").exists():
        data = Dataset(catalogue(folder, ITEMS, events=20_000))
        torch.manual_seed(0)
        shape, config = DataShape.of(data.manifest), ModelConfig(model="lime-mha")
        (folder / "run").mkdir()
        create_run(folder / "run", data, shape, config, TrainConfig())
        save_weights(folder / "run", build(shape, config))
        build_index(folder / "run", folder / "index", data=data)
    run = load_run(folder / "run")
    return run, Index.open(folder / "index", run.fingerprint)


def once(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def times(work: Callable[[int], object], samples: int) -> list[float]:
    return [once(lambda k=k: work(k)) for k in range(samples)]  # type: ignore[misc]


def quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_ms_p50": round(1e3 * statistics.median(seconds), 4),
        f"{name}_ms_p99": round(1e3 * float(np.quantile(seconds, 0.99)), 4),
    }


def flush(folder: Path) -> float:
    """Milliseconds of a flush of 4 KiB, the median of 50."""
    with open(folder / "flush", "wb") as file:

        def work(_: int) -> None:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())

        return round(1e3 * statistics.median(times(work, 50)), 3)


if __name__ == "__main__":
    main()
