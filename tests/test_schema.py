"""Dataset descriptions: what is accepted, and the message of each mistake."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

import limerank.data.spec
from limerank.data.description import load_spec, write_spec
from limerank.data.spec import Spec
from limerank.errors import SpecError
from limerank.validation import validate

SOURCE: dict[str, Any] = {"files": ["log.parquet"], "time": "time"}
LIKE: dict[str, Any] = {"name": "like", "kind": "binary", "column": "rating", "at_least": 4}
BASE: dict[str, Any] = {"name": "shop", "events": [SOURCE], "labels": [LIKE]}


def test_the_example_in_the_docstring_is_valid(tmp_path: Path) -> None:
    text = (limerank.data.spec.__doc__ or "").split("::\n", 1)[1]
    path = tmp_path / "spec.toml"
    path.write_text(textwrap.dedent(text))
    spec = load_spec(path)
    assert spec.name == "shop"
    assert spec.clock
    assert [label.column for label in spec.labels] == ["is_click", "play_time_ms"]
    assert spec.items is not None
    assert [feature.kind for feature in spec.items.features] == [
        "categorical",
        "numeric",
        "text-vector",
    ]
    assert spec == validate(Spec, spec.model_dump(mode="json"), "again")


def test_columns_default_to_names() -> None:
    label = {"name": "click", "kind": "binary"}
    feature = {"name": "tab", "kind": "categorical", "when": "context"}
    spec = validate(Spec, {**BASE, "labels": [label], "event_features": [feature]}, "spec")
    assert spec.labels[0].column == "click"
    assert spec.event_features[0].column == "tab"


def test_lists_are_never_shown() -> None:
    lists = {**SOURCE, "lists": True, "constant": {"rating": 5}}
    spec = validate(Spec, {**BASE, "events": [SOURCE, lists]}, "spec")
    assert [source.shown for source in spec.events] == [True, False]
    assert spec.events[1].constant == {"rating": 5.0}


def test_cut_points_are_utc_unless_they_say_otherwise() -> None:
    cuts = {"validation_from": "2022-04-19", "test_from": "2022-04-20T02:00:00+02:00"}
    spec = validate(Spec, {**BASE, "split": cuts}, "spec")
    assert spec.split.cuts == (1650326400000, 1650412800000)


def source(**values: Any) -> dict[str, Any]:
    return {"events": [{**SOURCE, **values}]}


def label(**values: Any) -> dict[str, Any]:
    return {"labels": [{"name": "like", "kind": "binary", **values}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"events": []}, "events: Tuple should have at least 1 item"),
        ({"names": 1}, "names: Extra inputs are not permitted; got 1"),
        ({"zzz": 1}, "zzz: Extra inputs are not permitted; got 1; known are name, events, labels"),
        (source(files="x.csv"), r"events.0.files: expected a list: write \[\"x.csv\"\]; got"),
        (
            {"labels": {"name": "like", "kind": "binary"}},
            r"labels: expected a list of tables: write \[\[labels\]\] in TOML",
        ),
        (
            source(null_values={"usr": ["0"]}),
            "events.0.null_values.usr: this column is not read; read are ",
        ),
        (
            {"items": {"files": ["i.csv"], "id": "item", "null_values": {"itm": ["0"]}}},
            "items.null_values.itm: this column is not read; read are item; did you mean 'item'",
        ),
        (source(order="pos"), "events.0: give either time or order"),
        (source(time=None), "events.0: give either time or order"),
        (source(time_unit="h"), "events.0.time_unit: .*got 'h'"),
        (source(time_format="%Y"), 'time_format goes with time_unit = "text"'),
        (source(lists=True, shown=True), "a source of lists cannot be scored"),
        (source(lists=True), "at least one source of events must have shown = true"),
        (source(shown=False), "at least one source of events must have shown = true"),
        (
            {"events": [SOURCE, {**SOURCE, "lists": True}]},
            "lists hold no labels: .* constant = { rating = 1 }",
        ),
        (
            {"events": [SOURCE, {**SOURCE, "lists": True, "constant": {"rating": "5"}}]},
            "events.1.constant.rating: expected a number for like; got '5'",
        ),
        (
            {**source(constant={"like": 2}), **label()},
            "events.0.constant.like: expected 0 or 1 for label like; got 2",
        ),
        (
            {**source(constant={"like": -1}), **label(kind="duration")},
            "events.0.constant.like: expected a duration of 0 or more for label like; got -1",
        ),
        (source(constant={"rating": float("nan")}), "constant.rating: expected a finite number"),
        (
            source(constant={"like": 1}),
            "events.0.constant.like: no label or event feature has this column; they have rating",
        ),
        (
            {
                **source(constant={"price": "high"}),
                "event_features": [{"name": "price", "kind": "numeric"}],
            },
            "events.0.constant.price: expected a number for price; got 'high'",
        ),
        (
            {
                **source(constant={"item_id": 3}),
                "event_features": [{"name": "item_id", "kind": "categorical"}],
            },
            "events.0.constant.item_id: this column of the source is read from its files",
        ),
        ({"events": [SOURCE, {"files": ["b.csv"], "order": "pos"}]}, "or all have order"),
        ({"labels": []}, "labels: Tuple should have at least 1 item"),
        ({"labels": [LIKE, LIKE]}, "needs a name of its own; got twice: like"),
        (label(name="a b"), "labels.0.name: String should match pattern"),
        (label(kind="score"), "labels.0.kind: Input should be 'binary', 'duration' or 'positive'"),
        (label(cap=3), "of and cap are for duration labels"),
        (label(kind="duration", at_least=3), "at_least is for binary and positive labels"),
        (label(kind="duration", scale=0), "labels.0.scale: .*greater than 0"),
        (
            {"event_features": [{"name": "like", "kind": "categorical"}]},
            "each label and event feature needs a name of its own",
        ),
        (
            {"event_features": [{"name": "tags", "kind": "categorical", "split": "|"}]},
            "an event feature has one value",
        ),
        (
            {"event_features": [{"name": "price", "kind": "numeric", "transform": "log1p"}]},
            "event_features.0: transform is for item, user and impression features",
        ),
        (
            {"event_features": [{"name": "vector", "kind": "text-vector"}]},
            "event_features.0.kind: Input should be 'categorical' or 'numeric'",
        ),
        (
            {"items": {"files": ["a.csv"], "features": [{"name": "a", "kind": "word"}]}},
            "items.features.0.kind",
        ),
        (
            {
                "items": {
                    "files": ["a.csv"],
                    "features": [{"name": "a", "kind": "numeric", "split": " "}],
                }
            },
            "split is for categorical features",
        ),
        ({"split": {"train": 0.9, "validation": 0.1}}, "must leave something for the test split"),
        ({"split": {"validation_from": "2020-01-01"}}, "go together"),
        ({"split": {"validation_from": "May", "test_from": "June"}}, "Invalid isoformat string"),
        (
            {"split": {"validation_from": "2020-02-01", "test_from": "2020-01-01"}},
            "validation_from is later than test_from",
        ),
        (
            {"events": [{"files": ["a.csv"], "order": "pos"}], "split": {"by": "time"}},
            'a log that has only an order cannot be split by = "time"',
        ),
        ({"split": {"by": "last"}}, "got 'last': leave_last = 1 makes the last request"),
        ({"split": {"by": "random"}}, "write it as a column of the log and name that"),
        ({"split": {"by": "tme"}}, "split.by: Input should be 'time' or 'position'; got 'tme'"),
        ({"split": {"leave_lst": 1}}, "did you mean 'leave_last'"),
        ({"split": {"leave_last": 0}}, "split.leave_last"),
        ({"split": {"leave_last": 1, "column": "fold"}}, "leave_last and column are rules of"),
        ({"split": {"leave_last": 1, "by": "time"}}, "leave_last and by are rules of different"),
        ({"split": {"column": "fold", "train": 0.7}}, "column and train are rules of different"),
        ({"split": {"values": {"dev": "validation"}}}, "name it in column"),
        (
            {"split": {"column": "fold", "values": {"dev": "valid"}}},
            "Input should be 'train', 'validation' or 'test'; got 'valid'",
        ),
        (
            source(constant={"fold": "dev"}) | {"split": {"column": "fold"}},
            "constant.fold: expected one of train, validation, test; got 'dev'",
        ),
        ({"history": {"keep": "click"}}, "history.keep is 'click', expected one of .*'like'"),
        ({"history": {"length": 0}}, "history.length"),
        ({"requests": {"size": 0}}, "requests.size"),
        ({"checks": {"max_bad_share": 2}}, "checks.max_bad_share"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        validate(Spec, {**BASE, **values}, "spec")


def test_a_written_description_can_be_read_anywhere(tmp_path: Path) -> None:
    files = ["a*.csv", "../b.csv", "/logs/c?.csv"]
    spec = validate(Spec, {**BASE, **source(files=files)}, "spec")
    write_spec(tmp_path / "spec.toml", spec, tmp_path / "x[1]")
    written = load_spec(tmp_path / "spec.toml")
    folder = f"{tmp_path}/x[[]1]"
    assert written.events[0].files == (f"{folder}/a*.csv", f"{folder}/../b.csv", "/logs/c?.csv")
    assert written.model_copy(update={"events": spec.events}) == spec


def test_files_that_are_no_descriptions(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"log.csv.gz is a file of data, expected a dataset descr"):
        load_spec(tmp_path / "log.csv.gz")
    with pytest.raises(SpecError, match="no such dataset description"):
        load_spec(tmp_path / "none.toml")
    path = tmp_path / "spec.toml"
    path.write_text("name = ")
    with pytest.raises(SpecError, match="is not valid TOML"):
        load_spec(path)
    path.write_text('name = "x"')
    with pytest.raises(SpecError, match="events: Field required"):
        load_spec(path)
