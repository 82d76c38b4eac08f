"""What is served, and explanations, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from limerank.data.encoding import read_vocabulary
from limerank.kernels.dispatch import inference
from limerank.ranking.explain import Explanation
from limerank.ranking.request import plain
from limerank.ranking.scorer import NativeScorer
from limerank.serving.served import Served

PATHS = 24
"""Paths from an event over a link to an item that an explanation names, at most."""
LINKS = 8
"""Links that an explanation names, at most."""
SHOWN_VALUES = 100
"""Values of a categorical context feature in the description of the model, at most."""


def described(served: Served, threads: int) -> dict[str, Any]:
    """A run and its index: the answer of ``/v1/model``."""
    ranker = served.trained.ranker
    layout = served.items.layout
    encoding = served.trained.manifest["encoding"]
    return {
        "version": version("limerank"),
        "model": ranker.config.model,
        "run": served.trained.fingerprint,
        "loaded": served.loaded,
        "index": {
            "version": served.index.version,
            "items": served.rankable,
        },
        "history": served.states.length,
        "state": served.states.mode,
        "links": ranker.link_shape[1] if ranker.link_shape else None,
        "tasks": [{"name": task.name, "kind": task.kind} for task in ranker.shape.tasks],
        "item_id": None if layout is None else layout.id,
        "item_columns": [] if layout is None else layout.read,
        "item_features": []
        if layout is None
        else [
            {"name": one.name, "kind": one.kind, "column": one.column, "split": one.split}
            for one in layout.features
        ],
        "context": [
            {"name": one["name"], "kind": one["kind"], "values": _values(served, one)}
            for one in encoding["event_features"]
            if one["when"] == "context"
        ],
        "impression": [
            {"name": one["name"], "kind": one["kind"], "values": _values(served, one)}
            for one in served.states.form.impressions.features.values()
            if not one["bias"]
        ],
        "clock": served.states.form.clock,
        "index_check": served.check.state,
        "live_items": unranked(served),
        "dispatch": dispatch(served, threads),
        "alarms": None if served.alarms is None else [alarm.to_dict() for alarm in served.alarms],
    }


def _values(served: Served, feature: Mapping[str, Any]) -> list[str]:
    """The most frequent values of a categorical context feature that the run knows."""
    if feature["kind"] != "categorical":
        return []
    folder, name = served.trained.path, str(feature["name"])
    return read_vocabulary(folder, f"event_{name}")["value"].head(SHOWN_VALUES).to_list()


def dispatch(served: Served, threads: int) -> dict[str, Any]:
    """Which implementations compute."""
    scorer = served.scorer
    return {
        "state": served.states.mode,
        "user_stage": served.trained.ranker.user_stage.used,
        "inference": inference().used,
        "scorer": scorer.name,
        "instructions": scorer.path if isinstance(scorer, NativeScorer) else None,
        "threads": threads,
    }


def unranked(served: Served) -> dict[str, Any]:
    """Live items that the index does not rank."""
    skipped = {} if served.index.live is None else served.index.live.skipped
    return {
        "pending": served.pending,
        "skipped": [{"item": id, "why": why} for id, why in skipped.items()],
    }


def explained(found: Explanation) -> dict[str, Any]:
    """An explanation of one item."""
    events = [
        {
            "item": plain(event.item),
            "time": event.time,
            "age": event.age,
            "share": event.share,
            "effect": None if np.isnan(event.effect) else event.effect,
        }
        for event in found.events
    ]
    links: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    if found.links is not None and found.reads is not None:
        weights = found.links.mean(0)
        order = np.argsort(-weights, kind="stable")[:LINKS]
        links = [{"link": int(link), "weight": float(weights[link])} for link in order]
        full = weights[:, None] * found.reads
        if full.size:
            heaviest = np.argsort(-full, axis=None, kind="stable")[:PATHS]
            for link, event in zip(*np.unravel_index(heaviest, full.shape), strict=True):
                paths.append(
                    {"event": int(event), "link": int(link), "weight": float(full[link, event])}
                )
    return {
        "item": plain(found.item),
        "value": found.value,
        "without_history": found.without_history,
        "links": links,
        "events": events,
        "paths": paths,
        "impression": [asdict(one) for one in found.impression],
        "anchored": [{**asdict(one), "value": plain(one.value)} for one in found.anchored],
    }
