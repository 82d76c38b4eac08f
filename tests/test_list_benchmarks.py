"""Benchmarks of ranked lists: the next item of MovieLens, and the simulated shop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import lists_page, negatives, negatives_page, nextitem, shop
from benchmarks.rows import rows
from limerank.cli.demo_kinds import best_lists
from limerank.data.dataset import Dataset

USERS, FILMS = 60, 40


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    """A folder of the official layout, whose users rated several films in the same second."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "ml_latest_small"
    folder.mkdir(parents=True)
    ratings = [
        (user, int(film), 1 + int(rng.integers(0, 9)) / 2, 1000 + int(rng.integers(0, 6)))
        for user in range(1, USERS + 1)
        for film in rng.permutation(FILMS)[: rng.integers(8, 20)]
    ]
    names = ["userId", "movieId", "rating", "timestamp"]
    pl.DataFrame(ratings, names, orient="row").write_csv(folder / "ratings.csv")
    pl.DataFrame(
        {
            "movieId": range(FILMS),
            "title": [f"Film {one} ({1990 + one})" for one in range(FILMS)],
            "genres": ["Drama|War" if one % 2 else "Comedy" for one in range(FILMS)],
        }
    ).write_csv(folder / "movies.csv")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (negatives, nextitem, shop):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.setattr("benchmarks.rows.RESULTS", tmp_path / "results")


def test_ratings_are_ordered_by_time_then_as_in_the_file(movielens: Path, tmp_path: Path) -> None:
    source = movielens / "ml_latest_small" / "ratings.csv"
    nextitem.write_in_order(source, tmp_path / "out.parquet")
    ratings, found = pl.read_csv(source), pl.read_parquet(tmp_path / "out.parquet")
    wanted: dict[int, list[tuple[int, int, int]]] = {}
    for line, (user, film, _, time) in enumerate(ratings.rows()):
        wanted.setdefault(user, []).append((time, line, film))
    assert any(len({time for time, _, _ in of}) < len(of) for of in wanted.values())
    for user, of in wanted.items():
        own = found.filter(pl.col("user_id") == user).sort("pos")
        assert own["item_id"].to_list() == [film for _, _, film in sorted(of)]
        assert own["pos"].to_list() == list(range(len(of)))


def test_the_last_rating_of_each_user_is_the_test(movielens: Path) -> None:
    folder = nextitem.prepare_next_item("ml_latest_small", movielens)
    assert folder is not None
    dataset = Dataset(folder)
    columns = dataset.requests
    for split, last in (("test", 1), ("validation", 2)):
        requests = dataset.requests_of(split)
        assert len(requests) == USERS
        assert (columns["count"][requests] == 1).all()
        # All but the last ones of the user are the history.
        held = columns["history_end"][requests] - columns["history_start"][requests]
        ratings = pl.read_csv(movielens / "ml_latest_small" / "ratings.csv")
        counts = dict(ratings.group_by("userId").len().rows())
        users = dataset.user_ids[columns["user"][requests]]
        assert [counts[int(user)] - last for user in users] == held.tolist()
    assert nextitem.prepare_next_item("ml1m", movielens) is None


@pytest.mark.parametrize("name", nextitem.DATASETS)
def test_descriptions_have_the_protocol(movielens: Path, name: str) -> None:
    spec, _ = nextitem.describe_next_item(name, movielens)
    assert [label.kind for label in spec.labels] == ["positive"]
    assert spec.split.leave_last == 1
    assert (spec.requests.size, spec.history.length) == (nextitem.REQUEST, nextitem.HISTORY)


@pytest.mark.parametrize("model", ["item-knn", "lime-mha"])
def test_a_row_of_the_next_item(movielens: Path, model: str) -> None:
    folder = nextitem.prepare_next_item("ml_latest_small", movielens)
    assert folder is not None
    settings: dict[str, Any] = {}
    if model not in nextitem.COUNTED:
        settings = {"epochs": 1, "width": 16, "links": 4, "hidden": 8, "heads": 2}
    nextitem.measure("ml_latest_small", folder, model, 0, settings, 1)
    (row,) = rows("nextitem")
    assert row["case"]["model"] == model
    metrics = row["metrics"]
    assert metrics["requests"] == metrics["validation_requests"] == USERS
    assert 0 < metrics["hr@10"] <= 1
    assert 0 < metrics["ndcg@10"] <= metrics["hr@10"]
    assert 0 < metrics["coverage@10"] <= 1


@pytest.mark.parametrize("protocol", shop.PROTOCOLS)
def test_the_truth_of_the_shop_is_measured_on_the_test_requests(protocol: str) -> None:
    size = {"users": 300, "items": 200, "events": 9000, "days": 30}
    folder = shop.prepare_shop(2, protocol, size)
    found = best_lists(Dataset(folder), shop.log_folder(2))
    dataset = Dataset(folder)
    # By a loop over the test requests: their purchases, and the list of the session.
    logs = shop.log_folder(2)
    lists = {
        key[0]: part["item"].to_list()
        for key, part in pl.read_parquet(logs / "truth-lists.parquet").group_by(
            "session", maintain_order=True
        )
    }
    events = pl.read_csv(logs / "events.csv", infer_schema=False)
    bought = events.filter(pl.col("event") == "purchase")
    sessions: dict[str, set[str]] = {}
    users: dict[str, list[str]] = {}
    for session, user, item in bought.select("session", "user", "item").rows():
        sessions.setdefault(session, set()).add(item)
        if session not in users.setdefault(user, []):
            users[user].append(session)
    if protocol == "last":
        asked = [of[-1] for of in users.values() if len(of) >= 3]
    else:
        asked = list(dict.fromkeys(bought["session"]))[-len(dataset.requests_of("test")) :]
    hits = [bool(set(lists[session][:10]) & sessions[session]) for session in asked]
    assert found["requests"] == pytest.approx(len(asked), abs=2)
    tolerance = 1e-9 if protocol == "last" else 0.03  # a cut point may divide sessions
    assert found["hr@10"] == pytest.approx(np.mean(hits), abs=tolerance)
    assert 0 < found["ndcg@10"] < found["hr@10"] < 1
    shop.measure_truth(protocol, 2)
    (row,) = rows("shop")
    assert row["metrics"] == found


