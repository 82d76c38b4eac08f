"""The configuration of the daily loop: one TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from limerank.data.canonical import duration, milliseconds
from limerank.errors import DataError, SpecError
from limerank.models.config import DEFAULT_MODEL, configs_of, train_config_of
from limerank.storage.uris import parse_uri
from limerank.validation import Frozen, validate

CONFIG_BYTES = 1 << 20
"""Size of the file, at most."""


class Gate(Frozen):
    """What a new model must show on the test split of the extended log before it goes live."""

    metric: Literal["auto", "auc", "ndcg@10"] = "auto"
    """What the new and the current model are compared by: AUC of a binary task, or NDCG@10 of
    ranked lists in a log of positives. By default the one that fits the log."""
    task: str | None = None
    """The binary task whose AUC is compared; the first one by default."""
    tolerance: float = Field(0.003, ge=0)
    """The new model is refused where its metric is below that of the current one by more than this,
    or by any amount that is certain: the 95 % interval of the difference is below 0."""
    strict: bool = False
    """Whether it is refused, too, where the interval leaves it open that the new model is worse by
    more than the tolerance. On small logs that is so on most days."""
    most_ne: float = Field(1.0, gt=0)
    """The new model is refused where the NE of a binary task is at or above this."""
    alarms: bool = True
    """Whether the new model is refused by an alarm that the current one does not raise on the same
    data."""


class DataChecks(Frozen):
    """What the new part of the log must show before anything is trained on it."""

    least_events: int = Field(1, ge=0)
    """Fewer new events are refused: an export that broke off, say."""
    most_lost: float = Field(0.5, gt=0, le=1)
    """A feature is refused that loses more than this share of its known values, compared with the
    log before: a column that broke."""
    most_shifted: float = Field(4.0, gt=1)
    """A label is refused whose mean rises or falls by more than this factor."""
    most_dropped: float = Field(0.2, gt=0, le=1)
    """A larger share of dropped rows is refused."""


class Export(Frozen):
    """Where new logs come from, if they are the events and exposures of a server's store."""

    store: str
    """Event store: an SQLite file, relative to the configuration, or valkey://HOST:PORT/0."""
    folder: Path
    """Folder of the logs, which the description reads: files = ["FOLDER/*.parquet"]."""
    since: int | str | None = None
    """Time of the first rows, where the log has earlier files of its own: "2026-11-28",
    "2026-11-28T06:00:00Z", or milliseconds since 1970. By default all that the store has."""
    window: float = Field(3600.0, gt=0)
    """Seconds after an item was shown in which an event counts as its outcome. A cycle exports what
    was shown until so long ago."""

    @field_validator("since")
    @classmethod
    def _since(cls, value: int | str | None) -> int | str | None:
        if value is not None:
            try:
                milliseconds(value)
            except DataError as error:
                raise ValueError(f"since: {error}") from None
        return value

    @property
    def since_ms(self) -> int | None:
        """Milliseconds since 1970 of ``since``."""
        return None if self.since is None else milliseconds(self.since)


