"""The gate: whether a new model goes live in place of the current one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limerank.data.dataset import Dataset
from limerank.evaluation.compare import Difference, compare
from limerank.evaluation.evaluate import Evaluation, evaluate
from limerank.evaluation.lists import is_of_positives
from limerank.files import write_json
from limerank.refresh.config import Gate

SPLIT = "test"
LIST_METRICS = "ndcg@10", "hr@10"


@dataclass(frozen=True)
class Verdict:
    """Whether a new model goes live.

    Attributes:
        passed: it does.
        reasons: why not; where it does, what it was measured by.
        figures: metric -> value of the new model, of the current one, and the difference with its
            bounds.
    """

    passed: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "reasons": list(self.reasons), "figures": self.figures}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Verdict:
        """From :meth:`to_dict`."""
        return cls(bool(values["passed"]), tuple(values["reasons"]), dict(values["figures"]))


def judge(
    new: Path, current: Path | None, data: Path, gate: Gate, folder: Path, *, quiet: bool = True
) -> Verdict:
    """Measure a new and the current model on the test split of a dataset, which neither has seen.

    Args:
        new, current: run folders; without a current one, the new model is judged alone.
        data: the dataset.
        gate: the conditions.
        folder: where ``evaluation.json``, ``evaluation-current.json`` and ``comparison.json`` go.
        quiet: show no progress.
    """
    found = evaluate(new, data=data, split=SPLIT, out=folder / "evaluation.json", quiet=quiet)
    against = None
    if current is not None:
        against = evaluate(
            current,
            data=data,
            split=SPLIT,
            out=folder / "evaluation-current.json",
            peers=False,
            quiet=quiet,
        )
    reasons = _entropies(found, gate) + _alarms(found, against, gate)
    figures: dict[str, Any] = {"new": _figures(found)}
    if current is not None and against is not None:
        figures["current"] = _figures(against)
        compared = compare(
            new,
            current,
            data=data,
            split=SPLIT,
            metric=None if gate.metric == "auto" else gate.metric,
            task=gate.task,
            quiet=quiet,
        )
        write_json(folder / "comparison.json", compared.to_dict())
        one = compared.differences[0] if compared.differences else None
        what = f"{compared.task} {compared.metric.upper()}"
        if one is None:
            reasons.append(
                f"{what} cannot be compared: the test split has {found.impressions:,} impressions "
                "and not both outcomes"
            )
        else:
            figures["difference"] = {"metric": what, **one.to_dict()}
            reasons += worse(what, one, gate)
    if reasons:
        return Verdict(False, tuple(reasons), figures)
    return Verdict(True, tuple(_summary(found, figures, data)), figures)


def worse(what: str, found: Difference, gate: Gate) -> list[str]:
    """Why the difference of the new model from the current one refuses it, if it does."""
    least, known = -gate.tolerance, not math.isnan(found.low)
    if found.difference < least:
        why = f"at most {gate.tolerance:g} is allowed (gate.tolerance)"
    elif known and found.high < 0:
        why = "it is certainly worse"
    elif known and gate.strict and found.low < least:
        why = f"it may be worse by more than {gate.tolerance:g} (gate.strict, gate.tolerance)"
    else:
        return []
    interval = f" (95 % interval {found.low:+.4f} to {found.high:+.4f})" if known else ""
    return [f"{what}: new minus current is {found.difference:+.4f}{interval}; {why}"]


def _entropies(found: Evaluation, gate: Gate) -> list[str]:
    return [
        f"{task}: NE of the new model is {metrics['ne']:.4f}, expected below {gate.most_ne:g} "
        "(gate.most_ne)"
        for task, metrics in found.tasks.items()
        if metrics.get("ne", 0.0) >= gate.most_ne
    ]


def _alarms(found: Evaluation, against: Evaluation | None, gate: Gate) -> list[str]:
    if not gate.alarms:
        return []
    usual = set() if against is None else {one.name for one in against.alarms}
    return [
        f"alarm {one.name}: {one.message}. Try: {one.advice}"
        for one in found.alarms
        if one.name not in usual
    ]


def _figures(found: Evaluation) -> dict[str, Any]:
    values = found.to_dict()
    figures = {"impressions": found.impressions, "tasks": values["tasks"]}
    if found.lists is not None:
        figures["lists"] = dict(found.lists)
    return figures


def _summary(found: Evaluation, figures: dict[str, Any], data: Path) -> Sequence[str]:
    one = figures.get("difference")
    if one is None:
        lists = {} if found.lists is None else found.lists
        if is_of_positives(Dataset(data)):
            of_lists = {name: value for name, value in lists.items() if name in LIST_METRICS}
            heads = [f"{name.upper()} {value:.4f}" for name, value in of_lists.items()]
        else:
            heads = [
                f"{task} {name.upper()} {value:.4f}"
                for task, metrics in found.tasks.items()
                for name, value in list(metrics.items())[:2]
            ]
        return [f"no model is live yet; the new one has {', '.join(heads) or 'no metrics'}"]
    interval = ""
    if one["low"] is not None:
        interval = f" (95 % interval {one['low']:+.4f} to {one['high']:+.4f})"
    return [f"{one['metric']}: new minus current {one['difference']:+.4f}{interval}"]
