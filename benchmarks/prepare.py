"""Speed and peak memory of ``limerank.prepare``, in a fresh process.

    python -m benchmarks.prepare --events 20_000_000
    python -m benchmarks.prepare --spec logs/spec.toml
    python -m benchmarks.prepare --extend 0.01
    python -m benchmarks.prepare --parts 4 --format csv
    python -m benchmarks.prepare --remote s3://BUCKET/FOLDER --server NAME

The simulated log has integer ids, a request id, a click, a watch time and one event feature. Like
most logs it is sorted by time: the events of a user are spread over the full file.

``--extend`` measures a day's step: the last share of the log is added to a dataset of the rest. Its
processor time stands beside that of preparing the full log, taken in turn: ``cpu_share`` is their
ratio. Reading costs what the new rows cost; the rest is copying, requests and splits of all events.

``--parts`` reads a log of as many files in parts, one after the other, and joins them.
``part_share`` is the processor time of the largest part as a share of that of one process that
prepares the full log, ``join_share`` that of joining: with a machine for each part the log takes
the sum of both. ``work_share`` is what all parts and joining cost together.

``--remote`` reads the log from a storage and from a local disk, in turn; ``server`` says what
answered. ``cpu_share`` and ``time_share`` are the ratios to the local log, of the processor time of
``prepare`` and of the time on the clock; the server's own processor time is not in them.
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

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks.rows import write_row

SPEC = """\
name = "prepare-benchmark"

[[events]]
files = ["log*.{ending}"]
user = "user_id"
item = "item_id"
time = "time_ms"
time_unit = "ms"
request = "request_id"

[[labels]]
name = "click"
kind = "binary"
column = "is_click"

[[labels]]
name = "watch"
kind = "duration"
column = "play_time_ms"
scale = 0.001

