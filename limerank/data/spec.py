"""What a log is: files, columns and their roles, split points, histories and requests.

A dataset is described by one TOML file, read here into a frozen, validated :class:`Spec`::

    name = "shop"

    [[events]]                          # one source of events, or several
    files = ["logs/*.parquet"]          # relative to the TOML file; Parquet, CSV, TSV, JSON lines
    user = "user_id"
    item = "item_id"
    time = "timestamp"                  # or: order = "position" where there is no clock
    time_unit = "ms"
    request = "request_id"              # optional: impressions that were shown together

    [[labels]]                          # the first one is the main task
    name = "click"
    kind = "binary"
    column = "is_click"

    [[labels]]
    name = "watch"
    kind = "duration"
    column = "play_time_ms"
    scale = 0.001                       # to seconds

    [[event_features]]
    name = "tab"
    kind = "categorical"
    when = "context"                    # known when the request is made

    [items]
    files = ["items.csv"]
    id = "item_id"
    features = [
        { name = "genres", kind = "categorical", split = "|" },
        { name = "price", kind = "numeric", transform = "log1p" },
        { name = "title_vector", kind = "text-vector" },
    ]

    [users]
    files = ["users.csv"]
    id = "user_id"
    features = [{ name = "country", kind = "categorical" }]

    [split]
    by = "time"                         # or "position": within each user
    train = 0.8
    validation = 0.1

    [history]
    length = 128

    [requests]                          # for logs without a request column
    gap = 1800.0
    size = 16
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from limerank.data.formats import FORMATS
from limerank.errors import did_you_mean
from limerank.validation import Frozen


class Files(Frozen):
    """Where rows are and how they are written."""

    files: tuple[str, ...] = ()
    """Names or patterns (``*``, ``?``, ``**``), relative to the dataset description. A folder
    stands for all files of a known format below it, and ``key=value`` in the name of a folder makes
    ``key`` a column. Left out where the rows are passed to ``prepare`` as a frame."""
    format: str | None = None
    """Of the files: "parquet", "csv", "tsv" or "jsonl" (one JSON object per line). Not given: the
    ending of each file's name tells it."""
    columns: tuple[str, ...] = ()
    """Names of the columns of CSV and TSV files that have no header line."""
    separator: str | None = Field(None, min_length=1)
    """Between the fields of a line, where it is neither the comma of CSV nor the tab of TSV; more
    than one character is possible, such as ``::``."""
    quote: str | None = Field(None, max_length=1)
    """What fields of CSV and TSV files may be quoted with; empty: nothing. Not given: ``"`` for CSV
    with the separators ``,`` and ``;``, nothing for others."""
    escape: str | None = Field(None, min_length=1, max_length=1)
    """What takes the meaning from a quote or a separator behind it, such as a backslash. (A quote
    within a quoted field may always be written twice.)"""
    encoding: str = "utf-8"
    """Of CSV, TSV and JSON lines files."""
    null_values: tuple[str, ...] | dict[str, tuple[str, ...]] = ()
    """Spellings of missing values, such as ``["NULL", "N/A"]``, in all columns that are read; or by
    column, such as ``{ user_id = ["0", "-1"] }``. Numbers are compared as numbers."""

    @property
    def shown_name(self) -> str:
        """What messages call the rows."""
        return self.files[0] if self.files else "the frame"

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str | None) -> str | None:
        if name is not None and name not in FORMATS:
            raise ValueError(
                f"{name!r} is not a known format; expected one of {', '.join(FORMATS)}"
                f"{did_you_mean(name, FORMATS)}"
            )
        return name

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            text = codecs.lookup(name)._is_text_encoding
        except LookupError:
            text = False
        if not text:
            raise ValueError(f'{name!r} is no encoding; expected such as "utf-8" or "latin1"')
        return name

    @field_validator("separator", "quote", "escape")
    @classmethod
    def _within_a_line(cls, mark: str | None) -> str | None:
        if mark is not None and set(mark) & set("\r\n\0"):
            raise ValueError("line breaks stand between records, not within them")
        return mark

    @model_validator(mode="after")
    def _check_marks(self) -> Files:
        for name in ("quote", "escape"):
            mark = getattr(self, name)
            if mark and not mark.isascii():
                raise ValueError(f"{name} is {mark!r}, expected an ASCII character")
            if mark and self.separator is not None and mark in self.separator:
                raise ValueError(f"{name} and separator are both {mark!r}")
        if self.quote and self.quote == self.escape:
            raise ValueError(
                "a quote within a quoted field may always be written twice: leave escape out"
            )
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise ValueError(f"columns names {twice[0]!r} twice; each needs a name of its own")
        return self


