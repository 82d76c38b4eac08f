"""A simulated log of a shop's reviews: few for each user, and what goes together decides.

    python -m benchmarks.sparse_log FOLDER

The world. Every item has one of many *styles*; every user likes two of them. Styles are written
nowhere. They show in who reviewed what, and in part in the category and the brand of an item. With
the popularity w of items, a few popular ones and a long tail, the next review of a user is of an
item with probability

    p(item | user) = (1 - LOYALTY) w(item) / sum of w
                   + LOYALTY * mean over the user's styles s of
                     [item has style s] w(item) / sum of w over the items of style s,

but never of an item that the user has reviewed before. A review is a positive. As is usual for
such logs, negatives are drawn: ``NEGATIVES`` beside each positive, by the share q that an item has
of all reviews. So popularity says nothing of the label, and the truth of an impression is

    P(positive | user, item) = p(item | user) / (p(item | user) + NEGATIVES * q(item)).

The folder holds ``events.parquet``, ``items.parquet``, ``truth.parquet`` (row for row beside the
events; ``review_probability`` leaves aside that the items of a request are distinct) and
``spec.toml``. Shapes: U users, I items, S styles, n reviews, r impressions of each.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import DAY_MS

Ints = NDArray[np.int64]
Values = NDArray[np.float64]

USERS, ITEMS, STYLES = 12_000, 10_000, 100
REVIEWS = (5, 10)
"""Reviews of a user, at least and at most."""
LIKED = 2
"""Styles that a user likes."""
LOYALTY = 0.7
"""Share of the reviews that follow the user's styles."""
NEGATIVES = 2
TAIL = 0.8
HEAD = 10
"""The popularity of the k-th item is (HEAD + k) ** -TAIL."""
CATEGORIES, TYPICAL_CATEGORY = 30, 0.35
"""Categories, and the share of the items of a style that are in its typical one; others: any."""
BRANDS, BRANDS_OF_STYLE, TYPICAL_BRAND = 600, 10, 0.3
"""Brands, the typical ones of a style, and the share of its items that are of these."""
DAYS = 360
ARRIVALS = 0.6
"""Share of the days during which users arrive, evenly; their reviews follow until the end."""
START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC."""

SPEC = """name = "synth_sparse"

[[events]]
files = ["events.parquet"]
time = "time_ms"
time_unit = "ms"
request = "request_id"

[[labels]]
name = "review"
kind = "binary"

[items]
files = ["items.parquet"]
id = "item_id"
features = [
    { name = "category", kind = "categorical" },
    { name = "brand", kind = "categorical" },
    { name = "price", kind = "numeric", transform = "log1p" },
]

