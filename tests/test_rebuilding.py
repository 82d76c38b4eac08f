"""States of users that are computed before a run is served."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from limerank.cli.app import app
from limerank.index.building import build_index
from limerank.parts import Part
from limerank.serving.rebuilding import drop_states, loaded_states, rebuild_states
from limerank.serving.state import UserStates
from limerank.serving.stores import SqliteStore, ValkeyStore
from tests.catalogues import make_run, shop
from tests.test_state import LATER, events_of, logits
from tests.valkey_server import needs_server, server


@pytest.fixture(params=["sqlite", pytest.param("valkey", marks=needs_server)])
def store(request, tmp_path):
    if request.param == "sqlite":
        with SqliteStore(tmp_path / "events.db") as opened:
            yield opened
    else:
        with server() as running, ValkeyStore(running.url) as opened:
            yield opened


@pytest.fixture
def users(store):
    """Users of a store, with events."""
    of = shop("lime-mha")
    events = [events_of(of.data, user) for user in range(6)]
    for some in events:
        store.append(some)
    return [some[0].user for some in events]


@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_a_server_of_the_new_run_computes_no_user_again(store, users, mode, tmp_path):
    of = shop("lime-mha")
    states = loaded_states(store, of.run.path, of.index.path, mode)
    assert rebuild_states(states) == (6, 6, 0) and rebuild_states(states) == (6, 0, 0)
    store.append(events_of(of.data, 0)[-1:])
    store.append([events_of(of.data, 6)[0]])
    assert rebuild_states(states).written == 1, "a duplicate changes nothing"
    served = UserStates(of.run, of.index, store, mode=mode)
    expected = UserStates(of.run, of.index, store, mode=mode)
    found = [logits(of, served.ready(user, now=LATER)) for user in users]
    assert drop_states(store, set()) == 7
    for user, one in zip(users, found, strict=True):
        torch.testing.assert_close(one, logits(of, expected.ready(user, now=LATER)))
    assert served.made["rebuilds"] == 0 and expected.made["rebuilds"] == len(users)


def test_states_of_two_runs_exist_side_by_side(store, users, tmp_path):
    """A server answers from the present run while the states of the next one are computed."""
    of = shop("lime-mha")
    next_run = make_run(tmp_path / "next", of.data, model="lime-mha", links=4)
    build_index(next_run.path, tmp_path / "index", data=of.data.path)
    old = UserStates(of.run, of.index, store, mode="streaming", keep=True)
    for user in users:
        old.ready(user, now=LATER)
    new = loaded_states(store, next_run.path, tmp_path / "index", "streaming")
    assert new.kind != old.kind and rebuild_states(new).written == 6
    assert rebuild_states(UserStates(of.run, of.index, store, mode="streaming")).written == 0
    assert rebuild_states(new).written == 0
    assert drop_states(store, {new.kind}) == 6 and rebuild_states(new).written == 0


def test_parts_cover_all_users_once(store, users):
    of = shop("lime-mha")
    states = UserStates(of.run, of.index, store, mode="streaming")
    done = [rebuild_states(states, Part(number, 3)) for number in (1, 2, 3)]
    assert sum(one.users for one in done) == sum(one.written for one in done) == 6
    assert rebuild_states(states).written == 0


def test_the_command(users, store):
    of = shop("lime-mha")
    where = store.path if isinstance(store, SqliteStore) else store._server.url
    common = ["--run", of.run.path, "--index", of.index.path, "--store", where, "-q"]

    def run(*words):
        assert CliRunner().invoke(app, ["states", *map(str, words)]).exit_code == 0

    run("rebuild", *common, "--state", "streaming", "--part", "1/2")
    run("rebuild", *common, "--state", "streaming", "--part", "2/2")
    states = UserStates(of.run, of.index, store, mode="streaming")
    assert rebuild_states(states).written == 0
    run("drop", *common, "--state", "window")
    assert rebuild_states(states).written == 6
    wrong = ["states", "make", *map(str, common)]
    assert CliRunner().invoke(app, wrong).exit_code == 2
