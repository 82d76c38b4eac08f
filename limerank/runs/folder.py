"""The run folder: configuration, weights, vocabulary, curves, and the state to resume from.

config.json              format, model and training settings, data shape, where the data was, until
                         when it was trained on, the runs that it was started from
model.safetensors        the best weights so far
encoding.json            how events, items and users become tokens: the dataset's manifest
vocab/                   the dataset's vocabularies (Parquet), except for user ids
selftest.safetensors     a few requests and their logits, for the self-test
checksums.json           of all files above, written with the weights
optimiser.safetensors    the optimiser's numbers for the same weights, for a warm start; nothing
                         that ranks reads them
metrics.jsonl            one line per report of the training
alarms.json              reasons for not deploying the run; written when training ends
trainer/state.safetensors    the checkpoint, until training ends; trainer/latest.json and
                         trainer/step-N where several processes have parts of a table

A run folder contains no ids of users: ranking needs their events, not their names. (A table of
predictions names them; it is written on request only.)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from limerank.data.alignment import Coded
from limerank.data.dataset import Dataset
from limerank.data.recoded import RecodedDataset
from limerank.errors import FormatError
from limerank.files import write_json
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.runs.formats import FORMAT
from limerank.runs.lineage import Ancestor, lineage_texts
from limerank.runs.model import Trained, encoding_fingerprint, load_trained
from limerank.runs.tensors import write_tensors
from limerank.storage.arguments import READ, with_uris
from limerank.storage.uris import is_uri, name_of

USER_IDS = "users.parquet"
"""The vocabulary of a dataset that a run does not contain."""
OPTIMISER = "optimiser.safetensors"
STATE = "state.safetensors"
"""The checkpoint, in the folder ``trainer``."""
OPTIMISER_FORMAT = 1
"""Version of that file."""


@dataclass(frozen=True)
class Run(Trained):
    """A trained run, loaded: the model, and the data that it was trained on."""

    def dataset(self, data: Dataset | str | os.PathLike[str] | None = None) -> Dataset:
        """The dataset that it was trained on, or another one as the run reads it.

        A dataset with other codes, such as a later one, is seen through the encoding of the run
        (:class:`~limerank.data.recoded.RecodedDataset`).

        Args:
            data: a dataset or its folder; the one that the run was trained on when not given.

        Raises:
            FingerprintError: the dataset lacks a label or a feature that the run reads.
            FormatError: the folder is not a dataset, or is no longer where it was during training.
        """
        here = data is not None or is_uri(self.recorded)
        if not here and not self.data.exists():
            raise FormatError(
                f"the dataset that {self.path} was trained on is no longer at {self.data}; "
                "give its folder (--data), or prepare it again"
            )
        if isinstance(data, Dataset):
            dataset = data.own
        else:
            dataset = Dataset(self.data if data is None else data)
        if encoding_fingerprint(dataset.manifest) == encoding_fingerprint(self.manifest):
            return dataset
        return RecodedDataset(dataset.path, Coded(self.manifest, self.path))


def create_run(
    path: Path,
    dataset: Dataset,
    shape: DataShape,
    model: ModelConfig,
    train: TrainConfig,
    lineage: Sequence[Ancestor] = (),
) -> None:
    """Lay out a run folder (``path`` is new and empty) for training on ``dataset``.

    Args:
        lineage: the runs that the training starts from, the nearest one first.
    """
    not_users = shutil.ignore_patterns(USER_IDS)
    shutil.copytree(dataset.path / "vocab", path / "vocab", ignore=not_users)
    # The rest of the summary is left out: its warnings and examples name users.
    found = {"time": dataset.manifest["summary"]["time"]}
    # Nor what is of use for the dataset alone: the files of its log.
    of_run = {name: value for name, value in dataset.manifest.items() if name != "log"}
    write_json(path / "encoding.json", {**of_run, "summary": found})
    (path / "trainer").mkdir()
    write_json(path / "config.json", settings(dataset, shape, model, train, lineage))


def settings(
    dataset: Dataset,
    shape: DataShape,
    model: ModelConfig,
    train: TrainConfig,
    lineage: Sequence[Ancestor] = (),
) -> dict[str, Any]:
    """The content of ``config.json``; a run is resumed only with the same settings."""
    return {
        "format": FORMAT,
        "model": model.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "shape": shape.model_dump(mode="json"),
        "data": name_of(dataset.path),
        "encoding": encoding_fingerprint(dataset.manifest),
        "until": trained_until(dataset),
        "lineage": lineage_texts(lineage),
    }


def trained_until(dataset: Dataset) -> int | None:
    """Time of the newest impression of the training split, in milliseconds since 1970; None where
    the log has no clock or the split is empty."""
    requests = dataset.requests_of("train")
    if not dataset.clock or not len(requests):
        return None
    newest = dataset.requests["first"][requests] + dataset.requests["count"][requests] - 1
    return int(np.max(dataset.events["time"][newest]))


def save_weights(path: Path, model: nn.Module, instead: Mapping[str, Tensor] | None = None) -> None:
    """Replace ``model.safetensors`` in one step; ``instead``: tensors of which the model has a
    part, by name."""
    write_tensors(path / "model.safetensors", {**model.state_dict(), **(instead or {})}, {})


def save_optimiser(path: Path, tensors: dict[str, Tensor]) -> None:
    """Replace what the optimiser has of the weights that were just saved, in one step.

    Args:
        tensors: of :meth:`limerank.training.optim.Optimiser.state`.
    """
    write_tensors(path / OPTIMISER, tensors, {"format": str(OPTIMISER_FORMAT)})


def load_optimiser(path: Path) -> dict[str, Tensor] | None:
    """What :func:`save_optimiser` wrote into a run; None where an earlier version trained it.

    Raises:
        FormatError: the file is damaged, or of another version.
    """
    file = path / OPTIMISER
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            format = (opened.metadata() or {}).get("format")
        tensors = load_file(file)
    except (SafetensorError, ValueError) as error:
        raise FormatError(
            f"{file} is damaged ({error}); restore the run, or remove this file: a warm start then "
            "begins with a new optimiser"
        ) from None
    if format != str(OPTIMISER_FORMAT):
        raise FormatError(
            f"{file} has format {format!r:.40}, expected {OPTIMISER_FORMAT}; remove this file, and "
            "a warm start begins with a new optimiser, or train the run again"
        )
    return tensors


def save_state(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Replace the state that training is resumed from, in one step."""
    write_tensors(path / "trainer" / STATE, tensors, {"progress": json.dumps(progress)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last state that :func:`save_state` wrote; None if there is none yet.

    Raises:
        FormatError: the file is damaged.
    """
    file = path / "trainer" / STATE
    if not file.exists():
        return None
    try:
        tensors = load_file(file)
        with safe_open(file, framework="pt") as opened:
            progress: dict[str, Any] = json.loads(opened.metadata()["progress"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{file} is damaged ({error}): the training cannot be resumed; pass --overwrite to "
            "train from the start"
        ) from None
    return tensors, progress


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite."""
    return all(bool(torch.isfinite(value).all()) for value in tensors if value.is_floating_point())


@with_uris(path=READ)
def load_run(
    path: str | os.PathLike[str], device: str = "cpu", *, user_stage: str | None = None
) -> Run:
    """Load a run's best weights.

    Raises:
        FormatError: the folder is not a run, has another format, is damaged, or has no weights
            yet, because training has not reached its first validation.
    """
    return Run(**vars(load_trained(path, device, user_stage=user_stage)))
