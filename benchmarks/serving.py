"""The server under load from another process on the same cores.

    python -m benchmarks.serving --users 10_000 --items 100_000

The server has an index of random items, a model with random weights, and an SQLite store of users
with 200 events each. A client process sends one request after another on each of several
connections; bodies are made beforehand. ``no-op`` is the rate of a route that does nothing,
measured at the start and at the end of the same run; the faster one counts. Users are warm where
every body was sent once before. A ``logged`` ranking is answered when its exposure is durable.

If a Valkey or Redis server is installed, two servers that share one store are measured as well:
their rates, and how often an event that one has acknowledged is missing in the other's next
ranking.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from benchmarks.index import catalogue, random_run
from benchmarks.rows import write_row
from limerank.data.dataset import Dataset
from limerank.data.events import event_of
from limerank.index.building import build_index
from limerank.models.config import ModelConfig
from limerank.runs.folder import load_run
from limerank.serving.stores import open_store

START = 1_700_000_000_000
BODIES = 2000
"""Distinct requests of each kind."""
SHARED_USERS = 1000
"""Users of the store that two servers share."""
ROUNDS = 500
"""Events posted to one of them, each followed by a ranking from the other."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--history", type=int, default=200)
    parser.add_argument("--model", nargs="+", default=["lime-mha", "lime-xor"])
    parser.add_argument("--connections", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--alone", action="store_true", help="no servers that share a store")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="limerank-serving-") as held:
        folder = Path(held)
        dataset = Dataset(catalogue(folder, given.items))
        for model in given.model:
            random_run(folder / model, dataset, ModelConfig(model=model))
            build_index(load_run(folder / model), folder / f"index-{model}", data=dataset)
        filled = fill(folder / "events.db", given.users, given.items, given.history)
        print(f"{given.users * given.history / filled:,.0f} events/s into the store", flush=True)
        for model in given.model:
            measure(folder, model, given)
        if not given.alone:
            measure_shared(folder, given.model[0], given)


def fill(path: str | Path, users: int, items: int, history: int) -> float:
    """Store events of users; returns the seconds it took."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    with open_store(str(path)) as store:
        for first in range(0, users, 64):
            chosen = rng.integers(0, items, (64, history))
            store.append(
                [
                    event_of(
                        {
                            "user": user,
                            "item": int(chosen[user - first, position]),
                            "time": START + 60_000 * position,
                            "labels": {"click": position % 2},
                        }
                    )
                    for user in range(first, min(first + 64, users))
                    for position in range(history)
                ]
            )
    return time.perf_counter() - started


@contextlib.contextmanager
def server(
    folder: Path, model: str, store: str = "events.db", position: int = 0, more: Sequence[str] = ()
) -> Iterator[tuple[int, int]]:
    """Start a server from the command line; yields its port and process id."""
    port = 8700 + os.getpid() % 200 + 200 * position
    command = [sys.executable, "-m", "limerank", "serve", "--no-keys", "--port", str(port)]
    command += ["--run", str(folder / model), "--index", str(folder / f"index-{model}")]
    command += ["--store", store if "://" in store else str(folder / store), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / f"log-{position}", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            asyncio.run(_ready(port, process))
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


async def _ready(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server stopped before it answered")
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not answer within a minute")


KINDS = {
    "no-op": 0,
    "512 candidates, cold users": 0,
    "512 candidates": 0,
    "512 candidates, logged": 0,
    "512 candidates, unknown users": 0,
    "full catalogue": 0,
    "events, one a request": 1,
    "events, 50 a request": 50,
}
"""Kind of request -> events per request."""


def requests_of(what: str, given: argparse.Namespace) -> list[bytes]:
    """HTTP requests of one kind as bytes."""
    rng = np.random.default_rng(1)
    if what == "no-op":
        return [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    found, when = [], START + 10**9
    for position in range(BODIES):
        user = int(rng.integers(0, given.users))
        path = "/v1/rank"
        body: dict[str, Any] = {"user": user, "k": 20}
        if what.startswith("512"):
            body["candidates"] = rng.choice(given.items, 512, replace=False).tolist()
        if what.endswith("logged"):  # an exposure of its own is stored with each answer
            body["log"] = True
        if what.endswith("unknown users"):
            body["user"] = given.users + position
        if what.endswith("cold users"):  # each body is of another user, and sent once
            body["user"] = position % given.users
        if KINDS[what]:
            path, events = "/v1/events", []
            for _ in range(KINDS[what]):
                when += 1
                item = int(rng.integers(0, given.items))
                events.append({"user": user, "item": item, "time": when, "labels": {"click": 1}})
                user = int(rng.integers(0, given.users))
            body = {"events": events}
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        found.append(head.encode() + data)
    return found


def load(
    ports: list[int], requests: list[bytes], connections: int, seconds: float, *, once: bool
) -> tuple[list[float], float]:
    """Seconds of each request, and of all; raises where a status is not 200.

    The connections share the requests: each is sent ``once``, or all repeat for ``seconds``.
    """

    async def one(position: int, until: float, taken: list[float]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[position % len(ports)])
        at = position
        while at < len(requests) if once else time.perf_counter() < until:
            started = time.perf_counter()
            writer.write(requests[at % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(size)
            taken.append(time.perf_counter() - started)
            at += connections
        writer.close()

    async def all_of_them() -> tuple[list[float], float]:
        taken: list[float] = []
        started = time.perf_counter()
        until = started + seconds
        await asyncio.gather(*(one(position, until, taken) for position in range(connections)))
        return taken, time.perf_counter() - started

    return asyncio.run(all_of_them())


def measure(folder: Path, model: str, given: argparse.Namespace) -> None:
    for connections in given.connections:
        with server(folder, model) as (port, _), loader() as pool:
            measure_kinds(pool, [port], model, connections, "sqlite", given.kinds, given)


def loader() -> Any:
    """A pool with the client process."""
    return multiprocessing.get_context("spawn").Pool(1)


def p99(taken: list[float]) -> float:
    """The 99th percentile of sorted times."""
    return taken[int(0.99 * len(taken))]


def logged_ratio(kind: str, found: dict[str, tuple[list[float], float]]) -> float | None:
    """How many times as long the p99 of logged rankings is; None of other requests."""
    plain = kind.removesuffix(", logged")
    if plain == kind or plain not in found:
        return None
    return p99(found[kind][0]) / p99(found[plain][0])


def measure_kinds(
    pool: Any,
    ports: list[int],
    model: str,
    connections: int,
    store: str,
    kinds: list[str],
    given: argparse.Namespace,
) -> None:
    found: dict[str, tuple[list[float], float]] = {}
    for kind in (*kinds, "no-op"):  # no-op twice: the machine's speed varies
        requests, cold = requests_of(kind, given), kind.endswith("cold users")
        sent = (ports, requests, connections, given.seconds)
        if cold and given.users < BODIES:
            continue
        if not cold and not KINDS[kind]:
            pool.apply(load, sent, {"once": True})
        taken, seconds = pool.apply(load, sent, {"once": cold})
        rate = len(taken) / seconds
        if kind not in found or rate > found[kind][1]:
            found[kind] = sorted(taken), rate
    noop = found["no-op"][1]
    for kind, (taken, rate) in found.items():
        row = write_row(
            "serving",
            {
                "model": model,
                "what": kind,
                "items": given.items,
                "history": given.history,
                "users": given.users,
                "connections": connections,
                "servers": len(ports),
                "store": store,
            },
            {
                "requests_per_s": rate,
                "events_per_s": rate * KINDS[kind] or None,
                "ratio_to_no_op": rate / noop,
                "ms_p50": 1e3 * statistics.median(taken),
                "ms_p99": 1e3 * p99(taken),
                "p99_ratio_to_not_logged": logged_ratio(kind, found),
            },
            repeats=len(taken),
        )
        shown = {name: value and round(value, 3) for name, value in row["metrics"].items()}
        print(model, store, len(ports), connections, kind, shown, flush=True)


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[str | None]:
    """Start a durable Valkey or Redis server; yields its address, or None if none is installed."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        print("skipped: neither valkey-server nor redis-server is installed", flush=True)
        yield None
        return
    socket = folder / "socket"
    command = [program, "--port", "0", "--unixsocket", str(socket), "--dir", str(folder)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def measure_shared(folder: Path, model: str, given: argparse.Namespace) -> None:
    """One and two servers on a shared Valkey store: their rates, and whether they agree."""
    with valkey(folder) as store:
        if store is None:
            return
        fewer = argparse.Namespace(**vars(given) | {"users": min(given.users, SHARED_USERS)})
        fill(store, fewer.users, given.items, given.history)
        kinds = ["no-op", "512 candidates", "events, one a request", "events, 50 a request"]
        with (
            server(folder, model, store) as (one, _),
            server(folder, model, store, 1) as (two, _),
        ):
            for ports in ([one], [one, two]):
                with loader() as pool:
                    measure_kinds(pool, ports, model, 4, "valkey", kinds, fewer)
            missing, rounds = agreement([one, two], given.items), ROUNDS
        write_row(
            "serving",
            {"model": model, "what": "agreement of two servers", "store": "valkey", "servers": 2},
            {"rounds": rounds, "missing": missing},
            repeats=rounds,
        )
        print(f"an event was missing {missing} times of {rounds} in the other's next ranking")


def agreement(ports: list[int], items: int) -> int:
    """Post an event to one server and rank with the other, in turns; returns how often the event
    was missing."""
    missing = 0
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}")) for port in ports
        ]
        for position in range(ROUNDS):
            user, sent = f"of both {position // 50}", position % 50 + 1
            body = {"user": user, "item": position % items, "time": START + position}
            clients[position % 2].post("/v1/events", json=body).raise_for_status()
            ranked = clients[1 - position % 2].post("/v1/rank", json={"user": user, "k": 1}).json()
            missing += ranked["events"] != sent
    return missing


if __name__ == "__main__":
    main()
