"""Latency of whole requests: user stage, scoring, top 100, for models side by side.

    python -m benchmarks.latency                    # resumable; finished rows are kept
    python -m benchmarks.latency --threads 2
    python -m benchmarks.latency --device cuda      # the same on a GPU, by events and graphs
    python -m benchmarks.latency --quick            # see every part in a minute, nothing is kept

A request is a user's history of N events and M candidates, rows of a catalogue in any order. What
each model can know of an item is computed beforehand (LIME: the index; MHA: queries; two-tower:
vectors; HSTU: what enters the blocks; all: the item's part of the head) and gathered or read within
the request. With ``state: fresh`` the user's history is encoded within the request; with
``state: kept`` what follows from it is cached: keys and values of every event (MHA), those of every
block (HSTU), one vector (two-tower), the links (LIME).

On a processor LIME is scored by the native scorer over an index built in the usual way, the others
by their own ``score`` without gradients; on a GPU all are. Weights, histories and candidates are
random: speed does not depend on them. Every model is compared with its reference before it is
timed, and the study ends there if one is off.

At one point of the grid all models take turns, in bursts, so that a ratio compares times of the
same minute; a time is the median over all calls, the spread is that of the bursts' medians.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.index import catalogue, random_run
from benchmarks.rows import rows, write_row
from limerank.data.batch import Features, Users
from limerank.data.dataset import Dataset
from limerank.index import Index
from limerank.index.building import build_index
from limerank.kernels.personal import Personaliser
from limerank.models.config import ModelConfig
from limerank.models.lime import Lime
from limerank.models.ranker import gather
from limerank.ranking.scorer import NativeScorer
from limerank.runs.folder import Run, load_run

MODELS = ("two-tower", "lime-mha", "lime-xor", "mha", "hstu")
LIMES = ("lime-mha", "lime-xor")
FAISS = "faiss-flat"
"""The pure scan: no user stage, no head, the best items by inner product."""
FULL_CATALOGUE = ("two-tower", *LIMES, FAISS)
"""Models that score every item of a large catalogue for one request."""
K = 100
BURSTS = 5
BURST_SECONDS = 0.05
LONG_SECONDS = 8.0
"""A model that has taken so long at one point takes no more than three turns there."""


@dataclass(frozen=True)
class Case:
    """What names a row."""

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
    """Where to measure. Everything but the grid goes through the point ``N``, ``M``."""

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
    """The cases of each point, which are measured in turns."""

    def everyone(**of: Any) -> list[Case]:
        return [Case(model, **of) for model in MODELS]

    faiss = [FAISS]
    for n in plan.histories:
        for m in plan.candidates:
            cases = everyone(N=n, M=m)
            if n == plan.N or m == plan.M:
                cases += everyone(N=n, M=m, state="kept")
            if n == plan.N:
                cases += [Case(name, N=None, M=m, links=None, state="kept") for name in faiss]
            yield cases
    for d in plan.widths:
        of = {"N": plan.N, "M": plan.M, "d": d}
        yield everyone(**of) + everyone(**of, state="kept")
    for count in plan.links:
        yield [
            Case(model, N=plan.N, M=plan.M, links=count, state=state)
            for model in LIMES
            for state in ("fresh", "kept")
        ]
    for n in plan.batch_histories:
        for m in plan.batch_candidates:
            yield everyone(N=n, M=m, batch=plan.batch)
    cases = [
        Case(model, N=None if model == FAISS else plan.N, M=plan.catalogue, state=state)
        for model in FULL_CATALOGUE
        for state in ("fresh", "kept")
        if (model, state) != (FAISS, "fresh")
    ]
    yield [replace(case, links=None) if case.model == FAISS else case for case in cases]


# What is measured


class Store:
    """Catalogues, and models with random weights and the indexes that they build of them."""

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
        random_run(path, self.dataset(items), ModelConfig(model=model, width=d, links=links))
        return load_run(path)

    def _index(self, model: str, items: int, d: int, links: int) -> Index:
        run = self.run(model, items, d, links)
        path = run.path.with_name(f"index-{run.path.name}")
        build_index(run, path, data=self.dataset(items))
        return Index.open(path, run.fingerprint)

    @torch.inference_mode()
    def _terms(self, model: str, items: int, d: int, links: int, device: str) -> Any:
        """What the model knows of every item, before any request."""
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
    """Requests with full histories; what their events say is taken from the log's."""
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
    """What a server does for one request, or a batch of them, of this case."""
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
    """The best K of M vectors by inner product; they lie side by side."""
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


