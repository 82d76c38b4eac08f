"""A value has one form, whatever its source: a value and a series of it always agree."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data import canonical
from limerank.data.encoding import encode, fit, frame_of
from limerank.data.prepare.ids import Ids
from limerank.data.spec import Feature, Table
from limerank.errors import DataError

BLANK = st.text(st.sampled_from(canonical.BLANKS), max_size=2)
NUMERALS = st.one_of(
    st.integers(-(1 << 70), 1 << 70).map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(repr),
    st.from_regex(r"[+-]?0*[0-9]{1,20}(\.0{0,3}[0-9]?)?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(
        ["true", "False", "TRUE", "nan", "NaN", "inf", "-0", "-0.0", "1_000", "٣", "0x1F", "1e999",
         "", ".", "-", "+", "5.", ".5", "infinity", "1,5", "$3.50", "7.0", "007", "+7"]
    ),
)  # fmt: skip
TEXTS = st.one_of(NUMERALS, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
SPELT = st.tuples(BLANK, TEXTS, BLANK).map("".join)
FLOATS = st.one_of(st.floats(), st.integers(-(1 << 60), 1 << 60).map(float))


def id_or_none(value: object) -> int | str | None:
    try:
        return canonical.external_id("item", value)
    except DataError:
        return None


@given(st.lists(SPELT, max_size=6))
@settings(max_examples=400)
def test_text_has_one_category_in_a_series_and_alone(values: list[str]) -> None:
    series = canonical.categories(pl.Series("c", values, dtype=pl.String))
    assert series.to_list() == [canonical.category(value) for value in values]


@given(st.lists(SPELT, max_size=6))
@settings(max_examples=400)
def test_text_has_one_id_in_a_series_and_alone(values: list[str]) -> None:
    series = pl.Series("c", values, dtype=pl.String)
    alone = [id_or_none(value) for value in values]
    usable = [value for value in values if "\0" not in value.strip(canonical.BLANKS)]
    if len(usable) < len(values):
        with pytest.raises(DataError, match="zero bytes"):
            canonical.id_texts(series)
        return
    texts = canonical.id_texts(series).to_list()
    assert texts == [None if one is None else str(one) for one in alone]
    integers, others = canonical.id_integers(series)
    assert integers.to_list() == [one if isinstance(one, int) else None for one in alone]
    assert others == sum(isinstance(one, str) for one in alone)


@given(st.lists(SPELT, max_size=6))
@settings(max_examples=400)
def test_text_has_one_number_in_a_series_and_alone(values: list[str]) -> None:
    series = canonical.numbers(pl.Series("c", values, dtype=pl.String))
    np.testing.assert_array_equal(series, [canonical.number(value) for value in values])


@given(st.lists(FLOATS | st.none(), max_size=6), st.sampled_from([pl.Float64, pl.Float32]))
@settings(max_examples=300)
def test_floats_agree(values: list[float | None], dtype: type[pl.Float64]) -> None:
    series = pl.Series("c", values, dtype=pl.Float64, strict=False).cast(dtype)
    alone = [None if v is None else v for v in series.to_list()]
    if dtype == pl.Float32:
        alone = [None if v is None else np.float32(v) for v in alone]
    assert canonical.categories(series).to_list() == [canonical.category(v) for v in alone]
    exact = 2.0 ** (24 if dtype == pl.Float32 else 53)
    lost = any(v is not None and math.isfinite(v) and abs(v) >= exact for v in alone)
    if lost:
        with pytest.raises(DataError, match="lost digits"):
            canonical.id_texts(series)
        with pytest.raises(DataError, match="lost digits"):
            canonical.id_integers(series)
        return
    ids = [id_or_none(v) for v in alone]
    assert canonical.id_texts(series).to_list() == [None if i is None else str(i) for i in ids]
    assert canonical.id_integers(series)[0].to_list() == [
        one if isinstance(one, int) else None for one in ids
    ]


@given(st.lists(st.integers(0, (1 << 64) - 1) | st.none(), max_size=6))
def test_unsigned_integers_keep_every_digit(values: list[int | None]) -> None:
    series = pl.Series("c", values, dtype=pl.UInt64)
    ids = [id_or_none(value) for value in values]
    assert canonical.id_texts(series).to_list() == [None if i is None else str(i) for i in ids]
    integers, others = canonical.id_integers(series)
    assert integers.to_list() == [one if isinstance(one, int) else None for one in ids]
    assert others == sum(isinstance(one, str) for one in ids)


@pytest.mark.parametrize("same", [
    [7, 7.0, "7", " 7 ", "7.0", "7.000", np.int32(7), np.float32(7), np.uint64(7), Decimal("7.00")],
    ["a b", " a b\t", "\ufeffa b"],
    [1 << 63, str(1 << 63), f" {1 << 63} ", np.uint64(1 << 63)],
    [0, -0.0, "0", "-0", "-0.0"],
    ["007", " 007"],
    [7.5, "7.5", np.float32(7.5)],
])  # fmt: skip
def test_spellings_of_one_id(same: list[object]) -> None:
    assert len({canonical.external_id("item", value) for value in same}) == 1


@pytest.mark.parametrize("value", [
    True, np.bool_(False), None, "", "  ", math.nan, math.inf, "x" * 257, "a\0b", "\ud800", b"7",
    [7], {"a": 1}, 9007199254740993.0, np.float32(1 << 24), 1 << 2000,
])  # fmt: skip
def test_values_that_are_not_ids_are_refused(value: object) -> None:
    with pytest.raises(DataError, match="item id"):
        canonical.external_id("item", value)


@pytest.mark.parametrize("same", [
    [True, "true", "True", " TRUE", 1, 1.0, "1", "1.0", np.bool_(True)],
    [0.1, "0.1", np.float32(0.1)],
    ["rock", " rock", "rock\u00a0"],
])  # fmt: skip
def test_spellings_of_one_category(same: list[object]) -> None:
    assert len({canonical.category(value) for value in same}) == 1


def test_different_values_stay_different() -> None:
    given = ["7", "07", "+7", "7.5", "7,0", "7e0", "-7", "seven", "SEVEN", "1.10", "1.1"]
    assert len({canonical.external_id("item", value) for value in given}) == len(given)
    assert len({canonical.category(value) for value in given}) == len(given)


@pytest.mark.parametrize(("value", "split", "expected"), [
    ("rock| indie |rock||", "|", ["rock", "indie"]),
    (["rock", " indie", None, ""], "|", ["rock", "indie"]),
    ([1, 1.0, "1", True], None, ["1"]),
    (None, "|", []),
    (7.0, "|", ["7"]),
])  # fmt: skip
def test_values_of_a_multi_valued_feature(
    value: object, split: str | None, expected: list[str]
) -> None:
    assert canonical.category_list(value, split) == expected


@pytest.mark.parametrize("series", [
    pl.Series("when", [date(2026, 11, 1), None]),
    pl.Series("when", [datetime(2026, 11, 1, 12, 0, 1, 5000)]),
    pl.Series("when", [Decimal("7.00"), Decimal("7.10")]),
    pl.Series("when", ["a", " a", None], dtype=pl.Categorical),
    pl.Series("when", [timedelta(seconds=3)]),
    pl.Series("when", [None, None]),
    pl.Series("when", [True, None]),
])  # fmt: skip
def test_other_columns_agree(series: pl.Series) -> None:
    alone = [canonical.category(value) for value in series.to_list()]
    assert canonical.categories(series).to_list() == alone


@pytest.mark.parametrize("series", [
    pl.Series("odd", [[1]]), pl.Series("odd", [b"a"]), pl.Series("odd", [{"a": 1}]),
])  # fmt: skip
def test_columns_without_single_values_are_refused(series: pl.Series) -> None:
    for read in (
        canonical.categories,
        canonical.id_texts,
        canonical.id_integers,
        canonical.numbers,
    ):
        with pytest.raises(DataError, match="'odd' holds"):
            read(series)


@pytest.mark.parametrize("same", [
    [1_780_000_000_123, 1_780_000_000_123.9, "2026-05-28T20:26:40.123Z", "2026-05-28 20:26:40.1239",
     "2026-05-28T22:26:40.123+02:00", datetime(2026, 5, 28, 20, 26, 40, 123999),
     datetime(2026, 5, 28, 22, 26, 40, 123000, tzinfo=timezone(timedelta(hours=2))),
     datetime(2026, 5, 28, 20, 26, 40, 123000, tzinfo=UTC),
     np.datetime64("2026-05-28T20:26:40.123456"), np.int64(1_780_000_000_123)],
    ["2026-05-28", date(2026, 5, 28), "2026-05-28T00:00", 1_779_926_400_000],
])  # fmt: skip
def test_spellings_of_one_time(same: list[object]) -> None:
    assert len({canonical.milliseconds(value) for value in same}) == 1


@pytest.mark.parametrize("value", [
    None, True, "yesterday", "1718000000", "", math.nan, math.inf, 1 << 53, [1], "2026-13-01",
])  # fmt: skip
def test_values_that_are_not_times_are_refused(value: object) -> None:
    with pytest.raises(DataError, match="the time"):
        canonical.milliseconds(value)


# Values from a file, from Python and from JSON are encoded alike

VALUES = st.one_of(
    SPELT,
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    # Text keeps its exponent: "1e+16" is not 10000000000000000, which that float is.
    st.floats(allow_infinity=False).filter(lambda value: "e" not in repr(value)),
)
SHOP = Table(
    files=("items.csv",),
    id="id",
    features=(
        Feature(name="group", kind="categorical"),
        Feature(name="tags", kind="categorical", split="|"),
    ),
)


def spelled(value: object) -> str:
    """How a CSV file holds a value."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_mappings_are_encoded_as_a_file_s_rows_are(rows: list[tuple[object, object]]) -> None:
    ids = pl.Series("id", range(len(rows)))
    frame = pl.DataFrame(
        [
            ids,
            pl.Series("group", [spelled(group) for group, _ in rows], dtype=pl.String),
            pl.Series("tags", [spelled(tags) for _, tags in rows], dtype=pl.String),
        ]
    )
    encoding = fit(frame, SHOP.features, np.ones(len(rows), bool), ids)
    given = frame_of(SHOP, [{"id": id, "group": g, "tags": t} for id, (g, t) in enumerate(rows)])
    found, expected = (encode(one, SHOP.features, encoding, ids) for one in (given, frame))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


