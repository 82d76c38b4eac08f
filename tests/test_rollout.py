"""A new model goes to a share of the users first: what they get, who decides, and what a killed
cycle leaves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limerank.data.exposures import MAIN
from limerank.errors import FormatError, SpecError
from limerank.refresh import cycle as cycles
from limerank.refresh import rollout
from limerank.refresh.config import load_config
from limerank.refresh.cycle import promote, refresh, roll_back
from limerank.refresh.home import NEW, Home, Rollout
from limerank.refresh.rollout import decision
from limerank.runs.folder import load_run
from limerank.serving.arms import choose
from limerank.serving.engine import Serving
from limerank.serving.messages import Rank
from limerank.serving.reading import NOTHING, Counts, Reading
from limerank.serving.stores import SqliteStore
from limerank.serving.watched import arms_at_start, wanted
from limerank.serving.watching import Background
from tests.stores import event, exposure
from tests.test_refresh import changed, write_config, write_day

HOUR, DAY_MS = 3_600_000, 86_400_000


def cycle_of(path: str | Path) -> str:
    return Path(path).parent.name


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A daily loop with a live cycle, and the same with a second cycle that is rolled out."""
    one, two = tmp_path_factory.mktemp("one") / "loop", tmp_path_factory.mktemp("two") / "loop"
    config = write_config(one)
    entry = refresh(load_config(config))
    assert entry is not None and entry.outcome == "published"
    write_day(one / "log", 2)
    config.write_text(config.read_text() + "\n[publish]\nshare = 0.25\n")
    shutil.copytree(one, two, symlinks=True)
    lines: list[str] = []
    entry = refresh(load_config(two / config.name), say=lines.append)
    assert entry is not None and (entry.cycle, entry.outcome) == ("000002", "rolling out")
    command = "limerank ab --store STORE --share main=0.75 --share new=0.25 --since 20"
    assert command in lines[-1]
    return one, two


@pytest.fixture
def live(begun: tuple[Path, Path], tmp_path: Path) -> Path:
    """The configuration of a loop with a live cycle, and the log of another day."""
    return Path(shutil.copytree(begun[0], tmp_path / "loop", symlinks=True)) / "refresh.toml"


@pytest.fixture
def config(begun: tuple[Path, Path], tmp_path: Path) -> Path:
    """The configuration of a loop with a live cycle and one that is rolled out."""
    return Path(shutil.copytree(begun[1], tmp_path / "loop", symlinks=True)) / "refresh.toml"


def test_a_share_of_the_users_gets_a_new_model(config: Path, call: Any) -> None:
    home = load_config(config).home
    arms = wanted(home / "live")["arms"]
    assert {name: arm["share"] for name, arm in arms.items()} == {MAIN: 0.75, NEW: 0.25}
    for what in ("run", "index"):
        assert cycle_of(arms[MAIN][what]) == "000001" and cycle_of(arms[NEW][what]) == "000002"
        assert cycle_of((home / "live" / what).resolve()) == "000001", "serve --run live/run"
    lines: list[str] = []
    assert refresh(load_config(config), say=lines.append) is None
    assert "000002 is rolled out to 25%" in lines[0] and "limerank promote" in lines[0]
    assert len(list(home.glob("cycles/*"))) == 2, "a rollout is ended before the next begins"

    status, output, _ = call("rollback", str(config))
    assert status == 0 and "000001 is live for all users, cycle 000002 is not" in output
    assert cycle_of(wanted(home / "live")["run"]) == "000001"
    assert [one.outcome for one in Home(home).entries] == ["published", "rolled back"]
    with pytest.raises(FormatError, match="no rollout"):
        promote(home)

    write_day(config.parent / "log", 3)
    entry = refresh(load_config(config))
    assert entry is not None and (entry.cycle, entry.outcome) == ("000003", "rolling out")
    status, output, _ = call("promote", str(config))
    assert status == 0 and "000003 is live for all users" in output
    assert cycle_of(wanted(home / "live")["index"]) == "000003"
    assert Home(home).published == ["000001", "000003"]
    assert roll_back(home) == ("000003", "000001")
    assert cycle_of(wanted(home / "live")["run"]) == "000001"


