"""Rows passed as frames make the dataset that the same rows in Parquet files make."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limerank.data.description import load_spec
from limerank.data.formats import FORMATS, Format
from limerank.data.prepare import prepare
from limerank.data.sources import FileRows
from limerank.data.spec import EventSource, Spec, Table
from limerank.errors import DataError, SpecError
from limerank.validation import memory_bytes

USERS, ITEMS, EVENTS = 30, 20, 400
DESCRIPTION: dict[str, Any] = {
    "name": "shop",
    "events": [{"user": "user", "item": "item", "time": "time", "request": "request"}],
    "labels": [
        {"name": "click", "kind": "binary"},
        {"name": "watch", "kind": "duration", "of": "length"},
    ],
    "event_features": [
        {"name": "tab", "kind": "categorical", "when": "context"},
        {"name": "volume", "kind": "numeric"},
    ],
    "items": {
        "id": "item",
        "features": [
            {"name": "genres", "kind": "categorical"},
            {"name": "price", "kind": "numeric", "transform": "log1p"},
            {"name": "vector", "kind": "text-vector"},
        ],
    },
    "users": {"id": "user", "features": [{"name": "country", "kind": "categorical"}]},
}


def frames(seed: int = 0) -> dict[str, pl.DataFrame]:
    """Events, items and users with types of all kinds, nulls among them."""
    rng = np.random.default_rng(seed)
    n = EVENTS
    time = np.sort(rng.integers(1_700_000_000, 1_700_900_000, n))
    events = pl.DataFrame(
        {
            "user": [f"u{k}" for k in rng.integers(0, USERS, n)],
            "item": pl.Series(rng.integers(0, ITEMS, n), dtype=pl.UInt16),
            "time": pl.Series(time * 1000, dtype=pl.Int64).cast(pl.Datetime("ms")),
            "request": [None if k % 3 else k for k in range(n)],
            "click": rng.random(n) < 0.4,
            "watch": [None if k == 7 else float(k % 50) for k in range(n)],
            "length": pl.Series(rng.integers(1, 60, n), dtype=pl.Int32),
            "tab": pl.Series(rng.choice(["home", "search"], n), dtype=pl.Categorical),
            "volume": [float("nan") if k % 5 == 0 else k / 7 for k in range(n)],
            "unused": [None] * n,
        }
    )
    items = pl.DataFrame(
        {
            "item": np.arange(ITEMS),
            "genres": [[f"g{k % 3}", f"g{k % 5}"] if k else None for k in range(ITEMS)],
            "price": [None if k == 3 else 1.5 * k for k in range(ITEMS)],
            "vector": [[float(k), 1.0] for k in range(ITEMS)],
        }
    )
    users = pl.DataFrame(
        {"user": [f"u{k}" for k in range(USERS)], "country": ["de", None, "fr"] * (USERS // 3)}
    )
    return {"events": events, "items": items, "users": users}


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    """As other tools write it: with plain strings, not views."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def to_pandas(frame: pl.DataFrame) -> Any:
    pytest.importorskip("pandas")
    return frame.to_pandas()


