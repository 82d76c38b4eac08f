"""Run formats: settings and weights of earlier versions by their names of today.

Format 11, today's, has curves of numeric features. Format 10 has none, but anchored links that know
the newest positive event. Format 9 has none of these, but counters of items. Format 8 has none, but
neighbours of items, and its encoding the edges of the time since the newest event. Format 7 has
neither, but profiles. Format 6
has none of these, but settings of what earlier models did not have: anchored links, collaborative
statistics, the evidence of ids. Format 5 has a configuration of each model's own. Format 4 had one
for all models: a model ignored the settings that it did not have, ``links`` were the slots of LREA
and the events of truncated attention, ``positions`` were called ``places``, and a changed LIME was
a ``variant``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from limerank.errors import FormatError
from limerank.models.config import config_class
from limerank.models.registry import MODELS

FORMAT = 11
READABLE = (4, 5, 6, 7, 8, 9, 10, 11)
ABSENT: dict[str, Any] = {"anchors": (), "vectors": 0, "base_rates": False, "id_evidence": 0.0}
"""Settings of models in formats 4 and 5, which had none of these."""
NO_PROFILE: dict[str, Any] = {"profile": 0}
"""Settings of models in formats 4 to 6; where a model has this setting."""
NO_NEIGHBOURS: dict[str, Any] = {"neighbours": 0}
"""Settings of models in formats 4 to 7."""
NO_COUNTERS: dict[str, Any] = {"counter_hours": 0}
"""Settings of models in formats 4 to 8."""
NO_POSITIVE: dict[str, Any] = {"since_positive": False}
"""Settings of models in formats 4 to 9."""
NO_CURVES: dict[str, Any] = {"curves": False}
"""Settings of models in formats 4 to 10; where a model has this setting."""
TRAINING = {
    "impressions": "batch_size",
    "rate": "learning_rate",
    "table_rate": "table_learning_rate",
    "table_decay": "table_weight_decay",
}
"""Format 4: name of a setting of training -> its name today."""
WEIGHTS = {"places.weight": "positions.weight", "of_place.weight": "of_position.weight"}
"""Format 4: name of a weight -> its name today."""


def model_settings(stored: Mapping[str, Any], format: int) -> dict[str, Any]:
    """Settings of a model as its configuration takes them.

    Args:
        stored: the part ``model`` of a run's ``config.json``.
        format: of the run.

    Raises:
        FormatError: no model of this name is registered.
    """
    settings = dict(stored)
    if format == 4 and settings.get("variant") is not None:
        settings["model"] = f"{settings['model']}-{settings['variant']}"
    name = settings.get("model")
    if isinstance(name, str) and name not in MODELS:
        raise FormatError(
            f"the run is of the model {name!r}, which is not among those of limerank "
            f"({', '.join(MODELS)}): import the module that registers it, then open the run"
        )
    if format == 4:
        config = config_class(name)
        called = {config.other_names.get(key, key): value for key, value in settings.items()}
        settings = {key: value for key, value in called.items() if key in config.model_fields}
    if format < 6:
        settings = {**ABSENT, **settings}
    if format < 7:
        known = config_class(name).model_fields
        settings = {**{key: value for key, value in NO_PROFILE.items() if key in known}, **settings}
    if format < 8:
        settings = {**NO_NEIGHBOURS, **settings}
    if format < 9:
        settings = {**NO_COUNTERS, **settings}
    if format < 10:
        settings = {**NO_POSITIVE, **settings}
    if format < 11:
        settings = {**NO_CURVES, **settings}
    return settings


def train_settings(stored: Mapping[str, Any], format: int) -> dict[str, Any]:
    """Settings of a training by their names of today; ``stored``: the part ``train`` of
    ``config.json``."""
    # Runs from before these settings were trained like this.
    known: dict[str, Any] = {"calibrate": False, "objective": "impressions"}
    if format == 4:
        known |= {TRAINING.get(name, name): value for name, value in stored.items()}
    else:
        known |= stored
    seed = known.get("seed")
    if isinstance(seed, int) and 2**63 <= seed < 2**64:  # valid once; it changes nothing any more
        known["seed"] = seed - 2**63
    return known


def weights(tensors: dict[str, Tensor], format: int) -> dict[str, Tensor]:
    """Weights of a model by their names of today."""
    if format == 4:
        return {WEIGHTS.get(name, name): tensor for name, tensor in tensors.items()}
    return tensors
