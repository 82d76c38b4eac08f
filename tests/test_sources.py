"""Files of rows: in each format every record becomes a row or is counted, or a line says why."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import random
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data.description import load_spec
from limerank.data.sources import Reader, delimited, find_files, open_files, read_table
from limerank.data.spec import Table
from limerank.errors import DataError, SpecError

MIB = 1 << 20


def table(*files: str, **values: Any) -> Table:
    return Table(files=files, **values)


def rows_of(
    path: Path, columns: list[str], size: int = MIB, **values: Any
) -> tuple[list[Any], Reader]:
    """All rows of one file, and its reader."""
    (reader,) = open_files([path], table(path.name, **values))
    frames = list(reader.batches(columns, size))
    return [row for frame in frames for row in frame.rows()], reader


# Quotes


@pytest.mark.parametrize("position", [0, 1, 500, 998, 999])
def test_an_unpaired_quote_costs_its_own_line_and_is_counted(tmp_path: Path, position: int) -> None:
    lines = [f"{k},name {k},{k % 7}" for k in range(1000)]
    lines[position] = f'{position},"unpaired,{position % 7}'
    (tmp_path / "t.csv").write_text("id,name,class\n" + "\n".join(lines) + "\n")
    rows, reader = rows_of(tmp_path / "t.csv", ["id", "class"])
    assert [int(row[0]) for row in rows] == [k for k in range(1000) if k != position]
    assert reader.rows.bad_lines == 1
    assert f"line {position + 2:,}: a quote that is not closed" in (reader.rows.bad_example or "")


def test_records_of_every_kind_add_up(tmp_path: Path) -> None:
    text = (
        "id,name,size\n"
        '1,"plain",1\n'
        '2,"with, comma",2\n'
        '3,"a ""word"" twice",3\n'
        '4,5" disk,4\n'  # a quote within a field is a quote
        '5,"over\ntwo lines",5\n'
        "\n"
        "6,too few\n"
        '7,"never closed,7\n'
        '8,"closed" early,8\n'
        "9,,9\n"
        '10,"three\n\nlines, and a ""quote""",10\n'
        "11,too,many,fields\n"
        '12,"at the end,12'
    )
    (tmp_path / "t.csv").write_text(text)
    rows, reader = rows_of(tmp_path / "t.csv", ["id", "name"])
    assert rows == [
        ("1", "plain"),
        ("2", "with, comma"),
        ("3", 'a "word" twice'),
        ("4", '5" disk'),
        ("5", "over\ntwo lines"),
        ("8", "closed early"),
        ("9", None),
        ("10", 'three\n\nlines, and a "quote"'),
    ]
    assert reader.rows.bad_lines == 4
    assert reader.rows.several_lines == 2
    assert "line 10: a quote" in (reader.rows.bad_example or "")


def test_a_closing_quote_far_below_does_not_swallow_what_is_between(tmp_path: Path) -> None:
    lines = [f"{k},x,{k}" for k in range(5000)]
    lines[10] = '10,"x,10'
    lines[4000] = '4000,x",4000'
    (tmp_path / "t.csv").write_text("id,name,size\n" + "\n".join(lines) + "\n")
    rows, reader = rows_of(tmp_path / "t.csv", ["id"])
    assert len(rows) == 4999
    assert reader.rows.bad_lines == 1


FIELDS = st.text(st.sampled_from('ab",;\n\\ \t|'), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=30), st.integers(0, 2))
def test_what_the_standard_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], dialect: int
) -> None:
    """A block of the smallest size, so that records go over blocks."""
    separator, name = [(",", "t.csv"), ("\t", "t.tsv"), ("|", "t.csv")][dialect]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "a", "b"])
    writer.writerows([k, *row] for k, row in enumerate(rows))
    path = tmp_path_factory.mktemp("csv") / name
    path.write_text(out.getvalue())
    found, reader = rows_of(path, ["a", "b"], separator=separator, quote='"')
    assert found == [tuple(value or None for value in row) for row in rows]
    assert reader.rows.bad_lines == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.sampled_from('a",\n'), max_size=10), max_size=40))