[history]
length = 50
"""


@dataclass(frozen=True)
class Shop:
    """The truth.

    Attributes:
        style: of each item, i64 [I].
        popularity: w, f64 [I], sum 1.
        liked: styles of each user, i64 [U, LIKED].
    """

    style: Ints
    popularity: Values
    liked: Ints

    @classmethod
    def of(cls, users: int, items: int, rng: np.random.Generator) -> Shop:
        style = rng.permutation(np.arange(items) % STYLES)
        popularity = rng.permutation((HEAD + np.arange(items)) ** -TAIL)
        liked = np.argsort(rng.random((users, STYLES)), axis=1)[:, :LIKED]
        return cls(style, popularity / popularity.sum(), liked)

    @property
    def within(self) -> Values:
        """Popularity of each item among those of its style, f64 [I]."""
        return self.popularity / np.bincount(self.style, self.popularity, STYLES)[self.style]

    @property
    def share(self) -> Values:
        """q: share of all reviews that each item has, f64 [I]."""
        likers = np.bincount(self.liked.ravel(), minlength=STYLES) / self.liked.size
        return (1 - LOYALTY) * self.popularity + LOYALTY * likers[self.style] * self.within

    def draw(self, users: Ints, rng: np.random.Generator) -> Ints:
        """An item for each of these users, by p(item | user)."""
        order = np.argsort(self.style, kind="stable")
        first = np.searchsorted(self.style[order], np.arange(STYLES + 1))
        up_to = np.append(0.0, np.cumsum(self.popularity[order]))
        style = self.liked[users, rng.integers(0, LIKED, len(users))]
        loyal = rng.random(len(users)) < LOYALTY
        low = np.where(loyal, up_to[first[style]], 0.0)
        high = np.where(loyal, up_to[first[style + 1]], up_to[-1])
        at = np.searchsorted(up_to, low + (high - low) * rng.random(len(users)), side="right") - 1
        return order[np.minimum(at, len(order) - 1)]

    def chance(self, users: Ints, items: Ints) -> Values:
        """P(positive | user, item), f64 of the same shape."""
        likes = (self.liked[users] == self.style[items][..., None]).any(axis=-1)
        p = (1 - LOYALTY) * self.popularity[items]
        p = p + LOYALTY * likes * self.within[items] / LIKED
        return p / (p + NEGATIVES * self.share[items])


def impressions(
    shop: Shop, rng: np.random.Generator
) -> tuple[Ints, Ints, NDArray[np.int8], Values, Ints]:
    """Users [n], items, labels and truth [n, 1 + NEGATIVES], and times in ms [n], ascending."""
    users, items = len(shop.liked), len(shop.style)
    count = rng.integers(REVIEWS[0], REVIEWS[1] + 1, users)
    user = np.repeat(np.arange(users), count)
    arrival = ARRIVALS * rng.random(users)[user]
    time = START_MS + (DAYS * DAY_MS * (arrival + (1 - arrival) * rng.random(len(user)))).astype(
        np.int64
    )
    order = np.argsort(time, kind="stable")
    user, time = user[order], time[order]
    reviewed = shop.draw(user, rng)
    while len(again := _repeated(user * items + reviewed)):
        reviewed[again] = shop.draw(user[again], rng)
    up_to = np.cumsum(shop.share)
    shown = np.column_stack([reviewed, np.full((len(user), NEGATIVES), -1)])
    wrong = np.arange(len(user))
    while len(wrong):
        drawn = np.searchsorted(up_to, up_to[-1] * rng.random((len(wrong), NEGATIVES)), "right")
        shown[wrong, 1:] = drawn
        wrong = np.flatnonzero((np.diff(np.sort(shown, axis=1), axis=1) == 0).any(axis=1))
    labels = np.zeros(shown.shape, dtype=np.int8)
    labels[:, 0] = 1
    truth = shop.chance(np.broadcast_to(user[:, None], shown.shape), shown)
    # Who has reviewed an item before does not review it again.
    key, first = np.unique(user * items + reviewed, return_index=True)
    wanted = user[:, None] * items + shown
    at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    truth[(key[at] == wanted) & (first[at] < np.arange(len(user))[:, None])] = 0
    mixed = np.argsort(rng.random(shown.shape), axis=1)
    shown, labels, truth = (np.take_along_axis(of, mixed, axis=1) for of in (shown, labels, truth))
    return user, shown, labels, truth, time


def _repeated(keys: Ints) -> Ints:
    """Positions of what an earlier position holds too."""
    first = np.unique(keys, return_index=True)[1]
    return np.setdiff1d(np.arange(len(keys)), first)


def item_table(shop: Shop, rng: np.random.Generator) -> dict[str, Any]:
    """What is known of the items."""
    items, style = len(shop.style), shop.style

    def values_of(values: int, of_style: int, share: float) -> list[str]:
        typical = rng.integers(0, values, (STYLES, of_style))
        own = typical[style, rng.integers(0, of_style, items)]
        return [
            str(one)
            for one in np.where(rng.random(items) < share, own, rng.integers(0, values, items))
        ]

    return {
        "item_id": np.arange(1, items + 1),
        "category": values_of(CATEGORIES, 1, TYPICAL_CATEGORY),
        "brand": values_of(BRANDS, BRANDS_OF_STYLE, TYPICAL_BRAND),
        "price": np.round(np.exp(rng.normal(3.0, 1.0, items)), 2),
    }


def simulate_reviews(out: Path, *, users: int = USERS, items: int = ITEMS, seed: int = 0) -> None:
    """Write the log into the folder ``out``; the same arguments give the same log."""
    import polars as pl

    rng = np.random.default_rng(seed)
    shop = Shop.of(users, items, rng)
    user, shown, labels, truth, time = impressions(shop, rng)
    size = shown.shape[1]
    keys = {"user_id": np.repeat(user, size) + 1, "item_id": shown.ravel() + 1}
    keys["time_ms"] = np.repeat(time, size)
    keys["request_id"] = np.repeat(np.arange(len(user)), size)
    out.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({**keys, "review": labels.ravel()}).write_parquet(out / "events.parquet")
    pl.DataFrame({**keys, "review_probability": truth.ravel()}).write_parquet(out / "truth.parquet")
    pl.DataFrame(item_table(shop, rng)).write_parquet(out / "items.parquet")
    (out / "spec.toml").write_text(SPEC, encoding="utf-8")


def known_best(folder: Path) -> dict[str, float]:
    """AUC and NE of the true probabilities over all impressions: no model can be better. AUC of the
    items' popularity among all positives: what ignores the user."""
    import polars as pl

    from limerank import metrics

    events = pl.read_parquet(folder / "events.parquet")
    label = events["review"].to_numpy()
    truth = pl.read_parquet(folder / "truth.parquet")["review_probability"].to_numpy()
    popularity = np.bincount(events["item_id"].to_numpy(), label)[events["item_id"].to_numpy()]
    return {
        "auc": metrics.auc(label, truth),
        "ne": metrics.normalized_entropy(label, truth),
        "auc_of_popularity": metrics.auc(label, popularity),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the log")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    simulate_reviews(given.out, users=given.users, items=given.items, seed=given.seed)
    truth = known_best(given.out)
    print(f"{given.out}: {', '.join(f'{name} {value:.4f}' for name, value in truth.items())}")
    print(f"Next: limerank prepare {given.out}/spec.toml --out data/sparse")


if __name__ == "__main__":
    main()
