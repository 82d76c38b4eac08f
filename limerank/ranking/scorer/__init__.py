"""Scorers: from user states and an index to scores, or to the best k items.

Three scorers share one interface, and the caller chooses one by name:

- :class:`ModelScorer`: the model itself in float32, for any ranker. It is the reference.
- :class:`QuantisedScorer`: LIME over the bytes of the index, in torch: the readable form of the
  native scorer, and the one for GPUs.
- :class:`NativeScorer`: the same arithmetic in C++, for serving.
"""

from __future__ import annotations

from typing import Literal, get_args

from limerank.errors import check_choice
from limerank.index import Index
from limerank.models import Ranker
from limerank.ranking.scorer.anchored import item_keys
from limerank.ranking.scorer.contract import Scorer, TopK, weights_of_tasks
from limerank.ranking.scorer.model import ModelScorer
from limerank.ranking.scorer.native import NativeScorer, paths
from limerank.ranking.scorer.quantised import QuantisedScorer

__all__ = [
    "ModelScorer",
    "NativeScorer",
    "QuantisedScorer",
    "Scorer",
    "ScorerName",
    "TopK",
    "item_keys",
    "paths",
    "scorer_for",
    "weights_of_tasks",
]

ScorerName = Literal["auto", "native", "quantised", "model"]


def scorer_for(name: ScorerName, ranker: Ranker, index: Index, *, threads: int = 1) -> Scorer:
    """The scorer of this name; "auto" is "native" where the index holds link weights, else
    "model". ``threads`` are for the native one; torch has its own setting.

    Raises:
        SpecError: no scorer has this name, or the model has no links that it needs.
    """
    check_choice("scorer", name, get_args(ScorerName))
    if name == "auto":
        name = "model" if index.weights is None else "native"
    if name == "native":
        return NativeScorer(ranker, index, threads=threads)
    if name == "quantised":
        return QuantisedScorer(ranker, index)
    return ModelScorer(ranker, index)
