"""The table of routes: what each takes, and which method of the engine answers it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from pydantic_core import from_json
from starlette.requests import Request

from limerank.serving.http.openapi import Described
from limerank.serving.http.problems import Problem
from limerank.serving.messages import (
    MOST_ID,
    ArmBody,
    EventMessage,
    Events,
    Explain,
    PutItems,
    PutUser,
    Rank,
    Reload,
    Shown,
)
from limerank.serving.stores import EventStore
from limerank.serving.telemetry import Numbers

MOST_FILES = 100_000
"""Files of a run or an index that are checked before they are opened, at most."""


class Engine(Protocol):
    """The engine, see :class:`limerank.serving.engine.Serving`. Every method computes and may
    block."""

    numbers: Numbers
    store: EventStore

    @property
    def remote(self) -> bool: ...

    def model(self, arm: str | None = None) -> dict[str, Any]: ...
    def rank(self, asked: Rank) -> Any: ...
    def shard_top(self, data: bytes) -> bytes: ...
    def explain(self, asked: Explain) -> dict[str, Any]: ...
    def append(self, events: list[EventMessage]) -> Future[dict[str, Any]]: ...
    def rank_at_once(self, asked: Rank) -> Any: ...
    def shown(self, given: Shown) -> Future[dict[str, Any]]: ...
    def append_at_once(self, events: list[EventMessage]) -> Future[dict[str, Any]] | None: ...
    def user(self, user: str) -> dict[str, Any]: ...
    def users(self, text: str, limit: int) -> dict[str, Any]: ...
    def put_user(self, user: str, features: dict[str, Any]) -> dict[str, Any]: ...
    def forget(self, user: str) -> dict[str, Any]: ...
    def item(self, item: str) -> dict[str, Any]: ...
    def items(self, text: str, limit: int) -> dict[str, Any]: ...
    def similar(
        self, item: str, k: int, filter: dict[str, Any] | None, exclude: list[str]
    ) -> dict[str, Any]: ...
    def put_items(self, items: list[dict[str, Any]]) -> dict[str, Any]: ...
    def remove_item(self, item: str) -> dict[str, Any]: ...
    def reload(
        self,
        run: str | None,
        index: str | None,
        arm: str | None = None,
        arms: Mapping[str, ArmBody] | None = None,
    ) -> dict[str, Any]: ...
    def readiness(self) -> dict[str, Any]: ...
    def count(self) -> None: ...
    def close(self) -> None: ...


class Call(NamedTuple):
    """A request as a route gets it: the checked body, and the raw request."""

    body: Any
    request: Request

    @property
    def path(self) -> Mapping[str, Any]:
        return self.request.path_params

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query_params


@dataclass(frozen=True)
class Operation(Described):
    """A route: its description, and the engine's method that answers it."""

    answers: Callable[[Engine, Call], Any] = lambda engine, call: None
    """Computes the answer, or a future of it, in another thread."""
    at_once: Callable[[Engine, Call], Any] = lambda engine, call: None
    """Computes the answer, or a future of it, on the event loop; None where that would take more
    than about a millisecond or wait: then ``answers`` is called in another thread."""
    writes: Callable[[Any], bool] = lambda body: False
    """Whether a body asks for more than reading, so that its key needs write access."""

    @property
    def name(self) -> str:
        """The route's name in metrics and in the log."""
        return f"{self.method} {self.path}"


def _limit(call: Call, name: str = "limit", default: str = "20") -> int:
    text = call.query.get(name, default)
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= 1000):
        raise Problem(422, f"{name} is {text[:40]!r}, expected 1 to 1000")
    return int(text)


def _filter(call: Call) -> dict[str, Any] | None:
    text = call.query.get("filter")
    if text is None:
        return None
    try:
        found = from_json(text)
    except ValueError as error:
        raise Problem(422, f"filter is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Problem(
            422, f'filter is {text[:80]!r}, expected an object such as {{"category": ["Tents"]}}'
        )
    return found


def _excluded(call: Call) -> list[str]:
    found = call.request.query_params.getlist("exclude")
    wrong = next((text for text in found if not 1 <= len(text) <= MOST_ID), None)
    if wrong is not None:
        raise Problem(
            422, f"exclude has an id of {len(wrong):,} characters, expected 1 to {MOST_ID}"
        )
    return found


def _text(call: Call) -> str:
    text = call.query.get("q", "")
    if len(text) > MOST_ID:
        raise Problem(422, f"q has {len(text):,} characters, expected at most {MOST_ID}")
    return text


def _id(call: Call, name: str) -> str:
    text: str = call.path[name]
    try:
        unquote_to_bytes(call.request.scope["raw_path"]).decode()
    except UnicodeDecodeError:  # its replacement characters would make another id
        raise Problem(422, f"the {name}'s id in the URL is not UTF-8") from None
    if not 1 <= len(text) <= MOST_ID:
        raise Problem(422, f"the {name}'s id has {len(text):,} characters, expected 1 to {MOST_ID}")
    return text


