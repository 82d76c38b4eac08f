"""One contract for every ranker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import benchmarks.variants  # noqa: F401  (registers its models)
from limerank.data.batch import Batch
from limerank.metrics import Affine
from limerank.models import MODELS, Ranker, build
from limerank.models.config import ModelConfig
from limerank.models.layers import HALF_LIVES, Evidence, FlooredNorm, start_forgetting
from limerank.models.ranker import gather
from limerank.models.registry import FITTED, OF_THE_PACKAGE
from limerank.models.tasks import predictions, task_losses, total_loss
from tests.worlds import SHAPE, batch, config_of, counted_events, unsure

LENGTHS, COUNTS = [5, 0, 9, 1], [3, 6, 1, 2]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=[*sorted(MODELS), *(f"{name} anchored" for name in OF_THE_PACKAGE)])
def ranker(request) -> Ranker:
    """Every registered model, those of benchmarks.variants too; with and without anchored links."""
    torch.manual_seed(0)
    name, _, anchored = request.param.partition(" ")
    anchors = None if anchored else ()
    settings = {"neighbours": 4} if anchored else {}
    settings |= {"width": 16, "heads": 2, "links": 5, "blocks": 2, "hidden": 12, "anchor_width": 3}
    config = config_of(name, anchors=anchors, **settings)
    ranker = build(SHAPE, config).eval()
    if ranker.fitted:
        ranker.fit(counted_events())
    unsure(ranker)
    return ranker


def _widened(full: Batch, more: int) -> Batch:
    """The same requests with more padding, filled with numbers that must not matter."""
    users = full.users
    pad = torch.nn.functional.pad
    return replace(
        full,
        users=replace(
            users,
            items=pad(users.items, (0, more), value=1),
            tokens=pad(users.tokens, (0, 0, 0, more), value=2),
            age=pad(users.age, (0, more), value=77.0),
        ),
        candidates=pad(full.candidates, (0, more), value=1),
        labels=pad(full.labels, (0, 0, 0, more)),
    )


def _row(full: Batch, b: int) -> Batch:
    """One request alone."""
    users, features = full.users, full.users.features
    start, end = int(features.offsets[b]), int(features.offsets[b + 1])
    n, m = int(users.lengths[b]), int(full.counts[b])
    return replace(
        full,
        users=replace(
            users,
            items=users.items[b : b + 1, :n],
            tokens=users.tokens[b : b + 1, :n],
            age=users.age[b : b + 1, :n],
            lengths=users.lengths[b : b + 1],
            features=replace(
                features,
                tokens=features.tokens[start:end],
                weights=features.weights[start:end],
                offsets=torch.tensor([0, end - start]),
                numeric=features.numeric[b : b + 1],
            ),
            context=users.context[b : b + 1],
        ),
        candidates=full.candidates[b : b + 1, :m],
        counts=full.counts[b : b + 1],
        labels=full.labels[b : b + 1, :m],
    )


def test_forward_is_the_score_of_encoded_parts(ranker):
    full = batch(LENGTHS, COUNTS)
    vectors = ranker.item_vectors(full.items)
    terms = ranker.encode_items(vectors)
    state = ranker.encode_users(full.users, vectors)
    extra = ranker.extra(state, full.users.keys, full.candidates)
    torch.testing.assert_close(
        ranker(full), ranker.score(state, gather(terms, full.candidates), extra), **CLOSE
    )


def test_a_catalogue_for_everyone_scores_as_candidates_do(ranker):
    full = batch(LENGTHS, COUNTS)
    vectors = ranker.item_vectors(full.items)
    terms = ranker.encode_items(vectors)
    state = ranker.encode_users(full.users, vectors)
    every = torch.arange(len(vectors)).expand(len(LENGTHS), -1)
    for_everyone = ranker.extra(state, full.users.keys, every[0])
    torch.testing.assert_close(
        ranker.score(state, terms, for_everyone),
        ranker.score(state, gather(terms, every), ranker.extra(state, full.users.keys, every)),
        **CLOSE,
    )


def test_padding_never_enters(ranker):
    full = batch(LENGTHS, COUNTS)
    real = full.real
    wide = ranker(_widened(full, 4))[:, : real.shape[1]]
    torch.testing.assert_close(wide[real], ranker(full)[real], **CLOSE)


def test_a_request_does_not_depend_on_the_others_of_its_batch(ranker):
    full = batch(LENGTHS, COUNTS)
    together = ranker(full)
    for b, count in enumerate(COUNTS):
        torch.testing.assert_close(ranker(_row(full, b))[0], together[b, :count], **CLOSE)


def test_candidates_do_not_see_each_other(ranker):
    full = batch([6], [5])
    changed = replace(full, candidates=torch.cat([full.candidates[:, :1]] * 5, 1))
    torch.testing.assert_close(ranker(changed)[:, 0], ranker(full)[:, 0], **CLOSE)


@pytest.mark.parametrize("model", ["mha", "truncated-mha", "lrea", "din", "hstu", "two-tower"])
@pytest.mark.parametrize("lengths", [[5, 0, 9], [1300], [300, 0, 1, 129, 128]], ids=str)
def test_serving_takes_shorter_routes_to_the_same_logits(model, lengths):
    """Without gradients: fused attention, histories and candidates in pieces."""
    config = config_of(model, width=16, heads=2, links=6, blocks=3, hidden=12, positions=200)
    torch.manual_seed(0)
    ranker = build(SHAPE, config).eval()
    full = batch(lengths, [1500] + [70] * (len(lengths) - 1))
    trained = ranker(full).detach()
    with torch.inference_mode():
        served = ranker(full)
        vectors = ranker.item_vectors(full.items)
        terms, state = ranker.encode_items(vectors), ranker.encode_users(full.users, vectors)
        shared = ranker.score(state, gather(terms, full.candidates[0]))
    real = full.real
    torch.testing.assert_close(served[real], trained[real], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(shared[0], trained[0], atol=2e-5, rtol=1e-4)


def test_a_calibration_is_an_affine_map_of_the_logits_and_leaves_no_trace(ranker):
    full = batch(LENGTHS, COUNTS)
    before = {name: weight.clone() for name, weight in ranker.state_dict().items()}
    logits = ranker(full)[full.real]
    with ranker.calibrated([Affine(0.4, -1.5), Affine(2.0, 0.7)]):
        found = ranker(full)[full.real]
        unchanged = sum(torch.equal(before[n], w) for n, w in ranker.state_dict().items())
        assert len(before) - 6 <= unchanged < len(before)
    expected = logits * torch.tensor([0.4, 2.0]) + torch.tensor([-1.5, 0.7])
    torch.testing.assert_close(found, expected, **CLOSE)
    # Impressions of one item in one request have equal logits, but for the last bit.
    assert (found[logits[:, 0].argsort(stable=True), 0].diff() > -1e-6).all()
    assert all(torch.equal(before[name], weight) for name, weight in ranker.state_dict().items())


@pytest.mark.parametrize("model", sorted(MODELS.keys() - set(FITTED)))
def test_a_calibration_holds_with_anchored_links(model):
    config = config_of(model, width=16, heads=2, links=5, blocks=2, hidden=12, anchors=("item",))
    ranker, full = build(SHAPE, config).eval(), batch(LENGTHS, COUNTS)
    unsure(ranker)
    anchored = torch.randn(*full.candidates.shape, config.anchor_width)

    def logits():
        vectors = ranker.item_vectors(full.items)
        terms = gather(ranker.encode_items(vectors[: full.distinct]), full.candidates)
        state = ranker.user_state(full.users, vectors)
        return ranker.score(state, terms, ranker.from_anchors(anchored))[full.real]

    before = logits()
    with ranker.calibrated([Affine(0.4, -1.5), Affine(2.0, 0.7)]):
        expected = before * torch.tensor([0.4, 2.0]) + torch.tensor([-1.5, 0.7])
        torch.testing.assert_close(logits(), expected, **CLOSE)
    assert torch.equal(logits(), before)


def test_an_empty_history_is_legal(ranker):
    full = batch([0, 0], [2, 2])
    assert full.users.items.shape[1] == 0
    assert ranker(full).isfinite().all()


def test_every_weight_learns(ranker):
    if ranker.fitted:
        pytest.skip("it is counted")
    ranker.train()
    torch.manual_seed(0)
    for seed in range(3):
        full = batch(LENGTHS, COUNTS, seed=seed)
        logits, real = ranker(full), batch(LENGTHS, COUNTS, seed=seed).real
        losses = task_losses(logits[real], full.labels[real], SHAPE.tasks)
        total_loss(losses, {}).backward()
    for name, weight in ranker.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.to_dense().abs().sum() > 0, name


def test_an_unseen_id_is_a_dropped_one(ranker):
    if ranker.fitted:
        pytest.skip("no ids are hidden")
    full = batch(LENGTHS, COUNTS)
    unseen = replace(full, items=replace(full.items, ids=torch.zeros_like(full.items.ids)))
    tower = ranker.item_tower.train()
    tower.id_dropout = 1.0
    torch.testing.assert_close(tower(full.items), tower.eval()(unseen.items))


def test_history_matters(ranker):
    full = batch([6], [5])
    other = replace(full, users=replace(full.users, items=full.users.items.flip(1) * 0 + 3))
    same = torch.allclose(ranker(other), ranker(full), atol=1e-4)
    without = ranker.config.model == "popularity" and ranker.anchors is None
    assert same == (without or ranker.config.model == "most-popular")


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "hardswish"])
def test_folded_links_are_the_links(gated, activation):
    torch.manual_seed(0)
    config = ModelConfig(
        model="lime-mha", width=12, heads=3, links=4, hidden=6, gated=gated, activation=activation
    )
    ranker = build(SHAPE, config).eval()
    assert ranker.folds
    full = batch(LENGTHS, COUNTS)
    vectors = ranker.item_vectors(full.items)
    state, terms = ranker.encode_users(full.users, vectors), ranker.encode_items(vectors)
    folded = ranker.fold(state)
    by_hand = ranker.head(terms.weights @ folded + terms.head + state.head[:, None])
    every = torch.arange(len(vectors)).expand(len(LENGTHS), -1)
    torch.testing.assert_close(by_hand, ranker.score(state, gather(terms, every)), **CLOSE)


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_link_weights_are_shares_that_no_user_enters(model):
    torch.manual_seed(0)
    ranker = build(SHAPE, ModelConfig(model=model, width=16, heads=2, links=5)).eval()
    full = batch(LENGTHS, COUNTS)
    weights = ranker.encode_items(ranker.item_vectors(full.items)).weights.unflatten(-1, (2, 5))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]), **CLOSE)


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_few_events_say_less_than_many(model):
    """Of the same event n times, what links read is the same; n / (n + k) of it counts."""
    torch.manual_seed(0)
    config = config_of(model, width=16, heads=2, links=5, blocks=1)
    ranker, full = build(SHAPE, config).eval(), batch([9], [4])
    lime = ranker.reading.evidence

    def scores(count: int, log_prior: float) -> torch.Tensor:
        lime.log_prior.data.fill_(log_prior)
        users = full.users
        same = replace(
            users,
            items=users.items[:, :1].expand(-1, count),
            tokens=users.tokens[:, :1].expand(-1, count, -1),
            age=torch.zeros(1, count),
            lengths=torch.tensor([count]),
        )
        return ranker(replace(full, users=same))

    sure, none = -30.0, scores(0, 0.0)
    torch.testing.assert_close(scores(1, sure), scores(9, sure), **CLOSE)
    torch.testing.assert_close(scores(0, sure), none, **CLOSE)
    assert not torch.allclose(scores(1, 0.0), scores(9, 0.0), atol=1e-3)
    # One event of which 1 / (1 + 1) counts, and three of which 3 / (3 + 3) does.
    torch.testing.assert_close(scores(1, 0.0), scores(3, float(np.log(3))), **CLOSE)
    far = [(scores(count, 0.0) - none).norm() for count in (1, 3, 9)]
    assert far == sorted(far)


def test_evidence_grows_with_events():
    evidence = Evidence(2, 3)
    unsure(evidence)
    count = torch.tensor([0, 1, 7])
    found = evidence(count)
    k = evidence.log_prior.exp()
    torch.testing.assert_close(found, count[:, None, None] / (count[:, None, None] + k))
    found.sum().backward()
    gradient = evidence.log_prior.grad
    assert gradient is not None and (gradient < 0).all()


def test_a_floored_norm_keeps_little_little():
    """With gradients and without; much is brought to a size of one, little to its share of c."""
    norm = FlooredNorm()
    with torch.no_grad():
        norm.log_floor.fill_(float(np.log(0.2)))
    x = torch.tensor([[300.0, -400.0], [0.003, -0.004], [0.0, 0.0]])
    size = x.square().mean(-1, keepdim=True).sqrt()
    found = norm(x)
    torch.testing.assert_close(found, x / (size.square() + 0.04).sqrt(), **CLOSE)
    assert found[0].detach().square().mean().sqrt() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(found[1], x[1] / 0.2, rtol=1e-3, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(norm(x), found.detach(), **CLOSE)
    found.sum().backward()
    assert norm.log_floor.grad.isfinite()


def test_half_lives_start_spread_over_the_ages_of_a_log():
    log_rate = torch.empty(2, 4)

    def half_lives(ages: torch.Tensor | None) -> torch.Tensor:
        start_forgetting(log_rate, ages)
        return np.log(2) / log_rate.exp()

    torch.manual_seed(0)
    ages = torch.cat([torch.zeros(300), torch.rand(1000) * 7])
    found = half_lives(ages)
    torch.testing.assert_close(found.min(), torch.tensor(0.35), rtol=0.2, atol=0)
    torch.testing.assert_close(found.max(), torch.tensor(66.5), rtol=0.02, atol=0)
    # Heads of one link forget about alike, and steps between half-lives are equal factors.
    in_turn = found.T.flatten().log().diff()
    torch.testing.assert_close(in_turn, in_turn.mean().expand(7), **CLOSE)
    # A log in hours starts as the same log in days does.
    torch.testing.assert_close(half_lives(24 * ages), 24 * found)
    for nothing in (None, torch.empty(0), torch.zeros(3)):
        untold = half_lives(nothing)
        assert (untold.min().item(), untold.max().item()) == pytest.approx(HALF_LIVES)
    alone = half_lives(torch.tensor([5.0]))
    assert (alone.min().item(), alone.max().item()) == pytest.approx((5.0, 50.0))


def test_mha_does_not_depend_on_the_order_of_events():
    torch.manual_seed(0)
    ranker = build(SHAPE, ModelConfig(model="lime-mha", width=16, heads=2, links=5)).eval()
    full = batch([7], [4])
    users = full.users
    order = torch.randperm(7)
    shuffled = replace(
        users, items=users.items[:, order], tokens=users.tokens[:, order], age=users.age[:, order]
    )
    torch.testing.assert_close(ranker(replace(full, users=shuffled)), ranker(full), **CLOSE)


def test_duration_loss_is_least_at_the_mean():
    """exp(z) is the expected duration: at the optimum of the loss it is the mean label."""
    labels = torch.tensor([[0.0, 3.0], [0.0, 9.0], [0.0, 30.0]])
    z = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([z], max_iter=50)

    def closure():
        optimiser.zero_grad()
        logits = torch.stack([torch.zeros(3), z.expand(3)], -1)
        loss = task_losses(logits, labels, SHAPE.tasks)["watch"]
        loss.backward()
        return loss

    optimiser.step(closure)
    predicted = predictions(torch.stack([torch.zeros(1), z.detach()], -1), SHAPE.tasks)
    torch.testing.assert_close(predicted[0, 1], torch.tensor(14.0), atol=1e-2, rtol=1e-3)


def test_lime_mha_starts_with_items_that_read_what_is_like_them():
    """Before any training, an item weighs the links by which events of the same item are read."""
    torch.manual_seed(0)
    ranker = build(SHAPE, ModelConfig(model="lime-mha", width=32, links=16)).eval()
    full = batch([12], [8], items=20)
    vectors = ranker.item_vectors(full.items)
    weights_ul = ranker.encode_items(vectors).weights
    keys_ud = ranker.reading.key_value(vectors).chunk(2, -1)[0]
    queries_ld = ranker.reading.query(ranker.links)
    reads_ul = F.silu(keys_ud @ queries_ld.T / 32**0.5)
    alike_uu = weights_ul @ reads_ul.T
    assert (alike_uu.diagonal() > alike_uu.mean(1)).float().mean() > 0.9


def test_lime_xor_starts_with_items_that_read_what_is_like_them():
    """The same of every block and of the reading, before SiLU: blocks start with a small spread."""
    torch.manual_seed(0)
    ranker = build(SHAPE, ModelConfig(model="lime-xor", width=32, links=64)).eval()
    vectors_ud = ranker.item_vectors(batch([12], [8], items=20).items)
    items_ul = ranker.item_query(vectors_ud) @ ranker.link_key(ranker.links).T
    layers = [
        (block.kv(block.norm(vectors_ud))[:, :32], block.uq(block.norm(ranker.links))[:, 32:])
        for block in ranker.stack
    ]
    last = ranker.reading
    layers.append((last.key_value(vectors_ud)[:, :32], last.query(ranker.links)))
    for keys_ud, queries_ld in layers:
        reads_ul = keys_ud @ queries_ld.T
        both = torch.stack([items_ul.flatten(), reads_ul.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.8


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor", "mha"])
def test_nothing_drowns_the_rest_when_training_starts(model):
    """Small logs depend on it: a number weighs as much as a category, and the outcome of an event
    is visible beside its item."""
    torch.manual_seed(0)
    fresh = build(SHAPE, ModelConfig(model=model))
    content = fresh.item_tower.content
    number, category = content.numeric.weight.std(), content.table.weight.std()
    assert 0.5 < number / category < 2
    full = batch(LENGTHS, COUNTS)
    items_ud = fresh.item_vectors(full.items)
    outcomes = fresh.event_tower(full.users, items_ud)[0, :5] - items_ud[full.users.items[0, :5]]
    assert 0.5 < outcomes.std() / items_ud.std() < 2
