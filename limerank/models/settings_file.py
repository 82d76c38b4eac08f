"""A file of settings, which ``limerank train --config`` reads and ``limerank tune`` writes.

A JSON object: ``model`` has fields of the model's configuration, its name among them, ``train``
those of :class:`~limerank.models.config.TrainConfig`. Fields that are left out have their defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limerank.errors import SpecError, check_choice, did_you_mean
from limerank.files import read_json, write_json
from limerank.models.config import (
    CONFIG_CLASSES,
    ModelConfig,
    TrainConfig,
    config_class,
)
from limerank.validation import validate

TABLES = ("model", "train")


def write_settings(path: str | os.PathLike[str], model: ModelConfig, config: TrainConfig) -> None:
    """Replace a file of settings in one step."""
    pairs = zip(TABLES, (model, config), strict=True)
    write_json(path, {name: one.model_dump(mode="json") for name, one in pairs})


def read_settings(path: str | os.PathLike[str]) -> tuple[str | None, dict[str, Any]]:
    """The model's name, None where the file has none, and all other settings by name.

    Raises:
        FormatError: the file cannot be read, or is not a JSON object.
        SpecError: a setting or its value is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise SpecError(f"there is no file {path}; give a file of settings, such as best.json")
    values = read_json(path, "a file of settings")
    for name, table in values.items():
        if name not in TABLES or not isinstance(table, Mapping):
            raise SpecError(
                f'{path}: {name!r} is not an object of settings; expected "model" and "train"'
                f"{did_you_mean(name, TABLES)}"
            )
    model, train = (dict(values.get(name, {})) for name in TABLES)
    name = model.pop("model", None)
    if name is None and model:
        raise SpecError(f'{path}: "model" has no name; write "model": "lime-mha", or another one')
    if name is not None:
        check_choice("model", name, CONFIG_CLASSES)
        validate(config_class(name), {**model, "model": name}, f"model in {path}")
    validate(TrainConfig, train, f"train in {path}")
    return name, {**model, **train}