@given(st.lists(VALUES, min_size=1, max_size=12), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_ids_have_one_code_for_all_spellings(values: list[object], size: int) -> None:
    """In batches, as a log is read: each id's code stands for its one form."""
    texts = [spelled(value) for value in values]
    texts = [text for text in texts if "\0" not in text and len(text.encode()) <= 256]
    ids = Ids(True)
    found: list[str | None] = []
    for at in range(0, len(texts), size):
        codes, known = ids.codes(pl.Series("user", texts[at : at + size], dtype=pl.String))
        held = ids.values(codes).to_list()
        found += (
            held if known is None else [h if k else None for h, k in zip(held, known, strict=True)]
        )
    alone = [id_or_none(text) for text in texts]
    assert found == [None if id is None else str(id) for id in alone]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$12.99", 12.99),
        ("1,299.00", 1299),
        ("1.299,00 €", 1299),
        ("€ 1.299", 1299),
        ("1 299,50 kr", 1299.5),
        ("12,99", 12.99),
        ("1,299", 1299),
        ("0,125", 0.125),
        ("1.299", 1.299),
        ("R$ 1.234.567,89", 1234567.89),
        ("1'000.50 CHF", 1000.5),
        ("-5 eur", -5),
        ("SKU 12", math.nan),
        ("from 12.99", math.nan),
        ("1,2,3", math.nan),
        ("12,34,567", math.nan),
        ("5%", math.nan),
        ("$", math.nan),
    ],
)
def test_prices_as_shops_write_them(text: str, value: float) -> None:
    np.testing.assert_equal(canonical.number(text), value)
    np.testing.assert_equal(canonical.numbers(pl.Series([text, f" {text} "])), [value, value])


