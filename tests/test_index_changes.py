"""A live index: changes in place against a dictionary, kills at every step, concurrent readers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import DataError, FingerprintError, FormatError, SpecError, UnknownError
from limerank.index import Index, building, changes, read_manifest, reading, scaling
from limerank.index import writing as writing_module
from limerank.index.building import build_index
from limerank.index.changes import (
    add_items,
    change_items,
    put_items,
    remove_items,
    update_items,
)
from limerank.index.compaction import compact_index
from limerank.index.items import of_source
from limerank.index.writing import columns_of, encoded, writing
from limerank.ranking.recommender import Recommender
from limerank.ranking.scorer import ModelScorer, QuantisedScorer
from limerank.runs.folder import load_run
from tests.catalogues import ITEMS, content, folder, make_run, shop
from tests.worlds import write_log

GROUPS = ("g0", "g3", "never seen", None)


def item(id, group="g1", length=20, tags="t1"):
    return {"item_id": id, "group": group, "tags": tags, "length": length}


def vector_of(run, of):
    """What the model says of an item."""
    with torch.inference_mode():
        return run.ranker.item_vectors(of_source(run, of).items(slice(None))).numpy()[0]


@pytest.fixture
def live(tmp_path):
    """A copy of an index, to be changed."""
    path = tmp_path / "live"
    shutil.copytree(shop("lime-mha").index.path, path)
    return path


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A run on a log whose ids are text."""
    path = tmp_path_factory.mktemp("text")
    spec = write_log(path / "log", users=12, items=20)
    as_text = (pl.lit("ü") + pl.col("item_id").cast(pl.String)).alias("item_id")
    events = pl.read_parquet(path / "log" / "events.parquet").with_columns(as_text)
    events.write_parquet(path / "log" / "events.parquet")
    pl.read_csv(path / "log" / "items.csv").with_columns(as_text).write_csv(
        path / "log" / "items.csv"
    )
    prepare(load_spec(spec), path / "data", base=spec.parent)
    return make_run(path / "run", Dataset(path / "data"), model="lime-xor")


# What a change does


def test_an_added_item_is_ranked_by_the_next_reader(live):
    of = shop("lime-mha")
    before = Recommender(of.run, live, of.data)
    change = add_items(of.run, live, item(1000))
    assert (change.added, change.updated, change.removed, change.items) == (1, 0, 0, ITEMS + 1)
    after = Recommender(of.run, live, of.data)
    assert 1000 in {one.id for one in after.rank(k=ITEMS + 1)}
    assert 1000 not in {one.id for one in before.rank(k=ITEMS + 1)}
    assert not before.index.current() and after.index.current()
    with pytest.raises(UnknownError, match="1000"):
        before.rank(candidates=[1000])
    # As good as built with it.
    build_index(of.run, live.parent / "rebuilt", data=of.data, items=[item(1000)], merge=True)
    rebuilt = Recommender(of.run, live.parent / "rebuilt", of.data)
    a, b = ({one.id: one.value for one in r.rank(k=ITEMS + 1)} for r in (after, rebuilt))
    assert a.keys() == b.keys()
    np.testing.assert_allclose([a[id] for id in a], [b[id] for id in a], atol=0.05)


def test_items_are_added_from_a_polars_frame(live):
    of = shop("lime-mha")
    frame = pl.DataFrame([item(1000), item(1001)])
    assert add_items(of.run, live, frame).added == 2
    with pytest.raises(DataError, match="an item is 'item_id', expected a mapping of columns"):
        add_items(of.run, live, ["item_id"])


def test_a_removed_item_is_read_by_histories_and_offered_to_nobody(live):
    of = shop("lime-mha")
    before = Recommender(of.run, live, of.data).rank(history=[7, 9], exclude_seen=False, k=ITEMS)
    assert remove_items(live, [7, "8"]).items == ITEMS - 2
    after = Recommender(of.run, live, of.data)
    ranking = after.rank(history=[7, 9], exclude_seen=False, k=ITEMS)
    assert ranking.events == 2 and ranking.candidates == len(ranking) == ITEMS - 2
    retained = {one.id: one.value for one in ranking}
    assert retained == {one.id: one.value for one in before if one.id not in (7, 8)}
    with pytest.raises(UnknownError, match="1 of 2 candidates were removed from the index: 8"):
        after.rank(candidates=[8, 9])
    with pytest.raises(UnknownError, match=r"1 of 2 items to remove are not in the index .*: 7"):
        remove_items(live, [7, 9])
    # Added again, it has a new row; the old one is nobody's.
    assert add_items(of.run, live, [item(7, "g3")]).added == 1
    again = Index.open(live, verify=True)
    assert again.row_of(7) == ITEMS and again.items == ITEMS - 1
    assert again.removed.tolist() == [of.index.row_of(8)]
    assert again.hidden.tolist() == sorted(of.index.row_of(id) for id in (7, 8))


