"""Short-video-like logs with a known truth: ``limerank synth``.

The world. Every item carries one of many fine topics, each within a coarse category; every user
likes a few topics, and is shown a few others that a mistaken logging policy takes for liked ones.
Both change over time:

    logit P(click) = b + b_user + b_tab + 0.55 quality - 0.15 ln(duration / 20 s) + interest
    interest       = sum over the topics s that the policy shows to the user at this time of
                     effect_s * (1 same topic, 0.35 another topic of its category, 0 elsewhere),
                     with effect_s > 0 for liked topics and < 0 for mistaken ones
    E[watch | click]    = duration * sigmoid(0.6 + 0.6 interest + 0.4 quality
                                             - 0.7 ln(duration / 20 s))
    E[watch | no click] = 2 s * duration / (duration + 10 s)

An impression comes from the topics that the policy believes in, from what is popular and fresh,
or from anywhere in the catalogue. So a history holds topics with clicks, topics without, and much
that means nothing; nothing but the history tells which is which: neither the users' features nor
the frequency of a topic do. Interests fade and are replaced, items and users arrive over time,
and new items are as likeable as old ones.

Every six hours the catalogue and the interests move; in between they stand still. State is kept
per user and per item, and the events are drawn and written in blocks, so memory does not grow with
their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from limerank import files
from limerank.data.canonical import DAY_MS
from limerank.progress import Bar
from limerank.validation import Frozen, validate

__all__ = ["simulate"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC, when every simulation begins."""
MOVES_PER_DAY = 4
MOVE_MS = DAY_MS // MOVES_PER_DAY

TRAIN, VALIDATION = 0.8, 0.1
"""Shares of the days, in that order; the rest is the test window."""

BLOCK = 1 << 17
"""Most events drawn at once."""
ROW_GROUP = 1 << 17
FILE_ROWS = 1 << 23
"""Events per file, about."""
POOL = 1 << 17
"""Items that the popular and the personal choice can show between two moves."""
SAMPLE = 1_000_000
"""Rows, evenly spaced, from which the known best is computed."""

REQUEST_SIZES = (4, 16)
SHARE_PERSONAL, SHARE_POPULAR = 0.75, 0.15
"""Of the impressions; the others are uniform over the live catalogue."""

FIRST_ITEMS, FIRST_USERS = 0.6, 0.7
"""Shares that exist when the simulation begins."""
HALF_LIFE_DAYS = 7.0
"""An item's chance to be shown as popular halves in this time."""

BASE = -1.5
USER_SPREAD = 0.5
QUALITY = 0.55
LENGTH = -0.15
TAB_SHARES = np.array([0.45, 0.25, 0.15, 0.1, 0.05])
TAB_EFFECTS = np.array([0.0, 0.2, -0.25, 0.4, -0.5], dtype=np.float32)
NEAR = 0.35
"""Share of an interest's effect that reaches the other topics of its category."""
LIKING, AVERSION = 2.1, -2.0
"""Mean effect of an interest, and of a mistaken belief of the policy, on the click's logit."""
FADE_DAYS = 2.0
"""An interest loses its strength over its last days."""
WATCH_NOISE = 0.5

HOURS = np.array(
    [9, 6, 4, 3, 3, 4, 7, 12, 17, 20, 22, 25, 30, 28, 24, 23, 24, 28, 34, 41, 46, 44, 33, 19],
    dtype=np.float64,
)
CATEGORIES = (
    "animals", "art", "beauty", "cars", "comedy", "dance", "fashion", "fitness", "food", "games",
    "music", "nature", "science", "sports", "technology", "travel",
)  # fmt: skip
TOPIC_SPREAD = 0.9
"""Of the logarithm of a topic's share of items and interests: some are common, many are rare."""
TRENDS = 40
"""Tags that say nothing of the topic."""
AGE_BANDS = ("-17", "18-24", "25-34", "35-44", "45-54", "55-")
DEVICES = ("android", "ios", "tablet", "web")


