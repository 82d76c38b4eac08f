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

    # A log of views, carts and purchases, without what else was shown, has this label instead:
    # [[labels]]
    # name = "purchase"
    # kind = "positive"
    # column = "event"
    # equals = "purchase"               # or any_of = ["cart", "purchase"]; without: every event

    [[event_features]]
    name = "tab"
    kind = "categorical"
    when = "context"                    # known when the request is made

    [[event_features]]
    name = "price"
    kind = "numeric"
    when = "impression"                 # of each shown item: its price at that moment
    transform = "log1p"

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
    train = 0.8                         # or leave_last = 1: the last request of each user
    validation = 0.1                    # or column = "fold": train, validation, test
                                        # or validation = "1d", test = "1d": for logs that grow

    [history]
    length = 128

    [requests]                          # for logs without a request column; by default the log's
    gap = 1800.0                        # gaps decide
    size = 4
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from limerank.data.canonical import category
from limerank.data.formats import FORMATS
from limerank.data.labels import Label, columns_of, types_of_events, with_column
from limerank.data.protocol import History, Requests, Split
from limerank.errors import did_you_mean
from limerank.validation import Frozen


class Files(Frozen):
    """Where rows are and how they are written."""

    files: tuple[str, ...] = ()
    """Names or patterns (``*``, ``?``, ``**``) of files, relative to the dataset description. A
    folder stands for all files of a known format below it, and ``key=value`` in the name of a
    folder makes ``key`` a column. Leave it out if you pass the rows to ``prepare`` as a frame."""
    format: str | None = None
    """Format of the files: "parquet", "csv", "tsv" or "jsonl" (one JSON object per line). By
    default it follows from the ending of each file's name."""
    columns: tuple[str, ...] = ()
    """Column names of CSV and TSV files without a header line."""
    separator: str | None = Field(None, min_length=1)
    """Field separator of CSV and TSV files. The defaults are the comma and the tab; it may have
    several characters, such as ``::``."""
    quote: str | None = Field(None, max_length=1)
    """Quote character of CSV and TSV files; "" turns quoting off. The default is ``"`` for CSV
    files with the separators ``,`` and ``;``, and no quoting for other files."""
    escape: str | None = Field(None, min_length=1, max_length=1)
    """Escape character before a quote or a separator, such as a backslash. A quote inside a quoted
    field can always be written twice, which needs no escape character."""
    each: str | None = None
    """Column with a list in each row, such as the lines of an order: every element is a row of its
    own. Fields of its objects are named by dots, such as ``line_items.product_id``."""
    where: dict[str, tuple[str | float, ...]] = Field(default_factory=dict)
    """Rows to read, by values of columns, such as ``{ status = ["completed"] }``; others are left
    out. Case is ignored."""
    encoding: str = "utf-8"
    """Character encoding of CSV, TSV and JSON lines files."""
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
            raise ValueError(
                f'{name!r} is not an encoding; expected one such as "utf-8" or "latin1"'
            )
        return name

    @field_validator("separator", "quote", "escape")
    @classmethod
    def _within_a_line(cls, mark: str | None) -> str | None:
        if mark is not None and set(mark) & set("\r\n\0"):
            raise ValueError("a line break separates records and cannot be within one")
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
    """Files of events with the same columns. A row is one event, or one list of events."""

    model_config = ConfigDict(allow_inf_nan=True)  # of constants: Spec's error names the column

    user: str = "user_id"
    """Column of the user id."""
    item: str = "item_id"
    """Column of the item id."""
    time: str | None = None
    """Column of the event's time. Give either time or order."""
    order: str | None = None
    """Column that orders the events of a user, for logs without times. By default such logs are
    split by position."""
    time_unit: Literal["s", "ms", "us", "ns", "text"] = "s"
    """Unit of a numeric time column. "text" parses ISO 8601, or ``time_format`` if given. Columns
    of a timestamp type ignore it."""
    time_format: str | None = None
    """Format of times written as text, such as ``%m/%d/%Y %I:%M:%S %p``. Times are UTC unless the
    format contains ``%z``."""
    request: str | None = None
    """Column of an id that the impressions of one request share. Give it if your log has it:
    without it, impressions are grouped by ``requests.gap`` and ``requests.size``."""
    shown: bool = True
    """Whether these events are impressions to predict. If false, they only enter histories: use it
    for events whose alternatives are unknown, such as a search or a purchase elsewhere."""
    lists: bool = False
    """Whether the item column contains lists of items, oldest first. A row is then a user's history
    at its time, and only items that the user's earlier lists did not contain are added. It implies
    ``shown = false``."""
    list_split: str = " "
    """Separator of lists that are written as text."""
    constant: dict[str, float | str] = Field(default_factory=dict)
    """Values of label or feature columns that these files lack, by column name. For example ``{
    clicked = 1 }`` for a file of clicks."""

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


