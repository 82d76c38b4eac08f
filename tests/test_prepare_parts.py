"""A log that is prepared in parts: joined, the dataset is that of one process, byte for byte."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limerank.cluster.jobs import run_parts
from limerank.data.prepare import asked, prepare
from limerank.data.prepare.parts import join_prepared, prepare_part
from limerank.errors import DataError, FormatError, SpecError
from limerank.files import read_json
from limerank.parts import Part, parts_folder
from tests.growing import log_of, write_days, write_spec
from tests.test_cluster import Here


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_parts(spec: Any, out: Path, of: int, order: Any = None, **arguments: Any) -> None:
    for number in order or range(1, of + 1):
        prepare_part(spec, out, Part(number, of), **arguments)
    join_prepared(spec, out, **arguments)


def require_same(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.fixture(scope="module", params=[False, True], ids=["integers", "texts"])
def days(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of some days, its description and the dataset "one" of one process."""
    folder = tmp_path_factory.mktemp("days")
    frame = log_of(3, users=30, text=request.param)
    write_days(folder, frame, range(3))
    prepare(write_spec(folder, frame), folder / "one")
    return folder


@pytest.mark.parametrize(("of", "order"), [(1, None), (2, (2, 1)), (4, (3, 1, 4, 2)), (11, None)])
def test_joined_parts_are_the_dataset_of_one_process(
    days: Path, tmp_path: Path, of: int, order: Any
) -> None:
    """In any order; with more parts than files, some are empty."""
    in_parts(days / "spec.toml", tmp_path / "joined", of, order)
    require_same(tmp_path / "joined", days / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joined"]


def test_parts_at_the_same_time_and_twice(days: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(
            pool.map(
                lambda k: prepare_part(days / "spec.toml", tmp_path / "joined", Part(k, 3)),
                [1, 2, 3, 1, 2, 3],
            )
        )
    rows = read_json(days / "one/dataset.json", "a dataset")["summary"]["rows"]
    assert sum(one.rows for one in done[:3]) == rows
    again = prepare_part(days / "spec.toml", tmp_path / "joined", Part(2, 3))
    assert not again.read
    assert again.text().endswith("part 2/3, complete already")
    join_prepared(days / "spec.toml", tmp_path / "joined")
    require_same(tmp_path / "joined", days / "one")


def test_extending_in_parts(days: Path, tmp_path: Path) -> None:
    """Codes of an earlier dataset are used again, and new texts get those behind them."""
    frame = log_of(5, users=35, text="text" in str(days))
    spec = write_spec(tmp_path, frame)
    write_days(tmp_path, frame, range(2))
    prepare(spec, tmp_path / "a")
    write_days(tmp_path, frame, range(2, 5))
    cases: dict[str, dict[str, Any]] = {
        "extended": {"extend": tmp_path / "a"},
        "encoded": {"encoding": tmp_path / "a", "since": 1_700_040_000_000},
    }
    for name, arguments in cases.items():
        prepare(spec, tmp_path / f"{name}-one", **arguments)
        in_parts(spec, tmp_path / f"{name}-parts", 3, **arguments)
        require_same(tmp_path / f"{name}-parts", tmp_path / f"{name}-one")


IDS = st.sampled_from(["7", "07", "7.0", " x", "x", "X", "é", "n/a", "None", "", "u1", "9" * 25])
ROWS = st.lists(
    st.tuples(IDS, IDS, st.integers(0, 50), st.integers(0, 1), IDS), min_size=0, max_size=12
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files=st.lists(ROWS, min_size=2, max_size=5), of=st.integers(2, 4), lists=st.booleans())
def test_ids_of_all_spellings(
    tmp_path_factory: pytest.TempPathFactory, files: Any, of: int, lists: bool
) -> None:
    """Ids that are written in several ways, text that comes late, empty files, lists: what one
    process does, parts do, be it an error."""
    folder = tmp_path_factory.mktemp("spellings")
    names = ["user", "item", "time", "click", "device"]
    for number, rows in enumerate(files):
        pl.DataFrame(
            rows, dict.fromkeys(names, pl.String) | {"time": pl.Int64, "click": pl.Int64},
            orient="row",
        ).write_csv(folder / f"log-{number}.csv")  # fmt: skip
    sources: list[dict[str, Any]] = [
        {"files": ["log-*.csv"], "user": "user", "item": "item", "order": "time"}
    ]
    if lists:
        for number, rows in enumerate(files[:2]):
            write = [{"user": row[0], "seen": f"{row[1]} {row[4]}", "time": row[2]} for row in rows]
            pl.DataFrame(write, {"user": pl.String, "seen": pl.String, "time": pl.Int64}).write_csv(
                folder / f"seen-{number}.csv"
            )
        sources.append(
            {
                "files": ["seen-*.csv"], "user": "user", "item": "seen", "order": "time",
                "lists": True, "shown": False, "constant": {"click": 1},
            }
        )  # fmt: skip
    spec = {
        "name": "spellings",
        "events": sources,
        "labels": [{"name": "click", "kind": "binary"}],
        "event_features": [{"name": "device", "kind": "categorical", "when": "context"}],
        "checks": {"max_bad_share": 0.9},
    }

    def outcome(work: Any) -> str:
        try:
            work()
        except (DataError, SpecError) as error:
            return str(error)
        return ""

    def parted() -> None:
        for _ in range(3):  # once more where text came late
            for number in range(1, of + 1):
                prepare_part(spec, folder / "joined", Part(number, of), base=folder)
        join_prepared(spec, folder / "joined", base=folder)

    assert outcome(parted) == outcome(lambda: prepare(spec, folder / "one", base=folder))
    if (folder / "one").exists():
        require_same(folder / "joined", folder / "one")


SMALL: dict[str, Any] = {
    "name": "small",
    "events": [
        {"files": ["log-*.csv"], "user": "user", "item": "item", "time": "time", "time_unit": "s"}
    ],
    "labels": [{"name": "click", "kind": "binary"}],
}


def small_log(folder: Path, *files: list[tuple[Any, ...]]) -> dict[str, Any]:
    for number, rows in enumerate(files):
        lines = "".join(",".join(map(str, row)) + "\n" for row in rows)
        (folder / f"log-{number}.csv").write_text("user,item,time,click\n" + lines)
    return SMALL


def rows_of(seed: int, user: str = "") -> list[tuple[Any, ...]]:
    draws = random.Random(seed)
    return [
        (
            f"{user}{draws.randrange(9)}",
            draws.randrange(20),
            1_700_000_000 + draws.randrange(90_000),
            draws.randrange(2),
        )
        for _ in range(200)
    ]


def test_text_that_comes_late(tmp_path: Path) -> None:
    """A part that finds text makes the others read once more; until then they are missing."""
    spec = small_log(tmp_path, rows_of(1), rows_of(2), rows_of(3, "u"))
    out = tmp_path / "joined"
    for number in (1, 2, 3):
        assert prepare_part(spec, out, Part(number, 3), base=tmp_path).read
    with pytest.raises(FormatError, match=r"lacks 2 of 3 parts: 1/3, 2/3; .*found text among"):
        join_prepared(spec, out, base=tmp_path)
    assert [prepare_part(spec, out, Part(k, 3), base=tmp_path).read for k in (1, 2, 3)] == [
        True,
        True,
        False,
    ]
    join_prepared(spec, out, base=tmp_path)
    prepare(spec, tmp_path / "one", base=tmp_path)
    require_same(out, tmp_path / "one")


def test_several_batches_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes depend on where a batch ends: parts read the same batches."""
    monkeypatch.setattr(asked, "BATCH_BYTES", 700)
    spelled = [(f"{'0' * (k % 3)}{k // 2 % 31}", *row[1:]) for k, row in enumerate(rows_of(4) * 3)]
    spec = small_log(tmp_path, spelled, [(f"u{k}", *row[1:]) for k, row in enumerate(spelled)])
    prepare(spec, tmp_path / "one", base=tmp_path)
    in_parts(spec, tmp_path / "joined", 2, (2, 1), base=tmp_path)
    require_same(tmp_path / "joined", tmp_path / "one")


def test_what_is_refused(days: Path, tmp_path: Path) -> None:
    spec, out = days / "spec.toml", tmp_path / "joined"
    with pytest.raises(FormatError, match="has no parts to join; read them with --part K/N first"):
        join_prepared(spec, out)
    with pytest.raises(SpecError, match=r"events.0 has no files: parts are ranges"):
        prepare_part({**SMALL, "events": [{"time": "time"}]}, out, Part(1, 2))
    prepare_part(spec, out, Part(1, 3))
    with pytest.raises(FormatError, match=r"another job \(parts 3, now 4\)"):
        prepare_part(spec, out, Part(1, 4))
    with pytest.raises(FormatError, match=r"another job \(memory "):
        prepare_part(spec, out, Part(2, 3), memory="1GiB")
    with pytest.raises(FormatError, match=r"another job \(since null, now 1\)"):
        join_prepared(spec, out, since=1)
    with pytest.raises(FormatError, match=r"lacks 2 of 3 parts: 2/3, 3/3; run them with --part"):
        join_prepared(spec, out)
    assert not out.exists()


def test_a_damaged_part(days: Path, tmp_path: Path) -> None:
    spec, out = days / "spec.toml", tmp_path / "joined"
    for number in (1, 2):
        prepare_part(spec, out, Part(number, 2))
    (file,) = (parts_folder(out) / Part(2, 2).folder).rglob("events/0.bin")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match=r"0.bin is damaged; remove .* run its --part again"):
        join_prepared(spec, out)
    file.unlink()
    with pytest.raises(FormatError, match=r"0.bin is missing; remove"):
        join_prepared(spec, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "log-1.csv").write_text("user,item,time,click\n1,1,1,1\n"),
         "log-1.csv has changed"),
        (lambda folder: (folder / "log-2.csv").write_text("user,item,time,click\n1,1,1,1\n"),
         "log-2.csv is new"),
        (lambda folder: (folder / "log-1.csv").unlink(), "log-1.csv is missing"),
    ],
)  # fmt: skip
def test_a_log_that_changes_meanwhile(tmp_path: Path, change: Any, message: str) -> None:
    spec = small_log(tmp_path, rows_of(1), rows_of(2))
    prepare_part(spec, tmp_path / "joined", Part(1, 2), base=tmp_path)
    change(tmp_path)
    with pytest.raises(FormatError, match=f"parts of another log: .*{message} since the first"):
        prepare_part(spec, tmp_path / "joined", Part(2, 2), base=tmp_path)


ITEM_TABLE = {"items": {"files": ["items.csv"], "id": "item_id"}}


@pytest.mark.parametrize("changed", ["0\n1\n2\nSKU-7\n", "0\n1\n", "9\n8\n7\n"])
def test_a_table_that_changes_meanwhile(tmp_path: Path, changed: str) -> None:
    spec = {**small_log(tmp_path, rows_of(1)), **ITEM_TABLE}
    (tmp_path / "items.csv").write_text("item_id\n0\n1\n2\n")
    out = tmp_path / "joined"
    prepare_part(spec, out, Part(1, 1), base=tmp_path)
    (tmp_path / "items.csv").write_text(f"item_id\n{changed}")
    with pytest.raises(FormatError, match=r"another log: .*items.csv has changed since the first"):
        join_prepared(spec, out, base=tmp_path)


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_parts_stand_beside_a_folder(
    days: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SpecError, FormatError), match=r"other contents|is no new folder"):
        prepare_part(days / "spec.toml", out, Part(1, 2))
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_folder_that_cannot_be_replaced_is_not_read(days: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="is a file"):
        prepare_part(days / "spec.toml", tmp_path / "file", Part(1, 2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(FormatError, match="has other contents"):
        prepare_part(days / "spec.toml", tmp_path / "mine", Part(1, 2))


@pytest.mark.parametrize("name", ["part.json", "plan.json"])
def test_a_damaged_record_of_parts(days: Path, tmp_path: Path, name: str) -> None:
    """Whatever is wrong with it, the message says what to remove and what to run."""
    spec, out = days / "spec.toml", tmp_path / "joined"
    for number in (1, 2):
        prepare_part(spec, out, Part(number, 2))
    file = parts_folder(out) / name
    again = r"\. Remove .*\.joined\.parts, and run all parts again"
    if name == "part.json":
        file = parts_folder(out) / Part(2, 2).folder / name
        again = r"\. Remove .*part-0000002-of-0000002, and run --part 2/2 again"
    written = json.loads(file.read_text())
    broken = ["", "[]", json.dumps(written)[:-9], "\0"]
    broken += [json.dumps({**written, key: 7}) for key in written]
    broken += [json.dumps({k: v for k, v in written.items() if k != key}) for key in written]
    for text in broken:
        file.write_text(text)
        for call in (lambda: join_prepared(spec, out), lambda: prepare_part(spec, out, Part(2, 2))):
            with pytest.raises(FormatError, match=again):
                call()
    file.write_text(json.dumps(written))
    join_prepared(spec, out)


def test_bad_rows_of_all_parts_count(tmp_path: Path) -> None:
    """The share of bad rows is that of the log, and the message is that of one process."""
    bad = [("", *row[1:]) for row in rows_of(2)[:150]]
    spec = small_log(tmp_path, rows_of(1), bad, rows_of(3))
    for number in (1, 2, 3):
        prepare_part(spec, tmp_path / "joined", Part(number, 3), base=tmp_path)
    with pytest.raises(DataError) as ours:
        join_prepared(spec, tmp_path / "joined", base=tmp_path)
    with pytest.raises(DataError) as theirs:
        prepare(spec, tmp_path / "one", base=tmp_path)
    assert str(ours.value) == str(theirs.value)
    assert parts_folder(tmp_path / "joined").exists()


def test_on_workers(days: Path, tmp_path: Path) -> None:
    """All parts by a job whose workers fail now and then."""
    failed: set[int] = set()

    def fails(number: int) -> None:
        if number not in failed:
            failed.add(number)
            raise RuntimeError("the machine has ended")

    job = {"command": "prepare", "spec": str(days / "spec.toml"), "out": str(tmp_path / "joined")}
    run_parts(lambda job: Here(job, 3, fails), job, 3)
    join_prepared(days / "spec.toml", tmp_path / "joined")
    require_same(tmp_path / "joined", days / "one")


def test_the_plan_of_another_version(days: Path, tmp_path: Path) -> None:
    out = tmp_path / "joined"
    prepare_part(days / "spec.toml", out, Part(1, 1))
    plan = parts_folder(out) / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "format": 9}))
    with pytest.raises(
        FormatError, match=r"has format 9, expected 2. Remove .* run all parts again with"
    ):
        join_prepared(days / "spec.toml", out)


def test_the_command(
    days: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["prepare", days / "spec.toml", "--out", tmp_path / "joined", "--quiet"]
    for number in (2, 1):
        status, output, error = call(*command, "--part", f"{number}/2")
        assert (status, error) == (0, "")
        assert f"part {number}/2, " in output and " rows of " in output
    status, output, _ = call(*command, "--part", "1/2")
    assert status == 0 and "complete already" in output
    assert call(*command, "--join")[0] == 0
    require_same(tmp_path / "joined", days / "one")
    status, _, error = call(*command, "--join")
    assert status == 2 and "already exists" in error
    monkeypatch.setattr(
        "limerank.cluster.on_ray.RayWorkers", lambda job, parts, threads: Here(job, parts)
    )
    ray = [*command, "--on", "ray", "--parts", 3]
    status, _, error = call(*ray)
    assert status == 2 and "already exists" in error
    assert call(*ray, "--overwrite")[0] == 0
    require_same(tmp_path / "joined", days / "one")


class InOrder(Here):
    most = 1


def test_the_command_on_a_cluster_reads_again(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that took text for integers are read again without being asked for."""
    spec = small_log(tmp_path, rows_of(1), rows_of(2, "u"))
    (tmp_path / "spec.toml").write_text(tomli_w.dumps(spec))
    monkeypatch.setattr(
        "limerank.cluster.on_ray.RayWorkers", lambda job, parts, threads: InOrder(job, parts)
    )
    given = ["prepare", tmp_path / "spec.toml", "--quiet", "--out"]
    assert call(*given, tmp_path / "joined", "--on", "ray", "--parts", 2)[0] == 0
    assert call(*given, tmp_path / "one")[0] == 0
    require_same(tmp_path / "joined", tmp_path / "one")


def test_options_that_do_not_go_together(days: Path, tmp_path: Path, call: Any) -> None:
    command = ["prepare", days / "spec.toml", "--out", tmp_path / "joined"]
    layout = ["prepare", "movielens", days, "--out", tmp_path / "joined"]
    for arguments, message in (
        ([*command, "--part", "1/2", "--join"], "--part and --join are given, expected one"),
        ([*command, "--part", "1/2", "--on", "ray"], "--part and --on are given, expected one"),
        ([*command, "--part", "3/2"], "the part is '3/2', expected K/N"),
        ([*command, "--part", "1/2", "--overwrite"], "--overwrite goes with --join"),
        ([*layout, "--part", "1/2"], "--part goes with a description: write the one of a public"),
        ([*command, "--on", "spark"], "no --on 'spark'; expected one of ray"),
        ([*command[:2], "--out", "s3://shop/data", "--join"], "--join: you need a folder that all"),
    ):
        status, _, error = call(*arguments)
        assert status == 2 and message in error, error
    assert not (tmp_path / "joined").exists()
