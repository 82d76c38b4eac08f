"""Training: request-level batches, several tasks, early stopping, exact resume."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.batch import Batch, Sequences
from limerank.data.dataset import Dataset
from limerank.devices import device_of
from limerank.errors import (
    DataError,
    FormatError,
    LimerankError,
    SpecError,
    check_names,
)
from limerank.evaluation.measures import task_metrics
from limerank.evaluation.predict import effective_links, predict
from limerank.files import held_alone, new_folder, read_json, write_text
from limerank.kernels.attention import real_positions
from limerank.models import build
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.models.registry import model_of
from limerank.models.tasks import stopping_metric, task_losses, total_loss
from limerank.progress import Bar
from limerank.runs import selftest
from limerank.runs.folder import (
    create_run,
    finite,
    load_state,
    save_state,
    save_weights,
    settings,
)
from limerank.training.optim import Optimiser
from limerank.training.result import TrainingResult

BATCHES, LEAST, MOST = 400, 64, 1024
"""Batches of an epoch, and impressions of a batch, where the configuration leaves it open."""
TRIED = 4
"""Requests whose scores are kept beside the weights; see limerank.runs.selftest."""
LOOKED_AT = 256
"""Histories, about, whose events' ages are looked at before training starts."""
REPORT_SECONDS = 1.0
"""Curves get a point at most this often between validations."""
CHECKPOINT_SHARE = 0.05
"""Checkpoints take at most this share of a training's time: after one that took long, the next one
waits, whatever the configuration says."""

Report = Callable[[dict[str, Any]], None]


def train(
    data: str | os.PathLike[str] | Dataset,
    out: str | os.PathLike[str],
    *,
    model: ModelConfig | None = None,
    config: TrainConfig | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    report: Report | None = None,
    tensorboard: bool = False,
    quiet: bool = True,
) -> TrainingResult:
    """Train a ranker into a run folder, or go on with a run that was cut off.

    A folder that an unfinished training with the same settings left is resumed from its last
    checkpoint and ends with the same weights as an uninterrupted run.

    Args:
        data: a dataset or its folder.
        out: the run folder.
        model: the ranker; LIME-XOR with its defaults when not given.
        config: how to train.
        overwrite: start anew where ``out`` exists.
        device: where to compute: "cpu", "cuda" or "cuda:N".
        report: called with every line that goes to ``metrics.jsonl``.
        tensorboard: write the curves into ``OUT/tensorboard`` as well (extra "tensorboard").
        quiet: show no progress.

    Raises:
        FormatError: ``out`` holds a finished run, or one with other settings, or one that another
            process is training; or it cannot be written.
        SpecError: a setting does not fit the model or the dataset, or there is no such device.
        UnknownError: ``task_weights`` names a task that the dataset does not have.
        DataError: the training or the validation split is empty, or the training diverged: its loss
            or its weights are no longer finite. The last finite weights stay in the run folder.

    All but a divergence is found before anything is written, so that nothing is left behind.
    """
    model, config, out = model or ModelConfig(), config or TrainConfig(), Path(out)
    dataset = data if isinstance(data, Dataset) else Dataset(data)
    shape = DataShape.of(dataset.manifest)
    fresh = not out.exists() or overwrite
    if not fresh:
        _check_resumable(out, settings(dataset, shape, model, config))
    if tensorboard:
        _summary_writer()
    listeners = [] if report is None else [report]
    trainer = Trainer(dataset, out, shape, model, config, device, listeners, quiet)
    if fresh:
        with (
            _not_in_training(out),
            new_folder(out, overwrite=overwrite, mark="config.json") as partial,
        ):
            create_run(partial, dataset, shape, model, config)
    if tensorboard:
        listeners.append(_curves(out / "tensorboard"))
    with _not_in_training(out), _nothing_left(out):
        return trainer.run()


@contextmanager
def _nothing_left(out: Path) -> Iterator[None]:
    """Remove the run folder of a training that failed before it had anything to go on from."""
    try:
        yield
    except (LimerankError, RuntimeError, MemoryError, OSError):
        saved = ("model.safetensors", "trainer/state.safetensors")
        if not any((out / name).exists() for name in saved):
            shutil.rmtree(out, ignore_errors=True)
        raise


