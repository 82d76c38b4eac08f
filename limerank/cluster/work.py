"""One part of a job, in the process of a worker. A job is a mapping of JSON values: ``command``,
and the arguments of its function; paths are absolute."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from limerank.data.prepare.parts import prepare_part
from limerank.index.parts import build_part
from limerank.parts import Part
from limerank.ranking.bulk import rank_part
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import Run, load_run


def compute(job: Mapping[str, Any], part: Part) -> None:
    """Compute a part; nothing where it is complete.

    Raises:
        LimerankError: see :func:`~limerank.data.prepare.parts.prepare_part`,
            :func:`~limerank.index.parts.build_part` and :func:`~limerank.ranking.bulk.rank_part`.
    """
    given = dict(job)
    command, out = given.pop("command"), given.pop("out")
    if command == "prepare":
        prepare_part(given.pop("spec"), out, part, **given)
    elif command == "index":
        build_part(_run(given.pop("run")), out, part, **given)
    else:
        assert command == "rank"
        names = ("run", "index", "data", "scorer", "threads", "items")
        recommender = _recommender(*(given.pop(name) for name in names))
        rank_part(recommender, out, part, **given)


@functools.lru_cache(maxsize=1)
def _run(path: str) -> Run:
    """A run, loaded once by a worker."""
    return load_run(path)


@functools.lru_cache(maxsize=1)
def _recommender(
    run: str, index: str, data: str | None, scorer: Any, threads: int, items: str | None
) -> Recommender:
    """A run with its index, loaded once by a worker; the machine's workers share its pages."""
    return Recommender(run, index, data, scorer=scorer, threads=threads, items=items)
