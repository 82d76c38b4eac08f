"""``limerank train``: a dataset to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from limerank.cli.options import Overwrite, Quiet, Set, assignments
from limerank.errors import SpecError

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
    model: Annotated[
        str,
        typer.Option(
            help="lime-xor, lime-mha; or a baseline: popularity, two-tower, sasrec, din, lrea, "
            "truncated-mha, mha, hstu."
        ),
    ] = "lime-xor",
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    table_learning_rate: Annotated[float | None, typer.Option()] = None,
    width: Annotated[int | None, typer.Option()] = None,
    links: Annotated[int | None, typer.Option()] = None,
    history: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int, typer.Option(help="Random seed of weights, order and dropout.")] = 0,
    bf16: Annotated[
        bool,
        typer.Option("--bf16", help="Compute matrix products in bfloat16 (faster on recent CPUs)."),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads.", show_default="all cores")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:N for the N-th GPU.")] = "cpu",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write curves for TensorBoard.")
    ] = False,
    setting: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a ranker.

    Run the same command again to resume an interrupted training from its last checkpoint.

    Examples:

        limerank train data/mine --model lime-mha --out runs/mine --bf16

        limerank train data/mine --out runs/deep --set blocks=2 --set 'task_weights={"watch": 0.3}'
    """
    import torch

    from limerank.models.config import configs_of
    from limerank.training.trainer import train as run

    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "table_learning_rate": table_learning_rate,
        "width": width,
        "links": links,
        "history": history,
    }
    given = {name: value for name, value in given.items() if value is not None}
    more = assignments(setting)
    for name in more:
        if name in given or name in ("model", "seed", "bf16"):
            raise SpecError(f"--set {name}: give it as the option --{name.replace('_', '-')} alone")
    model_config, config = configs_of(model, {**given, **more, "seed": seed, "bf16": bf16})
    if threads is not None:
        if threads < 1:
            raise SpecError(f"--threads is {threads}, expected 1 or more")
        torch.set_num_threads(threads)
    result = run(
        data,
        out,
        model=model_config,
        config=config,
        overwrite=overwrite,
        device=device,
        tensorboard=tensorboard,
        quiet=quiet,
    )
    print(result.text())
    print(f"Next: limerank evaluate {out}; limerank index {out} --out index/{out.name}")
