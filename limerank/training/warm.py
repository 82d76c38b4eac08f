"""Warm starts: a training that goes on from the weights of an earlier run, on a newer log.

The new model starts as the earlier one: weights and the optimiser's numbers by name, rows by the id
of the item or the value that they are of (limerank.training.renumbering). Counts, base rates and
evidence are those of the new dataset; collaborative vectors stay in the earlier space
(limerank.training.collaborative). Only requests that the earlier run was not trained on, and a
sample of older ones, are trained on (limerank.training.replay).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.canonical import iso
from limerank.data.dataset import Dataset
from limerank.errors import DataError, FormatError, SpecError, StorageError
from limerank.files import read_json
from limerank.models import Ranker, axes
from limerank.models.axes import axes_of
from limerank.models.config import (
    ITEM,
    DataShape,
    ModelConfig,
    TrainConfig,
    model_config_of,
    train_config_of,
)
from limerank.runs.alarms import is_unfinished
from limerank.runs.folder import load_optimiser, trained_until
from limerank.runs.formats import FORMAT, model_settings
from limerank.runs.lineage import Ancestor
from limerank.runs.model import Trained, encoding_fingerprint, load_trained
from limerank.training.collaborative import FADING
from limerank.training.numbering import Numbering, numbering
from limerank.training.optim import Optimiser
from limerank.training.renumbering import renumbered_optimiser, renumbered_state
from limerank.training.replay import Selection, selection
from limerank.training.result import WarmStart

EPOCHS = 1
"""Passes over what a warm start trains on, where the configuration leaves it open."""


@dataclass(frozen=True)
class Parent:
    """The run that a training starts from.

    Attributes:
        trained: the run.
        optimiser: what its optimiser had of its weights; None where an earlier version trained it.
        until: time of the newest impression that it was trained on; None: not known, or the log has
            no clock.
    """

    trained: Trained
    optimiser: dict[str, Tensor] | None
    until: int | None

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """Of a run that is started from it."""
        of = self.trained
        return (Ancestor(of.fingerprint, str(of.path.resolve()), self.until), *of.lineage)


def open_parent(path: str | os.PathLike[str]) -> Parent:
    """The finished run in a folder.

    Raises:
        FormatError: it is no run, damaged, or its training has not ended.
    """
    path = Path(path)
    if is_unfinished(path):
        raise FormatError(
            f"the training of {path} has not ended, so nothing can start from it; finish it first "
            "(limerank train, with the same settings), or name another run"
        )
    trained = load_trained(path)
    return Parent(trained, load_optimiser(path), _until(trained))


def _until(trained: Trained) -> int | None:
    """Until when a run was trained; what its dataset says of it where an earlier version trained
    the run."""
    if trained.until is not None or not trained.manifest["clock"]:
        return trained.until
    try:
        dataset = Dataset(trained.data)
    except (FormatError, StorageError):
        return None
    if encoding_fingerprint(dataset.manifest) != encoding_fingerprint(trained.manifest):
        return None
    return trained_until(dataset)


def model_name(path: str | os.PathLike[str]) -> str:
    """The name of a run's model, without loading the run.

    Raises:
        FormatError: it is no run, or its model is not registered.
    """
    config = read_json(Path(path) / "config.json", "a run")
    name = model_settings(config.get("model") or {}, config.get("format", FORMAT)).get("model")
    if not isinstance(name, str):
        raise FormatError(f"{path} is damaged: it has no name of a model; restore the run")
    return name


def model_from(
    parent: Parent, given: ModelConfig | str | Mapping[str, Any] | None, shape: DataShape
) -> ModelConfig:
    """The configuration of a model that starts from a run: that of the run.

    Args:
        parent: the run.
        given: what the caller asks for.
        shape: of the new dataset; features that it does not anchor are no longer anchored.

    Raises:
        SpecError: another model or setting is asked for.
    """
    own, path = parent.trained.ranker.config, parent.trained.path
    wanted: Any = {"model": given} if isinstance(given, str) else given
    if isinstance(wanted, Mapping):
        wanted = {"model": own.model, **wanted}
        if wanted["model"] == own.model:
            wanted = {**own.model_dump(), **wanted}
    wanted = own if wanted is None else model_config_of(wanted)
    if wanted.model != own.model:
        raise SpecError(
            f"{path} is of the model {own.model}, not {wanted.model}, which cannot start from it; "
            "leave the model out, or train without --from"
        )
    if wanted.neighbours is None:  # the default: the run has recorded what it was
        wanted = wanted.model_copy(update={"neighbours": own.neighbours})
    stored = own.model_dump()
    differing = ", ".join(
        f"{name} is {stored[name]!r}, not {value!r}"
        for name, value in wanted.model_dump().items()
        if stored[name] != value
    )
    if differing:
        raise SpecError(
            f"a training from {path} has the settings of its model ({differing}); leave them out, "
            "or train without --from"
        )
    if own.anchors is None:
        return own
    anchors = tuple(name for name in own.anchors if name == ITEM or name in shape.anchors)
    return own.model_copy(update={"anchors": anchors})


def config_from(
    parent: Parent, given: TrainConfig | Mapping[str, Any] | None, tasks: tuple[str, ...]
) -> TrainConfig:
    """The configuration of a training that starts from a run: that of the run, with
    :data:`EPOCHS`, and with the given settings.

    Args:
        parent: the run.
        given: a full configuration, which is taken as it is, or settings by name.
        tasks: names of the dataset's labels; weights of others are left out.

    Raises:
        SpecError: no such setting, or a value is wrong.
    """
    if isinstance(given, TrainConfig):
        return given
    own = parent.trained.train
    settings = own.model_dump()
    if not parent.trained.lineage:
        settings["epochs"] = EPOCHS
    weights = {name: weight for name, weight in own.task_weights.items() if name in tasks}
    settings["task_weights"] = weights
    if given is not None and not isinstance(given, Mapping):
        return train_config_of(given)
    return train_config_of({**settings, **(given or {})})


@dataclass(frozen=True)
class Start:
    """What a training starts from, for the new dataset.

    Attributes:
        parent: the run.
        numbering: how the new model's entries follow from those of the run's.
        chosen: the requests that are trained on.
    """

    parent: Parent
    numbering: Numbering
    chosen: Selection

    @property
    def has_counters(self) -> bool:
        """Whether the model of the run has counters, whose buckets go on."""
        return self.parent.trained.ranker.counters is not None

    @classmethod
    def of(
        cls,
        parent: Parent,
        dataset: Dataset,
        shape: DataShape,
        model: ModelConfig,
        config: TrainConfig,
        requests: NDArray[np.int64],
        batch_size: int,
    ) -> Start:
        """The start of a training on a dataset.

        Args:
            requests: rows of the training split that the objective learns from, i64.
            batch_size: impressions of a batch.

        Raises:
            DataError: none of them is new.
            FormatError: a vocabulary is missing or damaged.
        """
        chosen = selection(dataset, requests, parent.until, config.replay, config.seed, batch_size)
        if not len(chosen.new):
            assert parent.until is not None
            raise DataError(
                f"{dataset.path} has no request in its training split after {iso(parent.until)}, "
                f"until when {parent.trained.path} was trained: there is nothing to learn; prepare "
                "a newer log, or train without --from"
            )
        return cls(parent, numbering(dataset, shape, model, parent.trained), chosen)

    def result(self, value: float | None = None) -> WarmStart:
        """What a result reports of it; ``value``: validation metric of the run's weights."""
        of, numbers = self.parent, self.numbering
        return WarmStart(
            run=of.trained.path,
            fingerprint=of.trained.fingerprint,
            until=None if of.until is None else iso(of.until),
            value=value,
            new=len(self.chosen.new),
            replayed=len(self.chosen.replayed),
            known_items=numbers.known_items,
            items=len(numbers.sources[axes.ITEMS].at) - 1,
            added=numbers.added,
            dropped=numbers.dropped,
            optimiser=of.optimiser is not None,
        )

    @torch.no_grad()
    def load_weights(self, ranker: Ranker) -> None:
        """Set the weights of a new model. Durations are relative to the mean of the training
        window, which is another one now: the outputs are shifted by it."""
        earlier = self.parent.trained.ranker
        found = renumbered_state(
            ranker.state_dict(),
            earlier.state_dict(),
            axes_of(ranker),
            self.numbering.sources,
            self.numbering.sizes,
        )
        ranker.load_state_dict(found)
        means = {task.name: task.mean for task in earlier.shape.tasks}
        shifts = [
            math.log(means[task.name] / task.mean)
            if task.kind == "duration" and means.get(task.name, 0) > 0 and task.mean > 0
            else 0.0
            for task in ranker.shape.tasks
            for _ in range(task.of_kind.outputs)
        ]
        if any(shifts):
            ranker.calibrate(torch.ones(len(shifts)), torch.tensor(shifts))

    def faded_counts(self, ranker: Ranker) -> Tensor:
        """Impressions that the run's ids are the evidence of, by today's items, times
        :data:`FADING`: f32 [items]. Called after :meth:`load_weights`."""
        share = ranker.item_tower.id_shares[1:].clamp(max=1 - 1e-6)
        counts = ranker.item_tower.id_evidence * share / (1 - share)
        return FADING * counts * torch.from_numpy(self.numbering.sources[axes.ITEMS].same[1:])

    def load_optimiser(self, ranker: Ranker, optimiser: Optimiser) -> None:
        """Set what an optimiser of the new model has, where the run has it."""
        stored = self.parent.optimiser
        if stored is None:
            return
        found = renumbered_optimiser(
            dict(ranker.named_parameters()),
            stored,
            axes_of(ranker),
            self.numbering.sources,
            self.numbering.sizes,
        )
        optimiser.load({**optimiser.sums(), **found})


def fitted_again(parent: Parent, dataset: Dataset) -> WarmStart:
    """What a result reports of a model that is fitted by counting: it has nothing to start from but
    its settings."""
    items = dataset.trained_items
    return WarmStart(
        parent.trained.path,
        parent.trained.fingerprint,
        None if parent.until is None else iso(parent.until),
        None,
        len(dataset.requests_of("train")),
        0,
        0,
        items,
        optimiser=False,
    )
