"""The trials of a search, in a file that survives kills and that several processes share.

study.jsonl        every trial with its settings and results (Optuna's journal)
study.jsonl.lock   held while a line is appended
study.lock         held while a trial is chosen or ended
trials/N           the run folder of trial N, while it is trained; then of the defaults (trial 0)
                   and of the best trial only
trials/N.lock      held by the process that trains trial N
defaults, best     links to trials/0 and to the run folder of the best trial

All locks end with the process that holds them. A trial that nobody trains and that is not ended is
one that was interrupted: the next process takes it up, and its training resumes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from limerank.errors import FormatError, SpecError
from limerank.files import sync_directory, writes_to
from limerank.locks import HeldError, held_alone
from limerank.tuning.result import Trial

if TYPE_CHECKING:
    import optuna

NAME = "tune"
"""Of the study in Optuna's file."""
JOURNAL, TRIALS = "study.jsonl", "trials"
RANDOM_TRIALS = 8
"""Trials, the defaults among them, before the sampler learns from the finished ones."""
UNPRUNED_TRIALS, PEERS = 4, 3
"""No trial is pruned before so many have finished, and before so many have a value at its share of
the epochs."""
FIXED = "fixed_params"
"""Attribute of an Optuna trial: parameters that are not drawn."""
RESULT = "result"
"""Attribute of an Optuna trial: how it ended, see :class:`~limerank.tuning.result.Trial`."""


def require_optuna() -> None:
    """Refuse to search where Optuna is not installed: SpecError."""
    try:
        import optuna  # noqa: F401  # whether it can be imported
    except ImportError:
        raise SpecError(
            'a search for settings needs Optuna, which is not installed: pip install "limerank'
            '[tune]"'
        ) from None


class Study:
    """The trials of one search.

    Args:
        out: folder of the search.
        higher_is_better: of the metric.
        seed: trial N's settings depend on it, on N and on the results of the earlier trials.
        defaults: setting -> parameter of trial 0, for every setting that is searched.
        sample: chooses the settings of an Optuna trial.

    Raises:
        FormatError: the study file is damaged.
    """

    def __init__(
        self,
        out: Path,
        *,
        higher_is_better: bool,
        seed: int,
        defaults: Mapping[str, Any],
        sample: Callable[[optuna.Trial], dict[str, Any]],
    ) -> None:
        import optuna
        from optuna.storages import JournalStorage

        self.out, self.seed, self.sample = out, seed, sample
        self.sign = 1 if higher_is_better else -1
        (out / TRIALS).mkdir(exist_ok=True)
        journal = out / JOURNAL
        with _quiet_optuna(), self._alone():
            try:
                self.storage = JournalStorage(_backend_of(journal))
                self.study = optuna.create_study(
                    storage=self.storage,
                    study_name=NAME,
                    direction="maximize" if higher_is_better else "minimize",
                    pruner=optuna.pruners.MedianPruner(
                        UNPRUNED_TRIALS, n_warmup_steps=1, n_min_trials=PEERS
                    ),
                    load_if_exists=True,
                )
                if not self.study.get_trials(deepcopy=False):
                    self.study.enqueue_trial(dict(defaults))
            except (ValueError, KeyError, TypeError) as error:
                raise FormatError(
                    f"{journal} is damaged ({error}); restore it, or pass --overwrite to search "
                    "from the start"
                ) from None
            with writes_to(out):
                sync_directory(out)
            self._tidy()

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return held_alone(self.out / "study.lock", "another process chooses a trial", wait=True)

    def run_of(self, number: int) -> Path:
        """Run folder of a trial."""
        return self.out / TRIALS / str(number)

    @contextmanager
    def next(self, most: int) -> Iterator[tuple[optuna.Trial, dict[str, Any]] | None]:
        """The next trial and its settings, held for this process: one that was interrupted, else a
        new one; None where the study has ``most`` trials."""
        with ExitStack() as held:
            with _quiet_optuna(), self._alone():
                trial = self._interrupted(held) or self._new(held, most)
                chosen = None if trial is None else (trial, self.sample(trial))
            yield chosen

    def _interrupted(self, held: ExitStack) -> optuna.Trial | None:
        import optuna

        study_id = self.storage.get_study_id_from_name(NAME)
        running = (optuna.trial.TrialState.RUNNING,)
        for frozen in self.study.get_trials(deepcopy=False, states=running):
            if self._take(frozen.number, held):
                self._seeded(frozen.number)
                known = self.storage.get_trial_id_from_study_id_trial_number(
                    study_id, frozen.number
                )
                if FIXED not in frozen.system_attrs:
                    self.storage.set_trial_system_attr(known, FIXED, self._drawn(frozen.number))
                return optuna.Trial(self.study, known)
        return None

    def _drawn(self, number: int) -> dict[str, Any]:
        """The parameters of a trial, as they were drawn when it began: it may have been interrupted
        when only some of them were stored, and a sampler draws them one after the other."""
        import optuna

        before = [
            one
            for one in self.study.get_trials()
            if one.number < number and one.state.is_finished()
        ]
        again = optuna.create_study(direction=self.study.direction, sampler=self.study.sampler)
        again.add_trials(before)
        trial = again.ask()
        self.sample(trial)
        self._seeded(number)
        return dict(trial.params)

    def _new(self, held: ExitStack, most: int) -> optuna.Trial | None:
        import optuna

        trials = self.study.get_trials(deepcopy=False)
        waiting = [one for one in trials if one.state == optuna.trial.TrialState.WAITING]
        if len(trials) - len(waiting) >= most:
            return None
        number = waiting[0].number if waiting else len(trials)
        self._seeded(number)
        trial = self.study.ask()
        taken = self._take(number, held)
        assert trial.number == number and taken
        return trial

    def _take(self, number: int, held: ExitStack) -> bool:
        """Whether no other process trains this trial; it is then held for this one. FormatError
        where its lock file cannot be written."""
        try:
            lock = self.run_of(number).with_suffix(".lock")
            held.enter_context(held_alone(lock, "another process trains it"))
        except HeldError:
            return False
        return True

    def _seeded(self, number: int) -> None:
        """Give the study a sampler whose draws depend on the seed and this number alone, so that an
        interrupted search continues with the same trials."""
        import optuna

        (state,) = np.random.SeedSequence([self.seed, number]).generate_state(1)
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS, multivariate=True, seed=int(state)
        )

    def end(
        self, trial: optuna.Trial, state: str, value: float | None, more: Mapping[str, Any]
    ) -> None:
        """End a trial. Run folders that are no longer needed are removed.

        Args:
            trial: of Optuna.
            state: "finished", "pruned" or "failed".
            value: best value of the metric; None for a failed one.
            more: the other attributes of :class:`~limerank.tuning.result.Trial` by name.
        """
        import optuna

        ended = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[state]
        with _quiet_optuna(), self._alone():
            trial.set_user_attr(RESULT, {**more, "state": state, "value": value})
            self.study.tell(
                trial, value if state == "finished" else None, optuna.trial.TrialState[ended]
            )
            self._tidy()

    def _tidy(self) -> None:
        """Point the links to the run folders of the defaults and of the best trial, and remove
        those of other trials that have ended."""
        trials = self.study.get_trials(deepcopy=False)
        finished = [one for one in trials if one.state.name == "COMPLETE"]
        retained = set()
        if finished:
            best = max(finished, key=lambda one: (self.sign * (one.value or 0.0), -one.number))
            retained.add(best.number)
            _link(self.out / "best", best.number)
            if finished[0].number == 0:
                retained.add(0)
                _link(self.out / "defaults", 0)
        for one in trials:
            if one.state.is_finished():
                self.run_of(one.number).with_suffix(".lock").unlink(missing_ok=True)
                if one.number not in retained:
                    shutil.rmtree(self.run_of(one.number), ignore_errors=True)

    def ended(self) -> int:
        """Number of trials that have ended."""
        return sum(one.state.is_finished() for one in self.study.get_trials(deepcopy=False))

    def defaults_ended(self) -> bool:
        """Whether trial 0 has."""
        return self.study.get_trials(deepcopy=False)[0].state.is_finished()

    def trials(self) -> Iterator[Trial]:
        """All trials that have begun, by number."""
        with _quiet_optuna():
            found = self.study.get_trials(deepcopy=False)
        for one in found:
            if one.state.is_finished():
                stored = one.user_attrs[RESULT]
                value = math.nan if stored["value"] is None else stored["value"]
                yield Trial(**{**stored, "number": one.number, "value": value})
            elif one.state.name == "RUNNING":
                yield Trial(one.number, "unfinished", math.nan, {}, {}, math.nan)


