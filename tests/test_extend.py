"""Datasets that grow: an extended dataset is the one that preparing the full log gives."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.errors import DataError, FormatError, SpecError
from tests.growing import DAY, START, log_of, write_days, write_spec


def arrays(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset but its manifest and description."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("dataset.json", "spec.toml")
    }


def require_equal(one: Path, other: Path) -> None:
    """Two datasets are equal byte by byte, but for what was read when."""
    ours, theirs = arrays(one), arrays(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    manifests = [json.loads((path / "dataset.json").read_text()) for path in (one, other)]
    for part in ("format", "name", "clock", "spec", "encoding", "counts"):
        assert manifests[0][part] == manifests[1][part]
    summaries = [one["summary"] for one in manifests]
    for part in ("time", "cuts", "labels", "history", "rows", "bad", "dropped", "event_features"):
        assert summaries[0][part] == summaries[1][part], part


CASES: list[tuple[bool, dict[str, Any]]] = [
    (False, {}),
    (True, {"split": {"leave_last": 1}}),
    (False, {"split": {"by": "position"}, "history": {"length": 20, "keep": "click"}}),
    (True, {"split": {"held_out_users": 0.2, "held_out_items": 0.1}}),
    (False, {"split": {"validation": "6h", "test": "6h"}}),
]


@pytest.mark.parametrize(("text", "spec"), CASES)
def test_an_extended_dataset_equals_the_full_log(
    tmp_path: Path, text: bool, spec: dict[str, Any]
) -> None:
    """With requests that go on after midnight, rows that are a day late, repeated rows, new users,
    items and values; values that training did not have yesterday and has today."""
    frame = log_of(3, users=30, text=text)
    path = write_spec(tmp_path, frame, **spec)
    write_days(tmp_path, frame, range(2))
    prepare(path, tmp_path / "a")
    write_days(tmp_path, frame, range(2, 4))
    added = prepare(path, tmp_path / "b", extend=tmp_path / "a")
    full = prepare(path, tmp_path / "full", encoding=tmp_path / "a")
    require_equal(tmp_path / "b", tmp_path / "full")
    assert added.manifest["summary"]["added"]["files"] == 4
    assert 0 < added.manifest["summary"]["added"]["rows"] < added.rows == full.rows
    assert "extended: " in added.text()


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four days of a log, and the datasets "a" of two of them, "b" of three and "c" of all."""
    folder = tmp_path_factory.mktemp("days")
    frame = log_of(4, users=25)
    path = write_spec(folder, frame)
    write_days(folder, frame, range(2))
    prepare(path, folder / "a")
    for day, before, name in ((2, "a", "b"), (3, "b", "c")):
        write_days(folder, frame, range(day, day + 1))
        prepare(path, folder / name, extend=folder / before)
    return folder


def test_codes_stay_from_day_to_day(days: Path) -> None:
    a, b, c = (Dataset(days / name) for name in "abc")
    for old, new in ((a, b), (b, c)):
        assert new.trained_items > old.trained_items
        trained = old.item_ids[: old.trained_items]
        assert new.item_ids[: old.trained_items].tolist() == trained.tolist()
        assert new.user_ids[: len(old.user_ids)].tolist() == old.user_ids.tolist()
        assert len(new.user_ids) > len(old.user_ids)
        for name in ("event_device", "item_group", "item_tags", "user_country"):
            ours, theirs = (
                pl.read_parquet(one.path / "vocab" / f"{name}.parquet") for one in (new, old)
            )
            assert ours.head(len(theirs)).equals(theirs)
        for kind in ("items", "users"):
            for ours, theirs in zip(
                new.encoding[kind]["features"], old.encoding[kind]["features"], strict=True
            ):
                assert {k: ours.get(k) for k in ("mean", "std", "dim")} == {
                    k: theirs.get(k) for k in ("mean", "std", "dim")
                }
        for kind in ("labels", "event_features", "impression_features"):
            for ours, theirs in zip(new.encoding[kind], old.encoding[kind], strict=True):
                assert {**ours, "size": 0} == {**theirs, "size": 0}
        assert new.encoding["anchors"] == old.encoding["anchors"]
    assert len(pl.read_parquet(days / "c/vocab/event_device.parquet")) > len(
        pl.read_parquet(days / "a/vocab/event_device.parquet")
    )


