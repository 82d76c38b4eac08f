"""An event store as a log that ``prepare`` reads: ``limerank export``.

Rows are the items that users were shown, with the outcomes that followed
(:mod:`limerank.data.attribution`), and the events that followed no exposure.
"""

from limerank.serving.export.job import Exported, export

__all__ = ["Exported", "export"]
