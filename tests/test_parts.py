"""Jobs in parts: joined, they are what one process makes, byte for byte."""

from __future__ import annotations

import itertools
import os
import shutil
import tomllib
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.errors import DataError, FormatError, SpecError
from limerank.files import write_json
from limerank.index import Index, writing
from limerank.index import parts as index_parts
from limerank.index.building import build_index
from limerank.index.parts import build_part, join_parts
from limerank.parts import Part, parse_part, parts_folder, read_sealed, sealed, settled
from limerank.validation import validate
from tests.catalogues import MODELS, data, file_of, make_run, plain_log, shop
from tests.worlds import write_log

CHUNK = 16


def bytes_of(path):
    """Name -> bytes of every file of a folder, without its lock file."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name != ".lock"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So that small catalogues have several."""
    monkeypatch.setattr(writing, "CHUNK", CHUNK)


@pytest.fixture
def table(tmp_path):
    """A newer item table: some items of the dataset changed, and new ones."""
    items = pl.read_csv(plain_log() / "items.csv")
    new = items[:40].with_columns(pl.col("item_id") + 500)
    path = tmp_path / "items.csv"
    pl.concat([items[20:57], new]).write_csv(path)
    return path


def built_in_parts(run, out, of, order=None, **arguments):
    for number in order or range(1, of + 1):
        build_part(run, out, Part(number, of), **arguments)
    return join_parts(run, out)


@pytest.mark.parametrize("model", [*MODELS, "anchored"])
def test_joined_parts_are_the_index_of_one_process(model, tmp_path):
    of = shop("lime-mha", anchors=None) if model == "anchored" else shop(model)
    build_index(of.run, tmp_path / "one", data=of.data)
    joined = built_in_parts(of.run, tmp_path / "joined", 4, data=of.data)
    assert bytes_of(tmp_path / "joined") == bytes_of(tmp_path / "one")
    assert joined.manifest == build_index(of.run, tmp_path / "two", data=of.data).manifest
    assert sorted(file.name for file in tmp_path.iterdir()) == ["joined", "one", "two"]


@pytest.mark.parametrize(("merge", "of"), [(False, 3), (True, 4), (True, 12)])
def test_parts_of_a_table_and_in_any_order(table, tmp_path, merge, of):
    """With more parts than chunks, some are empty."""
    run = shop("lime-mha", anchors=None).run
    given = {"items": table, "merge": merge, "data": data() if merge else None}
    build_index(run, tmp_path / "one", **given)
    built_in_parts(run, tmp_path / "joined", of, order=range(of, 0, -1), **given)
    assert bytes_of(tmp_path / "joined") == bytes_of(tmp_path / "one")


def test_parts_of_texts_and_of_what_is_shown(tmp_path):
    spec = write_log(tmp_path / "log", items=60, users=20)
    values = tomllib.loads(spec.read_text())
    for name in ("events.parquet", "items.csv"):
        file = spec.parent / name
        read = pl.read_csv if name.endswith("csv") else pl.read_parquet
        named = read(file).with_columns(pl.format("é{}", "item_id").alias("item_id"))
        (named.write_csv if name.endswith("csv") else named.write_parquet)(file)
    values["items"]["display"] = ["group", "tags"]
    prepare(validate(Spec, values, "texts"), tmp_path / "data", base=spec.parent)
    dataset = Dataset(tmp_path / "data")
    run = make_run(tmp_path / "run", dataset, model="lime-xor")
    build_index(run, tmp_path / "one", data=dataset)
    built_in_parts(run, tmp_path / "joined", 3, data=dataset)
    assert bytes_of(tmp_path / "joined") == bytes_of(tmp_path / "one")
    joined = Index.open(tmp_path / "joined", verify=True)
    assert joined.ids.text and joined.display is not None and joined.row_of("é41") >= 0


