"""Frozen, validated settings of a model and of its training; JSON in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from limerank.data.counters import counted_label
from limerank.data.features import anchors_of
from limerank.data.history import EventEncoder
from limerank.data.impressions import ImpressionEncoder
from limerank.errors import SpecError, check_choice
from limerank.models.aliases import hint_for
from limerank.models.tasks import Task, outputs
from limerank.validation import Frozen, validate

Activation = Literal["relu", "hardswish", "silu"]


ITEM = "item"
"""The anchor of the items themselves, beside those of features."""


class DataShape(Frozen):
    """What a model must know of a dataset to be built: table sizes and tasks."""

    item_ids: int
    """Items of the training window, and one row for all others."""
    item_tokens: int
    item_numeric: int
    item_numbers: tuple[int, ...] = ()
    """Those of the ``item_numeric`` numbers that are numeric features; the others are parts of text
    vectors."""
    user_tokens: int
    user_numeric: int
    user_numbers: tuple[int, ...] = ()
    """The same of users."""
    event_tokens: int
    context_tokens: int
    clock: bool
    tasks: tuple[Task, ...] = Field(min_length=1)
    impression_tokens: int = 0
    """Rows of the impression table; 0: the dataset has no impression features."""
    impression_features: int = 0
    counted: int = 0
    """Hours from one refresh of the items' counters to the next; 0: there are none."""
    positive: int | None = None
    """The event token of a positive outcome of the first binary label; None: there is none, or all
    events of histories are positive."""
    anchors: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Anchored features of items: name -> first row and number of rows in the content table."""

    def anchored(
        self, wanted: tuple[str, ...] | None
    ) -> tuple[bool, tuple[tuple[int, int], ...]] | None:
        """Whether items are anchored, and the rows of the anchored features.

        Args:
            wanted: names among :attr:`anchors`, or "item"; None: all.

        Raises:
            SpecError: there is no such feature.
        """
        known = [ITEM, *self.anchors]
        chosen = known if wanted is None else wanted
        for name in chosen:
            check_choice("anchor", name, known)
        features = tuple(self.anchors[name] for name in chosen if name != ITEM)
        return (ITEM in chosen, features) if chosen else None

    @property
    def outputs(self) -> int:
        """Logits that a model gives for each candidate, K."""
        return outputs(self.tasks)

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> DataShape:
        """The shape of the dataset with this manifest."""
        encoding = manifest["encoding"]
        encoder = EventEncoder(encoding, manifest["clock"])
        impressions = ImpressionEncoder(encoding)
        return cls(
            item_ids=encoding["trained_items"] + 1,
            item_tokens=encoding["items"]["tokens"],
            item_numeric=encoding["items"]["numeric"],
            item_numbers=_numbers(encoding["items"]),
            user_tokens=encoding["users"]["tokens"],
            user_numeric=encoding["users"]["numeric"],
            user_numbers=_numbers(encoding["users"]),
            event_tokens=encoder.tokens,
            context_tokens=encoder.context_tokens,
            clock=manifest["clock"],
            impression_tokens=impressions.tokens,
            impression_features=len(impressions.features),
            counted=int(manifest["clock"] and counted_label(encoding["labels"]) is not None),
            positive=_positive(encoder, manifest),
            anchors=anchors_of(encoding),
            tasks=tuple(
                Task(name=label["name"], kind=label["kind"], mean=label["mean"])
                for label in encoding["labels"]
            ),
        )


def _numbers(content: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(one["column"] for one in content["features"] if one["kind"] == "numeric")


def _positive(encoder: EventEncoder, manifest: Mapping[str, Any]) -> int | None:
    label = counted_label(manifest["encoding"]["labels"])
    if label is None or manifest["spec"]["history"]["keep"] == label["name"]:
        return None  # histories hold positive events alone
    return encoder.token(f"label_{label['name']}", 1)


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
    """Length of the vectors of items, events and links, d. More costs time and memory in training,
    index and scoring; raise it for large logs."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of items whose id is hidden in a training step, so that their features alone represent
    them, as for items that training has not seen. Raise it if many items are new when they are
    ranked."""
    id_evidence: float = Field(10.0, ge=0)
    """Impressions of an item at which its id counts half: its embedding is scaled by n / (n + k).
    Rare items are their content and statistics; 0: every id counts in full."""
    vectors: int = Field(32, ge=0)
    """Numbers of an item's collaborative vector (limerank.training.collaborative); 0: none."""
    base_rates: bool = True
    """Whether an item's smoothed rate of the main label and its count are among its inputs."""
    curves: bool = True
    """Whether numeric features of items and users enter by piecewise linear curves as well, and not
    by straight lines alone (limerank.models.curves)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of hidden units that a training step drops (head, feed-forward layers, attention
    output). Raise it if the validation metric falls while the training loss still improves."""
    anchors: tuple[str, ...] | None = ()
    """What has anchored links: "item" (this very item in the history) and names of features. None:
    items and all features that the dataset anchors."""
    anchor_width: int = Field(8, ge=1)
    """Numbers of an anchored link."""
    anchor_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the statistics of anchored links that a training step drops."""
    since_positive: bool = True
    """Whether anchored links know how many events after the user's newest positive one, or before
    it, an item was seen. Only where the log has a binary label, and histories other events too."""
    neighbours: int | None = Field(0, ge=0)
    """Items that the same users choose, of each item, whose anchored links it receives from as well
    (limerank.models.neighbours); 0: none. They take 8 bytes each, and in training six times that.
    None: where there are anchored links 50, or fewer (10 at least) if there are more than 100,000
    items; else none."""

    counter_hours: int = Field(0, ge=0)
    """Hours from one refresh of the items' counters to the next; 0: no counters. A model with
    counters knows what is popular now: an item's rate of the first binary label, its impressions,
    both of the latest 24 hours alone, and the time since it was first shown
    (limerank.data.counters). They are part of the index: a server that is given what was shown
    refreshes them; else the index has those of the log that it is built from. Only where the log
    has times and such a label, with the objective "impressions"."""
    counter_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of counters that are hidden one by one in a training step."""

    impression_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of impressions whose impression features are all hidden in a training step, and share
    of the values that are hidden one by one: so the model can rank where some or all of them are
    unknown. It has no effect on logs without impression features."""

    other_names: ClassVar[Mapping[str, str]] = {"places": "positions"}
    """Names that a setting has in other models, or once had -> its name here."""
    unused: ClassVar[frozenset[str]] = frozenset()
    """Settings of this class that its models do not have."""

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
            problem = f"{name} has no such setting"
            refuse_unknown(cls, values, problem, cls.other_names, {"TrainConfig": TrainConfig})
        return values

    @model_validator(mode="after")
    def _of_this_class(self) -> Self:
        if CONFIG_CLASSES.get(self.model) is not type(self):
            raise ValueError(f"{type(self).__name__} is not the configuration of {self.model!r}")
        for name in sorted(self.unused):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{self.model} has no setting {name}; leave it out")
        return self


class HeadConfig(ModelConfig):
    """Settings of rankers that end in the shared head (:class:`~limerank.models.head.Head`)."""

    hidden: int = Field(32, ge=1)
    """Hidden units of the head, h. Scoring time of a catalogue grows with it."""
    activation: Activation = "relu"
    """Activation function of the head's hidden units. "relu" is the fastest one when a catalogue is
    scored."""
    gated: bool = True
    """Whether the head's first layer is gated, z = f(a) * b instead of z = f(a). A gate doubles the
    sums of the first layer."""


class AttentionConfig(HeadConfig):
    """Settings of rankers with multi-head attention."""

    heads: int = Field(4, ge=1)
    """Attention heads, H; they divide the width."""

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
    config: type[BaseModel],
    given: Mapping[str, Any],
    problem: str,
    other_names: Mapping[str, str],
    elsewhere: Mapping[str, type[BaseModel]],
) -> None:
    """Raise a ValidationError that lists the names in ``given`` that are not fields of ``config``.

    Args:
        config: the class whose settings are given.
        given: name -> value.
        problem: the text of the error of each unknown name.
        other_names: other names of fields -> the field's name, for the hint.
        elsewhere: other records by their name in messages. The first one that has an unknown name
            as a field is proposed.
    """
    errors: list[InitErrorDetails] = []
    for name, value in given.items():
        if name in config.model_fields:
            continue
        owner = next((one for one, its in elsewhere.items() if name in its.model_fields), None)
        hint = hint_for(name, config.model_fields, other_names)
        if owner is not None and name not in other_names:
            hint = f"; it is a setting of {owner}"
        text = problem + (hint or f"; expected one of {', '.join(config.model_fields)}")
        text = text.replace("{", "{{").replace("}", "}}")
        errors.append(
            {"type": PydanticCustomError("unknown_setting", text), "loc": (name,), "input": value}
        )
    if errors:
        raise ValidationError.from_exception_data(config.__name__, errors)


class TrainConfig(Frozen):
    """How a ranker is trained."""

    objective: str | None = None
    """What is learned. "impressions": the outcomes of shown items. "catalogue": positives among all
    items, for logs that do not record what was shown and ignored; and the outcomes of shown items
    where the log has such labels as well. By default "catalogue" where a label is of the kind
    "positive". Others can be registered in :mod:`limerank.training.objectives`."""
    negatives: int | None = Field(None, ge=0)
    """With the objective "catalogue": how many items are drawn for each batch, beside the
    positives of the batch, for its positives to be compared with; 0: all items. By default as many
    as make 16.8 million pairs of a request and an item in an epoch, at least 1,000 (128 for models
    that read the history for each candidate: mha, din, hstu and the like), at most all."""
    validation_requests: int | None = Field(None, ge=1)
    """With the objective "catalogue": how many requests a validation ranks all items for, at most.
    By default 2,000, and fewer, but at least 200, where the catalogue is large."""
    epochs: int = Field(5, ge=1)
    """Largest number of passes over the training split. The learning rate decays towards the end of
    the last one, so choose about as many as the model needs."""
    batch_size: int | None = Field(None, ge=1)
    """Impressions (with the objective "catalogue": positives) per batch, approximately: batches
    contain complete requests. By default an epoch has about 400 batches of 64 to 1,024 impressions,
    since small logs need many small steps."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the dense weights (AdamW), for batches of 1,024 impressions. It is
    scaled by sqrt(n / 1,024) for batches of n. Lower it if the loss is not finite. By default 3e-3;
    with the objective "catalogue" as much as gives 0.0075 for the log's batches: each positive is
    compared with thousands of items, and there are few positives."""
    table_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the embedding tables (row-wise Adagrad), scaled likewise. By default
    0.1; with the objective "catalogue" as much as gives 0.0125 for the log's batches."""
    table_accumulator: float | None = Field(None, ge=0)
    """Initial accumulator of each table row (row-wise Adagrad), in squared gradients of one
    impression's loss. Rows that few impressions use stay nearer to their start, so that a log with
    many rare items is not learned by heart in an epoch; frequent rows hardly notice. By default 9;
    where positives are learned alone, with the objective "catalogue", 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of the dense matrices."""
    table_weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of the table rows that a step uses."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of all steps in which the learning rates rise from zero."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient of the dense weights; larger gradients are scaled down to it."""
    history: int | None = Field(None, ge=1)
    """Events per history, at most. By default the history length of the dataset. A smaller value
    trains faster."""
    exact: bool = False
    """Whether each impression is trained with all events before it, however many (LIME-MHA only).
    Otherwise the impressions of a request share the history before the request. Evaluation is the
    same: it uses the latest ``history`` events."""
    exact_requests: int = Field(1, ge=0)
    """With ``exact``: how many consecutive requests of a user are trained together, in one pass
    over the earlier events; 0: all, in time linear in the history. Larger values are faster where
    histories are long, but a step then has few users, which costs accuracy."""
    task_weights: dict[str, float] = Field(default_factory=dict)
    """Weights of the tasks' losses, such as ``{"watch": 0.3}``. Tasks that are not listed have
    weight 1."""
    metric: str | None = None
    """Validation metric that stops training and chooses the weights, such as "click/auc". By
    default the calibrated NE (binary), the XAUC (duration) or the loss (positive) of the first
    task; of the first label of the kind positive, where there is one."""
    calibrate: bool = True
    """Whether the weights are stored with a calibration: the affine map of each binary task's
    logits, and the factor of each duration, that fit the validation split best. It changes
    predictions, not their order."""
    patience: int = Field(3, ge=1)
    """Validations without a better metric after which training stops."""
    validations: int = Field(1, ge=1)
    """Validations per epoch. More of them find the best weights of a model that overfits within an
    epoch."""
    replay: float | None = Field(None, ge=0)
    """With a warm start (``--from``): impressions of older requests that are trained on again, for
    each impression that is new. By default 1, and as many as make 16 batches where the new part is
    small. More of them forget less and take longer; 0: only what is new. It has no effect on other
    trainings."""
    bf16: bool = False
    """Whether matrix products are computed in bfloat16. Weights and optimiser stay in float32. It
    is faster on processors with bfloat16 instructions and slower on others."""
    tables: Literal["auto", "replicated", "sharded"] = "auto"
    """With several processes: whether each has the full table of item ids ("replicated"), or a part
    of its rows ("sharded"), which the others ask for. The trained weights are the same. "auto":
    sharded where the table and what the optimiser has of it exceed ``table_bytes``."""
    table_bytes: int = Field(1 << 32, ge=1)
    """Bytes of the table of item ids from which "auto" shards it."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Random seed of weights, order of batches and dropout."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """Time between checkpoints: the work that a killed run loses at most. It is longer if
    checkpoints would take more than a twentieth of the training time."""

    @model_validator(mode="before")
    @classmethod
    def _only_own_settings(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            models = {f"ModelConfig(model={name!r})": one for name, one in CONFIG_CLASSES.items()}
            by_default = {"ModelConfig": CONFIG_CLASSES[DEFAULT_MODEL]} if models else {}
            refuse_unknown(cls, values, "training has no such setting", {}, by_default | models)
        return values

    @field_validator("task_weights", mode="before")
    @classmethod
    def _by_task(cls, weights: Any) -> Any:
        if not isinstance(weights, Mapping):
            raise ValueError(
                f'expected a weight for each task by its name, such as {{"watch": 0.3}}; '
                f"got {weights!r}"
            )
        return weights

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.exact_requests != 1 and not self.exact:
            raise ValueError(
                f"exact_requests is {self.exact_requests}, but histories are not exact; "
                "set exact=true as well, or leave exact_requests out"
            )
        return self


def model_config_of(given: ModelConfig | str | Mapping[str, Any] | None) -> ModelConfig:
    """The configuration of a model, from one, from the model's name or from its settings by name.

    Raises:
        SpecError: no such model or setting, or a value is wrong, or it is something else.
    """
    if isinstance(given, ModelConfig):
        return given
    if isinstance(given, str):
        given = {"model": given}
    if given is not None and not isinstance(given, Mapping):
        raise SpecError(
            "model: expected a ModelConfig, the name of a model or a mapping of its settings; "
            f"got {given!r}"
        )
    return validate(ModelConfig, given or {}, "the configuration of the model")


def train_config_of(given: TrainConfig | Mapping[str, Any] | None) -> TrainConfig:
    """The configuration of a training, from one or from its settings by name.

    Raises:
        SpecError: no such setting, or a value is wrong, or it is something else.
    """
    if isinstance(given, TrainConfig):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise SpecError(
            f"config: expected a TrainConfig or a mapping of its settings; got {given!r}"
        )
    return validate(TrainConfig, given or {}, "the configuration of the training")


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
            hint = hint_for(name, known, config.other_names)
            raise SpecError(
                f"{model} and its training have no setting {name!r}{hint}; expected one of "
                f"{', '.join(known)}"
            )
    own = {name: value for name, value in settings.items() if name in config.model_fields}
    others = {name: value for name, value in settings.items() if name not in own}
    return (
        validate(config, {**own, "model": model}, f"the configuration of {model}"),
        validate(TrainConfig, others, "the configuration of the training"),
    )
