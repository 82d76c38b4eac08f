"""Values as an answer can hold them: what is stored can always be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
