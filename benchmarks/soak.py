"""A server with everything going on for hours: do memory and latency stay constant?

    python -m benchmarks.soak --minutes 120

Clients rank the catalogue and candidates (most rankings are logged as shown), post events, ask for
explanations, put and remove items, and delete users, at a constant rate. Beside the server, on the
same cores, the daily loop runs with days of some minutes: it exports the store, extends the
dataset, trains, measures, builds an index and publishes, and the server loads the result while it
answers. Each minute gives a row, written as soon as it is measured; the verdict says whether memory
and latency were constant. The store has at most 200 events and 50 exposures per user, and the loop
drops events that are older than its window, so that sizes stay constant as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import polars as pl
import tomli_w

from benchmarks.rows import rows, write_row

BENCH = "soak"
CLIENTS = 4
KINDS = {"rank": 40, "candidates": 25, "unknown": 5, "events": 20, "explain": 2, "put": 1,
         "remove": 1, "forget": 1, "user": 4, "reload": 0.05}  # fmt: skip
"""Kind of request -> its share of the requests, in about percent."""
TIMED = ("rank", "candidates", "unknown")
"""Kinds whose latency a row has."""
UNDERSTOOD = {"forget": (200, 404), "remove": (200, 404), "user": (200, 404)}
"""Kind -> statuses that are no failure; others have 200."""
LIVE, FIRST_LIVE = 200, 1_000_000
"""Live items that come and go, and the lowest of their ids."""
CATEGORIES = 20
WARM = 3
"""Minutes that the verdict leaves out, at most: caches fill."""
MEMORY, LATENCY = 1.05, 1.5
"""Factors by which the median memory and the median p99 of the last third of the minutes may exceed
those of the first."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second in all")
    parser.add_argument("--day", type=float, default=5.0, help="minutes of a day of the loop")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="limerank-soak-") as held:
        folder = Path(held)
        prepare(folder, given)
        limerank(folder, "refresh", "refresh.toml", "--quiet")
        command = [*COMMAND, "serve", "--no-keys", "--port", "0", "--most", "200"]
        command += ["--most-exposures", "50", "--run", "home/live/run", "--index"]
        command += ["home/live/index", "--watch", "home/live", "--store", "events.db"]
        with open(folder / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True,
                env=ENVIRONMENT,
            )  # fmt: skip
            assert process.stdout is not None
            try:
                url = process.stdout.readline().split()[-1]
                soak(folder, url, Path(f"/proc/{process.pid}"), given)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)
                process.stdout.close()


