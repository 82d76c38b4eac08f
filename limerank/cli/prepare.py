"""``limerank prepare``: logs to a dataset."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from limerank.cli.options import (
    Join,
    On,
    Overwrite,
    PartOption,
    Parts,
    Quiet,
    Retries,
    assignments,
    run_on,
)
from limerank.errors import SpecError, did_you_mean
from limerank.parts import parse_part

INTERRUPTED = "nothing was written; run the same command again to start over"

READER_NAMES = (
    "amazon-reviews",
    "kuairand",
    "mind",
    "movielens",
    "retailrocket",
    "taobao-ad",
)


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help=f"A dataset description (TOML), or a public layout: {', '.join(READER_NAMES)}."
        ),
    ],
    directory: Annotated[
        Path | None, typer.Argument(help="For a public layout: the folder of its files.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder.")] = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            help="Dataset of an earlier day: keep its events and codes, read only new files."
        ),
    ] = None,
    encoding: Annotated[
        Path | None,
        typer.Option(help="Dataset whose codes and scales are used again; all files are read."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Leave out events before this time: 2026-11-01 (UTC) or milliseconds since 1970.",
            metavar="TIME",
        ),
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory limit, such as 512MiB or 2GiB.")] = "2GiB",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="NAME=VALUE", help="Option of a public layout. Repeatable."
        ),
    ] = None,
    write_spec: Annotated[
        Path | None,
        typer.Option(help="For a public layout: only write its description, for editing."),
    ] = None,
    part: PartOption = None,
    join: Join = False,
    on: On = None,
    parts: Parts = 16,
    retries: Retries = 3,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Convert logs into a sorted, typed, memory-mapped dataset.

    Vocabularies, normalisation and popularity are computed from the training window only. Bad rows
    are dropped and counted by reason. The output folder appears when it is complete.

    A log of what users did, such as views and purchases or plays, without what else was shown, has
    a label of kind = "positive": docs/recipes.md has descriptions for the usual shops and players.

    The description's [split] chooses training, validation and test: by time (the default), by
    position within each user (the default for logs that have only an order), leave_last = N, or
    column = "NAME". Impressions without a request id are grouped by the gaps of the log; the
    summary shows how, and how many events old their histories are (staleness).

    A log that grows: --extend adds the files that an earlier dataset has not read. Every code,
    bucket edge and scale of it stays, and new users, items and values get codes behind its own, so
    that yesterday's models can rank and be trained further. The rule of [split] applies to the
    extended log: by default its newest part is the test split. --since drops old events.

    A large log is read in parts, by any number of processes and machines that share the folder:
    each calls the command with --part K/N, and --join ends it. The dataset is, byte for byte, the
    one that a single process prepares. A part is a range of the log's files; one that is complete
    is not read again, so a failed one is repeated by calling all of them again.

    Examples:

        limerank prepare spec.toml --out data/mine

        limerank prepare spec.toml --extend data/monday --since 2026-09-01 --out data/tuesday

        limerank prepare s3://shop/spec.toml --out data/mine

        seq 16 | xargs -P 4 -I K limerank prepare spec.toml --out data/mine --part K/16

        limerank prepare spec.toml --out data/mine --join

        limerank prepare spec.toml --out data/mine --on ray --parts 64

        limerank prepare retailrocket FOLDER --out data/shop -o target=addtocart,transaction

        limerank prepare movielens ml-1m --out data/ml1m -o split=leave-last
    """
    from limerank.data.description import load_spec
    from limerank.data.prepare import prepare as run
    from limerank.data.readers import LAYOUTS, read
    from limerank.files import check_folder, check_output
    from limerank.storage.uris import is_uri
    from limerank.validation import memory_bytes

    if out is None and write_spec is None:
        raise SpecError("give --out, the output folder (or --write-spec FILE)")
    limit = memory_bytes(memory)
    in_parts = part is not None or join or on is not None
    if in_parts:
        _check_parts(part, join, on, source in LAYOUTS or write_spec is not None, overwrite)
    if write_spec is not None:
        check_output(write_spec, (".toml",))
    elif out is not None and part is None:  # before converting files
        check_folder(out, overwrite=overwrite, mark="dataset.json")
    if source in LAYOUTS:
        if directory is None:
            raise SpecError(f"give the folder of the {source} files: limerank prepare {source} DIR")
        target = out if out is not None else write_spec
        assert target is not None
        work = target.with_name(f"{target.name}-converted")
        spec, base = read(source, directory, work, quiet=quiet, **assignments(option))
    elif option and Path(source).suffix == ".toml":
        name = option[0].partition("=")[0]
        part = f"[{name}] in " if name in ("checks", "history", "requests", "split") else ""
        raise SpecError(f"-o is for public layouts; edit {part}{source}")
    elif directory is not None or option:
        raise SpecError(
            f"{source!r} is not a public layout; expected {', '.join(LAYOUTS)}"
            f"{did_you_mean(source, LAYOUTS)}"
        )
    elif not is_uri(source) and not Path(source).exists():
        raise SpecError(
            f"{source} is neither a dataset description nor one of the public layouts "
            f"{', '.join(LAYOUTS)}{did_you_mean(source, LAYOUTS)}"
        )
    else:
        spec = load_spec(source)
        base = Path() if is_uri(source) else Path(source).parent
    if write_spec is not None:
        from limerank.data.description import write_spec as write

        write(write_spec, spec, base)
        print(
            f"{write_spec} written. Next: limerank prepare {quote(str(write_spec))} --out data/NAME"
        )
        return
    assert out is not None
    start = int(since) if since is not None and since.removeprefix("-").isdecimal() else since
    given: dict[str, Any] = {
        "extend": extend,
        "encoding": encoding,
        "since": start,
        "memory": limit,
    }
    if part is not None:
        from limerank.data.prepare.parts import prepare_part

        print(prepare_part(source, out, parse_part(part), **given, quiet=quiet).text())
        return
    if on is not None:
        _read_on(on, source, out, given, parts, retries, quiet)
    if in_parts:
        from limerank.data.prepare.parts import join_prepared

        summary = join_prepared(source, out, **given, overwrite=overwrite, quiet=quiet)
    else:
        summary = run(spec, out, base=base, **given, overwrite=overwrite, quiet=quiet)
    print(summary.text())
    data, new = quote(str(out)), quote(f"runs/{out.name}")
    print(f"\nNext: limerank train {data} --model lime-xor --out {new}")


def _check_parts(
    part: str | None, join: bool, on: str | None, without_parts: bool, overwrite: bool
) -> None:
    """Refuse options that do not go together."""
    given = [
        option
        for option, value in (("--part", part), ("--join", join), ("--on", on))
        if value not in (None, False)
    ]
    if len(given) > 1:
        raise SpecError(f"{' and '.join(given)} are given, expected one of them")
    if without_parts:
        raise SpecError(
            f"{given[0]} goes with a description: write the one of a public layout with "
            "--write-spec FILE first, and prepare FILE in parts"
        )
    if part is not None and overwrite:
        raise SpecError("--overwrite goes with --join, which replaces the dataset; not with --part")


def _read_on(
    on: str, source: str, out: Path, given: dict[str, Any], parts: int, retries: int, quiet: bool
) -> None:
    """Read all parts on a cluster; those again that took ids for integers which are text."""
    from limerank.data.prepare.parts import missing_parts
    from limerank.storage.uris import is_uri

    spec = source if is_uri(source) else Path(source)
    job = {"command": "prepare", "spec": spec, "out": out, **given}
    for _ in ("integers", "text items", "text users"):
        run_on(on, job, parts, retries, quiet)
        if not missing_parts(out):
            return
