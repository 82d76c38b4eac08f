"""What goes wrong while a server runs: kills, full disks, lost stores, slow and wrong clients.

Every test starts real processes. ``LIMERANK_KILLS=100 LIMERANK_FUZZ=10000`` (`make faults`) makes
the two that are random as long as that; here they are short.
"""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import threading
import time
from signal import SIGKILL
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from limerank.serving.http.openapi import describe
from limerank.serving.http.routes import OPERATIONS
from tests.running import START, event
from tests.valkey_server import needs_server, server

KILLS = int(os.environ.get("LIMERANK_KILLS", "3"))
FUZZ = int(os.environ.get("LIMERANK_FUZZ", "1500"))
PATIENCE = 30.0


def until(done, what):
    """Wait for something that happens by itself."""
    limit = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_server_loses_nothing_that_it_acknowledged(start, tmp_path):
    rng, acknowledged, sent = random.Random(0), set(), 0

    def post(url, positions, done):
        with httpx.Client(base_url=url) as client:
            for position in positions:
                if done.is_set():
                    return
                try:
                    answer = client.post("/v1/events", json=event(position % 5, position))
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    acknowledged.add(position)

    for _ in range(KILLS):
        running, done = start(tmp_path, "--open"), threading.Event()
        threads = []
        for _ in range(3):
            positions = range(sent, sent + 10_000)
            threads.append(threading.Thread(target=post, args=(running.url, positions, done)))
            sent += 10_000
        for thread in threads:
            thread.start()
        wanted = len(acknowledged) + rng.randrange(1, 60)
        until(lambda: len(acknowledged) >= wanted, "events are not taken")  # noqa: B023
        time.sleep(rng.random() / 50)
        running.stop(SIGKILL)
        done.set()
        for thread in threads:
            thread.join()
    running = start(tmp_path, "--open")
    with httpx.Client(base_url=running.url) as client:
        held = {}
        for user in range(5):
            reply = client.get(f"/v1/users/{user}").json()
            held[user] = reply["events"]
        again = [event(position % 5, position) for position in sorted(acknowledged)]
        for first in range(0, len(again), 500):
            some = again[first : first + 500]
            answer = client.post("/v1/events", json={"events": some}).json()
            assert answer == {"accepted": 0, "duplicates": len(some), "expired": 0}
        # None stands there twice: counts are those of different events.
        for user in range(5):
            assert client.get(f"/v1/users/{user}").json()["events"] == held[user]
    assert sum(held.values()) >= len(acknowledged)


def test_a_full_disk_is_reported_and_acknowledged_events_stay(start, tmp_path):
    most = 400 << 10  # bytes that the process may write into one file

    def limits():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    running, taken = start(tmp_path, "--open", limits=limits), 0
    with httpx.Client(base_url=running.url) as client:
        while True:
            some = [event(k % 5, k) for k in range(taken, taken + 200)]
            answer = client.post("/v1/events", json={"events": some})
            if answer.status_code != 200:
                break
            taken += 200
            assert taken < 100_000
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0, answer.text
        assert taken > 0
        assert client.post("/v1/rank", json={"user": 1, "k": 3}).status_code == 200
    running.stop(SIGKILL)
    running = start(tmp_path, "--open")
    with httpx.Client(base_url=running.url) as client:
        held = sum(client.get(f"/v1/users/{user}").json()["events"] for user in range(5))
        assert held == taken
        answer = client.post("/v1/events", json={"events": some}).json()
        assert answer["accepted"] == 200


@needs_server
def test_a_store_that_goes_down_and_comes_back(start, tmp_path):
    with server() as store:
        running = start(tmp_path, "--open", "--store", store.url)
        with httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
            assert client.post("/v1/events", json=event(1, 1)).status_code == 200
            store.kill()
            for method, path, body in (
                ("POST", "/v1/events", event(1, 2)),
                ("POST", "/v1/rank", {"user": 1}),
                ("GET", "/readyz", None),
            ):
                answer = client.request(method, path, json=body)
                assert answer.status_code == 503, (path, answer.text)
                assert int(answer.headers["Retry-After"]) > 0
            assert client.get("/healthz").status_code == 200
            store.start()
            until(lambda: client.get("/readyz").status_code == 200, "it does not recover")
            assert client.get("/v1/users/1").json()["events"] == 1  # what was acknowledged, no more
            assert client.post("/v1/events", json=event(1, 2)).json()["accepted"] == 1
            assert client.post("/v1/rank", json={"user": 1}).json()["events"] == 2


