"""What runs beside the requests goes on, whatever it meets."""

from __future__ import annotations

import json
import os
import threading
import time
from types import SimpleNamespace

import pytest

from limerank.errors import FormatError, SpecError, StoreError
from limerank.serving.telemetry import Numbers
from limerank.serving.watched import wanted
from limerank.serving.watching import Background, delay_of

SECONDS = 0.01
PATIENCE = 30.0


class Engine:
    """Counts what it is asked for; each attempt raises what is in line, if anything is."""

    def __init__(self):
        self.numbers = Numbers()
        self.raises = {"follow": [], "verify": [], "store": [], "tally": [], "watch": []}
        self.attempts = dict.fromkeys(self.raises, 0)
        self.loaded = []

    def _attempt(self, name):
        self.attempts[name] += 1
        if self.raises[name]:
            raise self.raises[name].pop(0)

    def follow(self):
        self._attempt("follow")

    def verify(self):
        self._attempt("verify")

    def check_store(self):
        self._attempt("store")

    def tally(self):
        self._attempt("tally")

    def reload(self, run, index):
        self._attempt("watch")
        self.loaded.append((run, index))

    def number(self, name, task):
        return self.numbers.registry.get_sample_value(name, {"task": task})


def until(done):
    limit = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < limit
        time.sleep(SECONDS)


@pytest.fixture
def beside():
    started = []

    def start(engine, watch=None):
        started.append(Background(engine, watch, seconds=SECONDS))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.mark.parametrize("task", ["follow", "verify", "store"])
def test_whatever_is_raised_is_counted_and_tried_again(beside, task, caplog):
    engine = Engine()
    errors = [
        StoreError("away", detail="away, at a place"),
        OSError(24, "Too many open files"),
        RecursionError("deep"),
        MemoryError(),
        SystemExit(1),
        KeyboardInterrupt(),
    ]
    engine.raises[task] = list(errors)
    beside(engine)
    until(lambda: engine.attempts[task] >= len(errors) + 2)
    until(lambda: engine.number("limerank_background_failing", task) == 0)
    assert engine.number("limerank_background_failures_total", task) == len(errors)
    reported = [one for one in caplog.records if f"{task} failed" in one.getMessage()]
    assert len(reported) == len(errors) and all(one.exc_info for one in reported)
    assert (
        "at a place" in reported[0].getMessage()
        and "Too many open files" in reported[1].getMessage()
    )
    others = {"follow", "verify", "store"} - {task}
    assert all(engine.number("limerank_background_failures_total", one) == 0 for one in others)


def test_attempts_come_later_and_later_but_not_for_ever(beside, monkeypatch):
    monkeypatch.setattr("limerank.serving.watching.LONGEST", 4 * SECONDS)
    engine = Engine()
    engine.raises["follow"] = [ValueError(str(k)) for k in range(12)]
    beside(engine)
    until(lambda: engine.attempts["follow"] > 12)


@pytest.mark.parametrize(
    "content",
    [b'{"run": 5}', b'{"run": ["a"]}', b"[" * 100_000, b'{"run":', b"\xff\xfe", b"[]",
     b'{"x": "y"}', b'{"run": ""}', b'{"run": "' + b"a" * 70_000 + b'"}'],
)  # fmt: skip
def test_a_watched_file_that_says_nothing_does_no_harm(beside, tmp_path, content):
    watch, engine = tmp_path / "live.json", Engine()
    watch.write_bytes(content)
    with pytest.raises(SpecError, match="live"):
        wanted(watch)
    beside(engine, watch)
    until(lambda: engine.number("limerank_background_failures_total", "watch"))
    watch.write_text(json.dumps({"run": "there"}))
    until(lambda: engine.loaded == [("there", None)])
    until(lambda: engine.number("limerank_background_failing", "watch") == 0)


def test_what_was_refused_is_tried_again(beside, tmp_path):
    watch, engine = tmp_path / "live.json", Engine()
    beside(engine, watch)
    engine.raises["watch"] = [FormatError("half a run"), RuntimeError("odd")]
    watch.write_text(json.dumps({"run": "there", "index": "here"}))
    until(lambda: engine.loaded == [("there", "here")])
    attempts = engine.attempts["watch"]
    until(lambda: engine.attempts["follow"] > 5)
    assert engine.attempts["watch"] == attempts == 3, "loaded once"


def test_links_of_a_folder(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "live").mkdir()
    assert wanted(None) == wanted(tmp_path / "nothing") == wanted(tmp_path / "live") == {}
    (tmp_path / "live" / "run").symlink_to(tmp_path / "one")
    assert wanted(tmp_path / "live") == {"run": str((tmp_path / "one").resolve())}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "live.json")
    found = []

    def look():
        with pytest.raises(FormatError, match="not a regular file"):
            wanted(tmp_path / "live.json")
        found.append(True)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found


def test_a_watched_file_may_name_arms(tmp_path):
    file = tmp_path / "serving.json"
    file.write_text('{"arms": {"a": {"share": 0.5, "run": "r", "index": "i"}}}')
    (arm,) = wanted(file)["arms"].items()
    assert arm[0] == "a" and (arm[1]["share"], arm[1]["run"], arm[1]["index"]) == (0.5, "r", "i")
    for text in ('{"arms": {"a": {}}}', '{"arms": {"a b": {"share": 1}}}', '{"arms": {}}'):
        file.write_text(text)
        with pytest.raises(SpecError, match="arms"):
            wanted(file)


def test_servers_load_a_change_in_a_wave(tmp_path, monkeypatch):
    """Each at a moment of its own, within the time that is given."""
    change = {"run": "a", "index": "b"}
    delays = [delay_of(f"host-{number}:8000", change, 600.0) for number in range(200)]
    assert 0 <= min(delays) < 30 and 570 < max(delays) < 600 and len(set(delays)) == 200
    assert delays[7] == delay_of("host-7:8000", dict(reversed(change.items())), 600.0)
    assert delay_of("host-7:8000", {"run": "c"}, 600.0) != delays[7]
    assert delay_of("host-7:8000", change, 0.0) == 0.0

    watch, engine, now = tmp_path / "live.json", Engine(), [1000.0]
    background = Background(engine, watch, wave=600.0, name="host-7:8000")
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("limerank.serving.watching.time", clock)
    watch.write_text(json.dumps(change))
    background._load()
    now[0] += delays[7] - 0.5
    background._load()
    assert not engine.loaded
    now[0] += 1
    background._load()
    background._load()
    assert engine.loaded == [("a", "b")]
