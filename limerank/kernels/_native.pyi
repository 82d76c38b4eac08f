from typing import Any

import numpy as np
from numpy.typing import NDArray

SILU_ERROR: float

def paths() -> list[str]: ...
def peak(path: str, rounds: int) -> float: ...
def search(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]: ...
def find(
    keys: NDArray[np.int64], rows: NDArray[np.int32], wanted: NDArray[np.int64]
) -> NDArray[np.int64]: ...
def integers(values: list[Any]) -> NDArray[np.int64] | None: ...

class Requests:
    def __len__(self) -> int: ...

class Scorer:
    def __init__(
        self,
        weights: NDArray[np.uint8],
        terms: NDArray[np.int8],
        weight_low: NDArray[np.float32],
        weight_step: NDArray[np.float32],
        weight_mean: NDArray[np.float32],
        term_middle: NDArray[np.float32],
        term_step: NDArray[np.float32],
        from_links: NDArray[np.float32],
        out: NDArray[np.float32],
        bias: NDArray[np.float32],
        hidden_rows: NDArray[np.int32],
        heads: int,
        activation: str,
        gated: bool,
        path: str | None,
        held: bool,
    ) -> None: ...
    @property
    def path(self) -> str: ...
    def requests(self, links: NDArray[np.float32], head: NDArray[np.float32]) -> Requests: ...
    def scores(
        self, requests: Requests, rows: NDArray[np.int64] | None, threads: int
    ) -> NDArray[np.float32]: ...
    def top(
        self,
        requests: Requests,
        k: int,
        weights: NDArray[np.float32],
        rows: NDArray[np.int64] | None,
        exclude: NDArray[np.int64],
        exclude_ends: NDArray[np.int64],
        allow: NDArray[np.bool_] | None,
        threads: int,
    ) -> tuple[Any, Any, Any]: ...

class Personaliser:
    def __init__(
        self,
        heads: int,
        links: NDArray[np.float32],
        weights: list[NDArray[np.float32]],
        path: str | None = None,
    ) -> None: ...
    def __call__(
        self,
        users: NDArray[np.float32],
        events: NDArray[np.float32],
        ages: NDArray[np.float32],
        lengths: NDArray[np.int64],
        threads: int,
    ) -> NDArray[np.float32]: ...
