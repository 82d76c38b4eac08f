"""Training: plan, batches, steps; early stopping, checkpoints and exact resume."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch

from limerank.data.dataset import Dataset
from limerank.devices import device_of
from limerank.errors import DataError, SpecError, check_names
from limerank.evaluation import alarms
from limerank.evaluation.popularity import popularity
from limerank.evaluation.predict import effective_links
from limerank.files import new_folder, sweep_folder, writes_to
from limerank.kernels import dispatch
from limerank.metrics import Affine
from limerank.models import Ranker, build
from limerank.models.config import (
    DataShape,
    ModelConfig,
    TrainConfig,
    model_config_of,
    train_config_of,
)
from limerank.models.neighbours import neighbours_of
from limerank.models.registry import model_of
from limerank.progress import Bar
from limerank.runs import selftest
from limerank.runs.alarms import Alarm
from limerank.runs.folder import create_run, finite, save_optimiser, save_weights, settings
from limerank.storage.arguments import NEW_FOLDER, READ, with_uris
from limerank.training.beginning import begin, share_start
from limerank.training.checkpoints import Checkpoints, NotFiniteError
from limerank.training.distributed.tables import full_tables, is_sharded, own_state, shard
from limerank.training.fitting import fit
from limerank.training.impressions import Examples, measured_alike
from limerank.training.objectives import objective_name, objective_of
from limerank.training.optim import Optimiser
from limerank.training.reporting import (
    Curves,
    Report,
    Window,
    finish,
    summary_writer,
    tensorboard_listener,
)
from limerank.training.result import TrainingResult
from limerank.training.resume import check_resumable, removed_if_empty, training_lock
from limerank.training.step import Losses, Step
from limerank.training.warm import (
    Parent,
    Start,
    config_from,
    fitted_again,
    model_from,
    open_parent,
)
from limerank.world import Alone, World, agreed, decided

TRIED = 4
"""Requests whose scores are stored beside the weights; see limerank.runs.selftest."""
REPORT_SECONDS = 1.0
"""Curves get a point at most this often between validations."""


@with_uris(data=READ, out=NEW_FOLDER, start=READ)
def train(
    data: str | os.PathLike[str] | Dataset,
    out: str | os.PathLike[str],
    *,
    model: ModelConfig | str | Mapping[str, Any] | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    start: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    report: Report | None = None,
    tensorboard: bool = False,
    quiet: bool = True,
    world: World | None = None,
) -> TrainingResult:
    """Train a ranker into a run folder, or resume a run that was interrupted.

    A folder that an unfinished training with the same settings left is resumed from its last
    checkpoint and ends with the same weights as an uninterrupted run.

    Args:
        data: a dataset or its folder.
        out: the run folder.
        model: the ranker: its configuration, its name, or a mapping of its settings; LIME-XOR with
            its defaults when not given.
        config: how to train: a configuration, or a mapping of its settings.
        start: the folder of a finished run. The training starts from its weights, with its model
            and, where ``config`` is a mapping or not given, its settings; it learns the requests
            that are newer than those of the run, and a sample of older ones
            (:mod:`limerank.training.warm`).
        overwrite: train from the start where ``out`` exists.
        device: where to compute: "cpu", "cuda" or "cuda:N".
        report: called with every line that goes to ``metrics.jsonl``.
        tensorboard: write the curves into ``OUT/tensorboard`` as well (extra "tensorboard").
        quiet: show no progress.
        world: the processes that train together; this one alone when not given.

    Raises:
        FormatError: ``out`` is a finished run, or one with other settings, or one that another
            process is training; or it cannot be written. Or ``start`` is no finished run.
        SpecError: a setting does not fit the model or the dataset, or there is no such device.
        UnknownError: ``task_weights`` names a task that the dataset does not have.
        DataError: the training or the validation split is empty, or the training diverged: its loss
            or its weights are no longer finite. The last finite weights stay in the run folder.
            Or nothing of the training split is newer than what ``start`` was trained on.

    Everything but a divergence is checked before anything is written.
    """
    out = Path(out)
    if start is not None and out.resolve() == Path(start).resolve():
        raise SpecError(
            f"the training cannot start from {start} and replace it; name another folder"
        )
    parent = None if start is None else open_parent(start)
    if parent is None:  # before the dataset is read
        model, config = model_config_of(model), train_config_of(config)
    dataset = data if isinstance(data, Dataset) else Dataset(data)
    shape = DataShape.of(dataset.manifest)
    if parent is not None:
        model = model_from(parent, model, shape)
        config = config_from(parent, config, dataset.tasks)
    model, config = model_config_of(model), train_config_of(config)
    lineage = () if parent is None else parent.lineage
    name = objective_name(config.objective, shape.tasks)
    config = config.model_copy(update={"objective": name})
    shape = objective_of(name, shape.tasks).model_shape(shape, model, config)
    model = model.model_copy(update={"neighbours": neighbours_of(shape, model)})
    world = world or Alone()
    fresh = decided(world, lambda: not out.exists() or overwrite)
    if not fresh:
        check_resumable(out, settings(dataset, shape, model, config, lineage))
    if tensorboard:
        summary_writer()
    listeners = [] if report is None else [report]
    trainer = None
    if not model_of(model.model).ranker.fitted:
        trainer = Trainer(
            dataset, out, shape, model, config, parent, device, listeners, quiet, world
        )
    elif world.size > 1:
        raise SpecError(
            f"{model.model} is fitted by counting, in one process; got {world.size}: train it "
            "without torchrun"
        )

    def prepare(stack: ExitStack) -> None:
        if fresh:
            with (
                training_lock(out),
                new_folder(out, overwrite=overwrite, mark="config.json") as partial,
            ):
                create_run(partial, dataset, shape, model, config, lineage)
        else:
            with writes_to(out):
                sweep_folder(out)
        stack.enter_context(training_lock(out))
        stack.enter_context(removed_if_empty(out))

    with ExitStack() as stack:
        decided(world, lambda: prepare(stack))
        if tensorboard and world.rank == 0:
            listeners.append(tensorboard_listener(out / "tensorboard"))
        if trainer is None:
            again = None if parent is None else fitted_again(parent, dataset)
            return fit(dataset, out, shape, model, config, device, listeners, again, quiet)
        return trainer.run()


class Trainer:
    """One training, from a fresh folder or from its last checkpoint.

    Every process of the world has one: all make the same decisions, because they plan from the same
    seed, make the same updates and validate the same weights. Process 0 writes the run folder.
    """

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        shape: DataShape,
        model: ModelConfig,
        config: TrainConfig,
        parent: Parent | None,
        device: str,
        listeners: list[Report],
        quiet: bool,
        world: World,
    ) -> None:
        self.dataset, self.out, self.shape, self.config = dataset, out, shape, config
        self.device, self.world = device_of(device), world
        self.quiet = quiet = quiet or world.rank > 0
        self.objective = objective_of(config.objective, shape.tasks)(dataset, shape, config)
        self.objective.world, self.objective.quiet = world, quiet
        self.held_out = dataset.requests_of("validation")
        for split, rows in (("training", self.objective.requests), ("validation", self.held_out)):
            if not len(rows):
                raise DataError(
                    f"{dataset.path} has no requests in its {split} split; "
                    "prepare it with other split points"
                )
        task, metric, self.higher_is_better = self.objective.stopping()
        self.metric = task, metric
        check_names("task", config.task_weights, self.objective.loss_names)
        self.objective.check(model_of(model.model), self.held_out)
        self.objective.check_labels(self.held_out)
        self.start: Start | None = None
        if parent is not None:
            of = self.objective
            self.start = Start.of(parent, dataset, shape, model, config, of.requests, of.batch_size)
            self.objective.learn_from(self.start.chosen.requests)
        torch.manual_seed(config.seed)
        self.ranker = build(shape, model)
        if config.calibrate:
            _check_calibration(self.ranker)
        begin(self.ranker, self.objective, config, self.start, quiet)
        share_start(world, self.ranker, self.objective)
        self.ranker.to(self.device)
        self.ranker.choose_user_stage()  # of validations
        self.steps = len(self.objective.plan(0)) * config.epochs
        self.optimiser = Optimiser(
            self.ranker, config, self.steps, self.objective.batch_size, self.objective.rates
        )
        if self.start is not None:
            self.start.load_optimiser(self.ranker, self.optimiser)
        if is_sharded(self.ranker, config, world):
            state = self.optimiser.state()
            shard(self.ranker, world)
            self.optimiser = Optimiser(
                self.ranker, config, self.steps, self.objective.batch_size, self.objective.rates
            )
            self.optimiser.load(own_state(self.ranker, state))
        self.step = Step(self.ranker, self.objective, self.optimiser, config, world)
        self.curves = Curves(out, listeners)
        self.checkpoints = Checkpoints(
            out, self.ranker, self.optimiser, config.checkpoint_seconds, world
        )

    def run(self) -> TrainingResult:
        """Train to the end and leave the best weights in the run folder."""
        self.progress = self.checkpoints.load()
        if self._writes:
            self.curves.resume(self.progress.lines)
        config, progress = self.config, self.progress
        self.ranker.train()
        self._reported, self._window = time.monotonic(), Window()
        if not self.quiet:
            print(
                f"computing: steps torch ({'bfloat16' if config.bf16 else 'float32'} on "
                f"{self.device}); validation: {self.ranker.user_stage}, {dispatch.inference()}",
                file=sys.stderr,
            )
            if self.objective.text:
                print(self.objective.text, file=sys.stderr)
        name = f"training {self.ranker.config.model}"
        with Bar(name, total=self.steps, unit="batches", quiet=self.quiet) as bar:
            bar.advance(progress.step)
            if self.start is not None and progress.best is None:
                self._validate()
            while progress.epoch < config.epochs and progress.waited < config.patience:
                self._epoch(bar)
        result = TrainingResult(
            run=self.out,
            model=self.ranker.config.model,
            steps=progress.step,
            seconds=round(progress.seconds, 3),
            impressions_per_s=round(progress.impressions / max(progress.seconds, 1e-9)),
            metric="/".join(self.metric),
            best=math.nan if progress.best is None else progress.best,
            best_step=progress.best_step,
            metrics=progress.best_metrics,
            calibration=progress.calibration,
            baselines=self.objective.baselines(),
            alarms=self._alarms() if self._writes else (),
            start=None if self.start is None else self.start.result(progress.start),
        )
        self._line(result.to_dict())
        if self._writes:
            finish(self.out, self.curves, result.alarms)
        self.world.barrier()
        return result

    def _alarms(self) -> tuple[Alarm, ...]:
        """Reasons for not deploying the run, from its curves and its dataset."""
        lines, progress = self.curves.lines(), self.progress
        best = next(
            line for line in lines if line["step"] == progress.best_step and "validation" in line
        )
        of = "calibrated_ne" if progress.calibration else "ne"
        metrics = {
            task: {**found, "ne": found[of]} if of in found else found
            for task, found in best["validation"].items()
        }
        shape = self.ranker.link_shape
        return (
            *alarms.measured(
                "validation",
                metrics,
                popularity(self.dataset, self.held_out, self.shape.tasks),
                best.get("effective_links"),
                None if shape is None else shape[1],
            ),
            *alarms.learned(lines, *self.metric, self.higher_is_better),
            *self._unimproved(),
            *alarms.unmatched(self.dataset.manifest),
        )

    def _unimproved(self) -> list[Alarm]:
        """The alarm of a training that is no better than the run that it started from."""
        progress = self.progress
        if self.start is None or progress.start is None:
            return []
        parent, metric = str(self.start.parent.trained.path), "/".join(self.metric)
        return alarms.unimproved(parent, metric, progress.start, progress.best_step)

    def _epoch(self, bar: Bar) -> None:
        """The steps of the current epoch that are still to be made."""
        config, progress = self.config, self.progress
        plan = self.objective.plan(progress.epoch)
        self._validate_at = {
            math.ceil(len(plan) * (part + 1) / config.validations)
            for part in range(config.validations)
        }
        left = plan[progress.batch :]
        started = time.monotonic()
        for rows, batch in zip(left, self.objective.batches(left), strict=True):
            counts = self.objective.counts_part(rows)
            losses = self.step(batch, progress.step, counts, self._wishes())
            progress.step += 1
            progress.batch += 1
            progress.impressions += losses.impressions
            progress.seconds += time.monotonic() - started
            self._after_step(losses, batch, bar)
            started = time.monotonic()
            if progress.waited >= config.patience:
                return
        progress.epoch += 1
        progress.batch = 0

    def _wishes(self) -> tuple[bool, ...]:
        """What the clock asks for after the next step: a line, a checkpoint, and whether one would
        be affordable."""
        due = time.monotonic() - self._reported >= REPORT_SECONDS
        return due, self.checkpoints.due(), self.checkpoints.affordable()

    @property
    def _writes(self) -> bool:
        return self.world.rank == 0

    def _after_step(self, losses: Losses, batch: Examples, bar: Bar) -> None:
        """Report, validate and save, where it is time to."""
        progress = self.progress
        self._window.add(losses, batch)
        validates = progress.batch in self._validate_at
        line_due, save_due, affordable = losses.wishes
        if line_due or validates:
            line = self._window.line(progress, self.optimiser.share(progress.step - 1))
            if not math.isfinite(line["loss"]):
                self._diverged(f"the loss is {line['loss']}")
            self._reported, self._window = time.monotonic(), Window()
            best = f", best {self.metric[1]} {progress.best:.4f}" if progress.best else ""
            bar.advance(0, f"loss {line['loss']:.4f}, {line['impressions_per_s']:,}/s{best}")
            self._line(line)
        bar.advance(1)
        if validates:
            self._validate()
        if affordable if validates else save_due:
            self._save()

    def _save(self) -> None:
        if self._writes:
            self.curves.sync()  # the checkpoint counts its lines, which a power loss must not take
        try:
            self.checkpoints.save(self.progress)
        except NotFiniteError as error:
            self._diverged(str(error))

    def _validate(self) -> None:
        progress = self.progress
        if not agreed(self.world, finite(self.ranker.parameters())):
            self._diverged("weights are not finite")
        found = measured_alike(self.world, self.objective.measure(self.ranker, self.held_out))
        task, metric = self.metric
        value = found.metrics[task][metric]
        if math.isnan(value):
            raise DataError(
                f"the validation metric {task}/{metric} is not defined: the labels of the "
                "validation split are all alike; choose other split points or another metric"
            )
        line: dict[str, Any] = {"step": progress.step, "validation": found.metrics}
        if found.link_use is not None:
            line["effective_links"] = round(effective_links(found.link_use), 3)
        self._line(line)
        if self.start is not None and not progress.step:
            progress.start = value
        sign = 1 if self.higher_is_better else -1
        if progress.best is None or sign * value > sign * progress.best:
            progress.best, progress.best_step, progress.waited = value, progress.step, 0
            progress.best_metrics = found.metrics
            progress.calibration = [(one.scale, one.shift) for one in found.calibration]
            self._store(found.calibration)
        else:
            progress.waited += 1

    def _store(self, calibration: Sequence[Affine]) -> None:
        """Write the weights, calibrated, and their self-test. Training goes on with the weights as
        they were."""
        with self.ranker.calibrated(calibration) if calibration else nullcontext():
            if not finite(self.ranker.parameters()):
                self._diverged(f"the calibration is {calibration}")
            few = self.dataset.batch(self.held_out[:TRIED], self.config.history).to(self.device)
            logits = None
            state = self.optimiser.state()
            tables = full_tables(self.ranker, state)
            if tables or self._writes:
                logits = selftest.logits_of(self.ranker, few)
            if self._writes:
                weights = {name: value for name, value in tables.items() if name not in state}
                save_weights(self.out, self.ranker, weights)
                sums = {name: value for name, value in tables.items() if name in state}
                save_optimiser(self.out, {**state, **sums})
                selftest.write(self.out, self.ranker, few, logits)

    def _line(self, line: dict[str, Any]) -> None:
        if self._writes:
            self.curves.write(line, self.progress)

    def _diverged(self, what: str) -> NoReturn:
        """Report that the training diverged, what is left of it and what to try."""
        rates, progress = self.objective.rates, self.progress
        left = "no weights were saved"
        if progress.best is not None:
            left = (
                f"the weights of step {progress.best_step}, the best validated ones, stay in "
                f"{self.out}"
            )
        elif self.checkpoints.exists:
            left = f"the last checkpoint stays in {self.out}"
        raise DataError(
            f"the training diverged by step {progress.step}: {what}; {left}. Try "
            f"lower rates (learning_rate is {rates.dense:.3g}, table_learning_rate "
            f"{rates.tables:.3g}; with --overwrite), or look for extreme numbers in "
            "the features and durations"
        )


def _check_calibration(ranker: Ranker) -> None:
    """Refuse a model whose logits cannot be calibrated: SpecError."""
    try:
        ranker.last_layers()
    except NotImplementedError as error:
        raise SpecError(
            f"{error}: define last_layers and calibrate (see limerank.models.ranker.Ranker), or "
            "train with calibrate=false"
        ) from None
