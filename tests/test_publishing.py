"""Folders on a storage: a version is found complete or not at all, and fetched as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from limerank.errors import FormatError, SpecError, StorageError
from limerank.storage import fetching, publishing, systems
from limerank.storage.arguments import ADDED, CHANGED, NEW_FILE, NEW_FOLDER, READ, Use, located
from limerank.storage.cache import Cache
from limerank.storage.fetching import fetch, pull
from limerank.storage.manifest import FILES, MANIFEST, read_manifest
from limerank.storage.publishing import publish
from limerank.storage.uris import parse_uri
from tests.s3_server import S3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return tmp_path / "cache"


@pytest.fixture(params=["s3", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty folder of this test on each kind of storage."""
    if request.param == "file":
        return f"file://{tmp_path}/storage"
    s3: S3 = request.getfixturevalue("s3")
    return s3.bucket("b" + str(abs(hash(request.node.nodeid)))[:12]) + "/folder"


def folder_of(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / "inner").mkdir(parents=True, exist_ok=True)
        (path / "inner" / f"{name}.txt").write_text(text)
    (path / "config.json").write_text("{}")
    (path / ".lock").touch()
    return path


def content(path: Path) -> dict[str, str]:
    return {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()}


def stored(uri: str) -> list[str]:
    found = systems.entries(parse_uri(uri), recursive=True)
    return [one.uri.name for one in found if not one.folder]


def test_a_folder_is_fetched_as_it_was_published(storage: str, tmp_path: Path) -> None:
    publish(folder_of(tmp_path / "a", one="1", two="2" * 9_000_000), storage)
    fetched = fetch(storage)
    expected = content(tmp_path / "a")
    del expected[".lock"]
    assert content(fetched) == expected
    assert fetched.name == parse_uri(storage).name
    assert fetch(storage) == fetched
    pull(storage, tmp_path / "pulled")
    assert content(tmp_path / "pulled") == expected
    with pytest.raises(FormatError, match="already exists; pass --overwrite"):
        pull(storage, tmp_path / "pulled")
    assert (fetched / "config.json").stat().st_mode & 0o222 == 0  # versions share files


def test_links_are_published_as_what_they_lead_to(storage: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "a", one="1")
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "run").symlink_to(tmp_path / "a")
    (tmp_path / "live" / "index").mkdir()
    (tmp_path / "live" / "index" / "manifest.json").write_text("{}")
    publish(tmp_path / "live", storage)
    expected = {"run/config.json": "{}", "run/inner/one.txt": "1", "index/manifest.json": "{}"}
    assert content(fetch(storage)) == expected


def test_a_file_that_is_written_again_is_fetched_again(s3: S3) -> None:
    uri = s3.bucket("written-again") + "/description.toml"
    for text in ("first", "other"):  # of one size, within a second
        systems.write(parse_uri(uri), [text.encode()])
        assert fetch(uri).read_text() == text


def test_a_new_version_sends_and_fetches_what_differs(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder_of(tmp_path / "a", same="same", other="old"), storage)
    old = fetch(storage)
    with pytest.raises(FormatError, match="is published already; pass --overwrite"):
        publish(tmp_path / "a", storage)
    moved: list[str] = []
    write, receive = publishing.write, fetching._receive
    monkeypatch.setattr(publishing, "write", lambda uri, b: (moved.append(uri.name), write(uri, b)))
    monkeypatch.setattr(
        fetching, "_receive", lambda uri, *more: (moved.append(uri.name), receive(uri, *more))[1]
    )
    publish(folder_of(tmp_path / "a", other="new"), storage, overwrite=True)
    assert moved == ["other.txt", MANIFEST]
    new = fetch(storage)
    assert moved == ["other.txt", MANIFEST, "other.txt"]
    assert content(new)["inner/other.txt"] == "new" and content(old)["inner/other.txt"] == "old"
    (tmp_path / "b").mkdir()
    (tmp_path / "b/dataset.json").write_text("{}")
    with pytest.raises(FormatError, match="is a run, and is not replaced by a dataset"):
        publish(tmp_path / "b", storage, overwrite=True)