@needs_server
def test_two_servers_share_a_store(start, tmp_path):
    with server() as store:
        positions = [tmp_path / "a", tmp_path / "b"]
        for position in positions:
            position.mkdir()
        one, two = (
            httpx.Client(base_url=start(position, "--open", "--store", store.url).url)
            for position in positions
        )
        with one, two:
            for position in range(1, 30):
                here, there = (one, two) if position % 2 else (two, one)
                assert here.post("/v1/events", json=event(1, position)).json()["accepted"] == 1
                assert there.post("/v1/rank", json={"user": 1}).json()["events"] == min(
                    position, 20
                )
                assert there.post("/v1/events", json=event(1, position)).json()["duplicates"] == 1
            reply = [client.post("/v1/rank", json={"user": 1, "time": START}).json()["items"]
                    for client in (one, two)]  # fmt: skip
            assert reply[0] == reply[1]
            assert two.delete("/v1/users/1").status_code == 200
            assert one.post("/v1/rank", json={"user": 1}).json()["known"] is False


def test_slow_clients_hold_nobody_up(start, tmp_path):
    running = start(tmp_path, "--open")
    of = urlsplit(running.url)
    head = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    slow = []
    for given in (b"", b"POST /v1/ra", head, head + b"Content-Length: 1000\r\n\r\n{") * 25:
        connection = socket.create_connection((of.hostname, of.port), timeout=PATIENCE)
        connection.sendall(given)
        slow.append(connection)
    with httpx.Client(base_url=running.url, timeout=5.0) as client:
        for _ in range(20):
            assert client.post("/v1/rank", json={"user": 1}).status_code == 200
    # A body that does not arrive is given up, and the answer names that.
    waiting = slow[3]
    waiting.settimeout(PATIENCE)
    assert b" 408 " in waiting.recv(4096)
    for connection in slow:
        connection.close()


