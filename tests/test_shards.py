"""Shards: merged, their rankings are those of one scan; one that does not answer is named."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import socket
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from limerank.errors import FormatError, ShardError, SpecError
from limerank.index import Index
from limerank.index.changes import change_items
from limerank.index.sharding import split_index
from limerank.ranking.recommender import Recommender
from limerank.ranking.scorer import NativeScorer, scorer_for
from limerank.serving.engine import Serving
from limerank.serving.http.app import application
from limerank.serving.http.private import Private
from limerank.serving.http.settings import Settings
from limerank.serving.rebuilding import loaded_states
from limerank.serving.shards.answering import ShardRanker
from limerank.serving.shards.client import Shards
from limerank.serving.shards.scorer import ShardedScorer
from limerank.serving.shards.wire import Answer, Question, state_of, tensors_of
from limerank.serving.stores import SqliteStore
from tests.catalogues import ITEMS, MODELS, plain_log, shop

KEYS = {"read": ("r" * 20,), "write": ("w" * 20,), "admin": ("a" * 20,)}
START = 1_700_000_000_000


class Direct:
    """Shards in this process; those in ``dead`` do not answer."""

    def __init__(self, rankers):
        self.rankers, self.dead, self.questions = rankers, set(), []

    def __len__(self):
        return len(self.rankers)

    def ask(self, questions):
        self.questions += [question for question in questions if question is not None]
        return [
            None
            if question is None
            else ShardError(f"shard {number} is dead")
            if number in self.dead
            else Answer.from_bytes(ranker.answer(question))
            for number, (ranker, question) in enumerate(
                zip(self.rankers, questions, strict=True), 1
            )
        ]


def shop_of(model):
    return shop("lime-mha", anchors=None) if model == "anchored" else shop(model)


def state_of_request(of, request):
    batch = of.data.batch(np.array([request]))
    with torch.inference_mode():
        return of.run.ranker.encode_users(batch.users, of.run.ranker.item_vectors(batch.items))


def sharded(of, tmp_path, shards, scorer="auto"):
    """The scorer of one scan, the scorer of its shards, and the shards."""
    path = tmp_path / "index"
    if not path.exists():
        shutil.copytree(of.index.path, path)
    index = Index.open(path)
    like = state_of_request(of, 0)
    rankers = [
        ShardRanker(scorer_for(scorer, of.run.ranker, Index.open(one)), of.run.fingerprint, like)
        for one in split_index(path, shards)
    ]
    full, direct = scorer_for(scorer, of.run.ranker, index), Direct(rankers)
    found = ShardedScorer(full, of.run.fingerprint, direct)
    found.check()
    return full, found, direct


def assert_same(one, other, exact=True):
    """The same rankings; products of floats are rounded otherwise where the shapes differ."""
    held = one.rows[0] >= 0
    if exact:
        assert other.rows[0].tolist() == one.rows[0][held].tolist()
        assert (other.values[0] == one.values[0][held]).all()
        assert (other.logits[0] == one.logits[0][held]).all()
    else:
        assert len(set(other.rows[0].tolist())) == held.sum()
        np.testing.assert_allclose(other.values[0], one.values[0][held], rtol=1e-5, atol=1e-5)


def test_a_shard_alone_ranks_no_catalogue(tmp_path, call):
    of = shop_of("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")
    shard = split_index(tmp_path / "index", 2)[1]
    with pytest.raises(SpecError, match="is shard 2 of 2 of an index and has a part of the items"):
        Recommender(of.run, shard)
    with (
        SqliteStore(tmp_path / "events.db") as store,
        pytest.raises(SpecError, match="give the index itself"),
    ):
        loaded_states(store, of.run.path, shard, "window")
    status, _, problem = call("similar", str(shard), "1")
    assert status == 2 and "give the index itself" in problem


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("model", [*MODELS, "anchored"])
def test_merged_rankings_are_those_of_one_scan(model, shards, tmp_path):
    """With exclusions, a filter and weights of tasks; LIME's bit for bit."""
    of, exact = shop_of(model), model not in MODELS or model.startswith("lime")
    full, found, _ = sharded(of, tmp_path, shards)
    rng = np.random.default_rng(3)
    for request in of.requests(5).tolist():
        state = state_of_request(of, request)
        seen = rng.choice(ITEMS, 9, replace=False)
        allow = rng.random(ITEMS) < 0.6
        for more in (
            {"k": 7},
            {"k": ITEMS + 5},
            {"k": 20, "exclude": [seen], "weights": [0.5, 1.5]},
            {"k": 20, "exclude": [seen], "allow": allow},
            {"k": 3, "allow": np.zeros(ITEMS, bool)},
        ):
            assert_same(full.top(state, **more), found.top(state, **more), exact)
        some = np.sort(seen)
        assert_same(full.top(state, 4, rows=some), found.top(state, 4, rows=some))
        assert (full.scores(state, some) == found.scores(state, some)).all()


