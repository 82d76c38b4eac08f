"""The part of a run that ranks: weights, settings and encoding, without the data of its training.

What a run folder holds: :mod:`limerank.checkpoint`, which writes it and knows its dataset.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from limerank.config import DataShape, ModelConfig, TrainConfig
from limerank.devices import device_of
from limerank.errors import FormatError
from limerank.files import checksum, read_json
from limerank.models import Ranker, build
from limerank.schema import validate

FORMAT = 4


@dataclass(frozen=True)
class Trained:
    """A trained model, loaded.

    Attributes:
        path: the folder of its run.
        ranker: the model with its best weights, in evaluation mode.
        train: how it was trained.
        manifest: the manifest of the dataset it was trained on.
        data: where that dataset was.
        fingerprint: identifies model and encoding; an index keeps the one it was built by.
    """

    path: Path
    ranker: Ranker
    train: TrainConfig
    manifest: dict[str, Any]
    data: Path
    fingerprint: str

    @property
    def history(self) -> int:
        """Events of a history, at most."""
        length: int = self.train.history or self.manifest["spec"]["history"]["length"]
        return length


def encoding_fingerprint(manifest: dict[str, Any]) -> str:
    """Identifies how a dataset turns users, items and events into tokens."""
    text = json.dumps([manifest["clock"], manifest["encoding"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_trained(path: str | os.PathLike[str], device: str = "cpu") -> Trained:
    """Load a run's best weights.

    Raises:
        FormatError: the folder is not a run, is of another format, is damaged, or training has
            not reached its first validation yet.
        SpecError: there is no such device.
    """
    path, place = Path(path), device_of(device)
    config = read_json(path / "config.json", "a run")
    if config.get("format") != FORMAT:
        raise FormatError(
            f"{path} has run format {config.get('format')}, expected {FORMAT}; train it again"
        )
    shape = validate(DataShape, config["shape"], str(path / "config.json"))
    model = validate(ModelConfig, config["model"], str(path / "config.json"))
    train = validate(TrainConfig, config["train"], str(path / "config.json"))
    file = path / "model.safetensors"
    if not file.exists():
        raise FormatError(f"{path} holds no weights yet: training has not reached a validation")
    try:
        tensors = load_file(file, device=str(place))
        with torch.device("meta"):
            ranker = build(shape, model)
        ranker.load_state_dict(tensors, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise FormatError(f"{file} is damaged or of another model: {error}") from None
    ranker.eval().requires_grad_(False)
    fingerprint = hashlib.sha256(f"{checksum(file)} {config['encoding']}".encode()).hexdigest()[:16]
    manifest = read_json(path / "encoding.json", "a run")
    return Trained(path, ranker, train, manifest, Path(config["data"]), fingerprint)