# Time


Times = list[tuple[float, float]]
"""Milliseconds of the user stage and of scoring, call by call."""


def processor_burst(of: Request, state: Any, seconds: float) -> Times:
    """Calls of about so many seconds together, at least one; with ``state`` the scoring alone.
    Where there is time for more than one, the first only warms the caches."""
    times: Times = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        found = of.encode() if state is None else state
        encoded = time.perf_counter()
        of.score(found)
        done = time.perf_counter()
        times.append((1e3 * (encoded - start), 1e3 * (done - encoded)))
        if done > end:
            return times[1:] or times


class Graphs:
    """Both stages of a request as CUDA graphs: shapes are static, so that a replay costs the GPU's
    own time and no launches from Python."""

    def __init__(self, of: Request, state: Any) -> None:
        self._keeps = state is not None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                of.score(of.encode() if state is None else state)
        torch.cuda.current_stream().wait_stream(stream)
        self._user, self._score = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        if not self._keeps:
            with torch.cuda.graph(self._user):
                state = of.encode()
        with torch.cuda.graph(self._score):
            self._found = of.score(state)
        self._state = state

    def burst(self, seconds: float) -> Times:
        times: Times = []
        end = time.perf_counter() + seconds
        while True:
            start, encoded, done = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            start.record()
            if not self._keeps:
                self._user.replay()
            encoded.record()
            self._score.replay()
            done.record()
            done.synchronize()
            times.append((start.elapsed_time(encoded), encoded.elapsed_time(done)))
            if time.perf_counter() > end:
                return times[1:] or times


@torch.inference_mode()
def take_turns(
    requests: dict[Case, Request], seconds: float
) -> Iterator[tuple[Case, dict[str, float], list[float], int]]:
    """Median times of each case, the least and most of its bursts' medians, and its calls."""
    bursts: dict[Case, list[Times]] = {case: [] for case in requests}
    spent = dict.fromkeys(requests, 0.0)
    timers: dict[Case, Callable[[], Times]] = {}
    for case, of in requests.items():
        state = of.encode() if case.state.startswith("kept") else None
        if case.device == "cuda":
            timers[case] = functools.partial(Graphs(of, state).burst, seconds)
        else:
            timers[case] = functools.partial(processor_burst, of, state, seconds)
    for turn in range(BURSTS):
        for case, timer in timers.items():
            if turn >= 3 and spent[case] > LONG_SECONDS:
                continue
            started = time.perf_counter()
            bursts[case].append(timer())
            spent[case] += time.perf_counter() - started
    for case, found in bursts.items():
        calls = [call for burst in found for call in burst]
        user, score, total = (
            statistics.median(times)
            for times in ((u for u, _ in calls), (s for _, s in calls), (u + s for u, s in calls))
        )
        medians = [statistics.median(u + s for u, s in burst) for burst in found]
        if case.state.startswith("kept"):
            user = 0.0
        times = {"user_ms_p50": user, "score_ms_p50": score, "ms_p50": total}
        yield case, times, [min(medians), max(medians)], len(calls)


# Verification


def verify(store: Store, items: int, device: str, models: Iterable[str]) -> None:
    """Every model as it is timed against its reference, on requests with histories of all kinds.

    MHA and HSTU: the definitions in tests/references.py, written one candidate at a time. All: the
    differentiable form that training uses. LIME's native scorer: the model, within its bound.

    Raises:
        AssertionError: one is off; nothing is measured then.
    """
    from tests.references import REFERENCES, logits

    dataset = store.dataset(items)
    lengths = dataset.requests["history_end"] - dataset.requests["history_start"]
    some = [int(np.flatnonzero(lengths == length)[0]) for length in (0, 1, 5, 11)]
    ragged = np.sort(np.array([*some, int(np.argmax(lengths))]))
    for model in models:
        ranker = store.run(model, items, 64, 32).ranker.to(device)
        for chosen in (np.sort(np.array(some)), ragged):
            padded = dataset.batch(chosen).to(device)
            trained = ranker(padded).detach()[padded.real]
            with torch.inference_mode():
                served = ranker(padded)[padded.real]
            torch.testing.assert_close(served, trained, atol=1e-4, rtol=1e-3, msg=_about(model))
            if model in REFERENCES and len(chosen) == len(some) and device == "cpu":
                slow = torch.stack(logits(ranker, padded)).detach()
                torch.testing.assert_close(served, slow, atol=1e-4, rtol=1e-3, msg=_about(model))
        if model in LIMES and device == "cpu":
            verify_native(store, model, items)
    print(f"verified: {', '.join(models)}", flush=True)


