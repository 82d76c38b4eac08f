"""Clients that mean no good, or know no better: nobody else notices, and none learns what is not
theirs. Over an engine that does nothing, so that the limits are all that is tested."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from limerank.errors import FormatError, SpecError, StoreError
from limerank.serving.http import admission, bodies, connections
from limerank.serving.http.app import application
from limerank.serving.http.connections import Doors, protocol
from limerank.serving.http.lines import JsonLines
from limerank.serving.http.private import Private
from limerank.serving.http.problems import Problem
from limerank.serving.http.routes import OPERATIONS
from limerank.serving.http.run import Server
from limerank.serving.http.settings import Settings
from limerank.serving.messages import EventMessage, Events, Explain, PutItems, PutUser, Rank
from limerank.serving.telemetry import Numbers

KEYS = {"read": ("r" * 20,), "write": ("w" * 20,), "admin": ("a" * 20,)}
PATIENCE = 20.0
JSON = {"Content-Type": "application/json"}
MIB = 1 << 20


class Stub:
    """An engine that answers at once; what is set in ``fails`` or ``hangs`` does not."""

    def __init__(self, local=True):
        self.numbers, self.store = Numbers(), SimpleNamespace(local=local)
        self.remote = not local
        self.fails, self.hangs, self.ended = {}, {}, threading.Event()
        self.asked = 0

    def close(self):
        self._do("close")

    def rank_at_once(self, asked):
        return None

    def append_at_once(self, events):
        return None

    def append(self, events):
        self._do("append")
        promise = Future()
        promise.set_result({"accepted": len(events), "duplicates": 0, "expired": 0})
        return promise

    def _do(self, name):
        self.asked += 1
        if name in self.fails:
            raise self.fails[name]
        if name in self.hangs:
            self.ended.wait(self.hangs[name])
        return {"did": name}

    def __getattr__(self, name):
        return lambda *_: self._do(name)


@contextlib.contextmanager
def client_of(engine, private=None, access="admin", base="http://testserver", **settings):
    given = {"keys": KEYS} | settings
    app = application(engine, Settings(**given), private)
    headers = {} if given.get("open") else {"Authorization": f"Bearer {KEYS[access][0]}"}
    try:
        with TestClient(app, base, headers=headers, raise_server_exceptions=False) as client:
            yield client
    finally:
        engine.ended.set()


@contextlib.contextmanager
def served(engine, **settings):
    """The application on a real port, in a thread; gives the port and the server's doors."""
    given = Settings(**({"keys": KEYS, "port": 0} | settings))
    doors = Doors(given, engine.numbers, 65_536)
    config = uvicorn.Config(
        application(engine, given), http=protocol(doors), ws="none", log_config=None,
        access_log=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as bound:
        bound.setblocking(False)
        server = Server(config, 60.0)
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            yield bound.getsockname()[1], doors
        finally:
            engine.ended.set()
            server.should_exit = True
            thread.join(PATIENCE)


def talk(port, data, timeout=PATIENCE):
    """What comes back, until the server closes or answered once."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(data)
        return answer_of(connection)


def answer_of(connection):
    reply = b""
    while True:
        part = connection.recv(65_536)
        reply += part
        head, _, body = reply.partition(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if not part or (size and len(body) >= int(size[1])):
            return reply


def until(done, what):
    limit = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


# Bodies


def long_lists():
    """Bodies of eight megabytes, each wrong or too large in a different respect."""
    most = 8 * MIB - 64

    def filled(head, unit, tail):
        return (head + ",".join([unit] * ((most - len(head)) // (len(unit) + 1))) + tail).encode()

    def named(head, value, tail):
        count = (most - len(head)) // (len(value) + 10)
        return (head + ",".join(f'"{k:06d}":{value}' for k in range(count)) + tail).encode()

    wide = ",".join(f'"{k}":[]' for k in range(70))
    event = f'{{"user":[],"item":[],"time":[],"features":{{{wide}}}}}'
    return {
        "ids that are lists": ("/v1/rank", lambda: filled('{"candidates":[', "[]", "]}")),
        "too many ids": ("/v1/rank", lambda: filled('{"candidates":[', "123456", "]}")),
        "too many texts": ("/v1/rank", lambda: filled('{"exclude":[', '"x"', "]}")),
        "weights": ("/v1/rank", lambda: named('{"task_weights":{', "[]", "}}")),
        "context": ("/v1/rank", lambda: named('{"context":{', "1", "}}")),
        "names": ("/v1/rank", lambda: named("{", "1", "}")),
        "one name": ("/v1/rank", lambda: filled("{", '"k":1', "}")),
        "filters": ("/v1/rank", lambda: filled('{"filter":{"a":[', "[]", "]}}")),
        "history": (
            "/v1/rank",
            lambda: filled('{"history":[', f'{{"item":[],"labels":{{{wide}}}}}', "]}"),
        ),
        "flat history": ("/v1/rank", lambda: filled('{"history":[', '{"item":{}}', "]}")),
        "events": ("/v1/events", lambda: filled('{"events":[', event, "]}")),
        "empty events": ("/v1/events", lambda: filled('{"events":[', "{}", "]}")),
        "items": ("/v1/items", lambda: named('{"items":[{', "1", "}]}")),
        "a text": ("/v1/rank", lambda: b'{"user":"' + b"x" * most + b'"}'),
        "escapes": ("/v1/rank", lambda: b'{"user":"' + b"\\n" * (most // 2) + b'"}'),
        "a number": ("/v1/rank", lambda: b'{"user":1' + b"1" * most + b"}"),
        "blanks": ("/v1/rank", lambda: b'{"user":1' + b" " * most + b"}"),
        "depth": ("/v1/rank", lambda: b"[" * most),
        "no end": ("/v1/rank", lambda: b'{"candidates":["' + b"\\\\" * (most // 2)),
    }


@pytest.mark.parametrize("name", long_lists())
def test_a_large_wrong_body_costs_little(name):
    path, made = long_lists()[name]
    body = made()
    with client_of(Stub()) as client:
        client.get("/healthz")
        gc.collect()
        gc.freeze()  # what other tests left in this process is no part of the cost
        try:
            before = time.process_time()
            answer = client.request("PUT" if "items" in path else "POST", path, content=body)
            spent = time.process_time() - before
        finally:
            gc.unfreeze()
    assert answer.status_code in (400, 422), answer.text
    assert len(answer.content) < 10_000
    # Some tens of milliseconds, of which moving eight megabytes about takes most.
    assert spent < 1.5, spent


def test_large_right_bodies_are_taken(monkeypatch):
    seen = []
    engine = Stub()
    engine.rank = lambda asked: seen.append(asked) or {}
    engine.append = lambda events: seen.append(events) or {}
    with client_of(engine) as client:
        asked = {
            "candidates": [*range(60_000), *(f"x{k}" for k in range(40_000))],
            "exclude": ["a"] * 70_000,
        }
        assert client.post("/v1/rank", json=asked).status_code == 200
        assert seen[0].candidates == asked["candidates"] and seen[0].exclude == asked["exclude"]
        event = {"user": 1, "item": "b", "time": 5, "labels": {"click": 1}, "features": {"a": "\n"}}
        events = [event | {"id": str(k)} for k in range(10_000)]
        for indent in (None, 2):
            text = json.dumps({"events": events}, indent=indent)
            assert client.post("/v1/events", content=text).status_code == 200
            assert [one.id for one in seen.pop()] == [str(k) for k in range(10_000)]
        wrong = [*events[:9000], event | {"time": "x"}, *events[9000:9999]]
        answer = client.post("/v1/events", json={"events": wrong})
        assert answer.status_code == 422 and "events.9000.time" in answer.json()["detail"]
        answer = client.post("/v1/events", json={"events": [*events, event]})
        assert answer.status_code == 422 and "10,000" in answer.json()["detail"]
        assert client.post("/v1/events", json={"events": []}).status_code == 422


SCALARS = (
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=9)
)
ID = st.integers(-(1 << 64), 1 << 64) | st.text(max_size=5)
MAPS = st.dictionaries(st.text(max_size=4), SCALARS | st.lists(SCALARS, max_size=2), max_size=4)
EVENT = st.fixed_dictionaries(
    {"user": ID, "item": ID, "time": st.integers(0, 99)},
    optional={"labels": MAPS, "features": MAPS, "id": st.text(max_size=3), "more": SCALARS},
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "events": st.lists(EVENT, max_size=12),
        "history": st.lists(EVENT, max_size=4) | SCALARS,
        "candidates": st.lists(ID | SCALARS, max_size=20),
        "filter": MAPS,
        "items": st.lists(MAPS, max_size=4),
        "features": MAPS,
        "k": SCALARS,
        "user": ID | SCALARS,
    },
)


@given(MESSAGES | SCALARS | st.lists(SCALARS), st.sampled_from([None, 1]), st.booleans(), st.data())
def test_large_bodies_are_read_as_small_ones_are(message, indent, ascii_, data):
    """Whatever the size: the same message, or both refused with the same status."""
    text = json.dumps(message, indent=indent, ensure_ascii=ascii_)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + data.draw(st.sampled_from(["", ",", '"', "}", "]", "x", "\\", "0"]))
            + (text[at + 1 :])
        )
    raw = text.encode("utf-8", "surrogatepass")
    for models in ((Rank,), (Events, EventMessage), (Explain,), (PutItems,), (PutUser,)):
        found = []
        for small in (-1, 1 << 30):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(bodies, "SMALL", small)
                patch.setattr(bodies, "PIECE", 3)
                try:
                    found.append(bodies.checked(models, raw))
                except Problem as problem:
                    found.append(problem.status)
        one, other = found
        assert one == other or {one, other} <= {400, 422}, (models, text, found)


@pytest.mark.parametrize(
    "value",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e999",
        "100000000000000000000",
        "1" * 400,
        "1" * 5000,
    ],
)
def test_numbers_that_cannot_be_stored_are_refused(value):
    positions = {
        "/v1/rank": ['{"context":{"a":%s}}', '{"filter":{"a":[%s]}}',
                     '{"filter":{"a":{"from":%s}}}', '{"boosts":[{"items":[1],"add":%s}]}',
                     '{"user":%s}', '{"time":%s}',
                     '{"k":%s}', '{"candidates":[%s]}',
                     '{"history":[{"item":1,"features":{"a":%s}}]}'],
        "/v1/events": ['{"user":1,"item":1,"time":1,"features":{"a":%s}}',
                       '{"user":1,"item":1,"time":1,"context":{"a":%s}}',
                       '{"events":[{"user":1,"item":1,"time":%s}]}'],
        "/v1/items": ['{"items":[{"item_id":1,"a":%s}]}', '{"items":[{"item_id":1,"a":[%s]}]}'],
        "/v1/users/1": ['{"features":{"a":%s}}'],
    }  # fmt: skip
    with client_of(Stub()) as client:
        for path, texts in positions.items():
            for text in texts:
                if value == "1" + 20 * "0" and ('"user":%s' in text or '"candidates"' in text):
                    continue  # an id that is no integer of 64 bits is text
                method = "PUT" if path in ("/v1/items", "/v1/users/1") else "POST"
                answer = client.request(method, path, content=text % value)
                assert answer.status_code in (400, 422), (path, text, answer.text)


def test_ids_have_a_length():
    wrong = {"user": ""}, {"candidates": [""]}, {"user": "x" * 257}, {"history": [{"item": ""}]}
    with client_of(Stub()) as client:
        for body in wrong:
            answer = client.post("/v1/rank", json=body)
            assert answer.status_code == 422 and " id " in answer.json()["detail"], answer.text
        for path in ("/v1/users/", "/v1/users/" + "x" * 257, "/v1/items/" + "9" * 5000):
            assert client.get(path).status_code == 422, path
        predicted = client.get("/openapi.json").json()
        schema = predicted["components"]["schemas"]["Rank"]["properties"]["user"]["anyOf"][1]
        assert schema == {"type": "string", "minLength": 1, "maxLength": 256}
        schema = predicted["paths"]["/v1/users/{user}"]["get"]["parameters"][0]["schema"]
        assert schema["minLength"] == 1 and schema["maxLength"] == 256


def test_an_event_is_one_whatever_its_values_are_called():
    engine = Stub()
    taken = []
    engine.append = lambda events: taken.append(events) or {}
    body = {"user": 1, "item": 2, "time": 3, "features": {"source": "events"}}
    with client_of(engine) as client:
        assert client.post("/v1/events", json=body).status_code == 200
    assert len(taken[0]) == 1 and taken[0][0].features == {"source": "events"}


def test_queries_are_bounded():
    with client_of(Stub()) as client:
        for path in ("/v1/users", "/v1/items"):
            assert client.get(path, params={"q": "x" * 256}).status_code == 200
            for wrong in ({"q": "x" * 257}, {"q": "9" * 5000}):
                assert client.get(path, params=wrong).status_code == 422
            for wrong in (
                "1001",
                "0" * 5 + "20",
                "000000001000000",
                "9" * 5000,
                "٣",
                " 5",
                "",
                "+5",
            ):
                answer = client.get(path, params={"limit": wrong})
                assert answer.status_code == 422, (wrong, answer.text)


def test_bodies_being_received_are_bounded():
    engine = Stub()
    with served(engine, bodies_bytes=MIB, body_seconds=5.0) as (port, _):
        head = f"POST /v1/rank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['read'][0]}\r\n"
        with contextlib.ExitStack() as stack:
            codes = []
            for _ in range(3):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
                one.sendall(head.encode() + b"Content-Length: 900000\r\n\r\n" + b" " * 800_000)
                one.settimeout(1.0)
                with contextlib.suppress(TimeoutError):
                    codes.append(answer_of(one)[9:12])
            assert codes == [b"503", b"503"]
            small = head.encode() + b"Content-Length: 10\r\n\r\n" + b'{"user":1}'
            assert talk(port, small)[9:12] == b"200"


# Methods and numbers


def test_a_method_that_a_path_does_not_take_is_405():
    methods = {}
    for operation in OPERATIONS:
        methods.setdefault(operation.path, set()).add(operation.method)
    with client_of(Stub()) as client:
        for path, allowed in methods.items():
            shown = path.replace("{user:path}", "5").replace("{item:path}", "5")
            allowed = allowed | ({"HEAD"} if "GET" in allowed else set())
            for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - allowed:
                answer = client.request(method, shown)
                assert answer.status_code == 405, (method, path)
                assert set(answer.headers["allow"].split(", ")) == allowed
                assert answer.headers["content-type"] == "application/problem+json"
        for method, path in (("POST", "/metrics"), ("DELETE", "/openapi.json"), ("PUT", "/")):
            answer = client.request(method, path)
            assert answer.status_code == 405 and "GET" in answer.headers["allow"]
        assert client.head("/v1/model").status_code == 200


def test_any_id_of_an_event_is_one_of_a_path():
    engine = Stub()
    engine.user = engine.forget = engine.item = engine.remove_item = lambda id: {"id": id}
    with client_of(engine) as client:
        for id in ("a\nb", "a/b", "\r", "a?b#c", "\ufffd", "é" * 128, "a\n\n"):
            path = urllib.parse.quote(id, safe="")
            for kind in ("users", "items"):
                for method in ("GET", "DELETE"):
                    answer = client.request(method, f"/v1/{kind}/{path}")
                    assert answer.json() == {"id": id}, (method, kind, id)
        for path in ("%ff", "a%C3", "%ed%a0%80"):  # not the user called U+FFFD
            for kind in ("users", "items"):
                assert client.delete(f"/v1/{kind}/{path}").status_code == 422


def test_a_request_without_a_path_is_answered_with_a_problem():
    with served(Stub()) as (port, doors):
        reply = talk(port, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 404 ") and b"application/problem+json" in reply
        assert b"content-security-policy" in reply
        assert b'route="other",status="404"' in doors.numbers.text()


def test_routes_that_are_not_there_are_counted_under_one_name():
    with client_of(Stub()) as client:
        for method in ("POST", "PUT", "DELETE"):
            assert client.request(method, "/v1/ranks").status_code == 404
        for position in range(30):
            assert client.get(f"/nothing/{position}").status_code == 404
        assert client.get("/v1/nothing").status_code == 404
        assert client.get("/%00").status_code == 404
        assert client.get("/" + "x" * 5000).status_code == 404
        text = client.get("/metrics").text
    assert 'limerank_requests_total{route="other",status="404"} 36.0' in text
    assert "nothing" not in text


def test_numbers_while_the_store_is_away():
    engine = Stub()
    with client_of(engine) as client:
        assert "limerank_store_up 1.0" in client.get("/metrics").text
        engine.fails["count"] = StoreError("away", detail="at valkey://:pass@host/0")
        answer = client.get("/metrics")
        assert answer.status_code == 200 and "limerank_store_up 0.0" in answer.text
        assert "limerank_requests_total" in answer.text
        del engine.fails["count"]
        engine.hangs["count"] = PATIENCE
        began = time.monotonic()
        assert client.get("/metrics").status_code == 200
        assert time.monotonic() - began < 10
        assert client.get("/metrics").status_code == 200  # it waits for the same check


# Keys


def test_a_key_is_one_in_whatever_form_it_is_sent():
    key = KEYS["read"][0]
    with client_of(Stub(), rate=1.0) as client:
        forms = [f"Bearer {key}", f"bearer  {key}", f"Bearer \t{key} ", f"BEARER {key}\t"] * 3
        codes = [client.get("/v1/model", headers={"Authorization": form}).status_code
                 for form in forms]  # fmt: skip
        assert codes[0] == 200 and codes.count(200) <= 3 and codes[-1] == 429


def test_wrong_keys_are_paced_and_right_ones_pass():
    with client_of(Stub()) as client:
        codes = []
        for position in range(40):
            wrong = {"Authorization": f"Bearer {position:020d}"}
            codes.append(client.get("/v1/model", headers=wrong).status_code)
        assert codes[0] == 401 and codes[-1] == 429
        answer = client.get("/v1/model", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert client.get("/v1/model").status_code == 200
        assert client.get("/v1/model", headers={"Authorization": b"Bearer \xff"}).status_code == 429


def test_what_is_known_of_paces_is_bounded(monkeypatch):
    monkeypatch.setattr(admission, "MOST_PACED", 10)
    pace = admission.Pace(1.0, 2.0)
    assert [bool(pace.wait("a")) for _ in range(3)] == [False, False, True]
    for position in range(9):
        pace.wait(str(position))
    assert pace.wait("a"), "others do not make it forgotten, as long as there is room"
    assert len(pace._left) <= 10


def test_addresses_that_are_counted():
    same = {admission.address_of(one) for one in ("2001:db8::1", "2001:db8::ffff:1:2:3")}
    assert len(same) == 1
    assert admission.address_of("::ffff:10.1.2.3") == "10.1.2.3"
    assert admission.address_of("testclient") == "testclient"


def test_forwarded_addresses_are_believed_of_proxies_alone():
    Settings(keys=KEYS, proxies=("10.0.0.0/24", "::1"))
    with pytest.raises(ValueError, match="'nowhere' is no address or network"):
        Settings(keys=KEYS, proxies=("nowhere",))


# Without keys


@pytest.mark.parametrize("base", ["http://localhost:8000", "http://127.0.0.1", "http://[::1]:8000"])
def test_this_machine_s_programs_need_no_key(base):
    with client_of(Stub(), base=base, open=True, keys={}) as client:
        assert client.post("/v1/rank", json={"user": 1}).status_code == 200
        own = {"Origin": base, "Sec-Fetch-Site": "same-origin"}
        assert client.post("/v1/rank", json={"user": 1}, headers=own).status_code == 200
        kind = {"Content-Type": "application/json; charset=utf-8"}
        assert client.post("/v1/rank", content=b"{}", headers=kind).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "192.168.0.7:8000"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1]evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:80@evil.example"}, 403),
        ({"Host": "localhost:evil"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "https://localhost:8000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({"Content-Type": ""}, 415),
    ],
)
def test_a_web_page_cannot_use_a_server_without_keys(headers, status):
    engine = Stub()
    with client_of(engine, base="http://localhost:8000", open=True, keys={}) as client:
        for method, path, body in (
            ("POST", "/v1/events", {"user": 1, "item": 1, "time": 1}),
            ("POST", "/v1/admin/reload", {}),
            ("PUT", "/v1/items", {"items": [{"item_id": 1}]}),
        ):
            text = json.dumps(body)
            answer = client.request(method, path, content=text, headers=JSON | headers)
            assert answer.status_code == status, answer.text
        if status == 403:
            for path in ("/v1/model", "/metrics", "/openapi.json", "/", "/healthz"):
                assert client.get(path, headers=headers).status_code == 403, path
        assert engine.asked == 0


# What is private


SECRET = "S3cret/pass@word"
STORE = "redis://me:S3cret%2Fpass%40word@db.internal:6379/0"


def private():
    return Private.of_store(STORE, ["k" * 20], ["runs/shop", "/srv/live/index"])


@pytest.mark.parametrize(
    "text",
    [
        f"cannot reach {STORE}",
        "Error 111 connecting to redis://:other@10.0.0.7:6379",
        f"WRONGPASS {SECRET}",
        "AUTH S3cret%2Fpass%40word failed",
        "runs/shop/model.safetensors is damaged",
        "/srv/live/index holds no manifest.json",
        "unable to open '/var/lib/limerank/events.db'",
        "no folder: ../secret/place",
        "valkey://db.internal:6379/0?password=hunter22 is away",
    ],
)
def test_answers_hold_nothing_of_the_configuration(text):
    forbidden = ("S3cret", "pass@", "db.internal", "10.0.0.7", "runs/shop", "/srv", "/var",
                 "hunter22", "secret/place", "other@")  # fmt: skip
    shown = private().hidden(text)
    assert not [part for part in forbidden if part in shown], shown
    logged = private().logged(text)
    assert not [part for part in ("S3cret", "hunter22", "other@") if part in logged], logged
    engine = Stub()
    calls = {"GET": ("/v1/model", "model"), "POST": ("/v1/admin/reload", "reload")}
    for kind in (StoreError, FormatError, SpecError, OSError, RuntimeError):
        for method, (path, name) in calls.items():
            engine.fails = {name: kind(text), "readiness": kind(text)}
            with client_of(engine, private()) as client:
                body = client.request(method, path, content=b"{}").text
                ready = client.get("/readyz")
            assert not [part for part in forbidden if part in body + ready.text], body
            assert ready.status_code == 503


def test_who_has_no_key_learns_that_the_store_is_away_and_no_more():
    engine = Stub()
    engine.fails["readiness"] = StoreError("Error 111 connecting", detail=STORE)
    with client_of(engine, private()) as client:
        client.headers.clear()
        answer = client.get("/readyz")
    assert answer.json()["detail"] == "the store cannot be reached"
    assert int(answer.headers["retry-after"]) > 0


def test_a_check_that_hangs_holds_one_thread():
    engine = Stub()
    engine.hangs["readiness"] = PATIENCE
    with client_of(engine) as client:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("limerank.serving.http.gate.READY_SECONDS", 0.1)
            for _ in range(5):
                assert client.get("/readyz").status_code == 503
        assert engine.asked == 1
        assert client.post("/v1/rank", json={"user": 1}).status_code == 200


def test_log_lines_hold_no_passwords():
    record = logging.LogRecord("x", 40, "", 0, "away: %s %s", (STORE, "k" * 20), None)
    try:
        raise RuntimeError(STORE)
    except RuntimeError:
        record.exc_info = sys.exc_info()
    line = json.loads(JsonLines(private()).format(record))
    assert "S3cret" not in json.dumps(line) and "k" * 20 not in json.dumps(line)
    assert "db.internal" in line["message"] and "RuntimeError" in line["trace"]


# Lanes


def test_administration_does_not_starve_ranking():
    engine = Stub()
    engine.hangs = {"reload": PATIENCE, "put_items": PATIENCE}
    with client_of(engine, threads=1, admin_threads=2, admin_waiting=2) as client:
        threads = [
            threading.Thread(target=client.post, args=("/v1/admin/reload",), kwargs={"json": {}})
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        until(lambda: 'queue="administration"} 4.0' in client.get("/metrics").text, "not waiting")
        assert client.post("/v1/admin/reload", json={}).status_code == 503
        assert client.post("/v1/rank", json={"user": 1}).status_code == 200
        engine.ended.set()
        for thread in threads:
            thread.join()


def test_reading_much_does_not_starve_ranking():
    engine = Stub()
    engine.hangs = dict.fromkeys(("user", "users", "explain"), PATIENCE)
    with client_of(engine, threads=1, waiting=4) as client:
        threads = [
            threading.Thread(target=client.request, args=(method, path), kwargs={"json": body})
            for method, path, body in (
                ("GET", "/v1/users/1", None),
                ("GET", "/v1/users", None),
                ("POST", "/v1/explain", {"items": [1]}),
                ("GET", "/v1/users/3", None),
                ("GET", "/v1/users/4", None),
            )
        ]
        for thread in threads:
            thread.start()
        until(lambda: 'queue="looking"} 5.0' in client.get("/metrics").text, "not waiting")
        assert client.get("/v1/users/2").status_code == 503
        assert client.post("/v1/rank", json={"user": 1}).status_code == 200
        engine.ended.set()
        for thread in threads:
            thread.join()


def test_a_store_that_cannot_be_written_starves_nobody_who_reads():
    engine = Stub()
    engine.hangs = dict.fromkeys(("forget", "put_user"), PATIENCE)
    with client_of(engine, threads=1, waiting=4) as client:
        threads = [
            threading.Thread(target=client.request, args=(method, "/v1/users/1"), kwargs=body)
            for method, body in (("DELETE", {}), ("PUT", {"json": {"features": {}}})) * 2
        ]
        for thread in threads:
            thread.start()
        until(lambda: 'queue="writing"} 4.0' in client.get("/metrics").text, "not waiting")
        for path in ("/v1/model", "/v1/users/1", "/v1/items"):
            assert client.get(path).status_code == 200, path
        assert client.post("/v1/rank", json={"user": 1}).status_code == 200
        engine.ended.set()
        for thread in threads:
            thread.join()


def test_a_remote_store_is_waited_for_by_more_threads_than_there_are_cores():
    engine = Stub(local=False)
    barrier = threading.Barrier(8)
    engine.user = lambda _: {"at": barrier.wait(PATIENCE)}
    codes = []
    with client_of(engine, threads=1, store_threads=8) as client:
        threads = [
            threading.Thread(target=lambda: codes.append(client.get("/v1/users/1").status_code))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [200] * 8


@pytest.mark.parametrize("name", ["run", "index"])
def test_paths_that_are_not_folders_of_a_run_or_index_are_never_loaded(name, tmp_path):
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "manifest.json")
    (tmp_path / "good").mkdir()
    engine = Stub()
    with client_of(engine) as client:
        for given_ in ("file", "pipe", "folder", "x" * 300, "x/" * 1500, "nowhere", "a\0b"):
            path = str(tmp_path / given_)
            answer = client.post("/v1/admin/reload", json={name: path})
            assert answer.status_code == 409 and name in answer.json()["detail"], answer.text
        assert client.post("/v1/admin/reload", json={name: ""}).status_code == 422
        assert client.post("/v1/admin/reload", json={name: "x" * 5000}).status_code == 422
        assert engine.asked == 0
        good = {name: str(tmp_path / "good")}
        assert client.post("/v1/admin/reload", json=good).status_code == 200


# Connections


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_silent_connections_shut_nobody_out():
    body = f"POST /v1/rank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['read'][0]}\r\n"
    body += "Content-Length: 9\r\n\r\n{"
    starts = (b"", b"GET", b"GET / HTTP/1.1\r\nX: ", body.encode())
    with served(Stub(), connections=60, address_connections=40) as (port, doors):
        with contextlib.ExitStack() as stack:
            for position in range(300):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
                one.sendall(starts[position % len(starts)])
                if position % 20 == 0:
                    began = time.monotonic()
                    assert b" 200 " in talk(port, GET)
                    assert time.monotonic() - began < 2
            until(lambda: len(doors._open) <= 40, "more than a single address may have")
        until(lambda: not doors._open, "closed ones are still counted")


def test_connections_of_one_address_leave_room_for_others():
    class Fake:
        loop = SimpleNamespace(call_later=lambda *_: None)
        at_work = is_computed = answered = False

        def __init__(self, since):
            self.since, self.dropped = since, False

        def drop(self, reason):
            self.dropped = True

    doors = Doors(Settings(keys=KEYS, connections=20, proxies=("10.9.0.0/16",)), Numbers(), 10_000)
    many = [Fake(k) for k in range(19)]
    assert all(doors.enter(one, "10.0.0.1") for one in many)
    assert doors.enter(Fake(0), "10.0.0.2")
    assert doors.enter(Fake(99), "10.0.0.3")
    assert [one.dropped for one in many] == [True] + [False] * 18, "the oldest of the fullest"
    many[1].at_work = many[1].is_computed = True
    assert doors.enter(Fake(99), "10.0.0.4") and many[2].dropped and not many[1].dropped
    for one in doors._open:
        one.at_work = one.is_computed = True
    assert not doors.enter(Fake(99), "10.0.0.5")
    few = Doors(Settings(keys=KEYS, address_connections=4, proxies=("10.9.0.0/16",)), Numbers(), 0)
    assert few.most == 16
    proxied = [Fake(k) for k in range(10)]
    assert all(few.enter(one, "10.9.1.1") for one in proxied)
    assert not any(one.dropped for one in proxied)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % k for k in range(200)), 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"y" * 300_000, 431),
        (b"rubbish\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    ],
)  # fmt: skip
def test_what_is_no_request_or_too_much_of_one(data, status):
    with served(Stub()) as (port, _doors):
        reply = talk(port, data)
        assert reply.startswith(b"HTTP/1.1 %d " % status), reply
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["status"] == status
        assert b" 200 " in talk(port, GET)


def test_requests_sent_ahead_are_bounded():
    engine = Stub()
    engine.hangs["model"] = 1.0
    key = f"Authorization: Bearer {KEYS['read'][0]}\r\n\r\n".encode()
    with served(engine) as (port, _doors):
        one = b"GET /v1/model HTTP/1.1\r\nHost: x\r\n" + key
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(one * 5_000)
            reply = b""
            with contextlib.suppress(OSError):
                while part := connection.recv(65_536):
                    reply += part
        assert reply.count(b"HTTP/1.1 200") == 1 and engine.asked < 20
        # A few are fine.
        engine.hangs.clear()
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(one * 8)
            reply = b""
            while reply.count(b"HTTP/1.1 200") < 8:
                reply += connection.recv(65_536)


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "h2c, foo"])
@pytest.mark.parametrize("pause", [0, 0.05])
def test_another_protocol_is_not_taken_up_and_the_request_is_answered(protocol, pause, caplog):
    """As Java's HttpClient and ``curl --http2`` ask for it, with every first request."""
    key = f"Authorization: Bearer {KEYS['write'][0]}\r\n".encode()
    body = json.dumps({"user": 1, "item": 2, "time": 3}).encode()
    ask = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol.encode() + b"\r\n"
    post = b"POST /v1/events HTTP/1.1\r\nHost: x\r\n" + key + ask
    full = post + b"Content-Length: %d\r\n\r\n" % len(body)
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with (
        served(Stub()) as (port, _doors),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
    ):
        for parts in ((full, body), (chunked, end), (GET[:-2] + ask + b"\r\n", b""), (GET, b"")):
            for part in parts if pause else (b"".join(parts),):
                connection.sendall(part)
                time.sleep(pause)
            reply = connection.recv(65_536)
            assert reply.startswith(b"HTTP/1.1 200 "), reply
        connection.sendall(full + body + GET)  # sent ahead
        reply = b""
        while reply.count(b"HTTP/1.1 200") < 2:
            reply += connection.recv(65_536)
    assert "WebSocket" not in caplog.text


def test_late_connections_are_closed(monkeypatch):
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.5)
    limits = {"header_seconds": 0.5, "idle_seconds": 1.0, "write_seconds": 0.5, "body_seconds": 0.5}
    engine = Stub()
    engine.model = lambda: {"much": "x" * (32 * MIB)}
    key = f"Authorization: Bearer {KEYS['read'][0]}\r\n".encode()
    post = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n"
    with served(engine, **limits) as (port, doors):
        for name, data in {
            "silent": b"",
            "half a line": b"GE",
            "half of the headers": b"GET / HTTP/1.1\r\nHost: x\r\n",
            "idle": GET,
            "half of the next": GET + b"GET / HT",
            "half a body": post.replace(b"100000000", b"10") + key + b"\r\n{",
            "a body after the answer": post + b"\r\n" + b" " * 1000,
            "an answer that is not taken": b"GET /v1/model HTTP/1.1\r\nHost: x\r\n" + key + b"\r\n",
        }.items():
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
                connection.sendall(data)
                until(lambda: len(doors._open) == 1, name)
                until(lambda: len(doors._open) == 0, f"{name}: it stays open")
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            assert b" 408 " in answer_of(connection)


