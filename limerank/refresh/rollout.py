"""The end of a rollout: whether the model that a share of the users has goes live."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from limerank.data.exposures import MAIN
from limerank.refresh.config import RefreshConfig
from limerank.refresh.home import NEW, Home
from limerank.serving.reading import read
from limerank.serving.stores import existing, open_store

Decision = Literal["promote", "roll back", "wait"]
RATE = "per_request"
"""The rate that decides: outcomes per request."""


def decided(config: RefreshConfig, home: Home, say: Callable[[str], None]) -> bool:
    """End a rollout if it can be decided, and say why; returns whether it has ended."""
    rollout = home.rollout
    assert rollout is not None
    text = f"cycle {rollout.cycle} is rolled out to {rollout.share:.0%} of the users"
    if config.publish.decide == "person":
        say(f"{text}: limerank promote, or limerank rollback, and then limerank refresh again")
        return False
    assert config.export is not None
    now, window = now_ms(), config.export.window
    with open_store(existing(config.export.store)) as store:
        reading = read(store, since=rollout.since, until=now - round(1000 * window), window=window)
    label = config.publish.label or reading.most_frequent() or ""
    report = reading.report(label, control=MAIN)
    found, why = decision(report, elapsed=now - rollout.since, after=config.publish.after_ms)
    say(f"{text}: {why}")
    if found == "wait":
        return False
    if found == "promote":
        home.promote()
        say(f"  cycle {rollout.cycle} is live")
    else:
        home.roll_back()
        say(f"  cycle {home.live} stays live")
    return True


def decision(report: Mapping[str, Any], *, elapsed: int, after: int) -> tuple[Decision, str]:
    """What becomes of a rollout, and why.

    Args:
        report: of both arms, see :meth:`limerank.serving.reading.Reading.report`.
        elapsed, after: how long the rollout has lasted, and how long it lasts at most, in
            milliseconds.
    """
    arms = report["arms"]
    if MAIN not in arms or NEW not in arms:
        lacking = " and ".join(name for name in (MAIN, NEW) if name not in arms)
        return "wait", (
            f"no ranking of {lacking} was logged as shown since it began; does the server watch "
            "the loop's link live, and do clients log rankings?"
        )
    new = arms[NEW]
    sequential, fixed = new[f"{RATE}_difference_sequential"], new[f"{RATE}_difference"]
    what = (
        f"{report['label'] or 'outcomes'} per request: new minus live {_text(fixed)}, sequential "
        f"{_text(sequential)}; {new['requests']:,} and {arms[MAIN]['requests']:,} requests"
    )
    if _known(sequential) and sequential["high"] < 0:
        return "roll back", f"{what}; the new model is certainly worse"
    if _known(sequential) and sequential["low"] > 0:
        return "promote", f"{what}; the new model is certainly better"
    if elapsed < after:
        return "wait", f"{what}; it lasts {(after - elapsed) / 3_600_000:.1f} hours more"
    if _known(fixed) and fixed["high"] < 0:
        return "roll back", f"{what}; its time is over, and the new model is certainly worse"
    return "promote", f"{what}; its time is over, and the new model is not certainly worse"


def now_ms() -> int:
    """The present in milliseconds since 1970."""
    return round(time.time() * 1000)


def _known(interval: Mapping[str, float | None]) -> bool:
    return interval["low"] is not None and interval["high"] is not None


def _text(interval: Mapping[str, float | None]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "unknown"
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
