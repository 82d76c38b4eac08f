"""Parts of a log: what they retain, the same on every machine."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks.datasets import LOGS, QUICK, SIMULATED, SPARSE
from benchmarks.samples import PARTS, Part, retained, write_part
from limerank.data.description import load_spec
from limerank.data.prepare import prepare


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    user = np.sort(rng.integers(0, 50, 5000))
    frame = pl.DataFrame({"user_id": user, "item_id": rng.integers(0, 40, 5000)})
    return frame.with_columns(
        pos=pl.int_range(pl.len()).over("user_id"), label_like=rng.integers(0, 2, 5000)
    )


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_users_and_items_are_retained_with_all_their_events(events, column):
    part = Part("any", **{{"user_id": "users", "item_id": "items"}[column]: 0.2})
    found = retained(events, part)
    ids = found[column].unique().implode()
    assert found[column].n_unique() == round(0.2 * events[column].n_unique())
    assert found.equals(events.filter(pl.col(column).is_in(ids)))
    assert found.equals(retained(events, part))


def test_events_are_thinned_within_every_user_in_their_order(events):
    found = retained(events, Part("any", events=0.1))
    counts = events.group_by("user_id").len().sort("user_id")["len"].to_list()
    thinned = found.group_by("user_id").len().sort("user_id")["len"].to_list()
    assert thinned == [count // 10 for count in counts]
    assert found.columns == events.columns
    assert found.equals(found.sort("user_id", "pos"))
    assert found["pos"].max() > 20  # from all over the history


def test_a_part_prepares_like_the_log_that_it_is_of(events, tmp_path, monkeypatch):
    (tmp_path / "log").mkdir()
    events.write_parquet(tmp_path / "log" / "events.parquet")
    (tmp_path / "log" / "spec.toml").write_text(
        'name = "full"\n[[events]]\nfiles = ["events.parquet"]\norder = "pos"\n'
        '[[labels]]\nname = "like"\nkind = "binary"\ncolumn = "label_like"\n'
        '[split]\nby = "position"\n[requests]\nsize = 4\n'
    )
    monkeypatch.setitem(PARTS, "few", Part("full", users=0.1))
    spec = write_part(
        "few", load_spec(tmp_path / "log" / "spec.toml"), tmp_path / "log", tmp_path / "few"
    )
    summary = prepare(spec, tmp_path / "data", base=tmp_path / "log").to_dict()
    assert summary["counts"]["users"] == 5


def test_every_log_that_is_made_here_is_among_the_logs():
    assert {*PARTS, *SIMULATED, SPARSE} - {QUICK} < set(LOGS)
    assert len(LOGS) >= 8
