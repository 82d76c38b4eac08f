"""Logs of positives: labels from words, event types, and what a request is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from limerank.data.dataset import Dataset
from limerank.data.event_log import EventForm
from limerank.data.events import event_of
from limerank.data.prepare import prepare
from limerank.errors import DataError, SpecError
from limerank.serving.fill import _events

START = 1_750_000_000
LABEL: dict[str, Any] = {"name": "purchase", "kind": "positive", "column": "event"}
VISITS = [
    (0, "a", "view"),
    (60, "a", "cart"),
    (120, "b", "view"),
    (180, "a", "purchase"),
    (240, "b", "purchase"),
    # the next visit
    (90_000, "b", "view"),
    (90_060, "c", "view"),
    # and the next
    (180_000, "c", "view"),
    (180_060, "c", "purchase"),
]
"""Seconds, item and type of a user's events: three sessions; the second has no purchase."""


def log(events: list[tuple[int, str, str]] = VISITS, users: int = 5) -> pl.DataFrame:
    rows = [
        {"user_id": f"u{user}", "item_id": item, "time": START + at + user, "event": event}
        for user in range(users)
        for at, item, event in events
    ]
    return pl.DataFrame(rows)


def prepared(tmp_path: Path, rows: Any, label: dict[str, Any] = LABEL, **more: Any) -> Dataset:
    description = {
        "name": "shop",
        "events": [{"time": "time"}],
        "labels": [label],
        "split": {"leave_last": 1},
        **more,
    }
    out = tmp_path / "shop"
    prepare(description, out, events=rows, overwrite=True)
    return Dataset(out)


def requests_of_first_user(dataset: Dataset) -> list[tuple[list[str], list[float], int]]:
    """Items and weights of each request of a user, and the events of its history."""
    found = []
    own = np.flatnonzero(dataset.requests["user"] == 0)
    for row in own:
        first = dataset.requests["first"][row]
        rows = np.arange(first, first + dataset.requests["count"][row])
        items = dataset.item_ids[dataset.events["item"][rows]].tolist()
        weights = dataset.events["label_purchase"][rows].tolist()
        ends = dataset.requests["history_end"][row] - dataset.requests["history_start"][row]
        found.append((items, weights, int(ends)))
    return found


def test_a_request_is_a_positive_after_all_events_before_it(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, log(), {**LABEL, "equals": "purchase"})
    assert requests_of_first_user(dataset) == [
        (["a"], [1.0], 3),
        (["b"], [1.0], 4),
        (["c"], [1.0], 8),
    ]
    assert dataset.encoding["labels"][0]["kind"] == "positive"
    assert dataset.events["label_purchase"].dtype == np.float32
    splits = dataset.manifest["summary"]["positives"]["purchase"]
    assert splits == {"train": 5, "validation": 5, "test": 5, "held-out": 0}


def test_a_request_is_a_session_with_positives(tmp_path: Path) -> None:
    """Its history ends before the session, and sessions without a positive are history only."""
    dataset = prepared(tmp_path, log(), {**LABEL, "equals": "purchase"}, requests={"by": "session"})
    assert requests_of_first_user(dataset) == [
        (["a", "a", "b", "a", "b"], [0.0, 0.0, 0.0, 1.0, 1.0], 0),
        (["c", "c"], [0.0, 1.0], 7),
    ]
    assert "a request is a session (it ends at a gap of" in dataset.summary.text()


