"""From a log and its description to a prepared dataset, in bounded memory.

:mod:`~limerank.data.prepare.job` walks the way: files are read and checked (``spooling``,
``checks``), ids counted (``ids``), events spread over partitions by user (``partition``) and sorted
(``sorting``), users and items held out (``holdout``), and what was found is told (``summary``).
"""

from limerank.data.prepare.job import prepare

__all__ = ["prepare"]
