"""Makes a failing history short: leaves out what the failure does not need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from simulation.operations import History, Operation, Setting

MOST_ATTEMPTS = 400
"""Shorter histories that are tried, at most."""


def shrunk(
    history: History, fails: Callable[[History], bool], attempts: int = MOST_ATTEMPTS
) -> History:
    """The shortest history found that still fails.

    Args:
        history: one that fails.
        fails: runs a history, and returns whether it fails.
        attempts: histories that are tried, at most.
    """
    left = attempts
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(history):
            if not left:
                return history
            left -= 1
            if fails(candidate):
                history, smaller = candidate, True
                break
    return history


def _candidates(history: History) -> Iterator[History]:
    """Shorter or simpler histories, the much shorter ones first."""
    operations = history.operations
    size = len(operations) // 2
    while size:
        for at in range(len(operations) - size, -1, -size):
            yield replace(history, operations=operations[:at] + operations[at + size :])
        size //= 2
    for setting in _simpler(history.setting):
        yield replace(history, setting=setting)
    for at, operation in enumerate(operations):
        for simple in _simpler_operations(operation):
            changed = (*operations[:at], simple, *operations[at + 1 :])
            yield replace(history, operations=changed)


def _simpler(setting: Setting) -> Iterator[Setting]:
    alone: dict[str, tuple[int, float]] = {"main": (0, 1.0)}
    simple: dict[str, Any] = {
        "arms": alone,
        "skew": (0,) * setting.servers,
        "most": None,
        "most_exposures": 1000,
        "shared": True,
    }
    for name, value in simple.items():
        if getattr(setting, name) != value:
            yield replace(setting, **{name: value})


def _simpler_operations(operation: Operation) -> Iterator[Operation]:
    for trip in operation.faults:
        faults = {number: kind for number, kind in operation.faults.items() if number != trip}
        yield replace(operation, faults=faults)
    if operation.overlaps is not None:
        yield replace(operation, overlaps=None)
    events = operation.values.get("events", ())
    if len(events) > 1:
        for at in range(len(events)):
            fewer = [*events[:at], *events[at + 1 :]]
            yield replace(operation, values={**operation.values, "events": fewer})