COMMAND = [sys.executable, "-m", "limerank"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def limerank(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command; raises if it fails, with what it wrote."""
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode not in (0, 3):  # 3: the new model was refused
        raise SystemExit(f"limerank {arguments[0]} failed: {done.stderr[-1000:]}")
    return done


def prepare(folder: Path, given: argparse.Namespace) -> None:
    """The log of an hour before, the item table, the description and the loop's configuration."""
    rng = np.random.default_rng(0)
    count = 20_000
    items = rng.integers(0, given.items, count)
    (folder / "logs").mkdir()
    now = int(time.time() * 1000)
    pl.DataFrame(
        {
            "user_id": rng.integers(0, given.users, count),
            "item_id": items,
            "time": now - np.sort(rng.integers(60_000, 3_600_000, count))[::-1],
            "source": np.where(np.arange(count) % 10 == 0, "event", "shown"),
            "request": [f"first {k // 5}" for k in range(count)],
            "clicked": (rng.random(count) < chance(items)).astype(np.int64),
        }
    ).write_parquet(folder / "logs" / "first.parquet")
    pl.DataFrame(
        {
            "item_id": np.arange(given.items),
            "category": [f"c{item % CATEGORIES}" for item in range(given.items)],
        }
    ).write_csv(folder / "items.csv")
    common = {"files": ["logs/*"], "time": "time", "time_unit": "ms"}
    description = {
        "name": "soak",
        "events": [
            {**common, "where": {"source": ["shown"]}, "request": "request"},
            {**common, "where": {"source": ["event"]}, "shown": False},
        ],
        "labels": [{"name": "clicked", "kind": "binary"}],
        "items": {
            "files": ["items.csv"],
            "id": "item_id",
            "features": [{"name": "category", "kind": "categorical"}],
        },
        "history": {"length": 50},
    }
    loop = {
        "home": "home",
        "description": "shop.toml",
        "window": "2h",
        "export": {"store": "events.db", "folder": "logs", "since": now, "window": 20.0},
        "train": {"width": 16, "links": 4, "epochs": 1},
        "gate": {"tolerance": 0.5, "most_ne": 100.0, "alarms": False},
        "data": {"most_shifted": 100.0, "most_dropped": 0.9, "most_lost": 1.0},
    }
    for name, values in (("shop", description), ("refresh", loop)):
        (folder / f"{name}.toml").write_text(tomli_w.dumps(values), encoding="utf-8")


def chance(items: Any) -> Any:
    """Probability of a click on items."""
    return np.where(np.asarray(items) % CATEGORIES < CATEGORIES // 2, 0.4, 0.1)


@dataclass
class Tallies:
    """What took place in a minute; threads add to it.

    Attributes:
        taken: seconds of each ranking.
        failed: what failed, in words.
        kinds: requests of each kind.
        loop: outcomes of the daily loop.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    taken: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    loop: Counter[str] = field(default_factory=Counter)

    def take(self) -> Tallies:
        """What was added since the last call."""
        with self.lock:
            found = Tallies(self.lock, self.taken, self.failed, self.kinds, self.loop)
            self.taken, self.failed, self.kinds, self.loop = [], [], Counter(), Counter()
        return found


def soak(folder: Path, url: str, process: Path, given: argparse.Namespace) -> None:
    """Run all clients and the loop, and write a row each minute."""
    stop, tallies = threading.Event(), Tallies()
    threads = [
        threading.Thread(target=ask, args=(url, number, given, stop, tallies))
        for number in range(CLIENTS)
    ]
    threads.append(threading.Thread(target=turn, args=(folder, given, stop, tallies)))
    for thread in threads:
        thread.start()
    case = {"minutes": given.minutes, "users": given.users, "items": given.items,
            "rate": given.rate, "day": given.day}  # fmt: skip
    try:
        for minute in range(1, given.minutes + 1):
            stop.wait(60.0)
            found = tallies.take()
            taken = sorted(found.taken)
            held = memory_of(process)
            row = write_row(
                BENCH,
                {**case, "minute": minute},
                {
                    "requests": sum(found.kinds.values()),
                    "failed": len(found.failed),
                    "rss_mib": held["VmRSS"],
                    "own_mib": held["RssAnon"],
                    "threads": len(list((process / "task").iterdir())),
                    "files": len(list((process / "fd").iterdir())),
                    "store_mib": (folder / "events.db").stat().st_size / (1 << 20),
                    "published": found.loop["published"],
                    "refused": found.loop["refused"],
                    "ms_p50": 1e3 * statistics.median(taken),
                    "ms_p99": 1e3 * taken[int(0.99 * len(taken))],
                },
                repeats=len(taken),
            )
            shown = {name: round(value, 2) for name, value in row["metrics"].items()}
            print(minute, shown, found.failed[:3], flush=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    of = [row for row in rows(BENCH) if {**row["case"], **case} == row["case"]]
    print(verdict(of)["text"])


def memory_of(process: Path) -> dict[str, float]:
    """MiB of a process: in all (``VmRSS``), and without mapped files (``RssAnon``), whose pages the
    system takes back when it needs them."""
    lines = (process / "status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")}


def verdict(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether memory and latency were constant, from the rows of the minutes.

    Returns:
        ``constant``, the two ratios ``memory`` (without mapped files, where the rows have it) and
        ``latency`` of the last third of the minutes to the first, ``failed`` requests, and a
        ``text`` that says so.
    """
    ordered = sorted(found, key=lambda row: row["case"]["minute"])
    ordered = ordered[min(WARM, len(ordered) // 3) :]
    third = max(1, len(ordered) // 3)
    ratios = {}
    memory = "own_mib" if all("own_mib" in row["metrics"] for row in ordered) else "rss_mib"
    for name, metric in (("memory", memory), ("latency", "ms_p99")):
        first, last = (
            statistics.median(row["metrics"][metric] for row in part)
            for part in (ordered[:third], ordered[-third:])
        )
        ratios[name] = last / first
    constant = ratios["memory"] <= MEMORY and ratios["latency"] <= LATENCY
    failed = sum(row["metrics"]["failed"] for row in found)
    text = (
        f"Memory of the last third of the minutes is {ratios['memory']:.2f} times that of the "
        f"first, and p99 {ratios['latency']:.2f} times (medians; constant: up to {MEMORY} and "
        f"{LATENCY}): {'constant' if constant else 'not constant'}. {failed} requests failed."
    )
    return {"constant": constant, "failed": failed, "text": text, **ratios}


def turn(folder: Path, given: argparse.Namespace, stop: threading.Event, tallies: Tallies) -> None:
    """The daily loop: one cycle after each day."""
    while not stop.wait(60 * given.day):
        try:
            done = limerank(folder, "refresh", "refresh.toml", "--quiet", "--json")
            outcome = json.loads(done.stdout)["outcome"] if done.stdout.strip() else "nothing new"
        except SystemExit as error:
            outcome = "failed"
            with tallies.lock:
                tallies.failed.append(str(error))
        with tallies.lock:
            tallies.loop[outcome] += 1


def ask(
    url: str, number: int, given: argparse.Namespace, stop: threading.Event, tallies: Tallies
) -> None:
    """One client."""
    rng = random.Random(number)
    pause, due = CLIENTS / given.rate, time.monotonic()
    shown: dict[int, tuple[str, list[int]]] = defaultdict(lambda: ("", []))
    with httpx.Client(base_url=url, timeout=30) as client:
        while not stop.is_set():
            due = max(due + pause, time.monotonic() - 1)
            stop.wait(max(0.0, due - time.monotonic()))
            (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
            user = rng.randrange(number, given.users, CLIENTS)
            method, path, body = request(kind, rng, user, given, shown[user])
            started = time.perf_counter()
            try:
                answer = client.request(method, path, json=body)
                status, text = answer.status_code, answer.text
            except httpx.TransportError as error:
                status, text = 0, repr(error)
            seconds = time.perf_counter() - started
            if kind == "rank" and status == 200:
                found = answer.json()
                shown[user] = (found["ranking"], [one["item"] for one in found["items"]])
            with tallies.lock:
                tallies.kinds[kind] += 1
                if kind in TIMED:
                    tallies.taken.append(seconds)
                if status not in UNDERSTOOD.get(kind, (200,)):
                    tallies.failed.append(f"{kind} {status} {text[:200]}")


def request(
    kind: str,
    rng: random.Random,
    user: int,
    given: argparse.Namespace,
    shown: tuple[str, list[int]],
) -> tuple[str, str, Any]:
    """Method, path and body of a request; ``shown``: the user's latest ranking and its items."""
    now = int(time.time() * 1000)
    if kind == "events":
        ranking, items = shown
        chosen = items[:5] or [rng.randrange(given.items)]
        events = [
            {"user": user, "item": item, "time": now + k, "labels": {"clicked": 1}}
            | ({"ranking": ranking} if items else {})
            for k, item in enumerate(chosen)
            if rng.random() < float(chance(item)) or k == 0
        ]
        return "POST", "/v1/events", {"events": events}
    if kind == "explain":
        return "POST", "/v1/explain", {"user": user, "items": [rng.randrange(given.items)]}
    if kind == "put":
        item = FIRST_LIVE + rng.randrange(LIVE)
        return "PUT", "/v1/items", {"items": [{"item_id": item, "category": f"c{item % 7}"}]}
    if kind == "remove":
        return "DELETE", f"/v1/items/{FIRST_LIVE + rng.randrange(LIVE)}", None
    if kind == "forget":
        return "DELETE", f"/v1/users/{user}", None
    if kind == "user":
        return "GET", f"/v1/users/{user}", None
    if kind == "reload":
        return "POST", "/v1/admin/reload", {}
    asked: dict[str, Any] = {"user": user, "k": 20}
    if kind == "rank":
        asked["log"] = True
    if kind == "unknown":
        asked["user"] = f"nobody {rng.random()}"
    if kind == "candidates":
        asked["candidates"] = rng.sample(range(given.items), min(512, given.items))
    return "POST", "/v1/rank", asked


if __name__ == "__main__":
    main()