class Feature(Frozen):
    """A column of the item table, the user table or the events."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    """Name of the feature."""
    kind: Literal["categorical", "numeric", "text-vector"]
    """"categorical", "numeric", or "text-vector": a list of numbers, such as an embedding of a
    title. Ids and codes are categorical even if they are numbers."""
    column: str = ""
    """Column of the feature. By default it is the name."""
    split: str | None = None
    """Separator of a categorical feature with several values in one text, such as ``|``. List
    columns need none."""
    transform: Literal["none", "log1p"] = "none"
    """Transformation of a numeric feature before it is normalised. Use "log1p" for counts and
    prices, which have a long tail."""
    min_count: int = Field(1, ge=1)
    """Categorical values that occur less often are treated as unknown. Occurrences are counted in
    the training window: items for the item table, users for the user table, events for event
    features. Raise it for features with many rare values."""
    anchor: bool | None = None
    """Item table, categorical: whether each value has an anchored link, so that a model can tell
    how often and when a history had exactly this value. By default those features have them whose
    values repeat within histories, unless items have more than five values on average."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return with_column(values)

    @model_validator(mode="after")
    def _check(self) -> Feature:
        if self.split is not None and self.kind != "categorical":
            raise ValueError("split is for categorical features")
        if self.transform != "none" and self.kind != "numeric":
            raise ValueError("transform is for numeric features")
        if self.anchor is not None and self.kind != "categorical":
            raise ValueError("anchor is for categorical features")
        return self


class EventFeature(Feature):
    """A feature of an event, such as the surface or the device."""

    kind: Literal["categorical", "numeric"]
    """"categorical" or "numeric"."""
    when: Literal["outcome", "context", "impression"] = "outcome"
    """"context": known when the request is made, so the model also uses it for the impressions of
    that request (the first impression's value counts). "impression": known of each candidate when
    it is shown, such as its price or its distance; the model uses it for that candidate, and
    histories do not contain it. "outcome": known only after the impression, so only histories
    contain it. A context or impression feature that is an outcome in truth leaks the label."""
    bias: bool = False
    """Of an impression feature: whether the ranking decides it, so that none can know it, such as
    the position on the page. It explains outcomes in training, and rankings leave it out."""

    @model_validator(mode="after")
    def _single(self) -> EventFeature:
        if self.split is not None:
            raise ValueError("an event feature has one value: split is for item and user features")
        if self.transform != "none" and self.when != "impression":
            raise ValueError(
                "transform is for item, user and impression features: other numeric event features "
                "are cut into quantiles, which it cannot change"
            )
        if self.bias and self.when != "impression":
            raise ValueError(f'bias is for when = "impression"; got when = "{self.when}"')
        return self


class Table(Files):
    """Files with one row per item or per user."""

    id: str = "id"
    """Column of the item's or user's id."""
    features: tuple[Feature, ...] = ()
    """Features of the items or users. Items that training has not seen are ranked by these features
    alone."""
    candidate: str | None = None
    """Of the item table: column that is 0 or false for items that appear in histories but may not
    be ranked. Items without a value or a row are candidates."""
    display: tuple[str, ...] = ()
    """Of the item table: columns that are shown with ranked items, such as ``["title", "image"]``.
    The dataset and the index hold them as text. No model learns from them."""

    @property
    def needed(self) -> list[str]:
        """The columns that encoding reads, each once."""
        more = [self.candidate] if self.candidate is not None else []
        return list(dict.fromkeys([self.id, *(one.column for one in self.features), *more]))

    @property
    def read(self) -> list[str]:
        """The columns that are read of the files, each once."""
        return list(dict.fromkeys([*self.needed, *self.display]))


