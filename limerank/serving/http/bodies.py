"""Request bodies: parsed and checked in bounded time and memory.

An answer names the first errors and does not count further ones. A body of more than
:data:`SMALL` bytes is read piece by piece, so that other threads can run in between: each piece
takes less than a millisecond.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from limerank.serving.http.problems import Problem
from limerank.serving.messages import LONG, MOST_LISTED, MOST_NAMES, MOST_TEXT, Message
from limerank.validation import nearest_field

SMALL = 16 << 10
"""Bytes of a body that is read at once, at most."""
PIECE = 500
"""Elements of a list that are checked at once."""
MOST_DEPTH = 6
"""Levels of lists and objects, at most; boosts with filters of lists have as many."""
MOST_REPORTED = 20
"""Errors that an answer names, at most."""

# Quantifiers are possessive and bounded: a match takes time in proportion to its length, which is
# small. Text that they do not match is read value by value.
_BLANK = r"[ \t\n\r]{0,4096}+"
_STRING = rf'"[^"\\]{{0,{MOST_TEXT}}}+(?:\\.[^"\\]{{0,{MOST_TEXT}}}+){{0,{MOST_TEXT}}}+"'
_SIMPLE = r'"[^"\\]{0,256}+"'
_PLAIN = rf"(?:{_SIMPLE}|-?[0-9][0-9.eE+-]{{0,40}}+|true|false|null)"
_REST = r'[^{}\[\]"\\]{0,64}+'
_FLAT = rf"\{{{_REST}(?:{_SIMPLE}{_REST}){{0,32}}+\}}"
_DEEPER = rf"\{{{_REST}(?:(?:{_SIMPLE}|{_FLAT}){_REST}){{0,32}}+\}}"
_blank = re.compile(_BLANK)
_NUMBER = r"-?(?:[0-9][0-9.eE+-]{0,400}+|Infinity)|NaN"
_scalar = re.compile(rf"{_STRING}|{_NUMBER}|true|false|null", re.DOTALL)
_name = re.compile(rf"({_SIMPLE}|{_STRING}){_BLANK}:", re.DOTALL)
_values = re.compile(rf"(?:{_BLANK}{_PLAIN}{_BLANK},){{1,{PIECE}}}+")
_objects = re.compile(rf"(?:{_BLANK}{_DEEPER}{_BLANK},){{1,8}}+")
_pairs = re.compile(rf"(?:{_BLANK}{_SIMPLE}{_BLANK}:{_BLANK}{_PLAIN}{_BLANK},){{1,{PIECE}}}+")


def checked(models: Sequence[type[Message]], data: bytes) -> Message:
    """Parse a body as a message.

    Args:
        models: the messages that the route takes. Of two, the first has the field ``events``.
        data: JSON.

    Raises:
        Problem: 400 where the body is not JSON, 422 where it is not such a message.
    """
    try:
        if len(data) > SMALL:
            return _Reader(data.decode(), models).message()
        found = from_json(data)
    except ValueError as error:
        what = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise Problem(400, f"the body is not JSON: {what}") from None
    try:
        return _model(models, found).model_validate(found)
    except ValidationError as error:
        raise _refused(error, _model(models, found)) from None


def _model(models: Sequence[type[Message]], found: Any) -> type[Message]:
    """The kind of message that parsed values are."""
    if len(models) > 1 and not (isinstance(found, dict) and "events" in found):
        return models[1]
    return models[0]


def _refused(
    error: ValidationError, model: type[Message], name: str | None = None, at: int = 0
) -> Problem:
    """The first errors as an answer; ``name`` and ``at``: the list, and the position of the piece
    that was checked."""
    reported: dict[str, str] = {}
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Unknown names come first: a missing field is often a misspelt one.
    for one in sorted(errors, key=lambda one: one["type"] == "missing"):
        where: list[Any] = list(one["loc"])
        what = one["msg"].removeprefix("Value error, ")
        if one["type"] in ("model_type", "dict_type"):
            what = "expected an object"
        if name is not None:
            where = [name, at + int(where[0]), *where[1:]]
        if one["type"] == "extra_forbidden":
            what = f"unknown field{nearest_field(model, where)}"
        reported.setdefault(".".join(map(str, where)), what)
        if len(reported) == MOST_REPORTED:
            break
    parts = [{"at": where, "what": what} for where, what in reported.items()]
    return Problem(422, f"{parts[0]['at'] or 'the body'}: {parts[0]['what']}", errors=parts)


class _Reader:
    """Reads a message from JSON with bounds; checks long lists piece by piece."""

    def __init__(self, text: str, models: Sequence[type[Message]]) -> None:
        self.text, self.at, self.models = text, 0, models
        self.long = {name: of for model in models for name, of in LONG.get(model, {}).items()}

    def message(self) -> Message:
        """The message; raises Problem, or ValueError where the text is not JSON."""
        checked: dict[str, list[Any]] = {}
        found = self._value(0, checked)
        if self._skip():
            raise self._wrong("unexpected text after its end")
        # Of two equal names the last one counts, as in other parsers.
        checked = {name: of for name, of in checked.items() if found[name] is of}
        # The rest is checked with the first elements of the long lists; these are checked already.
        first = {name: of[:PIECE] for name, of in checked.items()}
        try:
            message = _model(self.models, found).model_validate(found | first if first else found)
        except ValidationError as error:
            raise _refused(error, _model(self.models, found)) from None
        return message.model_copy(update=checked) if checked else message

    def _skip(self) -> str:
        """Skip blanks; returns the next character, "" at the end."""
        found = _blank.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return self.text[self.at : self.at + 1]

    def _value(self, depth: int, checked: dict[str, list[Any]] | None = None) -> Any:
        next_ = self._skip()
        if next_ in ("[", "{"):
            if depth == MOST_DEPTH:
                raise Problem(
                    422, f"the body has more than {MOST_DEPTH} levels of lists and objects"
                )
            self.at += 1
            return self._list(depth) if next_ == "[" else self._object(depth, checked)
        found = _scalar.match(self.text, self.at)
        if found is None:
            raise self._wrong("a value is missing, broken or too long")
        self.at = found.end()
        return from_json(found[0])

    def _list(self, depth: int, name: str | None = None) -> list[Any]:
        """A list. A list with a name is long: its elements are checked, and returned as checked."""
        values: list[Any] = []
        piece, end = values, self._skip() == "]"
        most = MOST_LISTED
        if name is not None:
            piece, most = [], self.long[name][1]
        self.at += end
        while not end:
            run = _values.match(self.text, self.at)
            if run is None and depth + 3 <= MOST_DEPTH:
                run = _objects.match(self.text, self.at)
            if run is None:
                piece.append(self._value(depth + 1))
                end = self._next("]")
            else:
                piece += from_json(f"[{run[0][:-1]}]")
                self.at = run.end()
            if len(values) + (len(piece) if name else 0) > most:
                what = "a list" if name is None else f"{name}: the list"
                raise Problem(422, f"{what} has more than {most:,} elements")
            if name is not None and (end or len(piece) >= PIECE):
                try:
                    values += self.long[name][0].validate_python(piece)
                except ValidationError as error:
                    raise _refused(error, self.models[0], name, len(values)) from None
                piece = []
        return values

    def _object(self, depth: int, checked: dict[str, list[Any]] | None) -> dict[str, Any]:
        """An object; the outermost one adds its long lists to ``checked``."""
        values: dict[str, Any] = {}
        end, names = self._skip() == "}", 0
        self.at += end
        while not end:
            run = _pairs.match(self.text, self.at)
            if run is None:
                self._skip()
                found = _name.match(self.text, self.at)
                if found is None:
                    raise self._wrong("a name is missing, broken or too long")
                self.at = found.end()
                name, names = from_json(found[1]), names + 1
                if checked is not None and name in self.long and self._skip() == "[":
                    self.at += 1
                    values[name] = checked[name] = self._list(depth + 1, name)
                else:
                    values[name] = self._value(depth + 1)
                end = self._next("}")
            else:
                part = from_json(f"{{{run[0][:-1]}}}")
                names += max(len(part), run[0].count('":'))
                values |= part
                self.at = run.end()
            if names > MOST_NAMES:
                raise Problem(422, f"an object has more than {MOST_NAMES:,} names")
        return values

    def _next(self, end: str) -> bool:
        """Whether a list or an object ends here; otherwise another element follows."""
        found = self._skip()
        if found not in (end, ",") or not found:
            raise self._wrong(f"expected a comma or {end}")
        self.at += 1
        return found == end

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"{what} at character {self.at:,}")
