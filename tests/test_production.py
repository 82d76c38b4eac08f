"""The page that leads from a log to production: its commands, from the first model to a restored
backup, on a small shop."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from limerank.cli.app import COMMANDS, command_of
from limerank.index import Index
from limerank.refresh import cycle
from limerank.refresh.home import Home
from limerank.runs.folder import load_run
from limerank.serving.stores import SqliteStore, ValkeyStore
from limerank.serving.watched import wanted
from tests.documents import ROOT, blocks
from tests.stores import event, exposure
from tests.valkey_server import Server, needs_server, server

PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
USERS, ITEMS, SHOWN = 30, 40, 4
DAY = 86_400_000
JUNE = 1_780_272_000_000
"""2026-06-01, in milliseconds: since when the page exports."""
QUICK = """
[train]
epochs = 1
width = 16
links = 4
hidden = 8
profile = 8

[gate]
alarms = false
tolerance = 1.0
most_ne = 9.0
"""
"""A model in seconds, which the gate lets pass."""
TOOLS = ("sqlite3", "flock")


def write_shop(folder: Path) -> None:
    """A log of two days, the item table, and what the page says of them."""
    rng = np.random.default_rng(0)
    rows = []
    for view in range(8 * USERS):
        time = JUNE - 2 * DAY + view * 500_000
        for position, item in enumerate(rng.choice(ITEMS, SHOWN, replace=False), 1):
            user = view % USERS
            clicked = int(rng.random() < (0.8 if item % 4 == user % 4 else 0.1))
            device = ("phone", "desk")[view % 2]
            rows.append((user, item, time, "shown", f"v{view}", position, device, clicked))
    rows.append((0, 4, JUNE - DAY, "event", "", "", "phone", 1))
    products = [(item, f"c{item % 4}", 9.9 + item) for item in range(ITEMS)]
    log, table, *_ = (code for code in blocks(PAGE, "") if "_id," in code.splitlines()[0])
    (folder / "logs").mkdir()
    for name, given, of in (("logs/2026-05.csv", log, rows), ("products.csv", table, products)):
        lines = [given.splitlines()[0], *(",".join(map(str, row)) for row in of)]
        (folder / name).write_text("\n".join(lines) + "\n")
    shop, loop = blocks(PAGE, "toml")
    (folder / "shop.toml").write_text(shop)
    (folder / "refresh.toml").write_text(loop + QUICK)


def a_day_passes(store: SqliteStore, day: int = JUNE) -> None:
    """Rankings that were shown on a day, and clicks on their first items."""
    for view in range(2 * USERS):
        user, time = view % USERS, day + view * 600_000
        items = [(view + 7 * step) % ITEMS for step in range(SHOWN)]
        context = {"device": "phone"}
        store.show([exposure(user, time, f"main.{day}.{view}", items, context=context)])
        labels = {"clicked": 1.0}
        store.append([event(user, time + 60_000, f"{day}.{view}", items[0], labels=labels)])


@pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"not installed: apt-get install {' '.join(TOOLS)}"
)
def test_the_page_leads_from_a_log_to_a_restored_backup(tmp_path, call, monkeypatch):
    first, daily, rollback, backup, restore = blocks(PAGE, "sh")
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)

    def run(commands: str) -> str:
        output = ""
        for command in commands.splitlines():
            program, *arguments = shlex.split(command)
            if program == "limerank":
                status, output, errors = call(*arguments)
                assert status == 0, f"{command}\n{output}\n{errors}"
            else:
                subprocess.run(["sh", "-c", command], check=True)
        return output

    def live() -> str:
        found = wanted(Path("home/live"))
        index = Index.open(found["index"], load_run(found["run"]).fingerprint)
        assert len(index) == ITEMS
        return Path(found["run"]).parent.name

    run(first)
    assert live() == "000001"
    with SqliteStore("events.db") as store:
        before = store.counts()
        assert before.users == USERS and before.events == 8 * USERS * SHOWN + 1
        a_day_passes(store)
        monkeypatch.setattr(cycle, "now_ms", lambda: JUNE + DAY)
        run(daily)
        assert live() == "000002"
        exported = pl.read_parquet("logs/exported-000002.parquet")
        assert exported.height == 2 * USERS * SHOWN
        assert exported["clicked"].sum() == 2 * USERS
        assert "000001 is live" in run(rollback)
        assert live() == "000001"

        run(backup)
        assert Path("backup/home/live").is_symlink()
        store.append([event(1, JUNE + DAY, "later", 3, labels={"clicked": 1.0})])
    other = tmp_path / "other"
    other.mkdir()
    shutil.move("backup", other / "backup")
    monkeypatch.chdir(other)
    run(restore)
    assert live() == "000001" and Home(Path("home")).published == ["000001"]
    with SqliteStore("events.db") as store:
        assert store.counts().events == before.events + 2 * USERS
        assert len(store.exposures(1, 0, JUNE + DAY)) == 2
        a_day_passes(store, JUNE + DAY)
    monkeypatch.setattr(cycle, "now_ms", lambda: JUNE + 2 * DAY)
    run(daily)
    assert live() == "000003", "the restored loop goes on"
    assert pl.read_parquet("logs/exported-000003.parquet").height == 2 * USERS * SHOWN


CLIENT = shutil.which("valkey-cli") or shutil.which("redis-cli")


@needs_server
def test_a_copy_of_valkey_is_restored_as_the_page_says(tmp_path):
    assert CLIENT is not None
    for step in ("--rdb backup.rdb", "`dump.rdb`", "--appendonly no", "config set appendonly yes",
                 "aof_rewrite_in_progress"):  # fmt: skip
        assert step in PAGE

    def client(folder: Path, *words: str) -> str:
        command = [CLIENT, "-s", f"{folder}/socket", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    events = [event(user, JUNE, f"e{user}") for user in range(50)]
    with server("--repl-diskless-sync-delay", "0") as running, ValkeyStore(running.url) as store:
        store.append(events)
        client(running.folder, "--rdb", str(tmp_path / "dump.rdb"))
        store.append([event(1, JUNE + DAY, "later")])
    folder = Path(tempfile.mkdtemp(prefix="limerank-valkey-"))  # short: sockets have short names
    try:
        shutil.copy(tmp_path / "dump.rdb", folder)
        restored = Server(folder, "--appendonly", "no")
        client(folder, "config", "set", "appendonly", "yes")
        looks = (client(folder, "info", "persistence") for _ in range(1000))
        assert any("aof_rewrite_in_progress:0" in text for text in looks)
        restored.kill()
        restored = Server(folder)  # with its usual settings
        with ValkeyStore(restored.url) as store:
            assert store.counts() == (50, 50) and store.check() == []
        restored.kill()
    finally:
        shutil.rmtree(folder)


def command_lines(text: str) -> list[list[str]]:
    """Calls of limerank in code of a page, and in a file of deploy: command and options."""
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = joined.replace("run --rm refresh ", "run limerank ")
    calls = re.findall(r"(?:^|[ /`\"(])limerank ([a-z]+)((?: [^\n`]*)?)", joined, re.MULTILINE)
    return [[name, *re.findall(r"(?<=\s)--[a-z][a-z-]*", rest)] for name, rest in calls]


def test_options_of_all_commands_exist():
    """On the page, and in what is shipped."""
    options = {
        name: {"--help"}.union(*(one.opts for one in command_of(name).params)) for name in COMMANDS
    }
    files = [ROOT / "docs" / "production.md"]
    files += [ROOT / "deploy" / "README.md", *(ROOT / "deploy" / "systemd").iterdir()]
    asked = [
        (file.name, *line) for file in files for line in command_lines(file.read_text("utf-8"))
    ]
    assert {name for _, name, *_ in asked} >= {"refresh", "rollback", "serve", "export", "fill"}
    wrong = [
        f"{file}: limerank {name} {option}"
        for file, name, *given in asked
        if name in options
        for option in given
        if option not in options[name]
    ]
    assert not wrong, "\n".join(wrong)
