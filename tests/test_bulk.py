"""Many users at once: the same items as one by one, in a file that a kill cannot spoil."""

from __future__ import annotations

import os

import numpy as np
import polars as pl
import pytest

from limerank.errors import FormatError, SpecError, UnknownError
from limerank.parts import Part
from limerank.ranking import bulk
from limerank.ranking.bulk import join_ranked, rank_all, rank_part
from limerank.ranking.recommender import Recommender
from tests.catalogues import ITEMS, shop


@pytest.fixture(params=["lime-mha", "lime-xor", "two-tower", "anchored"])
def recommender(request):
    """Of models, and of one with anchored links."""
    of = shop("lime-mha", anchors=None) if request.param == "anchored" else shop(request.param)
    return Recommender(of.run, of.index, of.data, threads=2)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_quantised_job_says_what_its_batches_say(recommender, tmp_path, exclude_seen):
    """Bit for bit. A user alone may be a step of its codes away, where a sum's last bit differs."""
    out, rows = tmp_path / "recs.parquet", recommender.user_rows(None)
    rank_all(recommender, out, k=7, exclude_seen=exclude_seen, batch=4)
    batches = [
        recommender.rank_users(rows[at : at + 4], k=7, exclude_seen=exclude_seen)
        for at in range(0, len(rows), 4)
    ]
    values = np.concatenate([top.values[top.rows >= 0] for top in batches])
    items = np.concatenate([recommender.index.ids[top.rows[top.rows >= 0]] for top in batches])
    table = pl.read_parquet(out)
    assert (table["value"].to_numpy() == values).all() and table["item"].to_list() == items.tolist()


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_many_users_are_ranked_as_each_alone(recommender, tmp_path, exclude_seen):
    recommender = Recommender(
        recommender.run, recommender.index, recommender.dataset, scorer="model"
    )
    out = tmp_path / "recs.parquet"
    done = rank_all(recommender, out, k=7, exclude_seen=exclude_seen, batch=4)
    table = pl.read_parquet(out)
    users = recommender.dataset.user_ids
    assert done.to_dict() == {"users": len(users), "rows": len(table)}
    assert done.to_polars().equals(table) and f"{len(users)} users" in repr(done)
    assert table.columns == ["user", "rank", "item", "value", "click", "watch"]
    for user in users:
        alone = recommender.rank(user, k=7, exclude_seen=exclude_seen)
        found = table.filter(pl.col("user") == user)
        assert found["rank"].to_list() == list(range(1, len(alone) + 1))
        np.testing.assert_allclose(
            found["value"], [item.value for item in alone], rtol=1e-4, atol=1e-4
        )
        same = sum(a == item.id for a, item in zip(found["item"], alone, strict=True))
        assert same >= len(alone) - 2  # equal but for rounding
        for task in ("click", "watch"):
            predicted = [item.scores[task] for item in alone]
            np.testing.assert_allclose(found[task], predicted, rtol=1e-3, atol=1e-4)


def test_many_users_are_ranked_with_rules(tmp_path):
    of, out = shop("lime-mha"), tmp_path / "recs.parquet"
    recommender = Recommender(of.run, of.index, of.data)
    rules = {"pins": [{"item": 5, "position": 2}]}
    users = of.data.user_ids[:6].tolist()
    done = rank_all(recommender, out, users=users, k=4, rules=rules)
    table = done.to_polars()
    assert done.users == 6 and table["user"].unique(maintain_order=True).to_list() == users
    for user in users:
        alone = recommender.rank(user, k=4, rules=rules)
        found = table.filter(pl.col("user") == user)
        assert found["item"].to_list() == [one.id for one in alone] and found["item"][1] == 5
        assert found["rank"].to_list() == [1, 2, 3, 4]
        np.testing.assert_allclose(found["click"], [one.scores["click"] for one in alone], 1e-6)
    with pytest.raises(SpecError, match="position"):
        rank_all(recommender, tmp_path / "b.parquet", users=users, rules={"pins": [{"item": 5}]})


def test_many_users_are_ranked_as_of_a_time(recommender, tmp_path):
    recommender = Recommender(
        recommender.run, recommender.index, recommender.dataset, scorer="model"
    )
    middle = int(np.median(recommender.dataset.events["time"]))
    rank_all(recommender, tmp_path / "recs.parquet", k=5, batch=4, time=middle)
    table = pl.read_parquet(tmp_path / "recs.parquet")
    for user in recommender.dataset.user_ids[::5]:
        alone = recommender.rank(user, k=5, time=middle)
        values = table.filter(pl.col("user") == user)["value"]
        np.testing.assert_allclose(values, [i.value for i in alone], rtol=1e-4, atol=1e-4)