def test_equal_values_are_ordered_as_in_one_index(tmp_path):
    """Items alike in all: the lower row comes first, whichever shard has it."""
    of = shop("lime-mha")
    _, found, direct = sharded(of, tmp_path, 3)
    state = state_of_request(of, 0)
    rows = np.arange(ITEMS)
    tied = [
        Answer(
            ITEMS, part[::-1][:8].copy(), np.full(8, 1.5, np.float32), np.ones((8, 2), np.float32)
        )
        for part in np.split(rows, 3)
    ]
    direct.ask = lambda questions: tied
    assert (
        found.top(state, 10).rows[0].tolist()
        == sorted(row for one in tied for row in one.rows.tolist())[:10]
    )


def test_items_that_changed_since_the_split(tmp_path):
    """Added rows are ranked by the front itself, hidden ones are excluded from all questions."""
    of = shop("lime-mha")
    _, _, direct = sharded(of, tmp_path, 3)
    path = tmp_path / "index"
    new = [
        {"item_id": 900 + n, "group": "g1", "tags": "t1|t2", "length": 9.0 + n} for n in range(4)
    ]
    change_items(of.run, path, add=new, remove=[3, 55])
    change_items(of.run, path, update=[{**new[0], "item_id": 12, "group": "g4"}])
    index = Index.open(path)
    full = NativeScorer(of.run.ranker, index)
    later = ShardedScorer(full, of.run.fingerprint, direct)
    for request in of.requests(5).tolist():
        state = state_of_request(of, request)
        assert_same(full.top(state, 30), later.top(state, 30))
        assert_same(full.top(state, ITEMS + 9), later.top(state, ITEMS + 9))
    with pytest.raises(FormatError, match="old rows of updated items; compact it"):
        split_index(path, 2)


def test_a_shard_that_does_not_answer(tmp_path):
    of = shop("lime-xor")
    full, found, direct = sharded(of, tmp_path, 3)
    state = state_of_request(of, 4)
    direct.dead = {2}
    with pytest.raises(ShardError, match="shard 2 is dead"):
        found.top(state, 5)
    with found.asked(True) as missing:
        top = found.top(state, ITEMS)
    assert missing == {2}
    assert set(top.rows[0].tolist()) == {*range(30), *range(60, 90)}
    allow = np.ones(ITEMS, bool)
    allow[30:60] = False
    assert_same(full.top(state, ITEMS, allow=allow), top)
    with pytest.raises(ShardError):  # of the next request again
        found.top(state, 5)
    assert found.ping() == [2]
    direct.dead = {1, 2, 3}
    with found.asked(True), pytest.raises(ShardError):
        found.top(state, 5)
    with pytest.raises(ShardError):
        found.ping()
    fresh = ShardedScorer(full, of.run.fingerprint, direct)
    with pytest.raises(ShardError, match="none of the 3 shards answers"):
        fresh.check()
    direct.dead = {3}  # one that answers later is asked from then on
    fresh.check()
    with fresh.asked(True) as missing:
        fresh.top(state, 5)
    direct.dead = set()
    assert missing == {3}
    assert_same(full.top(state, 5), fresh.top(state, 5))


