"""The rankers, by name."""

from __future__ import annotations

from limerank.config import DataShape, ModelConfig
from limerank.models.lime import Lime, LimeMha, LimeXor
from limerank.models.ranker import Ranker
from limerank.models.two_tower import TwoTower

MODELS: dict[str, type[Ranker]] = {
    "lime-mha": LimeMha,
    "lime-xor": LimeXor,
    "two-tower": TwoTower,
}

__all__ = ["MODELS", "Lime", "LimeMha", "LimeXor", "Ranker", "TwoTower", "build"]


def build(shape: DataShape, config: ModelConfig) -> Ranker:
    """A new ranker with random weights (torch's global generator)."""
    return MODELS[config.model](shape, config)
