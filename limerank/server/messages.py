"""What requests say: checked bodies, whose schemas are the API's description."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MOST_CANDIDATES = 100_000
MOST_EVENTS = 10_000
MOST_ITEMS = 1_000
MOST_RANKED = 10_000
MOST_EXPLAINED = 50

Text = Annotated[str, Field(max_length=256)]
Id = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | Text
"""An external id: what the log has, an integer or text."""
Time = Annotated[int, Field(gt=-(1 << 53), lt=1 << 53)]
Value = int | float | Text | bool | None
Number = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """Base of all bodies: a field that is not known is an error and no silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Past(Message):
    """One event of a history that is given in the request."""

    item: Id
    time: Time | None = Field(None, description="Milliseconds since 1970; all events or none.")
    labels: dict[Text, Number] | None = Field(
        None, description="Task to 0 or 1, or to seconds. Without: nothing is known of the event."
    )
    ratios: dict[Text, Number] | None = None
    features: dict[Text, Value] | None = None


class Asking(Message):
    """Who asks, and when: a user by id, or a history of someone whom nobody knows."""

    user: Id | None = Field(None, description="External id. Unknown users have empty histories.")
    history: Annotated[list[Past], Field(max_length=MOST_EVENTS)] | None = Field(
        None, description="Events instead of the user's own, oldest first."
    )
    task_weights: dict[Text, Number] | None = Field(
        None,
        description="Task to its weight in the ranking value; the first task alone if not given.",
    )
    context: dict[Text, Value] | None = Field(None, description="What is known of the request.")
    time: Time | None = Field(None, description="When the request is made; now if not given.")


class Rank(Asking):
    """Rank the catalogue, or some candidates, for one user."""

    k: Annotated[int, Field(ge=1, le=MOST_RANKED)] = 20
    candidates: Annotated[list[Id], Field(max_length=MOST_CANDIDATES)] | None = Field(
        None, description="Ids to rank; the whole catalogue if not given."
    )
    exclude_seen: bool = Field(True, description="Leave out items of the user's events.")
    exclude: Annotated[list[Id], Field(max_length=MOST_CANDIDATES)] | None = Field(
        None, description="Further ids to leave out."
    )
    filter: dict[Text, Annotated[list[Value], Field(max_length=1000)]] | None = Field(
        None, description="Item feature to the values that are allowed; all features must allow it."
    )


class Explain(Asking):
    """Say why items stand where they stand."""

    items: Annotated[list[Id], Field(min_length=1, max_length=MOST_EXPLAINED)]


class Happened(Message):
    """One event."""

    user: Id
    item: Id
    time: Time = Field(description="Milliseconds since 1970; an order where the log has no clock.")
    labels: dict[Text, Number] | None = Field(None, description="Task to 0 or 1, or to seconds.")
    ratios: dict[Text, Number] | None = Field(
        None, description="Duration task to the share of the item."
    )
    features: dict[Text, Value] | None = Field(None, description="Event feature to its value.")
    context: dict[Text, Value] | None = Field(None, description="Context feature to its value.")
    id: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="The same id twice is the same event; follows from the rest if not given."
    )


class Events(Message):
    """Several events; answered when all of them are durable."""

    events: Annotated[list[Happened], Field(min_length=1, max_length=MOST_EVENTS)]


class PutUser(Message):
    """A user's own features: columns of the user table, in place of those before."""

    features: dict[Text, Value]


class PutItems(Message):
    """Items to add, or to change where they are known: all columns of the item table."""

    items: Annotated[list[dict[Text, Any]], Field(min_length=1, max_length=MOST_ITEMS)]


class Reload(Message):
    """Another run or index to serve; what is not given stays."""

    run: Annotated[str, Field(max_length=4096)] | None = None
    index: Annotated[str, Field(max_length=4096)] | None = None