def test_headers_that_trickle_do_not_extend_their_time(monkeypatch):
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.1)
    with (
        served(Stub(), header_seconds=0.5) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
    ):
        began = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        connection.setblocking(False)
        reply = b""
        while not reply and time.monotonic() - began < PATIENCE:
            with contextlib.suppress(BlockingIOError):
                connection.sendall(b"y")
            with contextlib.suppress(BlockingIOError):
                reply = connection.recv(4096)
            time.sleep(0.02)
        assert b" 408 " in reply and time.monotonic() - began < 5


# The process

HANGING = """
import sys, threading
from pathlib import Path
from types import SimpleNamespace
import limerank.serving.http.run as run
from limerank.serving.arms import one_arm
from limerank.serving.http.run import Server
from limerank.serving.http.settings import Settings
from tests.test_hostile import Stub
for file in ("run/config.json", "index/manifest.json"):
    Path(file).parent.mkdir()
    Path(file).touch()
class Engine(Stub):
    def __init__(self, *given, **more):
        super().__init__()
    def _do(self, name):
        if name in ("rank", "reload", "close", "put_items"):
            threading.Event().wait(600)
        return {}
    def __getattr__(self, name):
        return lambda *_: self._do(name)
run.Serving = Engine
run.open_store = lambda *_: None
run.Background = lambda *_, **more: SimpleNamespace(start=lambda: None, stop=lambda: None)
settings = Settings(open=True, port=0, drain_seconds=float(sys.argv[1]))
run.serve(arms=one_arm(Path("run"), Path("index")), store="events.db", settings=settings)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_in_time_whatever_hangs(how, tmp_path):
    root = os.path.dirname(os.path.dirname(__file__))
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", HANGING, "4"], stdout=subprocess.PIPE, stderr=log, text=True,
            env=os.environ | {"PYTHONPATH": root}, cwd=tmp_path,
        )  # fmt: skip
    try:
        line = process.stdout.readline()
        port = int(re.search(r":(\d+)\s*$", line)[1])
        body = b'{"user": 1}'
        head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: %d\r\n\r\n"
        with contextlib.ExitStack() as stack:
            hanging = []
            for path in [b"/v1/rank", b"/v1/admin/reload"] * 4:
                text = b"{}" if b"reload" in path else body
                one = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
                one.sendall(head % (path, len(text)) + text)
                hanging.append(one)
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in answer_of(one)
            began = time.monotonic()
            process.send_signal(how)
            process.wait(timeout=30)
            assert time.monotonic() - began < 8
            for one in hanging:  # nobody is left without a word
                reply = answer_of(one)
                assert reply.startswith(b"HTTP/1.1 503 ") and b"is stopping" in reply, reply
    finally:
        process.kill()
        process.stdout.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines and all(json.loads(line)["message"] for line in lines), "each line is JSON"


def test_a_start_that_fails_is_one_line_and_leaves_nothing(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMERANK_READ_KEYS", f" {KEYS['read'][0]} ,")
    for name in ("run", "index"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    given = ("serve", "--run", "run", "--index", "index")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, reply, error = call(*given, "--no-keys", "--port", port)
    assert status == 2 and not reply
    assert len(error.splitlines()) == 1 and f"port {port}" in error and "--port" in error
    for more, what in (
        (("--host", "203.0.113.7"), "203.0.113.7"),
        (("--port", 0, "--run", "file"), "'file' is not the folder of a run"),
        (("--port", 0), "'run' is not the folder of a run"),
    ):
        status, _, error = call(*given, *more)
        assert status == 2 and what in error and len(error.splitlines()) == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "index", "run"]


def test_values_are_finite_in_answers_of_old_stores():
    engine = Stub()
    engine.model = lambda arm: {"much": 1 << 70}
    with client_of(engine) as client:
        assert client.get("/v1/model").json() == {"much": 1 << 70}
