"""Rows of measurements: one JSON object per line of ``benchmarks/results/BENCH.jsonl``."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("BENCH_RESULTS", Path(__file__).parent / "results"))
"""``BENCH_RESULTS`` sends rows to another folder; child processes inherit it."""
PACKAGES = ("torch", "numpy", "polars", "pyarrow")


def write_row(
    bench: str,
    case: Mapping[str, Any],
    metrics: Mapping[str, Any],
    *,
    seed: int | None = None,
    repeats: int = 1,
    spread: Mapping[str, Any] | None = None,
    gpu: str | None = None,
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """Store one measurement; it replaces an older one of the same case and seed.

    Args:
        bench: the name of the benchmark and of its file.
        case: the values that identify this case.
        metrics: name, with its unit, -> number.
        seed: of the measurement, if it has one.
        repeats: number of runs whose median the metrics are.
        spread: name -> [least, most] over the repeats.
        gpu: the name of the GPU, if one did the work.
        packages: further packages whose versions the row names.
    """
    row = {
        "bench": bench,
        "case": dict(case),
        "metrics": dict(metrics),
        "seed": seed,
        "repeats": repeats,
        "spread": dict(spread) if spread else None,
        "machine": {"processor": _processor(), "cores": os.cpu_count()}
        | ({"gpu": gpu} if gpu else {}),
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in (*PACKAGES, *packages)},
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two measurements may end at the same time
        others = [old for old in rows(bench) if (old["case"], old["seed"]) != (row["case"], seed)]
        text = "".join(json.dumps(part) + "\n" for part in [*others, row])
        partial = RESULTS / f".{bench}.jsonl.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(RESULTS / f"{bench}.jsonl")
    return row


def rows(bench: str) -> Iterator[dict[str, Any]]:
    """The stored measurements of a benchmark."""
    path = RESULTS / f"{bench}.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def has_row(bench: str, case: Mapping[str, Any], seed: int | None = None) -> bool:
    """Whether this case has a row: long measurements skip it when they resume."""
    return any((row["case"], row["seed"]) == (dict(case), seed) for row in rows(bench))


def _processor() -> str:
    """The processor's name and vector extensions, as the system reports them."""
    name, wide = platform.processor() or platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = line.split()
                known = ("avx512_bf16", "avx512_vnni", "avx512f", "avx2")
                wide = ", ".join(flag for flag in known if flag in flags)
                break
    except OSError:
        pass
    return f"{name} ({wide})" if wide else name


def commit() -> str:
    """The present commit; with a plus where files of the package differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    dirty = git("status", "--porcelain", "--", "../limerank")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