def _row(bench: str, model: str, seed: int, hr: float, **case: str) -> dict[str, Any]:
    return {
        "bench": bench,
        "case": {"model": model, "settings": "", **case},
        "metrics": {"hr@10": hr, "ndcg@10": hr / 2, "coverage@10": 0.5, "train_seconds": 3.0},
        "seed": seed,
        "machine": {"processor": "x", "cores": 2},
        "versions": {"python": "3"},
        "commit": "abc",
        "date": "2026-11-29",
    }


def test_the_page_of_the_next_item_marks_what_others_report() -> None:
    case = {"dataset": "ml1m", "protocol": nextitem.PROTOCOL}
    found = [
        _row("nextitem", "item-knn", 0, 0.1, **case),
        _row("nextitem", "lime-mha", 0, 0.28, **case),
        _row("nextitem", "lime-mha", 1, 0.32, **case),
    ]
    page = lists_page.nextitem(found)
    (line,) = [line for line in page.splitlines() if line.startswith("| lime-mha")]
    assert "0.3000 ± 0.0200" in line
    assert "| 3.00 |" in line
    assert "as reported by other repositories" in page
    for one in lists_page.REPORTED["ml1m"]:
        assert f"{one.hr:.4f} | {one.ndcg:.4f} | {one.source}" in page
    assert page.index("lime-mha") < page.index("item-knn") < page.index("HSTU-large")


def test_the_page_of_the_shop_compares_on_the_same_log() -> None:
    case = {"dataset": "shop", "protocol": shop.PROTOCOLS["time"]}
    found = [
        _row("shop", model, seed, hr, **case)
        for model, hrs in (("truth", (0.5, 0.4)), ("item-knn", (0.1, 0.2)), ("din", (0.3, 0.2)))
        for seed, hr in enumerate(hrs)
    ]
    (line,) = [line for line in lists_page.shop(found).splitlines() if line.startswith("| din")]
    assert "| 2.00 | 2.00 |" in line  # the mean of 3 and 1


def _negatives(number: int | str, seed: int, test: float, validation: float) -> dict[str, Any]:
    case = {"dataset": "shop", "model": "lime-mha", "epochs": 1, "negatives": number}
    metrics = {"train_cpu_seconds": 10.0 + seed, "requests": 30, "validation_requests": 10}
    for name in ("hr@10", "ndcg@10"):
        metrics |= {name: test, f"validation_{name}": validation}
    return {**_row("negatives", "lime-mha", seed, test), "case": case, "metrics": metrics}


def test_the_page_on_negatives_compares_each_seed_with_its_full_softmax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negatives_page, "DOCS", tmp_path)
    found = [
        _negatives("all", 0, 0.2, 0.4),  # 0.25 over both splits
        _negatives("all", 1, 0.1, 0.1),
        _negatives(100, 0, 0.2, 0.2),
        _negatives(100, 1, 0.1, 0.1),
        _negatives(1000, 0, 0.2, 0.4),
        _negatives(1000, 1, 0.098, 0.098),
        _negatives(512, 2, 0.3, 0.3),  # its full softmax is not measured yet
    ]
    page = negatives_page.negatives(found)
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in lines] == ["| 100", "| 512", "| 1,000", "| all"]
    assert [line.split(" | ")[3] for line in lines] == ["0.900", "-", "0.990", "1.000"]
    assert "0.1750 ± 0.0750" in lines[3] and lines[3].endswith("| 10 | 2 |")
    assert "From 1,000 negatives on, the share is 0.98 or more." in page
    assert (tmp_path / "negatives.svg").read_text().startswith("<?xml")


def test_negatives_are_measured_by_their_number(
    movielens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def train_and_rank(folder: Path, run: Path, model: str, seed: int, *rest: Any, **more: Any):
        trained.append((run.name, model, seed, *rest, more))
        return {"ndcg@10": 0.1}

    monkeypatch.setattr(nextitem, "train_and_rank", train_and_rank)
    films = ["--data", str(movielens), "--only", "ml_latest_small", "--seeds", "1"]
    negatives.main([*films, "--negatives", "5", "0"])
    settings = {"epochs": 1, "negatives": 5, "history": nextitem.HISTORY}
    how = {"threads": 1, "seen": "out"}
    assert trained == [
        ("ml_latest_small-5-0", "lime-mha", 0, settings, how),
        ("ml_latest_small-0-0", "lime-mha", 0, {**settings, "negatives": 0}, how),
    ]
    found = {row["case"]["negatives"]: row for row in rows("negatives")}
    assert set(found) == {5, "all"} and found[5]["case"]["epochs"] == 1
    negatives.main([*films, "--negatives", "5", "0"])  # finished rows are skipped
    negatives.main(["--only", "ml_latest_small"])  # and so is what has no data
    assert len(trained) == 2
