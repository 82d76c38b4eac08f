"""Frozen, validated settings of a model and of its training; JSON in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from limerank.data.history import EventEncoder
from limerank.validation import Frozen

ModelName = Literal[
    "lime-mha",
    "lime-xor",
    "popularity",
    "two-tower",
    "truncated-mha",
    "lrea",
    "din",
    "sasrec",
    "mha",
    "hstu",
]
Variant = Literal["raw-links", "coupled", "product", "softmax", "last-block", "read-only", "dense"]
OF_MHA = ("raw-links", "coupled", "product", "softmax")
OF_XOR = ("raw-links", "coupled", "product", "softmax", "last-block", "read-only", "dense")
Activation = Literal["relu", "hardswish", "silu"]


class Task(Frozen):
    """One output of a model."""

    name: str
    kind: Literal["binary", "duration"]
    mean: float
    """Mean label over the impressions of the training window; durations in seconds."""


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


def _heads(model: str) -> int:
    return 1 if model.startswith("lime") else 4


class ModelConfig(Frozen):
    """The shape of a ranker. Fields that a model does not have are ignored by it."""

    model: ModelName = "lime-xor"
    width: int = Field(64, ge=1)
    """d: numbers per item, event and link."""
    heads: int = Field(default_factory=lambda given: _heads(given.get("model", "")), ge=1)
    """H: attention heads; divides the width. When not given, 1 for LIME, whose links take the
    place of heads (an item then has l weights, not H l), and 4 for all others."""
    links: int = Field(32, ge=1)
    """l: learned links between history and candidates; LREA: slots; truncated MHA: events."""
    blocks: int = Field(3, ge=1)
    """LIME-XOR, SASRec, HSTU: depth of the stack; in the last of LIME-XOR links read for good."""
    places: int = Field(1024, ge=1)
    """SASRec, HSTU, LREA: places of a history that are told apart; older ones share the last."""
    hidden: int = Field(32, ge=1)
    """h: hidden units of the head; with a gate each has two first-layer sums."""
    activation: Activation = "relu"
    """f of the head's hidden units: relu is the cheapest where a catalogue is scored."""
    gated: bool = True
    """Whether the head's first layer is gated: z = f(a) * b instead of z = f(a)."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of items whose id is hidden in a training batch, so that content can place them."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of hidden units dropped in training (head, feed-forward layers, events)."""

    variant: Variant | None = None
    """LIME with one part changed, to see what it is worth (limerank/models/variants.py)."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        known = {"lime-mha": OF_MHA, "lime-xor": OF_XOR}.get(self.model, ())
        if self.variant is not None and self.variant not in known:
            raise ValueError(
                f"{self.model} has no variant {self.variant!r}; it has {', '.join(known) or 'none'}"
            )
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width; got {self.heads} and {self.width}")
        return self


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
