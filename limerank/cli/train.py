"""``limerank train``: a dataset to a run."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from limerank.cli.options import (
    Bf16,
    Device,
    ModelName,
    Overwrite,
    Quiet,
    Set,
    Threads,
    assignments,
    use_threads,
)
from limerank.errors import SpecError, check_choice

INTERRUPTED = "run the same command again to resume from the last checkpoint"


class Help(TyperCommand):
    """The command's help and its unknown options, from the classes that define the settings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # an unknown option has a name; all else is raised again
            option = getattr(error, "option_name", "")
            advice = self._advice(option) if option else ""
            if not advice:
                raise
            raise SpecError(f"there is no option {option}; {advice}") from None

    def _advice(self, option: str) -> str:
        """How to give the setting that an unknown option means; empty if it means none."""
        from pydantic import BaseModel

        from limerank.models.aliases import name_here
        from limerank.models.config import TrainConfig
        from limerank.models.registry import MODELS

        name = name_here(option.lstrip("-"))
        own = f"--{name.replace('_', '-')}"
        if any(own in param.opts for param in self.params):
            return f"it is called {own} here"
        configs: list[type[BaseModel]] = [TrainConfig, *(model.config for model in MODELS.values())]
        if any(name in config.model_fields for config in configs):
            return f"use --set {name}=VALUE"
        return ""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.console import Console

        from limerank.cli import reference

        sections = reference.training(), reference.models()
        settings = {one.name: one for section in sections for one in section.settings}
        for option in self.params:
            if isinstance(option, TyperOption) and option.name in settings and not option.help:
                one = settings[option.name]
                option.help = one.meaning if one.default == "not set" else one.summary
                option.show_default = False if one.default == "not set" else one.default
        super().format_help(ctx, formatter)
        for section in sections:
            Console().print(reference.listing(section, brief=True))


