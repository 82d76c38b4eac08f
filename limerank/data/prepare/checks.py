"""Values of event columns, checked: times, labels and request ids.

:class:`Good` counts bad rows by reason.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import BLANKS, DAY_MS, id_integers, id_texts, numbers
from limerank.data.labels import Label
from limerank.data.prepare.ids import Mask
from limerank.data.prepare.partition import Array, shuffle
from limerank.data.spec import EventSource
from limerank.errors import DataError, SpecError

CLOCK = frozenset("HIklMSTRrXcspPfQ")
"""Directives of a time of day; a format without any is one of dates."""
MINUTES = frozenset("MTRrXcs")
EXAMPLE_DAY = 20_778
"""2026-11-21 in days since 1970."""
SHOWN = 60
"""Characters of a bad value that a message shows."""
UNIT_ROWS = 10_000
ISO_ROWS = 20
OLDEST, NEWEST = 631_152_000_000, 4_102_444_800_000
"""1990 and 2100: other times mostly have another unit than the one in the description."""
KEY_OF_ZERO = np.uint64(0xD1B54A32D192ED03)
"""The key of a request whose own key would be 0, which means no request."""
NO_ID, FIRST, NEXT, RESUMED = range(4)
"""Of an event and its request id: it has none; it is the first with it; the event before it has
it too; so has the last impression before it, with other events between them."""
UNITS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
ISO = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)
ZONE_WORD = r"(\d)\s*(?:[Zz]|UTC|GMT)$"
"""How UTC is written behind a time, besides an offset."""
BEFORE_OFFSET = r"(:\d\d(?:[.,]\d+)?)\s+([+-]\d\d:?\d\d)$"
"""A blank before an offset, as in 2026-11-01 12:00:00 +0100."""
ISO_COMMA = r"(\d:\d\d:\d\d),(\d)"
ISO_ZONE = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%d %H:%M%#z",
)


class Good:
    """The rows of a batch that have passed all checks; each bad row counts for one reason.

    Args:
        rows: of the batch.
        reasons: takes the counts.
        examples: takes, of each reason, ``where`` and the first bad value that is not missing.
    """

    def __init__(
        self,
        rows: int,
        reasons: Counter[str],
        examples: dict[str, str] | None = None,
        where: str = "",
    ) -> None:
        self._rows, self._reasons, self._where = rows, reasons, where
        self._examples = {} if examples is None else examples
        self.mask: Mask = None

    def check(self, fine: Mask, reason: str, values: pl.Series | None = None) -> None:
        """Count the rows that are not ``fine``; ``values`` is the column that was checked."""
        if fine is None or fine.all():
            return
        mask = np.ones(self._rows, bool) if self.mask is None else self.mask
        self._reasons[reason] += int((mask & ~fine).sum())
        if values is not None and reason not in self._examples:
            wrong = values.filter(pl.Series(mask & ~fine)).drop_nulls()
            if len(wrong):
                self._examples[reason] = (
                    f"{self._where}, column {values.name!r}: {wrong[0]!r:.{SHOWN}}"
                )
        self.mask = mask & fine


def label_columns(
    label: Label, values: pl.Series, length: pl.Series | None, good: Good
) -> dict[str, Array]:
    """The columns of a label for all rows of a batch; ``good`` counts the bad ones."""
    key = f"label_{label.name}"
    if label.of_every_event:
        return {key: np.ones(len(values), np.float32)}
    if label.compares:
        good.check(values.is_not_null().to_numpy(), f"missing label {label.name}", values)
        weights = label.weights_of(values)
        return {key: (weights > 0).view(np.uint8) if label.kind == "binary" else weights}
    if label.kind == "binary" and label.at_least is None and _zeros_and_ones(values):
        return {key: values.cast(pl.UInt8).to_numpy()}
    given = numbers(values)
    finite = np.isfinite(given)
    good.check(finite, f"missing label {label.name}", values)
    if label.at_least is not None:
        reached = given >= label.at_least
        return {key: reached.view(np.uint8) if label.kind == "binary" else as_float32(reached)}
    if label.kind == "binary":
        positive = given == 1
        good.check(
            positive | (given == 0) | ~finite, f"label {label.name} is neither 0 nor 1", values
        )
        return {key: positive.view(np.uint8)}
    good.check((given >= 0) | ~finite, f"negative {label.name}", values)
    seconds = as_float32(given * label.scale)
    if label.cap is not None:
        seconds = np.minimum(seconds, np.float32(label.cap))
    if length is None:
        return {key: seconds}
    lengths = numbers(length)
    ratio = np.full(len(given), np.nan)
    np.divide(given, lengths, out=ratio, where=lengths > 0)
    return {key: seconds, f"ratio_{label.name}": as_float32(ratio)}


def _zeros_and_ones(values: pl.Series) -> bool:
    if not values.dtype.is_integer() or values.null_count():
        return False
    low, high = values.min(), values.max()
    return isinstance(low, int) and isinstance(high, int) and low >= 0 and high <= 1


def as_float32(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float32]:
    """The nearest float32; what is beyond them becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def times_of(values: pl.Series, source: EventSource) -> tuple[Array, NDArray[np.bool_] | None]:
    """Milliseconds since 1970 (or the order), and which are known (None: all)."""
    dtype = values.dtype
    if isinstance(dtype, pl.Datetime):
        result = values.dt.epoch("ms")
    elif dtype == pl.Date:
        result = values.cast(pl.Datetime("ms")).dt.epoch("ms")
    elif source.time is not None and source.time_unit == "text":
        result = _parse_times(values.cast(pl.String), source.time_format)
    else:
        factor = UNITS[source.time_unit] if source.time is not None else 1.0
        if dtype == pl.String:
            result = _scaled_text(values, factor)
        elif dtype.is_integer():
            result = _scaled_integers(values, factor)
        elif dtype.is_numeric() or dtype == pl.Boolean:
            _require_digits(values, source)
            result = _scaled_floats(values, factor)
        else:
            raise DataError(f"column {values.name!r} holds {dtype}, expected times or numbers")
    inside = result.is_between(-(1 << 58), 1 << 58)
    if not inside.all():
        result = result.set(~inside.fill_null(False), None)
    if result.null_count():
        return result.fill_null(0).to_numpy(), result.is_not_null().to_numpy()
    return result.to_numpy().astype(np.int64, copy=False), None


