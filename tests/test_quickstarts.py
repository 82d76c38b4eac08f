"""Each quickstart on a small log of its layout: its description, its commands, its Python."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.documents import ROOT, blocks, run

FOLDER = ROOT / "docs" / "quickstarts"
USERS, ITEMS = 30, 40
START = 1_718_000_000


def clicked(rng: np.random.Generator, user: int, item: int) -> int:
    """Users like one item in four, the same ones each time."""
    return int(rng.random() < (0.8 if item % 4 == user % 4 else 0.2))


def write(path: Path, columns: str, rows: list[tuple[object, ...]]) -> None:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")


def impressions(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows: list[tuple[object, ...]] = []
    for view in range(8 * USERS):
        user = view % USERS
        time = np.datetime64(START + 3600 * view, "s")
        for position, item in enumerate(rng.choice(ITEMS, 4, replace=False), 1):
            device = ["phone", "desktop"][view % 2]
            click = clicked(rng, user, int(item))
            rows.append((9000 + view, user, int(item), f"{time}Z", position, device, click))
    write(
        folder / "impressions.csv",
        "view_id,user_id,item_id,shown_at,position,device,clicked",
        rows,
    )
    products = [(item, f"c{item % 4}", 9.9 + item, f"a|b{item % 5}") for item in range(ITEMS)]
    write(folder / "products.csv", "item_id,category,price,tags", products)


def sessions(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"s{user}", step, f"hotel-{item}", clicked(rng, user, item))
        for user in range(2 * USERS)
        for step, item in enumerate(rng.integers(0, ITEMS + 1, 16).tolist(), 1)
    ]
    rows += [("s0", 17 + step, f"hotel-{item}", 0) for step, item in enumerate((12, 40))]
    write(folder / "steps.csv", "session,step,item,chosen", rows)


def watch_time(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        for step, item in enumerate(rng.integers(0, ITEMS, 30).tolist()):
            click, length = clicked(rng, user, item), 5000 + 1000 * item
            watched = int(click * length * rng.random())
            time = 1000 * (START + 7200 * step + user)
            rows.append((user, item, time, click, watched, length))
    write(folder / "plays.csv", "user_id,video_id,time_ms,is_click,play_time_ms,duration_ms", rows)


def positives(folder: Path) -> None:
    """Visits: two views of items that the user likes, a cart, and every other time a purchase."""
    rng = np.random.default_rng(0)
    rows = []
    for visit in range(8 * USERS):
        user, begin = visit % USERS, START + 3600 * visit
        item = int(rng.integers(0, ITEMS // 4)) * 4 + user % 4
        kinds = ("view", "view", "cart", "purchase")[: 3 + visit // USERS % 2]
        for step, kind in enumerate(kinds):
            seen = item if step else int(rng.integers(0, ITEMS))
            rows.append((user, seen, f"{np.datetime64(begin + 60 * step, 's')}Z", kind))
    write(folder / "events.csv", "user_id,item_id,time,event", rows)
    products = [(item, f"Shoe {item}", f"c{item % 4}", f"${9 + item}.90") for item in range(ITEMS)]
    write(folder / "products.csv", "item_id,title,category,price", products)


LOGS: dict[str, Callable[[Path], None]] = {
    "impressions": impressions,
    "sessions": sessions,
    "watch-time": watch_time,
    "positives": positives,
}


def test_every_quickstart_has_a_log():
    assert {page.stem for page in FOLDER.glob("*.md")} - {"index"} == LOGS.keys()


@pytest.mark.parametrize("name", LOGS)
def test_a_quickstart_leads_to_ranked_items(name, tmp_path, call, monkeypatch):
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    LOGS[name](tmp_path)
    written = {path.read_text().splitlines()[0] for path in tmp_path.iterdir()}
    headers = [code.splitlines()[0] for code in blocks(page, "") if "," in code.splitlines()[0]]
    assert {line for line in headers if not line.startswith(("limerank", "curl"))} <= written

    monkeypatch.chdir(tmp_path)
    (spec,) = blocks(page, "toml")
    (commands,) = blocks(page, "sh")
    described = shlex.split(commands.splitlines()[0])[2]
    Path(described).write_text(spec)
    output = ""
    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        assert program == "limerank"
        status, output, errors = call(*arguments)
        assert status == 0, f"{command}\n{errors}"
    if "limerank rank" in commands:
        assert len([line for line in output.splitlines() if line.strip()]) == 2 + 5
    for code in blocks(page, "python"):
        assert len(run(code, tmp_path).splitlines()) == 5
