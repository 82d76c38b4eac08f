"""The simulated log of reviews: its truth is true, and what it promises holds."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks import sparse_log
from benchmarks.sparse_log import (
    LIKED,
    LOYALTY,
    NEGATIVES,
    REVIEWS,
    Shop,
    known_best,
    simulate_reviews,
)
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.metrics import auc

USERS, ITEMS = 1500, 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sparse")
    simulate_reviews(out, users=USERS, items=ITEMS, seed=1)
    return out


@pytest.fixture(scope="module")
def events(folder):
    events, truth = (pl.read_parquet(folder / f"{name}.parquet") for name in ("events", "truth"))
    keys = ["user_id", "item_id", "time_ms", "request_id"]
    assert events[keys].equals(truth[keys])
    return events.with_columns(truth["review_probability"])


def test_the_truth_is_the_rate_of_positives(events):
    """Deciles of the true probability, within five standard errors."""
    p, label = events["review_probability"].to_numpy(), events["review"].to_numpy()
    for part in np.array_split(np.argsort(p, kind="stable"), 10):
        # Items that were reviewed before have none: the others share their part, 2 % here.
        error = 5 * np.sqrt(p[part].mean() / len(part)) + 0.04 * p[part].mean()
        assert abs(label[part].mean() - p[part].mean()) < error
    assert auc(label, p.astype(np.float64)) > 0.8


def test_every_request_has_one_positive_and_distinct_items(events):
    of = events.group_by("request_id").agg(
        pl.col("review").sum(), pl.len(), pl.col("item_id", "user_id").n_unique()
    )
    assert (of["review"] == 1).all() and (of["user_id"] == 1).all()
    assert (of["len"] == 1 + NEGATIVES).all() and (of["item_id"] == 1 + NEGATIVES).all()
    assert events["time_ms"].is_sorted()


def test_users_review_few_items_and_each_once(events):
    reviews = events.filter(pl.col("review") == 1)
    count = reviews.group_by("user_id").len()["len"]
    assert (count.min(), count.max()) == REVIEWS and len(count) == USERS
    assert not reviews.select("user_id", "item_id").is_duplicated().any()


def test_popularity_tells_nothing(folder, events):
    found = known_best(folder)
    # A review is counted in its own item's popularity: a little above a half.
    assert found["auc_of_popularity"] == pytest.approx(0.5, abs=0.03)
    truth = events["review_probability"].to_numpy().astype(np.float64)
    assert found["auc"] == auc(events["review"].to_numpy(), truth)
    assert found["ne"] < 0.7


def test_draws_follow_the_shares_of_a_user():
    shop = Shop.of(2, 500, np.random.default_rng(0))
    drawn = shop.draw(np.zeros(200_000, dtype=np.int64), np.random.default_rng(1))
    likes = np.isin(shop.style, shop.liked[0])
    expected = (1 - LOYALTY) * shop.popularity + LOYALTY * likes * shop.within / LIKED
    assert expected.sum() == pytest.approx(1)
    found = np.bincount(drawn, minlength=500) / len(drawn)
    assert (np.abs(found - expected) < 5 * np.sqrt(expected / len(drawn))).all()


def test_category_and_brand_show_the_style_in_part():
    rng = np.random.default_rng(0)
    shop = Shop.of(2, 20_000, rng)
    table = pl.DataFrame(sparse_log.item_table(shop, rng)).with_columns(style=shop.style)
    for column, share in (
        ("category", sparse_log.TYPICAL_CATEGORY),
        ("brand", sparse_log.TYPICAL_BRAND / sparse_log.BRANDS_OF_STYLE),
    ):
        of_style = table.group_by("style", column).len().group_by("style").agg(pl.col("len").max())
        most = of_style["len"].mean() / (20_000 / sparse_log.STYLES)
        assert share < most < 3 * share


def test_one_seed_one_log_and_it_prepares(folder, tmp_path):
    simulate_reviews(tmp_path / "again", users=USERS, items=ITEMS, seed=1)
    for name in ("events", "truth", "items"):
        again = (tmp_path / "again" / f"{name}.parquet").read_bytes()
        assert (folder / f"{name}.parquet").read_bytes() == again
    prepare(load_spec(folder / "spec.toml"), tmp_path / "data", base=folder)
    dataset = Dataset(tmp_path / "data")
    assert len(dataset.users) - 1 == USERS or len(dataset.users) == USERS
    assert dataset.requests["count"].mean() == 1 + NEGATIVES
