"""The command: python -m benchmarks.power."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.power.shim import available, compiled

MARK = "LIMERANK_POWER"
"""Set in the process that has the shim."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power", description=__doc__)
    parser.add_argument("--jobs", nargs="*", metavar="NAME", help="these alone (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--draws", type=int, default=20, help="states at random for each call")
    parser.add_argument("--states", type=int, help="states of each job at most (default: all)")
    parser.add_argument("--faults", type=int, help="calls of each kind that fail (default: all)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON; no rows")
    given = parser.parse_args(arguments)
    if not available():
        print("this needs Linux and a C++ compiler (CXX)", file=sys.stderr)
        return 2
    if MARK not in os.environ:
        shim = compiled()
        environment = {**os.environ, MARK: "1", "LD_PRELOAD": str(shim)}
        command = [sys.executable, "-m", "benchmarks.power", *(arguments or sys.argv[1:])]
        os.execve(sys.executable, command, environment)
    return _try_all(given)


def _try_all(given: argparse.Namespace) -> int:
    from benchmarks.power.jobs import JOBS
    from benchmarks.power.trials import FAULTS, Trial, quiet
    from benchmarks.rows import write_row

    quiet()
    names = given.jobs or list(JOBS)
    unknown = [name for name in names if name not in JOBS]
    if unknown:
        print(f"no job is called {unknown}; expected some of {list(JOBS)}", file=sys.stderr)
        return 2
    memory = Path("/dev/shm")
    found: dict[str, dict[str, object]] = {}
    failed = 0
    with tempfile.TemporaryDirectory(
        prefix="limerank-power-", dir=memory if memory.is_dir() else None
    ) as folder:
        shared = Path(folder).resolve() / "shared"
        shared.mkdir()
        for name in names:
            began = time.monotonic()
            trial = Trial(JOBS[name](shared), shared.with_name(name.replace(" ", "-")), given.seed)
            results = {"power loss": trial.lose_power(given.draws, given.states)}
            for fault in FAULTS:
                results[fault.name] = trial.inject(fault, given.faults)
            seconds = time.monotonic() - began
            found[name] = {what: one.to_dict() for what, one in results.items()}
            errors = [error for one in results.values() for error in one.errors]
            failed += len(errors)
            lost, others = results["power loss"], [results[fault.name] for fault in FAULTS]
            if not given.json:
                write_row(
                    "power",
                    {"job": name},
                    {
                        "calls": lost.calls,
                        "states_opened": lost.states,
                        "states_drawn": int(given.states is not None),
                        "states_done_again": lost.again,
                        "faults_injected": sum(one.states for one in others),
                        "faults_possible": sum(one.calls for one in others),
                        "failures": len(errors),
                        "seconds": round(seconds, 1),
                    },
                    seed=given.seed,
                )
                print(
                    f"{name}: {lost.calls} calls, {lost.states} states, "
                    f"{sum(one.states for one in others)} faults, {len(errors)} failures, "
                    f"{seconds:.0f} s",
                    flush=True,
                )
                for error in errors[:20]:
                    print(f"  {error}", flush=True)
    if given.json:
        print(json.dumps(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
