"""Logs on a storage: the dataset is that of the same files on a local disk."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from limerank.data.prepare import prepare
from limerank.data.sources import find_files, open_files
from limerank.data.spec import Spec
from limerank.errors import DataError, SpecError, StorageError
from limerank.storage import logs, systems
from limerank.storage.logs import RemoteFile
from limerank.storage.uris import Uri, parse_uri, shown
from tests.s3_server import S3

EVENTS = {"user": "user", "item": "item", "time": "time", "time_unit": "ms"}
START = 1_718_000_000_000


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def bucket(s3: S3, request: pytest.FixtureRequest) -> str:
    """The URI of a bucket of this test."""
    return s3.bucket("logs-" + "".join(c if c.isalnum() else "-" for c in request.node.name)[5:50])


def rows(first: int, count: int = 60) -> pl.DataFrame:
    numbers = np.arange(first, first + count)
    return pl.DataFrame(
        {
            "user": numbers * 7 % 11,
            "item": numbers * 5 % 13,
            "time": START + numbers * 60_000,
            "click": numbers % 2,
        }
    )


def content(frame: pl.DataFrame, name: str) -> bytes:
    """A log in the format and the compression that its name says."""
    kind, _, compression = name.partition(".")[2].partition(".")
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(frame.to_arrow(), sink, row_group_size=25)
        return bytes(sink.getvalue())
    text = (frame.write_csv() if kind == "csv" else frame.write_ndjson()).encode()
    if compression == "gz":
        return gzip.compress(text)
    return pa.Codec("zstd").compress(text, asbytes=True) if compression == "zst" else text


def put(bucket: str, name: str, data: bytes) -> None:
    systems.write(parse_uri(f"{bucket}/{name}"), [data])


def spec_of(*files: str, **events: Any) -> Spec:
    source = {**EVENTS, "files": list(files), **events}
    labels = [{"name": "click", "kind": "binary"}]
    return Spec.model_validate({"name": "test", "events": [source], "labels": labels})


def arrays(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.npy")}
    assert found
    return found


def require_equal(ours: Path, theirs: Path) -> None:
    assert arrays(ours) == arrays(theirs)


@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz", "jsonl", "jsonl.zst"])
def test_every_format_gives_the_dataset_of_local_files(
    bucket: str, tmp_path: Path, ending: str
) -> None:
    for day in range(2):
        data = content(rows(60 * day), f"day.{ending}")
        put(bucket, f"logs/day-{day}.{ending}", data)
        (tmp_path / f"day-{day}.{ending}").write_bytes(data)
    prepare(spec_of(f"{bucket}/logs/day-?.{ending}"), tmp_path / "remote")
    prepare(spec_of(f"day-*.{ending}"), tmp_path / "local", base=tmp_path)
    require_equal(tmp_path / "remote", tmp_path / "local")


def test_patterns_and_folders_find_the_files_of_a_bucket(bucket: str) -> None:
    data = content(rows(0), "a.csv")
    for name in ("a/x.csv", "a/b/y.csv", "a/b/_SUCCESS", "a/.hidden/z.csv", "a/b/readme.txt"):
        put(bucket, name, data)

    def found(pattern: str) -> list[str]:
        (source,) = spec_of(f"{bucket}/{pattern}").events
        return [str(one).removeprefix(f"{bucket}/") for one in find_files(source, Path())]

    assert found("a") == ["a/b/y.csv", "a/x.csv"]
    assert found("a/") == ["a/b/y.csv", "a/x.csv"]
    assert found("a/*.csv") == ["a/x.csv"]
    assert found("a/**/*.csv") == ["a/b/y.csv", "a/x.csv"]
    assert found("a/[bc]/[!x].csv") == found("a/?/y.csv") == ["a/b/y.csv"]
    assert found("*/b") == ["a/b/y.csv"]


@pytest.mark.parametrize("remote", [False, True])
def test_hive_partitions_are_typed_columns(s3: S3, tmp_path: Path, remote: bool) -> None:
    """Dates serve as times without a unit, integers as ids; other texts stay texts."""
    base = s3.bucket("partitions") if remote else str(tmp_path)
    for day in (1, 2, 3):
        for shop in (9, 10):
            name = f"log/dt=2026-11-{day:02}/shop={shop}/hour=0{day}/part.parquet"
            data = content(rows(day * 60).drop("time").drop("item"), name.rpartition("/")[2])
            if remote:
                put(base, name, data)
            else:
                (tmp_path / name).parent.mkdir(parents=True)
                (tmp_path / name).write_bytes(data)
    values = spec_of(f"{base}/log", time="dt", item="shop", time_unit="s").model_dump()
    feature = {"name": "hour", "kind": "categorical"}
    prepare({**values, "event_features": [feature]}, tmp_path / "out", base=tmp_path)
    manifest = json.loads((tmp_path / "out/dataset.json").read_text())
    assert manifest["summary"]["rows"] == 360
    assert manifest["summary"]["time"]["last"] == 1_793_664_000_000  # 2026-11-03
    items = pl.read_parquet(tmp_path / "out/vocab/items.parquet")["id"]
    assert sorted(items.to_list()) == [9, 10]
    hours = pl.read_parquet(tmp_path / "out/vocab/event_hour.parquet")["value"]
    assert hours.dtype == pl.String and set(hours.to_list()) <= {"01", "02", "03"}


def test_a_partition_and_a_column_of_one_name_are_refused_where_they_are_read(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "item=5"
    folder.mkdir()
    (folder / "log.csv").write_bytes(content(rows(0), "log.csv"))
    with pytest.raises(DataError, match=r"log\.csv has a column 'item'.*item=5.*rename"):
        prepare(spec_of("item=5"), tmp_path / "out", base=tmp_path)
    renamed = rows(0).rename({"item": "product"})
    (folder / "log.csv").write_bytes(content(renamed, "log.csv"))
    prepare(spec_of("item=5", item="product"), tmp_path / "out", base=tmp_path)


def test_a_description_in_a_bucket_names_files_beside_it(bucket: str, tmp_path: Path) -> None:
    put(bucket, "shop/log.csv", content(rows(0), "log.csv"))
    text = 'name = "shop"\n[[events]]\nfiles = ["log.csv"]\nuser = "user"\nitem = "item"\n'
    text += 'time = "time"\ntime_unit = "ms"\n[[labels]]\nname = "click"\nkind = "binary"\n'
    put(bucket, "shop/spec.toml", text.encode())
    prepare(f"{bucket}/shop/spec.toml", tmp_path / "remote")
    (tmp_path / "log.csv").write_bytes(content(rows(0), "log.csv"))
    prepare(spec_of(f"file://{tmp_path}/log.csv"), tmp_path / "local")
    require_equal(tmp_path / "remote", tmp_path / "local")
    assert f'"{bucket}/shop/log.csv"' in (tmp_path / "remote/spec.toml").read_text()


def test_an_extended_dataset_knows_the_remote_files_that_it_has(
    bucket: str, tmp_path: Path
) -> None:
    spec = spec_of(f"{bucket}/log/*.csv")
    put(bucket, "log/1.csv", content(rows(0), "1.csv"))
    prepare(spec, tmp_path / "one")
    put(bucket, "log/2.csv", content(rows(60), "2.csv"))
    summary = prepare(spec, tmp_path / "two", extend=tmp_path / "one")
    assert summary.manifest["summary"]["added"]["files"] == 1
    assert summary.rows == 120
    # The same files elsewhere, in another bucket's folder or on a disk, are not read again.
    for day, name in enumerate(("1.csv", "2.csv")):
        put(bucket, f"moved/{name}", content(rows(60 * day), name))
        (tmp_path / name).write_bytes(content(rows(60 * day), name))
    for moved, base in ((f"{bucket}/moved", Path()), ("*.csv", tmp_path)):
        out = tmp_path / f"three-{base.name}"
        summary = prepare(spec_of(moved), out, extend=tmp_path / "two", base=base)
        assert summary.manifest["summary"]["added"]["files"] == 0
    # A file with other rows of the same size is no longer the one that was read.
    put(bucket, "log/2.csv", content(rows(60), "2.csv").replace(b"0\n", b"1\n"))
    with pytest.raises(DataError, match=r"log/2\.csv has changed since .*--encoding"):
        prepare(spec, tmp_path / "four", extend=tmp_path / "two")


def test_a_file_that_was_written_twice_at_the_same_time_has_changed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = time.time_ns()
    monkeypatch.setattr(logs, "_file", lambda found: RemoteFile(found.uri, found.size, at))
    spec = spec_of(f"{bucket}/log/*.csv")
    put(bucket, "log/1.csv", content(rows(0), "1.csv"))
    prepare(spec, tmp_path / "one")
    put(bucket, "log/2.csv", content(rows(60), "2.csv"))
    summary = prepare(spec, tmp_path / "two", extend=tmp_path / "one")
    assert summary.manifest["summary"]["added"]["files"] == 1
    put(bucket, "log/1.csv", content(rows(0), "1.csv").replace(b"0\n", b"1\n"))
    with pytest.raises(DataError, match=r"log/1\.csv has changed since .*it was written again"):
        prepare(spec, tmp_path / "three", extend=tmp_path / "two")


def test_errors_say_what_is_missing(bucket: str, tmp_path: Path) -> None:
    def error(pattern: str) -> str:
        with pytest.raises((DataError, StorageError, SpecError)) as found:
            prepare(spec_of(pattern), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(found.value)

    assert f"no file matches '{bucket}/log/*.csv'" in error(f"{bucket}/log/*.csv")
    assert "there is no bucket 'no-such-bucket'" in error("s3://no-such-bucket/log.csv")
    put(bucket, "empty/readme.txt", b"-")
    assert f"the folder {bucket}/empty holds no file to read" in error(f"{bucket}/empty")
    assert "expected one of s3://, gs://" in error("s4://bucket/log.csv")
    assert "write s3:// for s3a://" in error("s3a://bucket/log.csv")
    assert "did you mean 'region'" in error("s3://bucket/log.csv?regoin=eu-west-1")


def test_secrets_are_never_shown_nor_recorded(bucket: str, tmp_path: Path) -> None:
    uri = "s3://KEYKEY:SECRETSECRET@bucket/log.csv"
    with pytest.raises(DataError, match="is given with a key or a secret") as found:
        prepare(spec_of(uri), tmp_path / "out")
    other = "s3://KEYKEY:SECRETSECRET@bucket/log.csv?secret_key=SECRETSECRET"
    with pytest.raises(SpecError) as refused:
        parse_uri(other)
    texts = [str(found.value), str(refused.value), shown(uri), shown(other), repr(parse_uri(uri))]
    assert not [text for text in texts if "SECRETSECRET" in text or "KEYKEY" in text]
    assert parse_uri(uri).password == "SECRETSECRET"


def test_a_storage_that_does_not_answer_ends_the_command_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(systems, "ATTEMPTS", 1)  # each further one waits longer
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    uri = f"s3://bucket/log.csv?endpoint_override={at}&scheme=http&region=eu-west-1"
    with pytest.raises(StorageError, match=rf"does not answer at {at}, after 1 attempt.*check"):
        prepare(spec_of(uri), tmp_path / "out")


class Refusing(http.server.BaseHTTPRequestHandler):
    """A storage that refuses every request, as S3 does without the right to it."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_GET  # noqa: N815  # the names are those of the standard library

    def log_message(self, format: str, *given: Any) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({}, "because no credentials were found: set AWS_ACCESS_KEY_ID"),
        (
            {"AWS_ACCESS_KEY_ID": "KEYKEY", "AWS_SECRET_ACCESS_KEY": "SECRETSECRET"},
            "to the access key of the environment",
        ),
    ],
)
def test_refused_access_says_which_credentials_were_used(
    refusing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    advice: str,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError) as found:
        prepare(spec_of("s3://bucket/log.csv?region=eu-west-2"), tmp_path / "out")
    assert "access is refused" in str(found.value) and advice in str(found.value)
    assert "SECRETSECRET" not in str(found.value) and "KEYKEY" not in str(found.value)


def test_parts_of_uris() -> None:
    uri = parse_uri("s3://b/a/dt=1/x?.csv?endpoint_override=http://h:1&scheme=http")
    assert uri == Uri(
        "s3", "b", "a/dt=1/x?.csv", (("endpoint_override", "http://h:1"), ("scheme", "http"))
    )
    assert (uri.name, str(uri.parent), uri.host) == ("x?.csv", "s3://b/a/dt=1", "b")
    assert parse_uri(uri.written()) == uri
    assert parse_uri("s3://b/hour=12%3A00/").path == "hour=12%3A00"
    assert parse_uri("hdfs://name:8020/a%20b").path == "a b"
    assert parse_uri("gs://b").path == ""


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_progress_is_known_while_a_remote_file_is_read(bucket: str, ending: str) -> None:
    put(bucket, f"log.{ending}", content(rows(0, 60_000), f"log.{ending}"))
    (source,) = spec_of(f"{bucket}/log.{ending}").events
    (reader,) = open_files(find_files(source, Path()), source)
    positions = [reader.rows.position(0) for _ in reader.batches(["item"], 1 << 20)]
    assert len(positions) > 1 and positions == sorted(positions)
    assert positions[0] > 0 and positions[-1] <= reader.rows.size
