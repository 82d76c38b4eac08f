"""Several models in one server: who has which, what changes when arms change, and interleaving."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from limerank.errors import SpecError
from limerank.serving.arms import ArmSpec, checked, choose, parse_arm
from limerank.serving.current import Current
from limerank.serving.engine import Serving
from limerank.serving.interleaving import team_draft
from limerank.serving.stores import SqliteStore
from tests.catalogues import plain_log, shop
from tests.test_server import client_of

START = 1_700_000_000_000
USERS = 10_000
A, B = ("a", 0.9), ("b", 0.1)


def assigned(*shares, salt="s", users=USERS):
    return [choose(shares, user, salt) for user in range(users)]


def moved(before, after):
    return Counter((a, b) for a, b in zip(before, after, strict=True) if a != b)


# The choice


def test_shares_are_within_chance():
    for shares in ((A, B), (("x", 0.2), ("y", 0.3), ("z", 0.5))):
        counts = Counter(assigned(*shares))
        for name, share in shares:
            spread = np.sqrt(USERS * share * (1 - share))
            assert abs(counts[name] - USERS * share) < 4 * spread, (name, counts)


def test_a_user_has_one_arm_in_any_spelling_and_order():
    for user in range(200):
        arms = {choose(pair, id, "s") for id in (user, str(user), float(user)) for pair in
                ((A, B), (B, A))}  # fmt: skip
        assert len(arms) == 1
    assert assigned(A, B) != assigned(A, B, salt="other")


def test_two_arms_exchange_no_more_than_the_share():
    before, after = assigned(A, B), assigned(("a", 0.8), ("b", 0.2))
    changes = moved(before, after)
    assert set(changes) == {("a", "b")}
    assert abs(changes["a", "b"] - 0.1 * USERS) < 4 * np.sqrt(USERS * 0.1 * 0.9)


def test_a_new_arm_takes_users_and_nobody_else_moves():
    before = assigned(A, B)
    changes = moved(before, assigned(("a", 0.72), ("b", 0.08), ("new", 0.2)))
    assert {to for _, to in changes} == {"new"}
    back = moved(assigned(A, B, ("new", 0.25)), before)
    assert {of for of, _ in back} == {"new"}


def test_an_exchange_beside_others_moves_less_than_twice_the_share():
    before = assigned(("a", 0.5), ("b", 0.3), ("c", 0.2))
    after = assigned(("a", 0.4), ("b", 0.4), ("c", 0.2))
    assert 0.1 * USERS * 0.85 < sum(moved(before, after).values()) < 0.2 * USERS


# Configuration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=runs/x,index/x,0.9", ArmSpec("a", 0.9, Path("runs/x"), Path("index/x"))),
        ("ab=a+b,2", ArmSpec("ab", 2.0, mixes=("a", "b"))),
    ],
)
def test_arms_of_the_command_line(text, expected):
    assert parse_arm(text) == expected


@pytest.mark.parametrize(
    "text", ["a", "a=x,0.5", "a=x,y,z,0.5", "a=x,y,much", "a b=x,y,1", "=x,y,1", "a=b+c+d,1"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(SpecError, match="expected NAME=RUN,INDEX,SHARE"):
        parse_arm(text)


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        ((), "expected 1 to 16"),
        ((ArmSpec("a", 1), ArmSpec("a", 1)), "twice"),
        ((ArmSpec("a", 0),), "expected more than 0"),
        ((ArmSpec("a", float("nan")),), "expected more than 0"),
        ((ArmSpec("a", 1), ArmSpec("m", 1, mixes=("a", "b"))), "interleaves 'b'"),
        ((ArmSpec("a", 1), ArmSpec("m", 1, mixes=("a", "a"))), "with itself"),
    ],
)
def test_arms_that_cannot_be_served_are_refused(specs, what):
    with pytest.raises(SpecError, match=what):
        checked(specs)


def test_shares_add_up_to_one():
    least = checked([ArmSpec("a", 1), ArmSpec("b", 1e-6)])
    assert checked(least)[1].share == pytest.approx(1e-6)
    found = checked([ArmSpec("b", 3), ArmSpec("a", 1)])
    assert [(one.name, one.share) for one in found] == [("a", 0.25), ("b", 0.75)]


# Served


def specs(tmp_path, *given):
    """Arms of shares by name, each with a model and an index of its own."""
    models = {"a": "lime-mha", "b": "lime-xor", "c": "two-tower"}
    found = []
    for name, share in given:
        if len(name) > 1:
            found.append(ArmSpec(name, share, mixes=tuple(name)))
            continue
        of, index = shop(models[name]), tmp_path / f"index-{name}"
        if not index.exists():
            shutil.copytree(of.index.path, index)
        found.append(ArmSpec(name, share, of.run.path, index))
    return found


@pytest.fixture
def engine(tmp_path):
    engine = Serving(
        None,
        None,
        SqliteStore(tmp_path / "events.db"),
        arms=specs(tmp_path, ("a", 0.5), ("b", 0.5)),
        salt="test",
        items=plain_log() / "items.csv",
    )
    yield engine
    engine.close()


@pytest.fixture
def client(engine):
    with client_of(engine) as client:
        yield client


def arms_of(client, users=range(40)):
    return {user: client.post("/v1/rank", json={"user": user, "k": 1}).json()["arm"]
            for user in users}  # fmt: skip


def body_of(tmp_path, *given):
    return {
        "arms": {
            spec.name: {"share": spec.share, "interleave": list(spec.mixes)}
            if spec.mixes
            else {"share": spec.share, "run": str(spec.run), "index": str(spec.index)}
            for spec in specs(tmp_path, *given)
        }
    }


def test_each_user_gets_the_ranking_of_the_arm(client, engine, tmp_path):
    runs = {name: shop(model).run.fingerprint for name, model in (("a", "lime-mha"),
            ("b", "lime-xor"))}  # fmt: skip
    for user in range(12):
        client.post("/v1/events", json={"user": user, "item": 3, "time": START, "id": "x"})
        found = client.post("/v1/rank", json={"user": user, "k": 5}).json()
        assert found["arm"] == choose((("a", 0.5), ("b", 0.5)), user, "test")
        assert found["run"] == runs[found["arm"]] and found["ranking"].startswith(found["arm"])
        other = "b" if found["arm"] == "a" else "a"
        forced = client.post("/v1/rank", json={"user": user, "k": 5, "arm": other}).json()
        assert (forced["arm"], forced["run"], forced["events"]) == (other, runs[other], 1)
    assert set(arms_of(client).values()) == {"a", "b"}
    assert client.post("/v1/rank", json={"arm": "z"}).status_code == 404
    logged = client.post("/v1/rank", json={"user": 1, "arm": "a", "log": True})
    assert logged.status_code == 422 and "user's own arm" in logged.text


def test_reloads_change_nobody_s_arm_and_fail_no_request(client, tmp_path):
    before, codes, done = arms_of(client), [], threading.Event()

    def ask():
        while not done.is_set():
            codes.append(client.post("/v1/rank", json={"user": len(codes), "k": 2}).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        same = body_of(tmp_path, ("a", 0.5), ("b", 0.5))
        for _ in range(2):
            answer = client.post("/v1/admin/reload", json=same)
            assert answer.status_code == 200, answer.text
            assert arms_of(client) == before
        more = body_of(tmp_path, ("a", 0.4), ("b", 0.4), ("c", 0.2))
        assert client.post("/v1/admin/reload", json=more).status_code == 200
        changes = moved(before.values(), arms_of(client).values())
        assert {to for _, to in changes} <= {"c"}
        assert client.post("/v1/admin/reload", json=same).status_code == 200
        assert arms_of(client) == before
    finally:
        done.set()
        thread.join()
    assert set(codes) == {200} and codes


def test_ten_thousand_users_stay_in_their_arms(engine, tmp_path):
    before = [engine.arms.of(user).name for user in range(USERS)]
    counts = Counter(before)
    assert abs(counts["a"] - USERS / 2) < 4 * np.sqrt(USERS / 4) and set(counts) == {"a", "b"}
    for _ in range(2):
        engine.arms.configure(specs(tmp_path, ("b", 2), ("a", 2)))
        assert [engine.arms.of(str(user)).name for user in range(USERS)] == before
    engine.arms.reload(None, None, "b")
    assert [engine.arms.of(float(user)).name for user in range(USERS)] == before


def test_an_arm_that_stays_keeps_its_states(engine, tmp_path):
    currents = {name: arm.current for name, arm in engine.arms.arms.items()}
    engine.arms.configure(specs(tmp_path, ("a", 0.3), ("c", 0.7)))
    assert engine.arms.of(None, "a").current is currents["a"]
    assert set(engine.arms.arms) == {"a", "c"} and engine.arms.names == {"a", "b", "c"}
    engine.arms.configure([replace(one, run=None, index=None) for one in
                           specs(tmp_path, ("a", 0.5), ("c", 0.5))])  # fmt: skip
    assert engine.arms.of(None, "a").current is currents["a"]


def test_other_arms_rank_an_item_that_was_acknowledged_while_they_were_loaded(
    engine, tmp_path, monkeypatch
):
    columns = {"item_id": 900, "group": "g1", "tags": "t1", "length": 12.0}

    def verify(current):
        engine.put_items([columns])  # after the new arm has read the store's items

    monkeypatch.setattr(Current, "verify_now", verify)
    engine.arms.configure(specs(tmp_path, ("a", 0.5), ("c", 0.5)))
    for arm in ("a", "c"):
        index = engine.arms.of(None, arm).current.served.index
        assert index.ids.find([900]) >= 0, arm


def test_a_reload_that_is_refused_changes_nothing(client, tmp_path):
    before = client.get("/v1/model").json()
    wrong = body_of(tmp_path, ("a", 0.5), ("b", 0.5))
    wrong["arms"]["b"]["run"] = wrong["arms"]["a"]["run"]  # with the index of another run
    new = {"arms": {"a": {"share": 1}, "d": {"share": 1}}}
    mixed = body_of(tmp_path, ("a", 1))
    mixed["arms"]["m"] = {"share": 1, "interleave": ["a", "b"]}
    run = {"run": wrong["arms"]["a"]["run"]}
    for body, status in ((wrong, 409), (new, 422), (mixed, 422), (run, 422),
                         ({**run, **new}, 422), ({"arm": "z", **run}, 404)):  # fmt: skip
        answer = client.post("/v1/admin/reload", json=body)
        assert answer.status_code == status, (body, answer.text)
    assert client.get("/v1/model").json() == before


def test_one_arm_can_be_reloaded(client, tmp_path):
    of = shop("two-tower")
    shutil.copytree(of.index.path, tmp_path / "other")
    body = {"arm": "b", "run": str(of.run.path), "index": str(tmp_path / "other")}
    assert client.post("/v1/admin/reload", json=body).json()["run"] == of.run.fingerprint
    arms = {one["name"]: one["model"] for one in client.get("/v1/model").json()["arms"]}
    assert arms == {"a": "lime-mha", "b": "two-tower"}
    assert client.get("/v1/model?arm=b").json()["model"] == "two-tower"
    text = client.get("/metrics").text
    assert 'limerank_arm_share{arm="b"} 0.5' in text
    assert f'limerank_arm_info{{arm="b",model="two-tower",run="{of.run.fingerprint}"}}' in text


def test_live_items_and_deletions_reach_all_arms(client, engine):
    item = {"item_id": 777, "group": "g1", "tags": "t1", "length": 12.0}
    assert client.put("/v1/items", json={"items": [item]}).status_code == 200
    for arm in ("a", "b"):
        found = client.post("/v1/rank", json={"arm": arm, "candidates": [777]}).json()
        assert [one["item"] for one in found["items"]] == [777], arm
    assert client.delete("/v1/items/777").status_code == 200
    for arm in ("a", "b"):
        assert (
            client.post("/v1/rank", json={"arm": arm, "candidates": [777, 3]}).json()["items"][0][
                "item"
            ]
            == 3
        )
    client.post("/v1/events", json={"user": "x", "item": 3, "time": START})
    for arm in ("a", "b"):
        assert client.post("/v1/rank", json={"user": "x", "arm": arm}).json()["known"]
    assert client.delete("/v1/users/x").json() == {"forgotten": 1}
    for arm in ("a", "b"):
        assert not client.post("/v1/rank", json={"user": "x", "arm": arm}).json()["known"]


def test_shown_rankings_have_the_arm_of_their_id(client, engine):
    user = next(user for user, arm in arms_of(client).items() if arm == "a")
    for body, arm in (({}, "a"), ({"ranking": "b.x"}, "b"), ({"ranking": "web.7"}, "a"),
                      ({"arm": "old"}, "old")):  # fmt: skip
        answer = client.post("/v1/shown", json={"user": user, "items": [1], **body}).json()
        assert answer["arm"] == arm


def test_one_arm_answers_as_the_model_alone(tmp_path):
    of = shop("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")
    store = SqliteStore(tmp_path / "events.db")
    items = plain_log() / "items.csv"
    alone = Serving(of.run.path, tmp_path / "index", store, items=items)
    two = Serving(
        None, None, store, items=items, arms=specs(tmp_path, ("a", 0.5), ("b", 0.5)), salt="s"
    )
    with client_of(alone) as one, client_of(two) as other:
        one.post("/v1/events", json={"user": 5, "item": 3, "time": START})
        body = {"user": 5, "k": 9, "time": START + 9}
        found = one.post("/v1/rank", json=body).json()
        same = other.post("/v1/rank", json={**body, "arm": "a"}).json()
        assert found["arm"] == "main"
        for key in ("items", "known", "events", "run", "user", "candidates"):
            assert found[key] == same[key], key


# Interleaving


@pytest.mark.parametrize("seed", range(5))
def test_both_teams_have_the_same_chances(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.permutation(30)[:20].tolist(), rng.permutation(30)[:20].tolist()
    at_top = Counter()
    for number in range(400):
        picks = team_draft(first, second, 10, f"{seed}-{number}")
        items, teams = [item for item, _ in picks], [team for _, team in picks]
        assert len(set(items)) == len(items) == 10
        assert teams.count(0) == 5
        for team, ranking in ((0, first), (1, second)):
            own = [item for item, of in picks if of == team]
            assert own == sorted(own, key=ranking.index), "each team picks in its order"
        at_top[teams[0]] += 1
        assert picks == team_draft(first, second, 10, f"{seed}-{number}")
    assert abs(at_top[0] - 200) < 4 * 10
    assert team_draft([1, 2], [2], 9, "s") in ([(1, 0), (2, 1)], [(2, 1), (1, 0)])
    assert team_draft([], [], 5, "s") == []


def test_an_interleaved_arm_merges_both_rankings(tmp_path):
    engine = Serving(
        None,
        None,
        SqliteStore(tmp_path / "events.db"),
        arms=specs(tmp_path, ("a", 0.01), ("b", 0.01), ("ab", 0.98)),
    )
    with client_of(engine) as client:
        user = next(user for user, arm in arms_of(client).items() if arm == "ab")
        body = {"user": user, "k": 10, "time": START}
        found = client.post("/v1/rank", json={**body, "log": True}).json()
        lists = {
            name: [one["item"] for one in client.post("/v1/rank", json={**body, "arm": name})
                   .json()["items"]]
            for name in "ab"
        }  # fmt: skip
        picks = team_draft(lists["a"], lists["b"], 10, found["ranking"])
        assert [(one["item"], one["team"]) for one in found["items"]] == [
            (item, "ab"[team]) for item, team in picks
        ]
        assert [one["rank"] for one in found["items"]] == list(range(1, 11))
        (stored,) = engine.store.exposures(user, START, START + 1)
        assert stored.arm == "ab" and list(stored.teams) == [one["team"] for one in found["items"]]
        (arm,) = [one for one in client.get("/v1/model").json()["arms"] if one["name"] == "ab"]
        assert arm["interleave"] == ["a", "b"]