def test_no_record_of_a_broken_file_is_lost_uncounted(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    """Each line that is not blank is a row, a bad record, or a part of a counted longer record."""
    text = "\n".join(line.replace("\n", "") for line in lines)
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text("p,q\n" + text)
    rows, reader = rows_of(path, ["p"])
    there = sum(1 for line in text.split("\n") if line)
    found = len(rows) + reader.rows.bad_lines
    assert found == there if reader.rows.several_lines == 0 else found < there


def test_records_over_the_ends_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    rows = [(k, rng.choice(["x", "a\nb", 'say "so"', "1,5"])) for k in range(60_000)]
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows([("id", "name"), *rows])
    (tmp_path / "t.csv").write_text(out.getvalue(), newline="")
    found, reader = rows_of(tmp_path / "t.csv", ["id", "name"], size=1 << 18)
    assert found == [(str(k), name) for k, name in rows]
    assert reader.rows.bad_lines == 0


def test_quoted_tsv_pipes_and_escapes(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('"id"\t"name"\n"1"\t"a\tb"\n')
    with pytest.raises(DataError, match=r"no column 'id'.*set quote = '\"'"):
        read_table(table("t.tsv"), tmp_path, ["id"])
    frame, _ = read_table(table("t.tsv", quote='"'), tmp_path, ["id"])
    assert frame.rows() == [("1",)]
    (tmp_path / "p.csv").write_text("id|name\n'1'|'it''s'\n2|'a|b'\n")
    assert rows_of(tmp_path / "p.csv", ["name"], separator="|", quote="'")[0] == [
        ("it's",),
        ("a|b",),
    ]
    with pytest.raises(DataError, match="are in quotes, such as"):
        (tmp_path / "q.csv").write_text('id|n\n"1"|2\n')
        rows_of(tmp_path / "q.csv", ["id"], separator="|")
    assert rows_of(tmp_path / "q.csv", ["id"], separator="|", quote="")[0] == [('"1"',)]
    (tmp_path / "e.csv").write_text('id,name\n1,"a \\"b\\" c"\n2,"x, \\\\"\n3,a\\,b\n')
    found, reader = rows_of(tmp_path / "e.csv", ["id", "name"], escape="\\")
    assert found == [("1", 'a "b" c'), ("2", "x, \\"), ("3", "a,b")]
    assert reader.rows.bad_lines == 0
    (tmp_path / "d.dat").write_text('id::name\n1::"a::b"\n')
    given = {"format": "csv", "separator": "::", "quote": '"'}
    assert rows_of(tmp_path / "d.dat", ["name"], **given)[0] == [("a::b",)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quote", ['"', ""])
def test_an_escape_at_the_end_of_a_line(tmp_path: Path, end: str, quote: str) -> None:
    """As of a title that ends with a backslash; or of a value over two lines, as MySQL writes."""
    lines = [f"{k},name {k},{k % 7}" for k in range(300)]
    lines[40] += "\\"  # the next line is a record of its own
    lines[80] += "\\\\"  # an escaped escape
    lines[120] = "120,two\\" + end + "lines,1"
    lines[299] += "\\"
    (tmp_path / "t.csv").write_text("id,name,x" + end + end.join(lines), newline="")
    for size in (1, MIB):
        found, reader = rows_of(tmp_path / "t.csv", ["id", "x"], size, escape="\\", quote=quote)
        several = end != "\r\n"
        lost = {40, 299} if several else {40, 120, 299}
        assert [row[0] for row in found] == [str(k) for k in range(300) if k not in lost]
        assert found[80 - 1] == ("80", "3\\")
        assert (reader.rows.bad_lines, reader.rows.several_lines) == ((2, 1) if several else (4, 0))
        assert "t.csv, line 42: an escape at its end: '40,name 40,5" in str(reader.rows.bad_example)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_breaks_of_another_kind_within_quotes(tmp_path: Path, end: str) -> None:
    text = end.join(["id,name", '1,"x\ry"', '2,"x\ny"', '3,"x\r\ny"', "4,z,bad", "5,z", ""])
    (tmp_path / "t.csv").write_text(text, newline="")
    found, reader = rows_of(tmp_path / "t.csv", ["id", "name"])
    assert found == [("1", "x\ry"), ("2", "x\ny"), ("3", "x\r\ny"), ("5", "z")]
    assert (reader.rows.bad_lines, reader.rows.several_lines) == (1, 3)
    assert "line 8: 3 fields, expected 2" in str(reader.rows.bad_example)


# Headers and encodings


def test_headers_that_cannot_be_right(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,name,name,\n1,a,b,c\n")
    (reader,) = open_files([path], table("t.csv"))
    assert "the name 'name' 2 times" in reader.rows.remarks[0]
    assert "column 4 of the header has no name" in reader.rows.remarks[1]
    reader.require([("id", "id")])
    with pytest.raises(DataError, match=r"t.csv has several columns with the name 'name'"):
        reader.require([("name", "category")])
    path.write_text("id, name\n1,a\n")
    with pytest.raises(DataError, match=r"no column 'name'.*did you mean ' name'"):
        open_files([path], table("t.csv"))[0].require([("name", "category")])
    with pytest.raises(DataError, match="remove columns from the description"):
        open_files([path], table("t.csv", columns=("id", "name")))
    path.write_text('id,"name\n1,a\n')
    with pytest.raises(DataError, match="first line has a quote that is not closed"):
        open_files([path], table("t.csv"))
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, ["id", "id"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="several columns with the name 'id'"):
        open_files([tmp_path / "t.parquet"], table("t.parquet"))[0].require([("id", "id")])


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_empty_files(tmp_path: Path, text: str) -> None:
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name} cannot be read as .* it is empty"):
            open_files([tmp_path / name], table(name))


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    for text in ("id,name", "id,name\n", "\ufeffid,name\r\n\r\n"):
        (tmp_path / "t.csv").write_bytes(text.encode())
        rows, reader = rows_of(tmp_path / "t.csv", ["id"])
        assert rows == []
        assert list(reader.columns) == ["id", "name"]


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin1", "cp1252", "utf-32"]
)
def test_encodings_and_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    text = "id,name\n1,Café\n2,Ör\n"
    data = ("\ufeff" + text if encoding == "utf-16-le" else text).encode(encoding)
    (tmp_path / "t.csv").write_bytes(data)
    assert rows_of(tmp_path / "t.csv", ["id", "name"], encoding=encoding)[0][0] == ("1", "Café")
    if encoding in ("utf-16", "utf-32"):
        with pytest.raises(DataError, match=f'written in {encoding}: set encoding = "{encoding}"'):
            open_files([tmp_path / "t.csv"], table("t.csv"))


def test_encodings_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("id,name\n1,é\n".encode("latin1"))
    for encoding in ("utf-8", "utf-16", "shift_jis_2004"):
        with pytest.raises(
            DataError, match=r"t.csv cannot be read as csv: .*give the file's encoding"
        ):
            rows_of(tmp_path / "t.csv", ["name"], encoding=encoding)
    for wrong in ("latin-99", "rot13", ""):
        with pytest.raises(ValueError, match="is not an encoding"):
            table("t.csv", encoding=wrong)


@pytest.mark.parametrize(
    "wrong", [{"quote": "ab"}, {"quote": "é"}, {"escape": ""}, {"separator": "\n"}]
)
def test_marks_that_cannot_be(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        table("t.csv", **wrong)


def test_marks_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="quote and separator are both"):
        table("t.csv", quote=";", separator=";")
    with pytest.raises(ValueError, match="written twice"):
        table("t.csv", quote='"', escape='"')
    with pytest.raises(ValueError, match="names 'a' twice"):
        table("t.csv", columns=("a", "b", "a"))


# JSON lines


LINES = [
    {"id": 7, "name": "a", "tags": ["x", "y"], "price": 3, "vec": [1, 2.5]},
    {"id": 8, "name": None, "tags": [], "price": 2.5, "vec": None},
    {"id": 9, "price": None, "on": True, "tags": None, "vec": [0, 1]},
]


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "jsonl.gz", "ndjson.bz2", "jsonl.zst"])
def test_json_lines(tmp_path: Path, ending: str) -> None:
    text = ("\n".join(map(json.dumps, LINES)) + "\n").encode()
    pack = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "zst": lambda d: pa.Codec("zstd").compress(d, asbytes=True),
    }
    text = pack.get(ending.rpartition(".")[2], bytes)(text)
    (tmp_path / f"t.{ending}").write_bytes(text)
    rows, _ = rows_of(tmp_path / f"t.{ending}", ["id", "tags", "price", "vec", "on"])
    assert rows == [
        (7, ["x", "y"], 3.0, [1.0, 2.5], None),
        (8, [], 2.5, None, None),
        (9, None, None, [0.0, 1.0], True),
    ]


