"""A trained model: weights, settings and encoding, without the data of its training.

The files of a run folder: :mod:`limerank.runs.folder`, which writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from limerank.data.spec import Spec
from limerank.devices import device_of
from limerank.errors import FormatError, SpecError
from limerank.files import checksum, read_json, require_file, write_json
from limerank.models import Ranker, build
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.runs import formats
from limerank.runs.alarms import is_unfinished
from limerank.runs.formats import FORMAT, READABLE
from limerank.runs.lineage import Ancestor, lineage_of, moment_of
from limerank.storage.fetching import fetch
from limerank.validation import validate

CHECKSUMS = "checksums.json"
WEIGHTS, SELFTEST = "model.safetensors", "selftest.safetensors"
UNREAD = frozenset({"users.parquet"})
"""Vocabularies that ranking does not read."""


@dataclass(frozen=True)
class Trained:
    """A trained model, loaded.

    Attributes:
        path: the folder of its run.
        ranker: the model with its best weights, in evaluation mode.
        train: how it was trained.
        manifest: the manifest of the dataset it was trained on.
        recorded: where that dataset was: a folder, or a URI.
        fingerprint: identifies model and encoding; an index stores that of the run that built it.
        sealed: whether all files were compared with the checksums that were written with the
            weights. Runs of early versions have no checksums; a run that is still being trained may
            have those of earlier weights.
        until: time of the newest impression that it was trained on, in milliseconds since 1970;
            None where the log has no clock, or an earlier version did not record it.
        lineage: the runs that its weights come from, the nearest one first; empty if it was trained
            from random weights.
    """

    path: Path
    ranker: Ranker
    train: TrainConfig
    manifest: dict[str, Any]
    recorded: str
    fingerprint: str
    sealed: bool = False
    until: int | None = None
    lineage: tuple[Ancestor, ...] = ()

    @property
    def data(self) -> Path:
        """The folder where the dataset was; one of a URI is fetched.

        Raises:
            StorageError: it cannot be.
        """
        return fetch(self.recorded)

    @property
    def history(self) -> int:
        """Events of a history, at most."""
        length: int = self.train.history or self.manifest["spec"]["history"]["length"]
        return length


def encoding_fingerprint(manifest: dict[str, Any]) -> str:
    """Identifies the encoding of a dataset: how users, items and events become tokens."""
    text = json.dumps([manifest["clock"], manifest["encoding"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seal(path: Path) -> None:
    """Write the checksums of all files of a run that ranking reads, beside the weights that were
    just saved."""
    sums = {name: checksum(path / name) for name in _ranked_files(path)}
    write_json(path / CHECKSUMS, {"format": FORMAT, "sha256": sums})


def _ranked_files(path: Path) -> list[str]:
    names = ["config.json", "encoding.json", WEIGHTS, SELFTEST]
    names += [
        f"vocab/{file.name}"
        for file in sorted((path / "vocab").glob("*.parquet"))
        if file.name not in UNREAD
    ]
    return [name for name in names if (path / name).exists()]


def _sealed(path: Path, weights: str) -> bool:
    """Whether all files have the checksums that :func:`seal` wrote; False if there are none.

    Raises:
        FormatError: a file has changed since.
    """
    if not (path / CHECKSUMS).exists():
        return False
    sums = read_json(path / CHECKSUMS, "a run").get("sha256")
    if not isinstance(sums, dict) or not all(isinstance(one, str) for one in sums.values()):
        raise FormatError(f"{path / CHECKSUMS} is damaged; restore the run, or train it again")
    known = set(_ranked_files(path))
    changed = [
        name
        for name in sorted(sums.keys() | known)
        if name not in known
        or sums.get(name) != (weights if name == WEIGHTS else checksum(path / name))
    ]
    if changed and is_unfinished(path) and set(changed) <= {WEIGHTS, SELFTEST}:
        return False  # training was killed, or is running, between writing the weights and the sums
    if changed:
        raise FormatError(
            f"{path} is damaged: {', '.join(changed[:10])} changed since the run was trained; "
            "restore the run, or train it again"
        )
    return True


def load_trained(
    path: str | os.PathLike[str], device: str = "cpu", *, user_stage: str | None = None
) -> Trained:
    """Load a run's best weights.

    Every file that ranking reads is compared with the checksums that were written with the weights,
    where the run has them.

    Args:
        path: the run folder.
        device: where to compute: "cpu", "cuda" or "cuda:N".
        user_stage: the implementation of the user stage; see
            :meth:`~limerank.models.ranker.Ranker.choose_user_stage`.

    Raises:
        FormatError: the folder is not a run, is of another format, is damaged, or training has
            not reached its first validation yet.
        SpecError: there is no such device, or no such user stage.
    """
    path, position = Path(path), device_of(device)
    config = read_json(path / "config.json", "a run")
    format = config.get("format")
    if format not in READABLE:
        raise FormatError(
            f"{path} has run format {format!r:.40}, expected {FORMAT}; train it again"
        )
    manifest = read_json(path / "encoding.json", "a run")
    file = path / WEIGHTS
    if not file.exists():
        raise FormatError(
            f"{path} has no weights yet: training has not reached its first validation"
        )
    require_file(file)
    weights = checksum(file)
    sealed = _sealed(path, weights)
    try:
        shape = validate(DataShape, config["shape"], str(path / "config.json"))
        model = validate(
            ModelConfig, formats.model_settings(config["model"], format), str(path / "config.json")
        )
        train = validate(
            TrainConfig, formats.train_settings(config["train"], format), str(path / "config.json")
        )
        data, encoding = str(config["data"]), config["encoding"]
        until, lineage = moment_of(config), lineage_of(config)
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise FormatError(
            f"{path / 'config.json'} is damaged ({_reason(error)}); restore the run, or train it "
            "again"
        ) from None
    _check_manifest(path, manifest, encoding)
    try:
        tensors = formats.weights(load_file(file, device=str(position)), format)
        with _NoValues():
            ranker = build(shape, model)
        _check_types(ranker.state_dict(), tensors)
        ranker.load_state_dict(tensors, assign=True)
    except (SafetensorError, RuntimeError, TypeError, ValueError, SpecError) as error:
        raise FormatError(f"{file} is damaged or of another model: {error}") from None
    ranker.eval().requires_grad_(False)
    ranker.choose_user_stage(user_stage)
    fingerprint = hashlib.sha256(f"{weights} {encoding}".encode()).hexdigest()[:16]
    return Trained(path, ranker, train, manifest, data, fingerprint, sealed, until, lineage)


class _NoValues(TorchFunctionMode):
    """Leaves out the starting values of weights, so that large tables take no memory until they are
    replaced. (Built on torch's meta device, a model would load torch's compiler, for seconds.)"""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def _check_manifest(path: Path, manifest: dict[str, Any], encoding: Any) -> None:
    """Whether ``encoding.json`` is that of the run, and complete."""
    try:
        same = encoding_fingerprint(manifest) == encoding
        validate(Spec, manifest["spec"], str(path / "encoding.json"))
        int(manifest["summary"]["time"]["first"]), int(manifest["summary"]["time"]["last"])
        manifest["spec"]["history"]["length"], manifest["spec"]["history"]["keep"]
        [label["cap"] for label in manifest["spec"]["labels"]]
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise FormatError(
            f"{path / 'encoding.json'} is damaged ({_reason(error)}); restore the run, or train it "
            "again"
        ) from None
    if not same:
        raise FormatError(
            f"{path / 'encoding.json'} is not the encoding that the run was trained with; restore "
            "the run, or train it again"
        )


def _check_types(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name in found and found[name].dtype != tensor.dtype:
            raise ValueError(f"{name} has the type {found[name].dtype}, expected {tensor.dtype}")


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
