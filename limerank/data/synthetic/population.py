"""The items and users of a simulation, and how they change over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from limerank.data.synthetic.world import MOVE_MS, MOVES_PER_DAY, START_MS, World

I64 = npt.NDArray[np.int64]

POOL = 1 << 17
"""Items that the popular and the personal choice can show between two moves."""
FIRST_ITEMS, FIRST_USERS = 0.6, 0.7
"""Shares that exist when the simulation begins."""
HALF_LIFE_DAYS = 7.0
"""An item's chance to be shown as popular halves in this time."""
USER_SPREAD = 0.5
QUALITY = 0.55
LENGTH = -0.15
LIKING, AVERSION = 2.1, -2.0
"""Mean effect of an interest, and of a mistaken belief of the policy, on the click's logit."""
FADE_DAYS = 2.0
"""An interest loses its strength over its last days."""
CATEGORIES = (
    "animals", "art", "beauty", "cars", "comedy", "dance", "fashion", "fitness", "food", "games",
    "music", "nature", "science", "sports", "technology", "travel",
)  # fmt: skip
TOPIC_SPREAD = 0.9
"""Of the logarithm of a topic's share of items and interests: some are common, many are rare."""
TRENDS = 40
"""Tags that are independent of the topic."""
AGE_BANDS = ("-17", "18-24", "25-34", "35-44", "45-54", "55-")
DEVICES = ("android", "ios", "tablet", "web")


