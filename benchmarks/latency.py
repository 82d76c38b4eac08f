"""Latency of full requests: user stage, scoring, top 100, for models side by side.

    python -m benchmarks.latency                    # resumable: finished rows are skipped
    python -m benchmarks.latency --threads 2
    python -m benchmarks.latency --device cuda      # on a GPU: CUDA events and graphs
    python -m benchmarks.latency --quick            # every part in a minute; writes no rows

A request has a history of N events and M candidates, which are rows of a catalogue in any order.
Whatever a model can compute for an item alone is computed before the request (LIME: the index; MHA:
queries; two-tower: vectors; HSTU: the inputs of its blocks; all: the item's part of the head), and
gathered within it. With ``state: fresh`` the request encodes the user's history. With ``state:
cached`` the encoded history is cached: keys and values of every event (MHA), those of every block
(HSTU), one vector (two-tower), the links (LIME).

On a CPU the native scorer ranks LIME's candidates over an ordinary index, and the other models run
their own ``score`` without gradients; on a GPU all models do. Weights, histories and candidates are
random: speed does not depend on them. Every model is compared with its reference before it is
timed; the study stops when one deviates.

At each point of the grid the models take turns, in bursts, so that a ratio compares times of the
same minute. A time is the median over all calls; its spread is that of the bursts' medians.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.latency_cases import FAISS, LIMES, MODELS, PLANS, Case, Plan, points
from benchmarks.latency_requests import Request, Store, has_faiss, random_users, request
from benchmarks.latency_timing import take_turns
from benchmarks.rows import rows, write_row
from limerank.kernels.personal import Personaliser
from limerank.models.lime import Lime
from limerank.ranking.scorer import NativeScorer

BURST_SECONDS = 0.05


# Verification


def verify(store: Store, items: int, device: str, models: Iterable[str]) -> None:
    """Compare every model, as it is timed, with its reference, on histories of several lengths.

    MHA and HSTU are compared with the definitions in tests/references.py, which score one candidate
    at a time; all models with the differentiable form that training uses; LIME's native scorer with
    the model, within the scorer's error bound.

    Raises:
        AssertionError: a model deviates; nothing is measured then.
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
    """Compare the native scorer with the model, within the scorer's error bound."""
    run, index = store.run(model, items, 64, 32), store.index(model, items, 64, 32)
    vectors = torch.from_numpy(np.array(index.vectors[:64]))
    state = run.ranker.encode_users(random_users(store.dataset(items), 64, 2), vectors)
    scorer, rows_m = NativeScorer(run.ranker, index), np.arange(0, items, 37)
    terms = run.ranker.encode_items(torch.from_numpy(np.array(index.vectors[rows_m])))
    off = np.abs(scorer.scores(state, rows_m) - run.ranker.score(state, terms).numpy())
    assert (off <= scorer.logit_bound(state, rows_m) + 1e-4).all(), (
        f"{model}: outside its error bound"
    )
    best = scorer.top(state, 5, rows=rows_m)
    order = np.sort(scorer.scores(state, rows_m)[..., 0], axis=1)[:, ::-1]
    assert np.array_equal(best.values, order[:, :5]), (
        f"{model}: the list does not hold the best items"
    )


def _about(model: str) -> Callable[[str], str]:
    return lambda text: f"{model} deviates from its reference: {text}"


# The study


def measure(
    plan: Plan,
    device: str,
    threads: int | None,
    seconds: float,
    longest: float,
    compiled: bool = False,
) -> None:
    """Measure every case that has no row yet.

    Args:
        seconds: of each burst.
        longest: a case whose call is expected to take longer gets a row without a time.
        compiled: whether LIME's user stages are also measured with torch.compile.
    """
    held = max(plan.candidates)
    known = {tuple(row["case"].items()): row["metrics"] for row in rows("latency")}
    faiss = device == "cpu" and has_faiss()
    if device == "cpu" and not faiss:
        print("faiss is not installed: rows of the pure scan are skipped (pip install faiss-cpu)")
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
                record(known, case, {"expected_ms": 1e3 * guess})
            items = plan.catalogue if plan.catalogue == cases[0].M else held
            requests = {case: request(store, case, items) for case in waiting if case not in late}
            for case, times, spread, calls in take_turns(requests, seconds):
                record(known, case, times, repeats=calls, spread={"ms_p50": spread})
        user_stages(store, plan, held, device, threads, seconds, known, compiled)


def record(known: dict[Any, Any], case: Case, metrics: dict[str, float], **more: Any) -> None:
    gpu = torch.cuda.get_device_name() if case.device == "cuda" else None
    write_row("latency", case.row(), metrics, gpu=gpu, **more)
    known[tuple(case.row().items())] = metrics
    at = f"{case.model:10} N={case.N} M={case.M} d={case.d} l={case.row()['links']}"
    print(f"{at} batch={case.batch} {case.state}: {metrics}", flush=True)


def expected(case: Case, known: dict[Any, dict[str, float]]) -> float:
    """Upper bound on the seconds of one call: four times those with half the history, or twice
    those with half the candidates. 0 where neither was measured."""
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
    """Time of LIME's user stages alone, and their share of the throughput of a large matrix product
    that takes turns with them. On a GPU also in bfloat16 by autocast and, on request, compiled."""
    square = torch.randn(1024, 1024, device=device)
    peak = Case("product", None, None, device=device, state="cached")
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
                cases[case] = {form: replace(case, state=f"cached {form}") for form in forms}
                for form, work in forms.items():
                    # The user stage is timed as if it were the scoring; no state is cached.
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
            record(known, case, metrics, repeats=calls, spread={"user_ms_p50": spread})


def _alone(work: Callable[[], Any], _: Any) -> Any:
    return work()


def in_bfloat16(work: Callable[[], Any], device: str) -> Callable[[], Any]:
    def of_bfloat16() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, cache_enabled=device == "cpu"):
            return work()

    return of_bfloat16


def quick(more: Sequence[str]) -> None:
    """Every part with small sizes, in a temporary folder."""
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
    parser.add_argument(
        "--longest", type=float, default=60.0, help="skip cases whose call would take more seconds"
    )
    parser.add_argument(
        "--compile", action="store_true", help="on a GPU: also measure compiled user stages (slow)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; writes no rows")
    given = parser.parse_args(arguments)
    if given.compile and given.device != "cuda":
        parser.error("--compile is for --device cuda: on a CPU the user stage is C++")
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
