"""Anchored links, neighbours and profiles: what they cost the scorer and the user stage.

    python -m benchmarks.anchored --items 1_000_000

Arrays of a random index of LIME (speed does not depend on the values): 32 link weights, and three
single-valued features of 1,000 values each. A history touches 512 items and a third of each
feature's values. The full catalogue and a list of 512 candidates are scored without anchored links,
with those of items, with those of the features besides, with those of items and ten neighbours of
each, and with keys of profiles alone; calls take turns. For the user stage, LIME-MHA encodes one
history of N events with each of them and with none.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.rows import write_row
from benchmarks.scorer import in_turn
from limerank.data.batch import Features, ItemKeys, Items, Users
from limerank.kernels import _native
from limerank.models import build
from limerank.models.config import DataShape, ModelConfig
from limerank.models.tasks import Task

K, CANDIDATES, EVENTS = 100, 512, 512
LINKS, WIDTH, NUMBERS, KEY = 32, 64, 8, 32
WEIGHT_SCALES = "weight_low", "weight_step", "weight_mean"
FEATURES, VALUES, NEIGHBOURS = 3, 1000, 10
HEADS: tuple[dict[str, Any], ...] = (
    {"hidden": 32, "gated": True, "activation": "relu"},
    {"hidden": 32, "gated": False, "activation": "relu"},
)
LENGTHS = 64, 256, 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--print", action="store_true", help="print the rows, write none")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for head in HEADS:
        measure_scorer(given.items, head, given.repeats, given.print)
    for length in LENGTHS:
        measure_user_stage(length, 20 * given.repeats, given.print)


def measure_scorer(items: int, head: dict[str, Any], repeats: int, show: bool) -> None:
    rng = np.random.default_rng(0)
    sums = head["hidden"] * (2 if head["gated"] else 1)

    def floats(*size: int) -> NDArray[np.float32]:
        return rng.normal(size=size).astype(np.float32)

    arrays: dict[str, Any] = {
        "weights": rng.integers(0, 256, (items, LINKS), dtype=np.uint8),
        "terms": rng.integers(-127, 128, (items, sums), dtype=np.int8),
        "weight_low": np.zeros(LINKS, np.float32),
        "weight_step": np.full(LINKS, 1 / 255, np.float32),
        "weight_mean": np.full(LINKS, 127, np.float32),
        "term_middle": floats(sums),
        "term_step": np.abs(floats(sums)) / 127,
        "from_links": floats(sums, WIDTH),
        "out": floats(1, head["hidden"]),
        "bias": floats(1),
        "hidden_rows": np.zeros(0, np.int32),
    }
    shape: dict[str, Any] = {"heads": 1, "activation": head["activation"], "gated": head["gated"]}
    tokens = FEATURES * VALUES
    codes = rng.integers(1, VALUES + 1, (items, FEATURES)) + VALUES * np.arange(FEATURES)
    every = np.arange(1, tokens + 1)
    layer = floats(sums, NUMBERS)

    def anchors(used: int) -> _native.Anchors:
        """With this many of the features."""
        some = every[: used * VALUES]
        return _native.Anchors(
            codes=np.ascontiguousarray(codes[:, :used], np.int32),
            keys=some,
            sets=some.astype(np.int32),
            shares=np.ones(len(some), np.float32),
            kinds=np.append(0, (some - 1) // VALUES).astype(np.int32),
            item_tokens=tokens + 1,
            layer=layer,
        )

    def with_neighbours() -> _native.Anchors:
        """Items, and neighbours of each: sets of their own."""
        ids = rng.integers(1, items + 1, items * NEIGHBOURS)
        order = np.argsort(-ids, kind="stable")
        return _native.Anchors(
            codes=np.arange(1, items + 1, dtype=np.int32)[:, None],
            keys=-ids[order],
            sets=(order // NEIGHBOURS + 1).astype(np.int32),
            shares=np.full(len(ids), 0.5, np.float32),
            kinds=np.zeros(items + 1, np.int32),
            item_tokens=tokens + 1,
            layer=layer,
        )

    rows = np.sort(rng.choice(items, EVENTS, replace=False)) + tokens + 1
    values = np.sort(rng.choice(tokens, tokens // 3, replace=False)) + 1
    links, user = floats(1, LINKS, WIDTH), floats(1, sums)
    candidates = np.concatenate([rows[:20] - tokens - 1, rng.choice(items, CANDIDATES - 20)])
    works: dict[str, dict[str, Callable[[], object]]] = {"catalogue": {}, "list": {}}
    with_keys = arrays | {
        "weights": rng.integers(0, 256, (items, LINKS + KEY), dtype=np.uint8),
        **{name: np.resize(arrays[name], LINKS + KEY) for name in WEIGHT_SCALES},
    }
    profile = _native.Scorer(**with_keys, **shape, keys=KEY, path=None, held=True)
    query = partial(best, profile, links, user, (None, None, None, floats(1, 1, KEY)))
    works["catalogue"]["profile"] = partial(query, None, K)
    works["list"]["profile"] = partial(query, candidates, 20)
    for name, made, keys in (
        ("none", None, None),
        ("item", anchors(0), rows),
        ("features", anchors(FEATURES), np.append(values, rows)),
        ("neighbours", with_neighbours(), np.append(np.sort(tokens - rows), rows)),
    ):
        scorer = _native.Scorer(**arrays, **shape, anchors=made, path=None, held=True)
        anchored = (
            () if keys is None else (np.array([0, len(keys)]), keys, floats(len(keys), NUMBERS))
        )
        rank = partial(best, scorer, links, user, anchored)
        works["catalogue"][name] = partial(rank, None, K)
        works["list"][name] = partial(rank, candidates, 20)
    for of_what, these in works.items():
        taken = in_turn(these, repeats * (1 if of_what == "catalogue" else 40))
        report(
            {"what": of_what, "items": items, **head, "features": FEATURES, "values": VALUES},
            taken,
            show,
        )


def best(
    scorer: _native.Scorer,
    links: NDArray[np.float32],
    user: NDArray[np.float32],
    more: tuple[NDArray[Any] | None, ...],
    rows: NDArray[np.int64] | None,
    k: int,
) -> object:
    requests = scorer.requests(links, user, *more)
    one = np.ones((1, 1), np.float32)
    empty, ends = np.zeros(0, np.int64), np.zeros(1, np.int64)
    return scorer.top(requests, k, one, rows, empty, ends, None, 1)


def measure_user_stage(length: int, repeats: int, show: bool) -> None:
    rng = np.random.default_rng(0)
    tokens = 1 + FEATURES * (VALUES + 1)
    shape = DataShape(
        item_ids=2 * length,
        item_tokens=tokens,
        item_numeric=0,
        user_tokens=0,
        user_numeric=0,
        event_tokens=12,
        context_tokens=0,
        clock=True,
        tasks=(Task(name="click", kind="binary", mean=0.5),),
        anchors={f"f{f}": (f * (VALUES + 1), VALUES + 1) for f in range(FEATURES)},
    )
    start = np.arange(FEATURES) * (VALUES + 1) + 1
    own = start + rng.integers(0, VALUES // 3, (length, FEATURES))
    keys = np.concatenate([own, tokens + np.arange(length)[:, None]], 1)
    empty = Features(
        tokens=torch.zeros(0, dtype=torch.int64),
        weights=torch.zeros(0),
        offsets=torch.zeros(2, dtype=torch.int64),
        numeric=torch.zeros(1, 0),
    )
    users = Users(
        items=torch.from_numpy(rng.integers(0, length, (1, length))),
        tokens=torch.from_numpy(rng.integers(0, 3, (1, length, 4)) + 3 * np.arange(4)),
        age=torch.from_numpy(np.sort(rng.random((1, length)))[:, ::-1].astype(np.float32) * 9),
        lengths=torch.tensor([length]),
        features=empty,
        context=torch.zeros(1, 0, dtype=torch.int64),
        keys=ItemKeys(
            keys=torch.from_numpy(keys.reshape(-1)),
            shares=torch.ones(keys.size),
            offsets=torch.arange(length + 1) * (FEATURES + 1),
        ),
    )
    content = Features(
        tokens=torch.from_numpy(own.reshape(-1)),
        weights=torch.ones(own.size),
        offsets=torch.arange(length + 1) * FEATURES,
        numeric=torch.zeros(length, 0),
    )
    items = Items(ids=torch.arange(length), content=content)
    works: dict[str, Callable[[], object]] = {}
    for name, anchors, size in (
        ("none", (), 0),
        ("item", ("item",), 0),
        ("features", None, 0),
        ("profile", (), KEY),
    ):
        torch.manual_seed(0)
        config = ModelConfig(model="lime-mha", anchors=anchors, profile=size)
        ranker = build(shape, config).eval()
        ranker.choose_user_stage("native")
        with torch.inference_mode():
            vectors = ranker.item_vectors(items)
        works[name] = partial(ranker.encode_users, users, vectors)
    with torch.inference_mode():
        taken = in_turn(works, repeats)
    report({"what": "user stage", "model": "lime-mha", "history": length}, taken, show)


def report(case: dict[str, Any], taken: dict[str, list[float]], show: bool) -> None:
    """A row for each kind of anchored links, and for profiles, as a ratio to none."""
    for name in sorted(taken.keys() - {"none"}):
        ratios = [a / b for a, b in zip(taken[name], taken["none"], strict=True)]
        metrics = {
            "us_p50": 1e6 * statistics.median(taken[name]),
            "without_us_p50": 1e6 * statistics.median(taken["none"]),
            "ratio_p50": statistics.median(ratios),
            "ratio_of_minima": min(taken[name]) / min(taken["none"]),
        }
        print({**case, "anchors": name}, {k: round(v, 3) for k, v in metrics.items()}, flush=True)
        if not show:
            quarters = statistics.quantiles(ratios, n=4)
            spread = {"ratio_p50": [quarters[0], quarters[2]]}
            write_row(
                "anchored",
                {**case, "anchors": name},
                metrics,
                repeats=len(ratios),
                spread=spread,
            )


if __name__ == "__main__":
    main()
