"""Sources of rows: files, found by name, pattern or folder, and frames in memory.

``reader`` opens them and applies a description; ``rows`` is what each source implements:
``parquet``, ``delimited`` (with ``records``) and ``jsonlines`` (over ``text``, which takes care of
compression and encoding), and ``frames``. ``nested`` finds fields of objects, and
``selection`` the rows that are read. ``limerank.data.formats`` lists the formats of files.
"""

from limerank.data.sources.frames import Frame, is_frame, type_name
from limerank.data.sources.paths import file_format, find_files, in_one_file
from limerank.data.sources.reader import Reader, concat, open_files, open_source, read_table
from limerank.data.sources.roles import Wanted, wanted_of_table
from limerank.data.sources.rows import FileRows, Rows
from limerank.data.sources.selection import Selection

__all__ = [
    "FileRows",
    "Frame",
    "Reader",
    "Rows",
    "Selection",
    "Wanted",
    "concat",
    "file_format",
    "find_files",
    "in_one_file",
    "is_frame",
    "open_files",
    "open_source",
    "read_table",
    "type_name",
    "wanted_of_table",
]
