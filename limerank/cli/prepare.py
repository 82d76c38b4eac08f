"""``limerank prepare``: logs to a dataset."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from limerank.cli.options import Overwrite, Quiet, assignments
from limerank.errors import SpecError, did_you_mean

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

    Examples:

        limerank prepare spec.toml --out data/mine

        limerank prepare spec.toml --extend data/monday --since 2026-09-01 --out data/tuesday

        limerank prepare s3://shop/spec.toml --out data/mine

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
    if write_spec is not None:
        check_output(write_spec, (".toml",))
    elif out is not None:  # before converting files
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
    summary = run(
        spec,
        out,
        base=base,
        extend=extend,
        encoding=encoding,
        since=start,
        memory=limit,
        overwrite=overwrite,
        quiet=quiet,
    )
    print(summary.text())
    data, new = quote(str(out)), quote(f"runs/{out.name}")
    print(f"\nNext: limerank train {data} --model lime-xor --out {new}")
