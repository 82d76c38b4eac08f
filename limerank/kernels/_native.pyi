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
def anchored_links(
    items: NDArray[np.int64],
    tokens: NDArray[np.int64],
    age: NDArray[np.float32],
    lengths: NDArray[np.int64],
    key_offsets: NDArray[np.int64],
    keys: NDArray[np.int64],
    shares: NDArray[np.float32],
    features: NDArray[np.int64],
    item_links: bool,
    item_tokens: int,
    outcomes: NDArray[np.float32],
    prior: NDArray[np.float32],
    first: list[NDArray[np.float32]],
    bias: list[NDArray[np.float32]],
    second: list[NDArray[np.float32]],
    scales: NDArray[np.float32],
    neighbours: bool,
    fading: float,
    counts: NDArray[np.float32],
    ago: NDArray[np.float32],
    ages: NDArray[np.float32],
    since: NDArray[np.float32],
    positive: int,
    per_day: float,
    threads: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]: ...
def shared_paths() -> list[str]: ...
def shared_logits(
    weights: NDArray[np.float32],
    folded: NDArray[np.float32],
    head: NDArray[np.float32],
    offsets: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    entries: NDArray[np.int32],
    shares: NDArray[np.float32],
    links: NDArray[np.float32],
    layer: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
    path: str | None = None,
) -> NDArray[np.float32]: ...
def shared_gradients(
    of_logits: NDArray[np.float32],
    weights: NDArray[np.float32],
    folded: NDArray[np.float32],
    head: NDArray[np.float32],
    offsets: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    entries: NDArray[np.int32],
    shares: NDArray[np.float32],
    links: NDArray[np.float32],
    layer: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
    path: str | None = None,
) -> tuple[NDArray[np.float32], ...]: ...

class Requests:
    def __len__(self) -> int: ...

class Anchors:
    def __init__(
        self,
        codes: NDArray[np.int32],
        keys: NDArray[np.int64],
        sets: NDArray[np.int32],
        shares: NDArray[np.float32],
        kinds: NDArray[np.int32],
        item_tokens: int,
        layer: NDArray[np.float32],
    ) -> None: ...

def profiles(
    items: NDArray[np.int64],
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int64],
    vectors: NDArray[np.float32],
    table: NDArray[np.float32],
    key: NDArray[np.float32],
    mix: NDArray[np.float32],
    first: NDArray[np.float32],
    bias: NDArray[np.float32],
    second: NDArray[np.float32],
    prior: NDArray[np.float32],
    fadings: NDArray[np.float32],
    knots: NDArray[np.float32],
    threads: int,
) -> tuple[Any, Any]: ...

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
        anchors: Anchors | None = None,
        keys: int = 0,
    ) -> None: ...
    @property
    def path(self) -> str: ...
    def requests(
        self,
        links: NDArray[np.float32],
        head: NDArray[np.float32],
        offsets: NDArray[np.int64] | None = None,
        keys: NDArray[np.int64] | None = None,
        anchored: NDArray[np.float32] | None = None,
        query: NDArray[np.float32] | None = None,
    ) -> Requests: ...
    def scores(
        self,
        requests: Requests,
        rows: NDArray[np.int64] | None,
        threads: int,
        extra: NDArray[np.float32] | None = None,
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
