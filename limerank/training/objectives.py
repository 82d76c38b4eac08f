"""Objectives by their names: what a ranker is trained for.

``TrainConfig.objective`` names one of :data:`OBJECTIVES`. Another one is a class that is derived
from :class:`Objective` and registered by :func:`register_objective`.
"""

from __future__ import annotations

from collections.abc import Sequence

from limerank.data.dataset import Dataset
from limerank.errors import check_choice
from limerank.models.config import DataShape, TrainConfig
from limerank.models.tasks import Task
from limerank.training.catalogue import Catalogue
from limerank.training.impressions import (
    Examples,
    Impressions,
    Measured,
    Objective,
    batch_size,
)

__all__ = [
    "OBJECTIVES",
    "Catalogue",
    "Examples",
    "Impressions",
    "Measured",
    "Objective",
    "batch_size",
    "objective_name",
    "objective_of",
    "objective_on",
    "register_objective",
]

OBJECTIVES: dict[str, type[Objective]] = {"catalogue": Catalogue, "impressions": Impressions}
"""Name -> objective."""


def register_objective(name: str, objective: type[Objective]) -> None:
    """Add an objective.

    Raises:
        ValueError: another objective has this name.
    """
    if OBJECTIVES.setdefault(name, objective) is not objective:
        raise ValueError(
            f"an objective named {name!r} is already registered, of class "
            f"{OBJECTIVES[name].__name__}; choose another name"
        )


def objective_of(name: str | None, tasks: Sequence[Task]) -> type[Objective]:
    """The objective of this name.

    Args:
        name: of :data:`OBJECTIVES`; None: "catalogue" where a label marks positives of the
            catalogue, else "impressions".
        tasks: one for each label of the dataset.

    Raises:
        SpecError: no objective is registered under this name.
    """
    return OBJECTIVES[objective_name(name, tasks)]


def objective_name(name: str | None, tasks: Sequence[Task]) -> str:
    """The name of what :func:`objective_of` gives."""
    if name is None:
        of_catalogue = any(task.of_kind.catalogue for task in tasks)
        return "catalogue" if of_catalogue else "impressions"
    check_choice("objective", name, OBJECTIVES)
    return name


def objective_on(dataset: Dataset, config: TrainConfig) -> Objective:
    """The objective of a training on a dataset, before any check.

    Raises:
        SpecError: there is no such objective, or the dataset has no label for it.
    """
    shape = DataShape.of(dataset.manifest)
    objective = objective_of(config.objective, shape.tasks)
    tasks = objective.tasks(shape, config)
    return objective(dataset, shape.model_copy(update={"tasks": tasks}), config)
