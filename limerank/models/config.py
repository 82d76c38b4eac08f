"""Frozen, validated settings of a model and of its training; JSON in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from limerank.data.history import EventEncoder
from limerank.errors import SpecError, check_choice, did_you_mean
from limerank.models.tasks import Task, outputs
from limerank.validation import Frozen, validate

Activation = Literal["relu", "hardswish", "silu"]


class DataShape(Frozen):
    """What a model must know of a dataset to be built: table sizes and tasks."""

    item_ids: int
    """Items of the training window, and one row for all others."""
    item_tokens: int
    item_numeric: int
    user_tokens: int
    user_numeric: int
    event_tokens: int
    context_tokens: int
    clock: bool
    tasks: tuple[Task, ...] = Field(min_length=1)

    @property
    def outputs(self) -> int:
        """Logits that a model gives for each candidate, K."""
        return outputs(self.tasks)

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> DataShape:
        """The shape of the dataset with this manifest."""
        encoding = manifest["encoding"]
        encoder = EventEncoder(encoding, manifest["clock"])
        return cls(
            item_ids=encoding["trained_items"] + 1,
            item_tokens=encoding["items"]["tokens"],
            item_numeric=encoding["items"]["numeric"],
            user_tokens=encoding["users"]["tokens"],
            user_numeric=encoding["users"]["numeric"],
            event_tokens=encoder.tokens,
            context_tokens=encoder.context_tokens,
            clock=manifest["clock"],
            tasks=tuple(
                Task(name=label["name"], kind=label["kind"], mean=label["mean"])
                for label in encoding["labels"]
            ),
        )


class ModelConfig(Frozen):
    """Settings that every ranker has. The model's own class adds those that it alone has.

    ``ModelConfig(model="lrea", slots=16)`` is an instance of the class that is registered for this
    model (:mod:`limerank.models.registry`), and so is what ``ModelConfig.model_validate`` returns:
    here a :class:`~limerank.models.linformer.LreaConfig`. Without ``model`` it is LIME-XOR.

    Raises:
        SpecError: no model is registered under this name.
        ValidationError: the model has no such setting, or not with this value.
    """

    model: str
    """Name of the model."""
    width: int = Field(64, ge=1)
    """d: numbers per item, event and link."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of items whose id is hidden in a training step, so that their content alone has to
    represent them, as it will for items that training has not seen."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of hidden units dropped in training (head, feed-forward layers, attention output)."""

    other_names: ClassVar[Mapping[str, str]] = {"places": "positions"}
    """Names that a setting has in other models, or once had -> its name here."""

    def __new__(cls, **settings: Any) -> Self:
        if cls is ModelConfig:
            own: Any = config_class(settings.get("model", DEFAULT_MODEL))
            made: Self = object.__new__(own)
            return made
        return super().__new__(cls)

    def __init__(self, **settings: Any) -> None:  # any model's settings, where cls is ModelConfig
        super().__init__(**settings)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_model(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if cls is ModelConfig and isinstance(values, Mapping):
            own: Any = config_class(values.get("model", DEFAULT_MODEL))
            made: Self = own.model_validate(values)
            return made
        return handler(values)

    @model_validator(mode="before")
    @classmethod
    def _only_own_settings(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            name = values.get("model", cls.model_fields["model"].default)
            refuse_unknown(cls, values, f"{name} has no such setting", cls.other_names)
        return values

    @model_validator(mode="after")
    def _of_this_class(self) -> Self:
        if CONFIG_CLASSES.get(self.model) is not type(self):
            raise ValueError(f"{type(self).__name__} is not the configuration of {self.model!r}")
        return self


class HeadConfig(ModelConfig):
    """Settings of rankers that end in the shared head (:class:`~limerank.models.ranker.Head`)."""

    hidden: int = Field(32, ge=1)
    """h: hidden units of the head; with a gate each has two first-layer sums."""
    activation: Activation = "relu"
    """f of the head's hidden units: relu is the cheapest where a catalogue is scored."""
    gated: bool = True
    """Whether the head's first layer is gated: z = f(a) * b instead of z = f(a)."""


class AttentionConfig(HeadConfig):
    """Settings of rankers with multi-head attention."""

    heads: int = Field(4, ge=1)
    """H: attention heads; divides the width."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width; got {self.heads} and {self.width}")
        return self


DEFAULT_MODEL = "lime-xor"
CONFIG_CLASSES: dict[str, type[ModelConfig]] = {}
"""Model -> class of its configuration; :func:`limerank.models.registry.register` fills it."""


def config_class(model: object) -> type[ModelConfig]:
    """The class of the configuration of the model of this name.

    Raises:
        SpecError: no model is registered under this name.
    """
    check_choice("model", model, CONFIG_CLASSES)
    return CONFIG_CLASSES[str(model)]


def refuse_unknown(
    config: type[BaseModel], given: Mapping[str, Any], problem: str, other_names: Mapping[str, str]
) -> None:
    """Raise a ValidationError that lists the names in ``given`` that are not fields of ``config``.

    Args:
        problem: the text of the error of each one.
        other_names: other names of fields -> the field's name, for the hint.
    """
    errors: list[InitErrorDetails] = []
    for name, value in given.items():
        if name in config.model_fields:
            continue
        if other_names.get(name) in config.model_fields:
            hint = f"; it is called {other_names[name]} here"
        else:
            known = ", ".join(config.model_fields)
            hint = did_you_mean(name, config.model_fields) or f"; expected one of {known}"
        text = (problem + hint).replace("{", "{{").replace("}", "}}")
        errors.append(
            {"type": PydanticCustomError("unknown_setting", text), "loc": (name,), "input": value}
        )
    if errors:
        raise ValidationError.from_exception_data(config.__name__, errors)


class TrainConfig(Frozen):
    """How a ranker is trained."""

    epochs: int = Field(5, ge=1)
    """Passes over the training split; the learning rate decays towards the end of the last."""
    impressions: int | None = Field(None, ge=1)
    """Impressions per batch, about; whole requests. When not given, an epoch has about 400 batches
    of at least 64 and at most 1,024: small logs need many small steps."""
    rate: float = Field(3e-3, gt=0)
    """Peak learning rate of the dense weights (AdamW), for batches of 1,024 impressions; with
    batches of n it is multiplied by sqrt(n / 1,024)."""
    table_rate: float = Field(0.1, gt=0)
    """Peak learning rate of the embedding tables (row-wise Adagrad), likewise."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of the dense matrices."""
    table_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of the table rows that a step touches."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of all steps in which the rates rise from zero."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient of the dense weights."""
    history: int | None = Field(None, ge=1)
    """Events per history; the dataset's own length when not given."""
    exact: bool = False
    """LIME-MHA: every impression is trained on all events before it, however many. Else impressions
    of a request share the history before the request. (It is evaluated like any other run: with
    the latest ``history`` events.)"""
    exact_requests: int = Field(1, ge=0)
    """With exact histories: consecutive requests of a user that are trained in one pass over what
    came before; 0: all of them, in time linear in the history. More cost less where histories are
    long, but a step then sees few users, which costs accuracy."""
    task_weights: dict[str, float] = Field(default_factory=dict)
    """Weights of the tasks' losses; 1 where not given."""
    metric: str | None = None
    """What validation stops by, such as "click/auc"; the main task's AUC (binary) or XAUC
    (duration) when not given."""
    patience: int = Field(3, ge=1)
    """Validations without a better metric before training stops."""
    validations: int = Field(1, ge=1)
    """Validations per epoch."""
    bf16: bool = False
    """Compute matrix products in bfloat16 (weights and optimiser stay float32)."""
    seed: int = Field(0, ge=0)
    """Random seed of weights, order of batches and dropout."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """A killed run loses at most about this much work; more where checkpoints would take more than
    a twentieth of the time."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.exact_requests != 1 and not self.exact:
            raise ValueError(
                f"exact_requests is {self.exact_requests}, but histories are not exact; "
                "set exact=true as well, or leave exact_requests out"
            )
        for name, weight in self.task_weights.items():
            if not math.isfinite(weight):
                raise ValueError(
                    f"the weight of task {name!r} is {weight}, expected a finite number"
                )
        return self


def configs_of(model: str, settings: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The configurations of a model and of its training, from settings of both by their names.

    Raises:
        SpecError: no such model; or neither has a setting of this name (the message proposes the
            nearest one); or a value is wrong.
    """
    config = config_class(model)
    known = [*config.model_fields, *TrainConfig.model_fields]
    for name in settings:
        if name not in known:
            called = config.other_names.get(name)
            hint = f"; it is called {called} here" if called in known else did_you_mean(name, known)
            raise SpecError(
                f"{model} and its training have no setting {name!r}{hint}; expected one of "
                f"{', '.join(known)}"
            )
    own = {name: value for name, value in settings.items() if name in config.model_fields}
    others = {name: value for name, value in settings.items() if name not in own}
    return (
        validate(config, {**own, "model": model}, "the model's settings"),
        validate(TrainConfig, others, "the training's settings"),
    )
