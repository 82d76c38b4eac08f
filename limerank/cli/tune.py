"""``limerank tune``: a search for settings that are better than the defaults."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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
from limerank.errors import SpecError

INTERRUPTED = "run the same command again to continue the search"


class Help(TyperCommand):
    """The command's help, and the ranges that are searched."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.console import Console

        from limerank.cli import reference

        super().format_help(ctx, formatter)
        Console().print(reference.listing(reference.searched()))


def tune(
    data: Annotated[Path, typer.Argument(help="Prepared dataset.")],
    out: Annotated[Path, typer.Option(help="Folder of the search; a search in it is continued.")],
    model: ModelName = None,
    trials: Annotated[
        int,
        typer.Option(help="Trainings in all, those with the defaults and of earlier calls too."),
    ] = 30,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Time limit of this call. A training that it interrupts is resumed by the next "
            "call.",
            show_default="none",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Validation metric to compare trials by, such as click/auc.",
            show_default="the one that training stops by",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the search and of trainings.")] = 0,
    bf16: Bf16 = False,
    threads: Threads = None,
    device: Device = "cpu",
    setting: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Search for settings that are better than the defaults.

    The first training has the defaults, so the result is never worse than they are on the
    validation split. Trainings that fall behind are stopped early. Settings of `--set` are fixed,
    those of the list below are searched. It needs Optuna: `pip install "limerank[tune]"`.

    Run the same command again to continue an interrupted search, or with more `--trials` to extend
    it. Several processes may run the same command at the same time.

    Examples:

        limerank tune data/mine --model lime-mha --out tuned --trials 30 --minutes 60

        limerank tune data/mine --out tuned --metric click/ne --set width=64 --set hidden=32
    """
    import json

    from limerank.models.config import DEFAULT_MODEL, configs_of
    from limerank.tuning.tuner import tune as run

    fixed = assignments(setting)
    for name in ("model", "metric", "seed", "bf16"):
        if name in fixed:
            raise SpecError(f"--set {name}: give it as the option --{name} alone")
    options = {"metric": metric, "bf16": bf16 or None}
    given = {name: value for name, value in options.items() if value is not None}
    model_config, config = configs_of(model or DEFAULT_MODEL, {**fixed, **given, "seed": seed})
    use_threads(threads)
    result = run(
        data,
        out,
        model=model_config,
        config=config,
        trials=trials,
        minutes=minutes,
        overwrite=overwrite,
        device=device,
        quiet=quiet,
    )
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    print(result.text())
    best, usual, chosen = (quote(str(p)) for p in (result.run, out / "defaults", out / "best.json"))
    print(
        f"Next: limerank evaluate {best}; limerank compare {best} --with {usual}; "
        f"limerank train {quote(str(data))} --config {chosen} --out RUN"
    )