class EventSource(Files):
    """Files of events that share their columns. One row is one event (or one list of them)."""

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    order: str | None = None
    """A column that only orders the events of a user, for logs without a clock."""
    time_unit: Literal["s", "ms", "us", "ns", "text"] = "s"
    """Unit of a numeric time column; "text" parses ISO 8601 or ``time_format``. Native timestamps
    need none."""
    time_format: str | None = None
    """How times are written, such as ``%m/%d/%Y %I:%M:%S %p``; UTC unless it holds ``%z``."""
    request: str | None = None
    shown: bool = True
    """False: these events enter histories but are never candidates to score."""
    lists: bool = False
    """The item column holds lists, oldest first: each row is a history as of its time. Only what
    a user's earlier lists did not hold already is added. Implies ``shown = false``."""
    list_split: str = " "
    """Separator of a list that is written as text."""
    constant: dict[str, float | str] = Field(default_factory=dict)
    """Values of label or feature columns that these files do not have, by the column's name."""

    @model_validator(mode="before")
    @classmethod
    def _hide_lists(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("lists"):
            values = {"shown": False, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> EventSource:
        if (self.time is None) == (self.order is None):
            raise ValueError("give either time or order, the column that orders the events")
        if self.lists and self.shown:
            raise ValueError("a source of lists cannot be scored: set shown = false")
        if self.time_format is not None and self.time_unit != "text":
            raise ValueError('time_format goes with time_unit = "text"')
        return self


class Label(Frozen):
    """What the model predicts of an impression; also part of what a history knows."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    kind: Literal["binary", "duration"]
    column: str = ""
    """Defaults to the name."""
    at_least: float | None = None
    """For binary labels: 1 where the column is at least this, such as rating >= 4."""
    scale: float = Field(1.0, gt=0)
    """For durations: seconds per unit of the column."""
    cap: float | None = Field(None, gt=0)
    """For durations: longer ones are cut to this many seconds."""
    of: str | None = None
    """For durations: the column with the item's whole length, in the same unit."""

    @model_validator(mode="before")
    @classmethod
    def _column(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("column"):
            values = {**values, "column": values.get("name", "")}
        return values

    @model_validator(mode="after")
    def _check(self) -> Label:
        if self.kind == "duration" and self.at_least is not None:
            raise ValueError("at_least is for binary labels")
        if self.kind == "binary" and (self.of is not None or self.cap is not None):
            raise ValueError("of and cap are for duration labels")
        return self


class Feature(Frozen):
    """A column of the item table, the user table or the events."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    kind: Literal["categorical", "numeric", "text-vector"]
    column: str = ""
    """Defaults to the name."""
    split: str | None = None
    """Categorical and multi-valued: the separator within the text. (List columns need none.)"""
    transform: Literal["none", "log1p"] = "none"
    """For numeric columns of tables, before they are normalised."""
    min_count: int = Field(1, ge=1)
    """Categorical values that are counted less often than this are unknown. What is counted: of
    the item table, the items of the training window; of the user table, its users; of the events,
    the training events themselves."""

    @model_validator(mode="before")
    @classmethod
    def _column(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("column"):
            values = {**values, "column": values.get("name", "")}
        return values

    @model_validator(mode="after")
    def _check(self) -> Feature:
        if self.split is not None and self.kind != "categorical":
            raise ValueError("split is for categorical features")
        if self.transform != "none" and self.kind != "numeric":
            raise ValueError("transform is for numeric features")
        return self


class EventFeature(Feature):
    """A feature of one event: part of what a history knows of it."""

    kind: Literal["categorical", "numeric"]
    when: Literal["outcome", "context"] = "outcome"
    """"context": known when the request is made, so the model may use it for the impression
    itself (of a request, its first impression's value counts). "outcome": known only afterwards,
    so only histories hold it."""

    @model_validator(mode="after")
    def _single(self) -> EventFeature:
        if self.split is not None:
            raise ValueError("an event feature has one value: split is for item and user features")
        if self.transform != "none":
            raise ValueError(
                "transform is for item and user features: numeric event features are cut into "
                "quantiles, which it cannot change"
            )
        return self


class Table(Files):
    """Files with one row per item or per user."""

    id: str = "id"
    features: tuple[Feature, ...] = ()
    candidate: str | None = None
    """Of the item table: a column that is 0 or false for items that only histories hold and no
    ranking may offer. Items without a value, or without a row, are candidates."""

    @property
    def read(self) -> list[str]:
        """The columns that are read of the files, each once."""
        more = [self.candidate] if self.candidate is not None else []
        return list(dict.fromkeys([self.id, *(one.column for one in self.features), *more]))


class Split(Frozen):
    """Where training ends and testing begins."""

    by: Literal["time", "position"] = "time"
    """"time": cut points for everybody; "position": shares of each user's own events."""
    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    validation_from: str | None = None
    test_from: str | None = None
    """Cut points as ISO 8601 text (UTC unless it says otherwise); they win over the shares."""
    held_out_users: float = Field(0, ge=0, lt=1)
    """Share of users that training never sees: all their requests form the split "held-out"."""
    held_out_items: float = Field(0, ge=0, lt=1)
    """Share of items, the last ones to appear, that are neither trained nor validated on: before
    the test split their events enter histories only, as items that nobody knows."""

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
    """What of a user's past a model sees."""

    length: int = Field(128, ge=1, le=1 << 20)
    """The latest so many events."""
    keep: str | None = None
    """The name of a binary label: only events that have it enter histories."""


class Requests(Frozen):
    """Which impressions share one history. A request column of the source wins over the gap."""

    gap: float = Field(1800.0, gt=0)
    """Seconds between two impressions that still belong together (ignored without a clock)."""
    size: int = Field(16, ge=1)
    """At most so many impressions; longer ones are cut, where no request column is given."""


class Checks(Frozen):
    """How much dirt is too much."""

    max_bad_share: float = Field(0.05, ge=0, le=1)
    """Share of rows dropped as bad beyond which `prepare` refuses the log."""


class Spec(Frozen):
    """One dataset: sources, roles, split. See the module's text for the TOML form."""

    name: str = Field(min_length=1)
    events: tuple[EventSource, ...] = Field(min_length=1, max_length=255)
    labels: tuple[Label, ...] = Field(min_length=1)
    event_features: tuple[EventFeature, ...] = ()
    items: Table | None = None
    users: Table | None = None
    split: Split = Split()
    history: History = History()
    requests: Requests = Requests()
    checks: Checks = Checks()

    @model_validator(mode="after")
    def _check(self) -> Spec:
        labels = [label.name for label in self.labels]
        _unique("label and event feature", labels + [one.name for one in self.event_features])
        for table in (self.items, self.users):
            if table is not None:
                _unique("feature", [feature.name for feature in table.features])
        if self.users is not None and self.users.candidate is not None:
            raise ValueError("candidate is a column of the item table, not of the user table")
        if len({source.time is None for source in self.events}) > 1:
            raise ValueError("either every source of events has a time column, or all have order")
        if not any(source.shown for source in self.events):
            raise ValueError("at least one source of events must have shown = true")
        if not self.clock and self.split.validation_from is not None:
            raise ValueError("cut points need a time column")
        if not self.clock and self.split.by == "time":
            raise ValueError('a log that has only an order is split by = "position"')
        for position, source in enumerate(self.events):
            for column, value in source.constant.items():
                wrong = self._wrong_constant(source, column, value)
                if wrong:
                    raise ValueError(f"events.{position}.constant.{column}: {wrong}")
            absent = [
                label.column
                for label in self.labels
                if source.lists and label.kind == "binary" and label.column not in source.constant
            ]
            if absent:
                raise ValueError(
                    f"lists hold no labels: give those of each event of {source.shown_name}, such "
                    f"as constant = {{ {absent[0]} = 1 }}"
                )
        binary = [label.name for label in self.labels if label.kind == "binary"]
        if self.history.keep is not None and self.history.keep not in binary:
            raise ValueError(
                f"history.keep is {self.history.keep!r}, expected one of the binary labels {binary}"
                f"{did_you_mean(self.history.keep, binary)}"
            )
        self._check_null_values()
        return self

    def _check_null_values(self) -> None:
        """Refuse ``null_values`` of columns that are not read."""
        events = {name for label in self.labels for name in (label.column, label.of) if name}
        events |= {feature.column for feature in self.event_features}
        read: list[tuple[str, Files, set[str]]] = []
        for position, source in enumerate(self.events):
            own = (source.user, source.item, source.time, source.order, source.request)
            read.append((f"events.{position}", source, events | {name for name in own if name}))
        for where, table in (("items", self.items), ("users", self.users)):
            if table is not None:
                read.append((where, table, set(table.read)))
        for where, files, known in read:
            given = files.null_values if isinstance(files.null_values, dict) else {}
            for column in given:
                if column not in known:
                    raise ValueError(
                        f"{where}.null_values.{column}: this column is not read; read are "
                        f"{', '.join(sorted(known))}{did_you_mean(column, known)}"
                    )

    def _wrong_constant(self, source: EventSource, column: str, value: float | str) -> str:
        """What is wrong with a value of ``constant``; empty: nothing."""
        labels = [label for label in self.labels if column in (label.column, label.of)]
        features = [feature for feature in self.event_features if feature.column == column]
        if not labels and not features:
            known = {name for label in self.labels for name in (label.column, label.of) if name}
            known |= {feature.column for feature in self.event_features}
            return (
                f"no label or event feature has this column; they have {', '.join(sorted(known))}"
                f"{did_you_mean(column, known)}"
            )
        if column in (source.user, source.item, source.time, source.order, source.request):
            return "this column of the source is read from its files"
        if not isinstance(value, float):
            what = [label.name for label in labels]
            what += [feature.name for feature in features if feature.kind == "numeric"]
            return f"expected a number for {', '.join(what)}; got {value!r}" if what else ""
        for label in labels:
            if not math.isfinite(value):
                return f"expected a finite number for label {label.name}; got {value}"
            if label.kind == "duration" and value < 0:
                return f"expected a duration of 0 or more for label {label.name}; got {value:g}"
            if label.kind == "binary" and label.at_least is None and value not in (0, 1):
                return f"expected 0 or 1 for label {label.name}; got {value:g}"
        return ""

    @property
    def clock(self) -> bool:
        """Whether events have a time, not only an order."""
        return self.events[0].time is not None


def _milliseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def _unique(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"each {what} needs a name of its own; got twice: {', '.join(twice)}")
