"""Counting again: the counters of a live index, with impressions since it was built.

The counters of an item (limerank.data.counters) are part of its terms. So all terms are computed
again from the vectors, with the scales of the index: the result is what a build from the longer log
gives. Vectors, weights and rows stay, and with them all user states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.counters import Hourly, ItemCounters, merged
from limerank.index.format import Counted
from limerank.index.reading import Index
from limerank.index.results import Change, advice_of
from limerank.index.writing import Encoder, Files, commit, next_version, sweep
from limerank.runs.model import Trained

BLOCK = 1 << 14
"""Rows that are encoded at once."""


class Shown(NamedTuple):
    """Impressions by external id and hour since 1970, each pair once: of each, how many there are,
    and how many are positive. All [m]."""

    ids: Sequence[Any]
    hours: NDArray[np.int64]
    shown: NDArray[np.int64]
    positive: NDArray[np.int64]


def count_again(run: Trained, path: Path, shown: Shown, hour: int) -> Change:
    """Add impressions to the counters of a live index, in one step. The caller has the right to
    write (:func:`limerank.index.writing.writing`).

    Args:
        run: that built the index.
        path: the index; its manifest has ``counted``.
        shown: impressions later than ``counted.after`` and before ``hour``, all of them; those of
            unknown items are left out.
        hour: since 1970, ``counted.hour`` or later: counters are those of this time.

    Raises:
        FingerprintError, FormatError: as for :class:`~limerank.index.Index`.
        StoreError: its disk is full, or fails; the index is unchanged.
    """
    old = Index.open(path, run.fingerprint)
    counted, ranker = old.counted, run.ranker
    assert counted is not None and ranker.counters is not None
    rows = old.ids.find(shown.ids)
    new = rows >= 0
    more = Hourly(rows[new].astype(np.int64), *(of[new] for of in shown[1:]))
    counters = ItemCounters(merged([old.hourly(), more]), counted.mean, hour)
    manifest = dict(old.manifest)
    version = next_version(path, old.version)
    encoder = Encoder(ranker, old.scales, None)
    with torch.inference_mode(), Files(path, version, manifest["files"]) as files:
        names = ("counters.f32", "counts.i32", "count_ends.i64")
        for name in names if encoder.scales is None else (*names, "terms.i8"):
            files.write(name, old.arrays[name][:0])
        for at in range(0, len(old), BLOCK):
            some = np.arange(at, min(at + BLOCK, len(old)))
            values = counters.latest(some)
            files.append("counters.f32", values)
            files.append_counts(counters.recent(some), len(some))
            if encoder.scales is not None:
                vectors_ud = torch.from_numpy(np.array(old.vectors[some]))
                files.append("terms.i8", encoder.terms(vectors_ud, torch.from_numpy(values)))
        manifest["files"] = files.entries()
    if encoder.scales is not None:
        manifest["scales"] = encoder.scales.to_dict()
    manifest |= {"version": version, "clamped": max(manifest["clamped"], encoder.clamped)}
    manifest["counted"] = asdict(Counted(counters.after, hour, counted.mean, live=True))
    manifest = commit(path, manifest)
    sweep(path, manifest)
    share = encoder.clamped / max(encoder.codes, 1)
    return Change(version, old.items, len(old), clamped=share, advice=advice_of(manifest, share))
