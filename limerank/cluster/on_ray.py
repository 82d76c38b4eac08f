"""Workers of a Ray cluster, which needs the extra ``limerank[ray]``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from limerank.errors import LimerankError, SpecError
from limerank.parts import Part

AHEAD = 2
"""Tasks that are begun for each core of the cluster: one waits while another runs."""


class RayWorkers:
    """Tasks of Ray, one core each.

    They run on the cluster that RAY_ADDRESS names, or on one that is started for the job on this
    machine. All of its machines need limerank, and see the files under the same paths.

    Args:
        job: what to compute.
        parts: of the job.
        threads: cores of a task.

    Raises:
        SpecError: Ray is not installed.
    """

    def __init__(self, job: Mapping[str, Any], parts: int, threads: int = 1) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise SpecError('Ray is not installed: pip install "limerank[ray]"') from None
        self._ray, self._job, self._parts = ray, dict(job), parts
        self._running: dict[Any, int] = {}
        self._own = not ray.is_initialized()
        if self._own:
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if not os.environ.get("RAY_ADDRESS"):
                options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            ray.init(**options)
        cores = int(ray.cluster_resources().get("CPU", 1))
        self.most = AHEAD * max(1, cores // threads)
        # The job counts attempts itself: Ray would repeat a task that kills its worker forever.
        self._task = ray.remote(num_cpus=threads, max_retries=0, retry_exceptions=False)(_compute)

    def begin(self, number: int) -> None:
        task = self._task.remote(self._job, number, self._parts)
        self._running[task] = number

    def ended(self) -> tuple[int, Exception | None]:
        (task,), _ = self._ray.wait(list(self._running), num_returns=1)
        number = self._running.pop(task)
        try:
            self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            return number, cause if isinstance(cause, LimerankError) else error
        except self._ray.exceptions.RayError as error:
            return number, error  # the worker or its machine ended
        return number, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()
        if self._own:
            self._ray.shutdown()


def _compute(job: Mapping[str, Any], number: int, of: int) -> None:
    """A task, in a process of a worker."""
    import torch

    from limerank.cluster.work import compute

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    compute(job, Part(number, of))
