"""One form for ids, categories, numbers and times from every source.

A value reaches limerank as a column of a file, as a field of a JSON body, as a Python or NumPy
object, or as text in a path or a command. All of them go through this module, so that 7, 7.0,
``"7"``, ``" 7 "`` and ``"7.0"`` are one id in every source. Each rule is written twice, for one
value and for a Polars series of values; ``tests/test_canonical.py`` checks that the two agree.

- **Text** is stripped of blanks at its ends; empty text is missing. ``7.0`` and ``7.00``
  become ``7``.
- **Ids** (:func:`external_id`, :func:`id_texts`, :func:`id_integers`) are integers where their text
  is a plainly written 64-bit integer (no plus sign, no leading zeros), else text of 1 to 256 bytes.
  Booleans are not ids. A float that may have lost digits is refused, never rounded.
- **Categories** (:func:`category`, :func:`categories`) are text. ``true`` and ``false``, as
  booleans or in any letter case, are ``1`` and ``0``.
- **Numbers** (:func:`number`, :func:`numbers`) are float64, NaN where a value is missing or
  not a number. Text may group thousands (``1,299.00``, ``1.299,00``), have a decimal comma
  (``12,99``) and name a currency (``$5``, ``5.00 EUR``).
- **Times** (:func:`milliseconds`) are milliseconds since 1970, or an order.

None, NaN, NaT and empty text are missing everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.errors import DataError, with_article

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
UNITS_MS = {"d": DAY_MS, "h": HOUR_MS}
"""Units of durations."""
ID_BYTES = 256
"""Length of an external id in UTF-8, at most."""
LARGEST_TIME = 1 << 53
"""Larger times are not exact in every store."""
BLANKS = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
"""Stripped from the ends of text: Unicode's white space, and the byte order mark."""
INT64 = range(-(1 << 63), 1 << 63)
JSON_DEPTH = 8
"""Nesting of lists and mappings, at most; what is nested deeper becomes text."""

_DECIMAL = re.compile(r"(-?[0-9]+)\.0+")
_INTEGER = re.compile(r"-?[1-9][0-9]{0,18}|0")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_CODES = (
    "AED|AUD|BGN|BRL|CAD|CHF|CNY|CZK|DKK|EUR|GBP|HKD|HUF|IDR|ILS|INR|JPY|KRW|MXN|MYR|NOK|NZD|PHP|"
    "PLN|RMB|RON|RUB|SAR|SEK|SGD|THB|TRY|TWD|UAH|USD|VND|ZAR"
)
_CURRENCY = rf"(?:(?:US|CA|AU|NZ|HK|R|C|A)?\$|[€£¥₹₽₩₺₴₪฿]|(?i:{_CODES}|kr\.?|zł|Kč|Ft|Rs\.?))"
_PRICE = re.compile(
    rf"(?P<before>{_CURRENCY}\s?)?(?P<sign>[+-]?)(?P<then>{_CURRENCY}\s?)?"
    rf"(?P<digits>[0-9][0-9.,'’\s]*)(?P<after>\s?{_CURRENCY})?"
)
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:(?P<by>[.,])[0-9]{3})(?:(?P=by)[0-9]{3})*")
_TRUTH = {"true": "1", "false": "0"}
_OTHERWISE = rf"^(?:[{BLANKS}]|-0$|$)|[{BLANKS}]$|\.0+$"
"""Matches all texts that are not in their form yet, and few others."""
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# One value


def _missing(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, (str, int)):
        return False
    if type(value).__name__ == "NAType":  # pandas' missing value, which cannot be compared
        return True
    try:
        return bool(value != value)  # noqa: PLR0124  # NaN, NaT
    except (TypeError, ValueError):  # arrays
        return False


def _stripped(text: str) -> str:
    text = text.strip(BLANKS)
    found = _DECIMAL.fullmatch(text)
    if found:
        text = found[1]
    return "0" if text == "-0" else text


def _plain(value: Any) -> str | None:
    """The text of a value that is not text, for ids and categories alike; None: values of its
    kind have no text."""
    if isinstance(value, (bool, np.bool_)):
        return "1" if value else "0"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        integral = float(value).is_integer() and abs(float(value)) < 1 << 63
        # str of NumPy's float32 is the shortest text that gives it back, as for Python's floats.
        return str(int(value)) if integral else str(value)
    if isinstance(value, Decimal):
        return _stripped(format(value, "f"))
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, (datetime, date, time_of_day)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    return None


