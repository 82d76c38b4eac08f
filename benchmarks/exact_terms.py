"""What each part beside the links is worth: LIME with its defaults, and without one part, on every
log.

    python -m benchmarks.exact_terms --data FOLDER
    python -m benchmarks.exact_terms --data FOLDER --only synth_sparse --models lime-mha --seeds 1
    python -m benchmarks.exact_terms --data FOLDER --form "no counters" --form "the defaults"

The parts are anchored links of items and of the values of content features, neighbours,
collaborative vectors, base rates, counters, the newest positive event of anchored links, the
profile, curves of numeric features, and the metric that stops training. All other settings are the
defaults of ``limerank train``. The form is to be chosen by the validation split; the test split
shows what it gives. Finished rows are skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.datasets import LOGS, QUICK, prepare_dataset
from benchmarks.jobs import Job, finish, workers
from benchmarks.peer_models import Log
from benchmarks.rows import has_row, write_row

BENCH = "exact_terms"
MODELS = ("lime-mha", "lime-xor")
DEFAULTS = "the defaults"
WITHOUT: dict[str, dict[str, Any]] = {
    "no anchored links, no neighbours": {"anchors": ()},
    "no neighbours": {"neighbours": 0},
    "no vectors": {"vectors": 0},
    "no vectors, no neighbours": {"vectors": 0, "neighbours": 0},
    "no base rates": {"base_rates": False},
    "no counters": {"counter_hours": 0},
    "counters of the day": {"counter_hours": 24},
    "no newest positive": {"since_positive": False},
    "no profile": {"profile": 0},
    "no curves": {"curves": False},
    "none of these": {
        "anchors": (),
        "vectors": 0,
        "base_rates": False,
        "counter_hours": 0,
        "profile": 0,
        "curves": False,
    },
}
"""Form -> settings that differ from the defaults."""
ITEMS, VALUES, BY_AUC = "anchored links of items alone", "of values alone", "stopped by AUC"
FORMS = (DEFAULTS, ITEMS, VALUES, *WITHOUT, BY_AUC)


def settings_of(folder: Path, form: str) -> dict[str, Any] | None:
    """What a form changes in the defaults; None where it is one of the others, because the dataset
    has no feature that is anchored."""
    from limerank.data.dataset import Dataset
    from limerank.data.interactions import main_label
    from limerank.models.config import ITEM, DataShape

    manifest = Dataset(folder).manifest
    if form == DEFAULTS:
        return {}
    if form == BY_AUC:
        label = main_label(manifest["encoding"]["labels"])
        assert label is not None
        return {"metric": f"{label['name']}/auc"}
    if form in WITHOUT:
        return WITHOUT[form]
    features = tuple(DataShape.of(manifest).anchors)
    if not features:
        return None
    return {"anchors": (ITEM,) if form == ITEMS else features}


def case_of(name: str, model: str, form: str) -> dict[str, Any]:
    return {"dataset": name, "model": model, "form": form}


def cases(
    folders: dict[str, Path],
    models: tuple[str, ...],
    seeds: int,
    again: bool = False,
    forms: tuple[str, ...] = FORMS,
) -> Iterator[Job]:
    """What has no row yet, the first seed of everything first; everything, with ``again``."""
    for seed in range(seeds):
        for name, folder in folders.items():
            for model in models:
                for form in forms:
                    if settings_of(folder, form) is None:
                        continue
                    if again or not has_row(BENCH, case_of(name, model, form), seed):
                        yield measure, folder, name, model, form, seed


def measure(folder: Path, name: str, model: str, form: str, seed: int) -> None:
    """One row: train, and read the test split once."""
    log = Log(folder)
    result = peers.ours(name, model, log, peers.PREPARED, seed, settings_of(folder, form))
    found = peers.measures(result, log.test)
    write_row(BENCH, case_of(name, model, form), found, seed=seed)
    print(
        f"{name} {model} {form}, seed {seed}: AUC {found['auc']:.4f}, NE {found['ne']:.4f}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument(
        "--only", choices=(*LOGS, QUICK), action="append", help="this log only (repeatable)"
    )
    parser.add_argument("--models", choices=MODELS, action="append", help="this model only")
    parser.add_argument("--form", choices=FORMS, action="append", help="this form only")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... up to so many")
    parser.add_argument("--again", action="store_true", help="measure what has a row, too")
    parser.add_argument("--processes", type=int, default=2, help="models at a time, a thread each")
    given = parser.parse_args(arguments)
    peers.one_thread()
    folders = {}
    for name in given.only or LOGS:
        if (folder := prepare_dataset(name, given.data)) is not None:
            folders[name] = folder
    models, forms = tuple(given.models or MODELS), tuple(given.form or FORMS)
    with workers(given.processes) as pool:
        finish(pool, "models", cases(folders, models, given.seeds, given.again, forms))


if __name__ == "__main__":
    main()
