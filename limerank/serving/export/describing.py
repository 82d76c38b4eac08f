"""The description of an exported log, so that ``prepare`` reads it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limerank.data.spec import Spec
from limerank.serving.export.columns import Columns
from limerank.validation import validate

POSITION = {"name": "position", "kind": "numeric", "when": "impression", "bias": True}
"""The position on the page explains outcomes in training, and no ranking knows it."""


def description_of(
    path: Path,
    columns: Columns,
    shown: int,
    events: int,
    like: Spec | None,
    name: str | None = None,
) -> Spec:
    """A description of an exported log.

    Args:
        path: the log, or a pattern of its files.
        columns: its labels and features.
        shown, events: how many rows of each source it has.
        like: a description whose labels, features and tables it gets; None: labels with values
            other than 0 and 1 are durations, and features with text are categorical.
        name: of the log; that of its file when not given.

    Raises:
        SpecError: the log has no label.
    """
    names = columns.names()
    values: dict[str, Any] = {
        "name": name or path.stem,
        "events": _sources(path, shown, events, like),
    }
    if like is None:
        values["labels"] = [
            {"name": name, "kind": "binary" if binary else "duration", "column": column}
            for name, binary in columns.labels.items()
            for column in [names["label", name]]
        ]
        features = [
            {
                "name": name,
                "kind": "categorical" if kind == "text" else "numeric",
                "column": names["feature", name],
            }
            for name, kind in columns.features.items()
        ]
        values["event_features"] = features + ([POSITION] if shown else [])
        return validate(Spec, values, f"the description of {path.name}")
    given = like.model_dump(mode="json", exclude_defaults=True)
    replaced = ("events", "labels", "event_features")
    values |= {key: of for key, of in given.items() if key not in replaced}
    values["labels"] = [_label(one, like, names) for one in given["labels"]]
    values["event_features"] = [
        {**one, "column": _column(one, names)} for one in given.get("event_features", ())
    ]
    return validate(Spec, values, f"the description of {path.name}")


def expected(like: Spec) -> tuple[dict[str, bool], dict[str, str]]:
    """The labels and features of a description that are columns of every log that is exported for
    it, also of a day without them: as :class:`~limerank.serving.export.columns.Columns` has them.
    """
    features = {
        feature.name: "float" if feature.kind == "numeric" else "text"
        for feature in like.event_features
        if not _is_position(feature.name, feature.column, feature.bias)
    }
    types = {feature.column for feature in like.event_features}
    labels = {
        label.name: label.kind != "duration"
        for label in like.labels
        if label.kind != "positive" or (label.column and label.column not in types)
    }
    return labels, features


def _is_position(name: str, column: str | None, bias: bool) -> bool:
    return bias and "position" in (name, column)


def positives(like: Spec | None) -> bool:
    """Whether a description is of a log of positives, whose rows are events alone."""
    return like is not None and all(label.kind == "positive" for label in like.labels)


def _sources(path: Path, shown: int, events: int, like: Spec | None) -> list[dict[str, Any]]:
    clock = like is None or like.clock
    base: dict[str, Any] = {"files": [path.name]}
    base |= {"time": "time", "time_unit": "ms"} if clock else {"order": "time"}
    if not shown:
        return [base]
    found = [{**base, "where": {"source": ["shown"]}, "request": "request"}]
    if events:
        found.append({**base, "where": {"source": ["event"]}, "shown": False})
    return found


def _column(feature: dict[str, Any], names: dict[tuple[str, str], str]) -> str:
    """The column of a feature. What a ranking decides, such as the position, exposures know."""
    name = str(feature["name"])
    if _is_position(name, feature.get("column"), bool(feature.get("bias"))):
        return "position"
    return names.get(("feature", name), name)


def _label(label: dict[str, Any], like: Spec, names: dict[tuple[str, str], str]) -> dict[str, Any]:
    """A label that reads the exported column: outcomes as stored, in seconds."""
    name = label["name"]
    column = names.get(("label", name), name)
    found = {"name": name, "kind": label["kind"], "column": column}
    if label["kind"] == "duration":
        return found | ({"cap": label["cap"]} if label.get("cap") is not None else {})
    if label["kind"] == "binary":
        return found
    for feature in like.event_features:
        if feature.column == label.get("column"):  # the type of the event is stored as a feature
            return {**label, "column": names.get(("feature", feature.name), feature.name)}
    if not label.get("column"):  # every event is a positive
        return {"name": name, "kind": "positive"}
    return {**found, "at_least": 0.5}
