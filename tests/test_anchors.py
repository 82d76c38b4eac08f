"""Anchored links: statistics of the history for exactly one item, or one value of a feature."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limerank.data.batch import Batch, Sequences, Users
from limerank.data.dataset import Dataset
from limerank.errors import SpecError
from limerank.models import Ranker, build
from limerank.models import anchors as module
from limerank.models.anchors import AnchoredLinks, knots
from limerank.models.config import DataShape
from tests.worlds import SHAPE, batch, config_of, prepare_log, random_lists, unsure

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TOKENS = SHAPE.item_tokens


def anchored(model: str = "lime-mha", **settings: object) -> Ranker:
    torch.manual_seed(0)
    ranker = build(SHAPE, config_of(model, width=16, heads=2, links=5, anchors=None, **settings))
    unsure(ranker)
    return ranker.eval()


def keys_of(users: Users, item: int) -> list[tuple[int, float]]:
    assert users.keys is not None
    start, end = users.keys.offsets[item : item + 2].tolist()
    return list(
        zip(
            users.keys.keys[start:end].tolist(),
            users.keys.shares[start:end].tolist(),
            strict=True,
        )
    )


def weights_at(x: float, at: tuple[float, ...]) -> list[float]:
    x = min(max(x, at[0]), at[-1])
    found = [0.0] * len(at)
    for left in range(len(at) - 1):
        if at[left] <= x <= at[left + 1]:
            share = (x - at[left]) / (at[left + 1] - at[left])
            found[left], found[left + 1] = 1 - share, share
            return found
    raise AssertionError(x)


def definition(links: AnchoredLinks, users: Users, b: int, length: int, key: int) -> Tensor:
    """z of a key in the first ``length`` events of a history, one event after the other."""
    events = [
        n for n in range(length) if key in [of for of, _ in keys_of(users, int(users.items[b, n]))]
    ]
    kind = 0 if key >= TOKENS else int(links.kind_of(torch.tensor([key]))[0])
    if not events or kind < 0:
        return torch.zeros(links.width)
    outcomes = [links.outcomes.weight[users.tokens[b, n]].sum(0) for n in events]
    n = len(events)
    mean = sum(outcomes) / n
    fading = [module.FADING ** (n - 1 - j) for j in range(n)]
    faded = sum(w * one for w, one in zip(fading, outcomes, strict=True)) / sum(fading)
    age = float(users.age[b, events[-1]] - users.age[b, length - 1])
    scales = [
        *weights_at(math.log2(n), module.COUNTS),
        *weights_at(math.log2(length - events[-1]), module.AGO),
        *weights_at(math.log2(1 + 1440 * age), module.AGES),
    ]
    if links.positive is not None:
        positive = [n for n in range(length) if links.positive in users.tokens[b, n]]
        d = events[-1] - positive[-1] if positive else 0
        signed = math.copysign(math.log2(1 + abs(d)), d)
        scales += [bool(positive) * w for w in weights_at(signed, module.SINCE)]
    x = torch.cat([mean, faded, outcomes[-1], torch.tensor(scales)])
    x = x * n / (n + links.log_prior[int(kind == 0)].exp())
    return links.maps[0 if kind == 0 else 1](x) * links.scales[kind]


@pytest.mark.parametrize("since_positive", [True, False])
def test_links_equal_their_definition(since_positive):
    ranker = anchored(since_positive=since_positive)
    full = batch([5, 0, 9, 1], [3, 6, 1, 2], items=6, width=2)
    users, links = full.users, ranker.anchors
    found = links(users)
    for b, length in enumerate(users.lengths.tolist()):
        held = found[b : b + 1]
        assert (held.keys[1:] > held.keys[:-1]).all()
        some = {
            key
            for n in range(length)
            for key, _ in keys_of(users, int(users.items[b, n]))
            if int(links.kind_of(torch.tensor([key]))[0]) >= 0
        }
        assert set(held.keys.tolist()) == some
        for key, z in zip(held.keys.tolist(), held.links, strict=True):
            torch.testing.assert_close(z, definition(links, users, b, length, key), **CLOSE)


@pytest.mark.parametrize("lengths", [[5, 0, 9, 1], [0], [70, 3, 64], [1500]], ids=str)
@pytest.mark.parametrize("names", [None, ("item",), ("colour",), ("size", "item")])
@pytest.mark.parametrize("since_positive", [True, False])
def test_the_links_in_cpp_are_those_of_torch(lengths, names, since_positive):
    torch.manual_seed(0)
    more = {"anchor_width": 3, "since_positive": since_positive}
    config = config_of("lime-mha", width=16, heads=2, links=5, anchors=names, **more)
    ranker = build(SHAPE, config).eval()
    unsure(ranker)
    with torch.no_grad():
        ranker.anchors.scales.normal_()
    full = batch(lengths, [2] * len(lengths), items=6, width=2)
    with torch.no_grad():
        expected = ranker.anchors(full.users)
        found = ranker.anchors(full.users, native=True)
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert found.keys.tolist() == expected.keys.tolist()
    torch.testing.assert_close(found.links, expected.links, **CLOSE)


def test_the_user_stage_decides_what_computes_the_links(monkeypatch):
    ranker = anchored()
    used = []
    forward = ranker.anchors.forward
    monkeypatch.setattr(
        ranker.anchors,
        "forward",
        lambda users, candidates, native: used.append(native) or forward(users, candidates, native),
    )
    full = batch([5, 2], [3, 6], items=6)
    with torch.no_grad():
        by_torch = ranker(full)
        ranker.choose_user_stage("native")
        torch.testing.assert_close(ranker(full), by_torch, **CLOSE)
        ranker.train()(full)
    assert used == [False, True, False]


@pytest.mark.parametrize("neighbours", [0, 4])
def test_links_of_the_candidates_alone_are_those_of_all_keys(neighbours):
    ranker = anchored(neighbours=neighbours)
    if neighbours:
        ranker.neighbour_table.set(random_lists(SHAPE.item_ids, neighbours))
    full = batch([5, 0, 9, 1], [3, 6, 1, 2], items=6)
    users = ranker.completed(full.users)
    every, few = ranker.anchors(users), ranker.anchors(users, full.candidates)
    assert 0 < len(few.keys) < len(every.keys)
    found = []
    for links in (every, few):
        z_bmr = ranker.anchors.gathered(links, users.keys, full.candidates)
        z_bmr.square().sum().backward()
        found.append((z_bmr, [weight.grad.clone() for weight in ranker.anchors.parameters()]))
        ranker.zero_grad()
    torch.testing.assert_close(*found, **CLOSE)
    none = ranker.anchors(users, full.candidates[:, :0])
    assert not len(none.keys) and none.offsets.tolist() == [0] * 5


def test_candidates_receive_from_exactly_their_keys():
    ranker = anchored()
    full = batch([5, 0, 9, 1], [3, 6, 1, 2], items=6)
    users, links = full.users, ranker.anchors
    found = links.gathered(links(users), users.keys, full.candidates)
    for b, length in enumerate(users.lengths.tolist()):
        for m in range(int(full.counts[b])):
            wanted = torch.zeros(links.width)
            for key, share in keys_of(users, int(full.candidates[b, m])):
                wanted += share * definition(links, users, b, length, key)
            torch.testing.assert_close(found[b, m], wanted, **CLOSE)


def test_an_impression_sees_exactly_the_events_before_it():
    ranker = anchored()
    full = batch([5, 0, 60, 1], [1, 1, 1, 1], items=6)
    users = replace(full.users, context=torch.zeros((4, 0), dtype=torch.int64))
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    prefix = torch.tensor([0, 5, 0, 1, 17, 60, 1])
    candidates = torch.randint(0, 6, (7,), generator=torch.Generator().manual_seed(1))
    found = ranker.anchors.at_prefixes(users, owner, prefix, candidates)
    for m in range(7):
        wanted = torch.zeros(ranker.anchors.width)
        for key, share in keys_of(users, int(candidates[m])):
            b, length = int(owner[m]), int(prefix[m])
            wanted += share * definition(ranker.anchors, users, b, length, key)
        torch.testing.assert_close(found[m], wanted, **CLOSE)
    sequences = Sequences(
        items=full.items,
        distinct=full.distinct,
        users=users,
        owner=owner,
        prefix=prefix,
        context=torch.zeros((7, 0), dtype=torch.int64),
        candidates=candidates % full.distinct,
        labels=torch.zeros(7, 2),
    )
    logits = ranker.sequence_logits(sequences)
    ends = prefix == users.lengths[owner]
    alone = replace(
        full,
        users=users,
        candidates=(candidates % full.distinct)[ends][:, None],
        counts=torch.ones(4, dtype=torch.int64),
    )
    torch.testing.assert_close(logits[ends], ranker(alone)[:, 0], **CLOSE)


def test_a_model_starts_as_it_is_without_anchored_links():
    full = batch([5, 0, 9, 1], [3, 6, 1, 2])
    for model in ("lime-mha", "lime-xor", "two-tower", "din"):
        found = []
        for anchors in ((), None, ("item",), ("colour",)):
            torch.manual_seed(0)
            found.append(build(SHAPE, config_of(model, width=16, anchors=anchors)).eval()(full))
        for one in found[1:]:
            torch.testing.assert_close(one, found[0], **CLOSE)


@pytest.mark.parametrize(
    ("anchors", "kinds"),
    [(("item",), {0}), (("colour",), {1}), (("size", "item"), {0, 1}), (None, {0, 1, 2})],
)
def test_only_what_is_anchored_has_links(anchors, kinds):
    full = batch([9, 9, 9, 9], [3, 6, 1, 2])
    ranker = build(SHAPE, config_of("lime-mha", width=16, anchors=anchors))
    found = ranker.anchors(full.users)
    assert set(ranker.anchors.kind_of(found.keys).tolist()) == kinds


def test_an_unknown_value_is_like_no_other():
    """The first row of a feature means unknown or missing."""
    full = batch([9, 9], [3, 6])
    content = full.items.content
    starts = [start for start, _ in SHAPE.anchors.values()]
    assert any(start in content.tokens.tolist() for start in starts)
    assert not set(starts) & set(anchored().anchors(full.users).keys.tolist())


def test_every_weight_learns():
    ranker = anchored().train()
    full: Batch = batch([9, 9, 9, 9], [3, 6, 1, 2], items=6)
    ranker(full)[full.real].sum().backward()
    for name, weight in ranker.named_parameters():
        if "anchors" in name:
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_an_anchor_that_does_not_exist_is_refused():
    with pytest.raises(SpecError, match="colour"):
        build(SHAPE, config_of("lime-mha", anchors=("color",)))


def test_keys_are_needed():
    full = batch([3], [2])
    with pytest.raises(RuntimeError, match="keys"):
        anchored()(replace(full, users=replace(full.users, keys=None)))


def test_knots_are_a_piecewise_linear_scale():
    x = torch.tensor([-1.0, 0.0, 0.5, 3.5, 5.0, 8.0, 99.0])
    at = (0.0, 1.0, 3.0, 4.0, 8.0)
    torch.testing.assert_close(
        knots(x, at), torch.tensor([weights_at(float(one), at) for one in x])
    )


def test_a_history_of_positives_alone_has_no_newest_one_to_speak_of(tmp_path):
    found = {}
    for keep in (None, "click"):
        history = {"length": 20} | ({} if keep is None else {"keep": keep})
        data = prepare_log(tmp_path / str(keep), history=history)
        found[keep] = DataShape.of(Dataset(data).manifest).positive
    assert found["click"] is None and found[None] is not None
    assert Dataset(data).encoder.token("label_click", 1) == found[None]
