"""Files of rows: Parquet, CSV, TSV and JSON lines, found by name, pattern or folder.

:mod:`~limerank.data.sources.reader` reads them in batches; ``delimited`` and ``jsonlines`` are the
formats of text, over ``text``, which takes care of compression and encoding.
"""

from limerank.data.sources.reader import (
    Reader,
    Wanted,
    concat,
    file_format,
    find_files,
    in_one_file,
    read_table,
    wanted_of_table,
)

__all__ = [
    "Reader",
    "Wanted",
    "concat",
    "file_format",
    "find_files",
    "in_one_file",
    "read_table",
    "wanted_of_table",
]
