"""The formats of files that events and tables are read from: one line for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One format of files.

    Attributes:
        endings: of file names, in lower case, without the dot.
        reads: ``module:class`` of its :class:`~limerank.data.sources.rows.FileRows`, which is
            imported when a file of this format is opened.
    """

    endings: tuple[str, ...]
    reads: str


_SOURCES = "limerank.data.sources"
FORMATS: dict[str, Format] = {
    "parquet": Format(("parquet", "pq"), f"{_SOURCES}.parquet:ParquetFile"),
    "csv": Format(("csv",), f"{_SOURCES}.delimited:DelimitedFile"),
    "tsv": Format(("tsv", "tab"), f"{_SOURCES}.delimited:DelimitedFile"),
    "jsonl": Format(("jsonl", "ndjson"), f"{_SOURCES}.jsonlines:JsonLines"),
}
