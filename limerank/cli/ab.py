"""``limerank ab``: what users of each arm did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from limerank.cli.export import Store, time_of
from limerank.errors import SpecError, check_choice

BROKEN = 0.001
"""p-value of the sample ratio below which the experiment is reported as broken."""


def ab(
    store: Store,
    label: Annotated[
        str | None, typer.Option(help="Label that counts.", show_default="the most frequent")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Time of the first rankings, as for export.", show_default="all"),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="End, excluded.", show_default="a window before now")
    ] = None,
    window: Annotated[
        float,
        typer.Option(
            help="Seconds after an item was shown in which an event counts as its outcome."
        ),
    ] = 3600.0,
    control: Annotated[
        str | None,
        typer.Option(
            help="Arm that the others are compared with.", show_default="that with most users"
        ),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE",
            help="Share of the users that an arm should have, for the check of the sample ratio. "
            "Give it for all arms.",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of all intervals.")] = 0.95,
    planned: Annotated[
        int,
        typer.Option(
            help="Users of two arms for which sequential intervals are the narrowest. Choose it "
            "before the experiment."
        ),
    ] = 10_000,
    json: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None,
) -> None:
    """Compare the arms of an experiment by what users did with what they were shown.

    An outcome is a shown item that an event with the label followed within the window. Rates are
    per request and per user, with intervals that take users as units. Of differences there are two
    intervals: `fixed` is valid once, at a time that was chosen before; `sequential` is valid at
    all times together, so that you may look every day and stop when it excludes 0. Of interleaved
    arms, the table has the credit of the first team less that of the second, per request.

    `--share a=0.9 --share b=0.1` also checks the sample ratio: if it is broken, do not trust the
    comparison.

    Example:

        limerank ab --store events.db --label click --share a=0.9 --share b=0.1
    """
    from limerank.files import write_json
    from limerank.serving.reading import read
    from limerank.serving.stores import existing, open_store

    shares = _shares(share)
    if not 0 < confidence < 1:
        raise SpecError(f"--confidence is {confidence:g}, expected a number between 0 and 1")
    if planned < 2 or not window > 0:
        raise SpecError("--planned is a number of users above 1, --window seconds above 0")
    times = {
        name: time_of(name, given)
        for name, given in (("since", since), ("until", until))
        if given is not None
    }
    with open_store(existing(store)) as opened:
        found = read(opened, **times, window=window)
    if not found.arms:
        raise SpecError(
            "no ranking of this time was logged as shown: log rankings (log in /v1/rank, or POST "
            "/v1/shown), or give another --since and --until"
        )
    labels = found.labels()
    if label is None:
        label = found.most_frequent() or "click"
    elif labels:
        check_choice("label", label, labels)
    for name in (*shares, *([control] if control else [])):
        check_choice("arm", name, sorted(found.arms))
    report = found.report(
        label, control=control, shares=shares or None, confidence=confidence, planned=planned
    )
    if json is not None:
        write_json(json, report)
    _print(report, confidence)


def _shares(given: Sequence[str] | None) -> dict[str, float]:
    found = {}
    for text in given or ():
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if not found[name] > 0 or not math.isfinite(found[name]):
            raise SpecError(f"--share is {text!r}, expected NAME=SHARE, such as a=0.9")
    return found


def _print(report: dict[str, Any], confidence: float) -> None:
    print(f"{report['label']}: outcomes per request and per user, {confidence:.0%} intervals")
    for name, one in report["arms"].items():
        print(
            f"  {name}: {one['users']:,} users, {one['requests']:,} requests, "
            f"{one['outcomes']:,} outcomes"
        )
        for what in ("per_request", "per_user"):
            print(f"    {what.replace('_', ' '):12} {_text(one[what])}")
        for what in ("per_request", "per_user"):
            if f"{what}_difference" in one:
                print(
                    f"    {what.replace('_', ' ')}, less {report['control']}: "
                    f"{_text(one[f'{what}_difference'])} fixed, "
                    f"{_text(one[f'{what}_difference_sequential'])} sequential"
                )
        if "interleaved" in one:
            teams = " less ".join(one["interleaved"]["teams"])
            print(
                f"    credit of {teams}, per request: "
                f"{_text(one['interleaved']['credit_difference'])} fixed, "
                f"{_text(one['interleaved']['credit_difference_sequential'])} sequential"
            )
    if report["several_arms"]:
        print(f"{report['several_arms']:,} users were shown rankings of several arms")
    p = report["sample_ratio_p"]
    if p is None or math.isnan(p):
        print("sample ratio: not checked; give --share NAME=SHARE for each arm")
    elif p < BROKEN:
        print(
            f"sample ratio: p = {p:.2g}, broken: users of an arm are not logged as those of others"
        )
    else:
        print(f"sample ratio: p = {p:.2g}")


def _text(interval: dict[str, float | None]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return "unknown"
    if low is None or high is None:
        return f"{value:.4f}"
    return f"{value:.4f} ({low:.4f} to {high:.4f})"
