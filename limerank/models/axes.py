"""Which dimensions of a model's tensors the log numbers: its items, values, outcomes and tasks.

Rows of an embedding table belong to items or values, columns of a layer to numbers of a table, and
outputs to tasks. Another dataset of the same log numbers them differently. :func:`axes_of` names
these dimensions, so that weights, and whatever an optimiser has of them, can be copied from a model
of one dataset to a model of another (:mod:`limerank.training.warm`). All other dimensions follow
from the configuration of the model.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import nn

from limerank.models.anchors import AnchoredLinks
from limerank.models.config import HeadConfig
from limerank.models.counters import CounterTower
from limerank.models.curves import KNOTS
from limerank.models.head import Head
from limerank.models.impressions import ImpressionTower
from limerank.models.profile import Profile
from limerank.models.ranker import Ranker
from limerank.models.towers import EventTower, ItemTower, UserTower

ITEMS = "items"
"""Rows of the id table: an item of the training window each, row 0 for all others."""
ITEM_TOKENS, ITEM_NUMBERS, ITEM_CURVES = "item tokens", "item numbers", "item curves"
"""Rows of the table of the items' content, its numbers, and those of them that have curves."""
USER_TOKENS, USER_NUMBERS, USER_CURVES = "user tokens", "user numbers", "user curves"
"""The same of users."""
EVENT_TOKENS, CONTEXT_TOKENS = "event tokens", "context tokens"
"""Rows of the tables of outcomes and of contexts."""
IMPRESSION_TOKENS, IMPRESSION_NUMBERS = "impression tokens", "impression numbers"
"""Rows of the table of impression features, and these features."""
ANCHORS = "anchors"
"""The items as such, then the anchored features."""
OUTPUTS = "outputs"
"""Logits: those of each task, one task after the other."""


class Axis(NamedTuple):
    """A part of a dimension: ``numbers`` for each of what ``of`` names, one after the other."""

    of: str
    numbers: int = 1


Axes = dict[str, tuple[tuple[Axis, ...], ...]]
"""Name of a tensor -> the parts of each of its dimensions; none of one that the log does not
number. Dimensions after the last one that is listed have none."""


@runtime_checkable
class HasAxes(Protocol):
    """A module, such as a model, that has tensors of its own which the log numbers."""

    def axes(self) -> Axes:
        """The axes of these tensors, by their names in the module."""


def axes_of(ranker: Ranker) -> Axes:
    """The axes of all tensors of a model's state that depend on how the log is numbered."""
    added = () if isinstance(ranker.config, HeadConfig) else (Axis(OUTPUTS),)
    found: Axes = {"from_anchors.weight": (added,)}
    for name, part in ranker.named_modules():
        own = part.axes() if isinstance(part, HasAxes) else _of_module(part, added)
        found |= {f"{name}.{tensor}".lstrip("."): axes for tensor, axes in own.items()}
    named = ranker.state_dict().keys()
    return {name: axes for name, axes in found.items() if name in named and any(axes)}


def _of_module(part: nn.Module, added: tuple[Axis, ...]) -> Axes:
    """The axes of the tensors of one module; ``added``: of what ``extra`` adds to."""
    if isinstance(part, ItemTower):
        rows = (Axis(ITEMS),)
        return {
            "ids.weight": (rows,),
            "id_shares": (rows,),
            "statistics": (rows,),
            "content.table.weight": ((Axis(ITEM_TOKENS),),),
            "content.numeric.weight": ((), (Axis(ITEM_NUMBERS),)),
            **_of_curves(ITEM_CURVES),
        }
    if isinstance(part, UserTower):
        return {
            "content.table.weight": ((Axis(USER_TOKENS),),),
            "content.numeric.weight": ((), (Axis(USER_NUMBERS),)),
            **_of_curves(USER_CURVES),
            "context.weight": ((Axis(CONTEXT_TOKENS),),),
        }
    if isinstance(part, EventTower):
        return {"table.weight": ((Axis(EVENT_TOKENS),),)}
    if isinstance(part, AnchoredLinks):
        return {"outcomes.weight": ((Axis(EVENT_TOKENS),),), "scales": ((Axis(ANCHORS),),)}
    if isinstance(part, Profile):
        of_tokens, of_outputs = ((Axis(EVENT_TOKENS),),), ((Axis(OUTPUTS),),)
        return {"outcomes.weight": of_tokens, "mix.weight": of_outputs}
    if isinstance(part, ImpressionTower):
        return {
            "table.weight": ((Axis(IMPRESSION_TOKENS),),),
            "from_tokens.weight": (added,),
            "from_numbers.weight": (added, (Axis(IMPRESSION_NUMBERS),)),
        }
    if isinstance(part, CounterTower):
        return {
            "values": ((Axis(ITEMS),),),
            "from_buckets.weight": (added,),
            "from_numbers.weight": (added,),
        }
    if isinstance(part, Head):
        return {"out.weight": ((Axis(OUTPUTS),),), "out.bias": ((Axis(OUTPUTS),),)}
    return {}


def _of_curves(features: str) -> Axes:
    """Of a tower's curves, in the order of its numeric features."""
    return {
        "content.curves.knots": ((Axis(features),),),
        "content.curves.out.weight": ((), (Axis(features, KNOTS),)),
    }
