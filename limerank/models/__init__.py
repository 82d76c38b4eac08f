"""The rankers; :mod:`limerank.models.registry` lists them by name."""

from __future__ import annotations

from limerank.models.ranker import Ranker
from limerank.models.registry import MODELS, build, register

__all__ = ["MODELS", "Ranker", "build", "register"]