def test_sessions_of_a_column(tmp_path: Path) -> None:
    """They are requests by default, divided by no gap and by no event of another source."""
    events = log().with_columns(
        session=pl.col("user_id") + (pl.col("time") // 86_400 // 2).cast(str)
    )
    searches = events.filter(pl.col("event") == "cart").with_columns(
        pl.col("time") + 30, event=pl.lit("search")
    )
    sources = [
        {"time": "time", "request": "session"},
        {"time": "time", "shown": False},
    ]
    dataset = prepared(
        tmp_path, [events, searches], {**LABEL, "equals": "purchase"}, events=sources
    )
    ends = [end for _, _, end in requests_of_first_user(dataset)]
    assert ends[0] == 0
    assert ends[-1] in (6, 8)
    weights = [one for _, weights, _ in requests_of_first_user(dataset) for one in weights]
    assert sum(weights) == 3


def test_weights_and_the_case_of_words(tmp_path: Path) -> None:
    events = log().with_columns(
        pl.when(pl.col("item_id") == "c")
        .then(pl.col("event").str.to_uppercase())
        .otherwise("event")
    )
    label = {**LABEL, "any_of": ["cart", "Purchase"], "weights": {"purchase": 3}}
    dataset = prepared(tmp_path, events, label)
    weights = dataset.events["label_purchase"][:9].tolist()
    assert weights == [0, 1, 0, 3, 3, 0, 0, 0, 3]


def test_the_type_of_an_event_is_an_outcome_of_histories(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, log(), {**LABEL, "equals": "purchase"})
    assert dataset.encoding["event_features"] == [
        {"name": "event", "kind": "categorical", "size": 4, "when": "outcome"}
    ]
    assert "feature_event" in dataset.encoder.columns
    tokens = dataset.batch(np.array([2])).users.tokens[0, :, 1]
    types = [event for _, _, event in VISITS][: len(tokens)]
    assert len(set(tokens.tolist())) == len(set(types))
    assert all(
        (tokens[one] == tokens[other]).item() == (types[one] == types[other])
        for one in range(len(tokens))
        for other in range(len(tokens))
    )


def form_of(dataset: Dataset) -> EventForm:
    return EventForm(dataset.manifest, dataset.path)


def test_types_in_another_case_are_one_outcome(tmp_path: Path) -> None:
    """Of the vocabulary, and of posted events; the most frequent spelling is shown."""
    rows = log().with_columns(
        pl.when(pl.col("user_id") == "u0")
        .then(pl.col("event").str.to_uppercase())
        .otherwise("event")
    )
    dataset = prepared(tmp_path, rows, {**LABEL, "equals": "purchase"})
    assert dataset.encoding["event_features"][0]["size"] == 4
    form = form_of(dataset)
    events = [
        event_of({"user": 1, "item": "a", "time": k, "features": {"event": one}})
        for k, one in enumerate(["Purchase", "purchase", "VIEW", "other"])
    ]
    posted = form.log(events)
    codes = posted.columns["feature_event"].tolist()
    assert codes[0] == codes[1] != codes[2] > 0 == codes[3]
    assert posted.columns["label_purchase"].tolist() == [1, 1, 0, 0]
    assert form.outcomes(posted.columns, posted.rows)[0] == ("purchase",)


def test_a_posted_event_needs_its_type_or_its_label(tmp_path: Path) -> None:
    """Each follows from the other; and an item alone in a history is a positive."""
    label = {**LABEL, "equals": "purchase", "weights": {"purchase": 3}}
    dataset = prepared(tmp_path, log(), label, history={"keep": "purchase"})
    form = form_of(dataset)
    by_type, by_label, view = (
        event_of({"user": 1, "item": "a", "time": START * 1000, **given})
        for given in (
            {"features": {"event": "purchase"}},
            {"labels": {"purchase": 1}},
            {"features": {"event": "view"}},
        )
    )
    posted = form.log([by_type, by_label, view]).columns
    assert posted["label_purchase"].tolist() == [3, 1, 0]
    assert posted["feature_event"][0] == posted["feature_event"][1] > 0
    assert [form.retained(one) for one in (by_type, by_label, view)] == [True, True, False]
    assert form.entries(["a"]) == [{"item": "a", "labels": {"purchase": 1}}]
    for event in (by_type, by_label, view):
        form.check(event)


def test_positives_beside_impressions(tmp_path: Path) -> None:
    """Both are predicted; requests are groups of impressions."""
    rows = log().with_columns(clicked=pl.Series([0, 1, 1, 0, 1, 0, 1, 1, 0] * 5))
    clicked = {"name": "click", "kind": "binary", "column": "clicked"}
    description = {
        "name": "both",
        "events": [{"time": "time"}],
        "labels": [clicked, {**LABEL, "equals": "purchase"}],
        "split": {"leave_last": 1},
    }
    prepare(description, tmp_path / "out", events=rows)
    dataset = Dataset(tmp_path / "out")
    assert dataset.tasks == ("click", "purchase")
    assert sum(dataset.manifest["counts"]["impressions"].values()) == 45
    batch = dataset.batch(dataset.requests_of("train"))
    assert batch.labels[..., 0].sum() > 0
    assert batch.labels[..., 1].sum() == 5 * 2
    assert form_of(dataset).main == "click"


def test_a_dirty_log(tmp_path: Path) -> None:
    """Repeated rows, words in any case, times with zones and without, uuids, prices as text."""
    uuids = ["8C3B4DF8-0001-4000-8000-000000000001", "8c3b4df8-0002-4000-8000-000000000002"]
    rows = [
        (uuids[0], "p1", "2026-03-01T10:00:00+02:00", "View", "$12.50"),
        (uuids[0], "p1", "2026-03-01T10:00:00+02:00", "View", "$12.50"),
        (uuids[0], "p1", "2026-03-01 08:00:00", "view", "12,50 €"),
        (uuids[0], "p1", "2026-03-01 08:01:00 UTC", "add_to_cart", ""),
        (uuids[0], "p1", "2026-03-01 09:02:00 +0100", " PURCHASE ", "1,299.00"),
        (uuids[1], "p2", "2026-03-02T08:00:00.5Z", "view", "n/a"),
        (uuids[1], "p2", "2026-03-02T08:00:00,5Z", "purchase", "1.299,00 EUR"),
        (uuids[1], "p1", "2026-03-03T08:00:00Z", "Purchase", "-"),
        (uuids[1], "p2", "2026-03-04", "purchase", "12.5"),
    ]
    columns = ["user_id", "item_id", "time", "event", "price"]
    (tmp_path / "log.csv").write_text(
        "\n".join([",".join(columns), *(",".join(f'"{one}"' for one in row) for row in rows)]),
        encoding="utf-8",
    )
    out = tmp_path / "shop"
    prepare(
        {
            "name": "dirty",
            "events": [{"files": ["log.csv"], "time": "time", "time_unit": "text"}],
            "labels": [{**LABEL, "equals": "purchase"}],
            "event_features": [{"name": "price", "kind": "numeric"}],
            "split": {"by": "position"},
        },
        out,
        base=tmp_path,
    )
    dataset = Dataset(out)
    first = dataset.user_ids.tolist().index(uuids[0])
    own = slice(*dataset.event_offsets[first : first + 2])
    begin = round(datetime(2026, 3, 1, 8, tzinfo=UTC).timestamp() * 1000)
    assert dataset.events["time"][own].tolist() == [begin, begin + 60_000, begin + 120_000]
    assert dataset.events["label_purchase"][own].tolist() == [0, 0, 1]
    found = dataset.manifest["summary"]
    assert found["dropped"] == {"duplicate row": 2}
    assert found["types"] == {"event": {"purchase": 4, "view": 4, "add_to_cart": 1}}
    (price,) = [one for one in found["event_features"] if one["name"] == "price"]
    assert (price["present"], price["parsed"], price["unread"]) == (8, 6, "n/a")
    text = dataset.summary.text()
    assert "price 56 % (2 not numbers, such as 'n/a')" in text
    assert dataset.summary.warnings == []


def test_a_label_that_reads_no_types_says_so(tmp_path: Path) -> None:
    labels = [{**LABEL, "name": "bought", "equals": "purchase"}, LABEL]  # of one column
    every = prepared(tmp_path, log(), labels=labels).summary.warnings
    assert any("every event is a positive, whatever its event: 'view' (25" in one for one in every)
    flagged = log().drop("event").with_columns(purchase=1)
    unread = prepared(tmp_path, flagged, {"name": "purchase", "kind": "positive"}).summary.warnings
    assert any("has a column 'purchase', and label purchase does not read it" in x for x in unread)
    one = prepared(tmp_path, flagged, {"name": "purchase", "kind": "positive", "equals": 1})
    assert one.summary.warnings == []
    assert one.events["label_purchase"].sum() == 45


def test_a_store_holds_the_history_that_a_dataset_has(tmp_path: Path) -> None:
    """The events that fill a store have the tokens of the dataset, in either case."""
    rows = log().with_columns(
        pl.when(pl.col("item_id") == "b")
        .then(pl.col("event").str.to_uppercase())
        .otherwise("event")
    )
    label = {**LABEL, "any_of": ["cart", "purchase"], "weights": {"purchase": 3}}
    dataset = prepared(tmp_path, rows, label)
    form = form_of(dataset)
    for user, (_, stored) in enumerate(_events(dataset)):
        rows_of_user = slice(*dataset.event_offsets[user : user + 2])
        own = {name: dataset.events[name][rows_of_user] for name in dataset.encoder.columns}
        time = dataset.events["time"][rows_of_user]
        held = form.log(stored)
        of_store = {name: held.columns[name][held.rows] for name in dataset.encoder.columns}
        np.testing.assert_array_equal(
            dataset.encoder.encode(own, time), form.encoder.encode(of_store, time)
        )


def test_every_event_is_a_positive_without_a_column(tmp_path: Path) -> None:
    events = log().drop("event")
    dataset = prepared(tmp_path, events, {"name": "purchase", "kind": "positive"})
    assert dataset.events["label_purchase"].tolist() == [1.0] * 45
    assert dataset.encoding["event_features"] == []


def test_ratings_from_a_threshold_are_positives(tmp_path: Path) -> None:
    events = (
        log()
        .with_columns(rating=pl.Series([1, 5, 4, 3, 4.5, 2, 5, 1, 4] * 5, dtype=pl.Float64))
        .drop("event")
    )
    label = {"name": "purchase", "kind": "positive", "column": "rating", "at_least": 4}
    dataset = prepared(tmp_path, events, label)
    assert dataset.events["label_purchase"][:9].tolist() == [0, 1, 1, 0, 1, 0, 1, 0, 1]


def test_words_of_a_binary_label(tmp_path: Path) -> None:
    events = log()
    label = {**LABEL, "kind": "binary", "any_of": ["purchase", "cart"]}
    dataset = prepared(tmp_path, events, label)
    assert dataset.events["label_purchase"][:9].tolist() == [0, 1, 0, 1, 1, 0, 0, 0, 1]
    assert dataset.events["label_purchase"].dtype == np.uint8


def test_types_from_constants_of_files(tmp_path: Path) -> None:
    """Files of one type each say so by a constant."""
    events = log()
    parts = [events.filter(pl.col("event") == one).drop("event") for one in ("view", "purchase")]
    sources = [{"time": "time", "constant": {"event": one}} for one in ("view", "purchase")]
    dataset = prepared(tmp_path, parts, {**LABEL, "equals": "purchase"}, events=sources)
    assert dataset.summary.manifest["summary"]["types"] == {"event": {"view": 25, "purchase": 15}}
    assert "rows by event: view 25, purchase 15" in dataset.summary.text()
    assert "positives of purchase: event = purchase (weight 1)" in dataset.summary.text()


def test_views_and_carts_of_one_moment_are_no_duplicates(tmp_path: Path) -> None:
    """Though both have the weight 0; the same event twice is one."""
    events = log([(0, "a", "view"), (0, "a", "cart"), (0, "a", "view"), *VISITS])
    dataset = prepared(tmp_path, events, {**LABEL, "equals": "purchase"})
    assert dataset.manifest["counts"]["events"] == 5 * 10
    assert dataset.manifest["summary"]["dropped"] == {"duplicate row": 10}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"equals": "buy"},
            r"label purchase: no event has event = 'buy'; values found: 'view' \(25 rows\), "
            r"'purchase' \(15 rows\), 'cart' \(5 rows\)",
        ),
        ({"any_of": ["view", "purchse"]}, r"no event has event = 'purchse'.*did you mean 'purchas"),
        ({"weights": {"order": 3}}, r"no event has event = 'order'; values found"),
    ],
)
def test_values_that_no_event_has(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, log(), {**LABEL, **rule})