def category(value: Any) -> str | None:
    """A categorical value as the vocabularies hold it; None: missing.

    Raises:
        DataError: a value of its kind (a list, a mapping, bytes) is not a category.
    """
    if isinstance(value, str):
        text = _stripped(str(value))
        text = _TRUTH.get(text.lower(), text) if len(text) in (4, 5) else text
        return _encodable(text) or None
    if _missing(value):
        return None
    found = _plain(value)
    if found is None:
        raise DataError(
            f"a category is {value!r:.80}, expected text, a number or a boolean, "
            f"not {type(value).__name__}"
        )
    return found


def _encodable(text: str) -> str:
    """Text that UTF-8 can hold: halves of surrogate pairs become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def category_list(value: Any, split: str | None = None) -> list[str]:
    """The categories of a multi-valued feature: of a list, or of text with a separator."""
    if isinstance(value, (list, tuple, np.ndarray)):
        given: list[Any] = list(value)
    elif split is not None and isinstance(value, str):
        given = value.split(split)
    else:
        given = [value]
    return list(dict.fromkeys(text for text in map(category, given) if text is not None))


def external_id(what: str, value: Any) -> int | str:
    """An id in its one form: an integer where it is plainly written as one, else text.

    Args:
        what: "user" or "item", for the message.
        value: an integer, text, or a float that has lost no digits; Python's or NumPy's.

    Raises:
        DataError: it is missing, is not of a kind that ids have, or may have lost digits as a
            float; or its text is longer than 256 bytes or has a zero byte.
    """
    if type(value) is int and value in INT64:
        return value
    if isinstance(value, str):
        text = _stripped(str(value))
    elif _missing(value):
        text = ""
    else:
        text = _id_text(what, value)
    if _INTEGER.fullmatch(text) and (number := int(text)) in INT64:
        return number
    if text and "\0" not in text and len(text) <= ID_BYTES:
        try:
            if len(text.encode()) <= ID_BYTES:
                return text
        except UnicodeEncodeError:
            pass  # half of a surrogate pair
    raise DataError(
        f"the {what} id {value!r:.80} is neither an integer nor text of 1 to {ID_BYTES} bytes"
    )


def _id_text(what: str, value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        exact = 1 << (int(np.finfo(value).nmant) + 1)
        if math.isfinite(value) and abs(float(value)) >= exact:
            raise DataError(
                f"the {what} id {value!r} is a floating-point number of {exact:,} or more, which "
                "may have lost digits; give it as an integer or as text"
            )
    text = None if isinstance(value, (bool, np.bool_)) else _plain(value)
    if text is None:
        raise DataError(
            f"the {what} id {value!r:.80} is {with_article(type(value).__name__)}, expected an "
            "integer or text"
        )
    return text if text not in ("inf", "-inf") else ""


def number(value: Any) -> float:
    """A value as float64; NaN where it is missing, or text that is not a number.

    Raises:
        DataError: a value of its kind (a list, a mapping, a time) is not a number.
    """
    if isinstance(value, str):
        text = value.strip(BLANKS)
        if _NUMBER.fullmatch(text):
            return float(text)
        return float(_TRUTH.get(text.lower()) or _price(text) or "nan")
    if _missing(value):
        return math.nan
    if isinstance(value, (bool, int, float, Decimal, np.number, np.bool_)):
        try:
            return float(value)
        except OverflowError:  # an integer of 309 digits
            return math.copysign(math.inf, value)
    raise DataError(f"a number is {value!r:.80}, {with_article(type(value).__name__)}")


def _price(text: str) -> str | None:
    """The number in a text with groups of digits, a decimal comma or a currency; None: none."""
    found = _PRICE.fullmatch(text)
    if found is None:
        return None
    digits = re.sub(r"['’\s](?=[0-9]{3}(?:\D|$))", "", found["digits"].rstrip())
    mark = max(digits.rfind(","), digits.rfind("."))
    grouped = _GROUPED.fullmatch(digits)
    priced = found["before"] or found["then"] or found["after"]
    if grouped and (grouped["by"] == "," or digits.count(".") > 1 or priced):
        plain = re.sub("[.,]", "", digits)
    elif mark < 0:
        plain = digits
    else:
        head, tail = digits[:mark], digits[mark + 1 :]
        if _GROUPED.fullmatch(head):
            head = re.sub("[.,]", "", head)
        plain = f"{head}.{tail}"
    return found["sign"] + plain if _NUMBER.fullmatch(plain) else None


def json_value(value: Any, depth: int = 0) -> Any:
    """A value of a table or a store in a form that every JSON reader can read back.

    Integers beyond 64 bits, times and other values without a form in JSON become text; halves of
    surrogate pairs become question marks; bytes are read as UTF-8. Missing values, and numbers that
    are not finite, become null.
    """
    if isinstance(value, str):
        return _encodable(str(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if depth < JSON_DEPTH:
        if isinstance(value, Mapping):
            return {_encodable(str(k)): json_value(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple, np.ndarray, pl.Series)):
            return [json_value(part, depth + 1) for part in value]
    if _missing(value):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value in INT64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value) or _encodable(f"{value!s:.1000}")


def milliseconds(value: Any) -> int:
    """A time as an integer: milliseconds since 1970, or an order.

    Args:
        value: a datetime or text in ISO 8601 (UTC unless they name a zone), or a number, which is
            milliseconds already (or an order, where the log has no clock).

    Raises:
        DataError: it is something else, or 2^53 or more.
    """
    moment = value
    if isinstance(moment, np.datetime64):
        moment = moment.astype("datetime64[us]").item()
    if isinstance(moment, str):
        text = moment.strip(BLANKS)
        moment = None
        if _DAY.match(text):
            try:
                moment = datetime.fromisoformat(text)
            except ValueError:
                moment = None
    elif isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if isinstance(moment, datetime) and not _missing(moment):
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    legal = isinstance(moment, (int, float, np.number)) and not isinstance(moment, bool)
    if not legal or not abs(moment) < LARGEST_TIME:
        raise DataError(
            f"the time {value!r:.80} is neither a datetime, nor ISO 8601 text such as "
            "2026-11-01T12:00:00Z, nor a number below 2^53 in size; a number is milliseconds "
            "since 1970, or an order where the log has no clock"
        )
    return math.floor(moment)


def iso(milliseconds: int) -> str:
    """A time in milliseconds since 1970 as ISO 8601 text, for messages."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