def test_files_that_no_version_names_are_removed_later(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("1", "2", "3"):
        publish(folder_of(tmp_path / "a", one=text), storage, overwrite=True)
    assert len(stored(f"{storage}/{FILES}")) == 4  # config.json and three versions
    monkeypatch.setattr(publishing, "UNUSED_SECONDS", -3600)
    publish(folder_of(tmp_path / "a", one="4"), storage, overwrite=True)
    assert len(stored(f"{storage}/{FILES}")) == 3  # the last two versions


PUBLISHER = """
import os, sys
from limerank.storage import publishing
write = publishing.write
def slow(uri, blocks):
    write(uri, blocks)
    if uri.name == sys.argv[3]:
        print("sent", flush=True)
        sys.stdin.read()
publishing.write, publishing.THREADS = slow, 1
publishing.publish(sys.argv[1], sys.argv[2], overwrite=True)
"""


@pytest.mark.parametrize("last", ["config.json", "two.txt"])
def test_a_killed_publication_leaves_the_older_version(s3: S3, tmp_path: Path, last: str) -> None:
    uri = f"{s3.bucket('killed-' + last.partition('.')[0])}/run"
    publish(folder_of(tmp_path / "old", one="1", two="2"), uri)
    folder_of(tmp_path / "new", one="one", two="two")
    (tmp_path / "new/config.json").write_text('{"new": true}')
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(tmp_path / "new"), uri, last],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | s3.environment,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"sent\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert content(fetch(uri))["inner/one.txt"] == "1"
    before = set(stored(f"{uri}/{FILES}"))
    publish(tmp_path / "new", uri, overwrite=True)  # goes on
    assert content(fetch(uri))["inner/one.txt"] == "one"
    assert before


def test_damaged_bytes_are_found(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3.bucket('damaged')}/run"
    publish(folder_of(tmp_path / "a", one="1" * 100), uri)
    manifest = read_manifest(parse_uri(uri))
    assert manifest is not None
    (file,) = (one for one in manifest.files if one.path == "inner/one.txt")
    for data in (b"1" * 50, b"1" * 99 + b"2", b"1" * 101):
        systems.write(parse_uri(uri).below(file.stored), [data])
        with pytest.raises(StorageError, match=rf"one\.txt is damaged: {len(data)} bytes.*again"):
            fetch(uri)
    monkeypatch.setattr(fetching, "BLOCK", 64)
    systems.write(parse_uri(uri).below(file.stored), [b"1" * 100_000])
    with pytest.raises(StorageError, match=r"one\.txt is damaged: 128 bytes"):
        fetch(uri)  # no more of it is read than shows that it is longer
    systems.write(parse_uri(uri).below(file.stored), [b"1" * 100])
    assert content(fetch(uri))["inner/one.txt"] == "1" * 100


def test_an_interrupted_fetch_continues(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3.bucket('interrupted')}/run"
    publish(folder_of(tmp_path / "a", one="1" * 1000, two="2" * 1000), uri)
    asked: list[tuple[str, int]] = []
    open_file = systems.open_file

    class Breaking:
        """A file that ends with an error after half of it."""

        def __init__(self, uri: str, file) -> None:  # type: ignore[no-untyped-def]
            self.uri, self.file, self.ended = uri, file, False

        def __enter__(self):  # type: ignore[no-untyped-def]
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, position: int) -> None:
            asked.append((self.uri, position))
            self.file.seek(position)

        def read(self, size: int) -> bytes:
            if self.ended:
                raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")
            self.ended = True
            return bytes(self.file.read(500))

    monkeypatch.setattr(fetching, "open_file", lambda uri: Breaking(uri.name, open_file(uri)))
    with pytest.raises(StorageError, match="does not answer"):
        fetch(uri)
    first = dict(asked)
    monkeypatch.setattr(fetching, "open_file", open_file)
    asked.clear()
    receive = fetching._receive

    def noted(uri, part, size):  # type: ignore[no-untyped-def]
        asked.append((uri.name, part.stat().st_size if part.exists() else 0))
        return receive(uri, part, size)

    monkeypatch.setattr(fetching, "_receive", noted)
    fetched = fetch(uri)
    assert content(fetched)["inner/one.txt"] == "1" * 1000
    assert set(first.values()) == {0}
    assert 500 in dict(asked).values()


def test_a_full_disk_is_no_error_of_the_storage(tmp_path: Path, files_of_at_most) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "stored").write_bytes(b"1" * 1000)
    uri, part = parse_uri(f"file://{tmp_path}/stored"), tmp_path / "part"
    with (
        pytest.raises(FormatError, match="part cannot be written: File too large; free space"),
        files_of_at_most(500),
    ):
        fetching._receive(uri, part, 1000)
    fetching._receive(uri, part, 1000)
    assert part.read_bytes() == b"1" * 1000


