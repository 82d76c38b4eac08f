"""Workers of a Ray cluster, which needs the extra ``limerank[ray]``."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import threading
from collections.abc import Mapping
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from limerank.errors import LimerankError, SpecError
from limerank.parts import Part

log = logging.getLogger("limerank.cluster")
AHEAD = 2
"""Tasks that are begun for each core of the cluster: one waits while another runs."""
ROOM_SECONDS = 300.0
"""In which the cluster has room for all processes of a training and has started them, at most."""
OUTPUT_SECONDS = 10.0
"""To read the output of process 0, at most: a machine that is lost does not answer."""
MOST_OUTPUT = 1 << 16
"""Characters of the output of process 0 that are stored until they are read."""


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
        self._ray, self._own = _connected()
        ray = self._ray
        self._job, self._parts = dict(job), parts
        self._running: dict[Any, int] = {}
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


class RayTraining:
    """Processes of a training, each an actor of Ray with cores of its own.

    Ray starts and watches them, on the cluster that :class:`RayWorkers` describes. What they
    exchange in a step goes through torch.distributed, as under torchrun: process 0 gives the
    address at which they find each other.

    Args:
        size: how many there are.
        threads: cores of each.
        gpus: GPUs of each, 0 or 1.

    Raises:
        SpecError: Ray is not installed, or the cluster has no room for them within
            :data:`ROOM_SECONDS`.
    """

    def __init__(self, size: int, threads: int = 1, gpus: int = 0) -> None:
        self.size, self.threads, self.gpus = size, threads, gpus
        ray, own = self._ray, self._own = _connected()
        try:
            room = ray.cluster_resources()
            if own and not os.environ.get("RAY_ADDRESS"):  # a machine does not grow
                self._require(room)
            bundle = {"CPU": threads, **({"GPU": gpus} if gpus else {})}
            group = import_module("ray.util.placement_group")
            self._group = group.placement_group([bundle] * size, strategy="SPREAD")
            if not self._group.wait(ROOM_SECONDS):
                raise self._no_room(ray.cluster_resources())
        except BaseException:
            self._close()
            raise

    def begin(self, job: Mapping[str, Any]) -> RayProcesses:
        """Start the processes of an attempt.

        Args:
            job: arguments of :func:`~limerank.training.trainer.train`, and
                ``collective_seconds``.
        """
        strategies = import_module("ray.util.scheduling_strategies")
        actors = []
        for rank in range(self.size):
            strategy = strategies.PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=rank
            )
            options = {"num_cpus": self.threads, "num_gpus": self.gpus, "max_restarts": 0}
            options |= {"max_concurrency": 2, "scheduling_strategy": strategy}
            actors.append(self._ray.remote(**options)(_Process).remote())
        return RayProcesses(self._ray, actors, job, self.threads)

    def _require(self, room: Mapping[str, float]) -> None:
        if room.get("CPU", 0) < self.size * self.threads or room.get("GPU", 0) < (
            self.size * self.gpus
        ):
            raise self._no_room(room)

    def _no_room(self, room: Mapping[str, float]) -> SpecError:
        gpus = f" and {self.gpus} GPU" if self.gpus else ""
        return SpecError(
            f"{self.size} workers of {self.threads} cores{gpus} do not fit into the Ray cluster, "
            f"which has {room.get('CPU', 0):g} cores and {room.get('GPU', 0):g} GPUs in all; give "
            "fewer (--workers N:THREADS), or add machines (RAY_ADDRESS names the cluster)"
        )

    def _close(self) -> None:
        if self._own:
            self._ray.shutdown()
        elif hasattr(self, "_group"):
            import_module("ray.util.placement_group").remove_placement_group(self._group)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()


class RayProcesses:
    """The processes of one attempt; see :class:`~limerank.cluster.training.Processes`."""

    def __init__(self, ray: Any, actors: list[Any], job: Mapping[str, Any], threads: int) -> None:
        self._ray, self._actors = ray, actors
        self._running: dict[Any, int] = {}
        self._failed: list[tuple[int, str | Exception]] = []
        try:
            # All have loaded torch before the first one waits for the others.
            addresses = ray.get([one.ready.remote() for one in actors], timeout=ROOM_SECONDS)
        except ray.exceptions.RayError as error:
            self._failed = [(rank, error) for rank in range(len(actors))]
            return
        for rank, actor in enumerate(actors):
            task = actor.train.remote(dict(job), rank, len(actors), *addresses[0], threads)
            self._running[task] = rank

    def ended(self, seconds: float) -> tuple[int, str | Exception] | None:
        if self._failed:
            return self._failed.pop()
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if not done:
            return None
        rank = self._running.pop(done[0])
        try:
            return rank, str(self._ray.get(done[0]))
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, LimerankError):
                return rank, cause
            log.warning("process %d has failed: %s", rank, error)  # with its trace
            return rank, cause if isinstance(cause, Exception) else error
        except self._ray.exceptions.RayError as error:
            return rank, error  # the process or its machine ended

    def output(self) -> str:
        try:
            return str(self._ray.get(self._actors[0].output.remote(), timeout=OUTPUT_SECONDS))
        except self._ray.exceptions.RayError:
            return ""  # its task says why

    def stop(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)


class _Process:
    """A process of a training, in an actor: one call trains, others read its output."""

    def __init__(self) -> None:
        self._printed = Printed()

    def ready(self) -> tuple[str, int]:
        """An address of this machine that is free, after everything is loaded."""
        import_module("limerank.training.trainer")
        host = str(import_module("ray.util").get_node_ip_address())
        with socket.socket() as free:
            free.bind((host, 0))
            return host, int(free.getsockname()[1])

    def output(self) -> str:
        return self._printed.taken()

    def train(
        self, job: Mapping[str, Any], rank: int, size: int, host: str, port: int, threads: int
    ) -> str:
        import torch

        from limerank.training.distributed.group import own_device, processes
        from limerank.training.trainer import train

        given = dict(job)
        device, seconds = given.pop("device"), given.pop("collective_seconds")
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": host}
        # Each sees its own GPU alone, as number 0.
        os.environ |= {"MASTER_PORT": str(port), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        torch.set_num_threads(threads)
        given["quiet"] = rank > 0 or given["quiet"]
        with contextlib.redirect_stderr(self._printed), processes(device, seconds) as world:
            result = train(**given, device=own_device(device), world=world)
            return result.text() if rank == 0 else ""


class Printed(io.TextIOBase):
    """A stream whose text another thread takes; of more than :data:`MOST_OUTPUT` characters that
    nobody took, the newest."""

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._text = threading.Lock(), ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            self._text = (self._text + text)[-MOST_OUTPUT:]
        return len(text)

    def taken(self) -> str:
        """What was written since the last call."""
        with self._lock:
            text, self._text = self._text, ""
        return text


def _connected() -> tuple[Any, bool]:
    """Ray, and whether this process has begun to use it here: then it ends that as well.

    Raises:
        SpecError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise SpecError('Ray is not installed: pip install "limerank[ray]"') from None
    own = not ray.is_initialized()
    if own:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not os.environ.get("RAY_ADDRESS"):
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(**options)
    return ray, own


def _compute(job: Mapping[str, Any], number: int, of: int) -> None:
    """A task, in a process of a worker."""
    import torch

    from limerank.cluster.work import compute

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    compute(job, Part(number, of))
