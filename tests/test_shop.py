"""The simulated shop: what its files promise, and that its truth is true."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from limerank.data.canonical import DAY_MS
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.data.protocol import Split
from limerank.data.synthetic import shop
from limerank.data.synthetic.shop import simulate_shop
from limerank.data.synthetic.shop.customers import OWNED, Customers
from limerank.data.synthetic.shop.output import NO_ITEM_PRICE, NO_PRICE, TEXT_PRICE
from limerank.data.synthetic.shop.products import CATEGORIES, KINDS, Products
from limerank.data.synthetic.shop.sessions import ITEM, aims, draw_views, remember
from limerank.data.synthetic.shop.truth import purchase_chances
from limerank.data.synthetic.shop.world import STEPS_PER_DAY, ShopWorld
from limerank.errors import FormatError, SpecError

END = "2026-11-29T12:00:00Z"
SIZE: dict[str, Any] = {"users": 500, "items": 400, "events": 16_000, "days": 30, "seed": 3}
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


class Log:
    """One simulated log, read back."""

    def __init__(self, path: Path, summary: dict[str, Any]) -> None:
        self.path, self.summary = path, summary
        self.events = pl.read_csv(path / "events.csv", infer_schema=False).with_columns(
            ms=pl.col("time")
            .str.to_datetime("%Y-%m-%dT%H:%M:%S%.3f%:z", time_unit="ms")
            .dt.epoch("ms")
        )
        self.items = pl.read_csv(path / "items.csv", infer_schema=False)
        self.truth = pl.read_parquet(path / "truth.parquet")
        self.lists = pl.read_parquet(path / "truth-lists.parquet")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    path = tmp_path_factory.mktemp("shop") / "log"
    return Log(path, simulate_shop(path, **SIZE, end=END))


@pytest.fixture(scope="module")
def state() -> tuple[Products, Customers, int]:
    """A shop after twenty days."""
    world = ShopWorld(users=300, items=200, events=20_000, days=30, seed=5, end_ms=1 << 41)
    rng = np.random.default_rng(0)
    products = Products(world, rng)
    customers = Customers(world, products, rng)
    steps = 20 * STEPS_PER_DAY
    for step in range(steps):
        products.move(step)
        customers.move(step)
        user = np.flatnonzero(rng.random(world.users) < 0.2)
        views = draw_views(products, customers, user, aims(products, customers, user, step), rng)
        remember(customers, user, views, 4.0, step)
    products.move(steps)
    customers.move(steps)
    return products, customers, steps


def test_one_seed_and_end_one_log(tmp_path: Path) -> None:
    size = {**SIZE, "users": 60, "events": 1500}
    changes: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": {"seed": 4}}
    for name, change in changes.items():
        simulate_shop(tmp_path / name, **{**size, **change}, end=END)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"events.csv", "items.csv", "shop.toml", "truth.parquet"} < set(names)
    for name in names:
        first, again, other = ((tmp_path / of / name).read_bytes() for of in "abc")
        assert first == again
        assert first != other


def test_the_size_is_about_what_was_asked_for(log: Log) -> None:
    assert len(log.events) == log.summary["counts"]["events"]
    assert len(log.events) == pytest.approx(SIZE["events"], rel=0.15)
    assert len(log.items) == SIZE["items"]
    assert log.events["user"].n_unique() > 0.7 * SIZE["users"]
    assert json.loads((log.path / "simulation.json").read_text()) == log.summary


def test_ids_times_and_prices_are_those_of_a_shop(log: Log) -> None:
    events, items = log.events, log.items
    assert events.columns[:-1] == ["time", "user", "session", "event", "item", "price"]
    assert items.columns == ["id", "title", "category", "brand", "price"]
    for ids in (events["user"], events["session"], events["item"], items["id"]):
        assert all(re.fullmatch(UUID, text) for text in ids.unique())
    assert items["id"].n_unique() == len(items)
    assert set(events["item"]) <= set(items["id"])
    assert {text[-6:] for text in events["time"]} == {"+01:00", "+00:00", "+02:00", "-05:00"}
    offsets = events.with_columns(offset=pl.col("time").str.slice(-6))
    assert offsets.group_by("user").agg(pl.col("offset").n_unique())["offset"].max() == 1
    text = events["price"].str.starts_with("EUR ").sum()
    assert events["price"].null_count() == pytest.approx(NO_PRICE * len(events), rel=0.2)
    assert text == pytest.approx(TEXT_PRICE * len(events), rel=0.2)
    assert 0 < items["price"].null_count() < 3 * NO_ITEM_PRICE * len(items)
    assert set(items["category"]) == {one.name for one in CATEGORIES}
    assert re.fullmatch(r"[A-Z][a-z]+ [A-Za-z -]+ \d{3}", items["title"][0])


def test_the_log_ends_minutes_before_its_end(log: Log) -> None:
    end = shop._milliseconds(END)
    assert log.events["ms"].is_sorted()
    assert log.events["ms"][-1] == end - shop.LATE_MS
    assert log.events["ms"][0] > end - SIZE["days"] * DAY_MS
    assert abs(shop._milliseconds(None) - 1000 * time.time()) < 60_000
    assert shop._milliseconds("2026-11-29T13:00:00+01:00") == end


def test_views_lead_to_carts_and_carts_to_purchases(log: Log) -> None:
    events = log.events.with_row_index("row")
    assert events.group_by("session").agg(pl.col("user").n_unique())["user"].max() == 1
    first = events.group_by("session", "item", "event", maintain_order=True).first()
    by_event = {name: first.filter(pl.col("event") == name) for name in shop.NAMES}
    for later, earlier in (("cart", "view"), ("purchase", "cart")):
        both = by_event[later].join(by_event[earlier], on=["session", "item"], how="left")
        assert (both["row"] > both["row_right"]).all()
    bought = events.filter(pl.col("event") == "purchase")
    assert not bought.select("session", "item").is_duplicated().any()
    counts = [len(events.filter(pl.col("event") == name)) for name in shop.NAMES]
    assert counts == [log.summary["counts"][name] for name in shop.NAMES]
    assert counts[0] > 4 * counts[1] > 4 * counts[2] > 0


def test_sessions_of_a_user_follow_each_other(log: Log) -> None:
    spans = (
        log.events.group_by("user", "session")
        .agg(begin=pl.col("ms").min(), end=pl.col("ms").max())
        .sort("user", "begin")
        .with_columns(before=pl.col("end").shift(1).over("user"))
    )
    assert (spans["begin"] > spans["before"]).all()
    assert (spans["end"] - spans["begin"]).max() < 3_600_000


def test_what_lasts_is_bought_once_and_consumables_again(log: Log) -> None:
    cycles = {one.name: one.cycle for one in CATEGORIES}
    bought = log.events.filter(pl.col("event") == "purchase").join(
        log.items, left_on="item", right_on="id"
    )
    again = bought.group_by("user", "item").agg(pl.len(), pl.col("category").first())
    few = bought.group_by("user").agg(purchases=pl.len()).filter(pl.col("purchases") <= OWNED)
    again = again.join(few, on="user")
    lasting = [name for name, cycle in cycles.items() if not cycle]
    assert again.filter(pl.col("category").is_in(lasting))["len"].max() == 1
    assert (again.filter(~pl.col("category").is_in(lasting))["len"] > 1).sum() > 10


def test_products_are_launched_during_the_log(state: tuple[Products, Customers, int]) -> None:
    products, _, step = state
    later = products.launch > step
    assert 0 < later.sum() < products.launch.size
    assert (products.launch > 0).mean() == pytest.approx(0.25, abs=0.1)
    np.testing.assert_array_equal(products.weight == 0, later)
    assert products.weight.sum() == pytest.approx(1)


def test_chances_of_aims_sum_to_one(state: tuple[Products, Customers, int]) -> None:
    products, customers, step = state
    user = np.arange(len(customers.rate))
    found = aims(products, customers, user, step)
    np.testing.assert_allclose(found.chance.sum(axis=1), 1)
    assert (found.chance >= 0).all()
    # Whatever has a chance is on sale.
    row, column = np.nonzero(found.chance)
    for kind in range(ITEM, len(KINDS)):
        some = found.kind[column] == kind
        group = found.group[row[some], column[some]]
        weight = products.weight[group] if kind == ITEM else products.pools[kind].total(group)
        assert (weight > 0).all()


def test_purchases_have_the_true_probability(state: tuple[Products, Customers, int]) -> None:
    """Forty thousand drawn sessions of each of some users, against the closed form."""
    products, customers, step = state
    rng = np.random.default_rng(1)
    memory = (customers.owned >= 0).sum(axis=1)
    chosen = np.argsort(-memory)[[0, 10, 290]]
    chances = purchase_chances(products, customers, chosen, aims(products, customers, chosen, step))
    draws, items = 40_000, len(products.weight)
    for one, p in zip(chosen, chances, strict=True):
        user = np.full(draws, one)
        views = draw_views(products, customers, user, aims(products, customers, user, step), rng)
        counts = np.bincount(views.item[views.bought], minlength=items)
        assert not counts[p == 0].any()
        z = (counts - draws * p) / np.sqrt(draws * p * (1 - p) + 1e-9)
        assert np.abs(z[draws * p > 20]).max() < 4.5
        assert (z[draws * p > 20] ** 2).mean() == pytest.approx(1, abs=0.4)
        assert counts.sum() == pytest.approx(draws * p.sum(), rel=0.03)


def test_the_truth_is_that_of_the_purchases(log: Log) -> None:
    bought = log.events.filter(pl.col("event") == "purchase").select("session", "item")
    key = ["session", "item"]
    assert log.truth.select(key).sort(key).equals(bought.sort(key))
    listed = log.truth.join(log.lists, on=key, suffix="_listed")
    assert len(listed) == (log.truth["rank"] <= 50).sum()
    assert (listed["rank"] == listed["rank_listed"]).all()
    assert (listed["probability"] == listed["probability_listed"]).all()
    falling = log.lists.group_by("session", maintain_order=True).agg(
        pl.col("probability").diff().max(), pl.col("item").n_unique()
    )
    assert falling["probability"].max() <= 0
    assert falling["item"].min() == 50


def test_the_best_figures_follow_from_the_files(log: Log) -> None:
    """HR and NDCG by loops over the lists."""
    bought = log.events.filter(pl.col("event") == "purchase")
    last = dict(zip(bought["user"], bought["session"], strict=True))
    user_of = dict(zip(log.events["session"], log.events["user"], strict=True))
    seen: dict[str, set[str]] = {}
    before: dict[str, set[str]] = {}
    for session, user, item in log.events.select("session", "user", "item").rows():
        if session not in before:
            before[session] = set(seen.get(user, ()))
        seen.setdefault(user, set()).add(item)
    lists = {
        key[0]: part["item"].to_list()
        for key, part in log.lists.group_by("session", maintain_order=True)
    }
    ranks: dict[str, list[int]] = {"all": [], "last": [], "new all": [], "new last": []}
    for session, item in log.truth.select("session", "item").rows():
        known = before[session]
        names = ["all"] + ["last"] * (last[user_of[session]] == session)
        best = lists[session]
        for name in names:
            ranks[name].append(1 + best.index(item) if item in best else 10**6)
            if item not in known:
                new = [one for one in best if one not in known]
                ranks[f"new {name}"].append(1 + new.index(item) if item in new else 10**6)
    for name, found in log.summary["best"].items():
        for prefix, of in (("", name), ("new_", f"new {name}")):
            rank = np.array(ranks[of])
            assert found[f"{prefix}purchases"] == len(rank) > 100
            assert found[f"{prefix}hr@10"] == pytest.approx((rank <= 10).mean())
            gain = np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean()
            assert found[f"{prefix}ndcg@10"] == pytest.approx(gain)


def test_the_best_lists_are_far_above_popularity(log: Log) -> None:
    bought = log.events.filter(pl.col("event") == "purchase")
    popular = bought["item"].value_counts(sort=True)["item"][:10]
    popularity = bought["item"].is_in(popular.implode()).mean()
    assert log.summary["best"]["all"]["hr@10"] > 2 * popularity


def test_large_logs_have_the_truth_of_some_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {**SIZE, "users": 200, "events": 5000}
    monkeypatch.setattr(shop, "CELLS", 5000 * 400 // 20)
    log = Log(tmp_path / "log", simulate_shop(tmp_path / "log", **size, end=END))
    sessions = log.events.filter(pl.col("event") == "purchase")["session"].n_unique()
    some = log.summary["counts"]["sessions with the truth"]
    assert 0 < some < 0.6 * sessions
    assert log.lists["session"].n_unique() == log.truth["session"].n_unique() == some


def test_few_events(tmp_path: Path) -> None:
    made = simulate_shop(tmp_path / "log", users=2, items=64, events=1, days=1, seed=0, end=END)
    log = Log(tmp_path / "log", made)
    assert len(log.events) == made["counts"]["events"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": "tomorrow"}, "expected a time in ISO 8601, such as"),
        ({"end": "1960-01-01"}, "end_ms"),
        ({"users": 0}, "users: .* greater than or equal to 1; got 0"),
        ({"users": 10, "events": 100_000}, "ask for at most"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        simulate_shop(tmp_path / "log", **{**SIZE, "end": END, **change})
    assert not (tmp_path / "log").exists()


def test_an_existing_folder_is_not_replaced(log: Log) -> None:
    with pytest.raises(FormatError, match="exists"):
        simulate_shop(log.path, **SIZE, end=END)


def test_prepare_reads_it(log: Log, tmp_path: Path) -> None:
    """A request is a session with a purchase; its history ends before the session."""
    spec = load_spec(log.path / "shop.toml")
    spec = spec.model_copy(update={"split": Split(leave_last=1)})  # it divides no session
    prepare(spec, tmp_path / "data", base=log.path)
    dataset = Dataset(tmp_path / "data")
    assert dataset.encoding["labels"][0]["kind"] == "positive"
    bought = log.events.filter(pl.col("event") == "purchase")
    assert len(dataset.events["item"]) == len(log.events)
    assert np.count_nonzero(dataset.events["label_purchase"]) == len(bought)
    assert len(dataset.requests["user"]) == bought["session"].n_unique()
    begins = log.events.group_by("session").agg(pl.col("ms").min())
    wanted = bought.select("session").unique().join(begins, on="session")["ms"]
    first = np.asarray(dataset.events["time"][dataset.requests["first"]])
    np.testing.assert_array_equal(np.sort(first), wanted.sort().to_numpy())
    sessions = bought.group_by("user").agg(pl.col("session").n_unique())["session"]
    assert len(dataset.requests_of("test")) == (sessions >= 3).sum()


def test_the_command(tmp_path: Path, call: Any) -> None:
    size = ["--users", 100, "--items", 80, "--events", 2000, "--days", 10, "--quiet"]
    status, output, _ = call(
        "synth", "--kind", "shop", "--out", tmp_path / "log", "--end", END, *size
    )
    assert status == 0
    assert f"limerank prepare {tmp_path}/log/shop.toml" in output
    assert "HR@10 of the best possible lists" in output
    for more, message in (
        (["--kind", "shops"], "expected one of videos, shop; did you mean 'shop'?"),
        (["--kind", "shop", "--history", 3], "--history is for --kind videos"),
        (["--end", END], "--end is for --kind shop; got --kind videos"),
        (["--kind", "shop", "--end", "noon"], "expected a time in ISO 8601"),
        (["--kind", "shop", "--items", 3], "items"),
    ):
        status, _, error = call("synth", "--out", tmp_path / "other", *more)
        assert status == 2
        assert message in error
        assert not (tmp_path / "other").exists()