class Stream:
    """A frame of a library that nobody here knows."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._table = to_arrow(frame)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def stored(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset by name, but for the two that name the source."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("dataset.json", "spec.toml")
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    return found


def from_parquet(folder: Path, given: dict[str, Any]) -> Path:
    """The dataset of the same frames, written to Parquet first."""
    folder.mkdir()
    description = json.loads(json.dumps(DESCRIPTION))
    for what, frame in given.items():
        path = folder / f"{what}.parquet"
        if isinstance(frame, pl.DataFrame):
            frame.write_parquet(path)
        else:
            pq.write_table(pa.table(frame), path)
    description["events"][0]["files"] = ["events.parquet"]
    for what in ("items", "users"):
        description[what]["files"] = [f"{what}.parquet"]
    prepare(description, folder / "data", base=folder)
    return folder / "data"


@pytest.mark.parametrize("form", [lambda frame: frame, to_arrow, to_pandas, Stream])
def test_frames_make_the_dataset_of_the_same_rows_in_parquet(
    tmp_path: Path, form: Callable[[pl.DataFrame], Any]
) -> None:
    given = {what: form(frame) for what, frame in frames().items()}
    prepare(DESCRIPTION, tmp_path / "data", **given)
    if form is to_pandas:
        given = {
            what: pa.Table.from_pandas(frame, preserve_index=False) for what, frame in given.items()
        }
    files = from_parquet(tmp_path / "parquet", given)
    one, other = stored(tmp_path / "data"), stored(files)
    assert one.keys() == other.keys() and len(one) > 20
    assert [name for name in one if one[name] != other[name]] == []
    found, expected = manifest_of(tmp_path / "data"), manifest_of(files)
    for part in ("encoding", "counts"):
        assert found[part] == expected[part]
    del found["summary"]["examples"], expected["summary"]["examples"]  # they name the source
    assert found["summary"] == expected["summary"]


def test_a_frame_in_many_batches_is_the_same_dataset(tmp_path: Path) -> None:
    large = {what: frame for what, frame in frames().items()}
    large["events"] = pl.concat(
        [
            large["events"].with_columns(pl.col("time") + pl.duration(days=k), request=None)
            for k in range(50)
        ]
    )
    prepare(DESCRIPTION, tmp_path / "one", **large)
    prepare(DESCRIPTION, tmp_path / "many", **large, memory=8 << 20)
    assert stored(tmp_path / "one") == stored(tmp_path / "many")


@pytest.mark.parametrize("memory", [-1, 0, True, 1.5, "lots", "2 apples"])
def test_the_memory_limit_is_an_amount(tmp_path: Path, memory: Any) -> None:
    with pytest.raises(SpecError, match="is not an amount of memory; expected a value such as"):
        prepare(DESCRIPTION, tmp_path / "data", **frames(), memory=memory)
    assert [memory_bytes(one) for one in ("2GiB", "512mib", "3 KB", 7)] == [
        2 << 30,
        512 << 20,
        3000,
        7,
    ]


def test_a_summary_shows_its_warnings_first(tmp_path: Path) -> None:
    given = frames()
    early = given["events"].with_columns(pl.col("time") - pl.duration(days=40 * 365))
    summary = prepare(DESCRIPTION, tmp_path / "data", **{**given, "events": early})
    assert repr(summary).startswith(f"warning: {summary.warnings[0]}\n")
    assert summary._repr_html_().startswith("<p>warning: ")


def test_a_dataset_records_that_its_rows_were_frames(tmp_path: Path) -> None:
    given = frames()
    manifest = prepare(DESCRIPTION, tmp_path / "data", **given).to_dict()
    events = manifest["frames"]["events"]
    assert events == [
        {"type": "polars.DataFrame", "rows": EVENTS, "columns": given["events"].columns}
    ]
    assert manifest["frames"]["items"]["rows"] == ITEMS
    written = tmp_path / "data/spec.toml"
    assert "# events.0: its rows were a frame; pass them again" in written.read_text()
    assert load_spec(written) == Spec.model_validate(DESCRIPTION)
    prepare(written, tmp_path / "again", **given)
    assert stored(tmp_path / "again") == stored(tmp_path / "data")
    assert "frames" not in manifest_of(from_parquet(tmp_path / "parquet", given))


def test_frames_and_files_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A description in a file, one source passed as a frame, one as a name, one left as it is."""
    given = frames()
    files = from_parquet(tmp_path / "logs", given)
    text = "\n".join(
        [
            'name = "shop"',
            "labels = [{ name = 'click', kind = 'binary' }]",
            "[[events]]",
            "files = ['older.parquet']",
            "user = 'user'\nitem = 'item'\ntime = 'time'",
            "[[events]]",
            "files = ['events.parquet']",
            "user = 'user'\nitem = 'item'\ntime = 'time'",
            "[items]",
            "id = 'item'",
            "features = [{ name = 'price', kind = 'numeric' }]",
        ]
    )
    (tmp_path / "logs/shop.toml").write_text(text)
    older = given["events"].with_columns(pl.col("time") - pl.duration(days=100))
    older.write_parquet(tmp_path / "logs/older.parquet")
    monkeypatch.chdir(files.parent)
    prepare("shop.toml", tmp_path / "one", items="items.parquet")
    monkeypatch.chdir(tmp_path)
    prepare(Path("logs/shop.toml"), tmp_path / "two", events=[older, None], items=given["items"])
    prepare("logs/shop.toml", "three", events=["logs/old*.parquet", given["events"]],
            items="logs/items.parquet")  # fmt: skip
    assert stored(tmp_path / "one") == stored(tmp_path / "two") == stored(tmp_path / "three")
    recorded = manifest_of(tmp_path / "two")["frames"]["events"]
    assert recorded[0]["rows"] == EVENTS and recorded[1] is None
    again = load_spec(tmp_path / "three/spec.toml")
    assert again.events[0].files == (f"{tmp_path}/logs/old*.parquet",)
    assert again.events[1].files == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": 7}, "events.0: got int, expected a Polars or pandas DataFrame, or a pyarrow"),
        ({"events": [{"user": 1}]}, r"got dict.*make a frame of it, such as polars.DataFrame"),
        ({"items": pl.LazyFrame({"item": [1]})}, r"items: got polars.LazyFrame.*collect\(\)"),
        ({"users": pl.Series("user", ["u1"])}, r"users: got polars.Series, expected a Polars"),
        ({"users": pl.DataFrame({"user": ["u1"]})}, "the users frame has no column 'country'"),
        (
            {"users": pl.DataFrame({"user": ["u1"], "country": [b"de"]})},
            "the users frame: column 'country' holds Binary, expected",
        ),
        (
            {"users": pl.DataFrame({"user": [object()], "country": ["de"]})},
            "the users frame: column 'user' holds Object, expected ids",
        ),
        ({"items": frames()["items"].clear()}, "the items frame: the table has no rows"),
    ],
)
def test_values_that_are_not_frames_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(DESCRIPTION, tmp_path / "data", **{**frames(), **changes})
    assert not (tmp_path / "data").exists()