def test_parts_at_the_same_time(tmp_path):
    """Whichever computes the scales, all use the same."""
    run = shop("lime-xor").run
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda number: build_part(run, tmp_path / "joined", Part(number, 4), data=data()),
                [1, 2, 2, 3, 4, 4],
            )
        )
    join_parts(run, tmp_path / "joined")
    build_index(run, tmp_path / "one", data=data())
    assert bytes_of(tmp_path / "joined") == bytes_of(tmp_path / "one")


def test_a_complete_part_is_not_computed_again(tmp_path, monkeypatch):
    run, out = shop("lime-mha").run, tmp_path / "index"
    first = build_part(run, out, Part(2, 3), data=data())
    assert first.encoded and first.items == 32 and "32 items" in first.text()
    monkeypatch.setattr(index_parts, "write_index", None)
    monkeypatch.setattr(index_parts, "of_dataset", None)
    again = build_part(run, out, Part(2, 3), data=data())
    assert not again.encoded and again.items == 32 and "already" in again.text()
    assert not out.exists()


def test_a_killed_part_is_computed_again(tmp_path, monkeypatch):
    run, out = shop("lime-mha").run, tmp_path / "index"
    encode = writing.Encoder.__call__
    calls = itertools.count()

    def stop(self, items):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return encode(self, items)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing.Encoder, "__call__", stop)
        build_part(run, out, Part(1, 2), data=data())
    with pytest.raises(FormatError, match=r"lacks 2 of 2 parts: 1/2, 2/2; run them with --part"):
        join_parts(run, out)
    built_in_parts(run, out, 2, data=data())
    build_index(run, tmp_path / "one", data=data())
    assert bytes_of(out) == bytes_of(tmp_path / "one")


def test_parts_of_other_jobs_are_refused(table, tmp_path):
    run, out = shop("lime-mha").run, tmp_path / "index"
    build_part(run, out, Part(1, 2), data=data())
    for wrong in (
        {"part": Part(1, 3), "data": data()},
        {"part": Part(2, 2), "items": table},
        {"part": Part(2, 2), "items": table, "merge": True, "data": data()},
    ):
        with pytest.raises(FormatError, match=r"parts of another job \((parts|data|items)"):
            build_part(run, out, **wrong)
    other = shop("lime-mha", links=4).run
    with pytest.raises(FormatError, match=f"fingerprint .*{run.fingerprint}.*{other.fingerprint}"):
        build_part(other, out, Part(2, 2), data=data())
    build_part(run, out, Part(2, 2), data=data())
    with pytest.raises(FormatError, match="another job"):
        join_parts(other, out)
    # The table of a part has changed since.
    built_in_parts(run, tmp_path / "two", 2, items=table)
    build_part(run, tmp_path / "three", Part(1, 2), items=table)
    table.write_text(table.read_text().replace("\n20,", "\n2000,", 1))
    with pytest.raises(FormatError, match="items"):
        build_part(run, tmp_path / "three", Part(2, 2), items=table)


def test_parts_with_other_scales_or_damage_are_refused(tmp_path):
    run, out = shop("lime-mha").run, tmp_path / "index"
    for number in (1, 2):
        build_part(run, out, Part(number, 2), data=data())
    shutil.copytree(parts_folder(out), tmp_path / "copy")
    plan = parts_folder(out) / "plan.json"
    held = read_sealed(plan, "a plan", "")
    write_json(plan, sealed({**held, "scales": {**held["scales"], "weight_spread": 1.0}}))
    with pytest.raises(FormatError, match=r"other scales or items .* run --part 1/2 again"):
        join_parts(run, out)
    write_json(plan, {**held, "format": 9})
    with pytest.raises(FormatError, match="has format 9, expected 2"):
        build_part(run, out, Part(1, 2), data=data())
    write_json(plan, {**sealed(held), "job": {**held["job"], "items": "other"}})
    with pytest.raises(FormatError, match=r"plan.json is damaged: .* run all parts again"):
        build_part(run, out, Part(1, 2), data=data())
    write_json(plan, sealed(held))
    (path,) = parts_folder(out).glob("part-*2-of-*")
    file = file_of(path, "vectors.f32")
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(FormatError, match="has changed"):
        join_parts(run, out)
    shutil.rmtree(path)
    build_part(run, out, Part(2, 2), data=data())
    join_parts(run, out)
    with pytest.raises(FormatError, match="no parts to join"):
        join_parts(run, tmp_path / "nothing")


