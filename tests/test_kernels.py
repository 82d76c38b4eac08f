"""The fast attention forms equal their definitions: outputs and every gradient, odd shapes."""

from __future__ import annotations

import pytest
import torch

from limerank.kernels import attention, reference

SHAPES = [  # batch, heads, links, history, e, lengths
    (3, 4, 8, 63, 15, [63, 1, 40]),
    (2, 1, 1, 7, 5, [0, 7]),
    (2, 2, 3, 0, 4, [0, 0]),
    (4, 3, 5, 9, 2, [9, 0, 3, 9]),
]
TOLERANCE = 2e-5
"""float32: sums of up to 63 products of unit numbers, in another order."""


def _leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def _grads(
    out: torch.Tensor, weight: torch.Tensor, leaves: list[torch.Tensor]
) -> list[torch.Tensor]:
    return list(torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True))


@pytest.mark.parametrize("name", ["link_attention", "softmax_attention"])
@pytest.mark.parametrize(("batch", "heads", "links", "history", "e", "lengths"), SHAPES)
def test_reading_events_is_its_reference(batch, heads, links, history, e, lengths, name):
    torch.manual_seed(0)
    q, k, v = (
        _leaf(batch, heads, links, e),
        _leaf(batch, heads, history, e),
        _leaf(batch, heads, history, e),
    )
    rate = torch.rand(heads, links, requires_grad=True)
    age = torch.rand(batch, history) * 5
    lengths = torch.tensor(lengths)
    fast = getattr(attention, name)(q, k, v, rate, age, lengths)
    slow = getattr(reference, name)(q, k, v, rate, age, lengths)
    torch.testing.assert_close(fast, slow, atol=TOLERANCE, rtol=TOLERANCE)
    if not slow.requires_grad:
        return
    weight = torch.randn_like(slow)
    for got, want in zip(
        _grads(fast, weight, [q, k, v, rate]), _grads(slow, weight, [q, k, v, rate]), strict=True
    ):
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["link_attention", "softmax_attention"])
@pytest.mark.parametrize(("batch", "heads", "links", "history", "e", "lengths"), SHAPES)
def test_reading_events_without_gradients(batch, heads, links, history, e, lengths, name, shared):
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, heads, size, e) for size in (links, history, history))
    rate = torch.rand(heads, 1 if shared else links)
    age, lengths = torch.rand(batch, history) * 5, torch.tensor(lengths)
    with torch.inference_mode():
        fast = getattr(attention, name)(q, k, v, rate, age, lengths)
    slow = getattr(reference, name)(q, k, v, rate.expand(-1, links), age, lengths)
    torch.testing.assert_close(fast, slow, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(("batch", "heads", "links", "history", "e", "lengths"), SHAPES)
def test_xor_attention_is_the_masked_dense_one(batch, heads, links, history, e, lengths):
    torch.manual_seed(1)
    lengths = torch.tensor(lengths)
    q, k, v = (_leaf(batch, heads, links + history, e) for _ in range(3))
    dense = reference.xor_attention(q, k, v, links, lengths)
    dense = dense.transpose(1, 2).flatten(-2)
    read_links, read_events = attention.xor_attention(
        q[:, :, :links], k[:, :, links:], v[:, :, links:],
        q[:, :, links:], k[:, :, :links], v[:, :, :links],
        lengths,
    )  # fmt: skip
    real = torch.arange(history) < lengths[:, None]
    torch.testing.assert_close(read_links, dense[:, :links], atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(
        read_events[real], dense[:, links:][real], atol=TOLERANCE, rtol=TOLERANCE
    )
    weight = torch.randn_like(dense)
    fast = torch.cat([read_links, read_events * real[..., None]], 1)
    for got, want in zip(
        _grads(fast, weight, [q, k, v]), _grads(dense, weight, [q, k, v]), strict=True
    ):
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["link_attention", "softmax_attention"])
def test_padding_never_enters(name):
    torch.manual_seed(2)
    q, k, v = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 4)
    rate, age, lengths = torch.rand(2, 3), torch.rand(2, 6), torch.tensor([2, 6])
    read = getattr(attention, name)(q, k, v, rate, age, lengths)
    crossed = attention.pointwise_attention(q, k, v, lengths)
    k[0, :, 2:], v[0, :, 2:], age[0, 2:] = 1e6, -1e6, 1e6
    torch.testing.assert_close(getattr(attention, name)(q, k, v, rate, age, lengths), read)
    torch.testing.assert_close(attention.pointwise_attention(q, k, v, lengths), crossed)


@pytest.mark.parametrize("name", ["link_attention", "softmax_attention"])
def test_the_instant_that_ages_count_from_does_not_matter(name):
    torch.manual_seed(3)
    q, k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    rate, age, lengths = torch.rand(2, 3), torch.rand(1, 6), torch.tensor([6])
    now = getattr(attention, name)(q, k, v, rate, age, lengths)
    later = getattr(attention, name)(q, k, v, rate, age + 100.0, lengths)
    torch.testing.assert_close(now, later, atol=1e-4, rtol=1e-4)


def test_links_read_nothing_of_events_unlike_them():
    """However many there are, and whatever their ages; a softmax reads as much as ever."""
    torch.manual_seed(4)
    q, v = torch.ones(1, 1, 2, 4), torch.randn(1, 1, 50, 4)
    k = torch.full((1, 1, 50, 4), -20.0)
    given = torch.rand(1, 2), torch.rand(1, 50), torch.tensor([50])
    assert attention.link_attention(q, k, v, *given).abs().max() < 1e-6
    assert attention.softmax_attention(q, k, v, *given).abs().max() > 0.1


@pytest.mark.parametrize("gradients", [True, False])
def test_no_weight_is_too_small_for_a_normal_number(gradients):
    """Events of long ago beside new ones: arithmetic with their shares would be many times as
    slow, and they weigh nothing."""
    q, k = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 400, 4)
    age = torch.arange(400.0)[None]
    with torch.set_grad_enabled(gradients):
        found = attention.link_weights(q, k, torch.ones(1, 2), age, torch.tensor([400]))
    least = torch.finfo(torch.float32).tiny
    assert ((found == 0) | (found > least)).all()
    assert (found[..., :60] > 0).all() and (found[..., 100:] == 0).all()
