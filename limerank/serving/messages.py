"""Request bodies: checked messages, whose schemas are the API's description."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from limerank.data.canonical import INT64, external_id, milliseconds
from limerank.data.events import RANKING
from limerank.data.exposures import ARM, MOST_ARMS, MOST_SHOWN
from limerank.errors import DataError
from limerank.ranking.rules import Rules

MOST_CANDIDATES = 100_000
MOST_EVENTS = 10_000
MOST_ITEMS = 1_000
MOST_RANKED = 10_000
MOST_EXPLAINED = 50
MOST_NAMES = 1_000
"""Names in one object (tasks, features, columns), at most."""
MOST_LISTED = 10_000
"""Values in one list of an item's column, at most."""
MOST_ID = 256
"""Characters of an id, a name or any value except an item's text, at most."""
MOST_TEXT = 65_536
"""Characters of a text in an item's column, at most."""


def _scalar(value: Any, most: int) -> Any:
    """A value that can be stored, read and returned."""
    if type(value) is int:
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError("the integer has more than 64 bits; send it as text")
    elif type(value) is float:
        if not math.isfinite(value):
            raise ValueError("the number is not finite; send null, or a number below 1.8e308")
    elif type(value) is str:
        if len(value) > most:
            raise ValueError(f"the text has {len(value):,} characters, expected at most {most:,}")
    elif value is not None and type(value) is not bool:
        kind = "an object" if isinstance(value, dict) else "a list"
        raise ValueError(f"expected text, a number, true, false or null, got {kind}")
    return value


def _id(value: Any) -> int | str:
    if type(value) is int and value in INT64:  # as most are: no more calls for each of a long list
        return value
    if isinstance(value, str) and len(value) > 4 * MOST_ID:  # before blanks are stripped
        raise ValueError(f"the id has {len(value):,} characters, expected at most {MOST_ID}")
    try:
        return external_id("given", value)
    except DataError as error:
        raise ValueError(str(error)) from None


def _time(value: Any) -> int:
    try:
        return milliseconds(value if not isinstance(value, str) else value[:64])
    except DataError as error:
        raise ValueError(str(error)) from None


def _value(value: Any) -> Any:
    return _scalar(value, MOST_ID)


def _column(value: Any) -> Any:
    if not isinstance(value, list):
        return _scalar(value, MOST_TEXT)
    if len(value) > MOST_LISTED:
        raise ValueError(f"the list has {len(value):,} values, expected at most {MOST_LISTED:,}")
    return [_scalar(one, MOST_TEXT) for one in value]


def _candidate(value: Any) -> Any:
    if type(value) is int and value in INT64:
        return value
    if not isinstance(value, dict):
        return _id(value)
    if len(value) > MOST_NAMES:
        raise ValueError(f"the object has {len(value):,} names, expected at most {MOST_NAMES:,}")
    if value.get("item") is None:
        raise ValueError("expected an id, or an object with an item and values of its features")
    for name in value:
        if len(name) > MOST_ID:
            raise ValueError(f"a name has {len(name):,} characters, expected at most {MOST_ID}")
    return {
        name: _id(one) if name == "item" else _scalar(one, MOST_ID) for name, one in value.items()
    }


def _integers(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """A list of ids. Most are of integers alone: checked together, in a fifth of the time."""
    if (
        type(given) is list
        and 0 < len(given) <= MOST_CANDIDATES
        and set(map(type, given)) == {int}
        and min(given) in INT64
        and max(given) in INT64
    ):
        return given
    return check(given)


def _shown(most: int) -> list[dict[str, Any]]:
    """Schemas of single values."""
    text = {"type": "string", "maxLength": most}
    kinds = ("integer", "number", text, "boolean", "null")
    return [{"type": one} if isinstance(one, str) else one for one in kinds]


_IDS = [{"type": "integer"}, {"type": "string", "minLength": 1, "maxLength": MOST_ID}]
One = TypeVar("One")
Listed = Annotated[list[One], Field(fail_fast=True)]
"""A list that is refused at its first wrong element; later ones are not checked."""
Named = Annotated[
    dict[Annotated[str, Field(max_length=MOST_ID)], One], Field(max_length=MOST_NAMES)
]
Text = Annotated[str, Field(max_length=MOST_ID)]
Id = Annotated[
    int | str,
    PlainValidator(_id),
    WithJsonSchema({"anyOf": _IDS}),
]
"""An external id, an integer or text, in any spelling."""
Time = Annotated[
    int,
    PlainValidator(_time),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": -(1 << 53), "exclusiveMaximum": 1 << 53},
                {"type": "string", "format": "date-time", "maxLength": 64},
            ]
        }
    ),
]
"""Milliseconds since 1970, or ISO 8601 text; an order where the log has no clock."""
Number = Annotated[float, Field(allow_inf_nan=False)]
Position = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Ranking = Annotated[str, Field(pattern=f"^{RANKING.pattern}$")]
ArmName = Annotated[str, Field(pattern=f"^{ARM.pattern}$")]
Value = Annotated[Any, PlainValidator(_value), WithJsonSchema({"anyOf": _shown(MOST_ID)})]
Column = Annotated[
    Any,
    PlainValidator(_column),
    WithJsonSchema(
        {
            "anyOf": [
                *_shown(MOST_TEXT),
                {"type": "array", "items": {"anyOf": _shown(MOST_TEXT)}, "maxItems": MOST_LISTED},
            ]
        }
    ),
]
"""The content of an item's column: one value, or a list of values."""