@pytest.mark.parametrize("scorer", ["auto", "quantised", "model"])
def test_nothing_is_left_to_rank(live, scorer):
    of = shop("lime-mha")
    assert remove_items(live, range(ITEMS)).items == 0
    ranking = Recommender(of.run, live, of.data, scorer=scorer).rank(history=[3], k=5)
    assert len(ranking) == ranking.candidates == 0 and ranking.events == 1
    assert add_items(of.run, live, item(3)).items == 1
    recommender = Recommender(of.run, live, of.data, scorer=scorer)
    assert [one.id for one in recommender.rank(history=[4], k=5)] == [3]


def test_histories_read_an_updated_item_as_it_is_now(live):
    of = shop("lime-mha")
    new = item(7, "g4", 99)
    change = update_items(of.run, live, [new])
    assert (change.added, change.updated, change.items) == (0, 1, ITEMS)
    index = Index.open(live, verify=True)
    np.testing.assert_allclose(index.vectors[index.row_of(7)], vector_of(of.run, new), atol=1e-6)
    recommender = Recommender(of.run, index, of.data)
    ranking = recommender.rank(history=[7], k=ITEMS, exclude_seen=False, explain=1)
    assert len(ranking) == ranking.candidates == ITEMS
    assert sorted(one.id for one in ranking) == list(range(ITEMS))
    for kind in (ModelScorer, QuantisedScorer):
        found = kind(of.run.ranker, index).top(of.state(3), 2 * ITEMS).rows
        assert found.shape == (3, ITEMS) and not np.isin(found, index.hidden).any()


def test_all_of_a_change_or_nothing(live):
    of = shop("lime-mha")
    change = change_items(
        of.run, live, add=item(900), update=[item(3)], put=[item(4), item(901)], remove=[5]
    )
    assert change.text().startswith("2 added, 2 updated, 1 removed; ")
    index, before = Index.open(live, verify=True), content(Index.open(live))
    assert index.items == ITEMS + 1 and index.superseded == 2
    wrong = [
        ({"add": item(3)}, DataError, "1 of 1 items to add are in the index .* already: 3"),
        ({"add": [item(902), item(902)]}, DataError, "given more than once: 902"),
        ({"add": [item(902)], "put": [item(902)]}, DataError, "given more than once: 902"),
        ({"update": [item(3), item(999)]}, UnknownError, "1 of 2 items to update are not in"),
        ({"update": [item(5)]}, UnknownError, "not in the index .*: 5; add them"),
        ({"remove": [3], "update": [item(3)]}, DataError, "removed and encoded in one step: 3"),
        ({"add": [item(902)], "remove": [77777]}, UnknownError, "remove are not in .*: 77777"),
        ({"add": [{"item_id": 1}]}, DataError, "no 'group', 'tags', 'length' but item_id"),
        ({"add": [17]}, DataError, "an item is 17, expected a mapping"),
        ({"add": [item("x7")]}, DataError, "'x7' is no integer"),
        ({"add": [item(None)]}, DataError, "1 rows of 1 have no item id"),
    ]
    for arguments, error, match in wrong:
        with pytest.raises(error, match=match):
            change_items(of.run, live, **arguments)
    with pytest.raises(SpecError, match="give the run"):
        change_items(None, live, add=item(902))
    with pytest.raises(FingerprintError):
        add_items(shop("lime-mha", links=4).run, live, item(902))
    with pytest.raises(FormatError, match="not an index"):
        add_items(of.run, live.parent / "nothing", item(902))
    assert content(Index.open(live, verify=True)) == before
    version = index.version
    for nothing in ({}, {"add": []}, {"remove": []}):
        assert change_items(of.run, live, **nothing).version == version
    assert change_items(of.run, live).text().startswith("nothing to do")


