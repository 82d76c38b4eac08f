"""The application: one line per command; a command's module is loaded when the command is used.

The module of a command has the command's name. It defines a function of the same name, whose
docstring is the text of ``--help``, and ``INTERRUPTED``: what Ctrl-C leaves behind and how to
continue. Large libraries are imported inside the function, so that help appears at once.
"""

from __future__ import annotations

import functools
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from limerank.cli import errors
from limerank.cli.uris import require_uris, with_uris

COMMANDS = (
    "synth",
    "prepare",
    "train",
    "tune",
    "evaluate",
    "compare",
    "index",
    "rank",
    "similar",
    "fill",
    "store",
    "states",
    "serve",
    "export",
    "consume",
    "ab",
    "refresh",
    "promote",
    "rollback",
    "report",
    "publish",
    "pull",
    "demo",
    "settings",
)
"""In the order in which ``limerank --help`` lists them."""

STYLE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "markdown",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


@functools.cache
def command_of(name: str) -> Any:
    """The command of this name, from its module."""
    module = import_module(f"limerank.cli.{name}")
    alone = typer.Typer(**STYLE)
    interrupted = getattr(module, "INTERRUPTED", "")
    alone.command(name, cls=getattr(module, "Help", None), epilog=errors.exit_text(interrupted))(
        with_uris(name, getattr(module, name))
    )
    return typer.main.get_command(alone)


class Commands(TyperGroup):
    """The commands, and how each of them ends (:mod:`limerank.cli.errors`)."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return command_of(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # names to propose
        require_uris(args[1:])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            name = ctx.invoked_subcommand
            how = getattr(import_module(f"limerank.cli.{name}"), "INTERRUPTED", "") if name else ""
            print("interrupted" + (f": {how}" if how else ""), file=sys.stderr)
            raise typer.Exit(errors.INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except Exception as error:  # shown or raised again
            if hasattr(error, "exit_code"):
                raise  # typer's own: usage, help
            if ctx.params.get("debug"):
                traceback.print_exc()
            status, text = errors.outcome(error, ctx.invoked_subcommand or "")
            print(f"error: {text}", file=sys.stderr)
            # Frames refer to a model, an index, a store: free them before the interpreter ends.
            error.__traceback__ = None
            raise typer.Exit(status) from None


app = typer.Typer(
    name="limerank",
    cls=Commands,
    no_args_is_help=True,
    help="""Train a LIME ranker on your own logs, index the catalogue, and rank all of it.

The usual order: **prepare** (your logs, or those of **synth**), **train**, **evaluate**, **index**,
**rank**. `limerank demo` runs every step on simulated logs in about five minutes.

Paths of datasets, runs, indexes and logs may be URIs such as `s3://bucket/path`.""",
    epilog=f"`limerank COMMAND --help` explains one command.\n\n{errors.exit_text()}",
    **STYLE,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"limerank {version('limerank')}")
        raise typer.Exit


@app.callback()
def _limerank(
    debug: Annotated[
        bool, typer.Option("--debug", help="Also print the traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass  # Commands reads --debug
