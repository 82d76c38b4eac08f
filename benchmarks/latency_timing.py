"""Times of requests: bursts of calls in turns, on a processor, or on a GPU by events and graphs."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.latency_cases import Case
from benchmarks.latency_requests import Request

BURSTS = 5
LONG_SECONDS = 8.0
"""A model that has taken this long at one point gets three turns there."""
Times = list[tuple[float, float]]
"""Milliseconds of the user stage and of scoring of each call."""


def processor_burst(of: Request, state: Any, seconds: float) -> Times:
    """Calls for about this many seconds, at least one; with ``state`` only the scoring. The first
    call warms the caches and is dropped, unless it is the only one."""
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
    """Both stages of a request as CUDA graphs: shapes are static, so a replay takes the GPU's time
    without launches from Python."""

    def __init__(self, of: Request, state: Any) -> None:
        self._cached = state is not None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                of.score(of.encode() if state is None else state)
        torch.cuda.current_stream().wait_stream(stream)
        self._user, self._score = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        if not self._cached:
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
            if not self._cached:
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
    """Median times of each case, the range of its bursts' medians, and its number of calls."""
    bursts: dict[Case, list[Times]] = {case: [] for case in requests}
    spent = dict.fromkeys(requests, 0.0)
    timers: dict[Case, Callable[[], Times]] = {}
    for case, of in requests.items():
        state = of.encode() if case.state.startswith("cached") else None
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
        if case.state.startswith("cached"):
            user = 0.0
        times = {"user_ms_p50": user, "score_ms_p50": score, "ms_p50": total}
        yield case, times, [min(medians), max(medians)], len(calls)