@torch.inference_mode()
def verify_native(store: Store, model: str, items: int) -> None:
    """The native scorer over the index within its stated bound of the model."""
    run, index = store.run(model, items, 64, 32), store.index(model, items, 64, 32)
    vectors = torch.from_numpy(np.array(index.vectors[:64]))
    state = run.ranker.encode_users(random_users(store.dataset(items), 64, 2), vectors)
    scorer, rows_m = NativeScorer(run.ranker, index), np.arange(0, items, 37)
    terms = run.ranker.encode_items(torch.from_numpy(np.array(index.vectors[rows_m])))
    off = np.abs(scorer.scores(state, rows_m) - run.ranker.score(state, terms).numpy())
    assert (off <= scorer.logit_bound(state, rows_m) + 1e-4).all(), f"{model}: beyond its bound"
    best = scorer.top(state, 5, rows=rows_m)
    order = np.sort(scorer.scores(state, rows_m)[..., 0], axis=1)[:, ::-1]
    assert np.array_equal(best.values, order[:, :5]), f"{model}: not the best of all"


def _about(model: str) -> Callable[[str], str]:
    return lambda text: f"{model} is not its reference: {text}"


# The study


def measure(
    plan: Plan,
    device: str,
    threads: int | None,
    seconds: float,
    longest: float,
    compiled: bool = False,
) -> None:
    """Everything that has no row yet.

    Args:
        seconds: of each burst.
        longest: a case whose call is expected to take more seconds gets a row that says so.
        compiled: whether LIME's user stages are measured compiled, too.
    """
    held = max(plan.candidates)
    known = {tuple(row["case"].items()): row["metrics"] for row in rows("latency")}
    faiss = device == "cpu" and has_faiss()
    if device == "cpu" and not faiss:
        print("faiss is not installed: no rows of the pure scan (pip install faiss-cpu)")
    with tempfile.TemporaryDirectory(prefix="limerank-latency-") as folder:
        store = Store(Path(folder))
        verify(store, held, device, MODELS)
        for found in points(plan):
            cases = [replace(case, device=device, threads=threads) for case in found]
            waiting = [
                case
                for case in cases
                if tuple(case.row().items()) not in known and (faiss or case.model != FAISS)
            ]
            late = {case: s for case in waiting if (s := expected(case, known)) > longest}
            for case, guess in late.items():
                keep(known, case, {"expected_ms": 1e3 * guess})
            items = plan.catalogue if plan.catalogue == cases[0].M else held
            requests = {case: request(store, case, items) for case in waiting if case not in late}
            for case, times, spread, calls in take_turns(requests, seconds):
                keep(known, case, times, repeats=calls, spread={"ms_p50": spread})
        user_stages(store, plan, held, device, threads, seconds, known, compiled)


def keep(known: dict[Any, Any], case: Case, metrics: dict[str, float], **more: Any) -> None:
    gpu = torch.cuda.get_device_name() if case.device == "cuda" else None
    write_row("latency", case.row(), metrics, gpu=gpu, **more)
    known[tuple(case.row().items())] = metrics
    at = f"{case.model:10} N={case.N} M={case.M} d={case.d} l={case.row()['links']}"
    print(f"{at} batch={case.batch} {case.state}: {metrics}", flush=True)