class Publish(Frozen):
    """How a model that passed the gate goes live: at once, or to a share of the users first, as a
    rollout beside the model that is live."""

    share: float = Field(1.0, gt=0, le=1)
    """Share of the users who get a new model first, by an arm of its own; 1: all users at once."""
    decide: Literal["person", "ab"] = "person"
    """Who ends a rollout. "person": limerank promote or limerank rollback. "ab": the next cycle, by
    what users of both arms did with what they were shown; it needs [export]."""
    label: str | None = None
    """The label whose outcomes are compared; the most frequent one by default."""
    after: str = "1d"
    """Length of a rollout that "ab" decides, such as "1d" or "48h". It ends earlier where the
    sequential interval of the difference excludes 0. After this time, the new model goes live
    unless it is certainly worse."""

    to: str | None = None
    """A URI, such as s3://BUCKET/live: the run and the index that are live are published there as
    one version, in the folders ``run`` and ``index``; limerank pull fetches them."""

    @field_validator("to")
    @classmethod
    def _to(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                secret = parse_uri(value).secret
            except SpecError as error:
                raise ValueError(f"to: {error}") from None
            if secret:
                raise ValueError(
                    "to has a key or a secret; give credentials by the environment instead"
                )
        return value

    @field_validator("after")
    @classmethod
    def _after(cls, value: str) -> str:
        if duration(value) is None:
            raise ValueError(f"after is {value!r}, expected days or hours, such as 1d or 48h")
        return value

    @property
    def after_ms(self) -> int:
        """``after`` in milliseconds."""
        return duration(self.after) or 0


class RefreshConfig(Frozen):
    """The daily loop. Paths are relative to the file's folder."""

    home: Path
    """Folder of the loop: datasets, runs, indexes, and what is live."""
    description: Path
    """What ``limerank prepare`` reads. Its patterns of files find the logs of every new day."""
    export: Export | None = None
    """Set: each cycle begins with an export of what a server's store has that is newer."""
    window: str | None = None
    """How far back the dataset reaches before the newest event of the dataset before it, such as
    "60d" or "48h"; all of the log by default."""
    model: str = DEFAULT_MODEL
    """The model that is trained, as of ``limerank train --model``."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model and of a training from scratch, as of ``limerank train --set``."""
    warm: dict[str, Any] = Field(default_factory=dict)
    """Settings of training that differ in warm starts from those of the live model."""
    scratch_every: int = Field(0, ge=0)
    """Every so many cycles the model is trained from scratch; 0: never again after the first."""
    data: DataChecks = DataChecks()
    """What the new part of a log must show."""
    gate: Gate = Gate()
    """What a new model must show."""
    publish: Publish = Publish()
    """How a new model goes live."""
    keep: int = Field(3, ge=2, le=1000)
    """Published cycles whose run and index are retained, for rollbacks; the live one among them."""
    memory: str = "2GiB"
    """Memory limit of ``limerank prepare``."""

    @field_validator("window")
    @classmethod
    def _window(cls, value: str | None) -> str | None:
        if value is not None and duration(value) is None:
            raise ValueError(
                f"window is {value!r}, expected a number of days or hours, such as 60d"
            )
        return value

    @model_validator(mode="after")
    def _settings(self) -> RefreshConfig:
        try:
            configs_of(self.model, {**self.train})
            train_config_of(self.warm)
        except SpecError as error:
            raise ValueError(error.detail) from None
        if self.publish.decide == "ab" and self.export is None:
            raise ValueError(
                'publish.decide = "ab" reads what users did from the store of the server: give '
                "[export] with the store, or decide yourself: limerank promote, limerank rollback"
            )
        return self

    @property
    def window_ms(self) -> int | None:
        """The window in milliseconds."""
        return None if self.window is None else duration(self.window)


def load_config(path: str | Path) -> RefreshConfig:
    """Read a configuration; its paths become absolute.

    Raises:
        SpecError: the file is missing, is not TOML, or a field is wrong (named in the message).
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(CONFIG_BYTES + 1)
        if len(content) > CONFIG_BYTES:
            raise SpecError(
                f"{path} has more than {CONFIG_BYTES:,} bytes, expected a configuration"
            )
        values = tomllib.loads(content.decode())
    except FileNotFoundError:
        raise SpecError(f"{path}: no such configuration of the daily loop") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    config = validate(RefreshConfig, values, str(path))
    base = path.resolve().parent
    absolute: dict[str, Any] = {
        name: base / getattr(config, name) for name in ("home", "description")
    }
    if (export := config.export) is not None:
        store = export.store if "://" in export.store else str(base / export.store)
        own = {"folder": base / export.folder, "store": store}
        absolute["export"] = export.model_copy(update=own)
    return config.model_copy(update=absolute)
