"""Speed and peak memory of ``limerank.simulate``, in a fresh process.

python -m benchmarks.synth --events 20_000_000
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import write_row


def measure(out: Path, events: int, users: int, items: int) -> dict[str, float]:
    """Simulate in a process of its own: seconds and peak memory."""
    command = [sys.executable, "-m", "benchmarks.synth", "--child", str(out)]
    command += ["--events", str(events), "--users", str(users), "--items", str(items)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def child(out: Path, events: int, users: int, items: int) -> None:
    from limerank.data.synthetic import simulate

    before = time.perf_counter()
    simulate(out, users=users, items=items, events=events, overwrite=True)
    seconds = time.perf_counter() - before
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_mib": usage.ru_maxrss / 1024,
        "bytes_per_event": sum(file.stat().st_size for file in out.iterdir()) / events,
    }
    print(json.dumps(result))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, help="default: one for every 100 events")
    parser.add_argument("--items", type=int, help="default: one for every 100 events")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder of the log (default: a temporary one)")
    parser.add_argument("--dry", action="store_true", help="print the row without writing it")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    users = options.users or max(options.events // 100, 1)
    items = options.items or max(options.events // 100, 64)
    if options.child:
        child(options.child, options.events, users, items)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = [
            measure(Path(folder) / "log", options.events, users, items)
            for _ in range(options.repeats)
        ]
    speeds = sorted(options.events / run["seconds"] for run in runs)
    case = {"events": options.events, "users": users, "items": items}
    metrics = {
        "events_per_s": statistics.median(speeds),
        "seconds": statistics.median(run["seconds"] for run in runs),
        "cpu_s": statistics.median(run["cpu_s"] for run in runs),
        "peak_rss_mib": max(run["peak_rss_mib"] for run in runs),
        "bytes_per_event": runs[0]["bytes_per_event"],
    }
    print(json.dumps({"case": case, "metrics": metrics, "events_per_s": speeds}, indent=2))
    if not options.dry:
        spread = {"events_per_s": [speeds[0], speeds[-1]]}
        write_row("synth", case, metrics, seed=0, repeats=options.repeats, spread=spread)


if __name__ == "__main__":
    main()