def _folder(name: str, given: str | None) -> str | None:
    """Check that a path is the folder of a run or an index; opening a pipe or device could hang."""
    if given is None:
        return None
    try:
        if not stat.S_ISDIR(os.stat(given).st_mode):
            raise Problem(
                409, f"{name}: {given[:200]!r} is not a folder; expected the folder of the {name}"
            )
        checked = 0
        for position, _, files in os.walk(given):
            for file in files:
                checked += 1
                if checked > MOST_FILES:
                    raise Problem(409, f"{name}: the folder has more than {MOST_FILES:,} files")
                if not stat.S_ISREG(os.stat(os.path.join(position, file)).st_mode):
                    raise Problem(
                        409, f"{name}: {file[:200]!r} in the folder is not a regular file"
                    )
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Problem(409, f"{name}: {given[:200]!r} cannot be opened: {what}") from None
    return given


def _reload(engine: Engine, body: Reload) -> dict[str, Any]:
    for name, arm in (body.arms or {}).items():
        _folder(f"arms.{name}.run", arm.run)
        _folder(f"arms.{name}.index", arm.index)
    run, index = _folder("run", body.run), _folder("index", body.index)
    return engine.reload(run, index, body.arm, body.arms)


def _events(call: Call) -> list[EventMessage]:
    return list(call.body.events) if isinstance(call.body, Events) else [call.body]


TEXT = ("q", {"type": "string", "maxLength": MOST_ID})
LIMIT = ("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20})
K = ("k", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10})
FILTER = ("filter", {"type": "string", "contentMediaType": "application/json"})
EXCLUDE = ("exclude", {"type": "array", "items": {"type": "string", "maxLength": MOST_ID}})
OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/v1/model", "read", "The model, the index and their features.",
        query=(("arm", {"type": "string", "maxLength": 32}),),
        answers=lambda engine, call: engine.model(call.query.get("arm"))),
    Operation("POST", "/v1/rank", "read", "Rank the catalogue, or candidates, for a user.", (Rank,),
        answers=lambda engine, call: engine.rank(call.body),
        at_once=lambda engine, call: engine.rank_at_once(call.body),
        writes=lambda body: body.log),
    Operation("POST", "/v1/explain", "read", "Explain scores by events and links.", (Explain,),
        answers=lambda engine, call: engine.explain(call.body)),
    Operation("POST", "/v1/events", "write", "Store events; answered when they are durable.",
        (Events, EventMessage), answer={"accepted": 1, "duplicates": 0, "expired": 0},
        answers=lambda engine, call: engine.append(_events(call)),
        at_once=lambda engine, call: engine.append_at_once(_events(call))),
    Operation("POST", "/v1/shown", "write", "Store a ranking that was shown to a user.", (Shown,),
        answer={"ranking": "main.lP3xq8rT2kWm0sVd", "arm": "main", "outcome": "accepted"},
        answers=lambda engine, call: engine.shown(call.body)),
    Operation("GET", "/v1/users", "read", "Users whose id begins with a text.", query=(TEXT, LIMIT),
        answers=lambda engine, call: engine.users(_text(call), _limit(call))),
    Operation("GET", "/v1/users/{user:path}", "read", "A user's features and latest events.",
        answers=lambda engine, call: engine.user(_id(call, "user"))),
    Operation("PUT", "/v1/users/{user:path}", "write", "Replace a user's own features.", (PutUser,),
        answers=lambda engine, call: engine.put_user(
            _id(call, "user"), call.body.features)),
    Operation("DELETE", "/v1/users/{user:path}", "write", "Delete a user and all that is stored.",
        answer={"forgotten": 42}, answers=lambda engine, call: engine.forget(_id(call, "user"))),
    Operation("GET", "/v1/items", "read", "Items whose id or features contain a text.",
        query=(TEXT, LIMIT),
        answers=lambda engine, call: engine.items(_text(call), _limit(call))),
    Operation("GET", "/v1/items/{item:path}/similar", "read", "Items that are similar to an item.",
        query=(K, FILTER, EXCLUDE),
        answers=lambda engine, call: engine.similar(
            _id(call, "item"), _limit(call, "k", "10"), _filter(call), _excluded(call))),
    Operation("GET", "/v1/items/{item:path}", "read", "An item's features; whether it is ranked.",
        answers=lambda engine, call: engine.item(_id(call, "item"))),
    Operation("PUT", "/v1/items", "admin", "Add or change items; the next request ranks them.",
        (PutItems,), answers=lambda engine, call: engine.put_items(call.body.items)),
    Operation("DELETE", "/v1/items/{item:path}", "admin", "Remove an item from rankings.",
        answer={"removed": 1}, answers=lambda engine, call: engine.remove_item(_id(call, "item"))),
    Operation("POST", "/v1/admin/reload", "admin", "Test and serve other models or arms.",
        (Reload,), answers=lambda engine, call: _reload(engine, call.body)),
    Operation("GET", "/healthz", None, "Whether the process runs.",
        answer={"status": "ok"}, at_once=lambda engine, call: {"status": "ok"}),
    Operation("GET", "/readyz", None, "Whether requests can be answered.",
        answer={"status": "ok"}, answers=lambda engine, call: engine.readiness()),
)  # fmt: skip
