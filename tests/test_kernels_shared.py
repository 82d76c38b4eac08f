"""Logits of shared candidates against their definition: values and every gradient."""

from __future__ import annotations

import pytest
import torch

from limerank.kernels import _native, reference, shared


def matches_of(batch, candidates, width, dtype):
    """Links of the first and the last request, some of which no candidate receives from."""
    keys = 40
    counts = torch.zeros(batch, dtype=torch.long)
    counts[0] = 7
    counts[-1] += 2
    low = torch.randint(0, keys, (int(counts.sum()),))
    high = (low + torch.randint(0, 12, low.shape)).clamp(max=keys)
    return [
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        low,
        high,
        torch.randint(-1, candidates, (keys,), dtype=torch.int32),
        torch.rand(keys, dtype=dtype),
        torch.randn(len(low), width, dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "torch"])
@pytest.mark.parametrize("width", [8, 3])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("batch", "candidates", "block"), [(3, 63, 99), (1, 1, 99), (4, 63, 10)])
def test_shared_logits(gated, batch, candidates, block, width, dtype, monkeypatch):
    """Sums of 5 shares, 7 links and 3 units: 1e-5 in float32, 1e-12 in float64 cover the order of
    additions."""
    monkeypatch.setattr(shared, "CANDIDATES", block)
    torch.manual_seed(1)
    hidden, outputs = 3, 2
    sums = 2 * hidden if gated else hidden
    given = [
        torch.rand(candidates, 5, dtype=dtype),
        torch.randn(batch, 5, sums, dtype=dtype),
        torch.randn(candidates, sums, dtype=dtype),
        *matches_of(batch, candidates, width, dtype),
        torch.randn(sums, width, dtype=dtype),
        torch.randn(batch, outputs, hidden, dtype=dtype),
    ]
    constant = given[7]  # shares are data
    weight = torch.randn(batch, candidates, outputs, dtype=dtype)
    found = []
    for function in (shared.shared_logits, reference.shared_logits):
        own = [
            one.clone().requires_grad_(one.is_floating_point() and one is not constant)
            for one in given
        ]
        logits = function(*own[:3], shared.Matches(*own[3:9]), *own[9:])
        (logits * weight).sum().backward()
        found.append([logits, *(one.grad for one in own if one.requires_grad)])
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert len(found[0]) == 7
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=bound, rtol=bound)


def test_without_anchored_links():
    own = torch.rand(4, 5), torch.randn(2, 5, 6), torch.randn(4, 6)
    out = torch.randn(2, 1, 3)
    found = shared.shared_logits(*own, None, None, out)
    torch.testing.assert_close(found, reference.shared_logits(*own, None, None, out))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([0, -1], [1, 1], "outside the keys"),
        ([0, 2], [1, 1], "outside the keys"),
        ([0, 0], [1, 4], "outside the keys"),
        ([0], [1], "a range for each link"),
    ],
)
def test_ranges_are_checked(low, high, message):
    low, high = torch.tensor(low), torch.tensor(high)
    candidates, shares = torch.tensor([0, 1, -1], dtype=torch.int32), torch.ones(3)
    links, sums = torch.ones(2, 8), torch.zeros(2, 8)
    given = [one.numpy() for one in (low, high, candidates, shares)]
    with pytest.raises(ValueError, match=message):
        _native.give_links(*given, links.numpy(), sums.numpy())
    with pytest.raises(ValueError, match=message):
        _native.take_links(*given, sums.numpy(), links.numpy())


def test_candidates_that_do_not_exist_receive_nothing():
    low, high = torch.tensor([0]), torch.tensor([4])
    candidates = torch.tensor([1, -1, 2, 2**31 - 1], dtype=torch.int32)
    links, sums = torch.ones(1, 8), torch.zeros(2, 8)
    given = [one.numpy() for one in (low, high, candidates, torch.ones(4))]
    _native.give_links(*given, links.numpy(), sums.numpy())
    assert sums.sum(1).tolist() == [0.0, 8.0]
    _native.take_links(*given, sums.numpy(), links.numpy())
    assert links[0].tolist() == [1.0] * 8