def test_a_giant_body_is_refused_before_it_is_read(start, tmp_path):
    running = start(tmp_path, "--open")
    of = urlsplit(running.url)
    with socket.create_connection((of.hostname, of.port), timeout=PATIENCE) as connection:
        size = 1 << 40
        connection.sendall(
            b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n{" % size
        )
        assert b" 413 " in connection.recv(4096)
    with socket.create_connection((of.hostname, of.port), timeout=PATIENCE) as connection:
        connection.sendall(
            b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        reply = b""
        for _ in range(1000):
            try:
                connection.sendall(part)
            except OSError:
                break
            connection.setblocking(False)
            try:
                reply += connection.recv(4096)
            except BlockingIOError:
                pass
            except OSError:
                break
            connection.setblocking(True)
            if reply:
                break
        assert b" 413 " in reply
    with httpx.Client(base_url=running.url) as client:
        assert client.get("/healthz").status_code == 200


def test_clocks_that_jump(start, tmp_path):
    """Events of years ago and of years to come, and requests made before and after them; those of
    another unit, or of a clock that was never set, are refused."""
    years = 365 * 86_400_000
    running = start(tmp_path, "--no-keys")
    with httpx.Client(base_url=running.url) as client:
        times = [START, START - 9 * years, START + 8 * years, START + 1, START - 1, START]
        for position, when in enumerate(times):
            body = event(1, position) | {"time": when}
            answer = client.post("/v1/events", json=body)
            assert answer.status_code == 200 and answer.json()["accepted"] == 1, answer.text
            for asked in (START, START - 9 * years, START + 9 * years, None):
                body = {"user": 1, "k": 5} | ({} if asked is None else {"time": asked})
                answer = client.post("/v1/rank", json=body)
                assert answer.status_code == 200, answer.text
                values = [one["value"] for one in answer.json()["items"]]
                assert values == sorted(values, reverse=True) and all(
                    isinstance(value, float) for value in values
                )
                before = [one for one in times[: position + 1] if asked is None or one < asked]
                assert answer.json()["events"] == len(before)
        for wrong in (0, START // 1000, START * 1000, -(10**12), (1 << 53) - 1):
            answers = [
                client.post("/v1/events", json=event(1, 1) | {"time": wrong}),
                client.post("/v1/rank", json={"user": 1, "time": wrong}),
            ]
            assert {answer.status_code for answer in answers} == {422}
        history = client.get("/v1/users/1").json()["history"]
        assert [one["time"] for one in history] == sorted(times)


# Requests made from the description


class Maker:
    """Values at random of what the description says, and now and then of what it does not."""

    def __init__(self, description, seed):
        self.schemas, self.rng = description["components"]["schemas"], random.Random(seed)

    def text(self, most=12):
        letters = 'aZ09 _-\u00fc\u4e2d\U0001f600\x00"\\/%{'
        return "".join(self.rng.choice(letters) for _ in range(self.rng.randrange(most)))

    def wrong(self):
        return self.rng.choice(
            [None, True, -1, 0, 0.5, 1 << 63, -(1 << 70), 1e308, "", "\x00", "x" * 300, [], {},
             [[]], {"": None}, self.text(40)]
        )  # fmt: skip

    def of(self, schema, depth=0):
        rng = self.rng
        if rng.random() < 0.06 or depth > 8:
            return self.wrong()
        if "$ref" in schema:
            return self.of(self.schemas[schema["$ref"].rsplit("/", 1)[1]], depth)
        if "anyOf" in schema:
            return self.of(rng.choice(schema["anyOf"]), depth + 1)
        kind = schema.get("type")
        if kind == "object":
            made = {}
            for name, one in schema.get("properties", {}).items():
                if name in schema.get("required", ()) or rng.random() < 0.4:
                    made[name] = self.of(one, depth + 1)
            more = schema.get("additionalProperties")
            names = ["click", "length", "item_id", "group", "tags", "tab", self.text()]
            if isinstance(more, dict) or (more is True and rng.random() < 0.5):
                for _ in range(rng.randrange(3)):
                    one = more if isinstance(more, dict) else {}
                    made[rng.choice(names)] = self.of(one, depth + 1)
            if rng.random() < 0.02:
                made[self.text()] = self.wrong()
            return made
        if kind == "array":
            most = min(schema.get("maxItems", 4), 4)
            return [
                self.of(schema.get("items", {}), depth + 1) for _ in range(rng.randint(0, most))
            ]
        if kind == "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 100)
            return rng.choice([low, high, rng.randint(0, 90), START + rng.randrange(10**6)])
        if kind == "number":
            return rng.choice([0, 1, -1, 0.5, 1e-30, rng.random() * 100, 3.4e38])
        if kind == "string":
            return rng.choice([str(rng.randrange(90)), self.text()])
        if kind == "boolean":
            return rng.random() < 0.5
        return self.wrong()


@pytest.mark.slow
def test_no_request_is_an_error_of_the_server_s(start, tmp_path):
    description = describe("", OPERATIONS, open_=True)
    make, routes = Maker(description, seed=0), []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            if "reload" not in path:  # what is served stays: a run of its own is no fault
                routes.append((method.upper(), path, operation))
    running, seen = start(tmp_path, "--open"), {}
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
        for _ in range(FUZZ):
            method, path, operation = make.rng.choice(routes)
            query = {}
            for one in operation.get("parameters", ()):
                value = make.of(one["schema"])
                if one["in"] == "path":
                    shown = httpx.QueryParams({"x": str(value)})
                    path = path.replace("{" + one["name"] + "}", str(shown)[2:] or "5")
                elif make.rng.random() < 0.7:
                    query[one["name"]] = str(value)
            data = b""
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                data = json.dumps(make.of(content["schema"])).encode()
                if make.rng.random() < 0.1:  # cut, or with a byte in it that does not belong there
                    at = make.rng.randrange(len(data))
                    data = data[:at] + bytes([make.rng.randrange(256)]) * make.rng.randrange(2)
            kind = {"Content-Type": "application/json"}
            answer = client.request(method, path, params=query, content=data, headers=kind)
            assert answer.status_code < 500, (method, path, query, data, answer.text)
            if answer.status_code >= 400:
                problem = answer.json()
                assert problem["status"] == answer.status_code and problem["detail"]
            ok = seen.setdefault((method, operation["operationId"]), set())
            ok.add(answer.status_code < 400)
        assert client.get("/readyz").status_code == 200
    # Of most routes some requests were right and some wrong: the fuzz reaches what lies behind.
    both = sum(len(kinds) == 2 for kinds in seen.values())
    assert both >= len(routes) // 2, seen