class Checks(Frozen):
    """Limits of data quality."""

    max_bad_share: float = Field(0.05, ge=0, le=1)
    """Share of bad rows above which `prepare` refuses the log. Bad rows below it are dropped and
    counted by reason."""


class Spec(Frozen):
    """A dataset description: sources of events, roles of columns, features, and the split."""

    name: str = Field(min_length=1)
    """Name of the dataset in metrics and reports."""
    events: tuple[EventSource, ...] = Field(min_length=1, max_length=255)
    """Sources of events, at least one. Several sources may have different columns."""
    labels: tuple[Label, ...] = Field(min_length=1)
    """Outcomes to predict, at least one. The first one is the main task: validation stops by it,
    and rankings order by it."""
    event_features: tuple[EventFeature, ...] = ()
    """Further columns of the events."""
    items: Table | None = None
    """The item table. Without it, the model cannot distinguish items that training has not seen."""
    users: Table | None = None
    """The user table."""
    split: Split = Split()
    """Split into training, validation and test."""
    history: History = History()
    """Histories."""
    requests: Requests = Requests()
    """Requests."""
    checks: Checks = Checks()
    """Data quality."""

    @model_validator(mode="before")
    @classmethod
    def _with_event_types(cls, values: Any) -> Any:
        """Histories contain the type of each event: a feature for each column of types."""
        if not isinstance(values, dict):
            return values
        labels, features = values.get("labels"), values.get("event_features") or ()
        if not isinstance(labels, (list, tuple)) or not isinstance(features, (list, tuple)):
            return values
        added = types_of_events(labels, features)
        return {**values, "event_features": [*features, *added]} if added else values

    @model_validator(mode="after")
    def _check(self) -> Spec:
        labels = [label.name for label in self.labels]
        _unique("label and event feature", labels + [one.name for one in self.event_features])
        for table in (self.items, self.users):
            if table is not None:
                _unique("feature", [feature.name for feature in table.features])
        if self.users is not None and self.users.candidate is not None:
            raise ValueError("candidate is a column of the item table, not of the user table")
        if self.users is not None and self.users.display:
            raise ValueError("display is for columns of the item table, not of the user table")
        of_others = (*self.event_features, *(self.users.features if self.users else ()))
        for feature in of_others:
            if feature.anchor is not None:
                raise ValueError(
                    f"anchor is for features of the item table; {feature.name} is not one of them"
                )
        if len({source.time is None for source in self.events}) > 1:
            raise ValueError("either every source of events has a time column, or all have order")
        if not any(source.shown for source in self.events):
            raise ValueError("at least one source of events must have shown = true")
        if not self.clock and self.split.validation_from is not None:
            raise ValueError("cut points need a time column")
        if not self.clock and self.split.test is not None:
            raise ValueError("durations of splits need a time column; give shares")
        if not self.clock and self.split.by == "time":
            raise ValueError(
                'a log that has only an order cannot be split by = "time": leave by out, or set '
                'by = "position"'
            )
        for position, source in enumerate(self.events):
            for column, value in source.constant.items():
                wrong = self._wrong_constant(source, column, value)
                if wrong:
                    raise ValueError(f"events.{position}.constant.{column}: {wrong}")
            absent = [
                label.column
                for label in self.labels
                if source.lists
                and label.kind != "duration"
                and label.column
                and label.column not in source.constant
            ]
            if absent:
                raise ValueError(
                    f"lists hold no labels: give those of each event of {source.shown_name}, such "
                    f"as constant = {{ {absent[0]} = 1 }}"
                )
        names = [label.name for label in self.labels if label.kind != "duration"]
        if self.history.keep is not None and self.history.keep not in names:
            raise ValueError(
                f"history.keep is {self.history.keep!r}, expected one of the binary and positive "
                f"labels {names}{did_you_mean(self.history.keep, names)}"
            )
        self._check_requests()
        self._check_null_values()
        return self

    def _check_requests(self) -> None:
        """Refuse a ``requests.by`` that does not fit the log."""
        by, ids = self.requests.by, any(source.request for source in self.events)
        if by is not None and self.requests_by is None:
            raise ValueError(
                "requests.by is for logs whose labels are all positive; impressions of binary and "
                "duration labels share a request by requests.gap, requests.size or a request column"
            )
        if by == "event" and ids:
            raise ValueError(
                'requests.by = "event" does not go with request, the column of sessions; leave one '
                "of them out"
            )
        if by == "session" and not self.clock and not ids:
            raise ValueError(
                'requests.by = "session" needs times, whose gaps separate sessions, or a column '
                'of session ids: request = "NAME" in [[events]]'
            )
        if by == "session" and self.requests.size is not None:
            raise ValueError('requests.size goes with by = "event"; a session is one request')

    def _check_null_values(self) -> None:
        """Refuse ``null_values`` of columns that are not read."""
        events = self._columns
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

    @property
    def _columns(self) -> set[str]:
        """The columns of labels, event features and splits."""
        names = {column for column, _ in columns_of(self.labels)}
        names |= {feature.column for feature in self.event_features}
        return names | ({self.split.column} if self.split.column is not None else set())

    def _wrong_constant(self, source: EventSource, column: str, value: float | str) -> str:
        """What is wrong with a value of ``constant``; empty: nothing."""
        labels = [label for label in self.labels if column in (label.column, label.of)]
        features = [feature for feature in self.event_features if feature.column == column]
        if not labels and not features and column != self.split.column:
            known = self._columns
            return (
                f"no label or event feature has this column; they have {', '.join(sorted(known))}"
                f"{did_you_mean(column, known)}"
            )
        if column == self.split.column and category(value) not in self.split.spellings:
            return (
                f"expected one of {', '.join(self.split.spellings)}; got {value!r}"
                f"{did_you_mean(str(value), self.split.spellings)}"
            )
        if column in (source.user, source.item, source.time, source.order, source.request):
            return "this column of the source is read from its files"
        if not isinstance(value, float):
            what = [label.name for label in labels if not label.typed]
            what += [feature.name for feature in features if feature.kind == "numeric"]
            return f"expected a number for {', '.join(what)}; got {value!r}" if what else ""
        for label in labels:
            if label.typed:
                continue
            if not math.isfinite(value):
                return f"expected a finite number for label {label.name}; got {value}"
            if label.kind == "duration" and value < 0:
                return f"expected a duration of 0 or more for label {label.name}; got {value:g}"
            if label.kind == "binary" and label.at_least is None and value not in (0, 1):
                return f"expected 0 or 1 for label {label.name}; got {value:g}"
        return ""

    @property
    def split_rule(self) -> Literal["time", "position", "leave_last", "column"]:
        """By what impressions are assigned to splits."""
        if self.split.column is not None:
            return "column"
        if self.split.leave_last is not None:
            return "leave_last"
        return self.split.by or ("time" if self.clock else "position")

    @property
    def requests_by(self) -> Literal["event", "session"] | None:
        """What a request is, in a log whose labels are all positive: one event, or a session.
        None: requests are groups of impressions."""
        if any(label.kind != "positive" for label in self.labels):
            return None
        if self.requests.by is not None:
            return self.requests.by
        return "session" if any(source.request for source in self.events) else "event"

    def has_split(self, source: EventSource) -> bool:
        """Whether the events of a source have a split of their own, by the split's column."""
        column = self.split.column
        return column is not None and (source.shown or column in source.constant)

    def features_of(self, source: EventSource) -> tuple[EventFeature, ...]:
        """The event features that a source has: those of impressions only where it has some."""
        return tuple(f for f in self.event_features if source.shown or f.when != "impression")

    @property
    def clock(self) -> bool:
        """Whether events have a time, not only an order."""
        return self.events[0].time is not None


def _unique(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"each {what} needs a name of its own; got twice: {', '.join(twice)}")