def test_splitting(tmp_path):
    of, path = shop("lime-mha", anchors=None), tmp_path / "index"
    shutil.copytree(of.index.path, path)
    shards = [Index.open(one, verify=True) for one in split_index(path, 4)]
    assert [shard.shard.rows for shard in shards] == [22, 23, 22, 23]
    assert sum(shard.items for shard in shards) == ITEMS
    own = [shard.ids[: shard.shard.rows] for shard in shards]
    assert np.concatenate(own).tolist() == of.index.ids[:].tolist()
    for shard in shards:
        assert shard.hidden.tolist() == [shard.shard.rows]
        first = shard.shard.first
        assert (shard.weights[:22] == of.index.weights[first : first + 22]).all()
    written = shards[0].path / "manifest.json"
    before = written.stat().st_mtime_ns
    assert split_index(path, 4)[0] == shards[0].path and written.stat().st_mtime_ns == before
    with pytest.raises(SpecError, match="is shard 1 of 4 of an index and never changes"):
        change_items(of.run, shards[0].path, remove=[int(own[0][0])])
    with pytest.raises(SpecError, match="split that index"):
        split_index(shards[0].path, 2)
    for wrong, text in ((0, "at least 1"), (ITEMS + 1, "at most one for each of the 90 rows")):
        with pytest.raises(SpecError, match=text):
            split_index(path, wrong)
    change_items(of.run, path, remove=[1])
    with pytest.raises(FormatError, match="already exists"):
        shutil.rmtree(path)
        shutil.copytree(shop("lime-mha", links=4).index.path, path)
        split_index(path, 4)
    split_index(path, 4, overwrite=True)


def test_questions_that_do_not_fit_are_refused(tmp_path):
    of = shop("lime-mha", anchors=None)
    _, found, direct = sharded(of, tmp_path, 2)
    state = state_of_request(of, 4)
    good = dict(
        run=of.run.fingerprint, base=of.index.base, number=1, of=2, k=3,
        weights=np.ones(2, np.float32), state=tensors_of(state), exclude=np.zeros(0, np.int64),
    )  # fmt: skip
    ranker = direct.rankers[0]
    good["base"] = found.index.base
    assert len(Answer.from_bytes(ranker.answer(Question(**good).to_bytes())).rows) == 3
    links = state.anchored
    for change, text in (
        ({"run": "other"}, "another run"),
        ({"base": "other"}, "another index"),
        ({"number": 2}, "another shard"),
        ({"k": -5}, "expected 1 or more"),
        ({"weights": np.ones(3, np.float32)}, "task weights"),
        ({"exclude": np.array([10**6])}, "does not fit"),
        ({"state": {}}, "the state's links is nothing"),
        ({"state": {**good["state"], "more": torch.zeros(1)}}, "unknown parts: more"),
        ({"state": {**good["state"], "head": torch.zeros(1, 3)}}, "does not fit"),
        ({"state": {**good["state"], "anchored.keys": links.keys.flip(0)}}, "of one user"),
        ({"state": {**good["state"], "anchored.offsets": torch.tensor([0, 10**6])}}, "of one user"),
        ({"allow": np.ones(200, bool)}, "allow has"),
    ):
        with pytest.raises(SpecError, match=text):
            ranker.answer(Question(**{**good, **change}).to_bytes())
    data = Question(**good).to_bytes()
    for wrong in (
        b"",
        b"{}",
        data[:-1],
        data[:20],
        b"\xff" * 8 + data[8:],
        data.replace(b"format", b"fromat"),
    ):
        with pytest.raises(SpecError, match="not a question"):
            ranker.answer(wrong)
    plain = scorer_for("auto", of.run.ranker, of.index)
    with pytest.raises(SpecError, match="is not a shard"):
        ShardRanker(plain, of.run.fingerprint, state)