def test_tables_change_an_index(live, tmp_path):
    of = shop("lime-mha")
    pl.DataFrame([item(4, "g0"), item(1000)]).write_csv(tmp_path / "table.csv")
    pl.DataFrame([item(5, "g0"), item(1001)]).write_parquet(tmp_path / "table.parquet")
    assert put_items(of.run.path, live, tmp_path / "table.csv").updated == 1
    assert put_items(of.run.path, Index.open(live), str(tmp_path / "table.parquet")).added == 1
    index = Index.open(live, verify=True)
    for one in (item(4, "g0"), item(1000), item(5, "g0"), item(1001)):
        row = index.row_of(one["item_id"])
        np.testing.assert_allclose(index.vectors[row], vector_of(of.run, one), atol=1e-6)
    pl.DataFrame([item(4)])[:0].write_csv(tmp_path / "table.csv")
    with pytest.raises(DataError, match="no rows"):
        put_items(of.run, live, tmp_path / "table.csv")


def test_an_item_that_encodes_to_nan_changes_nothing(tmp_path):
    of = shop("two-tower")
    shutil.copytree(of.index.path, tmp_path / "live")
    shutil.copytree(of.run.path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    with torch.no_grad():
        run.ranker.item_tower.content.table.weight[:] = float("nan")
    before = content(of.index)
    with pytest.raises(DataError, match="NaN"):
        add_items(run, tmp_path / "live", item(1000))
    assert content(Index.open(tmp_path / "live", verify=True)) == before
    assert add_items(of.run, tmp_path / "live", item(1000)).added == 1


def test_values_beyond_the_range_are_clamped_and_reported(tmp_path):
    of, live = shop("lime-mha"), tmp_path / "live"
    build_index(of.run, live, items=[item(id, "g1", id) for id in (1, 2, 900)])
    assert Index.open(live).manifest["clamped"] == 0
    assert add_items(of.run, live, item(998, "g1", 900)).advice == ()
    change = add_items(of.run, live, [item(1000, None, 1e9, None), item(1001, None, -1e9, None)])
    assert change.clamped > 0.01 and "build the index again" in change.advice[0]
    index = Index.open(live, verify=True)
    assert index.manifest["clamped"] > 0 and index.scales.weight_excess.max() > 0
    with torch.inference_mode():
        vectors = torch.from_numpy(np.array(index.vectors))
        terms = of.run.ranker.encode_items(vectors)
        counted = torch.from_numpy(np.array(index.counters))
        weights, heads = encoded(of.run.ranker, vectors, counted)
    scales = index.scales
    for coded, true, error in (
        (scales.weights(index.weights), weights, scales.weight_error),
        (scales.terms(index.terms), heads, scales.term_error),
    ):
        assert (abs(coded - true.numpy()) <= error + 1e-5).all()
    away = abs(index.weights - scales.weight_mean)[:, : -index.keys].sum(1)
    assert away.max() <= scales.weight_spread * (1 + 1e-6)
    # The scorer's bound holds for them, too: of first-layer sums.
    state, scorer = of.state(4), QuantisedScorer(of.run.ranker, index)
    bound = scorer.bound(state)
    with torch.inference_mode():
        exact = terms.weights @ of.run.ranker.fold(state) + heads + state.head[:, None]
        folded = scorer._requests(state)
        codes = torch.from_numpy(index.weights[:, : -index.keys].astype(np.float32))
        head = torch.from_numpy(index.terms.astype(np.float32) * scales.term_step)
        found = (codes @ folded.codes) * folded.step + head + folded.constant
    assert (abs(found - exact).numpy() <= bound[:, None] + 1e-4).all()


# Against a dictionary

ids = st.integers(0, 11)
some = st.lists(st.tuples(ids, st.sampled_from(GROUPS)), max_size=4, unique_by=lambda pair: pair[0])
steps = st.one_of(
    st.tuples(st.just("put"), some),
    st.tuples(st.just("add"), some),
    st.tuples(st.just("update"), some),
    st.tuples(st.just("remove"), st.lists(ids, max_size=3)),
    st.tuples(st.just("compact"), st.booleans()),
)
VECTORS: dict[object, np.ndarray] = {}


@pytest.mark.parametrize("text", [False, True])
@settings(max_examples=25)
@given(start=some, todo=st.lists(steps, max_size=12))
def test_any_changes_are_those_of_a_dictionary(text_run, text, start, todo):
    run = text_run if text else shop("lime-mha").run
    path = folder() / f"dictionary-{text}"
    name = (lambda id: f"ü{id * 3}") if text else (lambda id: id * 3)
    held: dict[int, str | None] = dict(start)
    removed_ids: dict[int, str | None] = {}
    readers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "TAIL", 3)
        build_index(run, path, items=[item(name(i), g) for i, g in start], overwrite=True)
        for kind, what in todo:
            readers.append((index := Index.open(path), content(index)))
            try:
                if kind == "compact":
                    compact_index(path, forget=what)
                    removed_ids = {} if what else removed_ids
                elif kind == "remove":
                    remove_items(path, [name(i) for i in what])
                    removed_ids |= {i: held.pop(i) for i in dict.fromkeys(what)}
                else:
                    change_items(run, path, **{kind: [item(name(i), g) for i, g in what]})
                    assert kind != "add" or not {i for i, _ in what} & held.keys()
                    assert kind != "update" or {i for i, _ in what} <= held.keys()
                    held |= dict(what)
                    removed_ids = {i: g for i, g in removed_ids.items() if i not in dict(what)}
            except (DataError, UnknownError):
                assert (
                    (kind == "add" and {i for i, _ in what} & held.keys())
                    or (kind == "update" and {i for i, _ in what} - held.keys())
                    or (kind == "remove" and set(what) - held.keys())
                )
            check(run, Index.open(path, run.fingerprint, verify=True), held, removed_ids, name)
        for index, was in readers:
            assert content(index) == was, "a reader keeps the version that it opened"