def test_an_id_in_two_parts_is_an_error(table, tmp_path):
    run, out = shop("lime-mha").run, tmp_path / "index"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1]]) + "\n")
    for number in (1, 2):
        build_part(run, out, Part(number, 2), items=table)
    with pytest.raises(DataError, match="given more than once: 20"):
        join_parts(run, out)
    assert not out.exists()


def test_an_index_in_use_is_replaced_by_joined_parts(tmp_path):
    run, out = shop("lime-mha").run, tmp_path / "index"
    build_index(run, out, data=data())
    version = Index.open(out).version
    for number in (1, 2):
        build_part(run, out, Part(number, 2), data=data())
    with pytest.raises(FormatError, match="already exists; pass --overwrite"):
        join_parts(run, out)
    assert join_parts(run, out, overwrite=True).version == version + 1
    assert not parts_folder(out).exists()


def test_parts_whose_removal_was_cut_short_are_removed_later(tmp_path, monkeypatch):
    """By the next call for the same index, whichever it is."""
    run, out = shop("lime-mha").run, tmp_path / "index"

    def killed(*_, **__):
        raise KeyboardInterrupt

    for part in (Part(1, 2), Part(2, 2)):
        build_part(run, out, part)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        join_parts(run, out)
    assert len(os.listdir(tmp_path)) == 3, "the index, the folder of parts and its lock file"
    build_part(run, out, Part(1, 2))
    assert sorted(os.listdir(tmp_path)) == [parts_folder(out).name, "index"]
    build_part(run, out, Part(2, 2))
    join_parts(run, out, overwrite=True)
    assert os.listdir(tmp_path) == ["index"]


def test_the_commands(call, tmp_path):
    of, out = shop("two-tower"), tmp_path / "index"
    given = ["index", of.run.path, "--out", out]
    for number in (1, 2, 2):
        status, text, error = call(
            *given, "--data", of.data.path, "--part", f"{number}/2", "--quiet"
        )
        assert status == 0, error
    assert "complete already" in text
    assert call(*given, "--join", "--quiet")[0] == 0
    assert len(Index.open(out, verify=True)) == 90
    for wrong, expected in (
        (["--part", "3/2"], "expected K/N"),
        (["--part", "1/2", "--compact"], "leave out --compact"),
        (["--part", "1/2", "--overwrite"], "--overwrite goes with --join"),
        (["--join", "--verify"], "one operation"),
        (["--join"], "already exists"),
    ):
        status, _, error = call(*given, *wrong)
        assert status == 2 and expected in error


@pytest.mark.parametrize(
    "text", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/4", "a/b", "1/9999999"]
)
def test_wrong_parts_are_refused(text):
    with pytest.raises(SpecError, match="expected K/N"):
        parse_part(text)


def test_parts_cover_everything_once():
    for count, of in itertools.product(range(12), range(1, 9)):
        ranges = [Part(number, of).range(count) for number in range(1, of + 1)]
        assert list(itertools.chain(*ranges)) == list(range(count))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert parse_part(" 3/16 ") == Part(3, 16) and str(Part(3, 16)) == "3/16"


def test_the_first_settles_a_job(tmp_path):
    path = tmp_path / "new" / "job.json"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda value: settled(path, {"value": value})["value"], range(64)))
    assert len(set(found)) == 1 and [file.name for file in path.parent.iterdir()] == ["job.json"]
