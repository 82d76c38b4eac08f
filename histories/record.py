"""A history: requests with their begin and end, faults, and the file that contains them.

The file has one JSON object per line: the first is the head, the others are requests and faults in
the order in which they ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMAT = 1
Status = Literal["ok", "fail", "unknown"]
"""``ok``: acknowledged; ``fail``: certainly without effect; ``unknown``: without a clear answer, so
that it may have an effect at any time after its begin."""


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        number: of the request, from 0 on in the order of their begins.
        kind: ``append``, ``rank``, ``explain``, ``user``, ``forget``, ``put``, ``remove``,
            ``logged``, ``reload`` or ``export``.
        server: number of the server that was asked.
        begin, end: seconds since the history began.
        status: see :data:`Status`.
        asked: the user, events or items.
        answer: what the checker needs of the answer; the error where there is none.
        last: whether all faults were over, and the servers had time to follow each other.
    """

    number: int
    kind: str
    server: int
    begin: float
    end: float
    status: Status
    asked: Mapping[str, Any] = field(default_factory=dict)
    answer: Mapping[str, Any] = field(default_factory=dict)
    last: bool = False


@dataclass(frozen=True)
class Fault:
    """Something that went wrong, from begin to end in seconds; ``failover``: a replica was
    promoted in this time, of these ``shards`` of a cluster (empty: of all that is stored)."""

    kind: str
    what: str
    begin: float
    end: float
    shards: Sequence[int] = ()


@dataclass
class History:
    """A history.

    Attributes:
        seed: of its faults and its requests.
        setting: what it ran on.
        runs: arm -> fingerprints of the runs that it may serve.
        calls, faults: what took place.
        shards: user -> number of the shard of a cluster that has the user.
    """

    seed: int
    setting: Mapping[str, Any]
    runs: Mapping[str, list[str]]
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    shards: Mapping[str, int] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT, "seed": self.seed, "setting": self.setting, "runs": self.runs,
                "shards": self.shards}  # fmt: skip
        with open(path, "w", encoding="utf-8") as file:
            for line in (head, *self._lines()):
                file.write(json.dumps(line) + "\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        yield from ({"call": asdict(one)} for one in self.calls)
        yield from ({"fault": asdict(one)} for one in self.faults)


def read_history(path: Path) -> History:
    """Read a file that :meth:`History.write` wrote.

    Raises:
        ValueError: the file is of another format.
    """
    with open(path, encoding="utf-8") as file:
        head = json.loads(file.readline())
        if head.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {head.get('format')}, expected {FORMAT}: check it with the "
                "version of limerank that wrote it"
            )
        history = History(head["seed"], head["setting"], head["runs"])
        history.shards = head.get("shards", {})
        for line in file:
            one = json.loads(line)
            if "call" in one:
                history.calls.append(Call(**one["call"]))
            else:
                fault = one["fault"]
                history.faults.append(Fault(**fault | {"shards": tuple(fault.get("shards", ()))}))
    return history
