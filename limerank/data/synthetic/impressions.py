"""The events of a simulation: who comes, what is shown, what follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from limerank.data.synthetic.population import POOL, SimulatedItems, SimulatedUsers
from limerank.data.synthetic.world import MOVE_MS, MOVES_PER_DAY, START_MS, World

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Items = npt.NDArray[np.int32]

BLOCK = 1 << 17
"""Most events drawn at once."""
REQUEST_SIZES = (4, 16)
SHARE_PERSONAL, SHARE_POPULAR = 0.75, 0.15
"""Of the impressions; the others are uniform over the live catalogue."""
BASE = -1.5
TAB_SHARES = np.array([0.45, 0.25, 0.15, 0.1, 0.05])
TAB_EFFECTS = np.array([0.0, 0.2, -0.25, 0.4, -0.5], dtype=np.float32)
NEAR = 0.35
"""Share of an interest's effect that reaches the other topics of its category."""
WATCH_NOISE = 0.5
HOURS = np.array(
    [9, 6, 4, 3, 3, 4, 7, 12, 17, 20, 22, 25, 30, 28, 24, 23, 24, 28, 34, 41, 46, 44, 33, 19],
    dtype=np.float64,
)


def event_blocks(
    world: World, catalogue: SimulatedItems, audience: SimulatedUsers, rng: np.random.Generator
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
    catalogue: SimulatedItems,
    audience: SimulatedUsers,
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

    interest_n, free_n, click_p = click_chances(catalogue, audience, user_n, item_n, tab_n)
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
        "propensity": propensities(catalogue, audience, user_n, item_n, low_r, size_r),
        "_user_free": free_n,
    }


def click_chances(
    catalogue: SimulatedItems, audience: SimulatedUsers, user_n: I64, item_n: Items, tab_n: I64
) -> tuple[F32, F32, F32]:
    """Of users and items, at the present time: interest, what does not depend on the user, and the
    probability of a click, all f32 [n]."""
    interest_n = np.zeros(len(user_n), dtype=np.float32)
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
    return interest_n, free_n, click_p


def propensities(
    catalogue: SimulatedItems,
    audience: SimulatedUsers,
    user_n: I64,
    item_n: Items,
    low_r: I64,
    size_r: I64,
) -> F64:
    """The probability with which the logging policy showed each row's item, given the rows before
    it in its request; f64 [n].

    A row's item is drawn from the policy's distribution pi. If it is one of the k earlier items S
    of the request, it is drawn again, uniformly from the live items outside S. So the probability
    is ``pi(item) + pi(S) / (live - k)``.
    """
    topics_n = audience.topics[user_n]
    counts_n = catalogue.pool_count[topics_n]
    topic_n = catalogue.topic[item_n]
    often_n = np.bincount(catalogue.pool, minlength=len(catalogue.topic))[item_n]
    own_n = (topics_n == topic_n[:, None]).any(1)
    count_n = np.maximum(catalogue.pool_count[topic_n], 1)
    personal_n = own_n * often_n / count_n / topics_n.shape[1]
    popular_n = SHARE_POPULAR + SHARE_PERSONAL * (counts_n == 0).mean(1)
    anywhere = (1 - SHARE_PERSONAL - SHARE_POPULAR) / catalogue.live
    policy_n = SHARE_PERSONAL * personal_n + popular_n * often_n / POOL + anywhere
    before_n = np.cumsum(policy_n) - policy_n
    before_n -= np.repeat(before_n[low_r], size_r)
    rank_n = np.arange(len(item_n)) - np.repeat(low_r, size_r)
    found: F64 = policy_n + np.maximum(before_n, 0.0) / (catalogue.live - rank_n)
    return found


def _shown(
    catalogue: SimulatedItems,
    audience: SimulatedUsers,
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
    # Impressions of a request are adjacent: equal ones are found by comparing each with the next.
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


def _sigmoid(x: F32) -> F32:
    one = np.float32(1.0)
    return one / (one + np.exp(-x))