def test_pandas_frames_that_arrow_cannot_hold_are_refused(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    users = pandas.DataFrame({"user": ["u1", "u2"], "country": [7, object()]})
    message = r"column 'country' holds mixed values \(int, object\), expected.*astype\(str\)"
    with pytest.raises(DataError, match=message):
        prepare(DESCRIPTION, tmp_path / "data", **{**frames(), "users": users})
    indexed = pandas.DataFrame({"country": ["de"]}, index=pandas.Index(["u1"], name="user"))
    message = r"no column 'user'; columns found: country; reset_index\(\) makes .* index 'user'"
    with pytest.raises(DataError, match=message):
        prepare(DESCRIPTION, tmp_path / "data", **{**frames(), "users": indexed})
    mixed = pandas.DataFrame({"user": ["u1", 7], "country": ["de", "fr"]})
    with pytest.raises(
        DataError, match=r"column 'user' holds mixed values \(int, str\), expected ids"
    ):
        prepare(DESCRIPTION, tmp_path / "data", **{**frames(), "users": mixed})


def test_pandas_columns_that_are_not_read_may_hold_anything(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    prepare(DESCRIPTION, tmp_path / "one", **frames())

    class Table(pandas.DataFrame):  # type: ignore[misc]
        pass

    events = frames()["events"].to_pandas()
    n = len(events)
    unread = pandas.DataFrame(
        {
            "mixed": [7, "seven", {"a": 1}, [2]] * (n // 4),
            "complex": [1 + 2j] * n,
            "sparse": pandas.arrays.SparseArray([0, 1] * (n // 2)),
            "note": ["a"] * n,
        }
    )
    given = Table(pandas.concat([events, unread, unread["note"]], axis=1))
    summary = prepare(DESCRIPTION, tmp_path / "two", **{**frames(), "events": given})
    one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert [name for name in one if one[name] != two[name]] == []
    assert "the events frame: several columns have the name 'note'" in summary.warnings


@pytest.mark.parametrize(
    ("description", "changes", "message"),
    [
        (DESCRIPTION, {"events": None}, r"events has no files: .*prepare\(..., events=frame\)"),
        (DESCRIPTION, {"items": None}, r"items has no files: .*prepare\(..., items=frame\)"),
        ({**DESCRIPTION, "items": None}, {}, r"items are passed, but .* no \[items\] table"),
        (DESCRIPTION, {"events": [None, None]}, "events: 2 passed for 1 described"),
        ({**DESCRIPTION, "labls": []}, {}, "the description is not valid:\n  labls: .*'labels'"),
        (7, {}, "the description is of type int, expected a Spec, a mapping"),
        ("none.toml", {}, "none.toml: no such dataset description"),
    ],
)
def test_descriptions_and_rows_that_do_not_fit(
    tmp_path: Path, description: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        prepare(description, tmp_path / "data", **{**frames(), **changes})


# A toy format: its own file and one line of the table of formats


class Colons(FileRows):
    """Lines such as ``user=u1:item=3``; every value is text."""

    def __init__(
        self, path: Path, source: EventSource | Table, kind: str, compression: str | None
    ) -> None:
        super().__init__(path, source, kind, compression)
        self._records = [
            dict(field.split("=") for field in line.split(":"))
            for line in path.read_text().splitlines()
        ]
        self.columns = dict.fromkeys(self._records[0], pl.String())

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        yield pl.DataFrame(self._records, schema=list(self.columns)).select(columns)


def test_a_new_format_is_one_class_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "colons", Format(("colons",), f"{__name__}:Colons"))
    events = frames()["events"].select("user", "item", pl.col("time").dt.epoch("s"), "click")
    events = events.with_columns(pl.col("click").cast(pl.Int8))
    lines = [
        ":".join(f"{name}={value}" for name, value in row.items())
        for row in events.iter_rows(named=True)
    ]
    (tmp_path / "log.colons").write_text("\n".join(lines))
    events.write_csv(tmp_path / "log.csv")
    description = {
        "name": "shop",
        "events": [{"user": "user", "item": "item", "time": "time"}],
        "labels": DESCRIPTION["labels"][:1],
    }
    for form in ("colons", "csv"):
        prepare(description, tmp_path / form, events=tmp_path / f"log.{form}")
    assert stored(tmp_path / "colons") == stored(tmp_path / "csv")