def test_a_rollout_that_breaks_off_is_settled(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_config(live)
    real = Home.settle

    def breaks(home: Home) -> None:
        if home.rollout is not None:
            raise KeyboardInterrupt
        real(home)

    with monkeypatch.context() as patch:
        patch.setattr(Home, "settle", breaks)
        with pytest.raises(KeyboardInterrupt):
            refresh(loaded)
    assert cycle_of(wanted(loaded.home / "live")["run"]) == "000001", "what is live stays"
    assert refresh(loaded) is None
    assert cycle_of(wanted(loaded.home / "live")["arms"][NEW]["run"]) == "000002"


def test_a_server_follows_a_rollout(config: Path) -> None:
    """Users of the live model's arm stay there; after the rollout all have the new model."""
    home = load_config(config).home
    arms_json = wanted(home / "live")
    roll_back(home)
    watch = home / "live"
    engine = Serving(
        watch / "run", watch / "index", SqliteStore(config.parent / "events.db"), salt="s"
    )
    try:
        background = Background(engine, watch)

        def arms() -> list[str]:
            return [engine.rank(Rank(user=user, k=2))["arm"] for user in range(40)]

        def runs() -> set[str]:
            """Cycles of what is served."""
            cycles = {load_run(one).fingerprint: cycle_of(one) for one in home.glob("cycles/*/run")}
            return {cycles[one.served.trained.fingerprint] for one in engine.arms.currents}

        background._load()
        assert set(arms()) == {MAIN} and runs() == {"000001"}
        put_back(home, "000002")
        assert wanted(watch) == arms_json
        background._load()
        expected = [choose(((MAIN, 0.75), (NEW, 0.25)), user, "s") for user in range(40)]
        assert arms() == expected and set(expected) == {MAIN, NEW}
        assert runs() == {"000001", "000002"}
        started = arms_at_start(watch)
        assert {(one.name, one.share) for one in started} == {(MAIN, 0.75), (NEW, 0.25)}
        promote(home)
        background._load()
        assert set(arms()) == {MAIN} and runs() == {"000002"}
        assert arms_at_start(watch) == ()
        roll_back(home)
        background._load()
        assert runs() == {"000001"}
    finally:
        engine.close()


def put_back(home: Path, cycle: str) -> None:
    """Roll a cycle out again that was rolled back."""
    opened = Home(home)
    (entry,) = (one for one in opened.entries if one.cycle == cycle)
    opened.entries.remove(entry)
    opened.finish(replace(entry, outcome="rolling out"), Rollout(cycle, 0.25, 0))


def report_of(live: float, new: float, users: int) -> dict[str, Any]:
    """Users of both arms with four requests each, and so many outcomes per request."""
    reading, rng = Reading(), np.random.default_rng(0)
    for arm, chance in ((MAIN, live), (NEW, new)):
        for clicks in rng.binomial(4, chance, users).tolist():
            reading.change(arm, NOTHING, Counts(4, {("click",): clicks}))
    return reading.report("click", control=MAIN)


@pytest.mark.parametrize(
    ("live", "new", "users", "elapsed", "expected", "why"),
    [
        (0.3, 0.3, 500, 1, "wait", "23.0 hours more"),
        (0.3, 0.3, 500, 24, "promote", "not certainly worse"),
        (0.5, 0.1, 500, 1, "roll back", "certainly worse"),
        (0.1, 0.5, 500, 1, "promote", "certainly better"),
        (0.5, 0.4, 150, 24, "roll back", "its time is over, and the new model is certainly worse"),
        (0.5, 0.4, 150, 1, "wait", "hours more"),
    ],
)
def test_what_users_did_decides(
    live: float, new: float, users: int, elapsed: int, expected: str, why: str
) -> None:
    """The case of 150 users is certain once, at the planned time, but not at every time."""
    found, reason = decision(report_of(live, new, users), elapsed=elapsed * HOUR, after=DAY_MS)
    assert found == expected and why in reason, reason


def test_nothing_is_decided_without_both_arms() -> None:
    reading = Reading()
    reading.change(MAIN, NOTHING, Counts(4, {("click",): 2}))
    found, reason = decision(reading.report("click", control=MAIN), elapsed=9 * DAY_MS, after=1)
    assert found == "wait" and "no ranking of new was logged" in reason


@pytest.mark.parametrize(("better", "outcome"), [(True, "published"), (False, "rolled back")])
def test_the_next_cycle_decides(
    config: Path, monkeypatch: pytest.MonkeyPatch, better: bool, outcome: str
) -> None:
    """And then goes on with a cycle of its own; here the log has nothing new."""
    export = {"store": "events.db", "folder": "log", "since": "2023-12-20", "window": 60}
    now = 1_700_000_000_000 + 5 * DAY_MS
    for module in (cycles, rollout):
        monkeypatch.setattr(module, "now_ms", lambda: now)
    with SqliteStore(config.parent / "events.db") as store:
        changed(config, export=export, publish={"share": 0.25, "decide": "ab", "after": "12h"})
        home = load_config(config).home
        roll_back(home)
        put_back(home, "000002")
        for user in range(300):
            arm = NEW if user % 3 == 0 else MAIN
            at, ranking = now + user * 1000, f"{arm}.{user}"
            store.show([exposure(user, at, ranking, [1, 2], arm=arm)])
            if (arm == NEW) == better or user % 10 == 0:
                store.append([event(user, at + 5000, f"e{user}", 1, labels={"click": 1.0})])
        now += HOUR
        lines: list[str] = []
        assert refresh(load_config(config), say=lines.append) is None
    assert "click per request: new minus live" in lines[0], lines
    home_now = Home(home)
    assert home_now.entries[1].outcome == outcome and home_now.rollout is None
    assert cycle_of(wanted(home / "live")["run"]) == ("000002" if better else "000001")
    assert "cycle 000003" in lines[2] and "nothing is new" in lines[-1]


def test_a_decision_by_the_store_needs_one(live: Path) -> None:
    with pytest.raises(SpecError, match=r"give \[export\] with the store"):
        load_config(changed(live, publish={"share": 0.1, "decide": "ab"}))


def test_the_length_of_a_rollout_is_a_duration(live: Path) -> None:
    with pytest.raises(SpecError, match="expected days or hours"):
        load_config(changed(live, publish={"share": 0.1, "after": "1w"}))


def test_what_is_live_is_published_with_its_index(config: Path, call: Any, tmp_path: Path) -> None:
    """A rollout is not; promote and rollback publish what is live then."""
    uri = f"file://{tmp_path}/storage/live"
    config.write_text(config.read_text() + f'to = "{uri}"\n')
    pulled = tmp_path / "pulled"

    def published() -> str:
        status, _, error = call("pull", uri, "--out", pulled, "--overwrite", "-q")
        assert status == 0, error
        run, index = pulled / "run/model.safetensors", pulled / "index/manifest.json"
        assert index.exists() and not (pulled / "data").exists()
        (name,) = (
            one.name
            for one in (load_config(config).home / "cycles").iterdir()
            if (one / "run/model.safetensors").read_bytes() == run.read_bytes()
        )
        return name

    refresh(load_config(config))
    assert published() == "000001"
    assert call("promote", config)[0] == 0
    assert published() == "000002"
    assert call("rollback", config)[0] == 0
    assert published() == "000001"