[[event_features]]
name = "tab"
kind = "categorical"
when = "context"
"""
CHUNK = 1 << 20


def write_log(
    folder: Path,
    events: int,
    users: int,
    items: int,
    ids: str,
    ending: str,
    seed: int = 0,
    name: str = "log",
    before: int = 0,
) -> Path:
    """Write a log of ``events`` rows and its description; returns the description's path.

    Args:
        folder: for both.
        events, users, items: numbers of them.
        ids: "integers" or "texts".
        ending: "parquet" or "csv".
        seed: of the draws.
        name: of the file, without its ending.
        before: events of earlier files: times and requests begin after theirs.
    """
    rng = np.random.default_rng(seed)
    schema = pa.schema(
        [
            ("user_id", pa.int64() if ids == "integers" else pa.string()),
            ("item_id", pa.int64() if ids == "integers" else pa.string()),
            ("time_ms", pa.int64()),
            ("request_id", pa.int64()),
            ("is_click", pa.int8()),
            ("play_time_ms", pa.int32()),
            ("tab", pa.int8()),
        ]
    )
    path = folder / f"{name}.{ending}"
    now, request = 1_600_000_000_000 + 125 * before, before // 8
    popularity = np.random.default_rng(0).permutation(items)
    writer = (
        pyarrow.parquet.ParquetWriter(path, schema)
        if ending == "parquet"
        else pyarrow.csv.CSVWriter(path, schema)
    )
    with writer:
        for start in range(0, events, CHUNK):
            n = min(CHUNK, events - start)
            shown = 8
            requests = -(-n // shown)
            user = np.repeat((users * rng.random(requests) ** 1.5).astype(np.int64), shown)[:n]
            item = popularity[(items * rng.random(n) ** 3).astype(np.int64)]
            when = now + np.cumsum(rng.integers(0, 2000, requests))
            columns = [
                user if ids == "integers" else np.char.add("u", user.astype(str)),
                item if ids == "integers" else np.char.add("item-", item.astype(str)),
                np.repeat(when, shown)[:n] + np.arange(n) % shown,
                np.repeat(request + np.arange(requests), shown)[:n],
                rng.random(n) < 0.3,
                rng.exponential(20_000, n),
                rng.integers(0, 12, n),
            ]
            arrays = [
                pa.array(column).cast(field.type, safe=False)
                for column, field in zip(columns, schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            now, request = int(when[-1]), request + requests
    spec = folder / "spec.toml"
    spec.write_text(SPEC.format(ending=ending))
    return spec


def measure(
    spec: Path, out: Path, memory: int, earlier: Path | None = None, part: str | None = None
) -> dict[str, float]:
    """Run ``prepare`` in a process of its own: events, seconds and peak memory.

    Args:
        spec, out, memory: of it.
        earlier: the dataset that is extended.
        part: "K/N" reads a part, "join" joins all.
    """
    command = [sys.executable, "-m", "benchmarks.prepare", "--child", str(spec), str(out)]
    command += [] if earlier is None else ["--earlier", str(earlier)]
    command += [] if part is None else ["--part", part]
    done = subprocess.run([*command, "--memory", str(memory)], check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def child(spec: Path, out: Path, memory: int, earlier: Path | None, part: str | None) -> None:
    from limerank.data.prepare import prepare
    from limerank.data.prepare.parts import join_prepared, prepare_part
    from limerank.data.summary import DatasetSummary
    from limerank.parts import parse_part

    before, work = time.perf_counter(), time.process_time()
    found: DatasetSummary | None = None
    if part is None:
        found = prepare(spec, out, extend=earlier, memory=memory, overwrite=True)
    elif part == "join":
        found = join_prepared(spec, out, memory=memory, overwrite=True)
    else:
        prepare_part(spec, out, parse_part(part), memory=memory)
    seconds, work = time.perf_counter() - before, time.process_time() - work
    usage = resource.getrusage(resource.RUSAGE_SELF)
    counts = ("events", "rows", "users", "items")
    result = {name: getattr(found, name) for name in counts if found is not None} | {
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "work_cpu_s": work,  # without starting Python and importing the package
        "peak_rss_mib": usage.ru_maxrss / 1024,
    }
    print(json.dumps(result))


def extend(spec: Path, folder: Path, case: dict[str, object], options: argparse.Namespace) -> None:
    """Measure the full log, and its last part added to the dataset ``earlier`` of the rest."""
    full, added = [], []
    for _ in range(options.repeats):
        full.append(measure(spec, folder / "out", options.memory))
        added.append(measure(spec, folder / "out", options.memory, folder / "earlier"))
    shares = sorted(
        one["work_cpu_s"] / of["work_cpu_s"] for one, of in zip(added, full, strict=True)
    )
    metrics = {
        "cpu_share": statistics.median(shares),
        "extend_cpu_s": statistics.median(run["work_cpu_s"] for run in added),
        "full_cpu_s": statistics.median(run["work_cpu_s"] for run in full),
        "peak_rss_mib": max(run["peak_rss_mib"] for run in added),
        "users": added[0]["users"],
        "items": added[0]["items"],
    }
    print(json.dumps({"case": case, "metrics": metrics, "cpu_share": shares}, indent=2))
    if not options.dry:
        spread = {"cpu_share": [shares[0], shares[-1]]}
        write_row("extend", case, metrics, repeats=options.repeats, spread=spread)


def in_parts(
    spec: Path, folder: Path, case: dict[str, object], options: argparse.Namespace
) -> None:
    """Measure the full log by one process, and by parts that are joined."""
    full, largest, joined, sums = [], [], [], []
    for _ in range(options.repeats):
        one = measure(spec, folder / "one", options.memory)
        out, of = folder / "out", options.parts
        parts = [measure(spec, out, options.memory, part=f"{k}/{of}") for k in range(1, of + 1)]
        join = measure(spec, out, options.memory, part="join")
        largest.append(max(of_part["work_cpu_s"] for of_part in parts))
        full.append(one["work_cpu_s"])
        joined.append(join["work_cpu_s"])
        sums.append(sum(of_part["work_cpu_s"] for of_part in [*parts, join]))
    shares = {
        name: sorted(some / all_of_it for some, all_of_it in zip(of, full, strict=True))
        for name, of in (("part_share", largest), ("join_share", joined), ("work_share", sums))
    }
    metrics = {name: statistics.median(of) for name, of in shares.items()}
    metrics |= {
        "full_cpu_s": statistics.median(full),
        "join_cpu_s": statistics.median(joined),
        "join_peak_rss_mib": join["peak_rss_mib"],
    }
    print(json.dumps({"case": case, "metrics": metrics, **shares}, indent=2))
    if not options.dry:
        spread = {name: [of[0], of[-1]] for name, of in shares.items()}
        write_row("parted", case, metrics, repeats=options.repeats, spread=spread)


def remote(spec: Path, folder: Path, case: dict[str, object], options: argparse.Namespace) -> None:
    """Measure the log on a local disk, and the same log on a storage."""
    from limerank.storage.publishing import publish_file
    from limerank.storage.uris import parse_uri

    uri = parse_uri(options.remote)
    (log,) = folder.glob("log.*")
    publish_file(log, uri.below(log.name))
    far = folder / "remote" / "spec.toml"
    far.parent.mkdir()
    text = SPEC.format(ending=options.format)
    far.write_text(text.replace(f'"log*.{options.format}"', f'"{uri.below(log.name).written()}"'))
    local, away = [], []
    for _ in range(options.repeats):
        local.append(measure(spec, folder / "out", options.memory))
        away.append(measure(far, folder / "out", options.memory))

    def shares(name: str) -> list[float]:
        return sorted(one[name] / of[name] for one, of in zip(away, local, strict=True))

    cpu, clock = shares("work_cpu_s"), shares("seconds")
    metrics = {
        "cpu_share": statistics.median(cpu),
        "time_share": statistics.median(clock),
        "local_cpu_s": statistics.median(run["work_cpu_s"] for run in local),
        "remote_cpu_s": statistics.median(run["work_cpu_s"] for run in away),
        "local_seconds": statistics.median(run["seconds"] for run in local),
        "remote_seconds": statistics.median(run["seconds"] for run in away),
        "mib": log.stat().st_size / 2**20,
        "peak_rss_mib": max(run["peak_rss_mib"] for run in away),
    }
    print(json.dumps({"case": case, "metrics": metrics, "cpu_share": cpu}, indent=2))
    if not options.dry:
        spread = {"cpu_share": [cpu[0], cpu[-1]], "time_share": [clock[0], clock[-1]]}
        write_row("remote", case, metrics, repeats=options.repeats, spread=spread)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", type=Path, help="measure this log instead of a simulated one")
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, help="default: one for every 100 events")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--ids", choices=["integers", "texts"], default="integers")
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet")
    parser.add_argument("--memory", type=int, default=2 << 30, help="bytes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder of the log (default: a temporary one)")
    parser.add_argument("--dry", action="store_true", help="print the row without writing it")
    parser.add_argument("--extend", type=float, help="share of the events that a day adds")
    parser.add_argument("--parts", type=int, help="number of files, each read as a part")
    parser.add_argument("--remote", help="URI of a folder that the log is copied to")
    parser.add_argument("--server", default="", help="with --remote: what answers there")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--earlier", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        spec, out = options.child
        child(spec, out, options.memory, options.earlier, options.part)
        return
    if options.remote and (options.extend or options.spec):
        parser.error("--remote is for the simulated log, without --extend")
    if (options.extend or options.parts) and options.spec:
        parser.error("--extend and --parts are for the simulated log")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        spec = options.spec
        case: dict[str, object] = {"memory_mib": options.memory >> 20}
        if spec is None:
            users = options.users or max(options.events // 100, 1)
            new = round((options.extend or 0) * options.events)
            log = (users, options.items, options.ids, options.format)
            old = options.events - new
            spec = write_log(folder, old, *log)
            case |= {"ids": options.ids, "format": options.format, "events": options.events}
        else:
            case["log"] = spec.parent.name
        if options.extend:
            case["new_events"] = new
            measure(spec, folder / "earlier", options.memory)
            write_log(folder, new, *log, seed=1, name="log-1", before=old)
            extend(spec, folder, case, options)
            return
        if options.parts:
            for number in range(1, options.parts):
                more = options.events * number
                write_log(folder, old, *log, seed=number, name=f"log-{number}", before=more)
            case |= {"events": options.events * options.parts, "parts": options.parts}
            in_parts(spec, folder, case, options)
            return
        if options.remote:
            case["server"] = options.server
            remote(spec, folder, case, options)
            return
        runs = [measure(spec, folder / "out", options.memory) for _ in range(options.repeats)]
    speeds = sorted(run["events"] / run["seconds"] for run in runs)
    metrics = {
        "events_per_s": statistics.median(speeds),
        "seconds": statistics.median(run["seconds"] for run in runs),
        "cpu_s": statistics.median(run["cpu_s"] for run in runs),
        "peak_rss_mib": max(run["peak_rss_mib"] for run in runs),
        "events": runs[0]["events"],
        "users": runs[0]["users"],
        "items": runs[0]["items"],
    }
    print(json.dumps({"case": case, "metrics": metrics, "events_per_s": speeds}, indent=2))
    if not options.dry:
        spread = {"events_per_s": [speeds[0], speeds[-1]]}
        write_row("prepare", case, metrics, repeats=options.repeats, spread=spread)


if __name__ == "__main__":
    main()
