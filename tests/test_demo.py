"""The demo and the report: every step, skipped steps, and a page that loads nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from limerank.cli.demo_kinds import DEMOS, SHOP, VIDEOS
from limerank.cli.walkthrough import demo
from limerank.errors import FormatError, SpecError
from limerank.evaluation.evaluate import evaluate
from limerank.models.config import ModelConfig, TrainConfig
from limerank.report import page as report
from limerank.report.page import write_report
from limerank.training.trainer import train
from tests.worlds import prepare_log

TINY = {
    "log": {"users": 120, "items": 150, "events": 6000},
    "train": {"epochs": 1, "batch_size": 1024},
    "users": 2,
}


class _Page(HTMLParser):
    """Open tags, and everything that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _check(path: Path) -> _Page:
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert all(load.startswith("#") for load in page.loads)
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, list[str]]:
    out, output = tmp_path_factory.mktemp("demo") / "demo", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEMOS, "videos", replace(VIDEOS, sizes={True: TINY}))
        demo(out, small=True, quiet=True, echo=output.append)
    return out, output


def test_every_step_is_made_and_reported(folder):
    out, output = folder
    text = "\n".join(output)
    for number in range(1, 8):
        assert f"[{number}/7]" in text
    for part in ("logs", "data", "runs/two-tower", "runs/lime-mha", "runs/lime-xor", "index"):
        assert (out / part).is_dir()
    assert "best possible" in text
    assert "because of" in text
    assert "limerank prepare spec.toml" in text
    page = _check(out / "report.html")
    assert page.tags["svg"] >= 9


def test_finished_steps_are_not_repeated(folder, monkeypatch):
    out, _ = folder
    monkeypatch.setitem(DEMOS, "videos", replace(VIDEOS, sizes={True: TINY}))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    output: list[str] = []
    demo(out, small=True, quiet=True, echo=output.append)
    assert sum("skipped" in line for line in output) == 6
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} == {"report.html"}


def test_another_folder_is_not_touched(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FormatError, match="contains something else"):
        demo(tmp_path, small=True, quiet=True)
    with pytest.raises(FormatError, match="other settings"):
        demo(folder[0], small=True, quiet=True)


def test_the_demo_of_a_shop(tmp_path, monkeypatch):
    tiny = {
        "log": {"users": 200, "items": 120, "events": 6000, "days": 20},
        "train": {"epochs": 1},
        "users": 2,
    }
    monkeypatch.setitem(DEMOS, "shop", replace(SHOP, sizes={True: tiny}))
    out, output = tmp_path / "demo", []
    made = demo(out, kind="shop", small=True, quiet=True, echo=output.append)
    text = "\n".join(output)
    for number in range(1, 8):
        assert f"[{number}/7]" in text
    best = made["ceiling"]
    assert 0 < best["ndcg@10"] < best["hr@10"] <= 1
    table = {line.split()[0]: line.split()[-3:] for line in text.splitlines() if "." in line[-5:]}
    for name in ("lime-mha", "lime-xor", "item-knn", "most-popular"):
        assert len(table[name]) == 3
    assert table["best"] == [f"{best[name]:.4f}" for name in ("hr@10", "ndcg@10", "coverage@10")]
    assert "limerank demo --kind shop --small --out" in text
    assert made["items"].exists()
    _check(out / "report.html")
    with pytest.raises(FormatError, match="other settings"):
        demo(out, small=True, quiet=True)
    with pytest.raises(SpecError, match="did you mean 'shop'"):
        demo(out, kind="shops", quiet=True)


def test_a_report_of_one_run(tmp_path):
    data = prepare_log(tmp_path)
    run = tmp_path / "run"
    model = ModelConfig(model="lime-mha", width=16, heads=2, links=4, hidden=8)
    train(data, run, model=model, config=TrainConfig(epochs=1, batch_size=64))
    with pytest.raises(FormatError, match=r"limerank evaluate .*run"):
        write_report(tmp_path / "page.html", runs=[run])
    evaluate(run)
    write_report(tmp_path / "page.html", runs=[run])
    _check(tmp_path / "page.html")
    write_report(tmp_path / "again.html", runs=[run])
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "again.html").read_bytes()


def test_slices_of_two_runs_stand_below_each_other(monkeypatch):
    def run(**aucs):
        return {
            "tasks": {"click": {"auc": 0.6}},
            "slices": [
                {
                    "kind": "history",
                    "slice": name,
                    "impressions": 0 if auc is None else 9,
                    "tasks": {} if auc is None else {"click": {"auc": auc}},
                }
                for name, auc in aucs.items()
            ],
        }

    drawn = []
    monkeypatch.setattr(report.charts.plots, "slices", lambda *given: drawn.append(given) or "")
    report.charts.slices(
        ["a", "b"], [run(few=None, some=0.6, many=0.7), run(few=0.5, some=None, many=1)]
    )
    ((_, names, counts, lines, *_),) = drawn
    assert (names, counts) == (["some", "many"], [9, 9])
    np.testing.assert_array_equal([line.y for line in lines], [[0.6, 0.7], [np.nan, 1]])
