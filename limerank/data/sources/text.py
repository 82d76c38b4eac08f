"""Files of text as UTF-8 bytes, from any compression and encoding."""

from __future__ import annotations

import codecs
from typing import Any

import pyarrow as pa

from limerank.errors import DataError
from limerank.storage.logs import LogPath, open_stream, size_of

LONGEST_LINE = 64 << 20
"""Bytes. A longer line means that the file is not text, or has other line ends."""
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UTF8 = ("utf-8", "utf8", "utf-8-sig", "ascii", "us-ascii")


class ByteStream:
    """A file's text as UTF-8, without a byte order mark, read from its beginning.

    Raises:
        DataError: the file begins with the byte order mark of another encoding.
    """

    def __init__(self, path: LogPath, compression: str | None, encoding: str) -> None:
        self._path = path
        self._raw = open_stream(path)
        self._size, self._count = size_of(path), 0
        self._stream: Any = self._raw
        if compression:
            self._stream = pa.CompressedInputStream(self._raw, compression)
        name = encoding.lower().replace("_", "-")
        self._decoder = None if name in UTF8 else codecs.getincrementaldecoder(encoding)()
        self._rest = b""
        self._done = False
        self._rest = self._start()

    def _start(self) -> bytes:
        head = b""
        while len(head) < 4 and not self._done:
            head += self._more(4 - len(head))
        if self._decoder is None:
            for mark, encoding in MARKS.items():
                if head.startswith(mark):
                    raise DataError(
                        f'{self._path} is written in {encoding}: set encoding = "{encoding}"'
                    )
        return head.removeprefix(codecs.BOM_UTF8)

    def _more(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        if not data:
            self._done = True
        if self._decoder is None:
            return bytes(data)
        text: str = self._decoder.decode(data, self._done)
        return text.encode("utf-8")

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only where the file ends."""
        parts, held = [self._rest], len(self._rest)
        self._rest = b""
        while held < size and not self._done:
            parts.append(self._more(size - held))
            held += len(parts[-1])
        data = b"".join(parts)
        data, self._rest = data[:size], data[size:]
        return data

    def position(self) -> float:
        """How many bytes of the file, as it is stored, have been read; of a compressed file on a
        storage, about so many."""
        if self._raw.closed:
            return 0.0
        return float(self._raw.tell() if self._raw.seekable() else min(self._count, self._size))

    def close(self) -> None:
        self._stream.close()
        self._raw.close()

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
