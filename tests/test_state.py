"""Live user states: what the server computes of posted events is what evaluation computes."""

from __future__ import annotations

import itertools
import math
import shutil
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data.dataset import Dataset
from limerank.data.events import event_of
from limerank.data.features import item_keys
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.errors import DataError, FingerprintError, FormatError, SpecError, UnknownError
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import add_items, remove_items, update_items
from limerank.index.compaction import compact_index
from limerank.kernels import reference
from limerank.kernels.prefix import carry_of, merged
from limerank.models.profile import Means
from limerank.models.ranker import gather
from limerank.ranking.explain import explain
from limerank.ranking.request import index_keys
from limerank.serving.state import Seen, Stream, UserStates, Window, keyed, updating
from limerank.serving.state.keyed import KeyTable
from limerank.serving.stores import SqliteStore, State
from tests.catalogues import MODELS, Shop, make_run, shop

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
LATER = 1_830_000_000_000
"""After all events."""
EARLY = 1_700_000_000_000


@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path / "events.db") as opened:
        yield opened


def events_of(data: Dataset, user: int, end: int | None = None):
    """A user's events of the log, as they are posted."""
    first, last = data.event_offsets[user : user + 2]
    return [
        event_of(
            {
                "user": data.user_ids[user],
                "item": data.item_ids[data.events["item"][row]],
                "time": int(data.events["time"][row]),
                "labels": {name: float(data.events[f"label_{name}"][row]) for name in data.tasks},
                "id": f"{row:09d}",
            }
        )
        for row in range(first, last if end is None else end)
    ]


def introduce(store, data: Dataset):
    """What the log's user table says of them."""
    if data.manifest["encoding"]["users"]["features"]:
        for user in range(len(data.user_ids)):
            store.set_features(data.user_ids[user], {"country": f"c{data.user_ids[user] % 3}"})


def logits(of: Shop, ready, index=None):
    """Of the first items of the dataset."""
    rows, ranker = np.arange(25), of.run.ranker
    items = of.data.item_batch(rows)
    index_rows = (index or of.index).ids.find(of.data.item_ids[rows])
    keys = item_keys(items.content, of.data.anchored, index_rows)
    counted = (of if index is None else replace(of, index=index)).counted(index_rows)
    with torch.inference_mode():
        extra = ranker.extra(ready.state, keys, torch.arange(25), counted=counted)
        return ranker.score(ready.state, ranker.encode_items(ranker.item_vectors(items)), extra)


def of_requests(of: Shop, store, mode, requests, length=None, posted=None):
    """Events are posted one by one, and each request is answered at its moment: its logits, and
    what evaluation says."""
    states = UserStates(of.run, of.index, store, mode=mode)
    data, found, expected = of.data, [], []
    done = dict.fromkeys(range(len(data.user_ids)), 0)
    for request in requests:
        user = int(data.requests["user"][request])
        first = int(data.requests["first"][request])
        now = int(data.events["time"][first])
        start = int(data.event_offsets[user])
        end = start + int(
            np.searchsorted(data.events["time"][start : data.event_offsets[user + 1]], now)
        )
        for event in events_of(data, user, end)[done[user] :]:
            states.check(event)
            store.append([event])
            done[user] += 1
        ready = states.ready(data.user_ids[user], now=now)
        batch = data.batch(np.array([request]), length)
        with torch.inference_mode():
            expected.append(of.run.ranker(batch)[0])
            vectors = of.run.ranker.item_vectors(batch.items)
            terms = gather(of.run.ranker.encode_items(vectors[: batch.distinct]), batch.candidates)
            # Items have the same rows in the dataset and in its index.
            extra = of.run.ranker.extra(ready.state, batch.users.keys, batch.candidates)
            found.append(of.run.ranker.score(ready.state, terms, extra)[0])
        assert ready.events == batch.users.lengths[0]
        seen_items = np.unique(data.events["item"][start:end])
        assert sorted(of.index.ids[ready.seen].tolist()) == sorted(
            data.item_ids[seen_items].tolist()
        )
    return torch.cat(found), torch.cat(expected), states


@pytest.mark.parametrize(
    ("model", "anchors"),
    [*((model, ()) for model in MODELS), *((m, None) for m in ("lime-mha", "lime-xor", "din"))],
)
def test_a_window_says_what_evaluation_says(model, anchors, store):
    of = shop(model, anchors=anchors)
    introduce(store, of.data)
    requests = np.arange(0, len(of.data.requests["user"]), 7)
    found, expected, states = of_requests(of, store, "window", requests)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert states.made["rebuilds"] <= 30 < states.made["updates"] + 30


@pytest.mark.parametrize("anchors", [(), None])
def test_a_stream_equals_the_full_history(anchors, store):
    of = shop("lime-mha", heads=2, anchors=anchors)
    introduce(store, of.data)
    requests = np.arange(0, len(of.data.requests["user"]), 7)
    assert of.data.history_lengths(requests, 1 << 20).max() > 20, "longer than a window"
    found, expected, states = of_requests(of, store, "streaming", requests, length=1 << 20)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert states.made["rebuilds"] <= 30


