"""The log of a simulated shop with a known truth: ``limerank synth --kind shop``.

The world. A product has a category, a brand, a price level and a launch date, which the item table
shows; and a style and a set of products that it goes with, of any categories, which nothing but
the purchases shows. Popularity has a long tail; new products and those of a week's campaign get
more attention. A user looks for a few categories at a time, and in each for a brand and a style;
these interests end and are replaced. The next session of a user aims at

    an interest    the brand, the style or the price level in a category, or all of it
    a complement   the set of something that was bought, or else looked at, recently
    a return       something that was looked at or put into the cart recently, and not bought
    a repeat       a consumable whose cycle is over: the same product again, or the same brand
    nothing        what is popular

with probabilities that follow from what the user did before. A view leads to the cart, and the
cart to a purchase, the more often the clearer the aim. The probability of every purchase is known
in a closed form (:mod:`limerank.data.synthetic.shop.truth`), so that models can be compared with
the best possible lists.

A step is a quarter of a day; users have at most one session in it. All sessions of a step are
drawn together. Memory holds the events, about 200 bytes each.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from limerank import files
from limerank.data.synthetic.shop.customers import CART_STRENGTH, Customers
from limerank.data.synthetic.shop.output import (
    NAMES,
    event_frame,
    item_frame,
    shop_spec,
    uuids,
    write_truth,
)
from limerank.data.synthetic.shop.products import Ints, Products
from limerank.data.synthetic.shop.sessions import Views, aims, draw_views, remember
from limerank.data.synthetic.shop.truth import (
    CELLS,
    DEPTH,
    Truth,
    joined,
    known_best,
    purchase_chances,
)
from limerank.data.synthetic.shop.world import EVENTS_PER_SESSION, STEP_MS, ShopWorld
from limerank.errors import SpecError
from limerank.progress import Bar
from limerank.storage.arguments import NEW_FOLDER, with_uris
from limerank.validation import validate

__all__ = ["simulate_shop"]

HOURS = np.array(
    [5, 3, 2, 1, 1, 2, 5, 10, 16, 20, 22, 24, 28, 25, 22, 22, 24, 28, 34, 42, 48, 45, 30, 14],
    dtype=np.float64,
)
"""How many sessions begin in each hour of the day, UTC, up to a factor."""
PAUSE_MS = 45_000.0
"""Mean time between views of a session."""
MOST_MS = 3_300_000
"""Of a session; longer ones are compressed."""
LATE_MS = 180_000
"""Between the last event of the log and its end."""


@with_uris(out=NEW_FOLDER)
def simulate_shop(
    out: str | os.PathLike[str],
    *,
    users: int = 9000,
    items: int = 5000,
    events: int = 300_000,
    days: int = 90,
    seed: int = 0,
    end: str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Write the log of a shop into the new folder ``out``: views, carts and purchases.

    Args:
        out: the folder, which appears when everything is written.
        users, items: how many; both arrive over time.
        events: how many, about.
        days: length of the log.
        seed: the same arguments, seed and end give the same log.
        end: when the log ends, in ISO 8601, UTC unless it contains an offset; the last event is
            three minutes earlier. The present when not given.
        overwrite: replace ``out`` if it exists.
        quiet: show no progress.

    Returns:
        What ``simulation.json`` holds: the parameters, the counts, and ``best``: HR@10 and NDCG@10
        of the true probabilities, over the purchases of all sessions and over those of the last
        session of each user that has some, each with and without the items that the user had seen
        before the session. No ranking has a higher expected HR@10.

    The folder holds ``events.csv`` (time, user, session, event, item, price), ``items.csv`` (id,
    title, category, brand, price), the description ``shop.toml``, ``simulation.json``, and the
    truth: ``truth.parquet`` with the probability and the rank of every purchase, and
    ``truth-lists.parquet`` with the best list for every session with a purchase.
    Large simulations hold it for some sessions, drawn at random.

    Raises:
        SpecError: an argument is out of range or contradicts another.
        FormatError: ``out`` exists and ``overwrite`` is false.
    """
    asked = {
        "users": users, "items": items, "events": events, "days": days, "seed": seed,
        "end_ms": _milliseconds(end),
    }  # fmt: skip
    world = validate(ShopWorld, asked, "the simulation")
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(world.seed).spawn(4)]
    products = Products(world, streams[0])
    customers = Customers(world, products, streams[1])
    truth = Truth(min(1.0, CELLS / (world.events / EVENTS_PER_SESSION * world.items)))
    with files.new_folder(out, overwrite=overwrite, mark="simulation.json") as folder:
        columns = _simulate(world, products, customers, truth, streams[2], quiet)
        _write(folder, world, products, columns, truth, streams[3])
        summary = {
            "parameters": world.model_dump(),
            "start": _iso_text(world.start_ms),
            "end": _iso_text(world.end_ms),
            "counts": {
                "events": len(columns["time"]),
                "sessions": int(columns["session"].max(initial=-1)) + 1,
                **{
                    name: int(np.count_nonzero(columns["event"] == code))
                    for code, name in enumerate(NAMES)
                },
                "sessions with the truth": len(joined(truth.listed)),
            },
            "best": known_best(columns, truth, DEPTH),
        }
        files.write_json(folder / "simulation.json", summary)
    return summary


