"""The protocol of a dataset: splits, histories, and which impressions share a history."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, model_validator

from limerank.validation import Frozen


class Split(Frozen):
    """Which events are for training, validation and test."""

    by: Literal["time", "position"] = "time"
    """"time": the same cut points for all users, as in production; "position": shares of each
    user's own events, for logs without times."""
    train: float = Field(0.8, gt=0, lt=1)
    """Share of the impressions in the training split."""
    validation: float = Field(0.1, gt=0, lt=1)
    """Share of the impressions in the validation split. The rest is the test split."""
    validation_from: str | None = None
    """Start of the validation split as ISO 8601 text, in UTC unless it contains an offset. It
    replaces the shares and requires test_from."""
    test_from: str | None = None
    """Start of the test split, likewise."""
    held_out_users: float = Field(0, ge=0, lt=1)
    """Share of users to exclude from training. All their requests form the split "held-out", which
    measures ranking for new users."""
    held_out_items: float = Field(0, ge=0, lt=1)
    """Share of items, the last ones to appear, to exclude from training and validation. Before the
    test split their events enter histories only, as unknown items. Use it to measure ranking of new
    items."""

    @model_validator(mode="after")
    def _check(self) -> Split:
        if self.train + self.validation >= 1.0 - 1e-9:
            raise ValueError("train + validation must leave something for the test split")
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("validation_from and test_from go together")
        if self.validation_from is not None and self.by != "time":
            raise ValueError('validation_from goes with by = "time"')
        if self.cuts is not None and self.cuts[0] > self.cuts[1]:
            raise ValueError("validation_from is later than test_from")
        return self

    @property
    def cuts(self) -> tuple[int, int] | None:
        """The cut points in milliseconds since 1970, where they are given."""
        if self.validation_from is None or self.test_from is None:
            return None
        return _milliseconds(self.validation_from), _milliseconds(self.test_from)


class History(Frozen):
    """Which events of a user's past the model sees."""

    length: int = Field(128, ge=1, le=1 << 20)
    """Number of latest events. Training time and memory grow with it linearly; longer histories
    help users with many events."""
    keep: str | None = None
    """Name of a binary label: only events with this label enter histories. Use it if the log has
    far more impressions than actions."""


class Requests(Frozen):
    """Which impressions share one history, if the source has no request column."""

    gap: float = Field(1800.0, gt=0)
    """Seconds without an impression after which a new request starts. Logs without times ignore
    it."""
    size: int = Field(16, ge=1)
    """Largest number of impressions in a request; longer ones are divided. The model does not see
    events of the same request, so small requests have more recent histories and more of them to
    encode."""


def _milliseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