# A series of values


def duration(text: str) -> int | None:
    """Milliseconds of a text such as "60d" or "48h"; None where it is something else."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})\s*([dh])", text.strip())
    return None if found is None else int(found[1]) * UNITS_MS[found[2]]


def _each(values: pl.Series, one: Callable[[Any], str | None]) -> pl.Series:
    """``one`` of each value, computed once for equal values."""
    distinct = values.drop_nulls().unique()
    old = distinct.to_numpy() if distinct.dtype.is_float() else distinct.to_list()
    new = pl.Series([one(value) for value in old], dtype=pl.String)
    table = pl.DataFrame([distinct.alias("old"), new.alias("new")])
    joined = pl.DataFrame([values.alias("old")]).join(
        table, on="old", how="left", maintain_order="left"
    )
    return joined["new"].alias(values.name)


def _text_series(values: pl.Series) -> pl.Series:
    """Each text in its form (:func:`_stripped`), null where it is empty; the same object as
    ``values`` where all are in their form already."""
    if not values.str.contains(_OTHERWISE).any():
        return values
    text = values.str.strip_chars(BLANKS)
    text = text.set((text == "").fill_null(False), None)
    text = text.str.replace(r"^(-?[0-9]+)\.0+$", "$1")
    return text.set((text == "-0").fill_null(False), "0")


def require_scalars(values: pl.Series, expected: str) -> None:
    """Raise a DataError where a column's type has no single values with a text."""
    dtype = values.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise DataError(f"column {values.name!r} holds {dtype}, expected {expected}")


def categories(values: pl.Series) -> pl.Series:
    """A series as categories, text; null: missing. See :func:`category`.

    Raises:
        DataError: the column holds lists, structs or bytes.
    """
    dtype = values.dtype
    if dtype == pl.String:
        text = _text_series(values)
        lower = text.str.to_lowercase()
        for word, digit in _TRUTH.items():
            text = text.set((lower == word).fill_null(False), digit)
        return text
    if dtype == pl.Boolean:
        return values.cast(pl.Int8).cast(pl.String)
    if dtype in (pl.Categorical, pl.Enum):
        return categories(values.cast(pl.String))
    require_scalars(values, "categories: text, numbers or booleans")
    return _plain_series(values)


def _plain_series(values: pl.Series) -> pl.Series:
    dtype = values.dtype
    if dtype.is_integer():
        return values.cast(pl.String)
    if dtype == pl.Null:
        return values.cast(pl.String)
    if dtype.is_float():
        values = values.fill_nan(None)
        integral = values.cast(pl.Int64, strict=False)
        same = (integral.cast(dtype) == values).fill_null(False)
        same &= (values.abs() < float(1 << 63)).fill_null(False)
        text = integral.cast(pl.String)
        rest = values.set(same, None)
        return text.zip_with(same, _each(rest, _plain)) if rest.count() else text
    return _each(values, _plain)


