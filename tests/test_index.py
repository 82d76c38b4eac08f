"""The index: what it holds is what the model says, and a wrong or damaged one is an error."""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data.canonical import external_id
from limerank.data.counters import COUNTERS
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import DataError, FingerprintError, FormatError, SpecError, UnknownError
from limerank.files import read_json, write_json
from limerank.index import Index, lookup, writing
from limerank.index import items as items_module
from limerank.index.building import build_index
from limerank.index.changes import change_items
from limerank.index.lookup import IdLookup
from limerank.runs.folder import load_run
from tests.catalogues import (
    ITEMS,
    MODELS,
    content,
    data,
    file_of,
    folder,
    forge,
    make_run,
    plain_log,
    shop,
)
from tests.worlds import write_log


@pytest.fixture
def copy(tmp_path):
    """A copy of an index, to be damaged."""
    of = shop("lime-mha")
    path = tmp_path / "copy"
    shutil.copytree(of.index.path, path)
    return path


@pytest.mark.parametrize("model", MODELS)
def test_vectors_are_the_item_tower_s(model):
    of = shop(model)
    with torch.inference_mode():
        vectors = of.run.ranker.item_vectors(of.data.item_batch(np.arange(ITEMS)))
    assert len(of.index) == ITEMS
    np.testing.assert_allclose(of.index.vectors, vectors.numpy(), atol=1e-6)
    np.testing.assert_array_equal(of.index.ids[:], of.data.item_ids)
    assert (of.index.weights is not None) == model.startswith("lime")


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_codes_are_within_half_a_step(model):
    index, ranker = shop(model).index, shop(model).run.ranker
    with torch.inference_mode():
        vectors = torch.from_numpy(np.array(index.vectors))
        terms = writing.encoded(ranker, vectors, shop(model).counted())
    scales = index.scales
    assert index.weights.dtype == np.uint8 and index.terms.dtype == np.int8
    weights, head = (part.numpy() for part in terms)
    slack = 1e-5
    assert (abs(scales.weights(index.weights) - weights) <= scales.weight_step / 2 + slack).all()
    assert (abs(scales.terms(index.terms) - head) <= scales.term_step / 2 + slack).all()
    # Each column uses all of its codes.
    assert (index.weights.min(0) == 0).all() and (index.weights.max(0) == 255).all()
    # Items that were never shown, or that have counters of others, are within the range as well.
    counted = shop(model).counted()
    others = [counted.roll(shift, 0) for shift in (1, len(counted) // 2)]
    with torch.inference_mode():
        new = [
            writing.encoded(ranker, vectors, other)[1].numpy()
            for other in (torch.zeros(1, len(COUNTERS)), *others)
        ]
    codes = [np.round((one - scales.term_middle) / scales.term_step) for one in new]
    codes = np.concatenate([index.terms, *codes])
    assert (codes.min(0) == -127).all() and (codes.max(0) == 127).all()
    np.testing.assert_allclose(scales.weight_mean, index.weights.mean(0), atol=0.6)
    assert index.keys == ranker.config.profile > 0
    away = abs(index.weights - scales.weight_mean)[:, : -index.keys].sum(1)
    assert scales.weight_spread == pytest.approx(away.max(), rel=1e-6)


def test_chunks_do_not_matter(monkeypatch, tmp_path):
    of = shop("lime-xor")
    monkeypatch.setattr(writing, "CHUNK", 7)
    build_index(of.run, tmp_path / "small", data=of.data)
    small = Index.open(tmp_path / "small", verify=True)
    np.testing.assert_allclose(small.vectors, of.index.vectors, atol=1e-6)
    assert abs(small.weights.astype(int) - of.index.weights).max() <= 1
    assert abs(small.terms.astype(int) - of.index.terms).max() <= 1


def test_it_takes_no_more_bytes_than_it_says():
    index = shop("lime-mha", anchors=()).index
    held = sum(path.stat().st_size for path in index.path.iterdir() if path.suffix != ".json")
    c, g, d = index.weights.shape[1], index.terms.shape[1], index.vectors.shape[1]
    counts = 12 * len(index.arrays["counts.i32"]) + 8 * ITEMS
    assert held == ITEMS * (c + g + 4 * d + 4 * len(COUNTERS) + 8 + 8 + 4) + counts


def test_ids_are_found(copy):
    index = Index.open(copy)
    assert index.row_of(17) == index.row_of("17") == index.ids.find(np.array([17]))[0]
    assert index.ids[index.row_of(17)] == 17
    assert (index.ids.find([" 17", "17.0", 17.0, np.float32(17)]) == index.row_of(17)).all()
    wrong = ["017", "1e1", "1 7", "x", 17.5, None, True, 10**30, -(2**63) - 1]
    assert (index.ids.find(wrong) == -1).all()
    with pytest.raises(UnknownError, match="'x'"):
        index.row_of("x")


texts = st.lists(st.text(max_size=12), unique=True, max_size=40)
numbers = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40)


@given(texts, st.lists(st.text(max_size=3), max_size=10))
def test_texts_are_found(held, others):
    values = np.array(held, dtype=object)
    ids = IdLookup.of(values)
    assert ids.text
    assert ids.find(held).tolist() == list(range(len(held)))
    assert ids[:].tolist() == held

    def form(text):
        try:
            return str(external_id("item", text))
        except DataError:
            return text

    expected = [
        held.index(text) if text in held else held.index(form(text)) if form(text) in held else -1
        for text in others
    ]
    assert ids.find(others).tolist() == expected


@given(numbers, st.lists(st.integers(-5, 5), max_size=10))
def test_numbers_are_found(held, others):
    ids = IdLookup.of(np.array(held, dtype=np.int64))
    assert not ids.text
    assert ids.find(held).tolist() == list(range(len(held)))
    expected = [held.index(other) if other in held else -1 for other in others]
    assert ids.find(np.array(others, dtype=np.int64)).tolist() == expected
    assert ids.find([str(other) for other in others]).tolist() == expected


def test_texts_with_the_same_hash_are_distinguished(monkeypatch):
    monkeypatch.setattr(lookup, "hashes", lambda texts: np.zeros(len(texts), np.int64))
    ids = IdLookup.of(np.array(["a", "b", "c"], dtype=object))
    assert ids.find(["c", "b", "x", "a"]).tolist() == [2, 1, -1, 0]
    with pytest.raises(DataError, match="'b'"):
        IdLookup.of(np.array(["a", "b", "c", "b"], dtype=object))


def test_an_id_twice_is_an_error(tmp_path):
    with pytest.raises(DataError, match="7, 9"):
        IdLookup.of(np.array([7, 9, 7, 9, 9, 1]))
    of = shop("two-tower")
    items = pl.read_csv(plain_log() / "items.csv")
    pl.concat([items, items[3:4]]).write_csv(tmp_path / "twice.csv")
    with pytest.raises(DataError, match="more than once: 3"):
        build_index(of.run, tmp_path / "index", items=tmp_path / "twice.csv")
    assert not (tmp_path / "index").exists()


# Wrong and damaged ones


def test_another_model_s_index_is_refused(tmp_path):
    mine, other = shop("lime-mha"), shop("lime-mha", links=4)
    with pytest.raises(FingerprintError, match=mine.index.fingerprint):
        Index.open(mine.index.path, fingerprint=other.run.fingerprint)


def test_a_folder_that_is_not_an_index_is_refused(tmp_path):
    with pytest.raises(FormatError, match="not an index"):
        Index.open(tmp_path / "nothing")
    with pytest.raises(FormatError, match="not an index"):
        Index.open(shop("lime-mha").run.path)


@pytest.mark.parametrize(
    "name", ["vectors.f32", "weights.u8", "terms.i8", "ids.i64", "id_keys.i64", "id_rows.i32"]
)
def test_damage_is_noticed(copy, name):
    file = file_of(copy, name)
    full = file.read_bytes()
    file.write_bytes(full[:-1])
    with pytest.raises(FormatError, match=f"{file.name} has"):
        Index.open(copy)
    file.write_bytes(full[:-1] + bytes([full[-1] ^ 1]))
    Index.open(copy)
    with pytest.raises(FormatError, match=f"{file.name} has changed"):
        Index.open(copy, verify=True)
    file.unlink()
    with pytest.raises(FormatError, match=f"{file.name} is missing"):
        Index.open(copy)


def test_bytes_beyond_do_not_count(copy):
    """What a killed addition would leave behind a file is not part of the index."""
    with open(file_of(copy, "vectors.f32"), "ab") as file:
        file.write(b"half a row")
    assert len(Index.open(copy, verify=True)) == ITEMS


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"rows": ITEMS + 1},
        {"rows": "many"},
        {"items": None},
        {"files": {}},
        {"files": {"other.bin": {"file": "other-1.bin", "shape": [3], "crc32": 0}}},
        {"files": {"ids.i64": {"file": "../ids-1.i64", "shape": [ITEMS], "crc32": 0}}},
        {"files": {"ids.i64": {"file": "terms-1.i8", "shape": [ITEMS], "crc32": 0}}},
        {"scales": None},
        {"scales": {}},
        {"fingerprint": None, "model": 3, "files": None},
    ],
)
def test_a_damaged_manifest_is_noticed(copy, change):
    manifest = read_json(copy / "manifest.json", "an index")
    write_json(copy / "manifest.json", {**manifest, **change})
    with pytest.raises(FormatError, match=r"checksum|format 99"):
        Index.open(copy)
    forge(copy, change)
    with pytest.raises(FormatError):
        Index.open(copy)


