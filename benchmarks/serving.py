"""The server under load from another process on the same cores.

    python -m benchmarks.serving --users 10_000 --items 100_000

An index of random items, a model with random weights, users with 200 events each in an SQLite
store. A client process keeps a number of connections busy, one request after another on each, with
bodies that are made beforehand. Every rate stands beside that of a route that does nothing, in the
same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index import catalogue, random_run
from benchmarks.rows import write_row
from limerank.checkpoint import load_run
from limerank.config import ModelConfig
from limerank.dataset import Dataset
from limerank.events import event_of
from limerank.indexing import build_index
from limerank.stores import SqliteStore

START = 1_700_000_000_000
BODIES = 2000
"""Distinct requests of each kind."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--history", type=int, default=200)
    parser.add_argument("--model", nargs="+", default=["lime-mha", "lime-xor"])
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
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


def fill(path: Path, users: int, items: int, history: int) -> float:
    """Events of users who exist already; returns the seconds it took."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    with SqliteStore(path) as store:
        for first in range(0, users, 64):
            chosen = rng.integers(0, items, (64, history))
            store.append(
                [
                    event_of(
                        {
                            "user": user,
                            "item": int(chosen[user - first, place]),
                            "time": START + 60_000 * place,
                            "labels": {"click": place % 2},
                        }
                    )
                    for user in range(first, min(first + 64, users))
                    for place in range(history)
                ]
            )
    return time.perf_counter() - started


@contextlib.contextmanager
def server(folder: Path, model: str) -> Iterator[int]:
    """A server as a user starts it; gives its port."""
    port = 8700 + os.getpid() % 200
    command = [sys.executable, "-m", "limerank", "serve", "--open", "--port", str(port)]
    command += ["--run", str(folder / model), "--index", str(folder / f"index-{model}")]
    command += ["--store", str(folder / "events.db")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            asyncio.run(_ready(port, process))
            yield port
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


def requests_of(what: str, given: argparse.Namespace) -> list[bytes]:
    """Requests, ready to be written."""
    rng = np.random.default_rng(1)
    if what == "no-op":
        return [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"]
    found = []
    for place in range(BODIES):
        user = int(rng.integers(0, given.users))
        body: dict[str, Any] = {"user": user, "k": 20}
        path = "/v1/rank"
        if what == "512 candidates":
            body["candidates"] = rng.choice(given.items, 512, replace=False).tolist()
        elif what == "512 candidates, unknown users":
            body["user"] = given.users + place
            body["candidates"] = rng.choice(given.items, 512, replace=False).tolist()
        elif what == "events":
            path = "/v1/events"
            item, when = int(rng.integers(0, given.items)), START + 10**9 + place
            body = {"user": user, "item": item, "time": when, "labels": {"click": 1}}
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        found.append(head.encode() + data)
    return found


def load(port: int, requests: list[bytes], connections: int, seconds: float) -> list[float]:
    """Seconds of each answered request; raises where one is not a 200."""

    async def one(place: int, until: float, taken: list[float]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        at = place * 7919
        while time.perf_counter() < until:
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

    async def all_of_them() -> list[float]:
        taken: list[float] = []
        until = time.perf_counter() + seconds
        await asyncio.gather(*(one(place, until, taken) for place in range(connections)))
        return taken

    return asyncio.run(all_of_them())


def measure(folder: Path, model: str, given: argparse.Namespace) -> None:
    kinds = [
        "no-op",
        "512 candidates",
        "whole catalogue",
        "events",
        "512 candidates, unknown users",
    ]
    rates: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    with server(folder, model) as port, context.Pool(1) as pool:
        for kind in kinds:
            requests = requests_of(kind, given)
            given_to = (port, requests, given.connections)
            pool.apply(load, (*given_to, min(3.0, given.seconds)))  # warm: users' states are made
            taken = sorted(pool.apply(load, (*given_to, given.seconds)))
            rates[kind] = len(taken) / given.seconds
            row = write_row(
                "serving",
                {
                    "model": model,
                    "what": kind,
                    "items": given.items,
                    "history": given.history,
                    "users": given.users,
                    "connections": given.connections,
                    "processes": 1,
                },
                {
                    "requests_per_s": rates[kind],
                    "ratio_to_no_op": rates[kind] / rates["no-op"],
                    "ms_p50": 1e3 * statistics.median(taken),
                    "ms_p99": 1e3 * taken[int(0.99 * len(taken))],
                },
                repeats=len(taken),
            )
            shown = {name: round(value, 3) for name, value in row["metrics"].items()}
            print(model, kind, shown, flush=True)


if __name__ == "__main__":
    main()
