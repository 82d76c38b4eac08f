"""A server under mixed load for some time: do memory and latency stay constant?

    python -m benchmarks.soak --minutes 20

Clients rank candidate lists and the full catalogue, also for unknown users, post events, ask for
explanations, remove items, delete users and reload the run, at a constant rate. Each minute gives a
row: resident memory of the server, p50 and p99 of rankings, and failed requests. The store has at
most 200 events per user (``--most``), so that its size stays constant as well.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2 as httpx

from benchmarks.index import catalogue, random_run
from benchmarks.rows import write_row
from benchmarks.serving import START, fill, server
from limerank.data.dataset import Dataset
from limerank.index.building import build_index
from limerank.models.config import ModelConfig
from limerank.runs.folder import load_run

CLIENTS = 4
KINDS = {"candidates": 60, "catalogue": 15, "unknown": 8, "events": 12, "explain": 2, "items": 1,
         "forget": 1, "reload": 0.05}  # fmt: skip
"""Kind of request -> its share of the requests, in about percent."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--model", default="lime-mha")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second in all")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="limerank-soak-") as held:
        folder = Path(held)
        dataset = Dataset(catalogue(folder, given.items))
        random_run(folder / given.model, dataset, ModelConfig(model=given.model))
        build_index(load_run(folder / given.model), folder / f"index-{given.model}", data=dataset)
        fill(folder / "events.db", given.users, given.items, 200)
        with server(folder, given.model, more=("--most", "200")) as (port, pid):
            soak(f"http://127.0.0.1:{port}", Path(f"/proc/{pid}"), given)


def soak(url: str, process: Path, given: argparse.Namespace) -> None:
    stop, lock = threading.Event(), threading.Lock()
    taken: list[float] = []
    failed: list[str] = []
    threads = [
        threading.Thread(target=ask, args=(url, position, given, stop, lock, taken, failed))
        for position in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    memory: list[float] = []
    began = time.monotonic()
    try:
        while time.monotonic() - began < 60 * given.minutes:
            stop.wait(min(60.0, 60 * given.minutes))
            with lock:
                minute, wrong = sorted(taken), list(failed)
                taken.clear()
                failed.clear()
            pages = int((process / "statm").read_text().split()[1])
            memory.append(pages * resource.getpagesize() / (1 << 20))
            row = write_row(
                "soak",
                {"model": given.model, "users": given.users, "items": given.items,
                 "rate": given.rate, "minute": len(memory)},
                {
                    "requests": len(minute),
                    "failed": len(wrong),
                    "rss_mib": memory[-1],
                    "threads": len(list((process / "task").iterdir())),
                    "files": len(list((process / "fd").iterdir())),
                    "ms_p50": 1e3 * statistics.median(minute),
                    "ms_p99": 1e3 * minute[int(0.99 * len(minute))],
                },
                repeats=len(minute),
            )  # fmt: skip
            shown = {name: round(value, 2) for name, value in row["metrics"].items()}
            print(len(memory), shown, wrong[:3], flush=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask(
    url: str,
    position: int,
    given: argparse.Namespace,
    stop: threading.Event,
    lock: threading.Lock,
    taken: list[float],
    failed: list[str],
) -> None:
    rng = random.Random(position)
    pause, sent = CLIENTS / given.rate, 0
    due = time.monotonic()
    with httpx.Client(base_url=url, timeout=30) as client:
        while not stop.is_set():
            due = max(due + pause, time.monotonic() - 1)
            stop.wait(max(0.0, due - time.monotonic()))
            (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
            method, path, body = request(kind, rng, given, sent, position)
            sent += 1
            started = time.perf_counter()
            answer = client.request(method, path, json=body)
            seconds = time.perf_counter() - started
            with lock:
                if kind in ("candidates", "catalogue", "unknown"):
                    taken.append(seconds)
                # A user or an item may be deleted twice.
                if answer.status_code not in (
                    (200, 404) if kind in ("forget", "items") else (200,)
                ):
                    failed.append(f"{kind} {answer.status_code} {answer.text[:200]}")


def request(
    kind: str, rng: random.Random, given: argparse.Namespace, sent: int, position: int
) -> tuple[str, str, object]:
    user = rng.randrange(given.users)
    if kind == "events":
        events = [
            {"user": rng.randrange(given.users), "item": rng.randrange(given.items),
             "time": START + 10**9 + 100 * sent + k, "labels": {"click": k % 2},
             "id": f"{position}-{sent}-{k}"}
            for k in range(5)
        ]  # fmt: skip
        return "POST", "/v1/events", {"events": events}
    if kind == "explain":
        return "POST", "/v1/explain", {"user": user, "items": [rng.randrange(given.items // 2)]}
    if kind == "items":  # from the upper half: candidates are of the lower one
        item = given.items // 2 + rng.randrange(given.items // 2)
        return "DELETE", f"/v1/items/{item}", None
    if kind == "forget":
        return "DELETE", f"/v1/users/{user}", None
    if kind == "reload":
        return "POST", "/v1/admin/reload", {}
    asked: dict[str, object] = {"user": user, "k": 20}
    if kind == "unknown":
        asked["user"] = f"nobody {rng.random()}"
    if kind != "catalogue":
        asked["candidates"] = rng.sample(range(given.items // 2), 512)
    return "POST", "/v1/rank", asked


if __name__ == "__main__":
    main()
