"""The index: the encoded catalogue, a folder that is mapped into memory and opened in milliseconds.

:mod:`~limerank.index.format` defines the folder and :mod:`~limerank.index.reading` opens it;
neither needs models or data. :mod:`~limerank.index.building` builds an index,
:mod:`~limerank.index.changes` adds, updates and removes items while other processes rank, and
:mod:`~limerank.index.compaction` drops superseded rows.
"""

from limerank.index.format import manifest_checksum, read_manifest
from limerank.index.reading import Index

__all__ = ["Index", "manifest_checksum", "read_manifest"]
