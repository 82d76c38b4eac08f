"""The rankers, by name."""

from __future__ import annotations

from limerank.models.config import DataShape, ModelConfig
from limerank.models.din import Din
from limerank.models.hstu import Hstu
from limerank.models.lime import Lime, LimeMha, LimeXor
from limerank.models.linformer import LowRankAttention
from limerank.models.popularity import Popularity
from limerank.models.ranker import Ranker
from limerank.models.sasrec import SasRec
from limerank.models.target_attention import TargetAttention, TruncatedAttention
from limerank.models.two_tower import TwoTower
from limerank.models.variants import VARIANTS

MODELS: dict[str, type[Ranker]] = {
    "lime-mha": LimeMha,
    "lime-xor": LimeXor,
    "popularity": Popularity,
    "two-tower": TwoTower,
    "truncated-mha": TruncatedAttention,
    "lrea": LowRankAttention,
    "din": Din,
    "sasrec": SasRec,
    "mha": TargetAttention,
    "hstu": Hstu,
}

__all__ = ["MODELS", "VARIANTS", "Lime", "LimeMha", "LimeXor", "Ranker", "TwoTower", "build"]


def build(shape: DataShape, config: ModelConfig) -> Ranker:
    """A new ranker with random weights (torch's global generator)."""
    if config.variant is not None:
        return VARIANTS[config.model, config.variant](shape, config)
    return MODELS[config.model](shape, config)