@pytest.fixture(scope="module", params=["order", "filtered", "text"])
def odd(request, tmp_path_factory):
    """Logs without a clock, with filtered events, with text ids and event features."""
    folder = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    prefix = "i" if request.param == "text" else ""
    rows = [
        {
            "user_id": user,
            "item_id": f"{prefix}{item}" if prefix else int(item),
            "time": 1_700_000_000 + 5_000 * position,
            "pos": position,
            "click": int(item % 3 == user % 3),
            "tab": f"t{item % 4}",
            "price": float(item) / 3,
            "watch": float(item),
            "length": 20.0,
        }
        for user in range(8)
        for position, item in enumerate(rng.integers(0, 25, int(rng.integers(5, 60))))
    ]
    pl.DataFrame(rows).write_parquet(folder / "events.parquet")
    order = {"order": "pos"} if request.param == "order" else {"time": "time"}
    spec = Spec.model_validate(
        {
            "name": "odd",
            "events": [{"files": ["events.parquet"], **order}],
            "labels": [
                {"name": "click", "kind": "binary"},
                {"name": "watch", "kind": "duration", "cap": 15.0, "of": "length"},
            ],
            "event_features": [
                {"name": "tab", "kind": "categorical", "when": "context"},
                {"name": "price", "kind": "numeric"},
            ],
            "split": {"by": "position"},
            "history": {"length": 12, **({"keep": "click"} if request.param == "filtered" else {})},
        }
    )
    prepare(spec, folder / "data", base=folder)
    data, found = Dataset(folder / "data"), {}
    for model in ("lime-mha", "lime-xor"):
        run = make_run(folder / model, data, model=model, anchors=None)
        build_index(run, folder / f"{model}-index", data=data)
        found[model] = Shop(data, run, Index.open(folder / f"{model}-index"))
    return rows, found


@pytest.mark.parametrize(
    ("model", "mode"), [("lime-mha", "window"), ("lime-mha", "streaming"), ("lime-xor", "window")]
)
def test_logs_of_all_kinds(odd, model, mode, store):
    """Raw values as they are posted become the columns that preparation made."""
    rows, shops = odd
    of = shops[model]
    data = of.data
    states = UserStates(of.run, of.index, store, mode=mode)
    time = "time" if data.clock else "pos"
    scale = 1000 if data.clock else 1
    for user in range(8):
        mine = [row for row in rows if row["user_id"] == user]
        for row in mine[:-1]:
            event = event_of(
                {
                    "user": row["user_id"],
                    "item": row["item_id"],
                    "time": row[time] * scale,
                    "labels": {"click": row["click"], "watch": row["watch"]},
                    "ratios": {"watch": row["watch"] / row["length"]},
                    "features": {"price": row["price"]},
                    "context": {"tab": row["tab"]},
                }
            )
            states.check(event)
            store.append([event])
            states.ready(user)
        last = int(data.event_offsets[np.flatnonzero(data.user_ids == user)[0] + 1]) - 1
        request = np.flatnonzero(data.requests["first"] <= last)
        request = request[np.argmax(data.requests["first"][request])]
        first = int(data.requests["first"][request])
        if first != last:  # the last event shares its request with some before it
            with store_of(store, user, events_of_rows(mine, time, scale, last - first + 1)) as part:
                states = UserStates(of.run, of.index, part, mode=mode)
                check_request(of, states, user, request, mode, mine[-(last - first + 1)])
            states = UserStates(of.run, of.index, store, mode=mode)
        else:
            check_request(of, states, user, request, mode, mine[-1])


def events_of_rows(rows, time, scale, without):
    return [
        event_of(
            {
                "user": row["user_id"],
                "item": row["item_id"],
                "time": row[time] * scale,
                "labels": {"click": row["click"], "watch": row["watch"]},
                "ratios": {"watch": row["watch"] / row["length"]},
                "features": {"price": row["price"], "tab": row["tab"]},
            }
        )
        for row in rows[: len(rows) - without]
    ]


def store_of(store, user, events):
    fresh = SqliteStore(store.path.with_name(f"{user}.db"))
    fresh.append(events)
    return fresh


def check_request(of, states, user, request, mode, row):
    data = of.data
    first = int(data.requests["first"][request])
    now = int(data.events["time"][first])
    ready = states.ready(user, now=now, context={"tab": row["tab"]})
    batch = data.batch(np.array([request]), None if mode == "window" else 1 << 20)
    assert ready.events == batch.users.lengths[0]
    with torch.inference_mode():
        vectors = of.run.ranker.item_vectors(batch.items)
        terms = gather(of.run.ranker.encode_items(vectors[: batch.distinct]), batch.candidates)
        extra = of.run.ranker.extra(ready.state, batch.users.keys, batch.candidates)
        found, expected = of.run.ranker.score(ready.state, terms, extra), of.run.ranker(batch)
    torch.testing.assert_close(found, expected, **TOLERANCE)


# Any events in any order


post = st.tuples(
    st.integers(0, 95),  # some of the items are not in the index
    st.one_of(st.integers(0, 20), st.integers(0, 300 * 86_400), st.integers(-(10**9), 10**8)),
    st.sampled_from([{}, {"click": 1}, {"click": 0, "watch": 3.5}]),
)


