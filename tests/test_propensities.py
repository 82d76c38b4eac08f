"""The propensities of the simulator, and what they are for: the value of another policy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from limerank.data.synthetic.impressions import (
    _shown,
    click_chances,
    event_blocks,
    propensities,
)
from limerank.data.synthetic.population import SimulatedItems, SimulatedUsers
from limerank.data.synthetic.world import World
from limerank.metrics.off_policy import ips, snips

WORLD = {
    "users": 40, "items": 64, "events": 2000, "days": 1, "topics": 12, "interests": 2,
    "mistakes": 1, "drift": 5.0, "history": 20,
}  # fmt: skip


def blocks(seed):
    """The blocks of a small simulation, with the state of the world that each was drawn in."""
    world = World(seed=seed, **WORLD)
    streams = np.random.SeedSequence(seed).spawn(3)
    catalogue = SimulatedItems(world, np.random.default_rng(streams[0]))
    audience = SimulatedUsers(world, catalogue.topic_shares, np.random.default_rng(streams[1]))
    for block in event_blocks(world, catalogue, audience, np.random.default_rng(streams[2])):
        yield block, catalogue, audience


def test_weights_of_a_uniform_policy_have_the_mean_one():
    """At each position: the uniform policy over the items that the request does not have yet."""
    weights, ranks = [], []
    for seed in range(5):
        for block, catalogue, _ in blocks(seed):
            request = block["request_id"]
            starts = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
            rank = np.arange(len(request)) - np.repeat(starts, np.diff(np.r_[starts, len(request)]))
            weights.append(1 / (catalogue.live - rank) / block["propensity"])
            ranks.append(rank)
    weight, rank = np.concatenate(weights), np.concatenate(ranks)
    assert (weight > 0).all()
    for low, high in ((0, 1), (1, 4), (4, 16)):
        some = weight[(rank >= low) & (rank < high)]
        assert abs(some.mean() - 1) < 4 * some.std() / np.sqrt(len(some)), (low, high)


def test_propensities_are_frequencies():
    """The first item of many requests of one user, at one time."""
    block, catalogue, audience = next(iter(blocks(1)))
    user = Counter(block["user_id"].tolist()).most_common(1)[0][0] - 1
    items = np.arange(catalogue.live)
    ones = np.ones(len(items), np.int64)
    chance = propensities(catalogue, audience, ones * user, items, items, ones)
    assert chance.sum() == pytest.approx(1.0)
    count = 40_000
    rng = np.random.default_rng(0)
    shown = _shown(catalogue, audience, rng, np.full(count, user), np.arange(count))
    found = np.bincount(shown, minlength=len(items)) / count
    spread = np.sqrt(chance * (1 - chance) / count)
    assert (abs(found - chance) < 5 * spread + 1e-9).all()


def test_estimates_contain_the_truth_of_the_simulator():
    """Of 25 logs: the click rate of a policy that shows any live item at the first position. 95 %
    are 24; four standard deviations less are 19."""
    inside = {"ips": 0, "snips": 0}
    for seed in range(25):
        rewards, chances, targets, truth = [], [], [], []
        for block, catalogue, audience in blocks(seed):
            request = block["request_id"]
            first = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
            rewards.append(block["click"][first])
            chances.append(block["propensity"][first])
            targets.append(np.full(len(first), 1 / catalogue.live))
            users = np.repeat(block["user_id"][first] - 1, catalogue.live)
            tabs = np.repeat(block["tab"][first], catalogue.live)
            items = np.tile(np.arange(catalogue.live, dtype=np.int32), len(first))
            _, _, click = click_chances(catalogue, audience, users, items, tabs)
            truth.append(click.reshape(len(first), -1).mean(1))
        value = np.concatenate(truth).mean()
        given = [np.concatenate(part) for part in (rewards, chances, targets)]
        for name, estimate in (("ips", ips), ("snips", snips)):
            found = estimate(*given)
            inside[name] += found.low <= value <= found.high
    assert inside["ips"] >= 19 and inside["snips"] >= 19, inside
