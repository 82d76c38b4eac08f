"""The lineage of a run: the runs that its weights come from, by warm starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MOST_ANCESTORS = 400
"""Of a lineage that a run's configuration lists, the nearest ones: a year of daily starts."""


@dataclass(frozen=True)
class Ancestor:
    """A run that another one was started from.

    Attributes:
        fingerprint: of its weights and its encoding (:class:`limerank.runs.model.Trained`).
        run: its folder when the other one was started.
        until: time of the newest impression that it was trained on, in milliseconds since 1970;
            None where the log has no clock, or an earlier version did not record it.
    """

    fingerprint: str
    run: str
    until: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def lineage_of(config: Mapping[str, Any]) -> tuple[Ancestor, ...]:
    """The lineage in a run's ``config.json``, the nearest run first.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    return tuple(
        Ancestor(str(one["fingerprint"]), str(one["run"]), moment_of(one))
        for one in config.get("lineage", ())
    )


def moment_of(config: Mapping[str, Any]) -> int | None:
    """The field ``until``.

    Raises:
        TypeError, ValueError: it is something else.
    """
    until = config.get("until")
    return None if until is None else int(until)


def lineage_texts(lineage: Sequence[Ancestor]) -> list[dict[str, Any]]:
    """The lineage as ``config.json`` has it."""
    return [one.to_dict() for one in lineage[:MOST_ANCESTORS]]