class SimulatedItems:
    """The items: what they are, and which of them can be shown now.

    Call :meth:`move` before each stretch of time.
    """

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        n, topics = world.items, world.topics
        self.topic_shares = rng.lognormal(0.0, TOPIC_SPREAD, topics)
        self.topic_shares /= self.topic_shares.sum()
        self.topic = rng.choice(topics, n, p=self.topic_shares).astype(np.int32)
        self.category_of = (np.arange(topics) * len(CATEGORIES) // topics).astype(np.int8)
        self.category = self.category_of[self.topic]
        self.quality = rng.standard_normal(n, dtype=np.float32)
        tempo = rng.normal(0.0, 0.3, len(CATEGORIES))
        log_length = 0.7 * rng.standard_normal(n, dtype=np.float32) + tempo[self.category]
        self.duration_s = np.clip(20.0 * np.exp(log_length), 3.0, 300.0).astype(np.float32)
        self.duration_ms = np.rint(1000.0 * self.duration_s).astype(np.int32)
        self.duration_s = self.duration_ms.astype(np.float32) / np.float32(1000.0)
        # Ids follow the uploads: the first items are up to a month old when the log begins.
        first = max(min(n, 64), round(FIRST_ITEMS * n))
        moves = world.days * MOVES_PER_DAY
        old = rng.integers(-30 * MOVES_PER_DAY, 1, first)
        new = rng.integers(1, max(moves, 2), n - first)
        self.upload_move = np.sort(np.concatenate([old, new]))
        self.upload_ms = START_MS + self.upload_move * MOVE_MS
        per_topic = max(1, n // (12 * topics))
        home = self.topic.astype(np.int64) * per_topic + rng.integers(0, per_topic, n)
        guest = rng.integers(0, per_topic * topics, n)
        self.author = np.where(rng.random(n) < 0.8, home, guest)
        # Freshness halves for all items alike, so one weight per item serves at every time.
        born = self.upload_move / (MOVES_PER_DAY * HALF_LIFE_DAYS)
        pull = np.exp2(born - born.max()) * np.exp(0.5 * self.quality + rng.normal(0.0, 0.8, n))
        self._by_topic = np.argsort(self.topic, kind="stable")
        self._upload_by_topic, self._pull_by_topic = (
            column[self._by_topic] for column in (self.upload_move, pull)
        )
        self._rng = rng
        length = np.log(self.duration_s / np.float32(20.0))
        self.log_length = length
        self.appeal = (QUALITY * self.quality + LENGTH * length).astype(np.float32)

    def move(self, move: int) -> None:
        """Draw the pool, sorted by topic, from the items uploaded so far: popular and fresh."""
        self.live = int(np.searchsorted(self.upload_move, move, side="right"))
        total = np.cumsum(np.where(self._upload_by_topic <= move, self._pull_by_topic, 0.0))
        picks = (np.arange(POOL) + self._rng.random()) * (total[-1] / POOL)
        picks = np.minimum(picks, np.nextafter(total[-1], 0.0))
        rank = np.searchsorted(total, picks, side="right")
        self.pool = self._by_topic[rank].astype(np.int32)
        bounds = np.searchsorted(self.topic[self.pool], np.arange(len(self.topic_shares) + 1))
        self.pool_from = bounds[:-1].astype(np.int32)
        self.pool_count = np.diff(bounds).astype(np.int32)

    def table(self) -> pa.Table:
        n, topics = len(self.topic), len(self.topic_shares)
        each = -(-topics // len(CATEGORIES))
        first = np.searchsorted(np.arange(topics) * len(CATEGORIES) // topics, range(16))
        names = [
            f"{CATEGORIES[c]}-{t - first[c] + 1:0{len(str(each))}d}"
            for t in range(topics)
            for c in [t * len(CATEGORIES) // topics]
        ]
        names += [f"trend-{t + 1:02d}" for t in range(TRENDS)]
        # Up to four tags: the topic (mostly), two trends, and now and then a wrong topic.
        rng = self._rng
        tags = np.stack(
            [
                self.topic,
                topics + rng.integers(0, TRENDS, n),
                topics + rng.integers(0, TRENDS, n),
                rng.integers(0, topics, n),
            ],
            axis=1,
        )
        chosen = rng.random((n, 4)) < np.array([0.9, 0.7, 0.4, 0.1])
        chosen[:, 2] &= tags[:, 2] != tags[:, 1]
        chosen[:, 3] &= tags[:, 3] != tags[:, 0]
        order = np.argsort(rng.random((n, 4)), axis=1)
        tags, chosen = np.take_along_axis(tags, order, 1), np.take_along_axis(chosen, order, 1)
        offsets = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]).astype(np.int32)
        return pa.table(
            {
                "item_id": np.arange(1, n + 1),
                "author": self.author + 1,
                "category": _named(self.category, CATEGORIES),
                "tags": pa.ListArray.from_arrays(offsets, _named(tags[chosen], names)),
                "duration_ms": self.duration_ms,
                "upload_day": np.floor_divide(self.upload_move, MOVES_PER_DAY).astype(np.int32),
                "upload_ms": self.upload_ms,
            }
        )


class SimulatedUsers:
    """The users: how often they come and what they like at present."""

    def __init__(self, world: World, topic_shares: Any, rng: np.random.Generator) -> None:
        n = world.users
        self._world, self._rng = world, rng
        self._topic_cdf = np.cumsum(topic_shares)
        first = max(1, round(FIRST_USERS * n))
        moves = world.days * MOVES_PER_DAY
        old = rng.integers(-360 * MOVES_PER_DAY, 1, first)
        self.signup_move = np.sort(np.concatenate([old, rng.integers(1, max(moves, 2), n - first)]))
        self.leaning = USER_SPREAD * rng.standard_normal(n, dtype=np.float32)
        self.activity = rng.lognormal(0.0, 0.8, n)
        self.age = rng.choice(len(AGE_BANDS), n, p=[0.1, 0.3, 0.27, 0.16, 0.1, 0.07])
        self.device = rng.choice(len(DEVICES), n, p=[0.55, 0.33, 0.05, 0.07])
        held = world.interests + world.mistakes
        self.topics = np.full((n, held), -1, dtype=np.int32)
        self.ends = np.zeros((n, held), dtype=np.float32)
        self.full = np.zeros((n, held), dtype=np.float32)
        everyone, slot = np.divmod(np.arange(n * held), held)
        self._renew(everyone, slot, np.float32(0.0))
        # At the beginning interests are in the middle of their lives.
        self.ends *= rng.random((n, held), dtype=np.float32)

    def _renew(self, user: I64, slot: I64, now: np.float32) -> None:
        """New topics, distinct within each user, for these pairs of user and slot."""
        world, rng = self._world, self._rng
        wrong = np.arange(len(user))
        while len(wrong):
            drawn = np.searchsorted(self._topic_cdf, rng.random(len(wrong)), side="right")
            self.topics[user[wrong], slot[wrong]] = np.minimum(drawn, world.topics - 1)
            mine = self.topics[user[wrong]]
            same = mine == self.topics[user[wrong], slot[wrong]][:, None]
            wrong = wrong[same.sum(axis=1) > 1]
        life = rng.exponential(world.drift, len(user)).astype(np.float32)
        self.ends[user, slot] = now + np.maximum(life, np.float32(0.25))
        spread = rng.uniform(0.7, 1.3, len(user)).astype(np.float32)
        self.full[user, slot] = spread * np.where(slot < world.interests, LIKING, AVERSION)

    def move(self, move: int) -> None:
        """Replace what has ended, let fade what will, and see who has arrived."""
        now = np.float32(move / MOVES_PER_DAY)
        user, slot = np.nonzero(self.ends <= now)
        self._renew(user, slot, now)
        fade = np.minimum((self.ends - now) / np.float32(FADE_DAYS), np.float32(1.0))
        self.effect = self.full * fade
        self.here = int(np.searchsorted(self.signup_move, move, side="right"))
        self.activity_sum = np.cumsum(self.activity[: self.here])

    def table(self) -> pa.Table:
        return pa.table(
            {
                "user_id": np.arange(1, len(self.age) + 1),
                "age_band": _named(self.age, AGE_BANDS),
                "device": _named(self.device, DEVICES),
                "signup_day": np.floor_divide(self.signup_move, MOVES_PER_DAY).astype(np.int32),
            }
        )


def _named(codes: Any, names: Any) -> pa.Array:
    array = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names))
    return array.dictionary_decode()
