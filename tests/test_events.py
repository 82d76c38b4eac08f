"""Events: what is one, and its bytes."""

from __future__ import annotations

import math
import struct
import zlib
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limerank.data.canonical import BLANKS, external_id
from limerank.data.events import Event, event_of
from limerank.data.packing import pack, pack_list, unpack, unpack_list
from limerank.errors import DataError, FormatError

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ids = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9
    ).filter(lambda text: text.strip(BLANKS)),
)
positive = st.floats(0, allow_nan=False, allow_infinity=False)
values = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
)
mappings = st.fixed_dictionaries(
    {"user": ids, "item": ids, "time": st.integers(-(1 << 52), 1 << 52)},
    optional={
        "labels": st.dictionaries(names, positive, max_size=3),
        "ratios": st.dictionaries(names, positive, max_size=2),
        "features": st.dictionaries(names, values, max_size=3),
        "id": st.one_of(st.uuids().map(str), st.integers(0, 1 << 60)),
    },
)


@given(mappings)
def test_an_event_is_what_its_bytes_say(mapping):
    event = event_of(mapping)
    assert unpack(pack(event), event.user, event.time, event.id) == event
    assert event_of(mapping) == event, "its id follows from it"


@given(ids, st.lists(mappings, max_size=6))
def test_a_list_is_what_its_bytes_say(user, given_events):
    user = external_id("user", user)
    events = [event_of({**mapping, "user": user}) for mapping in given_events]
    assert unpack_list(pack_list(user, events)) == (user, events)


@given(mappings, st.data())
def test_damage_is_found(mapping, data):
    event = event_of(mapping)
    for packed, read in (
        (pack(event), lambda bad: unpack(bad, event.user, event.time, event.id)),
        (pack_list(event.user, [event, event]), unpack_list),
    ):
        cut = data.draw(st.integers(0, len(packed) - 1))
        with pytest.raises(FormatError):
            read(packed[:cut])
        flipped = bytearray(packed)
        flipped[cut] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(FormatError):
            read(bytes(flipped))
        with pytest.raises(FormatError):
            read(packed + b"\0")


def test_an_event_of_another_user_or_time_is_damage():
    event = event_of({"user": 1, "item": 2, "time": 3, "id": "a"})
    for user, time, id in ((2, 3, b"a"), (1, 4, b"a"), (1, 3, b"b")):
        with pytest.raises(FormatError, match="damaged"):
            unpack(pack(event), user, time, id)


def test_a_later_version_is_refused():
    import zlib

    packed = bytearray(pack_list(1, [])[:-4])
    packed[0] = 2
    packed += zlib.crc32(packed).to_bytes(4, "little")
    with pytest.raises(FormatError, match="version 2, expected 1"):
        unpack_list(bytes(packed))


def test_an_event_is_small():
    event = event_of(
        {
            "user": 7,
            "item": 31_000,
            "time": 1_700_000_000_000,
            "labels": {"click": 1, "watch": 12.5},
        }
    )
    assert len(pack(event)) == 28
    many = pack_list(7, [event] * 100)
    assert len(many) < 100 * 32


def test_an_id_follows_from_the_content():
    plain = {"user": 1, "item": 2, "time": 3}
    ids = {
        event_of({**plain, **more}).id
        for more in ({}, {"user": 2}, {"item": 3}, {"time": 4}, {"labels": {"click": 1}}, {"id": 9})
    }
    assert len(ids) == 6
    assert event_of({**plain, "labels": {"watch": math.nan}}) == event_of(plain), "not known"


def test_numbers_that_an_earlier_version_wrote_are_read_as_something_safe():
    """An infinite value is not known; what was read can be packed again."""
    event = event_of({"user": 1, "item": 2, "time": 3, "features": {"a": 0.5, "b": 2.5}})
    data = bytearray(pack(event)[:-4])
    at = data.index(struct.pack("<f", 0.5))
    data[at : at + 4] = struct.pack("<f", math.inf)
    sealed = bytes(data) + zlib.crc32(data, zlib.crc32(b"1\x003\0" + event.id)).to_bytes(
        4, "little"
    )
    found = unpack(sealed, 1, 3, event.id)
    assert found.features == {"b": 2.5}
    assert unpack_list(pack_list(1, [found])) == (1, [found])


def test_an_id_does_not_depend_on_how_the_event_is_written():
    one = {"user": 1, "item": 2, "time": 3, "labels": {"click": 1, "watch": 34.7}}
    ids = {
        event_of({**one, **more}).id
        for more in (
            {},
            {"user": "1", "item": 2.0, "time": 3.0},
            {"labels": {"watch": 34.7, "click": 1.0}},
            {"labels": {"click": True, "watch": float(np.float32(34.7)), "like": 0}},
            {"features": {"tab": 5}},
            {"features": {"tab": 5.0, "page": "home"}},
        )
    }
    assert len(ids) == 1


def test_times():
    at = datetime(2024, 1, 2, tzinfo=UTC)
    assert event_of({"user": 1, "item": 2, "time": at}).time == 1_704_153_600_000
    assert event_of({"user": 1, "item": 2, "time": at.replace(tzinfo=None)}).time == (
        1_704_153_600_000
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": None}, "no time"),
        ({"user": None, "item": None}, "no user, no item"),
        ({"time": math.nan}, "time nan"),
        ({"time": "yesterday"}, "time 'yesterday'"),
        ({"time": 1 << 60}, "time 1152921504606846976"),
        ({"click": 1}, "unknown 'click'"),
        ({"labels": {"click": -1}}, "expected 0 or more"),
        ({"labels": {"click": math.inf}}, "expected 0 or more"),
        ({"labels": {"click": "yes"}}, "expected a number"),
        ({"labels": [1]}, "expected a mapping"),
        ({"labels": {3: 1}}, "the name 3"),
        ({"features": {"tab": [1]}}, "expected a number or text"),
        ({"features": {"tab": 1}, "context": {"tab": 2}}, "'tab' is in both"),
        ({"id": ""}, "the id of an event"),
        ({"id": "x" * 65}, "the id of an event"),
        ({"id": 1.5}, "the id of an event"),
        ({"item": True}, "item id True"),
        ({"features": {"tab": math.inf}}, "'tab' of an event's features is inf"),
        ({"context": {"tab": -math.inf}}, "expected a finite number"),
        ({"features": {"tab": "a\ud800"}}, "half of a surrogate pair"),
        ({"features": {"\udfff": 1}}, "have the name"),
        ({"features": {"tab": "x" * 70_000}}, "70,000 characters"),
        ({"id": "a\ud800"}, "the id of an event"),
    ],
)
def test_wrong_events(change, message):
    with pytest.raises(DataError, match=message):
        event_of({"user": 1, "item": 2, "time": 3, **change})
    with pytest.raises(DataError, match="expected a mapping"):
        event_of([1])  # type: ignore[arg-type]


def test_events_compare_by_what_they_say():
    assert Event(1, 2, 3) == Event(1, 2, 3)
