"""Logits of shared candidates against their definition: values and every gradient."""

from __future__ import annotations

from functools import partial

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


@pytest.mark.parametrize("path", _native.shared_paths())
@pytest.mark.parametrize("width", [8, 3])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("batch", "candidates", "hidden", "threads"), [(3, 63, 3, 1), (1, 1, 32, 1), (4, 700, 20, 3)]
)
def test_shared_logits(batch, candidates, hidden, threads, gated, width, path, monkeypatch):
    """The definition is computed in float64; single precision of sums of 700 candidates is 1e-5 of
    the largest number."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name in ("shared_logits", "shared_gradients"):
        monkeypatch.setattr(_native, name, partial(getattr(_native, name), path=path))
    torch.manual_seed(1)
    outputs, dtype = 2, torch.float64
    sums = 2 * hidden if gated else hidden
    given = [
        torch.rand(candidates, 5, dtype=dtype),
        torch.randn(batch, 5, sums, dtype=dtype),
        torch.randn(candidates, sums, dtype=dtype),
        *matches_of(batch, candidates, width, dtype),
        torch.randn(sums, width, dtype=dtype),
        torch.randn(batch, outputs, hidden, dtype=dtype),
    ]
    shares = given[7]
    weight = torch.randn(batch, candidates, outputs, dtype=dtype)
    found = []
    for function, to in ((shared.shared_logits, torch.float32), (reference.shared_logits, dtype)):
        own = [
            (one.to(to) if one.is_floating_point() else one)
            .clone()
            .requires_grad_(one.is_floating_point() and one is not shares)
            for one in given
        ]
        logits = function(*own[:3], shared.Matches(*own[3:9]), *own[9:])
        (logits * weight.to(to)).sum().backward()
        found.append([logits.detach(), *(one.grad for one in own if one.requires_grad)])
    assert len(found[0]) == 7
    for one, other in zip(*found, strict=True):
        bound = 1e-5 * float(other.abs().max())
        torch.testing.assert_close(one.double(), other, atol=bound, rtol=0)


def test_without_anchored_links():
    own = torch.rand(4, 5), torch.randn(2, 5, 6), torch.randn(4, 6)
    out = torch.randn(2, 1, 3)
    found = shared.shared_logits(*own, None, None, out)
    torch.testing.assert_close(found, reference.shared_logits(*own, None, None, out))


@pytest.mark.parametrize("sums", [6, 3])
def test_numbers_that_are_not_finite_are_seen(sums):
    """So that a training that diverges is noticed."""
    own = torch.rand(4, 5), torch.randn(2, 5, sums), torch.randn(4, sums)
    own[2][1] = torch.nan
    found = shared.shared_logits(*own, None, None, torch.randn(2, 1, 3))
    assert found.isnan().flatten(1).tolist() == [[False, True, False, False]] * 2


def test_without_candidates():
    own = torch.rand(0, 5), torch.randn(2, 5, 6).requires_grad_(), torch.randn(0, 6)
    found = shared.shared_logits(*own, None, None, torch.randn(2, 1, 3))
    assert found.shape == (2, 0, 1)
    found.sum().backward()
    assert not own[1].grad.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"low": [0, -1]}, "outside the keys"),
        ({"low": [0, 2]}, "outside the keys"),
        ({"high": [1, 4]}, "outside the keys"),
        ({"low": [0]}, "a range for each link"),
        ({"offsets": [0, 3, 2]}, "do not ascend"),
        ({"offsets": [0, 1, 1]}, "not those of the links"),
        ({"offsets": [0, 2]}, "offsets of each request"),
        ({"shares": [1.0]}, "a share for each key"),
    ],
)
def test_matches_are_checked(changed, message):
    given = {
        "offsets": [0, 1, 2],
        "low": [0, 1],
        "high": [1, 1],
        "candidates": torch.tensor([0, 1, -1], dtype=torch.int32),
        "shares": [1.0, 1.0, 1.0],
        "links": torch.ones(2, 8),
    }
    matches = shared.Matches(*(torch.as_tensor(one) for one in (given | changed).values()))
    own = torch.rand(4, 5), torch.randn(2, 5, 6), torch.randn(4, 6)
    with pytest.raises(ValueError, match=message):
        shared.shared_logits(*own, matches, torch.ones(6, 8), torch.randn(2, 1, 3))


def test_candidates_that_do_not_exist_receive_nothing():
    entries = torch.tensor([1, -1, 2, 2**31 - 1], dtype=torch.int32)
    one = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([4]), entries, torch.ones(4)
    links, layer = torch.ones(1, 8).requires_grad_(), torch.ones(1, 8)
    own = torch.zeros(2, 5), torch.zeros(1, 5, 1), torch.zeros(2, 1)
    found = shared.shared_logits(*own, shared.Matches(*one, links), layer, torch.ones(1, 1, 1))
    assert found.flatten().tolist() == [0.0, 8.0]
    found.sum().backward()
    assert links.grad.tolist() == [[1.0] * 8]