@pytest.mark.parametrize("model", [*MODELS, "anchored"])
def test_a_state_is_sent_and_read(model):
    of = shop_of(model)
    state = state_of_request(of, 5)
    tensors = tensors_of(state)
    again = tensors_of(state_of(state_of_request(of, 0), tensors))
    assert again.keys() == tensors.keys()
    assert all((again[name] == tensors[name]).all() for name in tensors)


# Over HTTP


@contextlib.contextmanager
def serving(engine, **settings):
    """An engine on a port of its own; gives its URL, and a function that stops it."""
    given = Settings(**({"keys": KEYS, "port": 0} | settings))
    config = uvicorn.Config(application(engine, given), log_config=None, access_log=False)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()

        def stop():
            server.should_exit = True
            thread.join()

        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", stop
        finally:
            stop()


def engine_of(of, index, store, **options):
    items = plain_log() / "items.csv"
    return Serving(of.run.path, index, SqliteStore(store), items=items, **options)


@contextlib.contextmanager
def fan_out(of, tmp_path, shards=2, **options):
    """A client of a front, that of one scan, and what stops each shard."""
    path = tmp_path / "index"
    shutil.copytree(of.index.path, path)
    shutil.copytree(of.index.path, tmp_path / "full")
    with contextlib.ExitStack() as stack:
        stops, urls = [], []
        for one in split_index(path, shards):
            url, stop = stack.enter_context(
                serving(engine_of(of, one, tmp_path / f"{one.name}.db"))
            )
            stops.append(stop)
            urls.append(url)
        front = engine_of(
            of, path, tmp_path / "events.db", shards=urls, shard_key=KEYS["read"][0], **options
        )
        one = engine_of(of, tmp_path / "full", tmp_path / "full.db")
        clients = [
            stack.enter_context(
                TestClient(
                    application(engine, Settings(keys=KEYS), Private(KEYS["read"], urls)),
                    headers={"Authorization": f"Bearer {KEYS['admin'][0]}"},
                    raise_server_exceptions=False,
                )
            )
            for engine in (front, one)
        ]
        row_of = Index.open(path).row_of
        yield SimpleNamespace(
            row_of=row_of, front=clients[0], one=clients[1], stops=stops, urls=urls, engine=front
        )


def ranked(client, **body):
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("model", ["lime-mha", "anchored", "two-tower"])
def test_a_front_answers_as_one_server(model, tmp_path):
    """Events, rules, candidates, explanations, similar items and live items."""
    with fan_out(shop_of(model), tmp_path) as of:
        both = (of.front, of.one)
        rng = np.random.default_rng(1)
        events = [
            {"user": user, "item": int(item), "time": START + 1000 * n, "labels": {"click": 1}}
            for user in (1, 2)
            for n, item in enumerate(rng.integers(0, ITEMS, 12))
        ]
        for client in both:
            assert client.post("/v1/events", json={"events": events}).status_code == 200
        item = {"item_id": 950, "group": "g1", "tags": "t1|t2", "length": 20.0}

        def compare(**body):
            found = [ranked(client, time=START + 10**6, **body) for client in both]
            assert found[0]["items"]
            if model == "two-tower":
                values = [[one["value"] for one in of["items"]] for of in found]
                assert values[0] == pytest.approx(values[1], abs=1e-5)
            else:
                assert found[0]["items"] == found[1]["items"]
            assert found[0]["candidates"] == found[1]["candidates"]
            assert "missing_shards" not in found[0]
            return found[0]

        def compare_all():
            for user in (1, 2, 77):
                compare(user=user, k=20)
            compare(user=1, k=ITEMS, exclude_seen=False, task_weights={"watch": 1.0})
            compare(user=1, filter={"group": ["g1", "g2"]}, exclude=[1, 6])
            compare(user=2, pins=[{"item": 5, "position": 2}], per={"group": 2}, k=8)
            compare(user=2, candidates=[5, 6, 80], boosts=[{"items": [80], "add": 2.0}])
            compare(history=[{"item": 3}, {"item": 80}], k=6)

        compare_all()
        top = compare(user=1, k=3)["items"]
        for path, body in (
            ("/v1/explain", {"user": 1, "items": [one["item"] for one in top]}),
            ("/v1/items/5/similar", None),
            ("/v1/items/5", None),
        ):
            answers = [
                client.get(path) if body is None else client.post(path, json=body)
                for client in both
            ]
            assert answers[0].json() == answers[1].json()
        for client in both:
            assert client.put("/v1/items", json={"items": [item]}).status_code == 200
            assert client.delete("/v1/items/7").status_code == 200
        assert 950 in [one["item"] for one in compare(user=77, k=ITEMS + 1)["items"]]
        if model != "anchored":
            compare_all()
        boost = {"user": 1, "boosts": [{"items": [5], "add": 2.0}]}
        answer = of.front.post("/v1/rank", json=boost)
        assert (
            answer.status_code == 422 and "give candidates, or a filter" in answer.json()["detail"]
        )


