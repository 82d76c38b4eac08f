"""Ranking metrics, exact: arrays in, one number out.

Nothing here samples or buckets; `ece` and `reliability` alone use bins, because they are defined
by them. Any array that numpy can read is accepted; sums are taken in int64 or float64.

Shapes: n rows (impressions), L lists, R relevant items over all lists, B score rows, V columns.

Every function raises `DataError` for empty input, lengths that differ, NaN, labels other than 0
and 1, and probabilities outside 0..1. A metric that its data leave undefined (the AUC of one
class, the calibration of no positives) is NaN, never a made-up number; each docstring says when.
"""

from limerank.metrics.binary import (
    Reliability,
    auc,
    calibration,
    ece,
    gauc,
    log_loss,
    normalized_entropy,
    reliability,
    wtauc,
)
from limerank.metrics.durations import mae, xauc
from limerank.metrics.lists import (
    Chance,
    chance,
    concentration,
    coverage,
    hit_rate,
    mrr,
    ndcg,
    rank_of,
    recall,
    self_information,
)
from limerank.metrics.platt import Affine, calibrated_entropy, platt_scaling

__all__ = [
    "Affine",
    "Chance",
    "Reliability",
    "auc",
    "calibrated_entropy",
    "calibration",
    "chance",
    "concentration",
    "coverage",
    "ece",
    "gauc",
    "hit_rate",
    "log_loss",
    "mae",
    "mrr",
    "ndcg",
    "normalized_entropy",
    "platt_scaling",
    "rank_of",
    "recall",
    "reliability",
    "self_information",
    "wtauc",
    "xauc",
]
