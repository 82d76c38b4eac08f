"""Every ablation is one change to a model that can be built, and the page has words for it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.ablations import CHANGES, MODELS, cases
from benchmarks.ablations_page import BASE, DEFAULTS
from benchmarks.variants import VARIANTS, name_of
from limerank.models import build
from limerank.models.config import ModelConfig, TrainConfig
from tests.worlds import SHAPE, batch, config_of

LENGTHS, COUNTS = [5, 0, 9, 1], [3, 6, 1, 2]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SETTINGS = {"width": 16, "heads": 2, "links": 5, "blocks": 2}
CASES = list(cases(MODELS, tuple(CHANGES)))


@pytest.mark.parametrize(("model", "what", "value"), CASES)
def test_a_change_changes_the_model(model, what, value):
    change = {k: v for k, v in CHANGES[what][value].items() if k not in TrainConfig.model_fields}
    config = ModelConfig(model=name_of(model, change.pop("variant", None)), **change)
    build(SHAPE, config)
    assert (config == ModelConfig(model=model)) == (what in (BASE, "history"))


def test_the_page_names_every_default():
    assert set(CHANGES) == {BASE, *DEFAULTS}
    assert {what for _, what, _ in CASES} == set(CHANGES)


@pytest.mark.parametrize(("model", "variant"), sorted(VARIANTS))
def test_variants_differ_from_what_they_vary(model, variant):
    """The same weights, as far as both have them, give other scores."""
    config = config_of(model, **SETTINGS)
    torch.manual_seed(0)
    plain = build(SHAPE, config).eval()
    other = build(SHAPE, config_of(name_of(model, variant), **SETTINGS)).eval()
    found = other.load_state_dict(plain.state_dict(), strict=False)
    assert bool(found.missing_keys) == (variant in ("product", "last-block"))
    assert bool(found.unexpected_keys) == (variant in ("raw-links", "last-block"))
    full = batch(LENGTHS, COUNTS)
    real = full.real
    assert not torch.allclose(plain(full)[real], other(full)[real], atol=1e-4)


@pytest.mark.parametrize(("model", "variant"), sorted(VARIANTS))
def test_variants_hand_out_weights_of_their_own_reading(model, variant):
    """They read by them: what the last layer is given is these weights times its values."""
    torch.manual_seed(0)
    config = config_of(name_of(model, variant), **SETTINGS)
    ranker, full = build(SHAPE, config).eval(), batch(LENGTHS, COUNTS)
    given, values = [], []
    last = ranker.last if variant == "last-block" else ranker.reading
    norms = last.norm_read.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    of_values = last.kv if variant == "last-block" else last.key_value
    vectors = ranker.item_vectors(full.items)
    weights = ranker.read_weights(full.users, vectors)
    real = torch.arange(weights.shape[-1]) < full.users.lengths[:, None]
    assert (weights * ~real[:, None, None]).abs().max() == 0
    if model == "lime-mha":
        kv = ranker.event_tower.through(of_values, full.users, vectors)
    else:
        taken = of_values.register_forward_hook(lambda *x: values.append(x[-1]))
        ranker.encode_users(full.users, vectors)
        taken.remove()
        kv = F.silu(values[-1]) if variant == "last-block" else values[-1]
    given.clear()
    ranker.encode_users(full.users, vectors)
    norms.remove()
    v = kv.chunk(2, -1)[1].unflatten(-1, (2, -1)).transpose(1, 2)
    read = (weights @ v).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(read, given[-1], **CLOSE)
