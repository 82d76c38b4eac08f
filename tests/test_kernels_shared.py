"""Logits of shared candidates against their definition: values and every gradient."""

from __future__ import annotations

import pytest
import torch

from limerank.kernels import reference, shared


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("batch", "candidates", "block"), [(3, 63, 99), (1, 1, 99), (4, 63, 10)])
def test_shared_logits(gated, batch, candidates, block, monkeypatch):
    """Sums of 5 shares and 3 units in float32: 1e-5 covers the order of additions."""
    monkeypatch.setattr(shared, "CANDIDATES", block)
    hidden, outputs = 3, 2
    sums = 2 * hidden if gated else hidden
    added = 9
    counts = torch.tensor([added] + [0] * (batch - 1))
    given = [
        torch.rand(candidates, 5),
        torch.randn(batch, 5, sums),
        torch.randn(candidates, sums),
        torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        torch.randint(0, candidates, (added,)),
        torch.randn(added, 4),
        torch.randn(sums, 4),
        torch.randn(batch, outputs, hidden),
    ]
    weight = torch.randn(batch, candidates, outputs)
    found = []
    for function in (shared.shared_logits, reference.shared_logits):
        own = [one.clone().requires_grad_(one.is_floating_point()) for one in given]
        logits = function(*own)
        (logits * weight).sum().backward()
        found.append([logits, *(one.grad for one in own if one.is_floating_point())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_without_additions():
    own = torch.rand(4, 5), torch.randn(2, 5, 6), torch.randn(4, 6)
    none = torch.zeros(3, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    none += torch.zeros(0, 4), torch.randn(6, 4)
    out = torch.randn(2, 1, 3)
    found = shared.shared_logits(*own, *none, out)
    torch.testing.assert_close(found, reference.shared_logits(*own, *none, out))