def test_a_killed_job_goes_on(recommender, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "PART", 8)
    full = tmp_path / "full.parquet"
    rank_all(recommender, full, k=5)
    ranked, seen = bulk._ranked, []

    def dies(recommender, users, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(users)
        return ranked(recommender, users, *rest)

    out = tmp_path / "recs.parquet"
    monkeypatch.setattr(bulk, "_ranked", dies)
    with pytest.raises(KeyboardInterrupt):
        rank_all(recommender, out, k=5)
    assert not out.exists()
    monkeypatch.setattr(bulk, "_ranked", ranked)
    with pytest.raises(FormatError, match="had another k; call it with the same arguments"):
        rank_all(recommender, out, k=6)
    again = []
    monkeypatch.setattr(
        bulk, "_ranked", lambda r, users, *rest: again.append(users) or ranked(r, users, *rest)
    )
    rank_all(recommender, out, k=5)
    assert len(seen) + len(again) == -(-len(recommender.dataset.user_ids) // 8)
    assert pl.read_parquet(out).equals(pl.read_parquet(full))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.parquet", "recs.parquet"]


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_joined_parts_are_the_file_of_one_process(recommender, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(bulk, "PART", 8)
    one, out = tmp_path / f"one{ending}", tmp_path / f"joined{ending}"
    rank_all(recommender, one, k=5, batch=4)
    for number in (3, 1, 2):  # of four files
        rank_part(recommender, out, Part(number, 3), k=5, batch=4)
        assert not out.exists()
    assert rank_part(recommender, out, Part(5, 9), k=5, batch=4) >= 0  # of other sizes as well
    done = join_ranked(recommender, out, k=5)
    assert out.read_bytes() == one.read_bytes() and done.users == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([one.name, out.name])


@pytest.mark.parametrize("written", ["{", "{}", '{"k": 3}'])
def test_a_stopped_job_of_another_version_can_be_started_over(recommender, tmp_path, written):
    out = tmp_path / "recs.parquet"
    partial = bulk.partial_of(out)
    partial.mkdir()
    (partial / bulk.JOB).write_text(written)
    with pytest.raises(FormatError, match=r"\. Pass --overwrite, or remove .*, to start over"):
        rank_all(recommender, out, k=3)
    assert rank_all(recommender, out, k=3, overwrite=True).rows


def test_a_part_is_computed_once_and_not_for_another_job(recommender, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "PART", 8)
    out = tmp_path / "recs.parquet"
    assert rank_part(recommender, out, Part(1, 2), k=5) == 16
    with pytest.raises(FormatError, match=r"lacks 14 of 30 users, the first one at 16: .*--part"):
        join_ranked(recommender, out, k=5)
    with pytest.raises(FormatError, match=r"parts of another job \(k 5, now 6\)"):
        rank_part(recommender, out, Part(2, 2), k=6)
    with pytest.raises(FormatError, match="another job"):
        join_ranked(recommender, out, k=6)
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "_ranked", None)
        assert rank_part(recommender, out, Part(1, 2), k=5) == 16
    assert rank_part(recommender, out, Part(2, 2), k=5) == 14
    join_ranked(recommender, out, k=5)
    with pytest.raises(FormatError, match="already exists"):
        join_ranked(recommender, out, k=5)
    with pytest.raises(FormatError, match="no parts to join"):
        join_ranked(recommender, out, k=5, overwrite=True)


def test_arguments(recommender, tmp_path):
    out = tmp_path / "recs.parquet"
    some = recommender.dataset.user_ids[[3, 1]].tolist()
    done = rank_all(recommender, out, users=some, k=ITEMS + 9, task_weights={"watch": 1.0})
    table = pl.read_parquet(out)
    assert done.users == 2 and table["user"].unique(maintain_order=True).to_list() == some
    best = recommender.rank(some[0], k=3, task_weights={"watch": 1.0})
    assert table["item"][0] == best[0].id
    with pytest.raises(FormatError, match="already exists"):
        rank_all(recommender, out)
    assert rank_all(recommender, out, users=[], overwrite=True).rows == 0
    assert pl.read_parquet(out).columns == table.columns
    with pytest.raises(UnknownError, match="1 of 2 users are not in"):
        rank_all(recommender, tmp_path / "no.parquet", users=[some[0], -5])
    with pytest.raises(SpecError, match="k is 0"):
        rank_all(recommender, tmp_path / "no.parquet", k=0)
    with pytest.raises(UnknownError, match="no task is called 'buy'"):
        rank_all(recommender, tmp_path / "no.parquet", task_weights={"buy": 1.0}, overwrite=True)


def test_the_command(call, tmp_path):
    of = shop("lime-mha")
    given = ["rank", "--run", of.run.path, "--index", of.index.path, "--data", of.data.path]
    out = tmp_path / "recs.parquet"
    status, output, _ = call(
        *given, "--all-users", "-k", 3, "--out", out, "--threads", 2, "--quiet"
    )
    assert status == 0 and f"{out}: the best 3 of {ITEMS} items for" in output
    assert len(pl.read_parquet(out)) == 3 * len(of.data.user_ids)
    user = of.data.user_ids[0]
    status, *_ = call(*given, "--users", user, "--out", out, "--overwrite", "--quiet")
    assert status == 0 and pl.read_parquet(out)["user"].unique().to_list() == [user]
    parted = tmp_path / "parted.parquet"
    many = [*given, "--all-users", "-k", 3, "--out", parted, "--quiet"]
    for more, what in (
        (["--part", "2/2"], "part 2/2, 30 users"),
        (["--part", "1/2"], "part 1/2, 0 users"),
        (["--join"], "90 ranked items of 30 users"),
    ):
        status, output, _ = call(*many, *more)
        assert status == 0 and what in output
    for wrong, what in (
        (["--all-users"], "need --out"),
        (["--all-users", "--out", out, "--explain"], "--explain is for one user"),
        (["--all-users", "--out", out, "--part", "1/2", "--join"], "leave out --join"),
        (["--user", user, "--part", "1/2"], "go with --all-users"),
    ):
        status, output, error = call(*given, *wrong)
        assert status == 2 and what in output + error


def test_parts_of_a_job_are_durable_before_they_get_their_names(recommender, tmp_path, monkeypatch):
    """Else a job that is resumed after a power loss reads a part that was torn."""
    synced, fsync = [], os.fsync

    def record(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr("shutil.rmtree", lambda path: None)
    rank_all(recommender, tmp_path / "out.parquet", k=3)
    parts = sorted((tmp_path / "out.parquet.partial").glob("part-*.parquet"))
    assert parts and {part.stat().st_ino for part in parts} <= set(synced)
