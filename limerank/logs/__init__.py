"""From a log and its description to a prepared dataset, in bounded memory.

:mod:`~limerank.logs.preparation` walks the way: files are read and checked (``spooling``,
``checks``), ids counted (``ids``), events spread over partitions by user (``partition``) and sorted
(``sorting``), users and items held out (``holdout``), and what was found is told (``summary``).
"""

from limerank.logs.preparation import prepare
from limerank.logs.summary import summary_text

__all__ = ["prepare", "summary_text"]