Candidate = Annotated[
    Any,
    PlainValidator(_candidate),
    WithJsonSchema(
        {
            "anyOf": [
                *_IDS,
                {
                    "type": "object",
                    "properties": {"item": {"anyOf": _IDS}},
                    "required": ["item"],
                    "additionalProperties": {"anyOf": _shown(MOST_ID)},
                    "maxProperties": MOST_NAMES,
                },
            ]
        }
    ),
]
"""An id, or an object of an ``item`` and values of its impression features."""
Candidates = Annotated[
    list[One], Field(fail_fast=True, max_length=MOST_CANDIDATES), WrapValidator(_integers)
]


class Message(BaseModel):
    """Base of all bodies. An unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HistoryEvent(Message):
    """One event of a history in the request."""

    item: Id
    time: Time | None = Field(
        None, description="Milliseconds since 1970. Either all events have a time or none has."
    )
    labels: Named[Number] | None = Field(
        None, description="Task to 0 or 1, or to seconds. Without labels, the outcome is unknown."
    )
    ratios: Named[Number] | None = Field(
        None, description="Duration task to the share of the item's length."
    )
    features: Named[Value] | None = Field(None, description="Event feature to its value.")


class UserRequest(Message):
    """The user of a request, by id or by a history, and its time and context."""

    user: Id | None = Field(None, description="External id. An unknown user has an empty history.")
    history: Annotated[Listed[HistoryEvent], Field(max_length=MOST_EVENTS)] | None = Field(
        None, description="Events of an anonymous user, oldest first; instead of a user id."
    )
    task_weights: Named[Number] | None = Field(
        None,
        description="Task to its weight in the ranking value; if not given, the first task alone.",
    )
    context: Named[Value] | None = Field(None, description="Context feature to its value.")
    arm: ArmName | None = Field(
        None, description="Answer from this arm, not from the user's; for looking at it."
    )
    time: Time | None = Field(
        None,
        description="When the request is made; only earlier events count. If not given, the time "
        "is now, and all events count.",
    )


class Rank(UserRequest, Rules):
    """Rank the catalogue, or some candidates, for one user."""

    k: Annotated[int, Field(ge=1, le=MOST_RANKED)] = Field(
        20, description="How many items to return, at most."
    )
    candidates: Candidates[Candidate] | None = Field(
        None,
        description="Ids to rank, or objects with an item and values of impression features, such "
        "as {item: 7, price: 12.5}; if not given, the full catalogue.",
    )
    exclude_seen: bool = Field(True, description="Leave out items that the user has seen.")
    exclude: Candidates[Id] | None = Field(None, description="Further ids to leave out.")
    partial: bool = Field(
        False,
        description="Where the server ranks through shards and some do not answer: rank the items "
        "of the others, and list the missing shards in missing_shards. Otherwise that is a 503.",
    )
    log: bool = Field(
        False,
        description="Whether the ranking is shown to the user as it is answered: store it as an "
        "exposure, so that later events are its outcomes. Needs a user and a key with write "
        "access. Where fewer items are shown, use POST /v1/shown instead.",
    )


class Shown(Message):
    """A ranking that was really shown to a user."""

    user: Id = Field(description="External id; a new one adds a user.")
    items: Annotated[Listed[Candidate], Field(min_length=1, max_length=MOST_SHOWN)] = Field(
        description="Ids of the shown items, the upper ones first, or objects with an item and "
        "values of impression features."
    )
    ranking: Ranking | None = Field(
        None,
        description="Id of the ranking, from the answer of /v1/rank; made if not given. The same "
        "ranking of a user counts once.",
    )
    positions: Annotated[Listed[Position], Field(max_length=MOST_SHOWN)] | None = Field(
        None, description="Position of each item on the page, from 1 on; if not given, 1, 2, ..."
    )
    values: Annotated[Listed[Number], Field(max_length=MOST_SHOWN)] | None = Field(
        None, description="Ranking value of each item, from the answer of /v1/rank."
    )
    teams: Annotated[Listed[ArmName], Field(max_length=MOST_SHOWN)] | None = Field(
        None, description="Team of each item, from the answer of an interleaved ranking."
    )
    context: Named[Value] | None = Field(None, description="Context feature to its value.")
    time: Time | None = Field(
        None, description="When it was shown; now if not given. A log without a clock needs it."
    )
    arm: ArmName | None = Field(
        None,
        description="The arm that ranked. If not given, it is that of the ranking's id, or else "
        "the user's.",
    )


class Explain(UserRequest):
    """Explain the ranking values of items."""

    items: Annotated[Listed[Candidate], Field(min_length=1, max_length=MOST_EXPLAINED)] = Field(
        description="Ids, or objects with an item and values of impression features."
    )


class EventMessage(Message):
    """One event."""

    user: Id = Field(description="External id; a new one adds a user.")
    item: Id = Field(description="External id; the model need not know the item.")
    time: Time = Field(
        description="Milliseconds since 1970 or ISO 8601 text; an order where the log has no clock."
    )
    labels: Named[Number] | None = Field(None, description="Task to 0 or 1, or to seconds.")
    ratios: Named[Number] | None = Field(
        None, description="Duration task to the share of the item's length."
    )
    features: Named[Value] | None = Field(None, description="Event feature to its value.")
    context: Named[Value] | None = Field(None, description="Context feature to its value.")
    ranking: Ranking | None = Field(
        None,
        description="Id of the ranking that showed the item. Without it, the event counts as an "
        "outcome of the user's latest ranking with the item, if that is recent.",
    )
    id: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None,
        description="Events of a user with the same id are one event. If not given, the id is "
        "computed from user, item, time and labels.",
    )


class Events(Message):
    """Several events; answered when all of them are durable."""

    events: Annotated[Listed[EventMessage], Field(min_length=1, max_length=MOST_EVENTS)]


class PutUser(Message):
    """A user's features: columns of the user table. They replace the previous ones."""

    features: Named[Value]


