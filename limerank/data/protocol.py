"""The protocol of a dataset: splits, histories, and which impressions share a history."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from limerank.data.canonical import category, duration
from limerank.validation import Frozen

SPLIT_NAMES = ("train", "validation", "test")
"""The splits that a description can assign impressions to."""
OTHER_RULES = {
    "column": "name the column instead: column = 'NAME', without by",
    "last": "leave_last = 1 makes the last request of each user the test, without by",
    "leave_last": "leave_last = 1 makes the last request of each user the test, without by",
    "leave-last": "leave_last = 1 makes the last request of each user the test, without by",
    "leave-one-out": "leave_last = 1 makes the last request of each user the test, without by",
    "random": "a random split trains on events that follow those of the test; if you need one, "
    "write it as a column of the log and name that: column = 'NAME'",
    "user": "held_out_users excludes a share of the users from training",
}
"""Values of ``by`` that users may expect, and what to write instead."""


class Split(Frozen):
    """Which events are for training, validation and test. Choose one rule: `by`, with shares,
    durations or cut points; `leave_last`; or `column`."""

    by: Literal["time", "position"] | None = None
    """"time": the same cut points for all users, as in production. "position": shares of each
    user's own requests. The default is "time", and "position" for logs that have only an order."""
    train: float = Field(0.8, gt=0, lt=1)
    """Share of the impressions (by position: of each user's requests) in the training split."""
    validation: float | str = 0.1
    """Share in the validation split, likewise; the rest is the test split. Or a duration such as
    "1d" or "6h", the time before the test split; it requires a duration in test, and replaces the
    shares."""
    test: str | None = None
    """Duration of the test split, such as "1d" or "6h", up to the newest impression. For logs that
    grow: every day the newest part is the test, the part before it validation, and all earlier
    impressions are training."""
    validation_from: str | None = None
    """Start of the validation split as ISO 8601 text, in UTC unless it contains an offset. It
    replaces the shares and requires test_from."""
    test_from: str | None = None
    """Start of the test split, likewise."""
    leave_last: int | None = Field(None, ge=1)
    """Number of requests of each user, the last ones, in the test split; as many before them are
    the validation split. Users with too few requests for both and one more are training only. Use 1
    to compare with published leave-one-out results."""
    column: str | None = None
    """Column of the events with the split of each impression: "train", "validation" or "test"."""
    values: dict[str, Literal["train", "validation", "test"]] = Field(default_factory=dict)
    """Other spellings in that column, such as ``{ dev = "validation" }``."""
    held_out_users: float = Field(0, ge=0, lt=1)
    """Share of users to exclude from training. All their requests form the split "held-out", which
    measures ranking for new users."""
    held_out_items: float = Field(0, ge=0, lt=1)
    """Share of items, the last ones to appear, to exclude from training and validation. Before the
    test split their events enter histories only, as unknown items. Use it to measure ranking of new
    items."""

    @field_validator("by", mode="before")
    @classmethod
    def _other_rules(cls, by: Any) -> Any:
        if isinstance(by, str) and by in OTHER_RULES:
            raise ValueError(f"expected 'time' or 'position'; got {by!r}: {OTHER_RULES[by]}")
        return by

    @field_validator("validation")
    @classmethod
    def _share_or_duration(cls, value: float | str) -> float | str:
        if isinstance(value, str):
            return _checked_duration(value)
        if not 0 < value < 1:
            raise ValueError(f"got {value:g}, expected a share between 0 and 1, or a duration")
        return value

    @field_validator("test", mode="before")
    @classmethod
    def _no_share(cls, value: Any) -> Any:
        if value is None:
            return value
        if not isinstance(value, str):
            raise ValueError(
                f'got {value!r}, expected a duration such as "1d"; as a share, the test split is '
                "what train and validation leave"
            )
        return _checked_duration(value)

    @model_validator(mode="after")
    def _check(self) -> Split:
        self._check_durations()
        if isinstance(self.validation, float) and self.train + self.validation >= 1.0 - 1e-9:
            raise ValueError("train + validation must leave something for the test split")
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("validation_from and test_from go together")
        if self.validation_from is not None and self.by == "position":
            raise ValueError('validation_from goes with by = "time"')
        if self.cuts is not None and self.cuts[0] > self.cuts[1]:
            raise ValueError("validation_from is later than test_from")
        self._check_rule()
        return self

    def _check_durations(self) -> None:
        """Refuse a duration without the other, or beside another rule."""
        if isinstance(self.validation, str) != (self.test is not None):
            raise ValueError(
                'validation and test are durations together, such as validation = "1d" and test = '
                '"1d"; as shares, the test split is what train and validation leave'
            )
        if self.test is None:
            return
        if self.train != type(self).model_fields["train"].default:
            raise ValueError("train is a share: with durations, all that is earlier is training")
        if self.by == "position":
            raise ValueError('durations go with by = "time"')
        if self.validation_from is not None:
            raise ValueError("give durations, or validation_from and test_from")

    def _check_rule(self) -> None:
        """Refuse two rules at once."""
        rules = [name for name in ("leave_last", "column") if getattr(self, name) is not None]
        fields = type(self).model_fields
        others = [
            name
            for name in ("by", "train", "validation", "validation_from")
            if getattr(self, name) != fields[name].default
        ]
        if rules and len(rules + others) > 1:
            raise ValueError(
                f"{' and '.join(rules + others)} are rules of different splits; keep one of them"
            )
        if self.values and self.column is None:
            raise ValueError("values are spellings in the column of the splits: name it in column")

    @property
    def cuts(self) -> tuple[int, int] | None:
        """The cut points in milliseconds since 1970, where they are given."""
        if self.validation_from is None or self.test_from is None:
            return None
        return _milliseconds(self.validation_from), _milliseconds(self.test_from)

    @property
    def durations(self) -> tuple[int, int] | None:
        """The lengths of the validation and the test split in milliseconds, where they are
        durations."""
        if self.test is None or isinstance(self.validation, float):
            return None
        return duration(self.validation) or 0, duration(self.test) or 0

    @property
    def shares(self) -> tuple[float, float]:
        """The shares at which the validation and the test split begin, where they are shares."""
        assert isinstance(self.validation, float)
        return self.train, self.train + self.validation

    @property
    def spellings(self) -> dict[str, int]:
        """The values of ``column``: text -> index in ``SPLIT_NAMES``."""
        plain = {name: number for number, name in enumerate(SPLIT_NAMES)}
        return plain | {category(text) or text: plain[n] for text, n in self.values.items()}


