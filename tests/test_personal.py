"""The user stage in C++ is the model's own, on every path of this machine."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.variants import VARIANTS
from limerank.kernels import _native
from limerank.kernels.personal import Personaliser
from limerank.models import build
from limerank.models.lime import Lime
from tests.worlds import SHAPE, batch, config_of, unsure

LENGTHS = [[5, 0, 9], [700], [63, 64, 65, 0, 1, 300], [0, 0]]
SHAPES = [(1, 5, 16), (2, 16, 24), (4, 9, 16), (1, 33, 64), (2, 40, 20), (1, 1, 1)]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def ranker_of(model, heads=1, links=5, width=16, **more):
    """All its weights have left where they start."""
    torch.manual_seed(0)
    config = config_of(model, width=width, heads=heads, links=links, hidden=12, **more)
    ranker = build(SHAPE, config).eval()
    assert isinstance(ranker, Lime)
    unsure(ranker)
    with torch.no_grad():
        for weight in ranker.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return ranker


def given(ranker, full):
    """What C++ is given of a batch: as torch tensors without gradients."""
    with torch.no_grad():
        vectors = ranker.item_vectors(full.items)
        users = ranker.user_tower(full.users)[0]
        return users, ranker.events(full.users, vectors), full.users.age, full.users.lengths


def arrays_of(ranker):
    links, *others = (getattr(*position).detach().numpy() for position in ranker.stage())
    return links, others


def in_cpp(ranker, full, path=None, threads=1):
    native = _native.Personaliser(ranker.config.heads, *arrays_of(ranker), path)
    arrays = [tensor.contiguous().numpy() for tensor in given(ranker, full)]
    return torch.from_numpy(native(*arrays, threads))


def native(ranker):
    """The same, whose user stage is C++."""
    ranker.choose_user_stage("native")
    return ranker


def trained(ranker, full):
    """Logits of the user stage that training uses."""
    before = ranker.user_stage
    ranker.choose_user_stage("torch")
    found = ranker(full).detach()
    ranker.user_stage = before
    return found


def by_definition(ranker, full):
    vectors = ranker.item_vectors(full.items)
    links = ranker.contextualise(ranker.user_tower(full.users)[0])
    return ranker.norm(ranker.personalise(links, full.users, vectors)).detach()


@pytest.mark.parametrize("path", _native.paths())
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "links", "width"), SHAPES)
@pytest.mark.parametrize(
    ("model", "blocks"), [("lime-mha", 3), ("lime-xor", 1), ("lime-xor", 2), ("lime-xor", 4)]
)
def test_every_path_gives_the_models_links(model, blocks, heads, links, width, lengths, path):
    ranker = ranker_of(model, heads, links, width, blocks=blocks)
    full = batch(lengths, [2] * len(lengths))
    found = in_cpp(ranker, full, path)
    torch.testing.assert_close(found, by_definition(ranker, full), **CLOSE)


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_logits_are_the_same_with_gradients_and_without(model, lengths):
    ranker = ranker_of(model)
    full = batch(lengths, [2] * len(lengths))
    trained = ranker(full).detach()
    with torch.inference_mode():
        served = native(ranker)(full)
    assert ranker.personaliser is not None
    torch.testing.assert_close(served, trained, **CLOSE)


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_old_events_of_any_age_and_fast_forgetting(model):
    """Shares of e^-1000, and ages that count from anywhere."""
    ranker = ranker_of(model)
    with torch.no_grad():
        ranker.reading.log_rate[:, ::2] = 8.0
    full = batch([70, 3], [2, 2])
    full.users.age[:] = full.users.age * 40 + 5
    found = in_cpp(ranker, full)
    assert found.isfinite().all()
    torch.testing.assert_close(found, by_definition(ranker, full), **CLOSE)


@pytest.mark.parametrize("path", _native.paths())
def test_threads_and_other_requests_change_no_bit(path):
    ranker = ranker_of("lime-xor")
    lengths = [9, 0, 130, 64, 1, 7]
    full = batch(lengths, [2] * len(lengths))
    one = in_cpp(ranker, full, path)
    for threads in (2, 3, 9):
        assert torch.equal(in_cpp(ranker, full, path, threads), one)
    users, events, age, count = given(ranker, full)
    alone_of = _native.Personaliser(1, *arrays_of(ranker), path)
    for b, length in enumerate(lengths):
        alone = alone_of(
            users[b : b + 1].numpy(),
            events[b : b + 1, :length].contiguous().numpy(),
            age[b : b + 1, :length].contiguous().numpy(),
            count[b : b + 1].numpy(),
            1,
        )
        assert torch.equal(torch.from_numpy(alone)[0], one[b])


def test_a_nan_affects_only_its_own_request():
    ranker = ranker_of("lime-xor")
    users, events, age, count = given(ranker, batch([4, 4], [2, 2]))
    events[0, 2, 3] = torch.nan
    arrays = [tensor.contiguous().numpy() for tensor in (users, events, age, count)]
    found = _native.Personaliser(1, *arrays_of(ranker))(*arrays, 1)
    assert np.isnan(found[0]).any() and np.isfinite(found[1]).all()


def test_weights_count_as_soon_as_they_are_written():
    ranker = native(ranker_of("lime-xor"))
    full = batch([6, 2], [2, 2])

    def served(of):
        with torch.inference_mode():
            return of(full)

    before = served(ranker)
    copies = [copy.deepcopy(ranker), pickle.loads(pickle.dumps(ranker))]
    for one in copies:
        assert torch.equal(served(one), before)
    with torch.no_grad():
        ranker.links += 1
    after = served(ranker)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, trained(ranker, full), **CLOSE)
    ranker.reading.query.weight = nn.Parameter(2 * ranker.reading.query.weight.detach())
    replaced = served(ranker)
    assert not torch.allclose(replaced, after, atol=1e-3)
    torch.testing.assert_close(replaced, trained(ranker, full), **CLOSE)
    for one in copies:  # have weights of their own
        assert torch.equal(served(one), before)


@pytest.mark.parametrize(("heads", "links", "width"), SHAPES)
def test_multiply_adds_are_those_of_the_matrix_products(heads, links, width):
    def counted(blocks, events, model="lime-xor"):
        ranker = ranker_of(model, heads, links, width, blocks=blocks)
        return Personaliser(heads, ranker.stage()).multiply_adds(events)

    events = torch.zeros(1, 70, width)
    ranker = ranker_of("lime-xor", heads, links, width, blocks=2)
    with FlopCounterMode(display=False) as of_block:
        ranker.through(torch.zeros(1, links, width), events, torch.tensor([70]))
    assert 2 * (counted(2, 70) - counted(1, 70)) == of_block.get_total_flops()
    assert counted(1, 70) == counted(3, 70, "lime-mha")
    # Beside the events: contextual links; and queries, keys', values' and what the reading gives.
    with FlopCounterMode(display=False) as of_links:
        links_bld = ranker.contextualise(torch.zeros(1, width))
        ranker.reading.absorb(
            links_bld, torch.zeros(1, heads, links, width // heads), torch.ones(1)
        )
    others = 3 * links * width**2 + 2 * links * width
    assert counted(1, 0) == of_links.get_total_flops() / 2 + others
    assert counted(1, 70) - counted(1, 0) == 70 * 2 * heads * links * width


def test_the_user_stage_is_what_was_chosen():
    ranker, full = ranker_of("lime-mha"), batch([6, 2], [2, 2])
    with torch.inference_mode():
        ranker(full)
    assert ranker.personaliser is None, "a new ranker computes by the definition"
    native(ranker)
    with torch.no_grad():
        ranker.train()(full)
    assert ranker.personaliser is None, "training does"
    with pytest.raises(RuntimeError, match="the native user stage has no gradients"):
        ranker.eval()(full)
    with pytest.raises(RuntimeError, match="is for float32 on the CPU"):
        ranker._check_native(torch.zeros(1, 16, dtype=torch.float64))


def test_variants_have_a_native_user_stage_where_candidates_alone_differ():
    for (model, variant), kind in VARIANTS.items():
        assert kind.native_user_stage == (variant in ("coupled", "product")), (model, variant)


def test_what_does_not_fit_is_refused():
    ranker = ranker_of("lime-xor")
    links, weights = arrays_of(ranker)
    with pytest.raises(ValueError, match="expected 21 arrays, and 11 for each block; got 42"):
        _native.Personaliser(1, links, weights[:-1])
    with pytest.raises(ValueError, match="array 4 has a shape that is not of this model"):
        _native.Personaliser(1, links, [*weights[:4], weights[5], *weights[5:]])
    with pytest.raises(ValueError, match="heads do not divide the width"):
        _native.Personaliser(3, links, weights)
    with pytest.raises(ValueError, match="no path 'abacus'"):
        _native.Personaliser(1, links, weights, "abacus")
    native = _native.Personaliser(1, links, weights)
    users, events, age, count = (x.contiguous().numpy() for x in given(ranker, batch([4], [2])))
    with pytest.raises(ValueError, match="a length is below 0 or above"):
        native(users, events, age, count + 1, 1)
    with pytest.raises(ValueError, match="of another width"):
        native(users[:, 1:].copy(), events, age, count, 1)
    with pytest.raises(ValueError, match="do not fit together"):
        native(users, events, age[:, 1:].copy(), count, 1)
    with pytest.raises(ValueError, match="expected 1 to 1024 threads"):
        native(users, events, age, count, 0)
    assert native(users[:0], events[:0], age[:0], count[:0], 1).shape == (0, 5, 16)
