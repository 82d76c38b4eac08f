"""The datasets that quality is measured on: where they come from, and their prepared form.

Real datasets are read from a folder that holds ``ml1m/``, ``mind_sample/`` and so on; the
simulated ones are made when they are first needed. Everything that is written goes to ``WORK``
(environment variable ``BENCH_WORK``, by default ``benchmarks/work``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.samples import PARTS, write_part
from benchmarks.sparse_log import simulate_reviews

if TYPE_CHECKING:
    from limerank.data.spec import Spec

WORK = Path(os.environ.get("BENCH_WORK", "benchmarks/work"))
QUICK = "synth_quick"
SIMULATED: dict[str, dict[str, int]] = {
    "synth_short": {"users": 4000, "items": 2000, "events": 200_000, "history": 50},
    "synth_long": {"users": 60, "items": 1000, "events": 100_000, "history": 1000},
    QUICK: {"users": 300, "items": 200, "events": 12_000, "history": 32},
}
"""Simulated logs: about 50 events per user, about 1,700, and a small one that tests the scripts."""
SPARSE = "synth_sparse"
"""The simulated log of ``benchmarks.sparse_log``."""
SHOWN = "trivago_shown"
"""``trivago`` with what belongs to an impression: the position on the page, and the price."""
IMPRESSION_FEATURES: tuple[dict[str, Any], ...] = (
    {"name": "position", "kind": "categorical", "when": "impression", "bias": True},
    {"name": "price", "kind": "numeric", "when": "impression", "transform": "log1p"},
)
ABOUT = {
    "ml1m": "a million ratings of films in their order, without times; like or not",
    "ml1m_users": "a tenth of the users of ml1m",
    "ml1m_items": "a fifth of the items of ml1m",
    "ml1m_sparse": "a tenth of each user's ratings of ml1m",
    "ml_latest_small": "100,000 ratings of films over many years; like or not",
    "kuairand_slice": "short videos shown to 664 users, a biased part of a public log; click",
    "mind_sample": "5,000 pages of news; click",
    "trivago": "pages of hotels in short sessions; click",
    SHOWN: "the log of trivago, with the position on the page and the price",
    "synth_short": "a simulated feed of short videos, some 50 events a user; click",
    "synth_long": "a simulated feed of short videos, some 1,700 events a user; click",
    SPARSE: "simulated reviews, 5 to 10 a user, with drawn negatives; review",
}
"""Log, real or simulated -> what it holds, and the outcome that is predicted."""
LOGS = tuple(ABOUT)
"""All logs but for the one that tests the scripts."""
LONG_REQUESTS = {"gap": 86_400.0, "size": 128}
"""In ``synth_long`` the impressions of a day share one history: models whose time grows with the
square of the history would take too long with smaller requests."""


def describe(name: str, data: Path | None) -> tuple[Spec, Path] | None:
    """The description of a dataset, and the folder that its paths are relative to.

    Args:
        name: of a simulated log, of a part (see ``benchmarks.samples``), of a folder in ``data``,
            or of a file in ``benchmarks/specs``.
        data: the folder of the real datasets.

    Returns:
        None where the dataset's files are missing.
    """
    from limerank.data.description import load_spec
    from limerank.data.protocol import Requests
    from limerank.data.readers import read
    from limerank.data.synthetic import simulate

    if name in SIMULATED:
        base = WORK / "logs" / name
        if not base.exists():
            size = SIMULATED[name]
            simulate(
                base,
                users=size["users"],
                items=size["items"],
                events=size["events"],
                history=size["history"],
                seed=1,
            )
        spec = load_spec(base / "spec.toml")
        if name == "synth_long":
            sources = tuple(one.model_copy(update={"request": None}) for one in spec.events)
            together = Requests.model_validate(LONG_REQUESTS)
            spec = spec.model_copy(update={"events": sources, "requests": together})
        return spec, base
    if name == SPARSE:
        base = WORK / "logs" / name
        if not (base / "spec.toml").exists():
            simulate_reviews(base)
        return load_spec(base / "spec.toml"), base
    if name in PARTS:
        full = describe(PARTS[name].of, data)
        if full is None:
            return None
        return write_part(name, *full, WORK / "converted" / name), full[1]
    if name == SHOWN:
        plain = describe("trivago", data)
        return plain and (with_impression_features(plain[0]), plain[1])
    if data is None or not (data / name).exists():
        print(f"{name}: skipped, its files are not in --data", file=sys.stderr)
        return None
    converted = WORK / "converted" / name
    if name == "kuairand_slice":
        return read("kuairand", data / name, converted, history=128, log_durations=True)
    if name == "ml_latest_small":
        return read("movielens", data / name, converted)
    if (own := data / name / f"{name}.toml").exists():
        return load_spec(own), data / name
    return load_spec(Path(__file__).parent / "specs" / f"{name}.toml"), data


def with_impression_features(spec: Spec) -> Spec:
    """The description of :data:`SHOWN`, from that of ``trivago``."""
    from limerank.data.spec import EventFeature

    more = tuple(EventFeature.model_validate(one) for one in IMPRESSION_FEATURES)
    return spec.model_copy(update={"name": SHOWN, "event_features": spec.event_features + more})


def truth_file(name: str) -> Path | None:
    """Where a simulated log's true probabilities are; None for a real log."""
    return WORK / "logs" / name / "truth.parquet" if name in {*SIMULATED, SPARSE} else None


def prepare_dataset(name: str, data: Path | None) -> Path | None:
    """The prepared dataset, made on first use; None where its files are missing."""
    from limerank.data.prepare import prepare

    out = WORK / "data" / name
    if not out.exists():
        found = describe(name, data)
        if found is None:
            return None
        prepare(found[0], out, base=found[1])
    return out