class History(Frozen):
    """Which events of a user's past the model sees."""

    length: int = Field(128, ge=1, le=1 << 20)
    """Number of latest events. Training time and memory grow with it linearly; longer histories
    help users with many events."""
    keep: str | None = None
    """Name of a binary label: only events with this label enter histories. Use it if the log has
    far more impressions than actions."""


class Requests(Frozen):
    """Which impressions share one history, if the source has no request column. By default the
    log's gaps decide; the summary of `prepare` shows what was chosen."""

    by: Literal["event", "session"] | None = None
    """For logs whose labels are all positive: what is predicted. "event": the next positive after
    all events before it, such as the purchase that follows a view; events that are no positives
    only enter histories. "session": the positives of a session after the sessions before it, such
    as the purchases of the next visit; a session is a value of the request column, or ends at a
    `gap`. The default is "session" if there is a request column, else "event"."""
    gap: float | None = Field(None, gt=0)
    """Seconds without an impression after which a new request starts. The default is chosen by the
    log, and is 1800 if `size` is given. Logs without times ignore it."""
    size: int | None = Field(None, ge=1)
    """Largest number of impressions in a request; longer ones are divided. The model does not see
    events of the same request, so small requests have more recent histories and more of them to
    encode. By default impressions that were shown at once are one request, and others share one
    only in large logs."""


def _checked_duration(text: str) -> str:
    if duration(text) is None:
        raise ValueError(f'got {text!r:.40}, expected days or hours, such as "1d" or "6h"')
    return text


def _milliseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