@pytest.mark.parametrize("anchors", [(), None])
@settings(max_examples=25)
@given(st.lists(post, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_order_makes_no_difference(tmp_path_factory, anchors, given_events, rng):
    of = shop("lime-mha", anchors=anchors)
    events = [
        event_of(
            {"user": 1, "item": item, "time": EARLY + 1000 * at, "labels": labels, "id": position}
        )
        for position, (item, at, labels) in enumerate(given_events)
    ]
    newest = max(EARLY, *(event.time for event in events)) + 1
    folder = tmp_path_factory.mktemp("order")
    found = {"streaming": [], "window": []}
    for round in range(2):
        with SqliteStore(folder / f"{round}.db") as store:
            store.set_features(1, {"country": "c1"})
            makers = [
                UserStates(of.run, of.index, store, mode=mode, keep=bool(round)) for mode in found
            ]
            at = 0
            while at < len(events):
                size = rng.randint(1, 4)
                store.append(events[at : at + size])
                at += size
                for states in makers:
                    if rng.random() < 0.7:
                        states.ready(1, now=newest)
            for states in makers:
                found[states.mode].append(logits(of, states.ready(1, now=newest + 5)))
        rng.shuffle(events)
    torch.testing.assert_close(*found["window"], atol=0, rtol=0)
    torch.testing.assert_close(*found["streaming"], **TOLERANCE)
    if len(events) <= 20:
        torch.testing.assert_close(found["streaming"][0], found["window"][0], **TOLERANCE)


@settings(max_examples=60)
@given(st.data())
def test_carries_of_any_parts_are_the_reference_s(data):
    """Ages from milliseconds to centuries, rates from none to steep, parts in any order."""
    n = data.draw(st.integers(1, 12))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    heads, links, e = 2, 3, 4
    q, k, v = (torch.randn(heads, size, e, generator=g) * 2 for size in (links, n, n))
    rate = torch.rand(heads, links, generator=g) * data.draw(st.sampled_from([0.0, 0.05, 2.0]))
    days = st.floats(-40_000, 80_000) | st.floats(20_000, 20_000.001)
    time = torch.tensor(
        sorted(data.draw(st.lists(days, min_size=n, max_size=n))), dtype=torch.float64
    )
    carries = []
    cuts = sorted(data.draw(st.sets(st.integers(1, n), max_size=4)) | {0, n})
    order = data.draw(st.permutations(range(n)))
    for first, end in itertools.pairwise(cuts):
        some = torch.tensor(order[first:end])
        at = time[some].max()
        age = (at - time[some]).float()
        carries.append(carry_of(q, k[:, some], v[:, some], rate, age, at))
    found = carries[0]
    for other in carries[1:]:
        found = merged(found, other, rate)
    assert found.time == time.max() and found.log.isfinite().all()
    age = (time.max() - time).float()
    expected = reference.link_attention(
        q[None], k[None], v[None], rate, age[None], torch.tensor([n])
    )[0]
    torch.testing.assert_close(found.mean, expected, atol=2e-4, rtol=1e-4)


def test_years_of_single_events_stay_exact():
    """20,000 updates, an event of long ago now and then."""
    g = torch.Generator().manual_seed(0)
    n, links, e = 20_000, 4, 8
    q, k, v = (torch.randn(1, size, e, generator=g) for size in (links, n, n))
    rate = torch.tensor([[0.0, 1e-3, 0.1, 3.0]])
    time = torch.rand(n, generator=g).double().cumsum(0)
    time[::50] = time[::50] * 0.5
    found = None
    for at in range(n):
        one = carry_of(q, k[:, at : at + 1], v[:, at : at + 1], rate, torch.zeros(1), time[at])
        found = one if found is None else merged(found, one, rate)
    share = (-rate[0][:, None] * (time.max() - time)).softmax(-1)
    alike = torch.nn.functional.silu((q[0] @ k[0].T / e**0.5).double())
    expected = (alike * share) @ v[0].double()
    torch.testing.assert_close(found.mean[0].double(), expected, atol=2e-5, rtol=1e-4)


def test_the_page_s_example_runs(tmp_path, monkeypatch):
    of = shop("lime-mha")
    page = Path(__file__).parents[1] / "docs" / "state.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    code = code.replace("runs/shop", str(of.run.path)).replace("index/shop", str(of.index.path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["ready"].events == 1 and len(names["ready"].seen) == 1
    names["store"].close()


# Once per change


@pytest.mark.parametrize(
    ("model", "mode"), [("lime-mha", "streaming"), ("lime-mha", "window"), ("lime-xor", "window")]
)
def test_a_stage_is_computed_once_per_change(model, mode, store):
    of = shop(model)
    events = events_of(of.data, 0)
    store.append(events[:-1])
    states = UserStates(of.run, of.index, store, mode=mode)
    user, now = events[0].user, events[-1].time + 1
    one = states.ready(user, now=now)
    assert states.made == {"stages": 1, "rebuilds": 1, "updates": 0}
    later = states.ready(user, now=now + 86_400_000 * 40)
    assert states.made["stages"] == 1, "the context enters through the head alone"
    assert not torch.equal(one.state.head, later.state.head)
    assert one.state.links is later.state.links
    again = states.ready(user, now=now + 86_400_000 * 40 + 1)
    assert again.state is later.state, "nothing of the request is another"
    assert torch.equal(states.ready(user, now=now).state.head, one.state.head)
    store.append(events[-1:])
    states.ready(user, now=now)
    assert states.made == {"stages": 2, "rebuilds": 1, "updates": 1}
    store.append(events)
    states.ready(user, now=now)
    assert states.made["stages"] == 2, "duplicates change nothing"


def test_a_context_that_its_owner_changes_is_another(odd, store):
    """The state of the request before is compared with what was asked then, not with what became
    of the caller's mapping."""
    rows, shops = odd
    of = shops["lime-mha"]
    states = UserStates(of.run, of.index, store)
    store.append([event_of({"user": 1, "item": rows[0]["item_id"], "time": 5, "id": "a"})])
    context = {"tab": "t2"}
    before = states.ready(1, now=LATER, context=context).state.head.clone()
    context["tab"] = "t1"
    found = states.ready(1, now=LATER, context=context).state.head
    assert not torch.equal(found, before)
    assert torch.equal(found, states.ready(1, now=LATER, context={"tab": "t1"}).state.head)


def test_another_context_is_another_stage_of_other_models(store):
    of = shop("two-tower")
    events = events_of(of.data, 0)
    store.append(events)
    states = UserStates(of.run, of.index, store)
    now = events[-1].time + 1
    found = [logits(of, states.ready(events[0].user, now=at)) for at in (now, now, now + 7_200_000)]
    assert states.made["stages"] == 2 and not torch.equal(found[0], found[2])


def test_memory_is_bounded(store):
    of = shop("lime-mha")
    for user in range(30):
        store.append(events_of(of.data, user))
    states = UserStates(of.run, of.index, store, mode="streaming", memory=100_000)
    for user in of.data.user_ids[:30]:
        states.ready(user)
        count, size = states.users_in_memory
        assert size <= 100_000 and count >= 1
    assert 2 < count < 30
    states.ready(of.data.user_ids[0])
    assert states.made["rebuilds"] == 31, "it had left"
    tiny = UserStates(of.run, of.index, store, memory=0)
    tiny.ready(of.data.user_ids[0]), tiny.ready(of.data.user_ids[1])
    assert tiny.users_in_memory[0] == 1


# Stored states


@pytest.mark.parametrize("anchors", [(), None])
@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_stored_states_are_found_again(mode, anchors, store, tmp_path):
    of = shop("lime-mha", anchors=anchors)
    events = events_of(of.data, 4)
    user, now = events[0].user, events[-1].time + 1
    store.append(events[:-2])
    first = UserStates(of.run, of.index, store, mode=mode, keep=True)
    first.ready(user)
    store.append(events[-2:])
    second = UserStates(of.run, of.index, store, mode=mode, keep=True)
    found = second.ready(user, now=now)
    assert second.made == {"stages": 1, "rebuilds": 0, "updates": 1}
    with SqliteStore(tmp_path / "other.db") as other:
        other.append(events)
        expected = UserStates(of.run, of.index, other, mode=mode).ready(user, now=now)
    torch.testing.assert_close(logits(of, found), logits(of, expected), **TOLERANCE)
    assert found.seen.tolist() == expected.seen.tolist() and found.events == expected.events


def test_all_states_are_rebuilt_in_bulk(store):
    of = shop("lime-mha")
    for user in range(5):
        store.append(events_of(of.data, user))
    states = UserStates(of.run, of.index, store, mode="streaming")
    assert states.rebuild() == 5 and states.rebuild() == 0
    store.append([event_of({"user": of.data.user_ids[0], "item": 3, "time": 5})])
    assert states.rebuild(["nobody"]) == 0 and states.rebuild() == 1
    fresh = UserStates(of.run, of.index, store, mode="streaming")
    fresh.ready(of.data.user_ids[0])
    assert fresh.made["rebuilds"] == 0


@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_a_damaged_state_is_rebuilt(mode, store):
    of = shop("lime-mha")
    store.append(events_of(of.data, 0))
    user = events_of(of.data, 0)[0].user
    states = UserStates(of.run, of.index, store, mode=mode, keep=True)
    expected = logits(of, states.ready(user, now=LATER))
    good = store.state(user, states.kind)
    for data in (good.data[:-1], b"", good.data[:20], b"\0" + good.data[1:], good.data + b"\0"):
        assert store.put_state(user, states.kind, State(good.fingerprint, good.version, data))
        fresh = UserStates(of.run, of.index, store, mode=mode)
        torch.testing.assert_close(logits(of, fresh.ready(user, now=LATER)), expected, **TOLERANCE)
        assert fresh.made["rebuilds"] == 1


def test_a_foreign_fingerprint_is_never_used(store):
    """Another model, other features, an index with another item: the state is rebuilt."""
    of, other = shop("lime-mha"), shop("lime-mha", links=7)
    events = events_of(of.data, 0)
    user, now = events[0].user, events[-1].time + 1
    store.append(events)
    first = UserStates(of.run, of.index, store, mode="streaming", keep=True)
    plain = logits(of, first.ready(user, now=now))
    second = UserStates(other.run, other.index, store, mode="streaming", keep=True)
    second.ready(user, now=now)
    assert second.made["rebuilds"] == 1
    # Other features, in a process that has the state in memory, and in one that has not.
    store.set_features(user, {"country": "c2"})
    again = logits(of, first.ready(user, now=now))
    assert not torch.allclose(plain, again) and first.made["rebuilds"] == 2
    fresh = UserStates(of.run, of.index, store, mode="streaming")
    torch.testing.assert_close(logits(of, fresh.ready(user, now=now)), again, **TOLERANCE)
    assert fresh.made["rebuilds"] == 0, "the first one has stored it"
    # A window holds raw events: any model reads it.
    UserStates(of.run, of.index, store, keep=True).ready(user)
    window = UserStates(other.run, other.index, store)
    window.ready(user)
    assert window.made["rebuilds"] == 0


@pytest.mark.parametrize("anchors", [(), None])
def test_items_come_and_change(anchors, store, tmp_path):
    """An unknown item of a history is one of which nothing is known, until the index holds it."""
    of = shop("lime-mha", anchors=anchors)
    shutil.copytree(of.index.path, tmp_path / "index")
    item = {"item_id": 900, "group": "g1", "tags": "t1", "length": 12.0}
    events = [
        *events_of(of.data, 0),
        event_of({"user": 0, "item": 900, "time": 1_800_000_000_000, "labels": {"click": 1}}),
    ]
    user = events[0].user
    store.append(events[:-1])
    store.append([event_of({"user": user, "item": 900, "time": 1_800_000_000_000})])
    index = Index.open(tmp_path / "index", of.run.fingerprint)
    both = [UserStates(of.run, index, store, mode=mode) for mode in ("streaming", "window")]
    before = [logits(of, states.ready(user, now=LATER)) for states in both]
    found = []
    for change in (add_items, update_items, None, compact_index):
        if change is add_items:
            change(of.run, tmp_path / "index", item)
        elif change is update_items:
            change(of.run, tmp_path / "index", {**item, "group": "g3", "length": 99.0})
        elif change is None:
            add_items(of.run, tmp_path / "index", {**item, "item_id": 901})
        else:
            change(tmp_path / "index")
        index = Index.open(tmp_path / "index", of.run.fingerprint)
        for states in both:
            states.use_index(index)
        now = [states.ready(user, now=LATER) for states in both]
        assert index.row_of(900) in now[0].seen and (now[0].seen == now[1].seen).all()
        found.append([logits(of, ready, index) for ready in now])
        for mode, one in zip(("streaming", "window"), found[-1], strict=True):
            fresh = UserStates(of.run, index, store, mode=mode).ready(user, now=LATER)
            torch.testing.assert_close(one, logits(of, fresh, index), **TOLERANCE)
    known, updated, more, compacted = found
    assert not torch.allclose(before[0], known[0]) and not torch.allclose(known[0], updated[0])
    assert torch.equal(updated[0], more[0]), "an item more changes no state"
    torch.testing.assert_close(updated[0], compacted[0], **TOLERANCE)
    assert both[0].made["rebuilds"] == 4, "first, known, updated, compacted"
    with pytest.raises(FingerprintError, match="was built by the model"):
        both[0].use_index(shop("lime-xor").index)


@pytest.mark.parametrize("anchors", [(), None])
@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_a_change_of_items_that_a_user_has_not_seen_computes_nothing(
    mode, anchors, store, tmp_path
):
    of = shop("lime-mha", anchors=anchors)
    shutil.copytree(of.index.path, tmp_path / "index")
    events = events_of(of.data, 0)
    store.append(events)
    user, seen_items = events[0].user, {event.item for event in events}
    ids = [int(id) for id in of.index.ids[:]]
    other, mine = next(id for id in ids if id not in seen_items), events[-1].item
    index = Index.open(tmp_path / "index", of.run.fingerprint)
    states = UserStates(of.run, index, store, mode=mode)
    states.ready(user, now=LATER)
    item = {"group": "g1", "tags": "t1", "length": 12.0}
    for change, stages in (
        (lambda: add_items(of.run, index.path, {**item, "item_id": 900}), 1),
        (lambda: update_items(of.run, index.path, {**item, "item_id": other}), 1),
        (lambda: remove_items(index.path, [other]), 1),
        (lambda: remove_items(index.path, [mine]), 1),  # its vector is what it was
        (lambda: add_items(of.run, index.path, {**item, "item_id": mine}), 2),
        (lambda: update_items(of.run, index.path, {**item, "item_id": mine, "length": 99.0}), 3),
        (lambda: compact_index(index.path), 4),
    ):
        change()
        states.use_index(Index.open(index.path, of.run.fingerprint))
        found, fresh = (
            one.ready(user, now=LATER)
            for one in (states, UserStates(of.run, states.index, store, mode=mode))
        )
        assert states.made["stages"] == stages
        assert (found.seen == fresh.seen).all()
        both = [logits(of, ready, states.index) for ready in (found, fresh)]
        torch.testing.assert_close(*both, **TOLERANCE)


# Users nobody knows, and bad input


@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_users_nobody_knows(mode, store):
    of = shop("lime-mha")
    states = UserStates(of.run, of.index, store, mode=mode)
    found = [states.ready(user, now=LATER) for user in ("nobody", None, 10**9)]
    assert all(not one.known and one.events == 0 and not len(one.seen) for one in found)
    assert states.made["stages"] == 1, "they share one"
    empty = of.data.batch(
        np.flatnonzero(of.data.requests["history_end"] == of.data.requests["history_start"])[:1]
    )
    with torch.inference_mode():
        state = of.run.ranker.encode_users(empty.users, of.run.ranker.item_vectors(empty.items))
    assert found[0].state.links.shape == state.links.shape
    store.set_features("new", {"country": "c1"})  # known, without events
    ready = states.ready("new", now=LATER)
    assert ready.known and ready.events == 0
    assert not torch.allclose(ready.state.links, found[0].state.links)


def test_a_history_given_here(store):
    of = shop("lime-xor")
    events = events_of(of.data, 2)
    store.append(events)
    states = UserStates(of.run, of.index, store)
    history = [{"item": event.item, "time": event.time, "labels": event.labels} for event in events]
    now = events[-1].time + 1
    found = states.given(history, now=now)
    expected = states.ready(events[0].user, now=now)
    torch.testing.assert_close(logits(of, found), logits(of, expected), **TOLERANCE)
    assert (found.seen == expected.seen).all() and not found.known
    assert states.given([], features={"country": "c2"}).events == 0
    assert states.given([3, 10_000]).events == 2, "an item that nobody knows"
    for wrong in (
        [{"time": 3}],
        [{"item": 1, "time": math.nan}],
        [{"item": 1, "labels": {"click": 2}}],
    ):
        with pytest.raises(DataError):
            states.given(wrong)


def test_explanations_read_the_same_events(store):
    of = shop("lime-mha")
    events = events_of(of.data, 0)
    store.append(events)
    states = UserStates(of.run, of.index, store)
    past = states.past(events[0].user, now=events[-1].time + 1)
    assert past.items == [event.item for event in events[-20:]]
    vectors = torch.from_numpy(np.array(of.index.vectors[:2]))
    weights, keys = np.array([1, 0], np.float32), index_keys(of.index, np.arange(2))
    (first, _) = explain(
        of.run.ranker, past, ["a", "b"], vectors, weights, keys=keys, counted=of.counted([0, 1])
    )
    assert sum(event.share for event in first.events) == pytest.approx(1, abs=1e-4)
    assert states.past("nobody").items == []


@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_only_events_before_a_given_time_count(mode, store, tmp_path, monkeypatch):
    """For users of the store as for histories that are given, in rankings and explanations."""
    of = shop("lime-mha")
    introduce(store, of.data)
    user = of.data.user_ids[1]
    events = events_of(of.data, 1)
    store.append(events)
    now = events[len(events) // 2].time
    before = [event for event in events if event.time < now]
    states = UserStates(of.run, of.index, store, mode=mode)
    everything = states.ready(user)
    with SqliteStore(tmp_path / "past.db") as past:
        introduce(past, of.data)
        past.append(before)
        expected = UserStates(of.run, of.index, past, mode=mode).ready(user, now=now)
    found = states.ready(user, now=now)
    torch.testing.assert_close(logits(of, found), logits(of, expected), **TOLERANCE)
    assert found.events == expected.events == len(before) < everything.events
    np.testing.assert_array_equal(found.seen, expected.seen)
    assert states.ready_at_once(user, now=now) is None, "it is read again: not on the event loop"
    asked = []
    held = store.held
    monkeypatch.setattr(
        store, "held", lambda user, since=None: asked.append(since) or held(user, since)
    )
    past = states.past(user, now=now)
    assert len(asked) == 1 and asked[0] is not None, "for an explanation not all events are read"
    monkeypatch.undo()
    assert past.times[-1] == before[-1].time and len(past.times) == min(len(before), of.run.history)
    first = states.ready(user, now=events[0].time)
    assert first.known and first.events == 0 and not len(first.seen)
    assert states.ready(user).events == everything.events
    history = [{"item": e.item, "time": e.time, "labels": e.labels} for e in events]
    given = states.given(history, now=now)
    np.testing.assert_array_equal(given.seen, expected.seen)
    assert given.events == min(len(before), of.run.history)
    for wrong in (now // 1000, now * 1000):
        with pytest.raises(DataError, match="years off the log"):
            states.ready(user, now=wrong)


@pytest.mark.parametrize("hours", [-1, 1, 24 * 30])
@pytest.mark.parametrize("model", ["lime-mha", "mha"])
def test_an_event_of_the_future_is_one_for_users_and_histories_alike(hours, model, store):
    """A request is not made before its newest event, in rankings and in explanations."""
    of = shop(model)
    now = round(time.time() * 1000)
    history = [
        {"item": of.data.item_ids[k].item(), "time": now + at, "labels": {"click": 1}}
        for k, at in enumerate((-7_200_000, hours * 3_600_000))
    ]
    store.append([event_of({"user": 424_242, **one}) for one in history])
    modes = ("window", "streaming") if model == "lime-mha" else ("window",)
    given = UserStates(of.run, of.index, store).given(history)
    for mode in modes:
        states = UserStates(of.run, of.index, store, mode=mode)
        found = states.ready(424_242)
        torch.testing.assert_close(logits(of, found), logits(of, given), **TOLERANCE)
        one, other = states.past(424_242), states.past_given(history)
        assert torch.equal(one.users.context, other.users.context)


def test_numbers_that_float32_cannot_hold_are_the_largest_that_it_can(store):
    of = shop("lime-mha")
    states = UserStates(of.run, of.index, store)
    for value in (1e38, 1e40, 1e308):
        one = event_of({"user": 1, "item": 1, "time": states.form.log_end,
                        "labels": {"watch": value}, "ratios": {"watch": value}})  # fmt: skip
        log = states.form.log([one])
        assert np.isfinite(log.columns["label_watch"]).all()
        assert np.isfinite(log.columns["ratio_watch"]).all()


def test_events_that_the_run_cannot_read(store):
    of = shop("lime-mha")
    states = UserStates(of.run, of.index, store)
    plain = {"user": 1, "item": 10**6, "time": states.form.log_end}
    states.check(event_of(plain))  # an item that the index does not hold yet is no error
    for more, error, message in (
        ({"labels": {"like": 1}}, UnknownError, "no label is called 'like'"),
        ({"labels": {"click": 0.5}}, DataError, "'click' is 0.5, expected 0 or 1"),
        ({"ratios": {"like": 1}}, UnknownError, "no duration label"),
        ({"features": {"tab": 1}}, UnknownError, "no event feature is called 'tab'"),
        ({"time": states.form.log_end // 1000}, DataError, "years off the log.*seconds"),
        ({"time": states.form.log_end * 1000}, DataError, "years off the log.*microseconds"),
    ):
        with pytest.raises(error, match=message):
            states.check(event_of({**plain, **more}))
    # Collected under another model, they are read for what this one knows.
    store.append([event_of({**plain, "labels": {"like": 1, "click": 1}, "features": {"tab": "x"}})])
    assert states.ready(1).events == 1
    with pytest.raises(UnknownError, match="no context feature is called 'tab'"):
        states.ready(1, context={"tab": 1})
    with pytest.raises(UnknownError, match="the user table has no column 'city'; it has 'country'"):
        states.user_features.check({"city": "x"})
    states.user_features.check({"country": None})
    store.set_features(1, {"city": "x", "country": [1]})
    assert states.ready(1).known


def test_wrong_settings(store):
    of, xor = shop("lime-mha"), shop("lime-xor")
    with pytest.raises(SpecError, match="lime-xor has no streaming state"):
        UserStates(xor.run, xor.index, store, mode="streaming")
    with pytest.raises(SpecError, match="no mode 'all'"):
        UserStates(of.run, of.index, store, mode="all")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="length of histories is 0"):
        UserStates(of.run, of.index, store, length=0)
    with pytest.raises(FingerprintError):
        UserStates(of.run, xor.index, store)


def test_a_bounded_store_has_the_state_of_what_it_holds(tmp_path):
    of = shop("lime-mha")
    events = events_of(of.data, 0)
    now = events[-1].time + 1
    with SqliteStore(tmp_path / "a.db", most=6) as some, SqliteStore(tmp_path / "b.db") as last:
        states = UserStates(of.run, of.index, some, mode="streaming", keep=True)
        for event in events:
            some.append([event])
            found = states.ready(event.user, now=now)
        last.append(events[-6:])
        expected = UserStates(of.run, of.index, last, mode="streaming").ready(event.user, now=now)
        torch.testing.assert_close(logits(of, found), logits(of, expected), **TOLERANCE)
        assert found.events == 6 and found.seen.tolist() == expected.seen.tolist()


def test_forgotten_users(store):
    of = shop("lime-mha")
    events = events_of(of.data, 0)
    store.append(events)
    states = UserStates(of.run, of.index, store, keep=True)
    assert states.ready(events[0].user).known
    assert states.forget(events[0].user) and not states.forget(events[0].user)
    assert not states.ready(events[0].user).known and states.users_in_memory[0] == 1
    store.append(events[:1])
    assert states.ready(events[0].user).events == 1


def test_many_threads_see_what_was_acknowledged(store):
    of = shop("lime-mha")
    states = UserStates(of.run, of.index, store, mode="streaming", memory=40_000, keep=True)
    errors = []

    def work(thread):
        try:
            for position, event in enumerate(events_of(of.data, thread)[:12]):
                store.append([event])
                assert states.ready(event.user, now=event.time + 1).events == position + 1
                states.ready("nobody", now=LATER + position)
        except Exception as error:  # noqa: BLE001  (shown by the main thread)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


# Bytes


ids = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.text("abcé", min_size=1, max_size=5))


@given(st.lists(ids, max_size=8), st.integers(0, 3), st.binary(max_size=9))
def test_states_are_what_their_bytes_say(items, heads, order):
    seen = Seen().add(items)
    assert set(seen.integers.tolist()) | set(seen.texts) == set(items)
    carry = None
    if heads:
        g = torch.Generator().manual_seed(heads)
        q, k = torch.randn(heads, 3, 2, generator=g), torch.randn(heads, 1, 2, generator=g)
        carry = carry_of(q, k, k, torch.ones(heads, 3), torch.zeros(1), torch.tensor(2e4))
    texts = tuple(dict.fromkeys(item for item in items if isinstance(item, str)))
    rows = len(texts) + 2 * heads
    keys = KeyTable(
        np.arange(heads), texts, np.arange(heads), *np.arange(3 * rows).reshape(3, rows),
        np.random.default_rng(heads).normal(size=(rows, 3, 8)).astype(np.float32),
        5 * heads,
    )  # fmt: skip
    means = Means(torch.randn(1, 3, 8), torch.randn(1, 3, 4, heads)) if heads else None
    stream = Stream(carry, 7, 2, 90, (-5, order), seen, keys, means)
    found = Stream.unpack(stream.pack())
    assert (found.keys.texts, len(found.keys)) == (texts, rows)
    assert found.keys.positive == 5 * heads
    assert (found.means is None) == (means is None)
    for own, part in zip(found.means or (), means or (), strict=True):
        assert torch.equal(own, part)
    np.testing.assert_array_equal(found.keys.outcomes, keys.outcomes)
    assert found.pack() == stream.pack() and (found.events, found.unknown) == (7, 2)
    assert found.newest == (-5, order) and found.seen.texts == seen.texts
    window = Window(b"packed", 3, seen)
    assert Window.unpack(window.pack()).pack() == window.pack()
    with pytest.raises(FormatError, match="expected b'LRSS' of 4"):
        Stream.unpack(window.pack())


def test_a_stream_has_a_constant_size(store):
    of = shop("lime-mha", anchors=())
    states = UserStates(of.run, of.index, store, mode="streaming")
    sizes = []
    for at in (5, 300):
        store.append([event_of({"user": 1, "item": k % 4, "time": k}) for k in range(at)])
        states.rebuild()
        sizes.append(len(store.state(1, states.kind).data))
    means = 3 * (8 + 4 * of.run.ranker.config.profile) * 4
    assert sizes[0] == sizes[1] < 16 * 5 * 4 + 2 * 5 * 8 + means + 220


def test_keys_of_long_ago_are_dropped_at_the_same_events_whatever_was_read_at_once(
    store, tmp_path, monkeypatch
):
    """A stream has a bounded number of keys, and stays a function of its events."""
    of = shop("lime-mha", anchors=None)
    for module in (keyed, updating):
        monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(keyed, "REMEMBERED", 8)
    rng = np.random.default_rng(0)
    items = [0, 1, *rng.integers(2, 60, 30).tolist(), 1, 2]
    events = [
        event_of({"user": 1, "item": item, "time": EARLY + 1000 * k, "id": f"{k:03d}"})
        for k, item in enumerate(items)
    ]
    states = UserStates(of.run, of.index, store, mode="streaming", keep=True)
    with SqliteStore(tmp_path / "other.db") as other:
        for event in events:
            store.append([event])
            found = states.ready(1, now=LATER)
        other.append(events)
        expected = UserStates(of.run, of.index, other, mode="streaming").ready(1, now=LATER)
    torch.testing.assert_close(logits(of, found), logits(of, expected), **TOLERANCE)
    first = of.run.ranker.shape.item_tokens
    rows = set(of.index.ids.find(items[-8:]).tolist())
    held = found.state.anchored.keys
    own = set((held[held >= first] - first).tolist())
    assert rows <= own and len(own) <= 12 and int(of.index.ids.find([0])[0]) not in own


def test_after_a_late_event_a_stream_with_anchored_links_is_computed_again(store):
    of = shop("lime-mha", anchors=None)
    events = events_of(of.data, 0)
    user = events[0].user
    store.append(events[:2] + events[3:])
    states = UserStates(of.run, of.index, store, mode="streaming")
    states.ready(user, now=LATER)
    store.append(events[2:3])
    found = states.ready(user, now=LATER)
    assert states.made["rebuilds"] == 2
    fresh = UserStates(of.run, of.index, store, mode="streaming").ready(user, now=LATER)
    torch.testing.assert_close(logits(of, found), logits(of, fresh), **TOLERANCE)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_stream_of_an_earlier_format_is_computed_again(store, version):
    of = shop("lime-mha")
    events = events_of(of.data, 0)
    user = events[0].user
    store.append(events)
    states = UserStates(of.run, of.index, store, mode="streaming", keep=True)
    expected = logits(of, states.ready(user, now=LATER))
    held = store.state(user, states.kind)
    body = held.data[:4] + bytes([version]) + held.data[5:-4]
    old = body + zlib.crc32(body).to_bytes(4, "little")
    with pytest.raises(FormatError, match=rf"version {version}, expected b'LRSS' of 4"):
        Stream.unpack(old)
    assert store.put_state(user, states.kind, State(held.fingerprint, held.version, old))
    fresh = UserStates(of.run, of.index, store, mode="streaming")
    torch.testing.assert_close(logits(of, fresh.ready(user, now=LATER)), expected, **TOLERANCE)
    assert fresh.made["rebuilds"] == 1


def test_the_model_and_the_index_of_states_may_be_given_as_folders(tmp_path):
    of = shop("lime-mha")
    with SqliteStore(tmp_path / "events.db") as store:
        states = UserStates(str(of.run.path), of.index.path, store)
        assert states.trained.fingerprint == of.run.fingerprint
        assert states.ready("nobody").known is False
