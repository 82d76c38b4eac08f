"""The catalogue, encoded: a folder that is mapped into memory, opened in milliseconds.

Reading it (:mod:`~limerank.index.reading`) needs neither models nor data;
:mod:`~limerank.index.building` makes one, :mod:`~limerank.index.changes` adds, updates and removes
items while others rank.
"""

from limerank.index.format import manifest_checksum, read_manifest
from limerank.index.reading import Index

__all__ = ["Index", "manifest_checksum", "read_manifest"]
