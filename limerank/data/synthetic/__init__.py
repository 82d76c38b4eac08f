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
that means nothing. Only the history shows which is which: neither the users' features nor
the frequency of a topic do. Interests fade and are replaced, items and users arrive over time,
and new items are as likeable as old ones.

Every six hours the catalogue and the interests move; in between they stand still. State is stored
per user and per item, and the events are drawn and written in blocks, so memory does not grow with
their number.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from limerank import files
from limerank.data.synthetic.impressions import event_blocks
from limerank.data.synthetic.output import KnownBest, LogWriter, spec_text
from limerank.data.synthetic.population import SimulatedItems, SimulatedUsers
from limerank.data.synthetic.world import START_MS, TRAIN, VALIDATION, World, cut_ms, iso_text
from limerank.progress import Bar
from limerank.storage.arguments import NEW_FOLDER, with_uris
from limerank.validation import validate

__all__ = ["simulate"]


@with_uris(out=NEW_FOLDER)
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
    ``(user_id, item_id, time_ms)`` and ``(request_id, item_id)`` are unique; ``propensity`` is the
    probability with which the policy showed the item at its position, for
    :mod:`limerank.metrics.off_policy`), ``items.parquet``,
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
    catalogue = SimulatedItems(world, np.random.default_rng(streams[0]))
    audience = SimulatedUsers(world, catalogue.topic_shares, np.random.default_rng(streams[1]))
    with files.new_folder(out, overwrite=overwrite, mark="simulation.json") as folder:
        pq.write_table(catalogue.table(), folder / "items.parquet", compression="zstd")
        pq.write_table(audience.table(), folder / "users.parquet", compression="zstd")
        best = KnownBest(world)
        counts = {"requests": 0, "clicks": 0, "likes": 0}
        rng = np.random.default_rng(streams[2])
        with (
            Bar("simulating", total=events, unit="events", quiet=quiet) as bar,
            LogWriter(folder) as writer,
        ):
            for block in event_blocks(world, catalogue, audience, rng):
                writer.write(block)
                best.add(block)
                counts["requests"] = int(block["request_id"][-1]) + 1
                counts["clicks"] += int(np.count_nonzero(block["click"]))
                counts["likes"] += int(np.count_nonzero(block["like"]))
                bar.advance(len(block["click"]))
        (folder / "spec.toml").write_text(spec_text(world), encoding="utf-8")
        summary = {
            "parameters": world.model_dump(),
            "start": iso_text(START_MS),
            "validation_from": iso_text(cut_ms(world, TRAIN)),
            "test_from": iso_text(cut_ms(world, TRAIN + VALIDATION)),
            "counts": {"events": world.events, **counts},
            "best": best.figures(),
        }
        files.write_json(folder / "simulation.json", summary)
    return summary
