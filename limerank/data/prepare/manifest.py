"""The manifest of a dataset: what ``dataset.json`` holds."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limerank.data.canonical import iso
from limerank.data.coverage import MOSTLY, FeatureCoverage
from limerank.data.folder import FORMAT, SPLITS
from limerank.data.history import GAP_EDGES_MS
from limerank.data.prepare.checks import NEWEST, OLDEST
from limerank.data.prepare.earlier import text_hash
from limerank.data.prepare.findings import DUPLICATE
from limerank.data.prepare.inputs import frame_record
from limerank.data.prepare.learning import EDGES, Learned
from limerank.data.prepare.logfiles import FORMAT as LOG_FORMAT
from limerank.data.prepare.logfiles import LogFile
from limerank.data.prepare.sorting import SortedEvents
from limerank.data.prepare.splitting import Splitter
from limerank.data.prepare.spooling import Spooling
from limerank.data.prepare.summary import Stats, quantiles_of_counts
from limerank.data.prepare.tables import TableWriter
from limerank.data.spec import EventFeature, Spec
from limerank.data.summary import QUANTILES


def manifest_of(
    spools: Spooling,
    events: SortedEvents,
    splitter: Splitter,
    learned: Learned,
    tables: TableWriter,
    stats: Stats,
    anchors: list[str],
    files: list[list[LogFile]],
    folder: Path,
) -> dict[str, Any]:
    """Format, description, encoding, counts, summary and warnings, as JSON can hold them.

    ``files`` are those that events were read from, by source, and ``folder`` is the dataset's.
    """
    spec, findings = spools.spec, spools.findings
    warnings = learned.constant + tables.warnings
    labels = []
    for label in spec.labels:
        mean = learned.label_means[label.name]
        entry: dict[str, Any] = {"name": label.name, "kind": label.kind}
        entry |= {"ratio": label.of is not None, "mean": mean}
        if label.kind == "duration":
            entry["edges"] = learned.label_edges[label.name]
        labels.append(entry)
    features, of_impressions = [], []
    for feature in spec.event_features:
        entry = {"name": feature.name, "kind": feature.kind}
        if feature.kind == "numeric":
            entry |= {"size": len(EDGES) + 2, "edges": learned.feature_edges[feature.name]}
        else:
            entry["size"] = learned.categories[feature.name].size
        if feature.when == "impression":
            entry["bias"] = feature.bias
            if feature.kind == "numeric":
                mean, std = learned.scales[feature.name]
                entry |= {"mean": mean, "std": std, "transform": feature.transform}
            of_impressions.append(entry)
        else:
            features.append(entry | {"when": feature.when})
    impressions = dict(zip(SPLITS, stats.impressions.tolist(), strict=True))
    requests = dict(zip(SPLITS, stats.requests.tolist(), strict=True))
    for label in spec.labels:
        if label.kind == "positive":
            counts = stats.positives[label.name]
            warnings += [
                f"the {split} split has no positive of label {label.name}: nothing can be "
                "measured there; choose other shares in [split], or more types in any_of"
                for split, count in zip(SPLITS, counts.tolist(), strict=True)
                if not count and impressions[split]
            ]
    for split in ("validation", "test"):
        if not impressions[split]:
            warnings.append(f"the {split} split is empty")
    if spec.clock:
        low, high = events.time_range
        if low < 0 or high > NEWEST or high < OLDEST:
            warnings.append(
                f"times run from {iso(low)} to {iso(high)}: check the source's time_unit"
            )
        warnings += events.clock.warnings()
    events_covered = [
        _event_coverage(spools, events, learned, feature, stats.known[feature.name])
        for feature in spec.event_features
    ]
    coverage = [line for table in tables.coverage.values() for line in table.lines()]
    for table in tables.coverage.values():
        warnings += table.warnings()
    for what, rows in (("event", "events"), ("impression", "impressions")):
        some = [
            covered
            for feature, covered in zip(spec.event_features, events_covered, strict=True)
            if (feature.when == "impression") == (what == "impression")
        ]
        if some:
            shares = ", ".join(covered.text() for covered in some)
            coverage.append(f"{what} features, {rows} with a known value: {shares}")
        for covered in some:
            warnings += covered.warnings(what)
    for name, (several, differing) in stats.differing.items():
        if differing > MOSTLY * several:
            warnings.append(
                f"context feature {name}: its values differ within {differing:,} of {several:,} "
                "requests with several impressions, and the value of the first impression counts "
                'for all; is it an impression feature (when = "impression")?'
            )
    for empty in [split for split in ("validation", "test") if not requests[split]]:
        warnings.append(
            f"without {empty} requests a model cannot be measured there: choose other cut "
            "points or shares in [split]"
        )
    if stats.late_training:
        warnings.append(
            f"{stats.late_training:,} training requests come after a validation or test request of "
            f"their user, by the column {spec.split.column!r}: models train on histories that hold "
            "outcomes of the test; a split by time measures what a ranker sees in production"
        )
    dropped = dict(findings.bad.most_common())
    noted = {name: count for name, count in findings.noted.items() if count}
    if DUPLICATE in noted:
        dropped[DUPLICATE] = noted.pop(DUPLICATE)
    summary = {
        "time": {
            "first": events.time_range[0],
            "last": events.time_range[1],
            "now": events.clock.now if spec.clock else events.time_range[1],
        },
        "cuts": splitter.cuts,
        "labels": {
            split: {
                name: float(sums[k] / stats.impressions[k]) if stats.impressions[k] else None
                for name, sums in stats.labels.items()
            }
            for k, split in enumerate(SPLITS)
        },
        "positives": {
            name: dict(zip(SPLITS, counts.tolist(), strict=True))
            for name, counts in stats.positives.items()
        },
        "types": findings.counts_of_types(),
        "history": {split: quantiles_of_counts(stats.lengths[k]) for k, split in enumerate(SPLITS)},
        "history_quantiles": list(QUANTILES),
        "users": dict(zip(SPLITS, stats.users.tolist(), strict=True)),
        "staleness": {
            split: float(stats.stale[k] / stats.impressions[k]) if impressions[split] else 0.0
            for k, split in enumerate(SPLITS)
        },
        "grouping": _grouping(spools, events, splitter),
        "per_request": {
            split: impressions[split] / requests[split] if requests[split] else 0.0
            for split in SPLITS
        },
        **_added(spools),
        "rows": findings.rows,
        "bad": sum(findings.bad.values()),
        "dropped": dropped,
        "noted": noted,
        "examples": dict(findings.examples),
        "tables": {what: table.to_dict() for what, table in tables.coverage.items()},
        "event_features": [asdict(covered) for covered in events_covered],
        "coverage": coverage,
        "warnings": warnings + findings.remarks,
    }
    gap_edges = _gap_edges(spools)
    return {
        "format": _version(spec, bool(of_impressions), gap_edges),
        "name": spec.name,
        "clock": spec.clock,
        "spec": spec.model_dump(mode="json"),
        **_frames(spools),
        "log": _log(spools, files),
        "encoding": {
            "trained_items": tables.trained_items,
            "labels": labels,
            "event_features": features,
            **({"gap_edges_ms": gap_edges} if gap_edges else {}),
            **({"impression_features": of_impressions} if of_impressions else {}),
            "anchors": anchors,
            **_vocabularies(spools, folder),
            "items": tables.item_encoding.manifest,
            "users": tables.user_encoding.manifest,
        },
        "counts": {
            "users": events.user_total,
            "items": tables.item_total,
            "events": events.total,
            "requests": requests,
            "impressions": impressions,
        },
        "summary": summary,
    }


def _gap_edges(spools: Spooling) -> list[float] | None:
    """Edges of the time since the newest event, of the dataset that this one continues where there
    is one; None for the edges of former formats, and without a clock."""
    if not spools.spec.clock:
        return None
    if spools.earlier is None:
        return list(GAP_EDGES_MS)
    found: list[float] | None = spools.earlier.manifest["encoding"].get("gap_edges_ms")
    return found


def _version(spec: Spec, of_impressions: bool, gap_edges: list[float] | None) -> int:
    """The format that the dataset needs."""
    if gap_edges:
        return FORMAT
    if any(label.kind == "positive" for label in spec.labels):
        return 3
    return 2 if of_impressions else 1


def _added(spools: Spooling) -> dict[str, Any]:
    """What was read to extend a dataset, for the summary; empty: none was extended."""
    if spools.earlier_events is None:
        return {}
    return {
        "added": {
            "files": sum(map(len, spools.sources.files)),
            "rows": spools.read_rows,
            "events_before": spools.earlier_events.total,
        }
    }


def _grouping(spools: Spooling, events: SortedEvents, splitter: Splitter) -> dict[str, Any] | None:
    """How impressions without a request id were grouped; None: all have one."""
    if not events.gaps.impressions:
        return None
    return {
        "impressions": events.gaps.impressions,
        "chosen": spools.spec.requests.size is None,
        "by": spools.spec.requests_by,
        **splitter.grouping.to_dict(),
    }


def _event_coverage(
    spools: Spooling, events: SortedEvents, learned: Learned, feature: EventFeature, known: int
) -> FeatureCoverage:
    """Coverage of an event feature, of which ``known`` events (or impressions) have a known value.

    (Rows that were dropped later are among those present, so ``known`` is scaled to them.)
    """
    name, findings = feature.name, spools.findings
    rows, present = findings.feature_rows[name], findings.present[name]
    total = events.shown_total if feature.when == "impression" else events.total
    categories = learned.categories.get(name)
    words, word = (0, None) if categories is None else categories.missing_words
    return FeatureCoverage(
        name,
        feature.column,
        feature.kind,
        rows,
        present,
        findings.parsed[name],
        min(round(known * rows / total), findings.parsed[name]),
        findings.unread.get(name),
        None if categories is None else categories.unknown,
        words,
        word,
    )


def _vocabularies(spools: Spooling, folder: Path) -> dict[str, str]:
    """What tells encodings apart that an earlier one was continued to: their sizes may be equal,
    and means and edges are. Empty: there is no earlier one."""
    if spools.earlier is None:
        return {}
    found = hashlib.sha256()
    for path in sorted((folder / "vocab").glob("*.parquet")):
        if path.name != "users.parquet":
            found.update(path.read_bytes())
    return {"vocabularies": found.hexdigest()[:16]}


def _log(spools: Spooling, files: list[list[LogFile]]) -> dict[str, Any]:
    """What extending the dataset needs to know of its log."""
    known = spools.earlier_events
    hashed = spools.coder.hashed or (known is not None and known.hashed)
    every = files if known is None else [a + b for a, b in zip(known.files, files, strict=True)]
    return {
        "format": LOG_FORMAT,
        "hash": text_hash() if hashed else None,
        "files": [[one.to_dict() for one in of] for of in every],
    }


def _frames(spools: Spooling) -> dict[str, Any]:
    """The frames that rows were in, for the manifest; empty: all rows were in files."""
    items, users = map(frame_record, spools.sources.table_readers)
    events = [frame_record(readers) for readers in spools.sources.readers]
    if not any([*events, items, users]):
        return {}
    return {"frames": {"events": events, "items": items, "users": users}}
