"""Logs with the faults of real logs: each is counted, named or refused."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from limerank.data.prepare import prepare
from limerank.data.prepare.clock import Clock
from limerank.data.sources import Reader
from limerank.data.spec import Spec
from limerank.data.summary import DatasetSummary
from limerank.errors import DataError, FormatError, SpecError

DAY = 86_400_000
START = 1_718_000_000_000
EVENTS = {"files": ["log.parquet"], "user": "user", "item": "item", "time": "time"}
CLICK = {"name": "click", "kind": "binary"}


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time of many tiny datasets."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def make_spec(events: dict[str, Any] | None = None, **values: Any) -> Spec:
    source = {"time_unit": "ms", **EVENTS, **(events or {})}
    return Spec.model_validate({"name": "test", "events": [source], "labels": [CLICK], **values})


def run(folder: Path, spec: Spec) -> dict[str, Any]:
    """Prepare into a new folder ``out-N``; returns the manifest."""
    return prepare(spec, folder / f"out-{len(list(folder.glob('out-*')))}", base=folder).to_dict()


def rows(count: int = 200, **columns: Any) -> dict[str, list[Any]]:
    """Columns of a log of ``count`` events in which nothing is wrong."""
    rng = random.Random(5)
    log: dict[str, list[Any]] = {
        "user": [rng.randrange(20) for _ in range(count)],
        "item": [rng.randrange(15) for _ in range(count)],
        "time": [START + k * 60_000 for k in range(count)],
        "click": [rng.randrange(2) for _ in range(count)],
    }
    return log | columns


def write(folder: Path, columns: dict[str, Any], name: str = "log.parquet") -> None:
    frame = pl.DataFrame(columns)
    if name.endswith(".parquet"):
        frame.write_parquet(folder / name)
    else:
        frame.write_csv(folder / name, separator="\t" if name.endswith("tsv") else ",")


# Times


def clock_of(times: list[int], present: int = START + 365 * DAY) -> Clock:
    clock = Clock(len(times), present)
    order = np.random.default_rng(3).permutation(len(times))
    for part in np.array_split(np.array(times, np.int64)[order], 3):
        clock.add(part)
    clock.finish()
    return clock


@pytest.mark.parametrize(
    ("times", "now", "word"),
    [
        ([START + k for k in range(100)], START + 99, None),
        ([*(START + k for k in range(100)), START + 900 * DAY], START + 99, "later than"),
        ([*(START + k for k in range(100)), START + 9 * DAY], START + 99, "far after all"),
        ([0, *(START + k for k in range(100)), START + 9 * DAY], START + 99, "before 1990"),
        ([*(START + k * DAY for k in range(100)), START + 120 * DAY], START + 120 * DAY, None),
        ([START, START + 90 * DAY], START + 90 * DAY, None),
        ([*(START + k for k in range(98)), *[START + 9 * DAY] * 2], START + 9 * DAY, None),
        ([START + 900 * DAY + k for k in range(100)], START + 900 * DAY + 99, "later than"),
        ([*range(100), START], 99, "far after all"),
    ],
)
def test_now_is_the_newest_time_that_is_no_outlier(
    times: list[int], now: int, word: str | None
) -> None:
    clock = clock_of(times)
    assert clock.now == now
    report = " ".join(clock.warnings())
    assert (word in report) if word else not report, report


def test_an_event_of_the_future_is_reported_and_does_not_set_the_clock(tmp_path: Path) -> None:
    columns = rows(201)
    columns["time"][200] = 1_890_000_000_000  # 2029
    write(tmp_path, columns)
    manifest = run(tmp_path, make_spec())
    time = manifest["summary"]["time"]
    assert time == {"first": START, "last": 1_890_000_000_000, "now": START + 199 * 60_000}
    (warning,) = manifest["summary"]["warnings"]
    assert "2029-11-22" in warning
    assert warning in DatasetSummary.of(manifest).text()


# Files


def quoted_log(position: int) -> str:
    columns = rows(1000)
    lines = [
        f"{u},{i},{t},{c},note {k}"
        for k, (u, i, t, c) in enumerate(zip(*columns.values(), strict=True))
    ]
    lines[position] = lines[position].replace("note", '"note')
    return "user,item,time,click,note\n" + "\n".join(lines) + "\n"


def test_a_stray_quote_in_a_column_that_is_not_read_loses_one_row(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(quoted_log(300))
    manifest = run(tmp_path, make_spec({"files": ["log.csv"]}))
    summary = manifest["summary"]
    assert (
        summary["rows"] == 1000 == manifest["counts"]["events"] + sum(summary["dropped"].values())
    )
    assert summary["dropped"]["unparsable line"] == 1
    assert "log.csv, line 302: a quote that is not closed" in summary["examples"]["unparsable line"]
    assert summary["examples"]["unparsable line"] in DatasetSummary.of(manifest).text()


def test_a_stray_quote_in_an_item_table_loses_one_item(tmp_path: Path) -> None:
    write(tmp_path, rows())
    items = [f"{k},g{k % 3},name {k}" for k in range(15)]
    items[4] = '4,g1,"name 4'
    (tmp_path / "items.csv").write_text("id,genre,name\n" + "\n".join(items) + "\n")
    table = {"files": ["items.csv"], "features": [{"name": "genre", "kind": "categorical"}]}
    summary = run(tmp_path, make_spec(items=table))["summary"]
    assert summary["noted"]["item table: unparsable lines"] == 1
    assert "items.csv, line 6" in summary["examples"]["item table: unparsable lines"]


def test_too_many_bad_lines_are_refused_with_the_first_of_them(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time,click\n" + "1,2,3\n" * 10)
    with pytest.raises(DataError, match=r"unparsable line \(.*log.csv, line 2: 3 fields, expected"):
        run(tmp_path, make_spec({"files": ["log.csv"]}))


def test_json_lines_make_the_dataset_of_parquet(tmp_path: Path) -> None:
    columns = rows(300, tag=[f"t{k % 3}" for k in range(300)])
    write(tmp_path, columns)
    pl.DataFrame(columns).write_ndjson(tmp_path / "log.jsonl")
    feature = {"name": "tag", "kind": "categorical"}
    run(tmp_path, make_spec(event_features=[feature]))
    run(tmp_path, make_spec({"files": ["log.jsonl"]}, event_features=[feature]))
    names = sorted(p.relative_to(tmp_path / "out-0") for p in tmp_path.glob("out-0/**/*.npy"))
    assert names
    for name in names:
        np.testing.assert_array_equal(
            np.load(tmp_path / "out-0" / name), np.load(tmp_path / "out-1" / name)
        )


def test_partitions_by_day_are_columns_of_the_log(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        folder = tmp_path / f"logs/dt=2026-11-{day:02}/country=ch"
        folder.mkdir(parents=True)
        columns = rows(20)
        del columns["time"]
        write(folder, columns, "part-0.parquet")
        (folder / "_SUCCESS").touch()
    feature = {"name": "country", "kind": "categorical"}
    source = {"files": ["logs"], "time": "dt", "time_unit": "text"}
    manifest = run(tmp_path, make_spec(source, event_features=[feature]))
    assert manifest["summary"]["rows"] == 60
    assert manifest["summary"]["time"]["last"] == 1_793_664_000_000  # 2026-11-03
    vocabulary = pl.read_parquet(tmp_path / "out-0/vocab/event_country.parquet")
    assert vocabulary["value"].to_list() == ["ch"]


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    write(tmp_path, rows(), "log-1.csv")
    (tmp_path / "log-2.csv").write_text("user,item,time,click\n")
    warnings = run(tmp_path, make_spec({"files": ["log-*.csv"]}))["summary"]["warnings"]
    assert any("log-2.csv has no rows" in warning for warning in warnings)
    (tmp_path / "log-3.csv").write_text("user,item,when,click\n1,2,3,1\n")
    with pytest.raises(
        DataError, match=r"log-3.csv has no column 'time'; columns found: user, item"
    ):
        run(tmp_path, make_spec({"files": ["log-*.csv"]}))


@pytest.mark.parametrize("role", ["user", "item", "time", "click", "request", "of", "tag", "table"])
def test_types_of_no_use_are_refused_before_anything_is_read(
    tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 200
    columns = rows(count, tag=["a"] * count, request=[1] * count, of=[1.0] * count)
    items: dict[str, Any] = {"id": list(range(15)), "genre": ["a"] * 15}
    if role == "table":
        items["genre"] = [b"a"] * 15
    else:
        columns[role] = [b"\xff"] * count
    write(tmp_path, columns)
    write(tmp_path, items, "items.parquet")
    spec = make_spec(
        {"request": "request"},
        labels=[CLICK, {"name": "watch", "kind": "duration", "column": "click", "of": "of"}],
        event_features=[{"name": "tag", "kind": "categorical"}],
        items={
            "files": ["items.parquet"],
            "features": [{"name": "genre", "kind": "categorical"}],
        },
    )
    monkeypatch.setattr(Reader, "batches", None)
    name = r"items.parquet: column 'genre'" if role == "table" else rf"log.parquet: column '{role}'"
    with pytest.raises(
        DataError, match=name + r" holds Binary, expected [^\n]*; write it as text$"
    ):
        run(tmp_path, spec)
    assert not list(tmp_path.glob("*out-*"))


def test_output_folders_that_cannot_be_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    write(tmp_path, rows())
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match=r"file/x cannot be written: [^\n]*file is a file[^\n]*$"):
        prepare(make_spec(), tmp_path / "file/x", base=tmp_path)
    with pytest.raises(FormatError, match="file is a file, expected a folder"):
        prepare(make_spec(), tmp_path / "file", base=tmp_path, overwrite=True)
    with pytest.raises(DataError, match="no column 'nobody'"):
        prepare(make_spec({"user": "nobody"}), tmp_path / "a/b/c", base=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "log.parquet"]


# Tables and features that do not meet the log


def tables(**items: list[Any]) -> dict[str, Any]:
    return {
        "files": ["items.parquet"],
        "features": [
            {"name": "genre", "kind": "categorical"},
            {"name": "price", "kind": "numeric"},
        ],
    }


ITEMS: dict[str, list[Any]] = {
    "id": list(range(15)),
    "genre": [f"g{k % 3}" for k in range(15)],
    "price": [1.5 * k for k in range(15)],
}


def covered(folder: Path, items: dict[str, list[Any]], **values: Any) -> dict[str, Any]:
    write(folder, rows())
    write(folder, items, "items.parquet")
    manifest = run(folder, make_spec(items=tables(), **values))
    assert all(
        warning in DatasetSummary.of(manifest).text() for warning in manifest["summary"]["warnings"]
    )
    return manifest["summary"]  # type: ignore[no-any-return]


def test_a_table_that_fits_is_reported_briefly(tmp_path: Path) -> None:
    summary = covered(tmp_path, ITEMS)
    assert summary["warnings"] == []
    assert summary["coverage"] == [
        "item table: 15 of 15 items of the log have a row (100 %)",
        "item features, rows with a known value: genre 100 %, price 100 %",
    ]
    assert summary["tables"]["item"]["used"] == 15


def test_ids_in_another_notation_are_seen(tmp_path: Path) -> None:
    summary = covered(tmp_path, ITEMS | {"id": [f"SKU-{k}" for k in range(15)]})
    (warning,) = summary["warnings"]
    assert "the item table has a row for 0 of 15 items of the log: the log has such as" in warning
    assert "the table has such as 'SKU-" in warning


def test_new_items_of_a_table_are_reported_and_accepted(tmp_path: Path) -> None:
    more = {name: values + values for name, values in ITEMS.items()}
    summary = covered(tmp_path, more | {"id": list(range(30))})
    assert summary["warnings"] == []
    assert "15 of 30 rows are items that it does not name" in summary["coverage"][0]


@pytest.mark.parametrize(
    ("change", "report"),
    [
        (
            {"price": [f"{k}.50 each" for k in range(15)]},
            "item feature price: 15 of 15 values are not numbers, such as '0.50 each'",
        ),
        ({"price": [None] * 15}, "item feature price: 0 of 15 rows have a value"),
        ({"genre": [None] * 15}, "item feature genre: 0 of 15 rows have a value"),
        (
            {"genre": ["NULL"] * 5 + ["a"] * 10},
            "item feature genre: 5 of 15 values are words such as 'NULL'",
        ),
    ],
)
def test_features_that_cannot_be_read_are_seen(
    tmp_path: Path, change: dict[str, list[Any]], report: str
) -> None:
    (warning,) = covered(tmp_path, ITEMS | change)["warnings"]
    assert report in warning


def test_values_that_are_not_numbers_are_reported_with_an_example(tmp_path: Path) -> None:
    prices: list[Any] = [str(k) for k in range(14)] + ["1.5 each"]
    summary = covered(tmp_path, ITEMS | {"price": prices})
    assert summary["warnings"] == []
    assert "price 93 % (1 not numbers, such as '1.5 each')" in summary["coverage"][1]


def test_a_user_table_that_fits_nobody_is_seen(tmp_path: Path) -> None:
    write(tmp_path, rows())
    write(tmp_path, {"id": [f"u{k}" for k in range(20)], "age": [1.0] * 20}, "users.csv")
    table = {"files": ["users.csv"], "features": [{"name": "age", "kind": "numeric"}]}
    summary = run(tmp_path, make_spec(users=table))["summary"]
    assert "the user table has a row for 0 of 20 users of the log" in summary["warnings"][0]
    assert "the table has such as 'u0'" in summary["warnings"][0]


def test_event_features_are_covered_as_well(tmp_path: Path) -> None:
    columns = rows(
        200,
        price=["3.50 each"] * 150 + ["3.5"] * 50,
        tag=["NULL"] * 60 + ["a"] * 140,
        empty=[None] * 200,
        fine=[k % 3 for k in range(200)],
    )
    write(tmp_path, columns)
    features = [
        {"name": "price", "kind": "numeric"},
        {"name": "tag", "kind": "categorical"},
        {"name": "empty", "kind": "categorical"},
        {"name": "fine", "kind": "categorical"},
    ]
    summary = run(tmp_path, make_spec(event_features=features))["summary"]
    price, tag, empty = summary["warnings"]
    assert "event feature price: 150 of 200 values are not numbers, such as '3.50 each'" in price
    assert "event feature tag: 60 of 200 values are words such as 'NULL'" in tag
    assert "event feature empty: 0 of 200 rows have a value" in empty
    assert "fine 100 %" in summary["coverage"][0]
    (by_name,) = [one for one in summary["event_features"] if one["name"] == "fine"]
    assert (by_name["rows"], by_name["present"], by_name["known"]) == (200, 200, 200)


# Ids that mean nobody


def test_a_user_with_an_outsized_share_is_named(tmp_path: Path) -> None:
    columns = rows(2000)
    columns["user"] = [f"u{k % 100}" if k % 2 else "anonymous" for k in range(2000)]
    columns["item"] = [k % 50 for k in range(2000)]
    write(tmp_path, columns)
    (warning,) = run(tmp_path, make_spec())["summary"]["warnings"]
    assert "the user id 'anonymous' has 1,000 of 2,000 events (50 %)" in warning
    spec = make_spec({"null_values": {"user": ["anonymous"]}}, checks={"max_bad_share": 0.6})
    manifest = run(tmp_path, spec)
    assert manifest["summary"]["dropped"] == {"missing user id": 1000}
    assert manifest["summary"]["warnings"] == []


@pytest.mark.parametrize("nobody", [0, -1])
def test_zero_and_minus_one_are_seen_sooner(tmp_path: Path, nobody: int) -> None:
    columns = rows(2000)
    columns["user"] = [nobody if k % 10 == 0 else 1000 + k % 99 for k in range(2000)]
    columns["item"] = [k % 50 for k in range(2000)]
    write(tmp_path, columns)
    (warning,) = run(tmp_path, make_spec())["summary"]["warnings"]
    assert f"the user id '{nobody}' has 200 of 2,000 events (10 %), the others" in warning


@pytest.mark.parametrize("word", ["null", "NULL", "None", "NaN", "nan", "N/A", "\\N", "undefined"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_words_for_missing_ids_are_seen(tmp_path: Path, word: str, ending: str) -> None:
    columns = rows(200)
    columns["user"] = [word if k % 40 == 0 else str(k % 20) for k in range(200)]
    columns["item"] = [word if k % 50 == 0 else f"i{k % 15}" for k in range(200)]
    write(tmp_path, columns, f"log.{ending}")
    user, item = sorted(
        run(tmp_path, make_spec({"files": [f"log.{ending}"]}))["summary"]["warnings"], reverse=True
    )
    assert f"the user id {word!r} has 5 of 200 events (2 %)" in user
    assert f"the item id {word!r} has 4 of 200 events (2 %)" in item
    source = {"files": [f"log.{ending}"], "null_values": [word]}
    summary = run(tmp_path, make_spec(source))["summary"]
    assert summary["warnings"] == []
    assert summary["dropped"] == {"missing user id": 5, "missing item id": 3}


def test_an_even_log_names_nobody(tmp_path: Path) -> None:
    write(tmp_path, rows(2000, item=[k % 40 for k in range(2000)]))
    assert run(tmp_path, make_spec())["summary"]["warnings"] == []


@pytest.mark.parametrize("id", [777, 0, "u777"])
def test_a_busy_user_of_a_short_log_is_somebody(tmp_path: Path, id: int | str) -> None:
    columns = rows(2000)
    others = [1 + k * 7 % 900 for k in range(2000)]
    ids = [id if k % 33 == 0 else other for k, other in enumerate(others)]  # 3 %
    columns["user"] = [str(one) for one in ids]
    columns["item"] = [k % 50 for k in range(2000)]
    write(tmp_path, columns, "log.csv")
    assert run(tmp_path, make_spec({"files": ["log.csv"]}))["summary"]["warnings"] == []


def test_codes_of_countries_are_no_missing_values(tmp_path: Path) -> None:
    columns = rows(200)
    columns["land"] = [("US", "DE", "NA", "EMEA")[k % 4] for k in range(200)]
    columns["user"] = [("AB", "CD", "NA", "EF")[k % 4] for k in range(200)]
    write(tmp_path, columns)
    feature = {"name": "land", "kind": "categorical"}
    assert run(tmp_path, make_spec(event_features=[feature]))["summary"]["warnings"] == []
    columns["land"] = [("red", "blue", "NA", "green")[k % 4] for k in range(200)]
    write(tmp_path, columns)
    (warning,) = run(tmp_path, make_spec(event_features=[feature]))["summary"]["warnings"]
    assert "words such as 'NA'" in warning


@pytest.mark.parametrize("column", ["user", "item"])
def test_ids_that_cannot_be_are_named_with_their_file_and_column(
    tmp_path: Path, column: str
) -> None:
    columns = rows(200)
    columns[column] = [f"x{one}" for one in columns[column]]
    columns[column][100] = "x\0"
    write(tmp_path, columns)
    with pytest.raises(DataError, match=f"log.parquet: column '{column}' holds the id 'x.x00'"):
        run(tmp_path, make_spec())
    columns[column] = [float(1 << 53)] * 200
    write(tmp_path, columns)
    with pytest.raises(DataError, match=f"log.parquet: column '{column}' holds the id 9007"):
        run(tmp_path, make_spec())
    columns = rows(200)
    write(tmp_path, columns)
    table = {"files": ["t.parquet"], "id": "id"}
    write(tmp_path, {"id": [float(1 << 53)]}, "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: column 'id' holds the id 9007"):
        run(tmp_path, make_spec(**{f"{column}s": table}))


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_missing_elements_of_lists_are_named_as_values_are(tmp_path: Path, ending: str) -> None:
    write(tmp_path, rows(300))
    lists = [["0", "1", "2.0", "0.0", "NULL"], ["0"], [], ["3", " 1 "]]
    tags = [["a", "NULL"], ["NULL"], ["b", "c"], []]
    if ending == "csv":
        past: list[Any] = [" ".join(one).replace("  1 ", " 1") for one in lists]
        words: list[Any] = ["|".join(one) for one in tags]
    else:
        past, words = lists, tags
    history = pl.DataFrame({"user": range(4), "past": past, "time": [START - 1] * 4})
    items = pl.DataFrame({"id": range(1, 16), "tags": [words[k % 4] for k in range(15)]})
    for frame, name in ((history, "h"), (items, "i")):
        path = tmp_path / f"{name}.{ending}"
        if ending == "parquet":
            frame.write_parquet(path)
        elif ending == "csv":
            frame.write_csv(path)
        else:
            frame.write_ndjson(path)
    source = {"files": [f"h.{ending}"], "user": "user", "item": "past", "time": "time",
              "time_unit": "ms", "lists": True, "constant": {"click": 1},
              "null_values": {"past": ["0", "NULL"]}}  # fmt: skip
    tagged = {"name": "tags", "kind": "categorical", "split": "|"}
    table = {"files": [f"i.{ending}"], "id": "id", "features": [tagged], "null_values": ["NULL"]}
    spec = Spec.model_validate(
        {"name": "t", "events": [{"time_unit": "ms", **EVENTS, "null_values": {"item": ["0"]}},
                                 source],
         "labels": [CLICK], "items": table, "checks": {"max_bad_share": 0.5}}
    )  # fmt: skip
    manifest = run(tmp_path, spec)
    shown = sum(item != 0 for item in rows(300)["item"])
    assert manifest["counts"]["events"] == shown + 4  # 1, 2; 3, 1
    assert manifest["counts"]["items"] == 15
    assert not any("words such as" in one for one in manifest["summary"]["warnings"])
    vocabulary = pl.read_parquet(tmp_path / "out-0" / "vocab" / "item_tags.parquet")
    assert set(vocabulary["value"]) == {"a", "b", "c"}


def test_lists_in_brackets_are_refused(tmp_path: Path) -> None:
    write(tmp_path, rows(300))
    history = {"user": range(3), "item": ["[1, 2]", None, "[3]"], "time": [START - 1] * 3}
    pl.DataFrame(history).write_csv(tmp_path / "h.csv")
    lists = {**EVENTS, "files": ["h.csv"], "time_unit": "ms", "lists": True, "list_split": ","}
    events = [{**EVENTS, "time_unit": "ms"}, {**lists, "constant": {"click": 1}}]
    spec = {"name": "t", "labels": [CLICK], "events": events}
    with pytest.raises(DataError, match=r"h\.csv: column 'item' has lists in brackets, such as"):
        run(tmp_path, Spec.model_validate(spec))


def test_a_split_without_requests_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, rows())
    cuts = {"validation_from": "2024-06-10T07:00", "test_from": "2030-01-01"}
    warnings = run(tmp_path, make_spec(split=cuts))["summary"]["warnings"]
    assert "the test split is empty" in warnings
    assert any("without test requests a model cannot be measured there" in one for one in warnings)


# Units and forms of times


@pytest.mark.parametrize(
    ("given", "unit"), [("s", "ms"), ("ms", "s"), ("us", "ms"), ("ns", "s"), ("s", "us")]
)
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_times_in_another_unit_are_seen(tmp_path: Path, given: str, unit: str, ending: str) -> None:
    factor = {"s": 1, "ms": 1000, "us": 10**6}[unit]
    times = [(START // 1000 + 60 * k) * factor for k in range(200)]
    write(tmp_path, rows(time=times), f"log.{ending}")
    spec = make_spec({"files": [f"log.{ending}"], "time_unit": given})
    try:
        report = " ".join(run(tmp_path, spec)["summary"]["warnings"])
    except DataError as error:  # no time is left, or all are one
        report = str(error)
    assert f'with time_unit = "{unit}", not with the "{given}" given' in report


def test_times_that_no_unit_explains_or_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    write(tmp_path, rows(time=list(range(200))))
    report = run(tmp_path, make_spec())["summary"]["warnings"]
    assert not any("time_unit =" in one for one in report)
    write(tmp_path, rows(time=[START * 10**6 + k for k in range(200)]))
    with pytest.raises(DataError, match='with time_unit = "ns", not with the "s" given'):
        run(tmp_path, make_spec({"time_unit": "s"}))
    with pytest.raises(DataError, match=r'"ns", not with "s" \(the default\)'):
        run(tmp_path, Spec(name="test", events=[EVENTS], labels=[CLICK]))
    write(tmp_path, rows(time=[START + 60_000 * k for k in range(200)]))
    with pytest.raises(DataError, match=r'later than the present: .* with time_unit = "ms"'):
        run(tmp_path, make_spec({"time_unit": "s"}))
    write(tmp_path, rows(time=[START + k for k in range(200)]), "log.csv")
    with pytest.raises(DataError, match='with time_unit = "ms", not with the "text" given'):
        run(tmp_path, make_spec({"time_unit": "text", "files": ["log.csv"]}))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("%y%m%d%H", "24061006"),
        ("%Y-%m-%d %H", "2024-06-10 06"),
        ("%d/%m/%Y", "10/06/2024"),
        ("%d.%m.%y %H:%M", "10.06.24 06:00"),
        ("%s", "1717999200"),
        ("%m/%d/%Y %I %p", "06/10/2024 06 AM"),
        ("%Y%m%dT%H%M%S%z", "20240610T080000+0200"),
    ],
)
def test_forms_of_times(tmp_path: Path, form: str, text: str) -> None:
    write(tmp_path, rows(time=[text] * 200), "log.csv")
    source = {"files": ["log.csv"], "time_unit": "text", "time_format": form}
    spec = make_spec(source, split={"by": "position"})
    hour = 0 if form == "%d/%m/%Y" else 6
    expected = 1_717_977_600_000 + hour * 3_600_000
    assert run(tmp_path, spec)["summary"]["time"]["last"] == expected


@pytest.mark.parametrize("form", ["%H:%M:%S", "%Y-%m", "yyyy-MM-dd", "%Y-%m-%d %H:%M%", "%Q", "%"])
def test_forms_that_tell_no_time_are_refused_at_once(tmp_path: Path, form: str) -> None:
    write(tmp_path, rows(), "log.csv")
    source = {"files": ["log.csv"], "time_unit": "text", "time_format": form}
    with pytest.raises(SpecError, match=r"^time_format = .* of log.csv: [^\n]*; expected a year"):
        run(tmp_path, make_spec(source))


def test_times_of_one_instant_have_one_form(tmp_path: Path) -> None:
    """Blanks, a comma, and numbers beyond 2^53 beside one that is none change no millisecond."""
    columns = rows(200)
    columns["time"] = [START + k * 60_007 for k in range(200)]
    moments = pl.Series(columns["time"]).cast(pl.Datetime("ms")).dt
    forms: list[tuple[str, Any]] = [
        ("ms", [f" {t}  " for t in columns["time"]]),
        ("ms", [f"{t}.0" for t in columns["time"]]),
        ("ns", [f"{t * 1_000_000}" for t in columns["time"]]),
        ("ns", [float(t * 1_000_000) for t in columns["time"]]),
        ("s", [t / 1000 for t in columns["time"]]),
        ("text", moments.strftime("%Y-%m-%d %H:%M:%S,%3f").to_list()),
        ("text", moments.strftime("%Y-%m-%dT%H:%M:%S,%3fZ").to_list()),
    ]
    for unit, times in forms:
        for ending in ("csv", "parquet"):
            bad = "none" if isinstance(times[0], str) else None
            written = [*times[:-1], bad]
            write(tmp_path, columns | {"time": written}, f"log.{ending}")
            source = {"files": [f"log.{ending}"], "time_unit": unit}
            summary = run(tmp_path, make_spec(source))["summary"]
            assert summary["dropped"] == {"missing or unparsable time": 1}, (unit, times[0])
            assert summary["time"]["first"] == START
            assert summary["time"]["last"] == columns["time"][-2], (unit, times[0])


@pytest.mark.parametrize(
    ("dtype", "source", "word"),
    [
        (pl.Float32, {"time_unit": "s"}, "16,777,216"),
        (pl.Float64, {"time": None, "order": "time"}, "9,007,199,254,740,992"),
    ],
)
def test_times_that_lost_digits_are_refused(
    tmp_path: Path, dtype: type[pl.DataType], source: dict[str, Any], word: str
) -> None:
    columns = rows(200)
    write(
        tmp_path, columns | {"time": pl.Series([t * 10_000 for t in columns["time"]], dtype=dtype)}
    )
    message = f"log.parquet: column 'time' holds the (time|order) .* {word} or more have lost"
    with pytest.raises(DataError, match=message):
        run(tmp_path, make_spec(source, split={"by": "position"}))


def test_times_in_iso_text_that_are_to_be_numbers_get_a_hint(tmp_path: Path) -> None:
    columns = rows(200)
    columns["time"] = pl.Series(columns["time"]).cast(pl.Datetime("ms")).dt.to_string("iso")
    write(tmp_path, columns, "log.csv")
    with pytest.raises(DataError, match=r'such as .2024-06-10.*: set time_unit = "text"'):
        run(tmp_path, make_spec({"files": ["log.csv"]}))


def test_an_unsorted_file_is_reported_as_unsorted(tmp_path: Path) -> None:
    columns = rows(400)
    random.Random(1).shuffle(columns["time"])
    write(tmp_path, columns)
    text = DatasetSummary.of(run(tmp_path, make_spec())).text()
    assert "row out of order, sorted\n" in text and "backwards" not in text
    assert "the files are not sorted; the dataset is" in text


# Request ids


BIG = 1 << 63
REQUESTS: dict[str, tuple[pl.DataType, list[Any]]] = {
    "integers": (pl.Int64(), [3, 3, -5, -5, 0, 0, None, None]),
    "unsigned hashes": (pl.UInt64(), [BIG, BIG, BIG + 1, BIG + 1, 7, 7, None, None]),
    "floats": (pl.Float64(), [3.0, 3.0, 5.0, 5.0, 0.0, 0.0, float("nan"), None]),
    "text": (pl.String(), ["a", "a", "b", "b", "0", "0", "", None]),
    "text of unsigned hashes": (
        pl.String(),
        [str(BIG), str(BIG), str(BIG + 1), str(BIG + 1), "7", "7.0", None, " "],
    ),
    "dictionary": (pl.Categorical(), ["a", "a", "b", "b", "c", "c", None, None]),
    "decimals": (pl.Decimal(38, 0), [10**30, 10**30, 10**30 + 1, 10**30 + 1, 7, 7, None, None]),
}


def request_sizes(folder: Path, requests: list[pl.Series], user: int = 1) -> list[int]:
    """Impressions of each request of one user, whose rows stand in one file per series."""
    at = 0
    for number, series in enumerate(requests):
        count = len(series)
        frame = pl.DataFrame(
            {
                "user": [user] * count,
                "item": list(range(count)),
                "time": [START + at + k for k in range(count)],
                "click": [k % 2 for k in range(count)],
            }
        )
        at += count
        frame.with_columns(series.alias("request")).write_parquet(folder / f"log-{number}.parquet")
    source = {"files": ["log-*.parquet"], "request": "request"}
    spec = make_spec(source, split={"train": 0.98, "validation": 0.01})
    run(folder, spec)
    out = sorted(folder.glob("out-*"))[-1]
    return np.load(out / "requests/count.npy").tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", REQUESTS)
def test_request_ids_are_exact_and_may_be_missing(tmp_path: Path, kind: str) -> None:
    """Eight impressions in three requests of two, and two without: those go together by time. (The
    last impression is the test split.)"""
    dtype, values = REQUESTS[kind]
    assert request_sizes(tmp_path, [pl.Series(values, dtype=dtype)]) == [2, 2, 2, 1, 1]


def test_request_ids_of_several_types_are_one_where_they_are_written_alike(tmp_path: Path) -> None:
    parts = [
        pl.Series([7, 7], dtype=pl.Int32),
        pl.Series(["7", "8"]),
        pl.Series([8.0, float("nan")]),
        pl.Series([9, BIG + 3], dtype=pl.UInt64),
        pl.Series([str(BIG + 3), "x", "x"]),
    ]
    assert request_sizes(tmp_path, parts) == [3, 2, 1, 1, 2, 1, 1]


def test_a_request_id_of_two_users_is_two_requests(tmp_path: Path) -> None:
    columns = rows(40, user=[1, 2] * 20, request=[9] * 40)
    write(tmp_path, columns)
    run(tmp_path, make_spec({"request": "request"}, split={"by": "position", "train": 0.5}))
    users = np.load(tmp_path / "out-0/requests/user.npy")
    assert np.load(tmp_path / "out-0/requests/count.npy").sum() == 40
    assert len(users) == 2  # each user's, in one split


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32])
def test_request_ids_that_lost_digits_are_refused(tmp_path: Path, dtype: Any) -> None:
    limit = 53 if dtype == pl.Float64 else 24
    values = pl.Series([float(1 << limit), 2.0 ** (limit + 1)], dtype=dtype)
    with pytest.raises(DataError, match=f"request ids: column 'request' holds the id {1 << limit}"):
        request_sizes(tmp_path, [values])
    with pytest.raises(DataError, match="column 'request' holds Boolean, expected request ids"):
        request_sizes(tmp_path, [pl.Series([True, False])])


def test_vectors_that_are_all_missing_are_seen(tmp_path: Path) -> None:
    write(tmp_path, rows())
    for dtype in (pl.Null, pl.List(pl.Float32), pl.String):
        items = pl.DataFrame({"id": list(range(15)), "vec": pl.Series([None] * 15, dtype=dtype)})
        items.write_parquet(tmp_path / "items.parquet")
        table = {"files": ["items.parquet"], "features": [{"name": "vec", "kind": "text-vector"}]}
        (warning,) = run(tmp_path, make_spec(items=table))["summary"]["warnings"]
        assert "item feature vec: 0 of 15 rows have a value in the column 'vec'" in warning


def test_bad_values_are_shown_with_their_file_and_column(tmp_path: Path) -> None:
    columns = rows(click=["0", "1"] * 99 + ["yes", "2"])
    columns["time"] = [str(value) for value in columns["time"]]
    columns["time"][7] = "soon"
    write(tmp_path, columns, "log.csv")
    examples = run(tmp_path, make_spec({"files": ["log.csv"]}))["summary"]["examples"]
    assert {reason: text.partition("log.csv, ")[2] for reason, text in examples.items()} == {
        "missing or unparsable time": "column 'time': 'soon'",
        "missing label click": "column 'click': 'yes'",
        "label click is neither 0 nor 1": "column 'click': '2'",
    }