def _scaled_text(values: pl.Series, factor: float) -> pl.Series:
    """Numbers as text, as milliseconds; null where it is not a number. Integers stay exact."""
    lengths = values.cast(pl.Int64, strict=False)
    result = _scaled_integers(lengths, factor)
    if lengths.null_count() > values.null_count():
        rest = (lengths.is_null() & values.is_not_null()).arg_true()
        text = values.gather(rest).str.strip_chars(BLANKS)
        found = _scaled_integers(text.cast(pl.Int64, strict=False), factor)
        others = _scaled_floats(text.cast(pl.Float64, strict=False), factor)
        result = result.scatter(rest, found.zip_with(found.is_not_null(), others))
    return result


def _scaled_integers(values: pl.Series, factor: float) -> pl.Series:
    result = values.cast(pl.Int64, strict=False)
    if factor > 1:
        limit = (1 << 62) // 1000
        inside = result.is_between(-limit, limit).fill_null(False)
        if not inside.all():
            result = result.set(~inside, None)
        return result * int(factor)
    return result // round(1 / factor) if factor < 1 else result


def _scaled_floats(values: pl.Series, factor: float) -> pl.Series:
    """Floats as milliseconds. Many numbers are rounded to one float: the largest of them is taken,
    so that whole milliseconds stay exact."""
    given = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
    scaled = pl.Series(values.name, np.floor(np.nextafter(given, np.inf) * factor))
    return scaled.fill_nan(None).cast(pl.Int64, strict=False)


def _require_digits(values: pl.Series, source: EventSource) -> None:
    """Raise a DataError where floats are too large to distinguish one time from the next.

    (Nanoseconds as float64 are known to 256 of them, which is good enough.)
    """
    if values.dtype == pl.Float32:
        exact = float(1 << 24)
    elif values.dtype == pl.Float64 and source.time is None:
        exact = float(1 << 53)
    else:
        return
    lost = (values.is_finite() & (values.abs() >= exact)).fill_null(False)
    if lost.any():
        raise DataError(
            f"column {values.name!r} holds the {'time' if source.time else 'order'} "
            f"{values.filter(lost)[0]:.0f} as {values.dtype}; those of {exact:,.0f} or more have "
            "lost digits: write the column as integers, or as text"
        )


def _parse_times(text: pl.Series, form: str | None) -> pl.Series:
    """Text as milliseconds since 1970; null where it is not a time."""
    text = text.str.strip_chars(BLANKS)
    if form is not None:
        zoned = "%z" in form or "%#z" in form
        return _strptime(text, form, zoned)
    text = text.str.replace(ZONE_WORD, "${1}+00:00").str.replace(BEFORE_OFFSET, "$1$2")
    result = pl.Series(text.name, [None], dtype=pl.Int64).new_from_index(0, len(text))
    for iso in ISO + ISO_ZONE:
        if result.null_count() == text.null_count():
            break
        zoned = iso in ISO_ZONE
        result = result.zip_with(result.is_not_null(), _strptime(text, iso, zoned))
    if result.null_count() > text.null_count():
        # ISO 8601 allows a comma before the fraction of a second.
        comma = (result.is_null() & text.str.contains(ISO_COMMA)).fill_null(False)
        if comma.any():
            pointed = text.filter(comma).str.replace(ISO_COMMA, "$1.$2")
            result = result.scatter(comma.arg_true(), _parse_times(pointed, None))
    return result


