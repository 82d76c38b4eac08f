"""A file of settings, which ``limerank train --config`` reads and ``limerank tune`` writes.

TOML with two tables, ``[model]`` and ``[train]``: fields of the model's configuration, its name
among them, and of :class:`~limerank.models.config.TrainConfig`. What is not set is left out.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from limerank.errors import SpecError, check_choice, did_you_mean
from limerank.files import write_text
from limerank.models.config import (
    CONFIG_CLASSES,
    ModelConfig,
    TrainConfig,
    config_class,
)
from limerank.validation import validate

TABLES = ("model", "train")


def write_settings(
    path: str | os.PathLike[str], model: ModelConfig, config: TrainConfig, comment: str
) -> None:
    """Replace a file of settings in one step; ``comment`` is its first line."""
    values = {
        name: one.model_dump(mode="json", exclude_none=True)
        for name, one in zip(TABLES, (model, config), strict=True)
    }
    write_text(path, f"# {comment}\n\n{tomli_w.dumps(values)}")


def read_settings(path: str | os.PathLike[str]) -> tuple[str | None, dict[str, Any]]:
    """The model's name, None where the file has none, and all other settings by name.

    Raises:
        SpecError: the file cannot be read, is not TOML, or a setting or its value is wrong.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    for name, table in values.items():
        if name not in TABLES or not isinstance(table, Mapping):
            raise SpecError(
                f"{path}: {name!r} is not a table of settings; expected [model] and [train]"
                f"{did_you_mean(name, TABLES)}"
            )
    model, train = (dict(values.get(name, {})) for name in TABLES)
    name = model.pop("model", None)
    if name is None and model:
        raise SpecError(f'{path}: [model] has no name; write model = "lime-mha", or another one')
    if name is not None:
        check_choice("model", name, CONFIG_CLASSES)
        validate(config_class(name), {**model, "model": name}, f"[model] of {path}")
    validate(TrainConfig, train, f"[train] of {path}")
    return name, {**model, **train}