class World(Frozen):
    """What :func:`simulate` was asked for."""

    users: int = Field(ge=1, le=1 << 31)
    items: int = Field(ge=64, le=1 << 31)
    events: int = Field(ge=1)
    days: int = Field(ge=1, le=3650)
    seed: int = Field(ge=0)
    topics: int = Field(le=32_000)
    interests: int = Field(ge=1, le=32)
    mistakes: int = Field(ge=0, le=32)
    drift: float = Field(gt=0)
    history: int = Field(ge=1, le=1 << 20)

    @model_validator(mode="after")
    def _check(self) -> World:
        held = self.interests + self.mistakes
        if self.topics < 2 * held:
            raise ValueError(
                f"topics is {self.topics}; with {held} interests and mistakes per user "
                f"it must be at least {2 * held}"
            )
        most = 100_000_000 * self.days
        if self.events > most:
            raise ValueError(
                f"{self.events:,} events do not fit into {self.days} days of distinct request "
                f"times; ask for at most {most:,}, or for more days"
            )
        return self


def simulate(
    out: str | os.PathLike[str],
    *,
    users: int = 2000,
    items: int = 2000,
    events: int = 200_000,
    days: int = 30,
    seed: int = 0,
    topics: int = 240,
    interests: int = 3,
    mistakes: int = 2,
    drift: float = 20.0,
    history: int = 128,
    overwrite: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Write a simulated log into the new folder ``out``.

    The mean history follows from ``events / users``: 40 gives short ones, 1,000 long ones.

    Args:
        out: the folder, which appears when everything is written.
        users, items, events: how many; events are exact, users and items arrive over time.
        days: length of the log; 80 % train, 10 % validation, 10 % test.
        seed: the same arguments and seed give the same log.
        topics: fine topics that an item can have.
        interests: topics that a user likes at a time.
        mistakes: topics that the policy shows to a user in vain at a time.
        drift: mean life of an interest in days.
        history: the history length written into ``spec.toml``.
        overwrite: replace ``out`` if it exists.
        quiet: show no progress.

    Returns:
        What ``simulation.json`` holds: the parameters, the counts and ``best``, with ``test`` and
        ``overall`` figures of the truth as a predictor.

    The folder holds ``events-*.parquet`` (sorted by time; impressions of a request share its time,
    and no two requests have the same), ``truth.parquet`` (row for row beside the events; keys
    ``(user_id, item_id, time_ms)`` and ``(request_id, item_id)`` are unique), ``items.parquet``,
    ``users.parquet``, ``spec.toml`` and ``simulation.json``.

    Raises:
        SpecError: an argument is out of range or contradicts another.
        FormatError: ``out`` exists and ``overwrite`` is false.
    """
    asked = {
        "users": users, "items": items, "events": events, "days": days, "seed": seed,
        "topics": topics, "interests": interests, "mistakes": mistakes, "drift": drift,
        "history": history,
    }  # fmt: skip
    world = validate(World, asked, "the simulation")
    streams = np.random.SeedSequence(world.seed).spawn(3)
    catalogue = _Catalogue(world, np.random.default_rng(streams[0]))
    audience = _Audience(world, catalogue.topic_shares, np.random.default_rng(streams[1]))
    with files.new_folder(out, overwrite=overwrite, mark="simulation.json") as folder:
        pq.write_table(catalogue.table(), folder / "items.parquet", compression="zstd")
        pq.write_table(audience.table(), folder / "users.parquet", compression="zstd")
        best = _Best(world)
        counts = {"requests": 0, "clicks": 0, "likes": 0}
        rng = np.random.default_rng(streams[2])
        with (
            Bar("simulating", total=events, unit="events", quiet=quiet) as bar,
            _Writer(folder) as writer,
        ):
            for block in _blocks(world, catalogue, audience, rng):
                writer.write(block)
                best.add(block)
                counts["requests"] = int(block["request_id"][-1]) + 1
                counts["clicks"] += int(np.count_nonzero(block["click"]))
                counts["likes"] += int(np.count_nonzero(block["like"]))
                bar.advance(len(block["click"]))
        (folder / "spec.toml").write_text(_spec(world), encoding="utf-8")
        summary = {
            "parameters": world.model_dump(),
            "start": _iso(START_MS),
            "validation_from": _iso(_cut_ms(world, TRAIN)),
            "test_from": _iso(_cut_ms(world, TRAIN + VALIDATION)),
            "counts": {"events": world.events, **counts},
            "best": best.figures(),
        }
        files.write_json(folder / "simulation.json", summary)
    return summary


class _Catalogue:
    """The items: what they are, and which of them can be shown now."""

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


class _Audience:
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
        # At the beginning interests are met in the middle of their lives.
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


def _blocks(
    world: World, catalogue: _Catalogue, audience: _Audience, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """The events in order, in blocks of at most ``BLOCK``: columns of events and truth."""
    moves = world.days * MOVES_PER_DAY
    hours = 24 // MOVES_PER_DAY
    mass = np.tile(HOURS.reshape(MOVES_PER_DAY, hours).sum(axis=1), world.days)
    arrived = np.searchsorted(audience.signup_move, np.arange(moves), side="right")
    mass *= np.cumsum(audience.activity)[arrived - 1]
    per_move = rng.multinomial(world.events, mass / mass.sum())
    request = 0
    for move, total in enumerate(per_move):
        if total == 0:
            continue
        catalogue.move(move)
        audience.move(move)
        parts = -(-int(total) // BLOCK)
        at = (move * hours) % 24
        share = np.concatenate([[0.0], np.cumsum(HOURS[at : at + hours])])
        ms = np.linspace(0.0, MOVE_MS, hours + 1)
        cuts = np.interp(np.arange(parts + 1) / parts, share / share[-1], ms).astype(np.int64)
        for part in range(parts):
            n = int(total) * (part + 1) // parts - int(total) * part // parts
            start = START_MS + move * MOVE_MS + int(cuts[part])
            end = START_MS + move * MOVE_MS + int(cuts[part + 1])
            local = np.interp(ms, ms, share)  # the day's rhythm inside this part
            low, high = np.interp(cuts[[part, part + 1]], ms, local)
            lows, sizes = _requests(n, rng)
            when = np.interp(np.sort(low + (high - low) * rng.random(len(sizes))), local, ms)
            time = START_MS + move * MOVE_MS + when.astype(np.int64)
            yield _impressions(
                catalogue, audience, rng, _distinct(time, start, end), sizes, lows, request
            )
            request += len(sizes)


def _requests(n: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """First rows and sizes of requests that hold n impressions together."""
    least, most = REQUEST_SIZES
    ends = np.cumsum(rng.integers(least, most + 1, -(-n // least)))
    ends = ends[: int(np.searchsorted(ends, n)) + 1]
    ends[-1] = n
    lows = np.concatenate([[0], ends[:-1]])
    return lows, ends - lows


def _distinct(time: I64, start: int, end: int) -> I64:
    """Sorted times in ``[start, end)``, moved by as few milliseconds as makes them distinct."""
    rank = np.arange(len(time))
    time = np.maximum.accumulate(time - rank) + rank
    return np.maximum(np.minimum(time, end - len(time) + rank), start + rank)


def _impressions(
    catalogue: _Catalogue,
    audience: _Audience,
    rng: np.random.Generator,
    time_r: I64,
    size_r: I64,
    low_r: I64,
    first_request: int,
) -> dict[str, Any]:
    """Choose who comes, what is shown and what follows. Suffix ``r`` is requests, ``n`` rows."""
    n = int(size_r.sum())
    arrival = rng.random(len(size_r)) * audience.activity_sum[-1]
    user_r = np.searchsorted(audience.activity_sum, arrival, side="right")
    user_r = np.minimum(user_r, audience.here - 1)
    tab_r = np.searchsorted(np.cumsum(TAB_SHARES)[:-1], rng.random(len(size_r)), side="right")
    request_n = np.repeat(np.arange(len(size_r)), size_r)
    user_n, tab_n = user_r[request_n], tab_r[request_n]
    item_n = _shown(catalogue, audience, rng, user_n, request_n)

    interest_n = np.zeros(n, dtype=np.float32)
    topic_n, category_n = catalogue.topic[item_n], catalogue.category[item_n]
    held = audience.topics.shape[1]
    topics, effects = audience.topics.ravel(), audience.effect.ravel()
    at = user_n * held
    for _ in range(held):
        mine_n, effect_n = topics[at], effects[at]
        near_n = catalogue.category_of[mine_n] == category_n
        effect_n = effect_n * np.where(near_n, np.float32(NEAR), np.float32(0.0))
        interest_n += np.where(mine_n == topic_n, effects[at], effect_n)
        at += 1
    free_n = catalogue.appeal[item_n] + TAB_EFFECTS[tab_n]
    click_p = _sigmoid(interest_n + free_n + (audience.leaning[user_n] + np.float32(BASE)))
    click = rng.random(n, dtype=np.float32) < click_p

    seconds = catalogue.duration_s[item_n]
    quality = catalogue.quality[item_n]
    length = catalogue.log_length[item_n]
    pull = np.float32(0.6) * interest_n + np.float32(0.4) * quality - np.float32(0.7) * length
    stayed = seconds * _sigmoid(pull + np.float32(0.6))
    skipped = np.float32(2.0) * seconds / (seconds + np.float32(10.0))
    noise = np.float32(WATCH_NOISE) * rng.standard_normal(n, dtype=np.float32)
    noise = np.exp(noise - np.float32(WATCH_NOISE**2 / 2))  # its mean is 1
    watch_ms = np.rint(np.where(click, stayed, skipped) * noise * np.float32(1000.0))
    like_p = _sigmoid(np.float32(0.5) * interest_n + np.float32(0.7) * quality - np.float32(2.2))
    like = click & (rng.random(n, dtype=np.float32) < like_p)
    return {
        "request_id": first_request + request_n,
        "user_id": user_n + 1,
        "item_id": item_n.astype(np.int64) + 1,
        "time_ms": time_r[request_n],
        "tab": tab_n.astype(np.int8),
        "click": click.view(np.int8),
        "like": like.view(np.int8),
        "watch_ms": watch_ms.astype(np.int32),
        "duration_ms": catalogue.duration_ms[item_n],
        "click_probability": click_p,
        "watch_seconds": click_p * stayed + (np.float32(1.0) - click_p) * skipped,
        "like_probability": click_p * like_p,
        "_user_free": free_n,
    }


def _shown(
    catalogue: _Catalogue,
    audience: _Audience,
    rng: np.random.Generator,
    user_n: I64,
    request_n: I64,
) -> npt.NDArray[np.int32]:
    """The logging policy: one item per row, distinct within each request."""
    n = len(user_n)
    held = audience.topics.shape[1]
    slot = rng.integers(0, held, n)
    believed = audience.topics.ravel()[user_n * held + slot]
    count = catalogue.pool_count[believed]
    choice = rng.random(n, dtype=np.float32)
    where = rng.random(n, dtype=np.float32)
    personal = (choice < SHARE_PERSONAL) & (count > 0)
    position = (np.where(personal, count, POOL) * where).astype(np.int32)
    position += np.where(personal, catalogue.pool_from[believed], 0)
    item = catalogue.pool[np.minimum(position, POOL - 1)]
    anywhere = (where * np.float32(catalogue.live)).astype(np.int32)
    anywhere = np.minimum(anywhere, catalogue.live - 1)
    item = np.where(choice < SHARE_PERSONAL + SHARE_POPULAR, item, anywhere)
    # Impressions of a request lie together: equal ones are found by comparing neighbours.
    twice = np.arange(n)
    key = request_n.astype(np.int64) << 32
    while len(twice):
        full = key | item
        again = np.zeros(n, dtype=bool)
        for step in range(1, REQUEST_SIZES[1]):
            again[step:] |= full[step:] == full[:-step]
        twice = np.flatnonzero(again)
        item[twice] = rng.integers(0, catalogue.live, len(twice))
    return item


class _Writer:
    """Events and truth to Parquet, in a second thread, in row groups of about ``ROW_GROUP``."""

    EVENTS = (
        "user_id", "item_id", "time_ms", "request_id", "tab", "click", "like", "watch_ms",
        "duration_ms",
    )  # fmt: skip
    TRUTH = (
        "request_id", "user_id", "item_id", "time_ms", "click_probability", "watch_seconds",
        "like_probability",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[dict[str, Any]] = []
        self._held_rows = 0
        self._events: pq.ParquetWriter | None = None
        self._truth: pq.ParquetWriter | None = None
        self._files = self._file_rows = 0
        self._pending: Future[None] | None = None

    def __enter__(self) -> _Writer:
        self._pool = ThreadPoolExecutor(1)
        return self

    def write(self, block: dict[str, Any]) -> None:
        self._held.append(block)
        self._held_rows += len(block["click"])
        if self._held_rows >= ROW_GROUP // 2:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        if self._pending is not None:
            self._pending.result()
        self._pending = self._pool.submit(self._put, self._held)
        self._held, self._held_rows = [], 0

    def _put(self, blocks: list[dict[str, Any]]) -> None:
        names = dict.fromkeys(self.EVENTS + self.TRUTH)
        joined = pa.table({name: np.concatenate([b[name] for b in blocks]) for name in names})
        events, truth = joined.select(self.EVENTS), joined.select(self.TRUTH)
        if self._events is not None and self._file_rows >= FILE_ROWS:
            self._events.close()
            self._events = None
        if self._events is None:
            path = self._folder / f"events-{self._files:04d}.parquet"
            self._events = self._open(path, events.schema)
            self._files, self._file_rows = self._files + 1, 0
        if self._truth is None:
            self._truth = self._open(self._folder / "truth.parquet", truth.schema)
        self._events.write_table(events, row_group_size=len(joined))
        self._truth.write_table(truth, row_group_size=len(joined))
        self._file_rows += len(joined)

    @staticmethod
    def _open(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            path, schema, compression="snappy", use_dictionary=["tab", "click", "like"]
        )

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._flush()
            if self._pending is not None:
                self._pending.result()
        finally:
            self._pool.shutdown()
            for writer in (self._events, self._truth):
                if writer is not None:
                    writer.close()


class _Best:
    """What the truth itself scores, on an even sample of at most ``SAMPLE`` rows per window."""

    COLUMNS = ("click", "watch_ms", "click_probability", "watch_seconds", "_user_free")

    def __init__(self, world: World) -> None:
        self._test_ms = _cut_ms(world, TRAIN + VALIDATION)
        self._step = {
            "overall": -(-world.events // SAMPLE),
            "test": -(-world.events // (4 * SAMPLE)),
        }
        self._seen = dict.fromkeys(self._step, 0)
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in self._step}

    def add(self, block: dict[str, Any]) -> None:
        after = int(np.searchsorted(block["time_ms"], self._test_ms))
        for window, start in (("overall", 0), ("test", after)):
            step, seen = self._step[window], self._seen[window]
            rows = slice(start + -seen % step, None, step)
            self._rows[window].append(tuple(block[name][rows].copy() for name in self.COLUMNS))
            self._seen[window] = seen + len(block["click"]) - start

    def figures(self) -> dict[str, dict[str, float | int | None]]:
        from limerank import metrics

        found: dict[str, dict[str, float | int | None]] = {}
        for window, rows in self._rows.items():
            columns = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
            click, watch, click_p, seconds, free = columns
            found[window] = {"rows": len(click)}
            if len(click):
                figures = {
                    "auc": metrics.auc(click, click_p),
                    "normalized_entropy": metrics.normalized_entropy(click, click_p),
                    "xauc": metrics.xauc(watch, seconds),
                    "user_free_auc": metrics.auc(click, free),
                }
                found[window] |= {k: x if np.isfinite(x) else None for k, x in figures.items()}
        return found


def _cut_ms(world: World, share: float) -> int:
    return START_MS + round(world.days * DAY_MS * share)


def _iso(ms: int) -> str:
    return str(np.datetime64(ms // 1000, "s")) + "Z"


def _sigmoid(x: F32) -> F32:
    one = np.float32(1.0)
    return one / (one + np.exp(-x))


def _named(codes: Any, names: Any) -> pa.Array:
    array = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names))
    return array.dictionary_decode()


def _spec(world: World) -> str:
    return f"""\
name = "synthetic-{world.seed}"

[[events]]
files = ["events-*.parquet"]
user = "user_id"
item = "item_id"
time = "time_ms"
time_unit = "ms"
request = "request_id"

[[labels]]
name = "click"
kind = "binary"

[[labels]]
name = "watch"
kind = "duration"
column = "watch_ms"
scale = 0.001
of = "duration_ms"

[[labels]]
name = "like"
kind = "binary"

[[event_features]]
name = "tab"
kind = "categorical"
when = "context"

[items]
files = ["items.parquet"]
id = "item_id"
features = [
    {{ name = "author", kind = "categorical" }},
    {{ name = "category", kind = "categorical" }},
    {{ name = "tags", kind = "categorical" }},
    {{ name = "duration", kind = "numeric", column = "duration_ms", transform = "log1p" }},
]

[users]
files = ["users.parquet"]
id = "user_id"
features = [
    {{ name = "age_band", kind = "categorical" }},
    {{ name = "device", kind = "categorical" }},
]

[split]
by = "time"
validation_from = "{_iso(_cut_ms(world, TRAIN))}"
test_from = "{_iso(_cut_ms(world, TRAIN + VALIDATION))}"

[history]
length = {world.history}
"""
