"""The page of the measurements: how many states and faults were tried."""

from __future__ import annotations

from benchmarks.tables import Row, machines, table


def power(found: list[Row]) -> str:
    """One line for each job, and their sum."""
    names = (
        "calls",
        "states_opened",
        "states_done_again",
        "faults_injected",
        "faults_possible",
        "failures",
    )
    values = [[int(row["metrics"][name]) for name in names] for row in found]
    drawn = [bool(row["metrics"]["states_drawn"]) for row in found]
    sums = [sum(of) for of in zip(*values, strict=True)]
    rows = []
    for name, part, of in zip(
        [*(row["case"]["job"] for row in found), "all"],
        [*drawn, False],
        [*values, sums],
        strict=True,
    ):
        calls, states, again, faults, possible, failures = (f"{value:,}" for value in of)
        states += " (drawn)" * part
        faults += f" of {possible}" * (faults != possible)
        rows.append([name, calls, states, again, faults, failures])
    lines = [
        "# Power loss and I/O errors",
        "",
        "Each job changes files with the package's own code. All its calls that change files are",
        "recorded. States opened: different states that the disk may be in when the power fails",
        "after a call. Done again: on so many of them the job was repeated, and had to complete.",
        "Faults: calls that failed with EIO or ENOSPC, once or from then on; the job was repeated",
        "after each. Drawn states, and faults that are some of all, are a sample by the seed where",
        "all of them would take hours. [Reliability](../reliability.md#power-loss-and-io-errors)",
        "says what has to hold. Reproduce with `make power-loss`.",
        "",
        *machines(found),
        "",
        *table(
            ["job", "calls", "states opened", "done again", "faults", "failures"],
            rows,
        ),
    ]
    return "\n".join(lines)
