"""The daily loop: what goes live, what does not, and what a killed cycle leaves."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tomli_w

from limerank.data.canonical import duration
from limerank.data.dataset import Dataset
from limerank.errors import DataError, FormatError, SpecError
from limerank.evaluation.compare import Difference
from limerank.index.reading import Index
from limerank.refresh import cycle as cycles
from limerank.refresh.config import Gate, load_config
from limerank.refresh.cycle import refresh, roll_back
from limerank.refresh.gate import worse
from limerank.refresh.home import Home
from limerank.runs.folder import load_run
from limerank.serving.stores import SqliteStore
from limerank.serving.watched import wanted
from tests.stores import event, exposure

START, DAY = 1_700_000_000, 86_400
ROWS = 250
"""Of a day."""
GOOD = np.random.default_rng(9).random(40) < 0.5


def write_day(folder: Path, day: int, **changes: Any) -> None:
    """A day's log: users prefer the same items every day; new items come in."""
    rng = np.random.default_rng(day)
    n = ROWS
    items = rng.integers(0, 30 + day, n)
    chance = np.where(GOOD[items % 40], 0.8, 0.2)
    columns = {
        "user_id": rng.integers(0, 40, n),
        "item_id": items,
        "time": START + day * DAY + np.sort(rng.integers(0, DAY, n)),
        "click": (rng.random(n) < chance).astype(np.int64),
        "device": rng.choice(["phone", "desk"], n),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({**columns, **changes}).write_parquet(folder / f"day-{day}.parquet")


def write_config(folder: Path) -> Path:
    """A log of two days, and a daily loop; returns the configuration."""
    write_day(folder / "log", 0)
    write_day(folder / "log", 1)
    description = {
        "name": "days",
        "events": [{"files": ["log/*.parquet"], "time": "time"}],
        "labels": [{"name": "click", "kind": "binary"}],
        "event_features": [{"name": "device", "kind": "categorical", "when": "context"}],
    }
    (folder / "days.toml").write_text(tomli_w.dumps(description))
    values = {
        "home": "home",
        "description": "days.toml",
        "model": "lime-mha",
        "train": {"width": 8, "links": 2, "epochs": 1},
        "gate": {"alarms": False, "tolerance": 0.2, "most_ne": 2.0},
        "keep": 2,
    }
    (folder / "refresh.toml").write_text(tomli_w.dumps(values))
    return folder / "refresh.toml"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def changed(path: Path, **values: Any) -> Path:
    """The configuration with other values."""
    old = load_config(path).model_dump(mode="json", exclude_defaults=True)
    path.write_text(tomli_w.dumps({**old, **values}))
    return path


def live(home: Path) -> dict[str, str]:
    """What a server that watches the loop would load; both can be opened and belong together."""
    found = wanted(home / "live")
    Index.open(found["index"], load_run(found["run"]).fingerprint)
    return found


def test_days_go_live_one_after_another(config: Path) -> None:
    loaded = load_config(config)
    first = refresh(loaded)
    assert first is not None and (first.cycle, first.outcome) == ("000001", "published")
    assert "no model is live yet" in first.reasons[0]
    before = live(loaded.home)
    assert refresh(loaded) is None, "nothing new"
    assert live(loaded.home) == before and len(list(loaded.home.glob("cycles/*"))) == 1
    for day in (2, 3):
        write_day(config.parent / "log", day)
        entry = refresh(loaded)
        assert entry is not None and entry.outcome == "published", entry
        assert "new minus current" in entry.reasons[0]
    home = Home(loaded.home)
    assert home.published == ["000002", "000003"]
    assert not (home.folder("000001") / "run").exists(), "keep = 2"
    assert not (home.folder("000002") / "data").exists(), "the next cycle extends the newest"
    assert len(Dataset(home.folder("000003") / "data").events["time"]) == 4 * ROWS
    assert Path(live(loaded.home)["run"]).parent.name == "000003"
    assert roll_back(loaded.home) == ("000003", "000002")
    assert Path(live(loaded.home)["run"]).parent.name == "000002"
    with pytest.raises(FormatError, match="expected two or more"):
        roll_back(loaded.home)
    write_day(config.parent / "log", 4)
    entry = refresh(loaded)
    assert entry is not None and entry.outcome == "published"
    assert Home(loaded.home).published == ["000002", "000004"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"device": pl.Series([None] * ROWS, dtype=pl.String)},
            "event feature 'device' has a known",
        ),
        ({"click": np.zeros(ROWS, np.int64)}, "label 'click' has a mean of 0 "),
        ({"user_id": 1, "item_id": 2, "time": START + 2 * DAY}, "new rows were dropped"),
    ],
)
def test_a_broken_day_does_not_go_live(config: Path, changes: Any, reason: str) -> None:
    loaded = load_config(config)
    refresh(loaded)
    before = live(loaded.home)
    write_day(config.parent / "log", 2, **changes)
    entry = refresh(loaded)
    assert entry is not None and entry.outcome == "refused" and not entry.data
    assert any(reason in one for one in entry.reasons), entry.reasons
    assert live(loaded.home) == before
    write_day(config.parent / "log", 2)  # mended: the day is read again
    entry = refresh(loaded)
    assert entry is not None and entry.outcome == "published"


