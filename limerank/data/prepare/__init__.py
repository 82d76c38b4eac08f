"""From a log and its description to a prepared dataset, in bounded memory.

:mod:`~limerank.data.prepare.job` is the sequence of steps: the arguments are checked (``asked``),
sources are opened (``inputs``, ``opening``), rows are checked and coded (``checks``, ``coding``,
``ids``, ``findings``), spooled in partitions by user (``spooling``, ``partition``) and sorted
(``sorting``, ``clock``); impressions are grouped to requests (``gaps``, ``requests``), and events
are assigned to splits (``splitting``, ``holdout``); vocabularies are learned (``learning``); items,
users, events and requests are written (``tables``, ``suspects``, ``writing``), and the manifest
(``manifest``).

A dataset that is extended gives its codes and events (``earlier``); only files that it has not read
are opened (``logfiles``), and their sorted events are merged with its own (``merging``).

Several processes read a log in ``parts``, which are joined (``plan``, ``parted``).
"""

from limerank.data.prepare.job import prepare

__all__ = ["prepare"]