def test_a_log_without_rows_or_types_is_refused(tmp_path: Path) -> None:
    label = {**LABEL, "any_of": ["purchase"]}
    with pytest.raises(DataError, match="no event has a value in the column 'event'; the files"):
        prepared(tmp_path, log()[:0], label)
    nothing = log().with_columns(event=pl.lit(None, pl.String))
    with pytest.raises(DataError, match="no event has a value in the column 'event'; 45 rows were"):
        prepared(tmp_path, nothing, label)


def test_a_value_that_is_absent_beside_others_is_a_warning(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, log(), {**LABEL, "any_of": ["purchase", "refund"]})
    assert any("no event has event = 'refund'" in one for one in dataset.summary.warnings)


def test_columns_that_the_description_does_not_name(tmp_path: Path) -> None:
    rows = log().rename({"user_id": "visitorid"})
    message = r"no column 'user_id', the default of user: write user = .NAME. in \[\[events\]\]"
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, rows, {**LABEL, "equals": "purchase"})


def test_users_without_an_id(tmp_path: Path) -> None:
    rows = log().with_columns(
        user_id=pl.when(pl.col("user_id") == "u1").then(None).otherwise("user_id")
    )
    with pytest.raises(DataError, match="missing user id: if these are users who are not logged"):
        prepared(tmp_path, rows, {**LABEL, "equals": "purchase"})