def test_json_values_of_several_types_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    big = (1 << 63) + 1
    path.write_text('{"id": 7}\n{"id": "x"}\n{"id": 2.5}\n{"id": true}\n' + f'{{"id": {big}}}\n')
    assert rows_of(path, ["id"])[0] == [("7",), ("x",), ("2.5",), ("true",), (str(big),)]
    path.write_text(f'{{"id": 0.5}}\n{{"id": {(1 << 53) + 1}}}\n')
    assert rows_of(path, ["id"])[0] == [("0.5",), (str((1 << 53) + 1),)]


def test_nan_and_infinity_in_json_are_missing_values(tmp_path: Path) -> None:
    lines = ['{"id": NaN}', '{"id": 9007199254740993}', '{"id": "x"}', '{"id": Infinity}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert rows_of(tmp_path / "t.jsonl", ["id"])[0] == [
        (None,),
        ("9007199254740993",),
        ("x",),
        (None,),
    ]


def test_lines_that_are_not_json_objects_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = '{"id": 1, "x": "a"}'
    path.write_text("\n".join([good, "", "{oops", "[1]", good + "," + good, "7", good, '{"id"']))
    rows, reader = rows_of(path, ["id"])
    assert rows == [(1,), (1,)]
    assert reader.rows.bad_lines == 5
    assert "line 3: not a JSON object" in (reader.rows.bad_example or "")
    path.write_text('[{"id": 1},\n {"id": 2}]')
    with pytest.raises(DataError, match="holds a JSON array, expected JSON lines"):
        open_files([path], table("t.jsonl"))
    path.write_text("id,name\n1,2\n")
    with pytest.raises(DataError, match="has no JSON object in its first lines"):
        open_files([path], table("t.jsonl"))