def test_a_dead_shard_is_named_and_recovers(tmp_path):
    with fan_out(shop("lime-mha"), tmp_path) as of:
        assert of.front.get("/readyz").json() == {"status": "ok"}
        full = ranked(of.one, user=1, k=ITEMS)["items"]
        of.stops[1]()
        of.engine.shards.close()
        answer = of.front.post("/v1/rank", json={"user": 1})
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        text = answer.json()["detail"]
        assert text == "shard 2 of 2 cannot be reached; try again, or ask for a partial answer"
        partial = ranked(of.front, user=1, k=ITEMS, partial=True)
        assert partial["missing_shards"] == [2]
        assert partial["candidates"] == 45, "items that the other shard ranks"
        assert partial["items"] == [
            {**one, "rank": rank}
            for rank, one in enumerate((one for one in full if of.row_of(one["item"]) < 45), 1)
        ]
        assert ranked(of.front, user=1, candidates=[4, 80])["items"]  # need no shard
        fresh = of.engine.readiness()
        assert fresh == {"status": "degraded", "shards_down": [2]}
        metrics = of.front.get("/metrics").text
        assert 'limerank_shard_up{shard="1"} 1.0' in metrics
        assert 'limerank_shard_up{shard="2"} 0.0' in metrics
        assert 'limerank_shard_questions_total{outcome="failed",shard="2"}' in metrics
        port = int(of.urls[1].rpartition(":")[2])
        assert str(port) not in text + answer.text + metrics
        of.stops[0]()
        of.engine.shards.close()
        assert of.front.post("/v1/rank", json={"user": 1, "partial": True}).status_code == 503
        with pytest.raises(ShardError):
            of.engine.readiness()


def test_a_partial_answer_counts_the_items_that_were_ranked(tmp_path):
    with fan_out(shop("lime-mha"), tmp_path) as of:
        ids = [one["item"] for one in ranked(of.one, user=1, k=ITEMS)["items"]]
        of.stops[1]()
        of.engine.shards.close()
        for item in (
            next(one for one in ids if of.row_of(one) < 45),
            next(one for one in ids if of.row_of(one) >= 45),
        ):
            assert of.front.delete(f"/v1/items/{item}").status_code == 200
        partial = ranked(of.front, user=1, k=ITEMS, exclude_seen=False, partial=True)
        assert partial["candidates"] == len(partial["items"]) == 44


