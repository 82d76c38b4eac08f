"""Tensors of a model of one dataset as those of a model of another dataset of the same log.

Each entry of a dimension that the log numbers (:mod:`limerank.models.axes`) has a source among the
entries of the earlier model: the same item, value or task. A value that the earlier model does not
know starts as it treats unknown values, so that a new model begins with the predictions of the
earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.models.axes import Axes, Axis

NEW, NOTHING = -1, -2
"""Sources of entries that have none: they start as in a new model, or from zero."""


@dataclass(frozen=True)
class Sources:
    """Where the entries of one axis come from.

    Attributes:
        at: of each entry the one of the earlier model that it starts as, :data:`NEW` or
            :data:`NOTHING`, i64 [n].
        same: whether both stand for the same item, value or task, bool [n]; else the earlier one
            stands for unknown ones. What an optimiser has of it is then left behind.
        scale: factor of the weights of each entry, f32 [n]: numbers that are normalised otherwise.
    """

    at: NDArray[np.int64]
    same: NDArray[np.bool_]
    scale: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, at: NDArray[np.int64]) -> Sources:
        """Sources that stand for the same, where there are any."""
        return cls(at, at >= 0)

    def repeated(self, numbers: int) -> Sources:
        """Those of an axis with so many numbers for each entry."""
        first = np.repeat(np.where(self.at >= 0, self.at * numbers, self.at), numbers)
        at = first + np.tile(np.arange(numbers), len(self.at)) * (first >= 0)
        scale = None if self.scale is None else np.repeat(self.scale, numbers)
        return Sources(at, np.repeat(self.same, numbers), scale)


BySource = Mapping[str, Sources]
"""Name of an axis -> the sources of its entries."""
Sizes = Mapping[str, int]
"""Name of an axis -> its entries in the earlier model."""


def renumbered(
    fresh: Tensor,
    earlier: Tensor,
    axes: tuple[tuple[Axis, ...], ...],
    sources: BySource,
    sizes: Sizes,
    *,
    state: bool = False,
) -> Tensor | None:
    """The tensor of an earlier model, numbered as that of a new one.

    Args:
        fresh: of the new model; what has no source in ``earlier`` has its values.
        earlier: of the earlier model.
        axes: of both.
        sources: of the entries of each axis.
        sizes: of each axis in the earlier model.
        state: whether the tensor is what an optimiser has of a weight: entries that do not stand
            for the same as their source have the values of ``fresh``.

    Returns:
        None where the shapes do not follow from the axes.
    """
    if earlier.dim() != fresh.dim():
        return None
    out = earlier
    known, zero = torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.bool)
    for dimension, size in enumerate(fresh.shape):
        parts = axes[dimension] if dimension < len(axes) else ()
        wanted = sum(sizes[part.of] * part.numbers for part in parts) if parts else size
        found = _joined(parts, sources, sizes) if parts else None
        if earlier.shape[dimension] != wanted or (found is not None and len(found.at) != size):
            return None
        if found is None:
            continue
        shape = [1] * fresh.dim()
        shape[dimension] = -1
        at = torch.from_numpy(found.at)
        zero = zero | (at == NOTHING).view(shape)
        known = known & (torch.from_numpy(found.same) if state else at >= 0).view(shape)
        if not wanted:
            return torch.where(zero, torch.zeros_like(fresh), fresh)
        out = out.index_select(dimension, at.clamp(min=0))
        if found.scale is not None and not state:
            out = out * torch.from_numpy(found.scale).view(shape)
    return torch.where(known, out.to(fresh.dtype), fresh.masked_fill(zero, 0))


def _joined(parts: tuple[Axis, ...], sources: BySource, sizes: Sizes) -> Sources:
    """The sources of the entries of a dimension, whose parts lie one after the other."""
    found, shift = [], 0
    for part in parts:
        own = sources[part.of].repeated(part.numbers)
        found.append(Sources(np.where(own.at >= 0, own.at + shift, own.at), own.same, own.scale))
        shift += sizes[part.of] * part.numbers
    scales = [np.ones(len(one.at), np.float32) if one.scale is None else one.scale for one in found]
    return Sources(
        np.concatenate([one.at for one in found]),
        np.concatenate([one.same for one in found]),
        np.concatenate(scales) if any(one.scale is not None for one in found) else None,
    )


def renumbered_state(
    fresh: Mapping[str, Tensor],
    earlier: Mapping[str, Tensor],
    axes: Axes,
    sources: BySource,
    sizes: Sizes,
) -> dict[str, Tensor]:
    """The state of an earlier model, numbered as that of a new one.

    Args:
        fresh: state of the new model by name, for example with random weights.
        earlier: state of the earlier one.
        axes: of both models.
        sources, sizes: as in :func:`renumbered`.

    Returns:
        The new model's state. A tensor that the earlier one does not have in this form, such as one
        of a feature that it had not, is as in ``fresh``.
    """
    found = {}
    for name, tensor in fresh.items():
        own = None
        if name in earlier:
            own = renumbered(tensor, earlier[name], axes.get(name, ()), sources, sizes)
        found[name] = tensor if own is None else own
    return found


def renumbered_optimiser(
    shapes: Mapping[str, Tensor],
    earlier: Mapping[str, Tensor],
    axes: Axes,
    sources: BySource,
    sizes: Sizes,
) -> dict[str, Tensor]:
    """What an optimiser has of an earlier model's weights, numbered as those of a new one; zero of
    what is new.

    Args:
        shapes: weights of the new model by name.
        earlier: ``WEIGHT/NAME`` -> numbers, of the shape of the weight, of one number a row
            (``sums``), or of one number.
        axes: of both models.
        sources, sizes: as in :func:`renumbered`.
    """
    found: dict[str, Tensor] = {}
    absent = set()
    for name, values in earlier.items():
        weight = name.rpartition("/")[0]
        own: Tensor | None = None
        if weight in shapes and values.dim() == 0:
            own = values
        elif weight in shapes:
            fresh = torch.zeros(shapes[weight].shape[: values.dim()], dtype=values.dtype)
            own = renumbered(fresh, values, axes.get(weight, ()), sources, sizes, state=True)
        if own is None:
            absent.add(weight)
        else:
            found[name] = own
    return {name: one for name, one in found.items() if name.rpartition("/")[0] not in absent}