def test_the_newest_part_is_the_test_split(days: Path) -> None:
    cuts = [Dataset(days / name).manifest["summary"]["cuts"] for name in "abc"]
    assert cuts[0][1] < cuts[1][1] < cuts[2][1]


def test_a_duration_is_the_test_of_every_day(tmp_path: Path) -> None:
    frame = log_of(4, users=10)
    path = write_spec(tmp_path, frame, split={"validation": "6h", "test": "1d"})
    write_days(tmp_path, frame, range(2))
    before = prepare(path, tmp_path / "a")
    write_days(tmp_path, frame, range(2, 4))
    after = prepare(path, tmp_path / "b", extend=tmp_path / "a")
    for done in (before, after):
        summary = done.manifest["summary"]
        validation, test = summary["cuts"]
        assert (
            summary["time"]["last"] - test == DAY * 1000 - 1 and test - validation == 6 * 3_600_000
        )
    assert after.manifest["summary"]["cuts"][0] > before.manifest["summary"]["time"]["last"]


def test_an_unchanged_file_is_not_read_again(days: Path, tmp_path: Path) -> None:
    again = prepare(days / "spec.toml", tmp_path / "again", extend=days / "c")
    assert again.manifest["summary"]["added"] == {
        "files": 0,
        "rows": 0,
        "events_before": again.events,
    }
    require_equal(tmp_path / "again", days / "c")


