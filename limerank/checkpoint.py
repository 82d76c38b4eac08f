"""The run folder: configuration, weights, vocabulary, curves, and the state to resume from.

config.json              format, model and training settings, data shape, where the data was
model.safetensors        the best weights so far
encoding.json            how events, items and users become tokens: the dataset's manifest
vocab/                   the dataset's vocabularies (Parquet)
metrics.jsonl            one line per report of the training
trainer/state.safetensors    everything that an exact resume needs, until training ends
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limerank.config import DataShape, ModelConfig, TrainConfig
from limerank.dataset import Dataset
from limerank.errors import FingerprintError, FormatError
from limerank.files import checksum, read_json, write_json
from limerank.models import Ranker, build
from limerank.schema import validate

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """A trained run, loaded.

    Attributes:
        path: its folder.
        ranker: the model with its best weights, in evaluation mode.
        train: how it was trained.
        manifest: the manifest of the dataset it was trained on.
        fingerprint: identifies model and encoding; an index keeps the one it was built by.
    """

    path: Path
    ranker: Ranker
    train: TrainConfig
    manifest: dict[str, Any]
    data: Path
    fingerprint: str

    def dataset(self, path: str | os.PathLike[str] | None = None) -> Dataset:
        """The dataset it was trained on, or another one that encodes alike.

        Raises:
            FingerprintError: the dataset's vocabularies are not those of the run.
        """
        dataset = Dataset(self.data if path is None else path)
        if encoding_fingerprint(dataset.manifest) != encoding_fingerprint(self.manifest):
            raise FingerprintError(
                f"{dataset.path} encodes its features otherwise than the data that {self.path} was "
                "trained on; evaluate on that dataset, or train on this one"
            )
        return dataset


def encoding_fingerprint(manifest: dict[str, Any]) -> str:
    """Identifies how a dataset turns users, items and events into tokens."""
    text = json.dumps([manifest["clock"], manifest["encoding"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def create_run(
    path: Path, dataset: Dataset, shape: DataShape, model: ModelConfig, train: TrainConfig
) -> None:
    """Lay out a run folder (``path`` is new and empty) for training on ``dataset``."""
    shutil.copytree(dataset.path / "vocab", path / "vocab")
    write_json(path / "encoding.json", dataset.manifest)
    (path / "trainer").mkdir()
    write_json(path / "config.json", settings(dataset, shape, model, train))


def settings(
    dataset: Dataset, shape: DataShape, model: ModelConfig, train: TrainConfig
) -> dict[str, Any]:
    """What ``config.json`` holds; a run resumes only under the same settings."""
    return {
        "format": FORMAT,
        "model": model.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "shape": shape.model_dump(mode="json"),
        "data": str(dataset.path.resolve()),
        "encoding": encoding_fingerprint(dataset.manifest),
    }


def save_weights(path: Path, model: nn.Module) -> None:
    """Replace ``model.safetensors`` in one step."""
    _save(path / "model.safetensors", model.state_dict(), {})


def save_state(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Replace the state that training resumes from, in one step."""
    _save(path / "trainer" / "state.safetensors", tensors, {"progress": json.dumps(progress)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What :func:`save_state` kept, or None where there is nothing yet."""
    file = path / "trainer" / "state.safetensors"
    if not file.exists():
        return None
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        progress: dict[str, Any] = json.loads(opened.metadata()["progress"])
    return tensors, progress


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_run(path: str | os.PathLike[str], device: str = "cpu") -> Run:
    """Load a run's best weights.

    Raises:
        FormatError: the folder is not a run, is of another format, is damaged, or training has
            not reached its first validation yet.
    """
    path = Path(path)
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
        tensors = load_file(file, device=device)
        with torch.device("meta"):
            ranker = build(shape, model)
        ranker.load_state_dict(tensors, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise FormatError(f"{file} is damaged or of another model: {error}") from None
    ranker.eval().requires_grad_(False)
    fingerprint = hashlib.sha256(f"{checksum(file)} {config['encoding']}".encode()).hexdigest()[:16]
    manifest = read_json(path / "encoding.json", "a run")
    return Run(path, ranker, train, manifest, Path(config["data"]), fingerprint)
