"""Values as an answer can hold them: what is stored can always be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limerank.errors import DataError

DEPTH = 8
"""Lists and mappings inside each other, at most."""
INT64 = range(-(1 << 63), 1 << 63)


def json_value(value: Any, depth: int = 0) -> Any:
    """A value of a store or a table as JSON can hold it.

    Integers beyond 64 bits, times and whatever JSON has no form for become text; halves of
    surrogate pairs become question marks; bytes are read as UTF-8. Numbers that are not finite are
    null.
    """
    if value is None or isinstance(value, bool):
        return value
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()  # NumPy's
    if isinstance(value, int):
        return value if value in INT64 else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if depth < DEPTH:
        if isinstance(value, Mapping):
            return {str(json_value(str(k))): json_value(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [json_value(part, depth + 1) for part in value]
    text = value if isinstance(value, str) else f"{value!s:.1000}"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def check_columns(what: str, columns: Mapping[str, Any]) -> None:
    """Refuse columns of an item or a user that could be stored and not be told again as they are.

    Raises:
        DataError: a value is neither null, a boolean, a finite number of at most 64 bits, text, nor
            a list of such values.
    """
    for name, value in columns.items():
        parts = value if isinstance(value, (list, tuple)) else (value,)
        for part in parts:
            if isinstance(part, (list, tuple, Mapping, bytes)) or json_value(part) != part:
                hint = "; send it as text" if isinstance(part, int) else ""
                raise DataError(
                    f"{what}: the column {name!r} is {part!r:.80}, expected null, a boolean, a "
                    "finite number of at most 64 bits, text, or a list of these" + hint
                )
