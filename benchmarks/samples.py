"""Parts of a real log, made when a benchmark needs them: fewer users, fewer items, fewer events.

Defaults are decided on logs of different sizes and densities; these are the same log at other
sizes. A part is drawn by a fixed seed from the sorted ids, so it is the same on every machine.
Nothing of it is stored in the repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from limerank.data.spec import Spec

SEED = 0


@dataclass(frozen=True)
class Part:
    """What is retained of a log; a share of 1 retains all.

    Attributes:
        of: the dataset that it is a part of.
        users, items: shares of the users and of the items, with all their events.
        events: share of each user's events.
    """

    of: str
    users: float = 1.0
    items: float = 1.0
    events: float = 1.0


PARTS = {
    "ml1m_users": Part("ml1m", users=0.1),
    "ml1m_items": Part("ml1m", items=0.2),
    "ml1m_sparse": Part("ml1m", events=0.1),
}
"""Name -> part: few users with long histories, few items, and short histories."""


def retained(events: pl.DataFrame, part: Part) -> pl.DataFrame:
    """The rows of the part, in their order; columns ``user_id`` and ``item_id``."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(SEED)
    for column, share in (("user_id", part.users), ("item_id", part.items)):
        if share < 1:
            ids = events[column].unique().sort()
            some = rng.choice(len(ids), round(share * len(ids)), replace=False)
            events = events.filter(pl.col(column).is_in(ids.gather(some).implode()))
    if part.events < 1:
        drawn = events.with_columns(drawn=rng.permutation(len(events)))
        rank = pl.col("drawn").rank("ordinal").over("user_id")
        events = drawn.filter(rank <= part.events * pl.len().over("user_id")).drop("drawn")
    return events


def write_part(name: str, spec: Spec, base: Path, out: Path) -> Spec:
    """Write the events of a part into ``out``; returns its description, relative to ``base``.

    Args:
        name: of the part.
        spec: of the full log, whose one source of events is one Parquet file.
        base: the folder that paths of ``spec`` are relative to.
        out: a folder for the events; item and user tables are read where they are.
    """
    import polars as pl

    source = spec.events[0]
    file = out / "events.parquet"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        full = pl.read_parquet(base / source.files[0])
        retained(full, PARTS[name]).write_parquet(file)
    events = (source.model_copy(update={"files": (str(file.resolve()),)}),)
    return spec.model_copy(update={"name": name, "events": events})
