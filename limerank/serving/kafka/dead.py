"""Dead letters: records that cannot be read, in a file that is bounded."""

from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path

from limerank.errors import DataError
from limerank.files import writes_to
from limerank.serving.kafka.reading import Logged

log = logging.getLogger("limerank.serving.kafka")
MOST = 1000
"""Records in the file, at most, unless another number is chosen."""
MOST_BYTES = 64 << 10
"""Bytes of a value that are stored; the record itself stays in the log."""


class DeadLetters:
    """A file of records that were skipped, a JSON object in each line. A record that is skipped
    again, after a restart, is not written again.

    Args:
        path: the file; it is continued.
        most: records in it, at most. More of them are a sign that the topic is not one of limerank,
            or that a writer is wrong: then reading stops instead of skipping the log.

    Attributes:
        count: the records in the file.
    """

    def __init__(self, path: Path, most: int = MOST) -> None:
        self.path, self.most = path, most
        self._known: set[tuple[int, int]] = set()
        self._cut_off = False
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    one = json.loads(line)
                    self._known.add((one["partition"], one["offset"]))
                except (ValueError, KeyError, TypeError):
                    continue  # a line that was cut off by a kill or a full disk
            self._cut_off = not path.read_bytes().endswith(b"\n")

    @property
    def count(self) -> int:
        return len(self._known)

    def put(self, record: Logged, error: DataError) -> None:
        """Note a record that is skipped; returns when that is on the disk.

        Raises:
            DataError: there are too many.
            FormatError: the file cannot be written.
        """
        key = record.partition, record.offset
        if key in self._known:
            return
        if self.count >= self.most:
            raise DataError(
                f"{self.most:,} records of the event log cannot be read, the latest one at offset "
                f"{record.offset} of partition {record.partition}: {error}. See {self.path}; mend "
                "what writes them, and move the file away to skip more"
            )
        value = record.value or b""
        self._write(
            json.dumps(
                {
                    "partition": record.partition,
                    "offset": record.offset,
                    "time": record.time,
                    "error": str(error),
                    "bytes": len(value),
                    "value": base64.b64encode(value[:MOST_BYTES]).decode(),
                }
            )
        )
        self._known.add(key)
        log.error(
            "skipped the record at offset %d of partition %d: %s", record.offset, record.partition,
            error,
        )  # fmt: skip

    def _write(self, line: str) -> None:
        with writes_to(self.path), open(self.path, "a", encoding="utf-8") as file:
            begin, self._cut_off = "\n" * self._cut_off, True
            file.write(f"{begin}{line}\n")
            file.flush()
            os.fsync(file.fileno())
            self._cut_off = False
