"""Alarms: reasons for not deploying a run, which its folder holds in ``alarms.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limerank.errors import FormatError
from limerank.files import read_json, write_json

ALARMS = "alarms.json"
STATE = "trainer"
"""The folder of a run that holds what its training is resumed from."""
FORMAT = 1
"""Version of that file."""


@dataclass(frozen=True)
class Alarm:
    """A reason for not deploying a run.

    Attributes:
        name: of its kind; see :mod:`limerank.evaluation.alarms`.
        message: what was found, with its figures.
        advice: what to try.
    """

    name: str
    message: str
    advice: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def alarms_of(values: Iterable[Mapping[str, Any]]) -> tuple[Alarm, ...]:
    """From :meth:`Alarm.to_dict` of each.

    Raises:
        KeyError, TypeError: they are something else.
    """
    return tuple(Alarm(str(one["name"]), str(one["message"]), str(one["advice"])) for one in values)


def alarm_lines(alarms: Sequence[Alarm]) -> list[str]:
    """Lines that a command prints; none without alarms."""
    if not alarms:
        return []
    count = "1 ALARM" if len(alarms) == 1 else f"{len(alarms)} ALARMS"
    lines = [f"{count}: look into this before you deploy the run"]
    for one in alarms:
        lines += [f"  {one.name}: {one.message}", f"    Try: {one.advice}"]
    return lines


def is_unfinished(run: Path) -> bool:
    """Whether the training of a run has not ended. A process that was killed after it had written
    the alarms may have left a part of what a training is resumed from."""
    return (run / STATE).exists() and not (run / ALARMS).exists()


def write_alarms(run: Path, alarms: Sequence[Alarm]) -> None:
    """Write the file into a run folder; its training has ended then."""
    write_json(run / ALARMS, {"format": FORMAT, "alarms": [one.to_dict() for one in alarms]})


def read_alarms(run: Path) -> tuple[Alarm, ...] | None:
    """The alarms of a run; None where it has no such file: its training has not ended, or an
    earlier version trained it.

    Raises:
        FormatError: the file is damaged, or of another version.
    """
    path = run / ALARMS
    if not path.exists():
        return None
    values = read_json(path, "the alarms of a run")
    if values.get("format") != FORMAT:
        raise FormatError(
            f"{path} has format {values.get('format')!r:.40}, expected {FORMAT}; remove the file, "
            "or train the run again"
        )
    try:
        return alarms_of(values["alarms"])
    except (KeyError, TypeError):
        raise FormatError(f"{path} is damaged; remove the file, or train the run again") from None
