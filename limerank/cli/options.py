"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from limerank.errors import SpecError, check_choice

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output of the same kind.")
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="K/N",
        help="Compute only part K (from 1) of N; --join puts all of them together.",
    ),
]
Join = Annotated[
    bool, typer.Option("--join", help="Join the parts of --part, when all are complete.")
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray",
        help="Compute all parts on a Ray cluster and join them: the one of RAY_ADDRESS, or one on "
        'this machine. Needs the extra: pip install "limerank[ray]".',
    ),
]
Parts = Annotated[int, typer.Option("--parts", metavar="N", help="With --on: number of parts.")]
Retries = Annotated[
    int, typer.Option("--retries", help="With --on: further attempts of a part that failed.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress bars.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Prepared dataset.", show_default="the dataset of the run"),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="lime-xor, lime-mha; or a baseline: popularity, two-tower, sasrec, din, lrea, "
        "truncated-mha, mha, hstu; or counted, without training: most-popular, item-knn.",
        show_default="lime-xor",
    ),
]
Bf16 = Annotated[
    bool,
    typer.Option("--bf16", help="Compute matrix products in bfloat16 (faster on recent CPUs)."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads.", show_default="all cores")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or cuda:N for the N-th GPU.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting (limerank settings). Repeatable."
    ),
]


def use_threads(threads: int | None) -> None:
    """Compute with so many CPU threads; None: as torch chooses.

    Raises:
        SpecError: it is less than 1.
    """
    if threads is not None:
        import torch

        if threads < 1:
            raise SpecError(f"--threads is {threads}, expected 1 or more")
        torch.set_num_threads(threads)


def run_on(on: str, job: dict[str, Any], parts: int, retries: int, quiet: bool) -> None:
    """Compute all parts of a job on a cluster.

    Args:
        on: the engine.
        job: see :mod:`limerank.cluster.work`; paths become absolute.
        parts, retries, quiet: see :func:`~limerank.cluster.jobs.run_parts`.

    Raises:
        SpecError: there is no such engine, or it is not installed.
        LimerankError: the attempts of a part are used up.
    """
    from limerank.cluster.jobs import run_parts
    from limerank.cluster.on_ray import RayWorkers

    check_choice("--on", on, ("ray",))
    given = {
        name: str(value.absolute()) if isinstance(value, Path) else value
        for name, value in job.items()
    }
    threads = int(given.get("threads") or 1)
    run_parts(lambda of: RayWorkers(of, parts, threads), given, parts, retries=retries, quiet=quiet)


def print_coverage(table: Any, partial: bool = False) -> None:
    """Print how well a table matches the dataset, and its warnings on standard error.

    Args:
        table: the coverage to print; None prints nothing.
        partial: whether the table may lack items without a warning.
    """
    if table is not None:
        print("\n".join(f"  {line}" for line in table.lines()))
        for warning in table.warnings(partial):
            print(f"warning: {warning}", file=sys.stderr)


def assignments(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs as a mapping. A value is JSON if it parses as JSON, else text.

    Raises:
        SpecError: a pair has no ``=``, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals:
            raise SpecError(f"{pair!r} is not a setting; expected NAME=VALUE")
        if name in found:
            raise SpecError(f"{name} is set twice: {found[name]!r} and {text!r}")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found


def candidates(text: str) -> list[Any]:
    """Candidates as :func:`ids` reads them; an element that is a JSON object has values of its
    impression features.

    Raises:
        SpecError: the file cannot be read, or an object is not JSON.
    """
    found: list[Any] = []
    for one in ids(text):
        if one.startswith("{"):
            try:
                found.append(json.loads(one))
            except ValueError as error:
                raise SpecError(
                    f"the candidate {one:.80} is not JSON ({error}); objects go into a file, one "
                    'per line, such as {"item": 7, "price": 12.5}'
                ) from None
        else:
            found.append(one)
    return found


def ids(text: str) -> list[str]:
    """Ids separated by commas, or the lines of a file given as ``@FILE``.

    Raises:
        SpecError: the file cannot be read.
    """
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise SpecError(f"cannot read {text[1:]}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SpecError(f"cannot read {text[1:]}: it is not UTF-8 text") from None
    else:
        lines = text.split(",")
    return [line.strip() for line in lines if line.strip()]