def test_json_lines_over_many_blocks(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with path.open("w") as file:
        for k in range(40_000):
            file.write(json.dumps({"id": k, "text": "é" * (k % 40)}, ensure_ascii=False) + "\n")
    rows, reader = rows_of(path, ["id"], size=1)
    assert [row[0] for row in rows] == list(range(40_000))
    assert reader.rows.bad_lines == 0


def test_json_columns_of_no_use(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": {"a": 1}, "tag": "a"}\n')
    with pytest.raises(DataError, match=r"t.jsonl: column 'id' holds Struct.*expected ids"):
        open_files([path], table("t.jsonl"))[0].require([("id", "id")])
    path.write_text('{"id": 1, "tag": "a"}\n{"id": 1, "tag": ["b"]}\n')
    with pytest.raises(DataError, match="key 'tag' holds lists and single values, such as 'a'"):
        rows_of(path, ["tag"])


# Folders and partitions


def write_parts(folder: Path) -> None:
    for day, part in (("2026-11-01", 0), ("2026-11-02", 1)):
        for shop in ("a b", "__HIVE_DEFAULT_PARTITION__"):
            below = folder / f"logs/dt={day}/shop={shop.replace(' ', '%20')}"
            below.mkdir(parents=True)
            pl.DataFrame({"id": [part]}).write_parquet(below / "part-0.parquet")
            (below / "_SUCCESS").write_text("")
            (below / ".part-0.parquet.crc").write_text("")
    (folder / "logs/_temporary").mkdir()
    pl.DataFrame({"id": [9]}).write_parquet(folder / "logs/_temporary/part-1.parquet")


@pytest.mark.parametrize("pattern", ["logs", "logs/", "logs/dt=*", "logs/**/*.parquet", "lo*"])
def test_a_folder_and_its_partitions(tmp_path: Path, pattern: str) -> None:
    write_parts(tmp_path)
    names = find_files(table(pattern), tmp_path)
    assert [path.name for path in names if "_temporary" not in path.parts] == ["part-0.parquet"] * 4
    if pattern == "logs/**/*.parquet":
        return
    layout = table(
        pattern,
        id="id",
        features=({"name": "dt", "kind": "categorical"}, {"name": "shop", "kind": "categorical"}),
    )
    frame, _ = read_table(layout, tmp_path, ["id", "dt", "shop"])
    assert sorted(frame.rows(), key=lambda row: (row[1], row[2] or "")) == [
        (0, date(2026, 11, 1), None),
        (0, date(2026, 11, 1), "a b"),
        (1, date(2026, 11, 2), None),
        (1, date(2026, 11, 2), "a b"),
    ]


def test_folders_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/notes.txt").write_text("x")
    with pytest.raises(
        DataError, match=r"folder .*logs holds no file to read; expected names that end"
    ):
        find_files(table("logs"), tmp_path)
    assert find_files(table("logs", format="csv"), tmp_path) == [tmp_path / "logs/notes.txt"]
    with pytest.raises(SpecError, match="is a folder, expected a dataset description"):
        load_spec(tmp_path)


# Types


TYPES: dict[str, Any] = {
    "binary": pa.array([b"a", b"b"]),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"a": 1}, None]),
    "time": pa.array([time(1), time(2)]),
    "duration": pa.array([timedelta(1), timedelta(2)]),
    "null": pa.array([None, None]),
    "list": pa.array([[1], [2]]),
    "list of lists": pa.array([[[1]], [[2]]]),
    "boolean": pa.array([True, False]),
    "date": pa.array([date(2026, 1, 1)] * 2),
    "datetime": pa.array([datetime(2026, 1, 1)] * 2),
    "decimal": pa.array([Decimal("7.5"), Decimal("8.0")]),
    "integer decimal": pa.array([Decimal(7), Decimal(8)], pa.decimal128(38, 0)),
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "half": pa.array([1.0, 2.0], pa.float32()).cast(pa.float16()),
    "large text": pa.array(["a", "b"], pa.large_string()),
    "view": pa.array(["a", "b"], pa.string_view()),
    "unsigned": pa.array([1, 1 << 63], pa.uint64()),
}
GOOD = {
    "id": {"decimal", "integer decimal", "dictionary", "half", "large text", "view", "unsigned"},
    "time": {"date", "datetime", "decimal", "integer decimal", "dictionary", "half", "large text"}
    | {"view", "unsigned"},
    "label": {"boolean", "decimal", "integer decimal", "dictionary", "half", "large text", "view"}
    | {"unsigned"},
    "categories": {"null", "list", "boolean", "date", "datetime", "decimal", "integer decimal"}
    | {"dictionary", "half", "large text", "view", "unsigned"},
    "vector": {"null", "list", "dictionary", "large text", "view"},
}


