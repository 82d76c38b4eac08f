"""The random decisions of a training step, as a function of what they are about.

A step hides the ids of some items and drops hidden units. Which ids, follows from a hash of the
training's seed, the step and the id itself: an item is hidden in every history and as a candidate
alike, in any batch, process or order. Hidden units are dropped by torch's generator, which every
step seeds. A resumed training therefore makes the same decisions, and checkpoints need no state of
a generator.
"""

from __future__ import annotations

from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FACTORS = (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)
"""Shifts and factors of the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
LAST_SHIFT = 31
BITS = 24
"""Of a hash that are compared with a share."""


def key_of(*numbers: int) -> int:
    """A hash of integers, in order: 64 bits."""
    key = 0
    for number in numbers:
        key = (key + GOLDEN + number) & MASK
        for shift, factor in FACTORS:
            key = ((key ^ (key >> shift)) * factor) & MASK
        key ^= key >> LAST_SHIFT
    return key


def hidden_ids(ids: Tensor, share: float, key: int) -> Tensor:
    """Which ids a step hides, bool [n]: each with the probability ``share``, by its hash alone.

    Args:
        ids: i64 [n].
        share: 0 .. 1.
        key: of the step, 64 bits, from :func:`key_of`.
    """
    return hashed(ids, key) < round(share * (1 << BITS))


def hashed(ids: Tensor, key: int) -> Tensor:
    """A hash of each id, i64 [n]: :data:`BITS` bits."""
    x = ids * _signed(GOLDEN) + _signed(key)
    for shift, factor in FACTORS:
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    x = x ^ _shifted(x, LAST_SHIFT)
    return _shifted(x, 64 - BITS)


def _signed(number: int) -> int:
    """The i64 of the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