def _milliseconds(end: str | None) -> int:
    if end is None:
        return int(datetime.now(UTC).timestamp() * 1000)
    try:
        moment = datetime.fromisoformat(end)
    except ValueError:
        raise SpecError(
            f"end is {end!r}, expected a time in ISO 8601, such as 2026-11-29T12:00:00Z"
        ) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _iso_text(ms: int) -> str:
    return str(np.datetime64(ms // 1000, "s")) + "Z"


def _simulate(
    world: ShopWorld,
    products: Products,
    customers: Customers,
    truth: Truth,
    rng: np.random.Generator,
    quiet: bool,
) -> dict[str, Any]:
    """The events in order of time: time in ms, user, session, event, item, numbers."""
    hours = STEP_MS // 3_600_000
    first_hour = world.start_ms // 3_600_000 % 24
    share = np.roll(HOURS, -first_hour).reshape(-1, hours)
    rhythm = share.sum(axis=1) / share.sum() * len(share)
    parts: list[dict[str, Any]] = []
    sessions = 0
    with Bar("simulating", total=world.days, unit="days", quiet=quiet) as bar:
        for step in range(world.steps):
            products.move(step)
            customers.move(step)
            chance = np.minimum(customers.rate * rhythm[step % len(rhythm)], 1.0)
            here = (rng.random(world.users) < chance) & (customers.arrival <= step)
            user = np.flatnonzero(here)
            if len(user):
                known = aims(products, customers, user, step)
                views = draw_views(products, customers, user, known, rng)
                _note(truth, products, customers, user, known, views, sessions, rng)
                remember(customers, user, views, CART_STRENGTH, step)
                hour = share[step % len(share)]
                begin = _starts(len(user), hour, rng) + world.start_ms + step * STEP_MS
                parts.append(_events(user, views, begin, sessions, rng))
                sessions += len(user)
            if (step + 1) % (world.steps // world.days) == 0:
                bar.advance(1)
    names = ("time", "user", "session", "event", "item")
    columns = {name: joined(part[name] for part in parts).astype(np.int64) for name in names}
    order = np.argsort(columns["time"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    columns["time"] += world.end_ms - LATE_MS - columns["time"].max(initial=0)
    return columns


def _starts(n: int, hour: Any, rng: np.random.Generator) -> Ints:
    """When sessions begin within a step, in ms, so that they end within it."""
    up_to = np.append(0.0, np.cumsum(hour)) / hour.sum()
    at = np.interp(rng.random(n), up_to, np.linspace(0, STEP_MS - MOST_MS - 60_000, len(up_to)))
    return at.astype(np.int64)


def _note(
    truth: Truth,
    products: Products,
    customers: Customers,
    user: Ints,
    known: Any,
    views: Views,
    first: int,
    rng: np.random.Generator,
) -> None:
    """Add the sessions with a purchase, or some of them, to the truth."""
    bought = np.flatnonzero(views.bought)
    rows = np.unique(views.session[bought])
    if truth.share < 1:
        rows = rows[rng.random(len(rows)) < truth.share]
    if not len(rows):
        return
    bought = bought[np.isin(views.session[bought], rows)]
    chances = purchase_chances(products, customers, user[rows], known.of(rows))
    at = np.searchsorted(rows, views.session[bought])
    truth.add(chances, first + rows, at, views.item[bought])


def _events(
    user: Ints, views: Views, begin: Ints, first: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Views, then the cart some seconds later; what is bought, at the end of the session."""
    pause = 3000 + rng.exponential(PAUSE_MS, len(views.session))
    passed = np.cumsum(pause)
    count = np.bincount(views.session, minlength=len(user))
    last = np.cumsum(count) - 1
    passed -= np.append(0.0, passed[last[:-1]])[views.session]
    length = passed[last] + 60_000
    fit = np.minimum(1.0, MOST_MS / length)
    passed *= fit[views.session]
    cart, bought = np.flatnonzero(views.carted), np.flatnonzero(views.bought)
    # In the pause after the view: 3 s at least, compressed like the rest.
    added = passed[cart] + (500 + 2000 * rng.random(len(cart))) * fit[views.session[cart]]
    paid = (passed[last] + 30_000 * fit)[views.session[bought]]
    at = np.concatenate([np.arange(len(passed)), cart, bought])
    when = np.concatenate([passed, added, paid])
    return {
        "time": begin[views.session[at]] + when.astype(np.int64),
        "user": user[views.session[at]],
        "session": first + views.session[at],
        "event": np.repeat([0, 1, 2], [len(passed), len(cart), len(bought)]),
        "item": views.item[at],
    }


def _write(
    folder: Path,
    world: ShopWorld,
    products: Products,
    columns: dict[str, Any],
    truth: Truth,
    rng: np.random.Generator,
) -> None:
    sessions = int(columns["session"].max(initial=-1)) + 1
    ids = {
        "user": uuids(world.users, rng),
        "item": uuids(world.items, rng),
        "session": uuids(sessions, rng),
    }
    event_frame(columns, ids, products.price, rng).write_csv(folder / "events.csv")
    item_frame(products, ids["item"], rng).write_csv(folder / "items.csv")
    write_truth(folder, truth, ids)
    (folder / "shop.toml").write_text(shop_spec(world), encoding="utf-8")
