"""The server as a process: started by the command, stopped, killed, started again."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx2 as httpx
import pytest

from tests.catalogues import shop

START = 1_700_000_000_000


class Running:
    """A server process and its address."""

    def __init__(self, place, *more, env=None):
        of = shop("lime-mha")
        if not (place / "index").exists():
            shutil.copytree(of.index.path, place / "index")
        command = [sys.executable, "-m", "limerank", "serve", "--port", "0", "--run", of.run.path]
        command += ["--index", place / "index", "--store", place / "events.db", *more]
        self.log = open(place / "log", "a", encoding="utf-8")  # noqa: SIM115  # closed by stop
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | (env or {}),
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (line, (place / "log").read_text())
        self.url = found[0]

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        self.log.close()
        return code


@pytest.fixture
def start():
    running = []

    def begin(*given, **more):
        running.append(Running(*given, **more))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)


def event(user, place):
    return {
        "user": user,
        "item": 1 + place % 80,
        "time": START + 1000 * place,
        "labels": {"click": 1},
        "id": str(place),
    }


def test_it_serves_and_stops(start, tmp_path):
    server = start(tmp_path, "--open")
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/events", json=event(7, 1)).json()["accepted"] == 1
        assert client.post("/v1/rank", json={"user": 7}).json()["events"] == 1
    assert server.stop() in (0, -signal.SIGTERM)
    log = (tmp_path / "log").read_text()
    assert '"route": "POST /v1/rank"' in log and '"user"' not in log


def test_keys_of_the_environment(start, tmp_path):
    secret = "k" * 32
    server = start(tmp_path, env={"LIMERANK_WRITE_KEYS": secret})
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/v1/model").status_code == 401
        held = {"Authorization": f"Bearer {secret}"}
        assert client.get("/v1/model", headers=held).status_code == 200
    server.stop()
    assert secret not in (tmp_path / "log").read_text()


def test_it_says_what_it_needs(call, tmp_path):
    of = shop("lime-mha")
    given = ["serve", "--run", of.run.path, "--index", of.index.path]
    for wrong, what in (
        ([], "needs keys"),
        (["--open", "--host", "0.0.0.0"], "loopback"),
        (["--open", "--store", tmp_path / "e.db", "--state", "streamed"], "streamed"),
    ):
        status, told, error = call(*given, *wrong)
        assert status != 0 and what in " ".join((told + error).split())


@pytest.mark.slow
def test_a_killed_server_loses_nothing_that_it_acknowledged(start, tmp_path):
    rng, acknowledged, sent = random.Random(0), set(), 0
    for _ in range(5):
        server = start(tmp_path, "--open")
        done = threading.Event()

        def post(first):
            with httpx.Client(base_url=server.url) as client:  # noqa: B023  # joined below
                for place in range(first, first + 10_000):
                    if done.is_set():  # noqa: B023
                        return
                    try:
                        answer = client.post("/v1/events", json=event(place % 5, place))
                    except httpx.TransportError:
                        return
                    if answer.status_code == 200:
                        acknowledged.add(place)

        threads = [threading.Thread(target=post, args=(sent + 10_000 * k,)) for k in range(3)]
        sent += 30_000
        for thread in threads:
            thread.start()
        before = len(acknowledged)
        limit = time.monotonic() + 30
        wanted = before + rng.randrange(5, 60)
        while len(acknowledged) < wanted and time.monotonic() < limit:
            done.wait(0.005)
        server.stop(signal.SIGKILL)
        done.set()
        for thread in threads:
            thread.join()
    assert len(acknowledged) > 25
    server = start(tmp_path, "--open")
    with httpx.Client(base_url=server.url) as client:
        held = sum(client.get(f"/v1/users/{user}").json()["events"] for user in range(5))
        assert held >= len(acknowledged)
        for place in acknowledged:
            again = client.post("/v1/events", json=event(place % 5, place)).json()
            assert again == {"accepted": 0, "duplicates": 1, "expired": 0}


def test_reloading_under_load_fails_no_request(start, tmp_path):
    server, of = start(tmp_path, "--open"), shop("lime-xor")
    shutil.copytree(of.index.path, tmp_path / "other")
    codes, done = [], threading.Event()

    def ask():
        with httpx.Client(base_url=server.url) as client:
            while not done.is_set():
                codes.append(client.post("/v1/rank", json={"user": 1, "k": 3}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    first = shop("lime-mha")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for run, index in (
            (of.run.path, tmp_path / "other"),
            (first.run.path, tmp_path / "index"),
        ):
            answer = client.post("/v1/admin/reload", json={"run": str(run), "index": str(index)})
            assert answer.status_code == 200, answer.text
        while len(codes) < 60:
            done.wait(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert set(codes) == {200}


def test_what_is_watched_is_loaded(start, tmp_path):
    of, watched = shop("lime-xor"), tmp_path / "serving.json"
    server = start(tmp_path, "--open", "--watch", watched)
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/v1/model").json()["model"] == "lime-mha"
        watched.write_text("{")  # half written: told in the log, and nothing changes
        watched.write_text(f'{{"run": "{of.run.path}", "index": "{of.index.path}"}}')
        limit = time.monotonic() + 30
        while client.get("/v1/model").json()["model"] != "lime-xor":
            assert time.monotonic() < limit
            with contextlib.suppress(TimeoutError):
                threading.Event().wait(0.1)