def check(run, index, held, removed_ids, name):
    known = [*held.items(), *removed_ids.items()]
    assert index.items == len(held) and len(index) == len(known) + index.superseded
    rows = index.ids.find([name(i) for i, _ in known])
    assert (rows >= 0).all() and len(set(rows.tolist())) == len(rows)
    others = [i for i in range(-1, 13) if i not in held and i not in removed_ids]
    assert (index.ids.find([name(i) for i in others]) == -1).all()
    assert index.ids[rows].tolist() == [name(i) for i, _ in known]
    offered = np.setdiff1d(np.arange(len(index)), index.hidden)
    assert sorted(rows[: len(held)].tolist()) == offered.tolist()
    assert sorted(rows[len(held) :].tolist()) == index.removed.tolist()
    for row, (i, group) in zip(rows, known, strict=True):
        key = (run.fingerprint, i, group)
        if key not in VECTORS:
            VECTORS[key] = vector_of(run, item(name(i), group))
        np.testing.assert_allclose(index.vectors[row], VECTORS[key], atol=1e-6)
    if len(rows):
        with torch.inference_mode():
            terms = run.ranker.encode_items(torch.from_numpy(np.array(index.vectors)))
        error = abs(index.scales.weights(index.weights) - columns_of(terms)[0].numpy())
        assert (error <= index.scales.weight_error + 1e-5).all()


def test_compacting_is_advised_and_drops_what_nobody_reads(live):
    of = shop("lime-mha")
    size = sum(file.stat().st_size for file in live.iterdir())
    for _ in range(3):
        change = update_items(of.run, live, [item(id) for id in range(40)])
    assert "120 of 210 rows are old ones" in change.advice[0]
    remove_items(live, range(5))
    before = Index.open(live)
    change = compact_index(live)
    assert change.text().startswith(f"120 old rows dropped; {ITEMS - 5} items")
    after = Index.open(live, verify=True)
    assert (
        len(after) == ITEMS
        and after.superseded == 0
        and after.removed.tolist() == [after.row_of(id) for id in range(5)]
    )
    for id in (0, 4, 7, 80):
        a, b = before.row_of(id), after.row_of(id)
        for part in ("vectors", "weights", "terms"):
            np.testing.assert_array_equal(getattr(before, part)[a], getattr(after, part)[b])
    assert abs(sum(file.stat().st_size for file in live.iterdir()) - size) < 4096
    assert len(compact_index(live, forget=True).advice) == 0
    assert len(Index.open(live, verify=True)) == ITEMS - 5
    with pytest.raises(UnknownError):
        Index.open(live).row_of(4)


