"""An online test in simulation: what does ranking all items buy, at the same CPU time?

    python -m benchmarks.abtest                  # two weeks, about three hours; resumable
    python -m benchmarks.abtest --small          # fewer users and items
    python -m benchmarks.abtest --budget 5       # CPU milliseconds of a ranking, at most

A simulated population (``benchmarks.abtest_world``) uses a server for two weeks. Each user belongs
to one arm: *lime* ranks the whole catalogue with LIME-MHA; *two-stage* ranks with HSTU or MHA what
a two-tower model retrieved; *frozen* is LIME as it was on the first day; *popular* and *item-knn*
count. Users react to what they are shown, their interests drift, and items arrive during the day.
Every night the functions of ``limerank export`` and ``limerank refresh`` write the day's log, and
prepare, train, judge, index and publish each arm from it. All arms learn from the log of all users.

First, configurations are measured (``benchmarks.abtest_budget``): each arm gets the one with most
engagement among those that stay within the budget.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from benchmarks.abtest_budget import RETRIEVER, STAGED, measure, settings_of, within
from benchmarks.abtest_world import (
    FEED,
    LENGTH,
    Population,
    Size,
    Visit,
    begin_of,
    moves_of,
    tab_names,
)
from benchmarks.datasets import WORK
from benchmarks.rows import write_row
from limerank.data.prepare import prepare
from limerank.files import write_json
from limerank.models.registry import FITTED
from limerank.refresh.config import load_config
from limerank.refresh.cycle import refresh
from limerank.serving.arms import choose
from limerank.serving.export import export
from limerank.serving.fill import fill
from limerank.serving.reading import read
from limerank.serving.stores import open_store

SMALL = Size(
    users=400, items=3000, topics=60, before=10, requests=200, history=32, width=16, epochs=2,
    asked=60, histories=(8, 32), candidates=(50, 200),
)  # fmt: skip
BUDGET = 10.0
MODELS = {
    "lime": "lime-mha",
    "two-stage": "hstu",
    "popular": "most-popular",
    "item-knn": "item-knn",
}
"""Arm -> the model that ranks; of *two-stage* the better one of HSTU and MHA."""
FROZEN, RETRIEVAL = "frozen", "retrieval"
ARMS = (*MODELS, FROZEN)
RETRIEVAL_SHARE = 1e-5
"""An arm has users; no request of them is sent."""
SALT = "abtest"
WINDOW = 3600.0


@dataclass
class Totals:
    """Of an arm on a day."""

    requests: int = 0
    clicks: int = 0
    expected: float = 0.0
    cpu_ms: float = 0.0
    taken: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, float]:
        """Per request; ``cpu_ms`` is that of the server, HTTP and the store included."""
        n = max(self.requests, 1)
        return {
            "requests": self.requests,
            "clicks_per_request": self.clicks / n,
            "expected_per_request": self.expected / n,
            "server_cpu_ms": self.cpu_ms / n,
            "ms_p50": float(np.percentile(self.taken or [0.0], 50)),
            "ms_p99": float(np.percentile(self.taken or [0.0], 99)),
        }


class Test:
    """An online test in a folder; what the folder has already is not done again.

    Args:
        folder: of all files.
        size: how large it is.
        seed: of the population.
        budget: CPU milliseconds of a ranking, at most.
    """

    def __init__(self, folder: Path, size: Size, seed: int, budget: float) -> None:
        self.folder, self.size, self.seed, self.budget = folder, size, seed, budget
        self.loop = folder / f"budget-{budget:g}"

    def run(self, days: int) -> None:
        """Measure the configurations, then run the first days."""
        self.measured = self._measured()
        rankers = [self._configuration(model) for model in STAGED]
        ranker = max(rankers, key=lambda one: (one["cpu_ms"] <= self.budget, one["expected"]))
        self.models = {**MODELS, "two-stage": str(ranker["arm"])}
        self.chosen = {arm: self._configuration(model) for arm, model in self.models.items()}
        print("configurations", self.chosen, flush=True)
        self._begin()
        for day in range(days):
            if not (self.loop / f"day-{day:02d}.json").exists():
                self._day(day)

    def _measured(self) -> list[dict[str, Any]]:
        path = self.folder / "configurations.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            world = Population(self.size, self.seed)
            world.write_log(self.folder)
            world.write_tables(self.folder, next(moves_of(self.size, 0)) - 1)
            feed = self.folder / "feed.toml"
            feed.write_text(FEED.format(history=self.size.history))
            data = self.folder / "data"
            if not data.exists():
                prepare(feed, data)
            write_json(path, {"found": measure(self.folder, data, self.size, self.seed)})
        found: list[dict[str, Any]] = json.loads(path.read_text())["found"]
        return found

    def _configuration(self, model: str) -> dict[str, Any]:
        """The configuration of an arm; the cheapest one where none stays within the budget."""
        own = within(self.measured, model, self.budget)
        if own is None:
            some = [one for one in self.measured if one["arm"] == model]
            own = min(some, key=lambda one: float(one["cpu_ms"]))
        return dict(own)

    # The daily loop

    def _begin(self) -> None:
        """The first models, and a store with the events before the test."""
        if any(self.loop.glob("store-[0-9]*.db")):
            return
        for name in ("logs", "items.parquet", "users.parquet", "feed.toml"):
            target = self.loop / name
            if not target.exists():
                self.loop.mkdir(exist_ok=True)
                source = self.folder / name
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        for model in dict.fromkeys([*self.models.values(), RETRIEVER]):
            self._write_config(model)
        self._refresh(list(dict.fromkeys([*self.models.values(), RETRIEVER])))
        frozen = self.loop / FROZEN
        if not frozen.exists():
            shutil.copytree((self.loop / "home-lime-mha" / "live").resolve(), frozen)
        partial = self.loop / "filled.db"
        partial.unlink(missing_ok=True)
        with open_store(str(partial)) as opened:
            fill(opened, self.loop / "home-lime-mha" / "live" / "data")
        partial.rename(self.loop / "store-00.db")

    def _write_config(self, model: str) -> None:
        arm = next((arm for arm, of in self.models.items() if of == model), None)
        history = self.size.history if arm is None else self.chosen[arm]["history"]
        settings = settings_of(self.size, model, history)
        lines = [
            f'home = "home-{model}"',
            'description = "feed.toml"',
            f'model = "{model}"',
            "[train]",
            *(f"{name} = {value}" for name, value in settings.items()),
            "[gate]",  # an arm that is worse than counts is a result
            "alarms = false",
            "most_ne = 100.0",
        ]
        if model in FITTED:  # they are counts: nothing that could go wrong
            lines.append("tolerance = 1.0")
        (self.loop / f"{model}.toml").write_text("\n".join(lines) + "\n")

    def _refresh(self, models: Sequence[str]) -> dict[str, dict[str, Any]]:
        found = {}
        for model in models:
            began = time.monotonic()
            entry = refresh(load_config(self.loop / f"{model}.toml"))
            took = time.monotonic() - began
            if entry is not None:
                found[model] = {"outcome": entry.outcome, "seconds": took}
                print(f"  {model}: {entry.outcome} {entry.reasons}, {took:.0f} s", flush=True)
        return found

    def _day(self, day: int) -> None:
        served = self.loop / f"served-{day:02d}.json"
        if not served.exists():
            self._serve_day(day, served)
        began = time.monotonic()
        world = Population(self.size, self.seed)
        world.write_tables(self.loop, list(moves_of(self.size, day))[-1])
        last = day + 1 == self.size.days
        refreshed = {} if last else self._refresh([*self.models.values(), RETRIEVER])
        if (self.loop / "store.db").exists():  # else a call that broke off has renamed it
            (self.loop / "store.db").rename(self.loop / f"store-{day + 1:02d}.db")
        found = json.loads(served.read_text())
        seconds = found.pop("seconds") + time.monotonic() - began
        of_day = {**found, "refreshed": refreshed, "seconds": seconds}
        write_json(self.loop / f"day-{day:02d}.json", of_day)
        (self.loop / f"store-{day:02d}.db").unlink(missing_ok=True)
        shown = {name: round(one["expected_per_request"], 3) for name, one in found["arms"].items()}
        print(f"day {day}: {shown}, {seconds:.0f} s", flush=True)

    def _serve_day(self, day: int, served: Path) -> None:
        """All requests of a day, and its log."""
        began = time.monotonic()
        store = self.loop / "store.db"
        for one in self.loop.glob("store.db*"):  # of a day that broke off
            one.unlink()
        shutil.copy(self.loop / f"store-{day:02d}.db", store)
        world = Population(self.size, self.seed)
        with self._server(store) as (client, pid):
            totals = Day(self, world, client, pid).run(day)
        log = self.loop / "logs" / f"day-{day:02d}.parquet"
        log.unlink(missing_ok=True)
        since, until = begin_of(self.size, day), begin_of(self.size, day + 1)
        with open_store(str(store)) as opened:
            export(opened, log, since=since, until=until, window=WINDOW)
        arms = {name: one.to_dict() for name, one in totals.items()}
        write_json(served, {"arms": arms, "seconds": time.monotonic() - began})

    @contextmanager
    def _server(self, store: Path) -> Iterator[tuple[httpx.Client, int]]:
        """A server with all arms, and the retriever beside them, which has no users."""
        folders = {arm: self.loop / f"home-{model}" / "live" for arm, model in self.models.items()}
        folders |= {FROZEN: self.loop / FROZEN, RETRIEVAL: self.loop / f"home-{RETRIEVER}" / "live"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [sys.executable, "-m", "limerank", "serve", "--no-keys", "--port", str(port)]
        for arm, folder in folders.items():
            share = SHARES.get(arm, RETRIEVAL_SHARE)
            arguments += ["--arm", f"{arm}={folder}/run,{folder}/index,{share}"]
        arguments += ["--store", str(store), "--salt", SALT]
        with open(self.loop / "server.log", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                arguments, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
                    wait_until_ready(client, process)
                    yield client, process.pid
            finally:
                process.terminate()
                process.wait(timeout=60)

    # What it showed

    def results(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Cases and metrics of all rows."""
        found: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for one in self.measured:
            case: dict[str, Any] = {"what": "configuration"}
            case |= {name: one[name] for name in ("arm", "history", "candidates")}
            metrics = {name: one[name] for name in ("expected", "low", "high", "cpu_ms")}
            found.append((case, metrics))
        days = [json.loads(path.read_text()) for path in sorted(self.loop.glob("day-[0-9]*.json"))]
        for number, day in enumerate(days, 1):
            for arm, metrics in day["arms"].items():
                case = {"what": "day", "arm": arm, "day": number, "budget_ms": self.budget}
                of = day["refreshed"].get(self.models.get(arm, ""), {})
                more = {"refresh_s": of.get("seconds"), "refresh": of.get("outcome")}
                found.append((case, {**metrics, **more}))
        with open_store(str(next(self.loop.glob(f"store-{len(days):02d}.db")))) as store:
            first, last = begin_of(self.size, 0), begin_of(self.size, len(days))
            reading = read(store, since=first, until=last, window=WINDOW)
        report = reading.report("click", control="lime", shares=SHARES, planned=self.size.users)
        for arm, one in report["arms"].items():
            case = {"what": "arm", "arm": arm, "budget_ms": self.budget, "days": len(days)}
            metrics = {name: one[name] for name in ("users", "requests", "outcomes")}
            for name in ("per_user", "per_request"):
                for kind in ("", "_difference", "_difference_sequential"):
                    for bound, value in one.get(f"{name}{kind}", {}).items():
                        metrics[f"{name}{kind}_{bound}"] = value
            metrics["sample_ratio_p"] = report["sample_ratio_p"]
            own = self.chosen.get("lime" if arm == FROZEN else arm)
            if own is not None:
                names = ("history", "candidates", "cpu_ms")
                metrics |= {"model": own["arm"]} | {name: own[name] for name in names}
            of_days = [(day["arms"][arm], day["arms"][arm]["requests"]) for day in days]
            for name in ("expected_per_request", "server_cpu_ms"):
                metrics[name] = float(
                    np.average([of[name] for of, _ in of_days], weights=[n for _, n in of_days])
                )
            for name in ("ms_p50", "ms_p99"):
                metrics[name] = float(np.median([of[name] for of, _ in of_days]))
            found.append((case, metrics))
        return found