def test_a_shard_s_route(tmp_path):
    of = shop("lime-mha")
    path = tmp_path / "index"
    shutil.copytree(of.index.path, path)
    shard, _ = split_index(path, 2)
    full = engine_of(of, path, tmp_path / "full.db")
    engine = engine_of(of, shard, tmp_path / "events.db")
    media = {"Content-Type": "application/octet-stream"}
    keys = {access: {"Authorization": f"Bearer {key}"} for access, (key,) in KEYS.items()}
    with TestClient(application(engine, Settings(keys=KEYS))) as client:
        assert client.post("/v1/shard", content=b"x", headers=media).status_code == 401
        assert client.get("/v1/shard", headers=keys["read"]).status_code == 405
        assert client.post("/v1/shard", content=b"x", headers=keys["read"]).status_code == 415
        answer = client.post("/v1/shard", content=b"x", headers=keys["read"] | media)
        assert answer.status_code == 422 and "not a question" in answer.json()["detail"]
        item = {"item_id": 950, "group": "g1", "tags": "t1", "length": 20.0}
        for answer in (
            client.put("/v1/items", json={"items": [item]}, headers=keys["admin"]),
            client.delete("/v1/items/5", headers=keys["admin"]),
        ):
            assert answer.status_code == 422 and "never changes" in answer.json()["detail"]
    with TestClient(application(full, Settings(keys=KEYS))) as client:
        answer = client.post("/v1/shard", content=b"x", headers=keys["read"] | media)
        assert answer.status_code == 422 and "is not a shard" in answer.json()["detail"]


def test_wrong_set_ups_are_refused(tmp_path):
    of = shop("lime-mha")
    path, other = tmp_path / "index", tmp_path / "other"
    shutil.copytree(of.index.path, path)
    shutil.copytree(of.index.path, other)
    change_items(of.run, other, remove=[3])
    shards = split_index(path, 2)
    key = KEYS["read"][0]
    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(serving(engine_of(of, one, tmp_path / f"{one.name}.db")))[0]
            for one in shards
        ]

        def front(index, urls, **options):
            return engine_of(
                of, index, tmp_path / "events.db", shards=urls, shard_key=key, **options
            )

        with pytest.raises(ShardError, match="none of the 2 shards answers") as found:
            front(path, urls[::-1])
        assert "another shard" in found.value.detail
        with pytest.raises(ShardError) as found:
            engine_of(of, path, tmp_path / "events.db", shards=urls)
        assert "answered 401" in found.value.detail and key not in found.value.detail
        with pytest.raises(FormatError, match=r"is shard 1 of 2; .* needs the index"):
            front(shards[0], urls)
        with pytest.raises(ShardError) as found:
            front(path, urls[:1])
        assert "another shard" in found.value.detail
        with pytest.raises(SpecError, match="the URL of shard 2 is 'ftp://x'"):
            front(path, [urls[0], "ftp://x"])
        with contextlib.closing(front(path, urls)) as engine, pytest.raises(SpecError):
            engine.reload(None, None, arms={})


def test_a_shard_that_hangs_costs_one_time_limit():
    """Further requests do not wait for it until a pause is over."""

    class Hangs(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            done.wait(20)

        def log_message(self, *_):
            pass

    done, ended = threading.Event(), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hangs) as server:
        threading.Thread(target=server.serve_forever).start()
        shards = Shards(
            [f"http://127.0.0.1:{server.server_port}"],
            seconds=0.1,
            observe=lambda number, outcome, seconds: ended.append((number, outcome, seconds)),
        )
        (first,) = shards.ask([b"x"])
        (second,) = shards.ask([b"x"])
        done.set()
        server.shutdown()
    assert isinstance(first, ShardError) and "did not answer in time" in str(first)
    assert isinstance(second, ShardError) and "shortly before" in str(second)
    assert shards.down == [1]
    assert [one[:2] for one in ended] == [(1, "failed"), (1, "skipped")]
    assert 0.09 < ended[0][2] < 5 and ended[1][2] < 0.09


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "sent another answer"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", "cannot be reached"),
        (b"nonsense\r\n\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
    ],
)
def test_what_is_no_answer(answer, text):
    def once():
        with bound.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=once)
        thread.start()
        shards = Shards([f"http://127.0.0.1:{bound.getsockname()[1]}"])
        (found,) = shards.ask([b"x"])
        thread.join()
        shards.close()
    assert isinstance(found, ShardError) and text in str(found)
    assert "127.0.0.1" not in str(found) and "127.0.0.1" in found.detail