# Kills

SCRIPT = """
import json, os, shutil, signal, sys, threading
import torch
torch.set_num_threads(1)
from limerank.index import building
from limerank.index import changes
from limerank.index import writing
from limerank.runs.folder import load_run
from limerank.index.changes import change_items
from limerank.index.compaction import compact_index
from limerank.index.building import build_index

writing.CHUNK, building.SHARD, changes.TAIL = 16, 32, 3
source, work, run, kind, arguments = json.loads(sys.argv[1])
run = load_run(run)

def deadly(name, left, lock):
    original = getattr(os, name)
    def call(*given, **options):
        with lock:
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    original(given[0], given[1][: len(given[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **options)
    setattr(os, name, call)

for step in range(1, 1000):
    path = f"{work}/{step}/index"
    os.makedirs(os.path.dirname(path))
    if source:
        shutil.copytree(source, path)
    child = os.fork()  # nothing here has started a thread yet
    if child == 0:
        left, lock = [step], threading.Lock()
        for name in ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir"):
            deadly(name, left, lock)
        if kind == "change":
            change_items(run, path, **arguments)
        elif kind == "compact":
            compact_index(path)
        else:
            build_index(run, path, **arguments)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        print(step)
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""


def killed(tmp_path, kind, source=None, **arguments):
    """Folders of an index after the same work was killed at each of its steps on the disk; the
    last one is of the work that was let through."""
    given = [source and str(source), str(tmp_path / "work"), str(shop("lime-mha").run.path)]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps([*given, kind, arguments])],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    steps = int(ran.stdout)
    return [tmp_path / "work" / str(step) / "index" for step in range(1, steps + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["few", "many", "remove", "compact", "rebuild"])
def test_a_kill_leaves_the_old_or_the_new(tmp_path, kind):
    run, old = shop("lime-mha").run, tmp_path / "old"
    build_index(run, old, items=[item(id) for id in range(50)])
    put_items(run, old, [item(0, "g3"), item(60)])
    work = {
        "few": ("change", {"put": [item(1, "g3")], "remove": [2]}),
        "many": (
            "change",
            {"put": [item(id, "g3") for id in range(40, 60)]},
        ),  # sorts all ids
        "remove": ("change", {"remove": [3, 60]}),
        "compact": ("compact", {}),
        "rebuild": ("build", {"items": [item(id, "g0") for id in range(70)], "overwrite": True}),
    }[kind]
    paths = killed(tmp_path, work[0], old, **work[1])
    assert len(paths) > 10
    before, after = content(Index.open(old)), content(Index.open(paths[-1]))
    assert before != after
    seen = [content(Index.open(path, run.fingerprint, verify=True)) for path in paths]
    switched = seen.index(after)
    assert switched > 0 and all(one == before for one in seen[:switched])
    assert all(one == after for one in seen[switched:])
    for path in paths:  # the next change is as if nothing had been
        put_items(run, path, [item(900)])
        index = Index.open(path, verify=True)
        assert index.row_of(900) == len(index) - 1
        named = {entry["file"] for entry in index.manifest["files"].values()}
        assert {file.name for file in path.iterdir()} == named | {"manifest.json", ".lock"}


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(tmp_path, monkeypatch):
    run, items = shop("lime-mha").run, [item(id) for id in range(100)]
    paths = killed(tmp_path, "build", items=items)
    full = content(Index.open(paths[-1], verify=True))
    monkeypatch.setattr(writing_module, "CHUNK", 16)
    monkeypatch.setattr(building, "SHARD", 32)
    encoded: list[int] = []
    encode = writing_module.Encoder.__call__

    def counting(self, items):
        encoded[-1] += len(items.ids)
        return encode(self, items)

    monkeypatch.setattr(writing_module.Encoder, "__call__", counting)
    for path in paths:
        if path.exists():  # then it is complete
            assert content(Index.open(path, verify=True)) == full
            continue
        encoded.append(0)
        build_index(run, path, items=items)
        assert content(Index.open(path, verify=True)) == full
        assert [one.name for one in path.parent.iterdir()] == ["index"]
        assert not (path / "building.json").exists()
    assert encoded[0] == 100 and encoded[-1] == 0 and {36, 68} <= set(encoded)
    assert encoded == sorted(encoded, reverse=True)


def test_an_unfinished_build_of_other_things_is_refused(tmp_path, monkeypatch):
    run, items = shop("lime-mha").run, [item(id) for id in range(100)]
    monkeypatch.setattr(writing_module, "CHUNK", 16)
    monkeypatch.setattr(building, "SHARD", 32)
    encode = writing_module.Encoder.__call__

    def stop(self, items):
        if self.codes > 40 * 22:
            raise KeyboardInterrupt
        return encode(self, items)

    out, unfinished = tmp_path / "index", tmp_path / ".index.partial"

    def interrupt(**arguments):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(writing_module.Encoder, "__call__", stop)
            build_index(run, out, **arguments)

    interrupt(items=items)
    assert not out.exists() and unfinished.exists()
    with pytest.raises(FormatError, match="not an index"):
        Index.open(unfinished)
    with pytest.raises(FormatError, match=r"other items .*100 items .*--overwrite to start over"):
        build_index(run, out, items=[*items[:-1], item(99, "g0")])
    with pytest.raises(FormatError, match="other run"):
        build_index(shop("lime-mha", links=4).run, out, items=items)
    build_index(run, out, items=items[:50], overwrite=True)
    assert len(Index.open(out, verify=True)) == 50 and not unfinished.exists()
    # An index that is being replaced is in use until the end, and may be changed after a kill.
    interrupt(items=items, overwrite=True)
    assert len(Index.open(out, verify=True)) == 50 and (out / "building.json").exists()
    put_items(run, out, [item(900)])
    assert len(Index.open(out, verify=True)) == 51 and not (out / "building.json").exists()
    # A damaged state is nothing to resume from.
    interrupt(items=items, overwrite=True)
    (out / "building.json").write_text("{")
    build_index(run, out, items=items, overwrite=True)
    assert len(Index.open(out, verify=True)) == 100
    (tmp_path / "other").mkdir()
    with pytest.raises(FormatError, match="is not an index"):
        build_index(run, tmp_path / "other", items=items, overwrite=True)


def test_scales_come_from_a_sample_of_many(tmp_path, monkeypatch):
    of = shop("lime-xor")
    monkeypatch.setattr(scaling, "SAMPLE", 20)
    build_index(of.run, tmp_path / "index", data=of.data)
    index = Index.open(tmp_path / "index", verify=True)
    scales = index.scales
    with torch.inference_mode():
        counted = torch.from_numpy(np.array(index.counters))
        terms = encoded(of.run.ranker, torch.from_numpy(np.array(index.vectors)), counted)
    weights = terms[0].numpy()
    sample = weights[::5]
    np.testing.assert_allclose(scales.weight_low, sample.min(0), atol=1e-6)
    assert 0 < index.manifest["clamped"] < 0.2 * (index.weights.size + index.terms.size)
    assert (abs(scales.weights(index.weights) - weights) <= scales.weight_error + 1e-6).all()
    assert (abs(scales.terms(index.terms) - terms[1].numpy()) <= scales.term_error + 1e-6).all()


# Several processes


def test_one_writes_at_a_time(live):
    of = shop("lime-mha")
    with writing(live):
        for attempt in (
            lambda: add_items(of.run, live, item(1000)),
            lambda: remove_items(live, [3]),
            lambda: compact_index(live),
            lambda: build_index(of.run, live, data=of.data, overwrite=True),
        ):
            with pytest.raises(FormatError, match="being written by another process"):
                attempt()
        assert len(Index.open(live, verify=True)) == ITEMS
    assert add_items(of.run, live, item(1000)).added == 1


def test_a_reader_that_is_overtaken_opens_the_newer_version(live, monkeypatch):
    run = shop("lime-mha").run
    old = read_manifest(live)
    compact_index(live)
    newer = iter([old])  # it read the manifest just before its files went

    def read(path):
        return next(newer, None) or read_manifest(path)

    monkeypatch.setattr(reading, "read_manifest", read)
    index = Index(live)
    assert index.version == old["version"] + 1 and index.fingerprint == run.fingerprint
    monkeypatch.undo()
    (live / read_manifest(live)["files"]["terms.i8"]["file"]).unlink()
    with pytest.raises(FormatError, match=r"terms.* is missing"):
        Index(live)


@pytest.mark.slow
def test_readers_and_a_writer_at_once(live):
    script = (
        "import sys; from limerank.runs.folder import load_run\n"
        "from limerank.index.changes import put_items\n"
        "from limerank.index.compaction import compact_index\n"
        "run, path = load_run(sys.argv[1]), sys.argv[2]\n"
        "for k in range(60):\n"
        "    row = dict(item_id=1000 + k % 7, group=f'g{k % 5}', tags='t1', length=20)\n"
        "    put_items(run, path, row)\n"
        "    if k % 5 == 4: compact_index(path)\n"
    )
    command = [sys.executable, "-c", script, str(shop("lime-mha").run.path), str(live)]
    versions = set()
    with subprocess.Popen(command) as writer:
        while writer.poll() is None:
            index = Index.open(live, verify=True)
            versions.add(index.version)
            assert ITEMS <= index.items <= ITEMS + 7
            assert len(index) == index.items + index.superseded
            assert index.ids[index.row_of(17)] == 17
        assert writer.returncode == 0
    assert len(versions) > 5
    assert Index.open(live, verify=True).items == ITEMS + 7


# The command line


def test_the_command_line(live, tmp_path, call):
    run = shop("lime-mha").run.path
    pl.DataFrame([item(900), item(901)]).write_csv(tmp_path / "new.csv")
    pl.DataFrame([item(3), item(902)]).write_csv(tmp_path / "put.csv")
    (tmp_path / "removed.txt").write_text("5\n6\n")
    given = ("index", run, "--out", live, "-q")
    status, output, _ = call(*given, "--add", tmp_path / "new.csv", "--remove", "1,2")
    assert status == 0 and f"2 added, 2 removed; {ITEMS} items, version 2" in output
    removed_ids = f"@{tmp_path / 'removed.txt'}"
    status, output, _ = call(*given, "--put", tmp_path / "put.csv", "--remove", removed_ids)
    assert status == 0 and f"1 added, 1 updated, 2 removed; {ITEMS - 1} items" in output
    status, output, _ = call(*given, "--update", tmp_path / "new.csv")
    assert status == 0 and "2 updated" in output
    status, output, _ = call(*given, "--verify")
    assert status == 0 and f"is intact: {ITEMS - 1} items, version 4" in output
    status, output, _ = call(*given, "--compact", "--forget")
    assert status == 0 and "7 old rows dropped" in output
    for wrong, match in (
        (("--add", tmp_path / "new.csv"), "are in the index"),
        (("--remove", "5"), "not in the index"),
        (("--add", tmp_path / "new.csv", "--verify"), "one operation only"),
        (("--overwrite", "--remove", "3"), "one operation only"),
        (("--forget",), "--forget goes with --compact"),
        ((), "already exists"),
    ):
        status, _, output = call(*given, *wrong)
        assert status == 2 and match in output, output
    other = shop("lime-mha", links=4).run.path
    for option in (("--verify",), ("--compact",), ("--remove", "3")):
        status, _, output = call("index", other, "--out", live, *option)
        assert status == 2 and "was built by the model" in output
    names = [entry["file"] for name, entry in read_manifest(live)["files"].items() if "vec" in name]
    file = Path(live / names[0])
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    status, _, output = call(*given, "--verify")
    assert status == 2 and f"{file.name} has changed" in output
    status, output, _ = call("index", "--help")
    assert status == 0 and "--compact" in output


def test_a_table_may_be_a_link_to_a_file_of_another_name(live, tmp_path):
    """As mounted configurations are; and a link in a circle is one line."""
    run = shop("lime-mha").run
    (tmp_path / "versions").mkdir()
    pl.DataFrame([item(900)]).write_csv(tmp_path / "versions" / "3.csv")
    (tmp_path / "new.csv").symlink_to(Path("versions") / "3.csv")
    assert add_items(run, live, tmp_path / "new.csv").added == 1
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(DataError, match=r"no file matches .loop\.csv"):
        add_items(run, live, tmp_path / "loop.csv")