SHARES: Mapping[str, float] = dict.fromkeys(ARMS, 1 / len(ARMS))


class Day:
    """The users of a day, who come, are shown a ranking and click.

    Args:
        test: the test.
        world: the population; it moves through the day.
        client, pid: of the server.
    """

    def __init__(self, test: Test, world: Population, client: httpx.Client, pid: int) -> None:
        self._test, self._world, self._client, self._pid = test, world, client, pid
        self.totals = {arm: Totals() for arm in ARMS}

    def run(self, day: int) -> dict[str, Totals]:
        """All requests of a day, arm by arm within six hours, so that the time of the server's
        processor belongs to an arm."""
        for move in moves_of(self._test.size, day):
            self._world.move(move)
            if items := self._world.uploads(move):
                self._send("PUT", "/v1/items", {"items": items})
            rng = np.random.default_rng([self._test.seed, 4, move])
            for arm, visits in self._by_arm(self._world.visits(move), rng).items():
                while visits:  # the next visit of each user
                    turn = list({visit.user: visit for visit in reversed(visits)}.values())
                    visits = [visit for visit in visits if visit not in turn]
                    self._serve(arm, sorted(turn, key=lambda one: one.time), rng)
        return self.totals

    def _by_arm(self, visits: list[Visit], rng: np.random.Generator) -> dict[str, list[Visit]]:
        found: dict[str, list[Visit]] = {ARMS[at]: [] for at in rng.permutation(len(ARMS))}
        shares = [*SHARES.items(), (RETRIEVAL, RETRIEVAL_SHARE)]
        for visit in visits:
            arm = choose(shares, visit.user + 1, SALT)
            if arm != RETRIEVAL:
                found[arm].append(visit)
        return found

    def _serve(self, arm: str, visits: list[Visit], rng: np.random.Generator) -> None:
        totals, events = self.totals[arm], []
        before = cpu_ms(self._pid)
        answers = [self._ranked(arm, visit, totals) for visit in visits]
        totals.cpu_ms += cpu_ms(self._pid) - before
        for visit, answer in zip(visits, answers, strict=True):
            ids = np.array([one["item"] for one in answer["items"]], dtype=np.int64)
            chances = self._world.expected(visit.user, ids, visit.tab)
            clicks = rng.random(len(ids)) < chances
            totals.requests += 1
            totals.clicks += int(clicks.sum())
            totals.expected += float(chances.sum())
            for position, (item, click) in enumerate(
                zip(ids.tolist(), clicks.tolist(), strict=True)
            ):
                events.append(
                    {
                        "user": visit.user + 1,
                        "item": item,
                        "time": visit.time + 1000 * (position + 1),
                        "labels": {"click": int(click)},
                        "ranking": answer["ranking"],
                        "context": context_of(visit),
                    }
                )
        if events:
            self._send("POST", "/v1/events", {"events": events})

    def _ranked(self, arm: str, visit: Visit, totals: Totals) -> dict[str, Any]:
        body: dict[str, Any] = {
            "user": visit.user + 1,
            "k": LENGTH,
            "time": visit.time,
            "context": context_of(visit),
        }
        began = time.perf_counter()
        candidates = None
        if arm == "two-stage":
            k = self._test.chosen[arm]["candidates"]
            found = self._send("POST", "/v1/rank", {**body, "k": k, "arm": RETRIEVAL})
            candidates = [one["item"] for one in found["items"]]
        more: dict[str, Any] = {} if candidates is None else {"candidates": candidates}
        answer = self._send("POST", "/v1/rank", {**body, **more, "log": True})
        totals.taken.append(1000 * (time.perf_counter() - began))
        if answer["arm"] != arm:
            raise RuntimeError(f"user {visit.user + 1} has the arm {answer['arm']}, expected {arm}")
        return answer

    def _send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._client.request(method, path, json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        found: dict[str, Any] = answer.json()
        return found


def context_of(visit: Visit) -> dict[str, str]:
    """The context features of a request."""
    return {"tab": tab_names(np.array([visit.tab]))[0]}


def cpu_ms(pid: int) -> float:
    """The time that a process has used the processor, in milliseconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Return when a server answers; SystemExit where it stops."""
    for _ in range(3000):
        if process.poll() is not None:
            raise SystemExit("the server stopped before it answered; see server.log")
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not answer within five minutes")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="fewer users and items")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=BUDGET, help="CPU ms of a ranking, at most")
    parser.add_argument("--days", type=int, help="run the first days alone")
    parser.add_argument("--work", type=Path, default=WORK / "abtest", help="folder of its files")
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    size = SMALL if given.small else Size()
    days = size.days if given.days is None else min(given.days, size.days)
    kind = "small" if given.small else "full"
    test = Test(given.work / f"{kind}-{given.seed}", size, given.seed, given.budget)
    test.run(days)
    for case, metrics in test.results():
        write_row("abtest", {"size": kind, **case}, metrics, seed=given.seed)


if __name__ == "__main__":
    main()