@pytest.mark.parametrize("role", GOOD)
@pytest.mark.parametrize("kind", TYPES)
def test_types_are_read_or_refused_when_a_file_is_opened(
    tmp_path: Path, kind: str, role: str
) -> None:
    pq.write_table(pa.table({"x": TYPES[kind]}), tmp_path / "t.parquet")
    (reader,) = open_files([tmp_path / "t.parquet"], table("t.parquet"))
    if kind not in GOOD[role]:
        with pytest.raises(DataError, match=r"t.parquet: column 'x' holds .*, expected [^\n]*$"):
            reader.require([("x", role)])
        return
    reader.require([("x", role)])
    (frame,) = reader.batches(["x"], MIB)
    assert frame["x"].dtype == reader.columns["x"]
    if kind == "dictionary":
        assert frame["x"].to_list() == ["a", "b"]
    if kind == "integer decimal":
        assert frame["x"].to_list() == [7, 8]


def test_damaged_files_say_so(tmp_path: Path) -> None:
    data = gzip.compress(b"id,name\n" + b"1,a\n" * 100_000)
    (tmp_path / "t.csv.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "u.csv.gz").write_bytes(b"id,name\n1,a\n")
    pl.DataFrame({"id": list(range(1000))}).write_parquet(tmp_path / "t.parquet")
    full = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(full[:40] + b"\xff" * 60 + full[100:])
    (tmp_path / "u.parquet").write_bytes(full[:-20])
    for name in ("t.csv.gz", "u.csv.gz", "t.parquet", "u.parquet"):
        with pytest.raises(DataError, match=f"{name} cannot be read as [^\n]*$"):
            rows_of(tmp_path / name, ["id"])


# Missing values


def test_spellings_of_missing_values(tmp_path: Path) -> None:
    pl.DataFrame(
        {"id": [0, 7, -1], "x": [0.0, 1.5, float("nan")], "s": ["N/A", "0", " NULL "]}
    ).write_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("id,x,s\n0,0,N/A\n7,1.5,0\n-1,nan, NULL \n")
    (tmp_path / "t.jsonl").write_text(
        '{"id": 0, "x": 0, "s": "N/A"}\n{"id": 7, "x": 1.5, "s": "0"}\n'
        '{"id": -1, "x": null, "s": " NULL "}\n'
    )
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        everywhere, _ = rows_of(tmp_path / name, ["id", "s"], null_values=("0", "N/A", "NULL"))
        assert [row[0] is None for row in everywhere] == [True, False, False]
        assert [row[1] is None for row in everywhere] == [True, True, True]
        by_column = {"id": ("0", "-1"), "s": ("NULL",)}
        some, _ = rows_of(tmp_path / name, ["id", "x", "s"], null_values=by_column)
        assert [row[0] is None for row in some] == [True, False, True]
        assert [row[2] is None for row in some] == [False, False, True]
        assert some[0][1] is not None


@pytest.mark.parametrize("given", ["-1", "-1.0", " -1.00"])
def test_missing_numbers_in_text_have_all_spellings(tmp_path: Path, given: str) -> None:
    (tmp_path / "t.csv").write_text("id,s\n-1,a\n-1.0,b\n -1 ,c\n-10,d\n-1.5,e\ntrue,f\n")
    found, _ = rows_of(tmp_path / "t.csv", ["id", "s"], null_values={"id": (given.strip(),)})
    assert [row[0] for row in found] == [None, None, None, "-10", "-1.5", "true"]
    found, _ = rows_of(tmp_path / "t.csv", ["id", "s"], null_values={"id": ("1", "TRUE")})
    assert [row[0] for row in found][-1] == "true"


def test_the_limit_of_a_line_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LONGEST_LINE", 1 << 20)
    (tmp_path / "t.csv").write_text("id,name\n" + "x" * (5 << 20))
    with pytest.raises(DataError, match="the line 2 is longer than 1 MiB"):
        rows_of(tmp_path / "t.csv", ["id"], size=1)
