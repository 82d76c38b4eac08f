"""The summary of a dataset: its size, its splits, and what was dropped while it was prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

from limerank.data.canonical import iso
from limerank.data.folder import SPLITS
from limerank.data.labels import Label
from limerank.results import TableResult

UNSORTED = "row out of order, sorted"
"""Key of the rows that are older than their user's row before them."""
SHOWN_TYPES = 12
UNSORTED_SHARE = 0.01
"""With a larger share of such rows the files are not sorted; with a smaller one some rows are
late."""
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Of history lengths."""


@dataclass(frozen=True, repr=False)
class DatasetSummary(TableResult):
    """What a dataset contains. As a table it has a row for each split.

    Attributes:
        name: the dataset's name.
        users, items, events: numbers of them.
        trained_items: number of items that occur in the training window.
        requests, impressions: split -> number of them.
        rows: rows read from the logs.
        dropped: reason -> number of rows that were dropped for it.
        noted: observation -> number of rows, which were not dropped.
        warnings: what is probably wrong with the logs or their description.
        manifest: contents of ``dataset.json``.
    """

    name: str
    users: int
    items: int
    events: int
    trained_items: int
    requests: dict[str, int]
    impressions: dict[str, int]
    rows: int
    dropped: dict[str, int]
    noted: dict[str, int]
    warnings: list[str]
    manifest: dict[str, Any] = field(compare=False)

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> DatasetSummary:
        """From the manifest of a dataset."""
        counts, summary = manifest["counts"], manifest["summary"]
        return cls(
            name=manifest["name"],
            users=counts["users"],
            items=counts["items"],
            events=counts["events"],
            trained_items=manifest["encoding"]["trained_items"],
            requests=counts["requests"],
            impressions=counts["impressions"],
            rows=summary["rows"],
            dropped=summary["dropped"],
            noted=summary["noted"],
            warnings=summary["warnings"],
            manifest=manifest,
        )

    def to_dict(self) -> dict[str, Any]:
        """The manifest, as in ``dataset.json``."""
        return self.manifest

    def columns(self) -> dict[str, list[Any]]:
        summary, splits = self.manifest["summary"], list(self.requests)
        found: dict[str, list[Any]] = {
            "split": splits,
            "requests": [self.requests[split] for split in splits],
            "impressions": [self.impressions[split] for split in splits],
            "per_request": [summary["per_request"][split] for split in splits],
        }
        for name in ("users", "staleness"):
            if name in summary:  # not in older datasets
                found[name] = [summary[name][split] for split in splits]
        for label in self.manifest["encoding"]["labels"]:
            name = label["name"]
            if label["kind"] == "positive":
                found[f"{name} events"] = [summary["positives"][name][split] for split in splits]
            found[f"mean {name}"] = [summary["labels"][split][name] for split in splits]
        middle = QUANTILES.index(0.5)
        found["median_history"] = [summary["history"][split][middle] for split in splits]
        return found

    def caption(self) -> str:
        return f"dataset {self.name}"

    def text(self) -> str:
        """Sizes, a table of splits, history lengths, and what was found in the logs."""
        lines = [
            self.caption(),
            f"  users {self.users:,}   items {self.items:,} "
            f"({self.trained_items:,} in the training window)   events {self.events:,}",
        ]
        if self.manifest["clock"]:
            times = self.manifest["summary"]["time"]
            lines.append(f"  from {iso(times['first'])} to {iso(times['last'])}")
        anchors = self.manifest["encoding"].get("anchors")
        if anchors is not None:
            lines.append(f"  anchored (repeat within histories): {', '.join(['items', *anchors])}")
        lines += ["", *self._splits(), *self._grouping(), *self._types()]
        lines += ["", *self._histories(), "", *self._rows()]
        return "\n".join(lines)

    @property
    def _shown(self) -> list[str]:
        return [split for split in SPLITS if split != "held-out" or self.requests[split]]

    def _splits(self) -> list[str]:
        """A line for each split: requests, impressions, mean labels."""
        summary = self.manifest["summary"]
        widths = {
            label["name"]: max(12, len(label["name"]) + (9 if label["kind"] == "positive" else 7))
            for label in self.manifest["encoding"]["labels"]
        }
        head = f"  {'split':<12}{'requests':>12}{'impressions':>14}{'per request':>13}"
        staleness = summary.get("staleness")
        head += f"{'staleness':>11}" if staleness else ""
        labels = self.manifest["encoding"]["labels"]
        counted = [label["name"] for label in labels if label["kind"] == "positive"]
        heads = {name: f"{name} events" if name in counted else f"mean {name}" for name in widths}
        lines = [head + "".join(f"{heads[name]:>{width}}" for name, width in widths.items())]
        for split in self._shown:
            row = f"  {split:<12}{self.requests[split]:>12,}{self.impressions[split]:>14,}"
            row += f"{summary['per_request'][split]:>13.2f}"
            row += f"{staleness[split]:>11.2f}" if staleness else ""
            for name, width in widths.items():
                if name in counted:
                    row += f"{summary['positives'][name][split]:>{width},}"
                    continue
                mean = summary["labels"][split][name]
                row += f"{'-' if mean is None else f'{mean:.4f}':>{width}}"
            lines.append(row)
        return lines

    def _grouping(self) -> list[str]:
        """What staleness means, and how impressions without a request id share histories."""
        summary = self.manifest["summary"]
        if "staleness" not in summary:
            return []
        lines = ["  staleness: mean number of earlier events that an impression's history lacks"]
        found = summary["grouping"]
        if found is None:
            return lines
        if found.get("by") == "session":
            ends = "" if found["gap"] is None else f" (it ends at a gap of {found['gap']:,.0f} s)"
            return [*lines, f"  a request is a session{ends}; its history ends before it"]
        together = found["together"]
        shares = [] if together is None else [f"those of {_instant(together)}"]
        shares.append(f"{'else ' if shares else ''}at most {found['size']}")
        if found["gap"] is not None:
            shares.append(f"less than {found['gap']:,.0f} s apart")
        by = "by the log's gaps and size" if found["chosen"] else "by [requests]"
        what = "positives" if found.get("by") == "event" else "impressions"
        return [*lines, f"  {what} that share a request: {', '.join(shares)} ({by})"]

    def _types(self) -> list[str]:
        """How many rows have each type of event, and which of them are positives."""
        lines = []
        spec = self.manifest["spec"]
        for column, counts in self.manifest["summary"].get("types", {}).items():
            shown = [f"{value} {count:,}" for value, count in counts.items()][:SHOWN_TYPES]
            more = len(counts) - len(shown)
            others = f" and {more} more" if more else ""
            lines.append(f"  rows by {column}: {', '.join(shown)}{others}")
        for label in map(Label.model_validate, spec["labels"]):
            if label.kind == "positive":
                lines.append(f"  positives of {label.name}: {label.rule}")
        return lines

    def _histories(self) -> list[str]:
        """Quantiles of history lengths, a line for each split."""
        shares = "".join(f"{f'{int(100 * q)} %':>9}" for q in QUANTILES)
        lines = [f"  history length by request{shares}"]
        for split in self._shown:
            values = self.manifest["summary"]["history"][split]
            lines.append(f"  {split:<25}" + "".join(f"{value:>9,}" for value in values))
        return lines

    def __repr__(self) -> str:
        """The warnings, then the start of :meth:`text`."""
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*warnings, super().__repr__()])

    def _repr_html_(self) -> str:
        warnings = "".join(f"<p>warning: {escape(warning)}</p>" for warning in self.warnings)
        return warnings + super()._repr_html_()

    def _rows(self) -> list[str]:
        """How many rows were read, dropped and noted, with examples; coverage; warnings."""
        summary = self.manifest["summary"]
        examples = summary.get("examples", {})
        lines = [f"  rows read {self.rows:,}"]
        added = summary.get("added")
        if added is not None:
            lines.append(
                f"  extended: {added['rows']:,} of these rows are new, from {added['files']:,} new "
                f"files; {added['events_before']:,} events were there before"
            )
        lines += [f"  {line}" for line in summary.get("coverage", [])]
        for what, counts in (("dropped", self.dropped), ("noted", self.noted)):
            for reason, count in counts.items():
                lines.append(f"  {what:<7} {count:>12,}  {reason}")
                notes = [f"such as {examples[reason]}"] if reason in examples else []
                if reason == UNSORTED and count > UNSORTED_SHARE * self.events:
                    notes.append("the files are not sorted; the dataset is")
                lines += [f"{'':>24}{note}" for note in notes]
        return [*lines, *(f"  warning: {warning}" for warning in self.warnings)]


def _instant(seconds: float) -> str:
    return "one instant" if seconds == 0 else f"one page (at most {seconds:.3g} s apart)"
