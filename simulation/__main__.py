"""Runs histories by the seeds of a range, and shrinks those that fail.

python -m simulation --seeds 0:100000

``make simulate`` does this with one thread for each process.

Seeds that passed at this version of the package are not run again, so a stopped run continues. A
failing seed is printed with its shortest history; ``--seed N`` runs one again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from pathlib import Path

from benchmarks.rows import commit, write_row
from simulation.histories import Part, Result, begin, run_history, run_part, shortest
from simulation.operations import draw

PART = 100
"""Seeds of one task of a process."""
BENCH = "simulate"


def main() -> int:
    """The command; returns its exit status: 1 where a history failed."""
    given = _parsed()
    if given.seed is not None:
        return _one(given.seed)
    first, last = (int(part) for part in given.seeds.split(":"))
    done = _progress(given.progress)
    parts = [(at, min(at + PART, last)) for at in range(first, last, PART)]
    waiting = [part for part in parts if part not in done]
    print(f"{last - first} histories, {len(parts) - len(waiting)} of {len(parts)} parts are done")
    failed = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(given.processes, initializer=begin) as pool:
        for part in pool.imap_unordered(run_part, waiting):
            failed += [one for one in part.results if one.error]
            done[part.first, part.last] = _sums(part)
            _write(given.progress, done)
            _report(done, last - first, failed)
    for one in failed:
        print(f"\nseed {one.seed} fails: {one.error}\nIts shortest history:")
        print(shortest(draw(one.seed)))
    if not failed and given.row:
        _row(first, last, done)
    return 1 if failed else 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="first:last, the last one excluded")
    parser.add_argument("--seed", type=int, help="run and print one history")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--progress", type=Path, default=Path("build/simulate.json"),
                        help="a file with the parts that are done")  # fmt: skip
    parser.add_argument("--row", action="store_true", help="store a row when all have passed")
    return parser.parse_args()


def _one(seed: int) -> int:
    history = draw(seed)
    print(history)
    result = run_history(history)
    print(result.error or f"passed: {result.answers} answers compared in {result.steps} turns")
    return 1 if result.error else 0


# Progress


def _sums(part: Part) -> dict[str, float]:
    """What a progress file says of a part."""
    return {
        "histories": len(part.results),
        "operations": sum(one.operations for one in part.results),
        "faults": sum(one.faults for one in part.results),
        "turns": sum(one.steps for one in part.results),
        "answers": sum(one.answers for one in part.results),
        "failures": sum(bool(one.error) for one in part.results),
        "cpu_seconds": part.seconds,
    }


Done = dict[tuple[int, int], dict[str, float]]


def _progress(path: Path) -> Done:
    """Parts that passed with this version of the package."""
    if not path.exists():
        return {}
    held = json.loads(path.read_text(encoding="utf-8"))
    if held["commit"] != commit():
        return {}
    return {
        (of["first"], of["last"]): of["sums"] for of in held["parts"] if not of["sums"]["failures"]
    }


def _write(path: Path, done: Done) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [{"first": at, "last": to, "sums": of} for (at, to), of in sorted(done.items())]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"commit": commit(), "parts": parts}), encoding="utf-8")
    partial.replace(path)


def _report(done: Done, count: int, failed: list[Result]) -> None:
    histories = sum(of["histories"] for of in done.values())
    print(
        f"{histories:,.0f} of {count:,} histories, {len(failed)} failed"
        + (f": seeds {', '.join(str(one.seed) for one in failed[:5])}" if failed else ""),
        flush=True,
    )


def _row(first: int, last: int, done: Done) -> None:
    sums = [of for (at, to), of in done.items() if first <= at and to <= last]
    total = {name: sum(of[name] for of in sums) for name in sums[0]}
    write_row(
        BENCH,
        {"what": "histories"},
        {"first_seed": first, "last_seed": last - 1}
        | {name: round(value) for name, value in total.items()},
        packages=("valkey", "greenlet"),
    )


if __name__ == "__main__":
    sys.exit(main())