def test_the_cache_removes_what_was_used_least_recently(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for name in "abc":
        publish(folder_of(tmp_path / name, one=name * 1000), f"{storage}/{name}")
    monkeypatch.setenv("LIMERANK_CACHE_SIZE", "2500")
    for k, name in enumerate("abc"):
        paths.append(fetch(f"{storage}/{name}"))
        os.utime(paths[-1].parent.with_name(f"{paths[-1].parent.name}.json"), (k, k))
        Cache().release(paths[-1].parent)  # as if its process had ended
    assert [path.exists() for path in paths] == [False, True, True]
    assert fetch(f"{storage}/b") == paths[1] and fetch(f"{storage}/c") == paths[2]
    with pytest.raises(StorageError, match=r"1,002 bytes.*2,500.*in use; set LIMERANK_CACHE_SIZE"):
        fetch(f"{storage}/a")
    monkeypatch.setenv("LIMERANK_CACHE_SIZE", "much")
    with pytest.raises(SpecError, match="LIMERANK_CACHE_SIZE: 'much' is not an amount of memory"):
        fetch(f"{storage}/a")


def test_processes_that_fetch_the_same_share_it(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder_of(tmp_path / "a", one="1"), storage)
    counted: list[str] = []
    receive = fetching._receive
    monkeypatch.setattr(
        fetching, "_receive", lambda uri, *more: (counted.append(uri.name), receive(uri, *more))[1]
    )
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(storage))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert sorted(counted) == ["config.json", "one.txt"]


def test_a_manifest_cannot_name_files_outside_of_its_folder(storage: str, tmp_path: Path) -> None:
    publish(folder_of(tmp_path / "a", one="1"), storage)
    position = parse_uri(storage).below(MANIFEST)
    values = json.loads(systems.read(position, 10_000))
    for path in ("../../evil", "/etc/evil", "a\\b"):
        values["files"][0]["path"] = path
        systems.write(position, [json.dumps(values).encode()])
        with pytest.raises(FormatError, match="expected one inside its folder"):
            fetch(storage)
    systems.write(position, [json.dumps({**values, "format": 2}).encode()])
    with pytest.raises(FormatError, match=r"has the format 2, expected 1"):
        fetch(storage)


def test_a_folder_that_was_not_published_is_named(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket("unpublished")
    systems.write(parse_uri(f"{bucket}/run/config.json"), [b"{}"])
    with pytest.raises(StorageError, match=r"was not published.*limerank publish FOLDER"):
        fetch(f"{bucket}/run")
    with pytest.raises(StorageError, match=r"is not there.*check the name"):
        fetch(f"{bucket}/runs")
    assert fetch(f"{bucket}/run/config.json").read_text() == "{}"
    assert fetch(f"file://{tmp_path}") == tmp_path
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'"):
        publish(folder_of(tmp_path / "a", one="1"), "s3://no-such-bucket/run")


@pytest.mark.parametrize("use", [CHANGED, ADDED])
def test_a_changed_folder_is_published_when_the_block_ends(
    s3: S3, tmp_path: Path, use: Use
) -> None:
    uri = f"{s3.bucket(use.value)}/run"
    publish(folder_of(tmp_path / "a", one="1"), uri)
    with (
        pytest.raises(FormatError, match=rf"{uri}/inner is damaged"),
        located({"run": use}, {"run": uri}) as found,
    ):
        (found["run"] / "metrics.json").write_text("{}")
        raise FormatError(f"{found['run']}/inner is damaged")
    assert "metrics.json" not in content(fetch(uri))
    before = read_manifest(parse_uri(uri))
    with located({"run": use}, {"run": uri}):
        pass
    assert read_manifest(parse_uri(uri)) == before
    with located({"run": use}, {"run": uri}) as found:
        (found["run"] / "metrics.json").write_text("{}")
    assert content(fetch(uri))["metrics.json"] == "{}"


def test_outputs_are_checked_before_and_published_after(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket("outputs")
    uses = {"data": READ, "out": NEW_FOLDER, "table": NEW_FILE}
    values = {"data": f"{bucket}/none", "out": "s3://no-such-bucket/run"}
    with pytest.raises(StorageError, match="no bucket 'no-such-bucket'"), located(uses, values):
        raise AssertionError("the output is checked first")
    values = {"data": str(tmp_path), "out": f"{bucket}/run", "table": f"{bucket}/t.csv"}
    with pytest.raises(KeyboardInterrupt), located(uses, values) as found:
        folder_of(found["out"], one="1")
        raise KeyboardInterrupt
    assert stored(bucket) == []
    with located(uses, values) as again:  # what was written is still there, to continue with
        assert again["out"] == found["out"] and content(again["out"])["inner/one.txt"] == "1"
        again["table"].write_text("a\n")
    assert content(fetch(f"{bucket}/run"))["inner/one.txt"] == "1"
    assert fetch(f"{bucket}/t.csv").read_text() == "a\n"
    with pytest.raises(FormatError, match="is published already"), located(uses, values):
        raise AssertionError("it is refused at once")
