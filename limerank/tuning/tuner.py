"""Search for settings that are better than the defaults, by validation alone.

Trial 0 is the training with the defaults; Optuna's TPE sampler proposes the settings of the others
from the results so far. A trial whose validations are worse than the median of the others at the
same quarter of its epochs is stopped (Optuna's median pruner).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limerank.data.dataset import Dataset
from limerank.errors import DataError, FormatError, SpecError, check_integer
from limerank.files import new_folder, read_json, sweep_folder, write_json, writes_to
from limerank.locks import held_alone
from limerank.models.config import (
    ModelConfig,
    TrainConfig,
    configs_of,
    model_config_of,
    train_config_of,
)
from limerank.models.registry import model_of
from limerank.models.settings_file import write_settings
from limerank.progress import Bar
from limerank.runs.alarms import read_alarms
from limerank.runs.folder import settings
from limerank.storage.arguments import NEW_FOLDER, READ, with_uris
from limerank.training.objectives import objective_on
from limerank.tuning.result import TuningResult
from limerank.tuning.space import defaults_of, space_of
from limerank.tuning.study import TRIALS, Study, require_optuna
from limerank.tuning.training import Metric, TimeUpError, train_trial

if TYPE_CHECKING:
    import optuna

FORMAT = 1
"""Version of the folder of a search."""
MANIFEST, SETTINGS = "tune.json", "best.json"


@with_uris(data=READ, out=NEW_FOLDER)
def tune(
    data: str | os.PathLike[str] | Dataset,
    out: str | os.PathLike[str],
    *,
    model: ModelConfig | str | Mapping[str, Any] | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    trials: int = 30,
    minutes: float | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    quiet: bool = True,
) -> TuningResult:
    """Search for settings of a model and its training that are better on the validation split.

    Trial 0 trains with the defaults, so the result is never worse than they are on the validation
    split. The test split is not used. The folder ``out`` contains the study, the run folders of the
    best trial (``best``) and of the defaults (``defaults``), and the best settings (``best.json``).

    The same call continues a search that was interrupted, with the same trials as without the
    interruption, and a search with fewer trials. Several processes may work on one folder at the
    same time; the order in which their trials end then decides what is tried.

    Args:
        data: a dataset or its folder.
        out: folder of the search.
        model: the model: its name, its configuration, or a mapping of its settings; LIME-XOR when
            not given. Settings that are given are fixed, all others have their defaults or are
            searched.
        config: how to train, likewise. Its ``metric`` compares trials, its ``seed`` is that of all
            trainings and of the search.
        trials: number of trainings in all, the defaults and earlier calls included.
        minutes: time after which no trial starts and a running one is interrupted, to be resumed
            by the next call; the defaults are always trained to the end. No limit when not given.
        overwrite: start again where ``out`` exists.
        device: where to compute: "cpu", "cuda" or "cuda:N".
        quiet: show no progress.

    Raises:
        SpecError: Optuna is not installed (extra "tune"), or a setting is wrong.
        FormatError: ``out`` is a search with other settings or data, or something else.
        DataError: the training with the defaults failed, or no trial has finished yet.
    """
    require_optuna()
    check_integer("trials", trials, 1)
    if minutes is not None and not minutes > 0:
        raise SpecError(f"minutes is {minutes!r}, expected a number above 0")
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    search = Search(data, Path(out), model_config_of(model), train_config_of(config), device)
    search.open(overwrite)
    return search.run(trials, deadline, quiet)


class Search:
    """A search on one dataset. What is fixed: the settings that the configurations were given."""

    def __init__(
        self,
        data: str | os.PathLike[str] | Dataset,
        out: Path,
        model: ModelConfig,
        config: TrainConfig,
        device: str,
    ) -> None:
        if model_of(model.model).ranker.fitted:
            raise SpecError(
                f"{model.model} is fitted by counting and has no settings to search; train it, "
                "with --set for its own settings"
            )
        self.dataset = data if isinstance(data, Dataset) else Dataset(data)
        self.out, self.model, self.config, self.device = out, model, config, device
        self.fixed = {**_given(config), **_given(model)}
        objective = objective_on(self.dataset, config)
        self.shape = objective.shape
        self.metric = Metric(*objective.stopping())
        self.space = space_of(model, config, self.fixed, self.dataset)
        if not self.space:
            raise SpecError(
                f"every setting of {model.model} that could be searched is fixed; leave some out"
            )
        values = defaults_of(model, config, self.dataset)
        self.defaults = {name: values[name] for name in self.space}

    def open(self, overwrite: bool) -> None:
        """Make the folder of the search, or check that it is one of this search.

        Raises:
            FormatError: it is something else.
        """
        manifest = self._manifest()
        if self.out.exists() and not overwrite:
            self._check(manifest)
            with writes_to(self.out):
                sweep_folder(self.out)
            return
        for lock in sorted((self.out / TRIALS).glob("*.lock")):
            with held_alone(lock, f"another process searches in {self.out}"):
                pass
        try:
            with new_folder(self.out, overwrite=overwrite, mark=MANIFEST) as partial:
                write_json(partial / MANIFEST, manifest)
        except FormatError:
            if overwrite or not (self.out / MANIFEST).exists():
                raise
            self._check(manifest)  # another process has just made it

    def _check(self, manifest: dict[str, Any]) -> None:
        """Refuse the folder unless it is of a search with this manifest: FormatError."""
        stored = read_json(self.out / MANIFEST, "a search")
        if stored.get("format") != FORMAT:
            raise FormatError(
                f"{self.out} is a search of another version (format "
                f"{stored.get('format')!r:.40}, not {FORMAT}); pass --overwrite to search from "
                "the start, or choose another folder"
            )
        if stored != manifest:
            raise FormatError(
                f"{self.out} is a search with other settings ({_difference(stored, manifest)});"
                " give the same ones to continue it, --overwrite to search from the start, or "
                "choose another folder"
            )

    def _manifest(self) -> dict[str, Any]:
        """What must be equal for a search to continue, as plain values."""
        run = settings(self.dataset, self.shape, self.model, self.config)
        return {
            "format": FORMAT,
            **{part: run[part] for part in ("model", "train", "data", "encoding")},
            "fixed": sorted(self.fixed),
            "space": {name: one.text for name, one in self.space.items()},
        }

    def run(self, trials: int, deadline: float, quiet: bool) -> TuningResult:
        """Train until the study has so many trials, or until the deadline."""
        study = Study(
            self.out,
            higher_is_better=self.metric.higher_is_better,
            seed=self.config.seed,
            defaults={name: one.parameter(self.defaults[name]) for name, one in self.space.items()},
            sample=self._sample,
        )
        name = f"tuning {self.model.model}"
        with Bar(name, total=trials, unit="trials", quiet=quiet) as bar:
            bar.advance(study.ended())
            while time.monotonic() < deadline or not study.defaults_ended():
                with study.next(trials) as found:
                    if found is None:
                        break
                    trial, chosen = found
                    model, config = self._configs(chosen)
                    try:
                        ended = train_trial(
                            trial,
                            self.dataset,
                            study.run_of(trial.number),
                            model,
                            config,
                            self.metric,
                            deadline=deadline,
                            device=self.device,
                            note=lambda text: bar.advance(0, text),
                        )
                    except TimeUpError:
                        break
                    study.end(
                        trial, ended.state, ended.value, {"settings": chosen, **asdict(ended)}
                    )
                bar.advance(1)
        result = self._result(study)
        write_settings(self.out / SETTINGS, result.model, result.config)
        return result

    def _sample(self, trial: optuna.Trial) -> dict[str, Any]:
        """The settings of a trial that differ from the defaults."""
        chosen = {name: one.suggest(trial, name) for name, one in self.space.items()}
        return {name: value for name, value in chosen.items() if value != self.defaults[name]}

    def _configs(self, chosen: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
        return configs_of(self.model.model, {**self.fixed, **chosen})

    def _result(self, study: Study) -> TuningResult:
        trials = tuple(study.trials())
        finished = [trial for trial in trials if trial.state == "finished"]
        if not finished:
            raise DataError(
                f"no trial has finished in {self.out} yet: another process is training the "
                "defaults; wait for it, then give the same command again"
            )
        metric, higher = str(self.metric), self.metric.higher_is_better
        result = TuningResult(self.out, metric, higher, self.model, self.config, trials)
        model, config = self._configs(result.best.settings)
        alarms = read_alarms(result.run) or ()
        return replace(result, model=model, config=config, alarms=alarms)


def _given(config: ModelConfig | TrainConfig) -> dict[str, Any]:
    """The settings that a configuration was given, as plain values."""
    return config.model_dump(mode="json", include=config.model_fields_set - {"model"})


def _difference(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs between two manifests, in words."""
    found = []
    for part, now in wanted.items():
        before = stored.get(part)
        if isinstance(before, dict) and isinstance(now, dict):
            found += [
                f"{part}.{name} is {before.get(name)!r}, not {now.get(name)!r}"
                for name in {**before, **now}
                if before.get(name) != now.get(name)
            ]
        elif before != now:
            found.append(f"{part} is {before!r}, not {now!r}")
    return ", ".join(found)