def _strptime(text: pl.Series, form: str, zoned: bool) -> pl.Series:
    kind = pl.Datetime("ms", "UTC") if zoned else pl.Datetime("ms")
    directives = set(re.findall(r"%[-#.:_0-9]*([A-Za-z%])", form))
    if not directives & CLOCK:
        days = text.str.strptime(pl.Date, form, strict=False)
        return days.cast(pl.Datetime("ms")).dt.epoch("ms")
    if directives & set("HI") and not directives & MINUTES:
        text, form = text + " 00", form + " %M"  # hours alone, such as 2026110112
    return text.str.strptime(kind, form, strict=False).dt.epoch("ms")


def require_time_format(source: EventSource) -> None:
    """Raise a :class:`SpecError` where no time can be read with a source's ``time_format``."""
    form = source.time_format
    if form is None:
        return
    try:
        written = pl.Series([datetime(2026, 11, 21, 17, 38, 59, tzinfo=UTC)]).dt.strftime(form)
        read = _strptime(written, form, "%z" in form or "%#z" in form)[0]
        readable = read is not None and read // DAY_MS == EXAMPLE_DAY
        why = f"it writes 2026-11-21 17:38:59 as {written[0]!r}, which does not give the day"
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        readable, why = False, str(error).splitlines()[0].rstrip(".")
    if not readable:
        raise SpecError(
            f"time_format = {form!r} of {source.shown_name}: {why}; expected a year, a month and a "
            'day, and perhaps hours and minutes, such as "%d.%m.%Y %H:%M"'
        )


def seem_written(values: pl.Series, source: EventSource) -> bool:
    """Whether times that are to be numbers are text in ISO 8601."""
    if source.time is None or source.time_unit == "text" or values.dtype != pl.String:
        return False
    some = values.head(UNIT_ROWS).drop_nulls().head(ISO_ROWS)
    return len(some) > 0 and 2 * _parse_times(some, None).count() > len(some)


def better_unit(values: pl.Series, source: EventSource) -> tuple[str, float] | None:
    """The unit that times seem to have, where it is not the one given, and one of these times.

    That is the only unit that puts the median into the years 1990 to 2100, where the one given does
    not.
    """
    given = source.time_unit
    if source.time is None or not (values.dtype.is_numeric() or values.dtype == pl.String):
        return None
    median = values.head(UNIT_ROWS).cast(pl.Float64, strict=False).drop_nans().median()
    if not isinstance(median, float):
        return None
    fitting = [name for name, factor in UNITS.items() if OLDEST <= median * factor <= NEWEST]
    if given in fitting or len(fitting) != 1:
        return None
    if given == "text" and values.dtype == pl.String and source.time_format is not None:
        return None
    return fitting[0], median


def request_keys(values: pl.Series) -> tuple[NDArray[np.uint64], bool]:
    """A key for each request id, never 0; 0 where there is no id. And whether some keys are hashes,
    which another version of Polars may compute otherwise.

    Request ids have the form of user and item ids: 7, 7.0 and ``"7"`` are one for every type of
    column. Keys of 64-bit integers are exact; those of other text, and of larger integers, are
    64-bit hashes.

    Raises:
        DataError: the column holds no ids, or floats that may have lost digits.
    """
    try:
        lengths, others = id_integers(values)
        texts = id_texts(values.filter(lengths.is_null())) if others else None
    except DataError as error:
        raise DataError(f"request ids: {error}") from None
    keys = shuffle(lengths.fill_null(0).to_numpy())
    keys = np.where(keys == 0, KEY_OF_ZERO, keys)
    hashed = False
    if lengths.null_count():
        missing = lengths.is_null().to_numpy()
        keys[missing] = 0
        if texts is not None:
            hashes = texts.hash().to_numpy().astype(np.uint64)
            hashes = np.where(hashes == 0, KEY_OF_ZERO, hashes)
            hashes[texts.is_null().to_numpy()] = 0
            keys[missing] = hashes
            hashed = True
    return keys, hashed


def request_steps(
    keys: NDArray[np.uint64], shown: NDArray[np.bool_], new_user: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """``NO_ID``, ``FIRST``, ``NEXT`` or ``RESUMED`` of each of sorted events.

    Args:
        keys: of their request ids; 0: no id. Those of events that are not shown do not count.
        shown: which events are impressions.
        new_user: which events are the first of their user.
    """
    steps = ((keys != 0) & shown).view(np.uint8) * np.uint8(FIRST)
    rows = np.flatnonzero(shown)
    owner = np.cumsum(new_user)[rows]
    same = (keys[rows[1:]] == keys[rows[:-1]]) & (keys[rows[1:]] != 0)
    same &= owner[1:] == owner[:-1]
    steps[rows[1:][same]] = np.where(np.diff(rows) == 1, NEXT, RESUMED)[same]
    return steps