def test_types_as_numbers(tmp_path: Path) -> None:
    kinds = {"view": 1, "cart": 2, "purchase": 4}
    rows = log().with_columns(pl.col("event").replace_strict(kinds, return_dtype=pl.Int8))
    for column in (rows, rows.with_columns(pl.col("event").cast(pl.Float64))):
        dataset = prepared(tmp_path, column, {**LABEL, "any_of": [2, "4"]})
        assert dataset.events["label_purchase"][:9].tolist() == [0, 1, 0, 1, 1, 0, 0, 0, 1]
        assert dataset.manifest["summary"]["types"] == {"event": {"1": 25, "4": 15, "2": 5}}


def test_a_column_that_holds_no_types(tmp_path: Path) -> None:
    events = pl.concat([log()] * 30).with_columns(event=pl.arange(0, 1350).cast(pl.String))
    with pytest.raises(DataError, match=r"more than 1,000 values.*is it the right column"):
        prepared(tmp_path, events, {**LABEL, "equals": "7"})


@pytest.mark.parametrize(
    ("label", "more", "message"),
    [
        ({"equals": "a", "any_of": ["b"]}, {}, "equals and any_of: keep one of them"),
        ({"any_of": ["a"], "weights": {"b": 2}}, {}, "weights has 'b', which is not among"),
        ({"equals": "a", "weights": {"a": -1}}, {}, "expected 0 or more"),
        ({"equals": "a", "weights": {"a": 0}}, {}, "all weights are 0"),
        ({"equals": "a", "at_least": 2}, {}, "keep one"),
        (
            {"kind": "binary", "weights": {"a": 1}},
            {},
            'weights are for labels of kind = "positive"',
        ),
        ({"kind": "duration", "equals": "a"}, {}, "equals and any_of are for binary and positive"),
        ({"kind": "positive", "cap": 3}, {}, "of and cap are for duration"),
        ({"kind": "binary"}, {"requests": {"by": "session"}}, "for logs whose labels are all pos"),
        ({}, {"requests": {"by": "session", "size": 1}}, "a session is one request"),
        (
            {},
            {"requests": {"by": "event"}, "events": [{"time": "time", "request": "session"}]},
            "leave one of them out",
        ),
        (
            {},
            {"requests": {"by": "session"}, "events": [{"order": "time"}], "split": {}},
            "needs times, whose gaps separate sessions",
        ),
    ],
)
def test_descriptions_that_contradict_themselves(
    tmp_path: Path, label: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        prepared(tmp_path, log(), {**LABEL, **label}, **more)
