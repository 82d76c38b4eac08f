"""Every model against its reference: logits and gradients, ragged histories, empty ones."""

from __future__ import annotations

import pytest
import torch

from limerank.models import build
from limerank.models.registry import OF_THE_PACKAGE
from tests.references import REFERENCES, logits
from tests.worlds import SHAPE, batch, config_of

LENGTHS, COUNTS = [7, 0, 3, 1], [2, 2, 3, 1]


def make(model: str):
    torch.manual_seed(0)
    config = config_of(
        model, width=8, heads=2, links=4, blocks=2, hidden=6, positions=16, anchors=()
    )
    ranker = build(SHAPE, config).eval()
    with torch.no_grad():  # louder than at the start of a training
        for weight in ranker.parameters():
            weight.mul_(1.5)
    return ranker


def test_every_model_that_reads_events_one_by_one_has_a_reference():
    assert set(REFERENCES) == set(OF_THE_PACKAGE) - {"popularity", "two-tower"}


@pytest.mark.parametrize("model", sorted(REFERENCES))
def test_logits_and_gradients(model):
    ranker, full = make(model), batch(LENGTHS, COUNTS, width=2)
    fast, slow = ranker(full)[full.real], torch.stack(logits(ranker, full))
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    pull = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    named = dict(ranker.named_parameters())
    gradients = []
    for found in (fast, slow):
        for weight in named.values():
            weight.grad = None
        (found * pull).sum().backward()
        gradients.append(
            {
                name: torch.zeros_like(weight) if weight.grad is None else weight.grad.to_dense()
                for name, weight in named.items()
            }
        )
    for name in named:
        torch.testing.assert_close(
            gradients[0][name],
            gradients[1][name],
            atol=2e-5,
            rtol=1e-3,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("model", sorted(REFERENCES))
def test_the_order_of_events_matters_where_it_should(model):
    """All but DIN, MHA and LIME, which know an event's age alone, distinguish positions."""
    ranker, full = make(model), batch([6], [2])
    full.users.age.zero_()
    flipped = batch([6], [2])
    flipped.users.age.zero_()
    flipped.users.items.copy_(full.users.items.flip(1))
    flipped.users.tokens.copy_(full.users.tokens.flip(1))
    same = torch.allclose(ranker(full), ranker(flipped), atol=1e-5)
    assert same == (model in ("din", "mha", "lime-mha", "lime-xor"))


def test_truncated_attention_reads_the_latest_events_alone():
    ranker, full = make("truncated-mha"), batch([9, 4, 6], [2, 2, 2])
    before = ranker(full)
    for b, length in enumerate([9, 4, 6]):
        full.users.tokens[b, : max(length - 4, 0)] = 0
        full.users.items[b, : max(length - 4, 0)] = 0
    torch.testing.assert_close(ranker(full), before)
    full.users.tokens[0, 5] = (full.users.tokens[0, 5] + 1) % SHAPE.event_tokens
    assert not torch.allclose(ranker(full)[0], before[0])
