"""Anchored values in an index: those of the dataset's items, through every change."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data.features import item_keys
from limerank.errors import FormatError
from limerank.files import read_json
from limerank.index import Index, building, writing
from limerank.index.anchors import Anchors, SetEncoder
from limerank.index.building import build_index
from limerank.index.changes import change_items, put_items
from limerank.index.compaction import compact_index
from limerank.index.items import of_source
from limerank.ranking.scorer import ModelScorer
from tests.catalogues import ITEMS, content, file_of, forge, shop


@pytest.fixture(scope="module")
def of():
    return shop("lime-mha", anchors=None)


@pytest.fixture
def live(of, tmp_path):
    shutil.copytree(of.index.path, tmp_path / "live")
    return tmp_path / "live"


def sets(keys, shares, offsets):
    """What each item has, whatever the order."""
    pairs = list(zip(keys.tolist(), shares.tolist(), strict=True))
    ends = itertools.pairwise(offsets)
    return [sorted(pairs[first:last]) for first, last in ends]


def expected(run, data, items):
    """The keys of items given as mappings, with the numbers 0, 1, ..."""
    found = of_source(run, items)
    features = run.ranker.complete(
        item_keys(
            found.content.take(found.rows),
            data.anchored,
            np.arange(len(found), dtype=np.int64),
            found.codes[found.rows],
        )
    )
    return sets(features.keys, features.shares, features.offsets)


def test_the_index_has_the_keys_of_the_dataset(of):
    rows = np.arange(ITEMS)
    true = of.run.ranker.complete(of.data.item_keys(rows))
    found = of.index.anchors.keys(rows)
    assert sets(*found) == sets(true.keys, true.shares, true.offsets)
    assert max(map(len, sets(*found))) > 3  # several tags
    some = np.array([7, -1, 7, 80])
    assert sets(*of.index.anchors.keys(some)) == [
        [] if row < 0 else sets(*found)[row] for row in some
    ]
    assert sets(*of.index.anchors.keys(slice(3, 9))) == sets(*found)[3:9]
    # Equal sets share a number: there are fewer than there are items, but for neighbours.
    assert 1 < shop("lime-mha", anchors=None, neighbours=0).index.anchors.sets < ITEMS
    codes = of.index.anchors.codes_of(some)
    assert codes.keys[codes.offsets[1] - 1] == of.index.anchors.sets + 7
    assert codes.offsets[2] == codes.offsets[1]
    assert of.index.manifest["format"] == 7


def test_an_index_knows_what_its_model_anchors():
    items = shop("lime-mha", anchors=("item",), neighbours=0).index.anchors
    assert items.features == () and items.sets == 1
    assert sets(*items.keys(np.array([4, -1]))) == [[(items.item_tokens + 4, 1.0)], []]
    group = shop("lime-mha", anchors=("group",), neighbours=0)
    assert group.index.anchors.codes.shape == (ITEMS, 1)
    first = group.data.encoding["items"]["features"][0]
    assert group.index.anchors.features == ((first["start"], first["size"]),)
    assert shop("lime-mha", anchors=()).index.anchors is None


def test_changes_and_compaction_keep_every_items_values(of, live):
    new = {"item_id": 900, "group": "g2", "tags": "t1|t3", "length": 9}
    again = {"item_id": 901, "group": "g2", "tags": "t3|t1", "length": 9}
    change_items(of.run, live, add=[new, again], remove=[of.index.ids[4]])
    other = {**new, "item_id": int(of.index.ids[6]), "tags": "t0|t1|t2|t3"}
    put_items(of.run, live, other)
    index = Index.open(live, verify=True)
    full = of.index.anchors.keys(np.arange(ITEMS))
    rows = [index.row_of(item["item_id"]) for item in (new, again, other)]
    true = expected(of.run, of.data, [new, again, other])

    def plain(found, rows, index):
        own = index.anchors.item_tokens
        return [
            [(min(key, own), share) for key, share in of_item if key < own or key == own + row]
            for of_item, row in zip(found, rows, strict=True)
        ]

    assert plain(sets(*index.anchors.keys(np.array(rows))), rows, index) == plain(
        true, range(3), index
    )
    assert index.anchors.codes[rows[0]].tolist() == index.anchors.codes[rows[1]].tolist()
    assert sets(*index.anchors.keys(slice(0, ITEMS))) == sets(*full)
    before = {id: index.row_of(id) for id in index.ids[:].tolist()}
    compact_index(live)
    compact = Index.open(live, verify=True)
    assert compact.anchors.sets <= index.anchors.sets
    for id, row in before.items():
        after = compact.row_of(id)
        assert plain(sets(*compact.anchors.keys(np.array([after]))), [after], compact) == plain(
            sets(*index.anchors.keys(np.array([row]))), [row], index
        )


def test_a_killed_build_resumes_with_its_sets(of, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    monkeypatch.setattr(building, "SHARD", 30)
    monkeypatch.setattr(writing, "CHUNK", 30)
    commit, saved = building._keep, []

    def keep(folder, state):
        commit(folder, state)
        saved.append(state["rows"])
        if state["rows"] == 60:
            raise KilledError

    monkeypatch.setattr(building, "_keep", keep)
    with pytest.raises(KilledError):
        build_index(of.run, tmp_path / "index", data=of.data)
    monkeypatch.setattr(building, "_keep", commit)
    build_index(of.run, tmp_path / "index", data=of.data)
    assert saved == [0, 30, 60]
    index = Index.open(tmp_path / "index", verify=True)
    assert content(index)[-1] == content(of.index)[-1]


def test_an_index_of_format_3_is_refused_by_a_model_with_anchored_links(of, live):
    manifest = read_json(live / "manifest.json", "an index")
    files = {name: entry for name, entry in manifest["files"].items() if "anchor" not in name}
    forge(live, {"format": 3, "anchors": None, "files": files})
    with pytest.raises(FormatError, match=r"index format 3.*build the index again"):
        ModelScorer(of.run.ranker, Index.open(live))
    with pytest.raises(FormatError, match="index format 3"):
        put_items(of.run, live, {"item_id": 900, "group": "g2", "tags": "t1", "length": 9})


def test_an_index_of_format_3_stays_one(tmp_path):
    plain = shop("lime-mha")
    live = tmp_path / "live"
    shutil.copytree(plain.index.path, live)
    forge(live, {"format": 3})
    put_items(plain.run, live, {"item_id": 900, "group": "g2", "tags": "t1", "length": 9})
    compact_index(live)
    assert read_json(live / "manifest.json", "an index")["format"] == 3
    assert len(Index.open(live, verify=True)) == ITEMS + 1


@pytest.mark.parametrize(
    "change",
    [
        {"features": [[1, 2]], "item_tokens": 3},
        {"features": "x", "item_tokens": 3},
        {"item_tokens": 3},
        [],
    ],
)
def test_a_damaged_description_of_anchors_is_noticed(live, change):
    forge(live, {"anchors": change})
    with pytest.raises(FormatError, match="damaged"):
        Index.open(live)


def test_missing_or_cut_tables_are_noticed(live):
    files = read_json(live / "manifest.json", "an index")["files"]
    for name, shape in (("anchor_ends.i64", [1]), ("anchor_shares.f32", [1])):
        forge(live, {"files": {**files, name: {**files[name], "shape": shape}}})
        with pytest.raises(FormatError, match="damaged"):
            Index.open(live)
    forge(live, {"files": files})
    file = file_of(live, "anchor_codes.i32")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="bytes, expected"):
        Index.open(live)


@settings(max_examples=40)
@given(st.data())
def test_codes_are_the_sets_of_a_dictionary(data):
    """However items are cut into chunks, and whatever was numbered before."""
    features = ((0, 6), (10, 4))
    items = data.draw(
        st.lists(
            st.lists(
                st.tuples(st.integers(0, 15), st.sampled_from([1.0, 0.5])),
                max_size=5,
                unique_by=lambda pair: pair[0],
            ),
            max_size=20,
        )
    )
    cut = data.draw(st.integers(0, len(items)))
    none = np.zeros(0)
    encoder = SetEncoder(features, none, none, np.zeros(1, np.int64))
    parts = {"anchor_codes.i32": [], "anchor_tokens.i32": [], "anchor_shares.f32": [],
             "anchor_ends.i64": [np.zeros(1, np.int64)]}  # fmt: skip
    reopen = data.draw(st.booleans())
    for some in (items[:cut], items[cut:]):
        flat = [pair for item in some for pair in item]
        offsets = np.cumsum([0, *map(len, some)])
        found = encoder(
            np.array([token for token, _ in flat], np.int64),
            np.array([share for _, share in flat], np.float32),
            offsets,
        )
        for name, rows in found.items():
            parts[name].append(rows)
        if reopen:
            tables = [np.concatenate(parts[name]) for name in list(parts)[1:]]
            encoder = SetEncoder(features, *tables)
    arrays = {name: np.concatenate(rows) for name, rows in parts.items()}
    anchors = Anchors({"features": features, "item_tokens": 100}, arrays)
    for row, item in enumerate(items):
        for number, (start, size) in enumerate(features):
            true = sorted(pair for pair in item if start < pair[0] < start + size)
            code = anchors.codes[row, number]
            assert sets(*anchors.of_sets(np.array([code])))[0] == true
            assert (code == 0) == (not true)
    distinct = {
        tuple(sorted(pair for pair in item if start < pair[0] < start + size))
        for item in items
        for start, size in features
    }
    assert anchors.sets == len(distinct | {()})
