"""Arms: the models of an experiment that one server serves, and which users each has.

A user's arm depends on the user's id, the salt, and names and shares of the arms alone, so it is
the same in all servers and after restarts. Each arm draws a number from a hash of salt, user and
its name; the arm with the largest ``-share / ln(number)`` has the user (weighted rendezvous
hashing: Thaler and Ravishankar, 1998; Schindelhauer and Schomaker, 2005). Therefore:

- an arm that is added takes users from the others, and nobody else changes arms;
- the users of an arm that is dropped go to the others in proportion to their shares, and nobody
  else changes arms;
- if two arms exchange a share and there is no third, exactly this share of the users changes arms.
  Beside further arms, a few more change: less than twice the share.

All arms have the same event store: every event and every live item goes to all of them. Each has
user states of its own.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limerank.data.canonical import external_id
from limerank.data.exposures import MAIN, MOST_ARMS, arm_name
from limerank.errors import DataError, LimerankError, SpecError, UnknownError, did_you_mean
from limerank.serving.counting import ItemCounts
from limerank.serving.current import Added, Current
from limerank.serving.served import Loader, Served
from limerank.serving.stores import Id

log = logging.getLogger("limerank.serving")
LEAST_SHARE = 1e-6
"""The least share of an arm before shares are made to add up to 1, but for what that takes off."""


@dataclass(frozen=True)
class ArmSpec:
    """An arm as it is configured.

    Attributes:
        name: its name in answers, exposures and reports.
        share: of the users; shares of all arms are divided by their sum.
        run, index: folders; None for an arm that interleaves.
        mixes: names of the two arms whose rankings an interleaved arm merges; else empty.
    """

    name: str
    share: float
    run: Path | None = None
    index: Path | None = None
    mixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """An arm that is served.

    Attributes:
        spec: as configured, with shares that add up to 1.
        models: what it serves: one, or the two that it interleaves.
    """

    spec: ArmSpec
    models: tuple[Current, ...]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def share(self) -> float:
        """Of the users."""
        return self.spec.share

    @property
    def current(self) -> Current:
        """What it serves; of an interleaved arm the first."""
        return self.models[0]


def parse_arm(text: str) -> ArmSpec:
    """An arm from ``NAME=RUN,INDEX,SHARE``, or ``NAME=ARM+ARM,SHARE`` for one that interleaves.

    Raises:
        SpecError: the text has another form.
    """
    name, equals, rest = text.partition("=")
    before, _, share_text = rest.rpartition(",")
    expected = (
        "expected NAME=RUN,INDEX,SHARE, such as b=runs/new,index/new,0.1, or NAME=ARM+ARM,SHARE"
    )
    try:
        share = float(share_text)
        arm_name(name)
    except (ValueError, DataError):
        raise SpecError(f"the arm is {text!r:.200}, {expected}") from None
    run, comma, index = before.partition(",")
    if equals and comma and run and index and "," not in index:
        return ArmSpec(name, share, Path(run), Path(index))
    parts = tuple(before.split("+"))
    if equals and not comma and len(parts) == 2 and all(parts):
        return ArmSpec(name, share, mixes=parts)
    raise SpecError(
        f"the arm is {text!r:.200}, {expected}; for folders with a comma in their name, make links"
    )


def checked(specs: Sequence[ArmSpec]) -> tuple[ArmSpec, ...]:
    """Arms with shares that add up to 1, sorted by name.

    Raises:
        SpecError: names or shares are wrong, or an interleaved arm names unknown ones.
    """
    if not 1 <= len(specs) <= MOST_ARMS:
        raise SpecError(f"{len(specs)} arms are given, expected 1 to {MOST_ARMS}")
    names = [spec.name for spec in specs]
    for spec in specs:
        if names.count(spec.name) > 1:
            raise SpecError(f"the arm {spec.name!r} is given twice; names are unique")
        if not math.isfinite(spec.share) or spec.share < LEAST_SHARE * (1 - 1e-3):
            raise SpecError(
                f"the share of the arm {spec.name!r} is {spec.share:g}, expected more than 0; "
                "leave an arm out to give it no users"
            )
        for name in spec.mixes:
            if name not in names or any(one.mixes for one in specs if one.name == name):
                models = [one.name for one in specs if not one.mixes]
                raise SpecError(
                    f"the arm {spec.name!r} interleaves {name!r}, expected two of "
                    f"{', '.join(models)}{did_you_mean(name, models)}"
                )
        if spec.mixes and spec.mixes[0] == spec.mixes[1]:
            raise SpecError(f"the arm {spec.name!r} interleaves {spec.mixes[0]!r} with itself")
    total = math.fsum(spec.share for spec in specs)
    found = [replace(spec, share=spec.share / total) for spec in specs]
    return tuple(sorted(found, key=lambda spec: spec.name))


def choose(shares: Iterable[tuple[str, float]], user: Any, salt: str) -> str:
    """The name of the arm that has a user; see the module's docstring.

    Args:
        shares: names and shares of the arms.
        user: external id, in any spelling.
        salt: another salt gives another, independent choice.
    """
    id = external_id("user", user)
    best, chosen = -1.0, ""
    for name, share in shares:
        digest = hashlib.blake2b(f"{salt}\0{name}\0{id}".encode(), digest_size=8).digest()
        number = (int.from_bytes(digest, "big") + 1) / (1 << 64)  # above 0, at most 1
        value = math.inf if number == 1.0 else -share / math.log(number)
        if value > best:
            best, chosen = value, name
    return chosen


class Arms:
    """All arms of a server. Reading :attr:`arms` takes no lock; changes take turns.

    Args:
        loader: loads runs and indexes.
        specs: the arms.
        salt: of the choice of users.

    Attributes:
        arms: name -> arm, sorted by name. A change replaces the mapping in one assignment.
        names: of all arms since the start: rankings of a dropped one may still be shown.

    Raises:
        SpecError: see :func:`checked`.
        FormatError, FingerprintError: a run or an index cannot be served.
    """

    def __init__(self, loader: Loader, specs: Sequence[ArmSpec], salt: str = "") -> None:
        self.loader, self.salt = loader, salt
        self._changing, self._switching = threading.Lock(), threading.Lock()
        self.arms: Mapping[str, Arm] = {}
        self.names: set[str] = set()
        self._use(checked(specs), {})

    @property
    def main(self) -> Arm:
        """The arm with the largest share: it answers requests without a user, and describes items.
        Of several, the first by name."""
        models = [arm for arm in self.arms.values() if not arm.spec.mixes]
        return max(models, key=lambda arm: arm.share)

    @property
    def currents(self) -> tuple[Current, ...]:
        """What is served, each once; that of :attr:`main` first."""
        models = [self.main.current, *(one for arm in self.arms.values() for one in arm.models)]
        return tuple(dict.fromkeys(models))

    def of(self, user: Any, name: str | None = None) -> Arm:
        """The arm of a user, or the arm of a name.

        Raises:
            UnknownError: there is no arm of this name.
        """
        arms = self.arms
        if name is not None:
            if name not in arms:
                raise UnknownError(
                    f"there is no arm {name!r}; expected one of {', '.join(arms)}"
                    f"{did_you_mean(name, arms)}"
                )
            return arms[name]
        if len(arms) == 1:
            return next(iter(arms.values()))
        if user is None:
            return self.main
        return arms[choose(((arm.name, arm.share) for arm in arms.values()), user, self.salt)]

    def reload(self, run: Path | None, index: Path | None, name: str | None) -> Served:
        """Serve another run or index in one arm; the others stay.

        Raises:
            SpecError: there are several arms and no name, or the arm interleaves.
            UnknownError: there is no arm of this name.
        """
        arms = self.arms
        if name is None and len(arms) > 1:
            raise SpecError(f"several arms are served: name one of {', '.join(arms)}")
        arm = self.of(None, name)
        if arm.spec.mixes:
            raise SpecError(
                f"the arm {arm.name!r} interleaves {' and '.join(arm.spec.mixes)}: reload those"
            )
        with self._changing:
            served = arm.current.reload(run, index)
            run, index = arm.current.folders
            spec = replace(arm.spec, run=run, index=index)
            self.arms = {**self.arms, arm.name: replace(self.arms[arm.name], spec=spec)}
        return served

    def configure(self, specs: Sequence[ArmSpec]) -> Mapping[str, Arm]:
        """Serve these arms from now on, and no others. An arm of the same name, run and index stays
        loaded, with its users' states. A run or an index that fails its tests is refused, and
        everything stays. Requests that have begun finish with what they began with.

        Args:
            specs: the arms; one without a run or an index keeps that of the arm of this name.
        """
        with self._changing:
            old = self.arms
            complete = []
            for spec in specs:
                before = old[spec.name].spec if spec.name in old else None
                if not spec.mixes and before is not None:
                    run, index = spec.run or before.run, spec.index or before.index
                    spec = replace(spec, run=run, index=index)
                if not spec.mixes and (spec.run is None or spec.index is None):
                    raise SpecError(f"the arm {spec.name!r} is new: give its run and its index")
                complete.append(spec)
            self._use(checked(complete), old)
            return self.arms

    def _use(self, specs: Sequence[ArmSpec], old: Mapping[str, Arm]) -> None:
        loaded: dict[str, Current] = {}
        for spec in specs:
            if spec.mixes:
                continue
            assert spec.run is not None and spec.index is not None
            run, index = spec.run.absolute(), spec.index.absolute()
            before = old.get(spec.name)
            if before is not None and (before.spec.run, before.spec.index) == (run, index):
                loaded[spec.name] = before.current
            else:
                loaded[spec.name] = Current(self.loader, run, index)
                if old:  # as for a reload: every file is compared before it is used
                    loaded[spec.name].verify_now()
        arms = {}
        for spec in specs:
            if spec.mixes:
                arms[spec.name] = Arm(spec, tuple(loaded[name] for name in spec.mixes))
            else:
                assert spec.run is not None and spec.index is not None
                given = replace(spec, run=spec.run.absolute(), index=spec.index.absolute())
                arms[spec.name] = Arm(given, (loaded[spec.name],))
        fresh = set(loaded.values()) - {one for arm in old.values() for one in arm.models}
        with self._switching:  # live items that were acknowledged while these were loaded
            for current in fresh if old else ():
                current.catch_up()
            self.names.update(arms)
            self.arms = arms
        if len(arms) > 1 or old:
            shares = {name: round(arm.share, 6) for name, arm in arms.items()}
            log.info("arms", extra={"shares": shares})

    # All arms

    def unknown(self, items: Collection[Id]) -> set[Id]:
        """Those of some items that no index has."""
        left = list(items)
        for current in self.currents:
            found = current.served.index.ids.find(left)
            left = [item for item, row in zip(left, found, strict=True) if row < 0]
        return set(left)

    def count_again(self, counts: ItemCounts) -> None:
        """Count impressions of items, and bring the counters of all indexes up to date; see
        :meth:`Current.count_again`. An index that cannot be changed does not hold up the others:
        its error is raised at last."""
        after, errors = [], []
        for current in self.currents:
            try:
                after.append(current.count_again(counts))
            except LimerankError as error:
                errors.append(error)
                counted = current.served.index.counted
                after.append(None if counted is None else counted.after)
        counts.need(time for time in after if time is not None)
        counts.advance()
        if errors:
            raise errors[0]

    def follow(self) -> None:
        """:meth:`Current.follow` of all."""
        for current in self.currents:
            current.follow()

    def verify(self) -> None:
        """:meth:`Current.verify` of all."""
        for current in self.currents:
            current.verify()

    def put_items(self, items: list[dict[str, Any]]) -> Added:
        """:meth:`Current.put_items`; the other arms rank the items as well when this returns."""
        first = self.main.current
        added = first.put_items(items)
        self._others_catch_up(first)
        return added

    def remove_item(self, item: str) -> Served:
        """:meth:`Current.remove_item`, in all arms."""
        first = self.main.current
        served = first.remove_item(item)
        self._others_catch_up(first)
        return served

    def _others_catch_up(self, first: Current) -> None:
        """Use a live item in all arms but one that has it. One that another
        thread brings in meanwhile catches up before its first request, or here."""
        with self._switching:
            others = [current for current in self.currents if current is not first]
        for current in others:
            current.catch_up()


def one_arm(run: Path, index: Path) -> tuple[ArmSpec, ...]:
    """The arms of a server with one model."""
    return (ArmSpec(MAIN, 1.0, run, index),)