def _not_in_training(out: Path) -> AbstractContextManager[None]:
    """Keep other processes from training in this folder; nothing where there is no training."""
    state = out / "trainer"
    if not state.exists():
        return nullcontext()
    return held_alone(state / "lock", f"another process is training in {out}")


def _summary_writer() -> Any:
    """TensorBoard's writer; SpecError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SpecError(
            'TensorBoard is not installed: pip install "limerank[tensorboard]"'
        ) from None
    return SummaryWriter


def _curves(folder: Path) -> Report:
    """A listener that draws every number of a report line as a TensorBoard curve."""
    writer = _summary_writer()(str(folder))

    def listen(line: dict[str, Any]) -> None:
        for name, value in _flat(line):
            if name != "step":
                writer.add_scalar(name, value, line["step"])
        if line.get("done"):
            writer.close()

    return listen


def _flat(line: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{above}{name}", value


def _check_resumable(out: Path, wanted: dict[str, Any]) -> None:
    held = read_json(out / "config.json", "a run")
    if not (out / "trainer").exists():
        raise FormatError(f"{out} holds a finished run; pass --overwrite or choose another folder")
    for part in ("model", "train", "shape", "data", "encoding", "format"):
        if held.get(part) != wanted[part]:
            differing = part
            if isinstance(held.get(part), dict):
                fields = {**held[part], **wanted[part]}
                differing = ", ".join(
                    f"{part}.{name} is {held[part].get(name)!r}, not {wanted[part].get(name)!r}"
                    for name in fields
                    if held[part].get(name) != wanted[part].get(name)
                )
            raise FormatError(
                f"{out} holds an unfinished run with other settings ({differing}); give the same "
                "settings to go on with it, or --overwrite to start anew"
            )


def batch_size(config: TrainConfig, total: int) -> int:
    """Impressions per batch of a training split of ``total`` impressions."""
    return config.impressions or min(max(total // BATCHES, LEAST), MOST)


class Trainer:
    """One training, from a fresh folder or from its last checkpoint."""

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        shape: DataShape,
        model: ModelConfig,
        config: TrainConfig,
        device: str,
        listeners: list[Report],
        quiet: bool,
    ) -> None:
        self.dataset, self.out, self.shape, self.config = dataset, out, shape, config
        self.device, self.quiet = device_of(device), quiet
        self.listeners = listeners
        self.requests = dataset.requests_of("train")
        self.held_out = dataset.requests_of("validation")
        for split, requests in (("training", self.requests), ("validation", self.held_out)):
            if not len(requests):
                raise DataError(
                    f"{dataset.path} has no requests in its {split} split; "
                    "prepare it with other split points"
                )
        *self.metric, self._higher = stopping_metric(shape.tasks, config.metric)
        check_names("task", config.task_weights, [task.name for task in shape.tasks])
        if config.exact and not model_of(model.model).ranker.streams:
            raise SpecError(
                "exact histories are for models whose state at every prefix of a history is a "
                f"running sum, such as lime-mha; got {model.model}"
            )
        total = int(dataset.requests["count"][self.requests].sum())
        self.impressions = batch_size(config, total)
        torch.manual_seed(config.seed)
        self.ranker = build(shape, model)
        self.ranker.start_at(self._ages())
        self.ranker.to(self.device)
        self.batches_per_epoch = len(self._plan(0))
        self.optimiser = Optimiser(
            self.ranker, config, self.batches_per_epoch * config.epochs, self.impressions
        )
        self.progress: dict[str, Any] = {
            "epoch": 0,
            "batch": 0,
            "step": 0,
            "impressions": 0,
            "seconds": 0.0,
            "best": None,
            "best_step": 0,
            "waited": 0,
            "lines": 0,
        }

    def _ages(self) -> torch.Tensor:
        """Ages [n] of the events in some histories of the training split."""
        some = self.requests[:: max(len(self.requests) // LOOKED_AT, 1)]
        users = self.dataset.batch(some, self.config.history).users
        return users.age[real_positions(users.lengths, users.age.shape[1])]

    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of an epoch: the same for the same seed, whenever they are asked for."""
        config = self.config
        generator = np.random.default_rng([config.seed, epoch])
        length, together = config.history, 1
        if config.exact:
            length, together = len(self.dataset.events["time"]), config.exact_requests
        return self.dataset.plan(self.requests, self.impressions, length, generator, together)

    def _batches(self, plan: list[NDArray[np.int64]]) -> Iterator[Batch | Sequences]:
        if self.config.exact:
            return self.dataset.sequence_batches(plan)
        return self.dataset.batches(plan, self.config.history)

    def _logits(self, batch: Batch | Sequences) -> torch.Tensor:
        """Logits [n, K] of the impressions of a batch."""
        if isinstance(batch, Sequences):
            return self.ranker.sequence_logits(batch)
        logits: torch.Tensor = self.ranker(batch)
        return logits[batch.real]

    def run(self) -> TrainingResult:
        """Train to the end and leave the best weights in the run folder."""
        self._resume()
        config, state = self.config, self.progress
        total = self.batches_per_epoch * config.epochs
        self.ranker.train()
        autocast = (
            torch.autocast(self.device.type, dtype=torch.bfloat16) if config.bf16 else nullcontext()
        )
        self._saved = self._reported = self._mark = time.monotonic()
        self._free_to_save = self._saved
        self._window = _Window()
        name = f"training {self.ranker.config.model}"
        with Bar(name, total=total, unit="batches", quiet=self.quiet) as bar:
            bar.advance(state["step"])
            while state["epoch"] < config.epochs and state["waited"] < config.patience:
                plan = self._plan(state["epoch"])
                self._validate_at = {
                    math.ceil(len(plan) * (part + 1) / config.validations)
                    for part in range(config.validations)
                }
                plan = plan[state["batch"] :]
                for batch in self._batches(plan):
                    batch = batch.to(self.device)
                    with autocast:
                        logits = self._logits(batch)
                    losses = task_losses(logits, batch.labels[batch.real], self.shape.tasks)
                    loss = total_loss(losses, config.task_weights)
                    loss.backward()
                    self.optimiser.step(state["step"])
                    self._window.add(loss, losses, batch)
                    state["step"] += 1
                    state["batch"] += 1
                    state["impressions"] += batch.impressions
                    state["seconds"] += time.monotonic() - self._mark
                    self._after_step(bar)
                    self._mark = time.monotonic()
                    if state["waited"] >= config.patience:
                        break
                else:
                    state["epoch"] += 1
                    state["batch"] = 0
        result = TrainingResult(
            self.out,
            self.ranker.config.model,
            steps=state["step"],
            seconds=round(state["seconds"], 3),
            impressions_per_s=round(state["impressions"] / max(state["seconds"], 1e-9)),
            metric="/".join(self.metric),
            best=state["best"],
            best_step=state["best_step"],
        )
        self._line(result.to_dict())
        shutil.rmtree(self.out / "trainer")
        return result

    def _after_step(self, bar: Bar) -> None:
        state = self.progress
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS or state["batch"] in self._validate_at:
            line = self._window.line(state, self.optimiser.share(state["step"] - 1))
            if not math.isfinite(line["loss"]):
                self._diverged(f"the loss is {line['loss']}")
            self._reported, self._window = now, _Window()
            best = f", best {self.metric[1]} {state['best']:.4f}" if state["best"] else ""
            bar.advance(0, f"loss {line['loss']:.4f}, {line['impressions_per_s']:,}/s{best}")
            self._line(line)
        bar.advance(1)
        if state["batch"] in self._validate_at:
            self._validate()
            if time.monotonic() >= self._free_to_save:
                self._save()
        elif now >= max(self._saved + self.config.checkpoint_seconds, self._free_to_save):
            self._save()

    def _diverged(self, what: str) -> NoReturn:
        """Say that the training diverged, what is left of it and what to try."""
        best, config = self.progress["best_step"], self.config
        left = "nothing is kept of it"
        if self.progress["best"] is not None:
            left = f"the weights of step {best}, the best validated ones, stay in {self.out}"
        elif (self.out / "trainer" / "state.safetensors").exists():
            left = f"the last checkpoint stays in {self.out}"
        raise DataError(
            f"the training diverged by step {self.progress['step']}: {what}; {left}. Try lower "
            f"rates (rate is {config.rate:g}, table_rate {config.table_rate:g}; with --overwrite), "
            "or look for extreme numbers in the features and durations"
        )

    def _validate(self) -> None:
        state = self.progress
        if not finite(self.ranker.parameters()):
            self._diverged("weights are not finite")
        predicted = predict(self.ranker, self.dataset, self.held_out, history=self.config.history)
        found = task_metrics(predicted, self.dataset, self.shape.tasks)
        task, metric = self.metric
        value = found[task][metric]
        if math.isnan(value):
            raise DataError(
                f"the validation metric {task}/{metric} is not defined: the labels of the "
                "validation split are all alike; choose other split points or another metric"
            )
        line: dict[str, Any] = {"step": state["step"], "validation": found}
        if predicted.link_use is not None:
            line["effective_links"] = round(effective_links(predicted.link_use), 3)
        self._line(line)
        sign = 1 if self._higher else -1
        if state["best"] is None or sign * value > sign * state["best"]:
            state["best"], state["best_step"], state["waited"] = value, state["step"], 0
            save_weights(self.out, self.ranker)
            few = self.dataset.batch(self.held_out[:TRIED], self.config.history)
            selftest.keep(self.out, self.ranker, few.to(self.device))
        else:
            state["waited"] += 1

    def _line(self, line: dict[str, Any]) -> None:
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.progress["lines"] += 1
        for listen in self.listeners:
            listen(line)

    def _save(self) -> None:
        began = time.monotonic()
        optimiser = self.optimiser.state()
        if not finite(self.ranker.parameters()) or not finite(optimiser.values()):
            self._diverged("weights, or what the optimiser holds of them, are not finite")
        tensors = {f"model.{name}": value for name, value in self.ranker.state_dict().items()}
        for name, value in optimiser.items():
            tensors[f"optimiser.{name}"] = value
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        save_state(self.out, tensors, self.progress)
        self._saved = time.monotonic()
        self._free_to_save = self._saved + (self._saved - began) / CHECKPOINT_SHARE

    def _resume(self) -> None:
        held = load_state(self.out)
        curves = self.out / "metrics.jsonl"
        lines: list[str] = []
        if held is not None:
            tensors, self.progress = held
            self.ranker.load_state_dict(_below(tensors, "model."))
            self.optimiser.load(_below(tensors, "optimiser."))
            torch.set_rng_state(tensors["rng.cpu"])
            if "rng.cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
            lines = curves.read_text(encoding="utf-8").splitlines(keepends=True)
            lines = lines[: self.progress["lines"]]
        write_text(curves, "".join(lines))


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


class _Window:
    """Sums between two points of the curves."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.batches = self.impressions = 0
        self.losses: dict[str, torch.Tensor] = {}
        self.real = self.computed = 0

    def add(
        self, loss: torch.Tensor, losses: dict[str, torch.Tensor], batch: Batch | Sequences
    ) -> None:
        for name, value in (("loss", loss), *((f"loss_{k}", v) for k, v in losses.items())):
            value = value.detach()
            self.losses[name] = self.losses[name] + value if name in self.losses else value
        self.batches += 1
        self.impressions += batch.impressions
        self.real += batch.impressions + int(batch.users.lengths.sum())
        self.computed += batch.computed

    def line(self, state: dict[str, Any], share: float) -> dict[str, Any]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        losses = {name: float(value) / self.batches for name, value in self.losses.items()}
        return {
            "step": state["step"],
            "epoch": state["epoch"],
            **{name: round(value, 6) for name, value in losses.items()},
            "rate_share": round(share, 4),
            "impressions_per_s": round(self.impressions / seconds),
            "real_positions": round(self.real / max(self.computed, 1), 4),
        }
