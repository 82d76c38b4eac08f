"""Runs histories by the seeds of a range, and checks them.

python -m histories --seeds 0:20

Each history runs real servers for ``--seconds``. One with a violation is saved, and
``--check FILE`` checks it again. ``--failover`` runs them with a replica that is promoted, and
counts what that loses; ``--store cluster`` with three primaries, each with a replica, that promote
replicas themselves. Machines have networks of their own (namespaces) where this system can do that,
else connections lead through proxies; ``--network`` chooses. ``--row`` stores a row of the sums,
after each history.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.rows import write_row
from histories.checking import Found, check
from histories.namespaces import entered, inside, missing
from histories.processes import clock_library, store_program
from histories.record import History, read_history
from histories.running import KindOfNetwork, draw, run_history

BENCH = "histories"


def main() -> int:
    """The command; returns its exit status: 1 where a promise was broken."""
    given = _parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # its processes end with it
    if given.check is not None:
        return _report(read_history(given.check), check(read_history(given.check)))
    if store_program() is None:
        print("neither valkey-server nor redis-server is installed: apt-get install redis-server")
        return 2
    if clock_library() is None:
        print("no C compiler is installed: clocks of servers do not jump")
    given.network = network_of(given.network)
    if given.network == "namespaces" and not inside():
        command = entered(["-m", "histories", *sys.argv[1:]])
        sys.stdout.flush()
        os.execvp(command[0], command)
    first, last = (int(part) for part in given.seeds.split(":"))
    sums: collections.Counter[str] = collections.Counter()
    for seed in range(first, last):
        history, found = _one(seed, given)
        path = given.out / f"{given.store}-{given.network}-{given.failover}-{seed}.jsonl"
        if found.violations or given.save:
            history.write(path)
            print(f"saved: python -m histories --check {path}")
        sums.update(_sums(history, found))
        _report(history, found)
        if given.row:
            _row(given, history.setting["slowed_by"], first, seed, sums)
    return 1 if sums["violations"] else 0


def network_of(asked: str) -> KindOfNetwork:
    """The network to use.

    Raises:
        SystemExit: namespaces were asked for, and cannot be.
    """
    if asked == "proxies":
        return "proxies"
    why = missing()
    if asked == "auto" and why:
        print(f"connections lead through proxies; there are no namespaces: {why}")
        return "proxies"
    if why:
        raise SystemExit(f"--network namespaces: {why}; expected --network proxies here")
    return "namespaces"


def _row(
    given: argparse.Namespace,
    slowed_by: str,
    first: int,
    last: int,
    sums: collections.Counter[str],
) -> None:
    """Store the sums so far."""
    behind = sums["seconds_of_lag"] / max(1, sums["failovers"])
    write_row(
        BENCH,
        {
            "store": given.store,
            "network": given.network,
            "slowed_by": slowed_by,
            "failover": given.failover,
            "seconds": given.seconds,
        },
        {name: round(value, 1) for name, value in sums.items()}
        | {"seconds_behind": round(behind, 2), "first_seed": first, "last_seed": last},
        seed=first,  # another range is another row
        packages=("valkey",),
    )


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m histories", description=__doc__)
    parser.add_argument("--seeds", default="0:5", help="first:last, the last one excluded")
    parser.add_argument("--seconds", type=float, default=20.0, help="that clients ask under faults")
    parser.add_argument("--failover", default="none", choices=("none", "asynchronous", "bounded"),
                        help="how the replica follows that is promoted")  # fmt: skip
    parser.add_argument("--store", default="one", choices=("one", "cluster"),
                        help="one server, or a cluster")  # fmt: skip
    parser.add_argument("--network", default="auto", choices=("auto", "namespaces", "proxies"),
                        help="what connects the machines")  # fmt: skip
    parser.add_argument("--servers", type=int, default=0, help="2 or 3; drawn if not given")
    parser.add_argument("--out", type=Path, default=Path("build/histories"),
                        help="folder of histories with a violation")  # fmt: skip
    parser.add_argument("--save", action="store_true", help="save all histories")
    parser.add_argument("--check", type=Path, help="check a saved history again")
    parser.add_argument("--row", action="store_true", help="store a row of the sums")
    return parser.parse_args()


def _one(seed: int, given: argparse.Namespace) -> tuple[History, Found]:
    setting = draw(
        seed,
        seconds=given.seconds,
        failover=given.failover,
        servers=given.servers,
        store=given.store,
        network=given.network,
    )
    print(f"seed {seed}: {setting}", flush=True)
    with tempfile.TemporaryDirectory(prefix="limerank-history-") as folder:
        history = run_history(seed, setting, Path(folder))
    return history, check(history)


def _sums(history: History, found: Found) -> dict[str, float]:
    """What a row says of one history."""
    by_status = collections.Counter(one.status for one in history.calls)
    events = {
        tuple(event)
        for call in history.calls
        if call.kind == "append" and call.status == "ok"
        for event in call.asked["events"]
    }
    return {
        "histories": 1,
        "requests": len(history.calls),
        "acknowledged": by_status["ok"],
        "unclear": by_status["unknown"],
        "events": len(events),
        "faults": len(history.faults),
        "failovers": sum(one.kind == "failover" for one in history.faults),
        "seconds_of_lag": sum(one.end - one.begin for one in history.faults if one.kind == "lag"),
        "seconds_of_faults": sum(one.end - one.begin for one in history.faults),
        "exports": sum(one.kind == "export" and one.status == "ok" for one in history.calls),
        "compared": found.compared,
        "violations": len(found.violations),
        "events_lost_by_failovers": len(found.lost),
        "events_returned_by_failovers": len(found.returned),
        "items_lost_by_failovers": len(found.items),
        "exposures_lost_by_failovers": len(found.exposures),
    }


def _report(history: History, found: Found) -> int:
    shown = {name: value for name, value in _sums(history, found).items() if value}
    print(", ".join(f"{name} {value:g}" for name, value in shown.items()))
    for one in found.violations[:10]:
        print(f"  {one}")
    if len(found.violations) > 10:
        print(f"  and {len(found.violations) - 10} more")
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