def test_hidden_rows_exist_and_are_in_order(copy):
    for rows in ([ITEMS], [-1], [3, 3], [4, 2]):
        data = np.array(rows, np.int32).tobytes()
        entry = {"file": "hidden_rows-1.i32", "shape": [len(rows)], "crc32": zlib.crc32(data)}
        (copy / entry["file"]).write_bytes(data)
        files = read_json(copy / "manifest.json", "an index")["files"]
        forge(copy, {"files": {**files, "hidden_rows.i32": entry}})
        with pytest.raises(FormatError, match="hidden_rows"):
            Index.open(copy)


@given(st.data())
def test_any_manifest_is_read_or_refused(data):
    """Whatever a manifest's values turn into: an index or a FormatError, nothing else."""
    source = shop("lime-mha").index.path
    manifest = json.loads((source / "manifest.json").read_text())
    target = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(target)))
        if not isinstance(target[key], dict) or data.draw(st.booleans()):
            break
        target = target[key]
    junk = st.one_of(
        st.none(), st.integers(-(2**70), 2**70), st.text(max_size=5), st.lists(st.integers(-3, 99))
    )
    target[key] = data.draw(junk)
    path = folder() / "junk"
    if not path.exists():
        shutil.copytree(source, path)
    forge(path, manifest)
    with contextlib.suppress(FormatError):
        Index.open(path)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A small index with rows of every kind, and its files."""
    of, path = shop("lime-mha"), tmp_path_factory.mktemp("changed") / "index"
    items = [
        {"item_id": id, "group": "g1", "tags": None, "length": id, "candidate": 1}
        for id in range(6)
    ]
    build_index(of.run, path, items=items)
    change_items(of.run, path, update=items[1:2], add={**items[0], "item_id": 900}, remove=[3])
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


@settings(max_examples=300)
@given(st.data())
def test_any_damage_is_noticed_or_harmless(changed, data):
    """A byte flipped, a file cut off, removed or longer: the same content, or a FormatError."""
    path, files = changed
    expected = content(Index.open(path, verify=True))
    name = data.draw(st.sampled_from(sorted(files)))
    full = files[name]
    kind = data.draw(st.sampled_from(["flip", "flip", "cut", "removed", "longer"]))
    try:
        if kind == "flip" and full:
            at = data.draw(st.integers(0, len(full) - 1))
            new = full[at] ^ data.draw(st.integers(1, 255))
            (path / name).write_bytes(full[:at] + bytes([new]) + full[at + 1 :])
        elif kind == "cut":
            (path / name).write_bytes(full[: data.draw(st.integers(0, len(full)))])
        elif kind == "removed":
            (path / name).unlink()
        else:
            (path / name).write_bytes(full + data.draw(st.binary(min_size=1, max_size=9)))
        with contextlib.suppress(FormatError):
            assert content(Index.open(path, verify=True)) == expected
    finally:
        (path / name).write_bytes(full)


def test_an_existing_index_stays_without_overwrite(copy):
    of = shop("lime-mha")
    with pytest.raises(FormatError, match="already exists"):
        build_index(of.run, copy, data=of.data)
    build_index(of.run, copy, data=of.data, overwrite=True)
    assert len(Index.open(copy, verify=True)) == ITEMS


def test_the_run_s_own_dataset_is_the_default(tmp_path):
    of = shop("two-tower")
    build_index(of.run.path, tmp_path / "index")
    assert (
        len(Index.open(tmp_path / "index", fingerprint=load_run(of.run.path).fingerprint)) == ITEMS
    )


def test_an_item_that_encodes_to_nan_is_named_an_error(tmp_path):
    run = make_run(tmp_path / "run", data(), model="two-tower")
    with torch.no_grad():
        run.ranker.item_tower.ids.weight[5] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        build_index(run, tmp_path / "index", data=data())


# New items


@pytest.fixture
def table(tmp_path):
    """A newer item table: two known items, one of them changed, and two that nobody knows."""
    frame = pl.DataFrame(
        {
            "item_id": [4, 1000, 6, 1001],
            "group": ["g4", "g1", "g2", "never seen"],
            "tags": ["t1|t4", "t0|new", "t2", ""],
            "length": ["14", "20", "16", ""],
            "title": ["not", "a", "feature", "column"],
        }
    )
    path = tmp_path / "new items.csv"
    frame.write_csv(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_table_of_new_items(tmp_path, table, kind):
    of = shop("lime-mha")
    frame = pl.read_csv(table)
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="," if kind == "csv" else "\t")
    build_index(of.run, tmp_path / "index", items=path)
    new = Index.open(tmp_path / "index", fingerprint=of.run.fingerprint)
    assert new.ids[:].tolist() == [4, 1000, 6, 1001]
    # An unchanged item that training has seen is the same; a changed one is not.
    np.testing.assert_allclose(new.vectors[0], of.index.vectors[of.index.row_of(4)], atol=1e-6)
    assert abs(new.vectors[2] - of.index.vectors[of.index.row_of(6)]).max() > 1e-3
    # A new item is what its content says, without an id of its own.
    ranker, tower = of.run.ranker, of.run.ranker.item_tower
    encoding = of.data.manifest["encoding"]["items"]
    start = {feature["name"]: feature.get("start") for feature in encoding["features"]}
    with torch.inference_mode():
        unknown = tower.ids.weight[0]
        for name in ("group", "tags"):
            unknown = unknown + tower.content.table.weight[start[name]]
        expected = ranker.item_tower.norm(unknown)
    np.testing.assert_allclose(new.vectors[3], expected.numpy(), atol=1e-6)


def test_a_table_merged_with_the_dataset(tmp_path, table):
    of = shop("lime-mha")
    build_index(of.run, tmp_path / "index", data=of.data, items=table, merge=True)
    alone = tmp_path / "alone"
    build_index(of.run, alone, items=table)
    merged, new = Index.open(tmp_path / "index", verify=True), Index.open(alone)
    assert len(merged) == ITEMS + 2
    for id in (4, 6, 1000, 1001):
        np.testing.assert_allclose(
            merged.vectors[merged.row_of(id)], new.vectors[new.row_of(id)], atol=1e-6
        )
    for id in (0, 5, ITEMS - 1):
        np.testing.assert_allclose(
            merged.vectors[merged.row_of(id)], of.index.vectors[of.index.row_of(id)], atol=1e-6
        )


def test_tables_that_cannot_be_used(tmp_path, table):
    of = shop("two-tower")
    frame = pl.read_csv(table)

    def attempt(changed, match, error=DataError):
        changed.write_csv(tmp_path / "bad.csv")
        with pytest.raises(error, match=match):
            build_index(of.run, tmp_path / "index", items=tmp_path / "bad.csv")

    attempt(frame.drop("group"), "no column 'group'; columns found: item_id, tags")
    attempt(frame.with_columns(pl.lit("x7").alias("item_id")), "'x7' is no integer")
    attempt(frame.with_columns(pl.col("item_id") + 0.5), "'4\\.5' is no integer")
    attempt(frame.with_columns(pl.lit(None, pl.String).alias("item_id")), "4 rows of 4 have no")
    frame.with_columns(pl.col("item_id") + 0.5).write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"'4\.5' is no integer"):
        build_index(of.run, tmp_path / "index", items=tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="no file"):
        build_index(of.run, tmp_path / "index", items=tmp_path / "missing.csv")
    spec = {**of.run.manifest["spec"], "items": None}
    plain = replace(of.run, manifest={**of.run.manifest, "spec": spec})
    with pytest.raises(SpecError, match="no item table"):
        build_index(plain, tmp_path / "index", items=table)


def test_no_items_at_all(tmp_path, monkeypatch):
    of = shop("lime-mha")
    items = plain_log() / "items.csv"
    pl.read_csv(items)[:0].write_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no rows"):
        build_index(of.run, tmp_path / "index", items=tmp_path / "none.csv")
    read = items_module.read_table
    monkeypatch.setattr(items_module, "read_table", lambda *given: (read(*given)[0][:0], 0))
    build_index(of.run, tmp_path / "index", items=items)
    index = Index.open(tmp_path / "index", verify=True)
    assert len(index) == 0 and index.vectors.shape == (0, 16) and index.weights.shape == (0, 42)
    assert index.ids.find([1]).tolist() == [-1]


def test_text_ids_from_index_to_ranking(tmp_path):
    spec = write_log(tmp_path / "log", users=12, items=20)
    as_text = (pl.lit("ü") + pl.col("item_id").cast(pl.String)).alias("item_id")
    events = pl.read_parquet(tmp_path / "log" / "events.parquet").with_columns(as_text)
    events.write_parquet(tmp_path / "log" / "events.parquet")
    frame = pl.read_csv(tmp_path / "log" / "items.csv").with_columns(as_text)
    frame.write_csv(tmp_path / "log" / "items.csv")
    prepare(load_spec(spec), tmp_path / "data", base=spec.parent)
    dataset = Dataset(tmp_path / "data")
    run = make_run(tmp_path / "run", dataset, model="lime-xor")
    build_index(run, tmp_path / "index", data=dataset)
    index = Index.open(tmp_path / "index", verify=True)
    assert index.ids.text and index.ids[:].tolist() == dataset.item_ids.tolist()
    assert index.ids[np.array([[1, 0], [2, 2]])].shape == (2, 2)
    assert index.ids[index.row_of("ü7")] == "ü7"
    frame[:5].write_csv(tmp_path / "some.csv")
    build_index(run, tmp_path / "some", items=tmp_path / "some.csv")
    some = Index.open(tmp_path / "some")
    assert some.ids[:].tolist() == [f"ü{item}" for item in range(5)]
    np.testing.assert_allclose(some.vectors[3], index.vectors[index.row_of("ü3")], atol=1e-6)
    build_index(run, tmp_path / "both", items=tmp_path / "some.csv", merge=True)
    assert len(Index.open(tmp_path / "both")) == 20
