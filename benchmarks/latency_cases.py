"""The grid of the latency study: which model, how many events and candidates, on what device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

MODELS = ("two-tower", "lime-mha", "lime-xor", "mha", "hstu")
LIMES = ("lime-mha", "lime-xor")
FAISS = "faiss-flat"
"""The pure scan: the best items by inner product, without user stage or head."""
FULL_CATALOGUE = ("two-tower", *LIMES, FAISS)
"""Models that score every item of a large catalogue for one request."""


@dataclass(frozen=True)
class Case:
    """The case of a row."""

    model: str
    N: int | None
    M: int | None
    d: int = 64
    links: int | None = 32
    batch: int = 1
    device: str = "cpu"
    state: str = "fresh"
    threads: int | None = 1

    def row(self) -> dict[str, Any]:
        links = self.links if self.model in LIMES else None
        return {**asdict(self), "links": links}


@dataclass(frozen=True)
class Plan:
    """The sizes to measure. All sweeps but the grid go through the point ``N``, ``M``."""

    histories: tuple[int, ...]
    candidates: tuple[int, ...]
    N: int
    M: int
    widths: tuple[int, ...]
    links: tuple[int, ...]
    batch: int
    batch_histories: tuple[int, ...]
    batch_candidates: tuple[int, ...]
    catalogue: int
    stage_histories: tuple[int, ...]
    stage_widths: tuple[int, ...]


def powers(low: int, high: int) -> tuple[int, ...]:
    return tuple(2**power for power in range(low, high + 1))


PLANS = {
    "full": Plan(
        histories=powers(6, 14),
        candidates=powers(6, 15),
        N=1024,
        M=512,
        widths=powers(4, 9),
        links=powers(3, 7),
        batch=32,
        batch_histories=(64, 1024, 4096),
        batch_candidates=(64, 512, 4096),
        catalogue=1_000_000,
        stage_histories=(1024, 4096, 16384),
        stage_widths=(64, 128),
    ),
    "quick": Plan(
        histories=(64, 256),
        candidates=(64, 512),
        N=256,
        M=64,
        widths=(16, 64),
        links=(8, 32),
        batch=4,
        batch_histories=(64,),
        batch_candidates=(64,),
        catalogue=20_000,
        stage_histories=(256, 1024),
        stage_widths=(64,),
    ),
}


def points(plan: Plan) -> Iterator[list[Case]]:
    """The cases of each point; they take turns."""

    def everyone(**of: Any) -> list[Case]:
        return [Case(model, **of) for model in MODELS]

    faiss = [FAISS]
    for n in plan.histories:
        for m in plan.candidates:
            cases = everyone(N=n, M=m)
            if n == plan.N or m == plan.M:
                cases += everyone(N=n, M=m, state="cached")
            if n == plan.N:
                cases += [Case(name, N=None, M=m, links=None, state="cached") for name in faiss]
            yield cases
    for d in plan.widths:
        of = {"N": plan.N, "M": plan.M, "d": d}
        yield everyone(**of) + everyone(**of, state="cached")
    for count in plan.links:
        yield [
            Case(model, N=plan.N, M=plan.M, links=count, state=state)
            for model in LIMES
            for state in ("fresh", "cached")
        ]
    for n in plan.batch_histories:
        for m in plan.batch_candidates:
            yield everyone(N=n, M=m, batch=plan.batch)
    cases = [
        Case(model, N=None if model == FAISS else plan.N, M=plan.catalogue, state=state)
        for model in FULL_CATALOGUE
        for state in ("fresh", "cached")
        if (model, state) != (FAISS, "fresh")
    ]
    yield [replace(case, links=None) if case.model == FAISS else case for case in cases]