def test_text_in_a_numeric_column_of_a_frame_is_refused() -> None:
    table = Table(files=("items.csv",), features=(Feature(name="price", kind="numeric"),))
    frame = frame_of(table, [{"id": 1, "price": " 3.5"}, {"id": 2, "price": None}, {"id": 3}])
    assert frame["price"].fill_nan(None).to_list() == [3.5, None, None]
    with pytest.raises(DataError, match=r"column 'price': the value '3.50 each' is not a number"):
        frame_of(table, [{"id": 1, "price": "3.50 each"}])
    with pytest.raises(DataError, match="column 'price'"):
        frame_of(table, [{"id": 1, "price": [1]}])


def test_messages_name_the_type_with_its_article() -> None:
    with pytest.raises(DataError, match="is an object, expected an integer or text"):
        canonical.external_id("item", object())
    with pytest.raises(DataError, match=r"a number is \[1\], a list"):
        canonical.number([1])


@pytest.mark.parametrize(("value", "expected"), [
    (1 << 70, str(1 << 70)), (math.inf, None), (np.float32(0.5), 0.5), ("\ud800", "?"),
    ({"a": [1 << 70, date(2026, 1, 1)]}, {"a": [str(1 << 70), "2026-01-01"]}),
    (Decimal("1.50"), "1.50"), (True, True), (np.int64(3), 3), (np.array([1.0]), [1.0]),
])  # fmt: skip
def test_values_that_json_can_hold(value: object, expected: object) -> None:
    assert canonical.json_value(value) == expected