def test_a_first_model_that_is_refused_is_trained_again(config: Path, call: Any) -> None:
    """With other settings, or on a log that was corrected, although no day is new."""
    changed(config, gate={"most_ne": 0.1})
    for _ in range(2):
        status, out, _ = call("refresh", config)
        assert status == 3 and "No model is live. Correct what the reasons name" in out
    assert "no model is live: it is trained once more" in out
    changed(config, gate={"alarms": False, "most_ne": 2.0})
    assert call("refresh", config)[0] == 0
    home = Home(load_config(config).home)
    assert home.live == "000003" and live(home.path)
    assert call("refresh", config)[0] == 0 and home.live == "000003"


def test_a_day_in_another_unit_of_time(config: Path) -> None:
    loaded = load_config(config)
    refresh(loaded)
    write_day(config.parent / "log", 2, time=(START + 2 * DAY) // 1000)
    entry = refresh(loaded)
    assert entry is not None and entry.outcome == "refused"
    assert "is their time in the unit of the others?" in entry.reasons[0]
    assert "which end at 20" in entry.reasons[0]


def test_a_day_that_cannot_be_prepared_changes_nothing(config: Path, call: Any) -> None:
    assert call("refresh", config, "--quiet")[0] == 0
    before = live(load_config(config).home)
    write_day(config.parent / "log", 2, user_id=pl.Series([None] * ROWS, dtype=pl.Int64))
    status, _, error = call("refresh", config, "--quiet")
    assert status == 2 and "missing user id" in error
    assert live(load_config(config).home) == before
    write_day(config.parent / "log", 2)
    assert call("refresh", config)[0] == 0
    assert live(load_config(config).home) != before


def test_a_worse_model_does_not_go_live(config: Path, call: Any) -> None:
    loaded = load_config(config)
    refresh(loaded)
    before = live(loaded.home)
    write_day(config.parent / "log", 2)
    changed(config, gate={"most_ne": 0.1})
    status, out, _ = call("refresh", config, "--quiet", "--json")
    assert status == 3
    printed = json.loads(out)
    assert printed["outcome"] == "refused" and "(gate.most_ne)" in printed["reasons"][0]
    assert live(loaded.home) == before
    found = Home(loaded.home)
    assert found.live == "000001" and found.latest_data() == found.folder("000002") / "data"
    status, _, error = call("rollback", config)
    assert status == 2 and "expected two or more" in error


@pytest.mark.parametrize(
    ("difference", "low", "high", "strict", "reason"),
    [
        (0.01, 0.002, 0.018, True, None),
        (-0.002, -0.02, 0.016, False, None),
        (-0.002, -0.02, 0.016, True, "gate.strict"),
        (-0.002, -0.0029, -0.001, False, "certainly worse"),
        (-0.004, -0.02, 0.012, False, "at most 0.003 is allowed"),
        (-0.002, math.nan, math.nan, True, None),
        (-0.004, math.nan, math.nan, False, "at most 0.003 is allowed"),
    ],
)
def test_when_a_model_is_worse(
    difference: float, low: float, high: float, strict: bool, reason: str | None
) -> None:
    found = worse("click AUC", Difference("", 9, difference, low, high), Gate(strict=strict))
    assert bool(found) == (reason is not None) and all(reason in one for one in found)


STEPS = ("prepare", "train", "judge", "build_index")


@pytest.mark.parametrize("step", STEPS)
def test_a_cycle_that_breaks_off_is_continued(
    config: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_config(config)
    refresh(loaded)
    before = live(loaded.home)
    write_day(config.parent / "log", 2)
    for when in ("before", "after"):
        done = getattr(cycles, step)

        def broken(*args: Any, done: Any = done, when: str = when, **named: Any) -> Any:
            if when == "after":
                done(*args, **named)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(cycles, step, broken)
            refresh(loaded)
        assert live(loaded.home) == before
    cycle = loaded.home / "cycles" / "000002"
    for name in ("data", "run"):  # as a kill behind the last step of each leaves it
        (cycle / f".{name}.partial-12ab.lock").touch()
    entry = refresh(loaded)
    assert entry is not None and (entry.cycle, entry.outcome) == ("000002", "published")
    assert [name for name in os.listdir(cycle) if "partial" in name] == []
    assert [one.cycle for one in Home(loaded.home).entries] == ["000001", "000002"]


def test_a_cycle_without_news_that_breaks_off_is_dropped(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_config(config)
    refresh(loaded)
    done = cycles.prepare

    def broken(*args: Any, **named: Any) -> Any:
        done(*args, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cycles, "prepare", broken)
        refresh(loaded)
    assert refresh(loaded) is None
    write_day(config.parent / "log", 2)
    entry = refresh(loaded)
    assert entry is not None and entry.outcome == "published"


def test_a_log_that_cannot_be_trained_on_is_read_again(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_config(config)
    refresh(loaded)
    write_day(config.parent / "log", 2)

    def refused(*args: Any, **named: Any) -> Any:
        raise DataError("nothing is newer")

    with monkeypatch.context() as patched, pytest.raises(DataError):
        patched.setattr(cycles, "train", refused)
        refresh(loaded)
    write_day(config.parent / "log", 3)
    entry = refresh(loaded)
    assert entry is not None and (entry.cycle, entry.outcome) == ("000002", "published")
    found = Dataset(Path(live(loaded.home)["run"]).parent / "data")
    assert len(found.events["time"]) == 4 * ROWS


def test_a_cycle_is_none_any_more_before_its_parts_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next call continues a cycle with a part of a dataset."""
    home = Home(tmp_path / "home")
    name = home.begin()
    assert home.begin() == name
    (home.folder(name) / "data").mkdir()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        home.drop(name)
    assert home.begin() == name
    assert os.listdir(home.folder(name)) == ["cycle.json"]


def test_a_link_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.published = ["000001"]
    (tmp_path / "home" / "cycles" / "000001").mkdir(parents=True)
    os.symlink("cycles/000001", home.path / ".live-12ab", target_is_directory=True)
    home.settle()
    assert sorted(os.listdir(home.path)) == ["cycles", "live"]


def test_publishing_that_breaks_off_is_settled(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_config(config)
    refresh(loaded)
    write_day(config.parent / "log", 2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "symlink", lambda *a, **n: (_ for _ in ()).throw(KeyboardInterrupt))
        refresh(loaded)
    assert Path(live(loaded.home)["run"]).parent.name == "000001"
    assert refresh(loaded) is None
    assert Path(live(loaded.home)["run"]).parent.name == "000002"


def test_one_cycle_at_a_time(config: Path) -> None:
    loaded = load_config(config)
    from limerank.locks import held_alone

    loaded.home.mkdir()
    with (
        held_alone(loaded.home / "lock", "held by a test"),
        pytest.raises(FormatError, match="is being refreshed"),
    ):
        refresh(loaded)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"window": "a month"}, "expected a number of days or hours"),
        ({"train": {"witdh": 8}}, "witdh"),
        ({"warm": {"epochs": 0}}, "epochs"),
        ({"gate": {"metric": "hr"}}, "gate.metric"),
        ({"keep": 1}, "keep"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_a_wrong_configuration(config: Path, values: dict[str, Any], error: str) -> None:
    with pytest.raises(SpecError, match=error):
        load_config(changed_text(config, values))


def changed_text(path: Path, values: dict[str, Any]) -> Path:
    """The configuration with values that may be wrong."""
    base = {"home": "home", "description": "days.toml"}
    path.write_text(tomli_w.dumps({**base, **values}))
    return path


def test_a_damaged_record_says_what_to_do(config: Path) -> None:
    loaded = load_config(config)
    loaded.home.mkdir()
    (loaded.home / "record.json").write_text('{"version": 9}')
    with pytest.raises(FormatError, match="expected 1"):
        refresh(loaded)
    (loaded.home / "record.json").write_text('{"version": 1, "published": 3}')
    with pytest.raises(FormatError, match="restore it"):
        refresh(loaded)
    shutil.rmtree(loaded.home)
    with pytest.raises(FormatError, match="has no record"):
        roll_back(loaded.home)


def test_a_server_s_store_is_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    day = DAY * 1000

    def serve(first: int, days: int) -> None:
        with SqliteStore(tmp_path / "events.db") as store:
            for at in range(first, first + days):
                for user in range(40):
                    time, ranking = at * day + int(rng.integers(0, day // 2)), f"{at}.{user}"
                    items = rng.choice(40, 4, replace=False).tolist()
                    store.show([exposure(user, time, ranking, items, values=[4, 3, 2, 1])])
                    liked = [item for item in items if rng.random() < (0.7 if GOOD[item] else 0.1)]
                    store.append(
                        [
                            event(user, time + 5000, f"{at}.{item}", item, labels={"click": 1.0})
                            for item in liked
                        ]
                    )

    description = {
        "name": "served",
        "events": [
            {
                "files": ["exported/*.parquet"],
                "time": "time",
                "time_unit": "ms",
                "request": "request",
            }
        ],
        "labels": [{"name": "click", "kind": "binary"}],
    }
    (tmp_path / "served.toml").write_text(tomli_w.dumps(description))
    values = {
        "home": "home",
        "description": "served.toml",
        "model": "lime-mha",
        "train": {"width": 8, "links": 2, "epochs": 1},
        "gate": {"alarms": False, "tolerance": 0.5, "most_ne": 9.0},
        "export": {"store": "events.db", "folder": "exported", "window": 60},
    }
    (tmp_path / "refresh.toml").write_text(tomli_w.dumps(values))
    loaded = load_config(tmp_path / "refresh.toml")
    with pytest.raises(SpecError, match="no such file"):
        refresh(loaded)
    serve(20_000, 5)
    for days in (5, 7):
        monkeypatch.setattr(cycles, "now_ms", lambda days=days: (20_000 + days) * day)
        entry = refresh(loaded)
        assert entry is not None and entry.outcome == "published", entry
        assert entry.exported == (20_000 + days) * day - 60_000
        with SqliteStore(tmp_path / "events.db") as store:
            shown = sum(len(store.exposures(user, 0, 1 << 50)) for user in store.users())
        found = Dataset(Path(live(loaded.home)["run"]).parent / "data")
        assert len(found.events["time"]) == 4 * shown == 4 * 40 * days
        assert refresh(loaded) is None, "nothing new"
        if days == 5:
            serve(20_005, 2)


def test_an_export_begins_where_other_logs_end(tmp_path: Path, config: Path) -> None:
    """The first model is learned from other files, before there is a store."""
    export = {"store": "events.db", "folder": "log", "since": "2023-11-17"}
    loaded = load_config(changed(config, export=export))
    assert loaded.export is not None and loaded.export.since_ms == 1_700_179_200_000
    lines: list[str] = []
    entry = refresh(loaded, say=lines.append)
    assert entry is not None and entry.outcome == "published" and entry.exported is None
    assert any("there is no store" in line for line in lines)
    with pytest.raises(SpecError, match="no such file"):
        refresh(loaded)
    with SqliteStore(tmp_path / "events.db") as store:
        for day in (16, 18):  # the first one is in the log
            at = 1_700_179_200_000 + (day - 17) * DAY * 1000
            store.show([exposure(1, at, f"r{day}", [3, 4])])
            labels = {"click": 1.0}
            store.append([event(1, at + 5000, f"e{day}", 4, labels=labels)])
    entry = refresh(load_config(changed(config, data={"most_shifted": 99.0, "most_lost": 1.0})))
    assert entry is not None and entry.exported is not None
    frame = pl.read_parquet(next((tmp_path / "log").glob("exported-*.parquet")))
    assert frame["request"].to_list() == ["r18", "r18"]
    with pytest.raises(SpecError, match="since"):
        load_config(changed(config, export={**export, "since": "tomorrow"}))


def test_durations() -> None:
    assert duration("2d") == 2 * DAY * 1000 and duration("36h") == 36 * 3600 * 1000
    assert duration("0d") is duration("d") is duration("1.5d") is None
