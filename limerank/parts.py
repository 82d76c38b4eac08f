"""Jobs in parts: the same command, called once for each part, by any number of machines that share
a folder.

A *part* is a range of what a job covers. It is computed alone and appears complete or not at all.
The first call settles what the job is (:func:`settled`); a call that differs is refused. So parts
may be computed in any order, at the same time and more than once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limerank.errors import FormatError, SpecError
from limerank.files import make_folder, read_json, sync_directory, sync_file, write_json

MOST_PARTS = 1_000_000
"""Parts of a job, at most."""
DIGEST = "digest"
"""Key of a file's digest of all its other keys."""
SHOWN = 20
"""Missing parts that a message lists, at most."""


@dataclass(frozen=True)
class Part:
    """Part ``number`` (from 1) of ``of`` parts of a job."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def range(self, count: int) -> range:
        """Its share of ``count`` things in order: contiguous, and even but for one."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"part-{self.number:07d}-of-{self.of:07d}"


def parse_part(text: str) -> Part:
    """A part from ``K/N``.

    Raises:
        SpecError: the text has another form, or K is not one of 1 .. N.
    """
    found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text.strip())
    part = None if found is None else Part(int(found[1]), int(found[2]))
    if part is None or not 1 <= part.number <= part.of <= MOST_PARTS:
        raise SpecError(
            f"the part is {text!r:.40}, expected K/N with K from 1 to N, such as 3/16 for the "
            "third of 16"
        )
    return part


def parts_folder(out: Path) -> Path:
    """Where the parts of a folder are until they are joined.

    Raises:
        SpecError: nothing can stand beside it.
    """
    if out.name in ("", ".."):
        raise SpecError(f"{str(out)!r} is no new folder, which parts could stand beside; name one")
    return out.with_name(f".{out.name}.parts")


def settled(path: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """The job that a folder of parts is for. The first call decides, of several at once as well:
    it writes ``job``, and all others get what it wrote.

    Args:
        path: the JSON file.
        job: the job as this process would have it.

    Raises:
        FormatError: the file is damaged, or cannot be written.
    """
    if not path.exists():
        make_folder(path.parent)
        fresh = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")
        try:
            fresh.write_text(json.dumps(sealed(job), indent=2, ensure_ascii=False) + "\n", "utf-8")
            sync_file(fresh)
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(fresh, path)
        except OSError:
            if not path.exists():  # a file system without links: the last of several wins
                write_json(path, sealed(job))
        finally:
            fresh.unlink(missing_ok=True)
        sync_directory(path.parent)
    return read_sealed(path, "a job in parts", _start_over(path))


def sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its digest, by which :func:`read_sealed` tells that it is as it was written."""
    return {**about, DIGEST: digest_of(about)}


def read_sealed(path: Path, what: str, advice: str) -> dict[str, Any]:
    """What :func:`sealed` gave, without the digest.

    Args:
        path: of the JSON file.
        what: the expected folder, for messages.
        advice: what to do where the file is damaged.

    Raises:
        FormatError: it is damaged, or an earlier version wrote it.
    """
    try:
        found = read_json(path, what)
    except FormatError as error:
        raise FormatError(f"{error}. {advice}") from None
    if DIGEST not in found:
        raise FormatError(
            f"{path} has no digest: another version wrote it, or it is damaged. {advice}"
        )
    digest = found.pop(DIGEST)
    if digest != digest_of(found):
        raise FormatError(f"{path} is damaged: it is not as it was written. {advice}")
    return found


def read_plan(path: Path, what: str, format: int) -> dict[str, Any]:
    """What :func:`settled` has written, with its ``format`` and its ``job``.

    Raises:
        FormatError: it is damaged, or of another version.
    """
    start_over = _start_over(path)
    try:
        plan = read_json(path, what)
    except FormatError as error:
        raise FormatError(f"{error}. {start_over}") from None
    if plan.get("format") != format or not isinstance(plan.get("job"), dict):
        raise FormatError(
            f"{path} has format {plan.get('format')!r:.40}, expected {format}. {start_over} with "
            "this version"
        )
    return read_sealed(path, what, start_over)


def _start_over(path: Path) -> str:
    return f"Remove {path.parent}, and run all parts again"


def check_same(folder: Path, held: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Refuse a part of another job.

    Args:
        folder: that contains the parts.
        held: the job that the folder is for.
        job: the job that this call is for.

    Raises:
        FormatError: they differ; the message names what does.
    """
    names = [name for name in {**held, **job} if held.get(name) != job.get(name)]
    if names:
        shown = "; ".join(
            f"{name} {_short(held.get(name))}, now {_short(job.get(name))}" for name in names
        )
        raise FormatError(
            f"{folder} holds parts of another job ({shown}). Call all parts with the same "
            f"arguments, or remove {folder} to start over"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_complete(folder: Path, missing: Iterable[int], of: int) -> None:
    """Refuse to join parts while some are missing.

    Raises:
        FormatError: it lists the missing ones.
    """
    numbers = list(missing)
    if numbers:
        listed = ", ".join(f"{number}/{of}" for number in numbers[:SHOWN])
        more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
        raise FormatError(
            f"{folder} lacks {len(numbers)} of {of} parts: {listed}{more}; run them with --part, "
            "then join again"
        )


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