def id_texts(values: pl.Series) -> pl.Series:
    """A series as ids, each as text; null: missing. See :func:`external_id`.

    Raises:
        DataError: the column has no ids, or one that :func:`external_id` refuses.
    """
    _require_ids(values)
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        text = _text_series(values)
    else:
        if values.dtype.is_float():
            finite = values.is_finite().fill_null(False)
            values = values.set(~finite, None)
        text = _plain_series(values)
    bad = (text.str.len_bytes() > ID_BYTES) | text.str.contains("\0", literal=True)
    if bad.any():
        wrong = text.filter(bad.fill_null(False))[0]
        raise DataError(
            f"column {values.name!r} holds the id {wrong!r:.80} of {len(wrong.encode()):,} bytes, "
            f"expected ids of at most {ID_BYTES} bytes without zero bytes; is it the right column?"
        )
    return text


def id_integers(values: pl.Series) -> tuple[pl.Series, int]:
    """A series of ids as Int64, null where an id is missing or not an integer; and how many are not
    integers.

    Raises:
        DataError: the column has no ids.
    """
    dtype = values.dtype
    _require_ids(values)
    if dtype == pl.String:
        found = _integers(values)
        if found.null_count() == values.null_count():
            return found, 0
        rest = values.filter(found.is_null() & values.is_not_null())
        text = _text_series(rest)
        again = _integers(text)
        at = (found.is_null() & values.is_not_null()).arg_true()
        found = found.scatter(at, again)
        return found, again.null_count() - text.null_count()
    if dtype.is_integer():
        found = values.cast(pl.Int64, strict=False)
        return found, found.null_count() - values.null_count()
    if dtype == pl.Null:
        return values.cast(pl.Int64), 0
    if dtype.is_float():
        values = values.set(~values.is_finite().fill_null(False), None)
        found = values.cast(pl.Int64, strict=False)
        odd = (found.cast(dtype) != values).fill_null(False)
        if odd.any():
            found = found.set(odd, None)
        return found, found.null_count() - values.null_count()
    text = id_texts(values)
    found = _integers(text)
    return found, found.null_count() - text.null_count()


def _require_ids(values: pl.Series) -> None:
    dtype = values.dtype
    if dtype == pl.Boolean:
        raise DataError(f"column {values.name!r} holds booleans, expected ids")
    require_scalars(values, "ids")
    if dtype.is_float():
        exact = float(1 << (24 if dtype == pl.Float32 else 53))
        lost = (values.is_finite() & (values.abs() >= exact)).fill_null(False)
        if lost.any():
            raise DataError(
                f"column {values.name!r} holds the id {values.filter(lost)[0]:.0f} as a "
                f"floating-point number; those of {exact:,.0f} or more may have lost digits: "
                "write the column as integers or as text"
            )


def _integers(text: pl.Series) -> pl.Series:
    """Text as Int64; null where it is not a plainly written integer."""
    value = text.cast(pl.Int64, strict=False)
    odd = (
        (text.str.starts_with("0") & (text.str.len_bytes() > 1))
        | text.str.starts_with("+")
        | text.str.starts_with("-0")
    )
    if odd.any():
        value = value.set(odd.fill_null(False), None)
    return value


def numbers(values: pl.Series) -> NDArray[np.float64]:
    """A series as float64; NaN where a value is missing or not a number. See :func:`number`.

    Raises:
        DataError: the column holds lists, times or bytes.
    """
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        return numbers(values.cast(pl.String))
    if dtype == pl.String:
        found = values.cast(pl.Float64, strict=False)
        if found.null_count() > values.null_count():
            rest = (found.is_null() & values.is_not_null()).arg_true()
            text = values.gather(rest).str.strip_chars(BLANKS)
            again = text.cast(pl.Float64, strict=False)
            lower = text.str.to_lowercase()
            for word, digit in _TRUTH.items():
                again = again.set((lower == word).fill_null(False), float(digit))
            left = (again.is_null() & text.str.contains("[0-9]")).fill_null(False).arg_true()
            if len(left):
                again = again.scatter(left, _each(text.gather(left), _price).cast(pl.Float64))
            found = found.scatter(rest, again)
        infinite = (~found.is_finite()).fill_null(False)
        if infinite.any():  # "inf" and "nan" as text are not numbers; "1e999" is
            digits = values.str.contains("[0-9]").fill_null(False)
            found = found.set(infinite & ~digits, None)
    elif dtype == pl.Null:
        found = values.cast(pl.Float64)
    elif dtype.is_numeric() or dtype == pl.Boolean:
        found = values.cast(pl.Float64, strict=False)
    else:
        raise DataError(f"column {values.name!r} holds {dtype}, expected numbers")
    if found.null_count():
        found = found.fill_null(float("nan"))
    return found.to_numpy()
