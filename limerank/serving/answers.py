"""What is served, and explanations, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import Gauge

from limerank.data.encoding import read_vocabulary
from limerank.errors import SpecError
from limerank.kernels.dispatch import inference
from limerank.ranking.explain import Explanation
from limerank.ranking.request import plain
from limerank.ranking.scorer import NativeScorer
from limerank.serving.arms import Arms, ArmSpec
from limerank.serving.counting import ItemCounts
from limerank.serving.interleaving import team_draft
from limerank.serving.messages import ArmBody
from limerank.serving.reading import Tally
from limerank.serving.served import Served
from limerank.serving.telemetry import Numbers

PATHS = 24
"""Paths from an event over a link to an item that an explanation names, at most."""
LINKS = 8
"""Links that an explanation names, at most."""
SHOWN_VALUES = 100
"""Values of a categorical context feature in the description of the model, at most."""
SHOWN_LABELS = 16
"""Labels whose outcomes are in the metrics, at most."""


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
        "event_types": served.states.form.event_types(),
        "item_id": None if layout is None else layout.id,
        "item_columns": [] if layout is None else layout.read,
        "item_features": []
        if layout is None
        else [
            {"name": one.name, "kind": one.kind, "column": one.column, "split": one.split}
            for one in layout.features
        ],
        "display": [] if layout is None else list(layout.display),
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
        "counters": _counters(served),
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


def arms_of(arms: Arms) -> list[dict[str, Any]]:
    """All arms, for ``/v1/model`` and answers to a reload."""
    found = []
    for arm in arms.arms.values():
        served = arm.current.served
        one: dict[str, Any] = {"name": arm.name, "share": arm.share}
        if arm.spec.mixes:
            one["interleave"] = list(arm.spec.mixes)
        else:
            one |= {
                "run": served.trained.fingerprint,
                "model": served.trained.ranker.config.model,
                "index_version": served.index.version,
                "items": served.rankable,
                "loaded": served.loaded,
                "counters": _counters(served),
                "index_check": served.check.state,
                "live_items": unranked(served),
            }
        found.append(one)
    return found


def spec_of(name: str, body: ArmBody) -> ArmSpec:
    """An arm of a request to reload.

    Raises:
        SpecError: it interleaves and has a run or an index.
    """
    run = None if body.run is None else Path(body.run)
    index = None if body.index is None else Path(body.index)
    if body.interleave is not None and (run or index):
        raise SpecError(f"the arm {name!r}: give interleave, or a run and an index")
    return ArmSpec(name, body.share, run, index, tuple(body.interleave or ()))


def interleaved(
    answers: Sequence[dict[str, Any]], names: Sequence[str], k: int, ranking: str
) -> dict[str, Any]:
    """What the merged answer of two arms has in place of the first one's.

    Args:
        answers: of the two arms.
        names: of the two arms.
        k: items of the ranking, at most.
        ranking: its id, which decides the coins.
    """
    by_id = [{one["item"]: one for one in answer["items"]} for answer in answers]
    picks = team_draft(list(by_id[0]), list(by_id[1]), k, ranking)
    items = [
        {**by_id[team][item], "rank": position + 1, "team": names[team]}
        for position, (item, team) in enumerate(picks)
    ]
    stages = {stage for answer in answers for stage in answer["milliseconds"]}
    taken = {
        stage: round(sum(answer["milliseconds"].get(stage, 0.0) for answer in answers), 3)
        for stage in sorted(stages)
    }
    return {"items": items, "milliseconds": taken}


def _counters(served: Served) -> dict[str, Any] | None:
    """What the counters of an index contain; None where it has no counts."""
    counted = served.index.counted
    if counted is None:
        return None
    hours = served.trained.ranker.config.counter_hours
    return {"until": counted.after, "live": counted.live, "hours": hours}


def show_served(numbers: Numbers, arms: Arms, counts: ItemCounts) -> None:
    """Bring the gauges of models and indexes up to date."""
    served, index = arms.main.current.served, arms.main.current.served.index
    checks = [current.served.check.state for current in arms.currents]
    numbers.items.set(served.rankable)
    numbers.index_version.set(index.version)
    numbers.index_verified.set(all(one == "passed" for one in checks))
    numbers.index_damaged.set("damaged" in checks)
    numbers.live_skipped.set(0 if index.live is None else len(index.live.skipped))
    numbers.live_pending.set(served.pending)
    numbers.model.clear()
    numbers.arm_share.clear()
    numbers.arm_model.clear()
    numbers.counters_until.clear()
    numbers.counters_left_out.set(counts.left_out)
    for arm in arms.arms.values():
        counted = [current.served.index.counted for current in arm.models]
        if after := [one.after for one in counted if one is not None]:
            numbers.counters_until.labels(arm.name).set(min(after) / 1000)
        numbers.arm_share.labels(arm.name).set(arm.share)
        for current in arm.models:
            of = current.served
            name = of.trained.ranker.config.model
            numbers.model.labels(of.trained.fingerprint, name).set(1)
            numbers.arm_model.labels(arm.name, of.trained.fingerprint, name).set(of.index.version)


def show_outcomes(numbers: Numbers, tally: Tally, arms: Arms) -> None:
    """Bring the gauges of live counts up to date."""
    gauges = (numbers.arm_shown, numbers.arm_users, numbers.arm_outcomes, numbers.arm_rate)
    for gauge in (*gauges, numbers.arm_difference):
        gauge.clear()
    with tally.lock:
        reading = tally.reading
        reports = [
            reading.report(label, control=arms.main.name)
            for label in reading.labels()[:SHOWN_LABELS]
        ]
        shares = {arm.name: arm.share for arm in arms.arms.values()}
        numbers.arm_ratio.set(reading.sample_ratio(shares))
        for name, sums in reading.arms.items():
            numbers.arm_shown.labels(name).set(sums.requests)
            numbers.arm_users.labels(name).set(sums.users)
    numbers.arm_uncounted.set(tally.uncounted)
    for report in reports:
        label = report["label"]
        for name, one in report["arms"].items():
            numbers.arm_outcomes.labels(name, label).set(one["outcomes"])
            for per in ("request", "user"):
                _bounds(numbers.arm_rate, (name, label, per), one[f"per_{per}"])
                found = one.get(f"per_{per}_difference_sequential")
                if found is not None:
                    _bounds(numbers.arm_difference, (name, label, per), found)


def _bounds(gauge: Gauge, labels: tuple[str, ...], interval: Mapping[str, float | None]) -> None:
    for bound, value in interval.items():
        if value is not None:
            gauge.labels(*labels, bound).set(value)


def unranked(served: Served) -> dict[str, Any]:
    """Live items that the index does not rank."""
    skipped = {} if served.index.live is None else served.index.live.skipped
    return {
        "pending": served.pending,
        "skipped": [{"item": id, "why": why} for id, why in skipped.items()],
    }


def items_of(served: Served, ids: Sequence[Any]) -> list[dict[str, Any]]:
    """Items by external id, with their features and what is shown of them."""
    features, display = served.items.features(ids), served.index.display
    shown = [None] * len(ids) if display is None else display.of(served.index.ids.find(ids))
    return [
        {
            "item": plain(id),
            "features": of,
            **({} if own is None else {"display": own}),
        }
        for id, of, own in zip(ids, features, shown, strict=True)
    ]


def explained(found: Explanation) -> dict[str, Any]:
    """An explanation of one item."""
    events = [
        {
            "item": plain(event.item),
            "time": event.time,
            "age": event.age,
            "share": event.share,
            "effect": None if np.isnan(event.effect) else event.effect,
            **found.titled(event.item),
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
        **found.titled(found.item),
        "value": found.value,
        "without_history": found.without_history,
        "links": links,
        "events": events,
        "paths": paths,
        "impression": [asdict(one) for one in found.impression],
        "anchored": [{**asdict(one), "value": plain(one.value)} for one in found.anchored],
    }
