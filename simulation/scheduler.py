"""Tasks that take turns in one thread: which one continues is drawn from a seed.

A :class:`Task` is a function in a greenlet of its own. It runs until it pauses: at a round trip to
a store, at a lock that another task holds, or where it sleeps. Then the scheduler draws the task
that continues. Nothing else runs meanwhile, so that a history of operations always takes the same
course. Time passes only where an operation moves the clock, and where all tasks sleep.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

FOREVER = float("inf")
MOST_STEPS = 20_000
"""Turns of one history, at most: with more, it does not end."""


class StuckError(Exception):
    """All tasks wait for each other, or they never end."""


class Task:
    """A function that takes turns.

    Attributes:
        name: for the protocol of a failure.
        server: of the server whose process it runs in; None: of no server.
        result, error: how it ended; both None while it runs, or where it was killed.
        effect: changes the plain model when the store makes the change that the task is waiting
            for; see :mod:`simulation.stores`.
        fault: draws what goes wrong with its next round trip.
    """

    def __init__(self, name: str, work: Callable[[], Any], server: Any) -> None:
        self.name, self.server = name, server
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.ready: Callable[[], bool] = lambda: True
        self.until = FOREVER
        self.effect: Callable[[], object] | None = None
        self.fault: Callable[[], str] = lambda: ""
        self._work = work
        self.greenlet = greenlet(self._run)

    def _run(self) -> None:
        try:
            self.result = self._work()
        except GreenletExit:
            pass  # killed
        except Exception as error:  # noqa: BLE001  (what waits for the task looks at it)
            self.error = error
        self.done = True


class Scheduler:
    """Runs tasks.

    Args:
        draws: decides which task continues.
        milliseconds: the time at the start, in milliseconds since 1970.

    Attributes:
        step: turns so far; orders everything that happens.
        now: the present time, in milliseconds since 1970.
        times: every value of ``now`` so far, with its first step.
    """

    def __init__(self, draws: random.Random, milliseconds: int) -> None:
        self.draws, self.step = draws, 0
        self.now = milliseconds
        self.times = [(0, milliseconds)]
        self.tasks: list[Task] = []
        self._hub = getcurrent()

    @property
    def current(self) -> Task | None:
        """The task that runs; None outside of all."""
        now = getcurrent()
        return next((task for task in self.tasks if task.greenlet is now), None)

    def spawn(self, name: str, work: Callable[[], Any], server: Any = None) -> Task:
        """Add a task, which begins with its first turn."""
        task = Task(name, work, server)
        task.greenlet.parent = self._hub
        self.tasks.append(task)
        return task

    def advance(self, milliseconds: int) -> None:
        """Move the clock."""
        self.now += milliseconds
        self.times.append((self.step, self.now))

    def times_between(self, first: int, last: int) -> list[int]:
        """Every time that the clock showed from one step to another."""
        begun = [time for step, time in self.times if step <= first][-1:]
        return begun + [time for step, time in self.times if first < step <= last]

    # Called by tasks

    def pause(self) -> None:
        """Let others continue."""
        self.wait(lambda: True)

    def wait(self, ready: Callable[[], bool], seconds: float = FOREVER) -> bool:
        """Wait for a condition, at most so many seconds; returns whether it holds."""
        task = self.current
        if task is None:  # while a history is being set up
            if not ready():
                raise StuckError("nobody else runs while a history is being set up")
            return True
        task.ready, task.until = ready, self.now + 1000 * seconds
        self._hub.switch()
        return ready()

    def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved."""
        self.wait(lambda: False, seconds)

    # Called outside of tasks

    def run(self, turns: int | None = None) -> None:
        """Give turns to tasks, so many or until all of them have ended.

        Raises:
            StuckError: see there.
        """
        left = MOST_STEPS if turns is None else turns
        while self.tasks and left:
            able = [task for task in self.tasks if task.ready() or task.until <= self.now]
            if not able:
                if turns is not None:
                    return  # others may begin
                earliest = min(task.until for task in self.tasks)
                if earliest == FOREVER:
                    names = ", ".join(task.name for task in self.tasks)
                    raise StuckError(f"these wait for each other: {names}")
                self.advance(max(int(-(-earliest // 1)) - self.now, 1))
                continue
            self._turn(able[self.draws.randrange(len(able))] if len(able) > 1 else able[0])
            left -= 1
        if self.tasks and turns is None:
            raise StuckError(f"no end after {MOST_STEPS} turns")

    def _turn(self, task: Task) -> None:
        self.step += 1
        task.ready, task.until = (lambda: True), FOREVER
        task.greenlet.switch()
        if task.done:
            self.tasks.remove(task)

    def kill(self, server: Any) -> list[Task]:
        """End all tasks of a server, as the end of its process does; returns them."""
        ended = [task for task in self.tasks if task.server is server]
        for task in ended:
            while not task.greenlet.dead:
                task.greenlet.throw(GreenletExit)
            self.tasks.remove(task)
        return ended


class Lock:
    """A lock between tasks, with the methods of ``threading.Lock``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._held = scheduler, False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._held and not blocking:
            return False
        seconds = FOREVER if timeout < 0 else timeout
        if self._held and not self._scheduler.wait(lambda: not self._held, seconds):
            return False
        self._held = True
        return True

    def release(self) -> None:
        assert self._held
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()
