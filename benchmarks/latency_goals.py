"""The goals of the latency study: ratios of times, and whether the rows reach them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.latency_rows import LIMES, POINT, Times, at_point, times_of
from benchmarks.tables import Row, table

FLAT_FROM, FLAT_TO, FLAT = 64, 4096, 2.0
LINEAR = (4096, 16384, 4.5)
PEAK_FROM, PEAK = 1024, 0.5


def goals(timed: list[Row], stages: list[Row]) -> list[str]:
    """Each goal, the measured value, and whether it is reached; "-" where rows are missing."""
    times = times_of(timed, "fresh")
    body = [
        against(times, "lime-mha", "mha", 1, "LIME-MHA is never slower than MHA"),
        against(
            times,
            "lime-xor",
            "mha",
            1,
            "LIME-XOR is faster than MHA from 512 candidates on",
            lambda _, m: m >= 512,
        ),
    ]
    for model in LIMES:
        body.append(against(times, model, "hstu", 10, f"{shown(model)}: 10 times faster than HSTU"))
    for model in LIMES:
        for peer, least in (("mha", 30), ("hstu", 100)):
            body.append(
                against(
                    times,
                    model,
                    peer,
                    least,
                    f"{shown(model)}: {least} times faster than {shown(peer)} at N = 1,024, "
                    "M = 32,768",
                    lambda n, m: (n, m) == (1024, 32768),
                )
            )
    for model in LIMES:
        body.append(flatness(times, model))
    body.append(linearity(stages, timed))
    body += peaks(stages)
    lines = table(["goal", "measured", "reached"], body)
    cached = times_of(timed, "cached")
    body = [
        against(cached, model, peer, 1, f"{shown(model)}, {shown(peer)}")[:2]
        for model in LIMES
        for peer in ("mha", "hstu")
    ]
    if any(line[1] != "-" for line in body):
        lines += ["", "The same with a cached user state, how many times as fast:", ""]
        lines += table(["", "least"], body)
    return lines


def against(
    times: Times,
    model: str,
    peer: str,
    least: float,
    goal: str,
    holds: Callable[[int, int], bool] = lambda n, m: True,
) -> list[str]:
    """How many times as fast as its peer a model is, at its worst point."""
    ratios = {
        (n, m): times[peer, n, m] / ms
        for (name, n, m), ms in times.items()
        if name == model and (peer, n, m) in times and holds(n, m)
    }
    if not ratios:
        return [goal, "-", "-"]
    (n, m), worst = min(ratios.items(), key=lambda one: one[1])
    missed = sum(ratio < least for ratio in ratios.values())
    text = f"{worst:.2f} times as fast at N = {n:,}, M = {m:,}"
    if len(ratios) > 1:
        text = f"at least {text}; {len(ratios) - missed} of {len(ratios)} points reach the goal"
    return [goal, text, "yes" if not missed else "no"]


def flatness(times: Times, model: str) -> list[str]:
    """Cost by candidates: the fitted a + b M, and the ratio of many candidates to few."""
    goal = (
        f"{shown(model)}: M = {FLAT_TO:,} costs at most {FLAT:.0f} times what M = {FLAT_FROM} costs"
    )
    ratios = {
        n: times[model, n, FLAT_TO] / times[model, n, FLAT_FROM]
        for name, n, m in times
        if (name, m) == (model, FLAT_TO) and (model, n, FLAT_FROM) in times
    }
    if not ratios:
        return [goal, "-", "-"]
    n, worst = max(ratios.items(), key=lambda one: one[1])
    at = POINT["N"] if POINT["N"] in ratios else n
    base, each = fitted({m: ms for (name, of, m), ms in times.items() if (name, of) == (model, at)})
    text = f"at most {worst:.2f} times, at N = {n:,}"
    text += f"; at N = {at:,} about {base:.3f} ms + {1e3 * each:.3f} ms per 1,000 candidates"
    return [goal, text, "yes" if worst <= FLAT else "no"]


def fitted(points: dict[int, float]) -> tuple[float, float]:
    """a and b of ms = a + b M by least squares of relative errors."""
    s0 = s1 = s2 = t0 = t1 = 0.0
    for m, ms in points.items():
        weight = 1 / ms**2
        s0, s1, s2 = s0 + weight, s1 + weight * m, s2 + weight * m * m
        t0, t1 = t0 + weight * ms, t1 + weight * m * ms
    apart = s0 * s2 - s1 * s1
    if apart == 0:
        return t0 / s0, 0.0
    return (t0 * s2 - t1 * s1) / apart, (s0 * t1 - s1 * t0) / apart


def linearity(stages: list[Row], timed: list[Row]) -> list[str]:
    """Growth of LIME-XOR's user stage with the history."""
    low, high, most = LINEAR
    goal = f"LIME-XOR's user stage: {high:,} events take at most {most} times what {low:,} take"
    users = {
        row["case"]["N"]: row["metrics"]["user_ms_p50"]
        for row in [*timed, *stages]
        if row["case"]["model"] == "lime-xor" and row["case"]["state"] == "fresh" and at_point(row)
        if row["case"]["M"] in (None, POINT["M"])
    }
    if low not in users or high not in users:
        return [goal, "-", "-"]
    ratio = users[high] / users[low]
    return [goal, f"{ratio:.2f} times", "yes" if ratio <= most else "no"]


def peaks(stages: list[Row]) -> list[list[str]]:
    shares = {
        (row["case"]["N"], row["case"]["d"]): row["metrics"]["share_of_peak"]
        for row in stages
        if row["case"]["model"] == "lime-xor" and row["case"]["N"] >= PEAK_FROM
    }
    goal = (
        f"LIME-XOR's user stage: at least {PEAK:.0%} of the matrix-product peak from N = 1,024 on"
    )
    if not shares:
        return [[goal, "-", "-"]]
    (n, d), worst = min(shares.items(), key=lambda one: one[1])
    text = f"at least {worst:.0%}, at N = {n:,}, d = {d}"
    return [[goal, text, "yes" if worst >= PEAK else "no"]]


def shown(model: str) -> str:
    return {"mha": "MHA", "hstu": "HSTU", "lime-mha": "LIME-MHA", "lime-xor": "LIME-XOR"}[model]