def test_a_moved_file_is_recognised(days: Path, tmp_path: Path) -> None:
    for name in ("log", "seen"):
        (tmp_path / name).mkdir()
        for path in (days / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    for name in ("spec.toml", "items.parquet", "users.parquet"):
        (tmp_path / name).write_bytes((days / name).read_bytes())
    again = prepare(tmp_path / "spec.toml", tmp_path / "again", extend=days / "c")
    assert again.manifest["summary"]["added"]["files"] == 0


def test_a_changed_file_is_refused(days: Path, tmp_path: Path) -> None:
    for name in ("log", "seen"):
        (tmp_path / name).mkdir()
        for path in (days / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    for name in ("spec.toml", "items.parquet", "users.parquet"):
        (tmp_path / name).write_bytes((days / name).read_bytes())
    spec = tmp_path / "spec.toml"
    prepare(spec, tmp_path / "a")
    file = tmp_path / "log" / "day-0.parquet"
    rows = pl.read_parquet(file)
    os.utime(file, ns=(1, 1))  # touched alone is not changed
    prepare(spec, tmp_path / "touched", extend=tmp_path / "a")
    for changed in (rows.head(-1), rows.with_columns(pl.col("click").reverse())):
        changed.write_parquet(file)
        with pytest.raises(DataError, match=r"day-0.parquet has changed since .*--encoding"):
            prepare(spec, tmp_path / "b", extend=tmp_path / "a")
    assert not (tmp_path / "b").exists()
    file.unlink()  # a file that was removed has been read
    prepare(spec, tmp_path / "c", extend=tmp_path / "a")


def test_since_drops_events_and_keeps_codes(days: Path, tmp_path: Path) -> None:
    start = (START + 2 * DAY) * 1000
    prepare(days / "spec.toml", tmp_path / "window", extend=days / "c", since=start)
    prepare(days / "spec.toml", tmp_path / "full", encoding=days / "c", since=start)
    window, before = Dataset(tmp_path / "window"), Dataset(days / "c")
    times = before.events["time"]
    assert len(window.events["time"]) == np.count_nonzero(np.asarray(times) >= start)
    assert int(np.min(window.events["time"])) >= start
    assert window.user_ids.tolist() == before.user_ids.tolist()
    trained = before.trained_items
    assert window.item_ids[:trained].tolist() == before.item_ids[:trained].tolist()
    assert (np.diff(window.event_offsets) == 0).any()
    noted = window.manifest["summary"]["noted"]
    assert noted["event before the window (since)"] == np.count_nonzero(np.asarray(times) < start)
    for name in ("events/item.npy", "requests/first.npy", "users/event_offsets.npy"):
        assert (tmp_path / "window" / name).read_bytes() == (tmp_path / "full" / name).read_bytes()
    with pytest.raises(DataError, match=r"no usable events.* before since"):
        prepare(days / "spec.toml", tmp_path / "none", since="2030-01-01")


def test_frames_are_new_rows(days: Path, tmp_path: Path) -> None:
    log, seen = (
        pl.concat([pl.read_parquet(path) for path in sorted((days / name).iterdir())])
        for name in ("log", "seen")
    )
    cut = START + 2 * DAY
    parts = [
        [one.filter(pl.col("time") < cut) for one in (log, seen)],
        [one.filter(pl.col("time") >= cut) for one in (log, seen)],
    ]
    spec = days / "spec.toml"
    prepare(spec, tmp_path / "a", events=parts[0])
    prepare(spec, tmp_path / "b", events=parts[1], extend=tmp_path / "a")
    both = [pl.concat(pair) for pair in zip(*parts, strict=True)]
    prepare(spec, tmp_path / "full", events=both, encoding=tmp_path / "a")
    ours, theirs = arrays(tmp_path / "b"), arrays(tmp_path / "full")
    assert ours == theirs


def test_what_cannot_be_extended_is_refused(days: Path, tmp_path: Path) -> None:
    spec = days / "spec.toml"
    with pytest.raises(SpecError, match="extend, which uses the encoding"):
        prepare(spec, tmp_path / "b", extend=days / "a", encoding=days / "a")
    text = spec.read_text().replace('name = "speed"', 'name = "pace", column = "speed"')
    other = days / "other.toml"
    other.write_text(text)
    with pytest.raises(DataError, match=r"other event_features than .*--encoding"):
        prepare(other, tmp_path / "b", extend=days / "a")
    other.unlink()
    old = tmp_path / "old"
    prepare(spec, old)
    manifest = json.loads((old / "dataset.json").read_text())
    del manifest["log"]
    (old / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=r"prepared by a version .*--encoding"):
        prepare(spec, tmp_path / "b", extend=old)
    found = prepare(spec, tmp_path / "b", encoding=old)  # as the message advises
    assert found.trained_items >= Dataset(old).trained_items


def test_an_error_leaves_nothing(
    days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset that is extended is only read, and a new one appears when it is complete."""
    before = arrays(days / "b")

    def fail(*_: object) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr("limerank.data.prepare.job.write_spec", fail)
    with pytest.raises(FormatError, match="cannot be written: input/output error"):
        prepare(days / "spec.toml", tmp_path / "next", extend=days / "b")
    assert not list(tmp_path.iterdir())
    assert arrays(days / "b") == before


def test_the_command_extends(days: Path, tmp_path: Path, call: Any) -> None:
    since = "2023-11-15T22:13:20"  # the second day
    spec, out = days / "spec.toml", tmp_path / "b"
    status, shown, _ = call(
        "prepare", spec, "--extend", days / "a", "--since", since, "--out", out, "-q"
    )
    assert status == 0
    assert re.search(r"extended: [1-9][\d,]* of these rows are new, from 4 new files", shown)
    assert re.search(r"noted +[1-9][\d,]*  event before the window \(since\)", shown)
    prepare(spec, tmp_path / "same", extend=days / "a", since=since)
    assert arrays(out) == arrays(tmp_path / "same")