class PutItems(Message):
    """Items to add or to change, each with all columns of the item table."""

    items: Annotated[Listed[Named[Column]], Field(min_length=1, max_length=MOST_ITEMS)]


class ArmBody(Message):
    """An arm of an experiment. A run or an index that is not given stays as it is."""

    share: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="Share of the users; the shares of all arms are divided by their sum."
    )
    run: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None, description="Folder of a run, on the server."
    )
    index: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None, description="Folder of an index, on the server."
    )
    interleave: Annotated[list[ArmName], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Two arms whose rankings this one merges, in place of run and index."
    )


class Reload(Message):
    """Another run or index to serve; what is not given stays in use."""

    arm: ArmName | None = Field(
        None, description="The arm that serves it; needed where there are several."
    )
    arms: Annotated[dict[ArmName, ArmBody], Field(min_length=1, max_length=MOST_ARMS)] | None = (
        Field(
            None,
            description="All arms by name, in place of the other fields: new ones are loaded, "
            "others are dropped, shares change. One with the same run and index stays loaded.",
        )
    )

    run: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None, description="Folder of a run, on the server."
    )
    index: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None, description="Folder of an index, on the server."
    )


LONG: dict[type[Message], dict[str, tuple[TypeAdapter[Any], int]]] = {
    Rank: {
        "candidates": (TypeAdapter(Candidates[Candidate]), MOST_CANDIDATES),
        "exclude": (TypeAdapter(Candidates[Id]), MOST_CANDIDATES),
        "history": (TypeAdapter(Listed[HistoryEvent]), MOST_EVENTS),
    },
    Shown: {"items": (TypeAdapter(Listed[Candidate]), MOST_SHOWN)},
    Explain: {"history": (TypeAdapter(Listed[HistoryEvent]), MOST_EVENTS)},
    Events: {"events": (TypeAdapter(Listed[EventMessage]), MOST_EVENTS)},
    PutItems: {"items": (TypeAdapter(Listed[Named[Column]]), MOST_ITEMS)},
}
"""Lists that can be long: field -> the adapter that checks a piece, and the list's bound."""