def expected(case: Case, known: dict[Any, dict[str, float]]) -> float:
    """Seconds that one call will take, from the row of half the history or of half the candidates:
    four times that at most, and twice. 0 where there is neither."""
    guesses = [0.0]
    for name, times in (("N", 4), ("M", 2)):
        size = getattr(case, name)
        if size is not None:
            row = known.get(tuple(replace(case, **{name: size // 2}).row().items()), {})
            guesses.append(times * row.get("ms_p50", row.get("expected_ms", 0.0)) / 1e3)
    known_guesses = [guess for guess in guesses if guess]
    return min(known_guesses, default=0.0)


@torch.inference_mode()
def user_stages(
    store: Store,
    plan: Plan,
    items: int,
    device: str,
    threads: int | None,
    seconds: float,
    known: dict[Any, Any],
    compiled: bool,
) -> None:
    """Time of LIME's user stages alone, and the share of what a large product of matrices, in turns
    with them, makes of the device. Beside it, on a GPU, other forms of the same: in bfloat16 by
    autocast, and compiled where that is asked for."""
    square = torch.randn(1024, 1024, device=device)
    peak = Case("product", None, None, device=device, state="kept")
    for d in plan.stage_widths:
        cases: dict[Case, dict[str, Case]] = {}
        requests = {peak: Request(tuple, lambda _: square @ square)}
        for n in plan.stage_histories:
            for model in LIMES:
                case = Case(model, n, None, d, device=device, threads=threads)
                if tuple(case.row().items()) in known:
                    continue
                encode = request(store, replace(case, M=1), items).encode
                forms = {"": encode}
                if device == "cuda":
                    forms["bf16_"] = in_bfloat16(encode, device)
                if device == "cuda" and compiled:
                    forms["compiled_"] = torch.compile(encode, dynamic=False)
                    forms["compiled_"]()
                cases[case] = {form: replace(case, state=f"kept {form}") for form in forms}
                for form, work in forms.items():
                    # The work stands in the place of scoring: what is kept is nothing.
                    requests[cases[case][form]] = Request(tuple, functools.partial(_alone, work))
        if not cases:
            continue
        found = {
            case: (times["ms_p50"], spread, calls)
            for case, times, spread, calls in take_turns(requests, seconds)
        }
        fastest = 2 * 1024**3 / found[peak][0] / 1e6
        for case, of_forms in cases.items():
            times = {f"{form}user_ms_p50": found[of][0] for form, of in of_forms.items()}
            ms, spread, calls = found[of_forms[""]]
            ranker = store.run(case.model, items, d, case.links or 32).ranker
            assert isinstance(ranker, Lime)
            stage = Personaliser(ranker.config.heads, ranker.stage())
            done = 2 * stage.multiply_adds(case.N or 0)
            metrics = {
                **times,
                "gflops": done / ms / 1e6,
                "peak_gflops": fastest,
                "share_of_peak": done / ms / 1e6 / fastest,
            }
            keep(known, case, metrics, repeats=calls, spread={"user_ms_p50": spread})


def _alone(work: Callable[[], Any], _: Any) -> Any:
    return work()


def in_bfloat16(work: Callable[[], Any], device: str) -> Callable[[], Any]:
    def of_bfloat16() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, cache_enabled=device == "cpu"):
            return work()

    return of_bfloat16


def quick(more: Sequence[str]) -> None:
    """Every part with small sizes, in a folder that does not stay."""
    with tempfile.TemporaryDirectory(prefix="limerank-quick-") as folder:
        again = [sys.executable, "-m", "benchmarks.latency", "--plan", "quick", *more]
        where = {**os.environ, "BENCH_RESULTS": folder}
        subprocess.run([*again, "--seconds", "0.01"], check=True, env=where)
        page = "from benchmarks import latency_page, rows; "
        page += "print(latency_page.latency(list(rows.rows('latency')), None))"
        subprocess.run([sys.executable, "-c", page], check=True, env=where)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plan", choices=tuple(PLANS), default="full")
    parser.add_argument("--seconds", type=float, default=BURST_SECONDS, help="of each burst")
    parser.add_argument("--longest", type=float, default=60.0, help="seconds of a call; else left")
    parser.add_argument(
        "--compile", action="store_true", help="on a GPU: user stages compiled, too (slow)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is kept")
    given = parser.parse_args(arguments)
    if given.compile and given.device != "cuda":
        parser.error("--compile is for --device cuda: on a processor the user stage is C++")
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU here (torch.cuda.is_available() is False)")
    if given.quick:
        quick(["--device", given.device, "--threads", str(given.threads)])
        return
    before = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    try:
        threads = given.threads if given.device == "cpu" else None
        measure(
            PLANS[given.plan],
            given.device,
            threads,
            given.seconds,
            given.longest,
            given.compile,
        )
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