def train(
    data: Annotated[Path, typer.Argument(help="Prepared dataset.")],
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run in it is resumed.")],
    model: ModelName = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="JSON file of settings, such as best.json of limerank tune. Options replace its "
            "settings.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Start from the weights of this run, with its model and settings: train on what "
            "is newer than it.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    table_learning_rate: Annotated[float | None, typer.Option()] = None,
    width: Annotated[int | None, typer.Option()] = None,
    links: Annotated[int | None, typer.Option()] = None,
    history: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Random seed of weights, order and dropout.", show_default="0"),
    ] = None,
    bf16: Bf16 = False,
    threads: Threads = None,
    device: Device = "cpu",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write curves for TensorBoard.")
    ] = False,
    setting: Set = None,
    overwrite: Overwrite = False,
    collective_seconds: Annotated[
        float,
        typer.Option(
            min=1,
            help="With several processes: how long one waits for another one that does not answer.",
        ),
    ] = 600.0,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="ray",
            help="Train by several processes on a Ray cluster: the one of RAY_ADDRESS, or one on "
            'this machine. Needs the extra: pip install "limerank[ray]".',
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N[:THREADS]", help="With --on: number of processes, and the cores of each."
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            "--retries",
            help="With --on: how often the training goes on from its last checkpoint after a "
            "process has ended.",
        ),
    ] = 3,
    quiet: Quiet = False,
) -> None:
    """Train a ranker.

    Run the same command again to resume an interrupted training from its last checkpoint.

    The last lines are AUC and NE of the stored weights on the validation split (of a log of
    positives: HR@10 and NDCG@10 of lists of all items, beside item-kNN's) and, for a run that is
    not worth deploying, ALARMS with what to try.

    With --from RUN it goes on from an earlier run, in a fraction of the time: weights and the
    optimiser's numbers are found by the ids of items and the values of features, so that the
    dataset may have more of both, or other features. It trains on the requests that are newer than
    what the run was trained on, and on as many older ones (replay), for one epoch.

    Several processes share the work where torchrun starts them: each one computes a part of every
    batch, and the run is the one that a single process would train. The run folder must be on a
    file system that all of them share. Run the same command again, with any number of processes,
    to resume. With --on ray, Ray starts them, and all again from the last checkpoint where one of
    them ends.

    Examples:

        limerank train data/mine --model lime-mha --out runs/mine --bf16

        limerank train data/mine --out runs/deep --set blocks=2 --set 'task_weights={"watch": 0.3}'

        limerank train data/mine --config tuned/best.json --out runs/best

        limerank train data/today --from runs/yesterday --out runs/today

        torchrun --nproc-per-node 2 -m limerank train data/mine --out runs/mine

        limerank train data/mine --out runs/mine --on ray --workers 4:8
    """
    if on is None and workers is not None:
        raise SpecError(
            "--workers goes with --on ray; torchrun starts processes by its own options"
        )
    size, cores = _workers(on, workers, threads)
    from limerank.models.config import DEFAULT_MODEL, ModelConfig, TrainConfig, configs_of
    from limerank.models.settings_file import read_settings
    from limerank.training.distributed.group import launched, own_device, processes
    from limerank.training.trainer import train as run
    from limerank.training.warm import model_name

    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "table_learning_rate": table_learning_rate,
        "width": width,
        "links": links,
        "history": history,
    }
    given |= {"seed": seed, "bf16": bf16 or None}
    given = {name: value for name, value in given.items() if value is not None}
    more = assignments(setting)
    for name in more:
        if name in given or name in ("model", "seed", "bf16"):
            raise SpecError(f"--set {name}: give it as the option --{name.replace('_', '-')} alone")
    stored_model, stored = (None, {}) if settings is None else read_settings(settings)
    if model and stored_model and model != stored_model:
        raise SpecError(
            f"--model is {model}, but {settings} has settings of {stored_model}; leave --model out"
        )
    settings_given = {**stored, **given, **more}
    wanted = model or stored_model
    if start is not None:
        wanted = wanted or model_name(start)
    model_config, config = configs_of(wanted or DEFAULT_MODEL, settings_given)
    of_model: ModelConfig | dict[str, Any] = model_config
    of_training: TrainConfig | dict[str, Any] = config
    if start is not None:  # what is not given is as in the run
        own = model_config.__class__.model_fields
        of_model = {"model": model_config.model}
        of_model |= {name: value for name, value in settings_given.items() if name in own}
        of_training = {name: value for name, value in settings_given.items() if name not in own}
    name, new = quote(str(out)), quote(f"index/{out.name}")
    following = f"Next: limerank evaluate {name}; limerank index {name} --out {new}"
    if on is not None:
        from limerank.cluster.on_ray import RayTraining
        from limerank.cluster.training import train_together

        if launched():
            raise SpecError(
                "--on ray starts the processes itself: call the command without torchrun"
            )
        if isinstance(of_training, TrainConfig):
            of_training = of_training.model_dump(mode="json")
        if isinstance(of_model, ModelConfig):
            of_model = of_model.model_dump(mode="json")
        job: dict[str, Any] = {
            "data": str(data.absolute()),
            "out": str(out.absolute()),
            "model": of_model,
        }
        job |= {"start": None if start is None else str(start.absolute()), "config": of_training}
        job |= {"device": device, "overwrite": overwrite, "tensorboard": tensorboard}
        job |= {"quiet": quiet, "collective_seconds": collective_seconds}
        with RayTraining(size, cores, 1 if device.startswith("cuda") else 0) as cluster:
            print(train_together(cluster.begin, job, size, retries=retries))
        print(following)
        return
    use_threads(threads)
    with processes(device, collective_seconds) as world:
        result = run(
            data,
            out,
            model=of_model,
            config=of_training,
            start=start,
            overwrite=overwrite,
            device=own_device(device),
            tensorboard=tensorboard,
            quiet=quiet,
            world=world,
        )
        if world.rank:
            return
    print(result.text())
    print(following)


def _workers(on: str | None, workers: str | None, threads: int | None) -> tuple[int, int]:
    """Number of processes, and cores of each, of ``--workers`` and ``--threads``.

    Raises:
        SpecError: they are not valid, or there is no such engine.
    """
    if on is None:
        return 1, 1
    check_choice("--on", on, ("ray",))
    found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", workers or "")
    if found is None or int(found[1]) < 1 or int(found[2] or 1) < 1:
        raise SpecError(
            f"--workers is {workers}, expected N or N:THREADS, such as 4:8 for four processes with "
            "eight cores each"
        )
    if found[2] is not None and threads is not None:
        raise SpecError(f"--workers {workers} gives the threads of a process: leave --threads out")
    cores = int(found[2] or (1 if threads is None else threads))
    if cores < 1:
        raise SpecError(f"--threads is {threads}, expected 1 or more")
    return int(found[1]), cores
