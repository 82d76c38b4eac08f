"""What building an index and changing one return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limerank.data.coverage import TableCoverage
from limerank.parts import Part
from limerank.results import Result

CLAMPED_SHARE = 0.01
"""With a greater share of a change's codes out of range, a rebuild is advised."""
SUPERSEDED_SHARE = 0.25
"""With a greater share of rows that are superseded, compacting is advised."""


@dataclass(frozen=True, repr=False)
class IndexBuild(Result):
    """An index that was built.

    Attributes:
        path: its folder.
        model: name of the model that encoded the items.
        fingerprint: of the run that the model is from.
        version: of the index.
        items: number of items.
        clamped: number of codes out of the range of the index's scales.
        item_table: how the table in a file fits the run; None where items came from elsewhere.
        manifest: contents of the index's ``manifest.json``.
    """

    path: Path
    model: str
    fingerprint: str
    version: int
    items: int
    clamped: int
    item_table: TableCoverage | None
    manifest: dict[str, Any] = field(compare=False)

    @classmethod
    def of(
        cls, path: Path, manifest: dict[str, Any], item_table: TableCoverage | None
    ) -> IndexBuild:
        return cls(
            path,
            manifest["model"],
            manifest["fingerprint"],
            manifest["version"],
            manifest["items"],
            manifest["clamped"],
            item_table,
            manifest,
        )

    def to_dict(self) -> dict[str, Any]:
        """The manifest; with ``item_table`` where items came from a file."""
        if self.item_table is None:
            return dict(self.manifest)
        return {**self.manifest, "item_table": self.item_table.to_dict()}

    def text(self) -> str:
        lines = [f"{self.path}: {self.items:,} items by {self.model}, version {self.version}"]
        if self.item_table is not None:
            lines += [f"  {line}" for line in self.item_table.lines()]
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class IndexPart(Result):
    """A part of an index.

    Attributes:
        path: its folder.
        part: which one.
        items: number of items.
        encoded: whether this call encoded them; an earlier one, where not.
    """

    path: Path
    part: Part
    items: int
    encoded: bool

    def to_dict(self) -> dict[str, Any]:
        return {"part": str(self.part), "items": self.items, "encoded": self.encoded}

    def text(self) -> str:
        done = f"{self.items:,} items" if self.encoded else "complete already"
        return f"{self.path}: part {self.part}, {done}"


@dataclass(frozen=True, repr=False)
class Change(Result):
    """A change of an index.

    Attributes:
        version: of the index, afterwards.
        items: number of items afterwards; removed ones do not count.
        rows: number of rows afterwards.
        added, updated, removed: numbers of items.
        dropped: number of rows that compacting dropped.
        clamped: the share of the new rows' codes that lie out of the range of the index's scales.
        advice: what to do about the index, and why.
        tables: how each table in a file fits the run.
    """

    version: int
    items: int
    rows: int
    added: int = 0
    updated: int = 0
    removed: int = 0
    dropped: int = 0
    clamped: float = 0.0
    advice: tuple[str, ...] = ()
    tables: tuple[TableCoverage, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        values = dict(vars(self))
        values["advice"] = list(self.advice)
        values["tables"] = [table.to_dict() for table in self.tables]
        return values

    def text(self) -> str:
        done = {"added": self.added, "updated": self.updated, "removed": self.removed}
        done |= {"old rows dropped": self.dropped}
        counts = ", ".join(f"{count:,} {name}" for name, count in done.items() if count)
        return f"{counts or 'nothing to do'}; {self.items:,} items, version {self.version}"


def advice_of(manifest: Mapping[str, Any], clamped: float) -> tuple[str, ...]:
    """What to do about an index after a change.

    Args:
        manifest: of the index, afterwards.
        clamped: the share of the change's codes that are out of range.
    """
    advice = []
    if clamped > CLAMPED_SHARE:
        advice.append(
            f"{100 * clamped:.1f} % of the new codes lie out of the range that the index "
            "was built for, and were clamped to it; build the index again from the full catalogue"
        )
    if manifest["superseded"] > SUPERSEDED_SHARE * max(manifest["rows"], 1):
        advice.append(
            f"{manifest['superseded']:,} of {manifest['rows']:,} rows are old ones of updated "
            "items; compact the index"
        )
    return tuple(advice)
