"""What the latency study times: catalogues, models with random weights, and their requests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.index import catalogue, random_run
from benchmarks.latency_cases import FAISS, LIMES, Case
from limerank.data.batch import Features, Users
from limerank.data.dataset import Dataset
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models.config import ModelConfig
from limerank.models.ranker import gather
from limerank.ranking.scorer import NativeScorer
from limerank.runs.folder import Run, load_run

K = 100
"""Items that a request returns."""


class Store:
    """Catalogues, models with random weights, and their indexes; each is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = functools.cache(self._dataset)
        self.run = functools.cache(self._run)
        self.index = functools.cache(self._index)
        self.terms = functools.cache(self._terms)

    def _dataset(self, items: int) -> Dataset:
        folder = self.folder / str(items)
        folder.mkdir()
        return Dataset(catalogue(folder, items, events=20_000))

    def _run(self, model: str, items: int, d: int, links: int) -> Run:
        path = self.folder / str(items) / f"{model}-{d}-{links}"
        # The paper's model: random histories have no items in common with the candidates.
        own = {"links": links, "anchors": ()} if model.startswith("lime") else {}
        random_run(path, self.dataset(items), ModelConfig(model=model, width=d, **own))
        return load_run(path)

    def _index(self, model: str, items: int, d: int, links: int) -> Index:
        run = self.run(model, items, d, links)
        path = run.path.with_name(f"index-{run.path.name}")
        build_index(run, path, data=self.dataset(items))
        return Index.open(path, run.fingerprint)

    @torch.inference_mode()
    def _terms(self, model: str, items: int, d: int, links: int, device: str) -> Any:
        """What the model computes for every item before any request."""
        ranker = self.run(model, items, d, links).ranker.to(device)
        vectors = torch.from_numpy(np.array(self.index(model, items, d, links).vectors))
        parts = [ranker.encode_items(some.to(device)) for some in vectors.split(1 << 16)]
        return type(parts[0])(*(torch.cat(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Request:
    """The two stages of a request."""

    encode: Callable[[], Any]
    score: Callable[[Any], Any]


def random_users(dataset: Dataset, length: int, batch: int, seed: int = 0) -> Users:
    """Requests with full histories; their event tokens are drawn from the log."""
    generator = torch.Generator().manual_seed(seed)
    known = dataset.batch(np.arange(min(64, len(dataset.requests["user"])))).users
    held = torch.arange(known.items.shape[1]) < known.lengths[:, None]
    kinds = known.tokens[held]
    chosen = torch.randint(len(kinds), (batch, length), generator=generator)
    none = torch.zeros(0)
    return Users(
        items=torch.randint(length, (batch, length), generator=generator),
        tokens=kinds[chosen],
        age=torch.rand(batch, length, generator=generator).cumsum(1).flip(1),
        lengths=torch.full((batch,), length),
        features=Features(
            tokens=none.long(),
            weights=none,
            offsets=torch.zeros(batch + 1, dtype=torch.long),
            numeric=torch.zeros(batch, known.features.numeric.shape[1]),
        ),
        context=torch.zeros(batch, known.context.shape[1], dtype=torch.long),
    )


def request(store: Store, case: Case, items: int) -> Request:
    """The work of a server for one request, or for a batch, of this case."""
    assert case.M is not None
    links = case.links or 32
    if case.model == FAISS:
        return faiss_request(store, case, items)
    assert case.N is not None
    of = (case.model, items, case.d, links)
    ranker, index = store.run(*of).ranker.to(case.device), store.index(*of)
    rng = np.random.default_rng(0)
    rows_n = rng.choice(items, case.N)
    vectors = torch.from_numpy(np.array(index.vectors[rows_n])).to(case.device)
    users = random_users(store.dataset(items), case.N, case.batch).to(case.device)
    rows_m = None if items == case.M > 1 << 15 else rng.choice(items, case.M, replace=False)

    def encode() -> Any:
        return ranker.encode_users(users, vectors)

    if case.model in LIMES and case.device == "cpu":
        assert case.threads is not None
        scorer = NativeScorer(ranker, index, threads=case.threads)
        return Request(encode, lambda state: scorer.top(state, K, rows=rows_m))
    terms = store.terms(*of, case.device)
    chosen = None if rows_m is None else torch.from_numpy(rows_m).to(case.device)

    def score(state: Any) -> Any:
        held = terms if chosen is None else gather(terms, chosen)
        return ranker.score(state, held)[..., 0].topk(min(K, case.M or K))

    return Request(encode, score)


def faiss_request(store: Store, case: Case, items: int) -> Request:
    """The best K of M contiguous vectors by inner product."""
    import faiss

    assert case.M is not None
    faiss.omp_set_num_threads(case.threads or 1)
    vectors = store.terms("two-tower", items, case.d, 32, "cpu").vectors[: case.M, : case.d]
    flat = faiss.IndexFlatIP(case.d)
    flat.add(np.ascontiguousarray(vectors.numpy()))
    query = np.random.default_rng(0).standard_normal((case.batch, case.d)).astype(np.float32)
    return Request(lambda: query, lambda state: flat.search(state, min(K, case.M or K)))


def has_faiss() -> bool:
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True
