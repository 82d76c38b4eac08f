"""Validated records: configurations, dataset descriptions and settings, with errors that name each
wrong field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from numbers import Integral
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from limerank.errors import SpecError, did_you_mean

M = TypeVar("M", bound=BaseModel)
MEMORY_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
MEMORY_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9}
MEMORY_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Frozen(BaseModel):
    """A validated, immutable record; an unknown field is an error, as is a number that is not
    finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


def validate(model: type[M], values: Any, where: str) -> M:
    """``values`` as a ``model``, or a :class:`SpecError` that names each wrong field."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SpecError(validation_message(error, where, model)) from None


def validation_message(
    error: ValidationError, where: str, model: type[BaseModel] | None = None
) -> str:
    """One line for each wrong field: its name, the expected value and the value given.

    Args:
        error: from pydantic.
        where: the name of what was checked; the message begins with it.
        model: the record that the values were checked against. Its fields are proposed in place of
            unknown ones.
    """
    parts = error.errors()
    inner = {part["loc"][:-1] for part in parts if len(part["loc"]) > 1}
    lines = [f"{where} is not valid:"]
    for part in parts:
        if part["type"] == "too_short" and any(
            loc[: len(part["loc"])] == part["loc"] for loc in inner
        ):
            continue  # follows from the errors inside, which have their own lines
        if part["type"] == "default_factory_not_called":
            continue  # a default that depends on a wrong field
        position = ".".join(str(step) for step in part["loc"]) or "(all)"
        got = "" if part["type"] in ("missing", "value_error") else f"; got {part['input']!r}"
        what = part["msg"].removeprefix("Value error, ")
        if part["type"] == "tuple_type":
            what = _expected_list(part["loc"], part["input"])
        lines.append(f"  {position}: {what}{got}")
        if part["type"] == "literal_error":
            lines[-1] += did_you_mean(part["input"], _quoted(part["ctx"]["expected"]))
        elif part["type"] == "extra_forbidden" and model is not None:
            lines[-1] += nearest_field(model, part["loc"]) or _known_fields(model, part["loc"])
    return "\n".join(lines)


def nearest_field(model: type[BaseModel], position: Sequence[int | str]) -> str:
    """``"; did you mean ...?"`` for an unknown field at ``position`` of a model; else ``""``."""
    return did_you_mean(str(position[-1]), _fields(model, position))


def _known_fields(model: type[BaseModel], position: Sequence[int | str]) -> str:
    """``"; known are name, kind"``: the fields beside an unknown one; else ``""``."""
    names = _fields(model, position)
    return f"; known are {', '.join(names)}" if names else ""


def _expected_list(position: Sequence[int | str], given: object) -> str:
    """What to write in place of a single value, where a list is expected."""
    if isinstance(given, dict):
        names = ".".join(step for step in position if isinstance(step, str))
        return f"expected a list of tables: write [[{names}]] in TOML, or [{{...}}] in Python"
    if isinstance(given, str):
        return f'expected a list: write ["{given}"]'
    return "expected a list"


def _fields(model: type[BaseModel], position: Sequence[int | str]) -> list[str]:
    """Names of the fields beside the one at ``position``; none where its record is not known."""
    for step in position[:-1]:
        if isinstance(step, int):
            continue  # of a list: each entry is alike
        field = model.model_fields.get(step)
        inner = [] if field is None else list(_models(field.annotation))
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The records in a field's type, such as ``Table`` in ``Table | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _quoted(text: str) -> list[str]:
    """``"'a', 'b' or 'c'"`` -> a, b, c."""
    return re.findall(r"'([^']*)'", text)


def memory_bytes(given: int | str) -> int:
    """Bytes of an amount of memory: their number, or a text such as ``512MiB`` or ``2GiB``.

    Raises:
        SpecError: it is not an amount of memory.
    """
    found = 0
    if isinstance(given, str):
        number = given.strip().rstrip("BKMGTIbkmgti")
        unit = given.strip()[len(number) :].upper()
        with suppress(ValueError, KeyError, OverflowError):
            found = int(float(number) * MEMORY_UNITS[unit])
    elif isinstance(given, Integral) and not isinstance(given, bool):
        found = int(given)
    if found < 1:
        raise SpecError(
            f"{given!r} is not an amount of memory; expected a value such as 512MiB or 2GiB, or in "
            "Python a number of bytes"
        )
    return found