def _link(link: Path, number: int) -> None:
    """Let a relative link point to the run folder of a trial, in one step."""
    target = f"{TRIALS}/{number}"
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)  # of a killed process
    if link.is_symlink() and os.readlink(link) == target:
        return
    with writes_to(link):
        new.symlink_to(target, target_is_directory=True)
        new.replace(link)
        sync_directory(link.parent)  # before the run folder that it pointed to is removed


def _backend_of(journal: Path) -> Any:
    """Optuna's journal in a file, whose errors of the disk name it."""
    from optuna.storages.journal import JournalFileBackend

    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with writes_to(journal):
                super().append_logs(logs)

    lock = _lock_of(journal)
    if journal.exists():
        with writes_to(journal):  # it is read before the first line is appended
            lock.acquire()
            lock.release()
    return Backend(str(journal), lock_obj=lock)


def _lock_of(journal: Path) -> Any:
    """The lock of Optuna's journal.

    Unlike Optuna's own, it ends with the process that holds it. What a killed process, a full disk
    or a power loss left of a line is removed.
    """
    from optuna.storages.journal import JournalFileOpenLock

    class Lock(JournalFileOpenLock):
        def __init__(self) -> None:
            super().__init__(str(journal))

        def acquire(self) -> bool:
            self._held = ExitStack()
            path = journal.with_name(f"{journal.name}.lock")
            self._held.enter_context(held_alone(path, "another process writes", wait=True))
            _without_rest(journal)
            return True

        def release(self) -> None:
            self._held.close()

    return Lock()


def _without_rest(journal: Path) -> None:
    """Remove what follows the last complete line, and this line where it is not JSON: a power loss
    may leave a part of the sectors that were written last."""
    size = journal.stat().st_size
    with open(journal, "rb+") as file:
        end = _after_newline(file, size)
        begin = _after_newline(file, max(end - 1, 0))
        file.seek(begin)
        try:
            json.loads(file.read(end - begin) or b"null")
        except ValueError:
            end = begin
        if end < size:
            file.truncate(end)


def _after_newline(file: BinaryIO, end: int) -> int:
    """The position behind the last newline before ``end``; 0 where there is none."""
    while end:
        start = max(end - 4096, 0)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """No messages of Optuna below warnings; its settings are restored."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
