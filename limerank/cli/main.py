"""The command line: ``limerank COMMAND --help`` teaches each one.

Everything heavy is imported inside the commands, so that help is instant.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from limerank.errors import LimerankError, SpecError, check_choice, did_you_mean
from limerank.files import FULL

LONGEST_MESSAGE = 500
"""Characters of an unforeseen error's text that are shown; its trace holds all of it."""

GO_ON = {
    "synth": "nothing was written",
    "prepare": "nothing was written; the same command begins anew",
    "train": "the same command goes on from the last checkpoint",
    "evaluate": "nothing was written",
    "compare": "nothing was written",
    "index": "the same command goes on with a build; a change of an index was not made",
    "rank": "the same command goes on with --all-users or --users where it was",
    "fill": "what was stored stays; the same command stores the rest",
    "demo": "the same command goes on; finished steps are kept",
    "report": "nothing was written",
}
"""What an interrupted command leaves, and how to go on."""


class Commands(TyperGroup):
    """The commands, and how each of them ends: errors are one message on standard error.

    Exit status 2: something that whoever called can mend. 1: a fault of limerank, whose trace is
    written to a file. 130: interrupted.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            how = GO_ON.get(ctx.invoked_subcommand or "")
            print("interrupted" + (f": {how}" if how else ""), file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise
        except Exception as error:  # shown or raised again
            if hasattr(error, "exit_code"):
                raise  # typer's own: usage, help
            if ctx.params.get("debug"):
                traceback.print_exc()
            status, text = _shown(error, ctx.invoked_subcommand or "")
            print(f"error: {text}", file=sys.stderr)
            # Frames hold a model, an index, a store: they go before the interpreter does.
            error.__traceback__ = None
            raise typer.Exit(status) from None


def _shown(error: Exception, command: str) -> tuple[int, str]:
    """Exit status and message of an error."""
    if isinstance(error, LimerankError):
        return 2, error.detail
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno in FULL and not names:
            return (
                2,
                f"a disk that is written to is full ({error.strerror}); make room and try again",
            )
        return 2, ": ".join([*names, error.strerror or str(error) or type(error).__name__])
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 2, f"there is not enough memory ({_one_line(error)}); try smaller batches or models"
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="limerank-trace-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(trace)
        where = f"its trace is in {file.name}"
    except OSError:
        where = f"limerank --debug {command} shows its trace"
    return 1, f"{type(error).__name__}: {_one_line(error)} (unforeseen; {where})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_MESSAGE]


app = typer.Typer(
    name="limerank",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Train a LIME ranker on your own logs, index the catalogue, rank all of it.

The way of the data: **synth** or your own logs -> **prepare** -> **train** -> **evaluate** ->
**index** -> **rank**. `limerank demo` walks it all on simulated logs in five minutes.""",
    rich_markup_mode="markdown",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"limerank {version('limerank')}")
        raise typer.Exit


@app.callback()
def _limerank(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the trace of an error, too.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version, and end."
        ),
    ] = False,
) -> None:
    pass  # Commands reads --debug


READER_NAMES = ("kuairand", "mind", "movielens", "taobao-ad")

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Dataset; the one the run was trained on by default.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; may be given repeatedly."),
]


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    users: Annotated[int, typer.Option(help="How many users, arriving over time.")] = 2000,
    items: Annotated[int, typer.Option(help="How many items, uploaded over time.")] = 2000,
    events: Annotated[int, typer.Option(help="How many impressions, exactly.")] = 200_000,
    days: Annotated[int, typer.Option(help="Length of the log.")] = 30,
    history: Annotated[int, typer.Option(help="History length written into spec.toml.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same log.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Simulate short-video logs whose truth is known.

    Writes events, item and user tables, a ready spec.toml, and the true click probability and
    expected watch time of every impression, so that a model can be held against the best possible.

    Example: limerank synth --users 5000 --items 3000 --events 500000 --out logs/sim
    """
    from limerank.data.synthetic import simulate

    simulate(
        out,
        users=users,
        items=items,
        events=events,
        days=days,
        history=history,
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
    )
    print(f"{out} holds {events:,} events. Next: limerank prepare {out}/spec.toml --out data/sim")


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(help=f"A dataset description (TOML), or one of {', '.join(READER_NAMES)}."),
    ],
    directory: Annotated[
        Path | None, typer.Argument(help="For an official layout: the folder it was unpacked to.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    memory: Annotated[
        str, typer.Option(help="Upper bound of memory, such as 512MiB or 2GiB.")
    ] = "2GiB",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the layout."),
    ] = None,
    write_spec: Annotated[
        Path | None,
        typer.Option(help="For an official layout: only write its description, to edit it."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Turn logs into a sorted, typed, memory-mapped dataset.

    Vocabularies, normalisation and popularity come from the training window alone. Bad rows are
    counted by reason. A killed run leaves nothing that looks finished.

    Examples:

        limerank prepare spec.toml --out data/mine

        limerank prepare movielens ml-1m --out data/ml1m -o split=position
    """
    from limerank.data.prepare import prepare as run
    from limerank.data.prepare import summary_text
    from limerank.data.readers import READERS, read
    from limerank.data.spec import load_spec
    from limerank.files import check_folder, check_output

    if out is None and write_spec is None:
        raise SpecError("give --out, the folder to write (or --write-spec FILE)")
    limit = _bytes(memory)
    if write_spec is not None:
        check_output(write_spec, (".toml",))
    elif out is not None:  # before files are converted
        check_folder(out, overwrite=overwrite, mark="dataset.json")
    if source in READERS:
        if directory is None:
            raise SpecError(f"give the folder of the {source} files: limerank prepare {source} DIR")
        target = out if out is not None else write_spec
        assert target is not None
        work = target.with_name(f"{target.name}-converted")
        spec, base = read(source, directory, work, quiet=quiet, **_settings(option))
    elif directory is not None or option:
        raise SpecError(
            f"{source!r} is no official layout; expected {', '.join(READERS)}"
            f"{did_you_mean(source, READERS)}"
        )
    elif not Path(source).exists():
        raise SpecError(
            f"{source} is neither a dataset description nor one of the official layouts "
            f"{', '.join(READERS)}{did_you_mean(source, READERS)}"
        )
    else:
        spec, base = load_spec(source), Path(source).parent
    if write_spec is not None:
        from limerank.data.spec import write_spec as write

        write(write_spec, spec, base)
        print(f"{write_spec} written. Next: limerank prepare {write_spec} --out data/NAME")
        return
    assert out is not None
    manifest = run(spec, out, base=base, memory=limit, overwrite=overwrite, quiet=quiet)
    print(summary_text(manifest))
    print(f"\nNext: limerank train {out} --model lime-xor --out runs/{out.name}")


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run in it is resumed.")],
    model: Annotated[
        str,
        typer.Option(
            help="lime-xor, lime-mha; or a baseline: popularity, two-tower, sasrec, din, lrea, "
            "truncated-mha, mha, hstu."
        ),
    ] = "lime-xor",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    impressions: Annotated[
        int | None, typer.Option(help="Impressions per batch; by the size of the log.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate of dense weights.")] = None,
    table_rate: Annotated[float | None, typer.Option(help="Learning rate of tables.")] = None,
    width: Annotated[int | None, typer.Option(help="Numbers per item, event and link.")] = None,
    links: Annotated[int | None, typer.Option(help="Learned links.")] = None,
    history: Annotated[int | None, typer.Option(help="Events per history.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and dropout.")] = 0,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Matrix products in bfloat16 (fast on newer CPUs).")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard as well.")
    ] = False,
    setting: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a ranker. A killed run goes on where it was when the same command is given again.

    Every field of the model's and the training's configuration can be set:
    `--set blocks=2 --set dropout=0.2 --set 'task_weights={"watch": 0.3}'`.

    Example: limerank train data/mine --model lime-mha --out runs/mine --bf16
    """
    import torch

    from limerank.data.spec import validate
    from limerank.models.config import ModelConfig, TrainConfig
    from limerank.training.trainer import train as run

    given = {
        "epochs": epochs,
        "impressions": impressions,
        "rate": rate,
        "table_rate": table_rate,
        "width": width,
        "links": links,
        "history": history,
    }
    given = {name: value for name, value in given.items() if value is not None}
    more = _settings(setting)
    known = [*ModelConfig.model_fields, *TrainConfig.model_fields]
    for name in more:
        if name not in known:
            raise SpecError(
                f"--set {name}: there is no such setting{did_you_mean(name, known)}; expected one "
                f"of {', '.join(known)}"
            )
        if name in given or name in ("model", "seed", "bf16"):
            raise SpecError(f"--set {name}: give it as the option --{name.replace('_', '-')} alone")
    given |= more
    shape = {name: given.pop(name) for name in tuple(given) if name in ModelConfig.model_fields}
    if threads is not None:
        if threads < 1:
            raise SpecError(f"--threads is {threads}, expected 1 or more")
        torch.set_num_threads(threads)
    model_config = validate(ModelConfig, {"model": model, **shape}, "the model's settings")
    config = validate(TrainConfig, {"seed": seed, "bf16": bf16, **given}, "the training's settings")
    last = run(
        data,
        out,
        model=model_config,
        config=config,
        overwrite=overwrite,
        device=device,
        tensorboard=tensorboard,
        quiet=quiet,
    )
    best = {name: value for name, value in last.items() if name.startswith("best_")}
    print(f"{out}: " + ", ".join(f"{name} {value:g}" for name, value in best.items()))
    print(f"Next: limerank evaluate {out}; limerank index {out} --out index/{out.name}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Data = None,
    split: Annotated[
        str, typer.Option(help="train, validation, test or held-out (users never trained on).")
    ] = "test",
    history: Annotated[
        int | None,
        typer.Option(help="See only so many of a user's latest events; 0: features alone."),
    ] = None,
    at_least: Annotated[
        int, typer.Option(help="Only requests with at least so many events before them.")
    ] = 0,
    lists: Annotated[
        int,
        typer.Option(help="Rank the whole catalogue at so many requests for NDCG, HR and MRR."),
    ] = 2000,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write instead of RUN/metrics.json (or metrics-SPLIT...)."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Parquet or CSV file for what was said of each impression, users named."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure a run exactly and print a table.

    All of it goes to metrics.json in the run folder, of another split to metrics-SPLIT.json.

    Example: limerank evaluate runs/mine --split validation --out metrics/mine.json
    """
    from limerank.evaluation.evaluate import evaluate as measure
    from limerank.evaluation.evaluate import table_text

    result = measure(
        run,
        data=data,
        split=split,
        history=history,
        at_least=at_least,
        lists=lists,
        out=out,
        predictions=predictions,
        quiet=quiet,
    )
    print(table_text(result))


@app.command()
def compare(
    ours: Annotated[list[Path], typer.Argument(help="Run folders of one model, one per seed.")],
    against: Annotated[
        list[Path], typer.Option("--with", help="A run of the other model; as many of them.")
    ],
    data: Data = None,
    split: Annotated[
        str, typer.Option(help="train, validation, test or held-out (users never trained on).")
    ] = "test",
    task: Annotated[str | None, typer.Option(help="A binary task; the first by default.")] = None,
    resamples: Annotated[int, typer.Option(help="Draws of users.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """How sure a difference in AUC is: bounds from a paired bootstrap over users.

    Example: limerank compare runs/lime --with runs/two-tower
    """
    import json

    from limerank.evaluation.compare import compare as run
    from limerank.evaluation.compare import comparison_text

    result = run(ours, against, data=data, split=split, task=task, resamples=resamples, quiet=quiet)
    print(json.dumps(result) if as_json else comparison_text(result))


@app.command()
def index(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="The index folder.")],
    data: Data = None,
    items: Annotated[
        Path | None,
        typer.Option(help="Another item table in the layout of the run's: new items, cold start."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="With --items: the dataset's other items as well.")
    ] = False,
    add: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add the items of a table, all of them new."),
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Encode items anew that the index holds."),
    ] = None,
    put: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add items, or update those that the index holds."),
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option(metavar="IDS", help="Remove these item ids (commas), or @FILE with one each."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Drop what updates left behind.")
    ] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="With --compact: drop what histories need of removed items."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte and compare the checksums.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Encode the catalogue once, for ranking; or change, compact or verify an index.

    Without --add, --update, --put, --remove, --compact and --verify the index is built. A killed
    build goes on where it was when the same command is given again.

    An index is changed in place while others rank with it: they keep the version that they opened,
    and whoever opens it later sees the change. Tables have the layout of the run's item table (CSV,
    TSV or Parquet). Several changes in one command are one step, all of it or nothing.

    Examples:

        limerank index runs/mine --out index/mine

        limerank index runs/mine --out index/mine --add new.csv --remove 17,42

        limerank index runs/mine --out index/mine --put changed.parquet --remove @gone.txt

        limerank index runs/mine --out index/mine --compact
    """
    building = {"--data": data, "--items": items, "--merge": merge, "--overwrite": overwrite}
    changing = {"--add": add, "--update": update, "--put": put, "--remove": remove}
    modes = {
        "building": [name for name, value in building.items() if value not in (None, False)],
        "changing": [name for name, value in changing.items() if value is not None],
        "compacting": ["--compact"] if compact else [],
        "verifying": ["--verify"] if verify else [],
    }
    given = [mode for mode, options in modes.items() if options]
    if len(given) > 1:
        options = ", ".join(option for mode in given for option in modes[mode])
        raise SpecError(f"{options} are {' and '.join(given)} an index: one at a time, please")
    if forget and not compact:
        raise SpecError("--forget goes with --compact")
    if given in ([], ["building"]):
        from limerank.index.building import build_index

        built = build_index(
            run, out, data=data, items=items, merge=merge, overwrite=overwrite, quiet=quiet
        )
        _print_coverage(built.get("item_table"))
        print(f"Next: limerank rank --run {run} --index {out} --user ID -k 20 --explain")
        return
    from limerank.index import Index
    from limerank.index.changes import change_items, change_text, compact_index
    from limerank.runs.folder import load_run

    loaded = load_run(run)
    if verify:
        held = Index.open(out, loaded.fingerprint, verify=True)
        print(f"{out} is whole: {held.items:,} items, version {held.version}")
        return
    if compact:
        Index.open(out, loaded.fingerprint)
        change = compact_index(out, forget=forget, quiet=quiet)
    else:
        removed = None if remove is None else _ids(remove)
        change = change_items(
            loaded, out, add=add, update=update, put=put, remove=removed, quiet=quiet
        )
    print(f"{out}: {change_text(change)}")
    for table in change.tables:
        _print_coverage(table, partial=True)
    for advice in change.advice:
        print(f"advice: {advice}", file=sys.stderr)


@app.command()
def rank(
    run: Annotated[Path, typer.Option(help="A run folder.")],
    index: Annotated[Path, typer.Option(help="The index of the run.")],
    user: Annotated[str | None, typer.Option(help="User id, for the history in the log.")] = None,
    history: Annotated[
        str | None,
        typer.Option(help="A history given here: item ids, oldest first, separated by commas."),
    ] = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Rank for every user of the log, into --out.")
    ] = False,
    users: Annotated[
        str | None, typer.Option(help="Rank for these users (commas, or @FILE), into --out.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Parquet or CSV file (by its ending) for the items of --all-users."),
    ] = None,
    overwrite: Overwrite = False,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 20,
    candidates: Annotated[
        str | None, typer.Option(help="Only these item ids (commas), or @FILE with one per line.")
    ] = None,
    skip_unknown: Annotated[
        bool,
        typer.Option("--skip-unknown", help="Leave out candidates that are not in the index."),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the events that carried each item.")
    ] = False,
    seen: Annotated[
        bool, typer.Option("--seen/--no-seen", help="Whether items of the history may be ranked.")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="When the request is made: 2026-11-01T12:00 (UTC) or milliseconds since 1970; "
            "only events before it count. The end of the log if not given.",
        ),
    ] = None,
    scorer: Annotated[
        str, typer.Option(help="auto; native or quantised (LIME, bytes), or model (float32).")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of the native scorer.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    data: Data = None,
    quiet: Quiet = False,
) -> None:
    """Rank the whole catalogue, or some candidates, for one user; or the catalogue for many users.

    One user's items are printed. With --all-users or --users the items go to a file with the
    columns user, rank, item, value and one per task: CSV where its name ends in .csv, else Parquet.
    A killed job goes on when called again.

    Examples:

        limerank rank --run runs/mine --index index/mine --user 17 -k 20 --explain

        limerank rank --run runs/mine --index index/mine --all-users -k 100 --out recs.parquet
    """
    time = int(at) if at is not None and at.removeprefix("-").isdecimal() else at
    if all_users or users is not None:
        from limerank.ranking.bulk import bulk_command

        alone = {"--user": user, "--history": history, "--candidates": candidates}
        wrong = [name for name, value in alone.items() if value is not None]
        flags = {"--explain": explain, "--json": as_json, "--skip-unknown": skip_unknown}
        wrong += [name for name, value in flags.items() if value]
        if wrong:
            raise SpecError(f"{', '.join(wrong)} is for one user, not for --all-users or --users")
        if out is None:
            raise SpecError("--all-users and --users need --out, such as --out recs.parquet")
        if all_users and users is not None:
            raise SpecError("give either --all-users or --users")
        bulk_command(
            run=run,
            index=index,
            data=data,
            users=None if users is None else _ids(users),
            out=out,
            k=k,
            exclude_seen=not seen,
            scorer=scorer,
            threads=threads,
            overwrite=overwrite,
            quiet=quiet,
            time=time,
        )
        return
    if out is not None or overwrite:
        raise SpecError("--out and --overwrite go with --all-users or --users")
    if skip_unknown and candidates is None:
        raise SpecError("--skip-unknown goes with --candidates")
    from limerank.ranking.recommender import rank_command

    rank_command(
        run=run,
        index=index,
        user=user,
        history=None if history is None else _ids(history),
        k=k,
        candidates=None if candidates is None else _ids(candidates),
        skip_unknown=skip_unknown,
        explain=explain,
        exclude_seen=not seen,
        scorer=scorer,
        threads=threads,
        as_json=as_json,
        data=data,
        time=time,
    )


@app.command()
def fill(
    store: Annotated[
        str,
        typer.Argument(help="An SQLite file, made if it is not there, or valkey://HOST:PORT/0."),
    ],
    data: Annotated[Path, typer.Option(help="A prepared dataset.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder that the description's paths begin in, to find the user table; where it "
            "was when the dataset was prepared if not given."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Put a dataset's events into an event store: a server then knows the users of the log.

    Filling again, from this log or from a later one that overlaps it, adds the events that the
    store does not hold: an event is known by its user, item, time and labels.
    """
    from limerank.data.dataset import Dataset
    from limerank.serving.fill import fill as run
    from limerank.serving.stores import open_store

    dataset = Dataset(data)  # before a store is made
    with open_store(store) as opened:
        done = run(opened, dataset, base=base, quiet=quiet)
    print(
        f"{opened.address}: {done.accepted:,} new of {done.events:,} events of {done.users:,} users"
    )
    if done.expired:
        print(f"  {done.expired:,} events are older than those that the store holds of their users")
    if done.features:
        print(f"  {done.features:,} users have features of the user table")
    _print_coverage(done.table)
    if done.note:
        print(f"  warning: {done.note} (--base)")
    print(f"Next: limerank serve --run RUN --index INDEX --store {opened.address} --no-keys")


@app.command()
def serve(
    run: Annotated[Path, typer.Option(help="A run folder.")],
    index: Annotated[Path, typer.Option(help="The index of the run.")],
    store: Annotated[
        str,
        typer.Option(
            help="Events: an SQLite file, made if it is not there, or valkey://HOST:PORT/0."
        ),
    ] = "events.db",
    items: Annotated[
        Path | None, typer.Option(help="The item table, for filters and to show features.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File of keys: lines such as `read KEY`, `write KEY`, `admin KEY`; a key has at "
            "least 16 characters."
        ),
    ] = None,
    open_: Annotated[
        bool,
        typer.Option(
            "--no-keys",
            "--open",
            help="Serve without keys: on this machine's own address, for its own programs alone.",
        ),
    ] = False,
    state: Annotated[
        str,
        typer.Option(help="window: the latest events, as evaluated; streaming: all (lime-mha)."),
    ] = "window",
    most: Annotated[
        int | None, typer.Option(help="Events held of a user, at most; all if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of one ranking.")] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Requests computed at a time; the cores if not given.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second and key, at most.")] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a reverse proxy whose X-Forwarded-For is believed; may be "
            "given repeatedly."
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Folder with links run and index, or a JSON file of both: loaded when they change."
        ),
    ] = None,
) -> None:
    """Serve rankings over HTTP: events in, rankings out, new items rankable at once.

    Needs the extra `serve` (pip install "limerank[serve]"). Keys come from --keys or from
    LIMERANK_READ_KEYS, LIMERANK_WRITE_KEYS and LIMERANK_ADMIN_KEYS; /openapi.json describes the
    API.
    """
    from pydantic import ValidationError

    check_choice("state", state, ("window", "streaming"))
    for name, path in (("--run", run), ("--index", index), ("--items", items), ("--keys", keys)):
        if path is not None and not path.exists():
            raise SpecError(f"{name} {path}: there is no such file or folder")
    try:
        from limerank.serving.http.run import serve as serve_
        from limerank.serving.http.settings import Settings, keys_of_environment
    except ImportError as error:
        raise SpecError(f'{error}: pip install "limerank[serve]"') from None

    try:
        given = {"threads": workers} if workers is not None else {}
        settings = Settings(
            host=host,
            port=port,
            keys=keys_of_environment(keys),
            open=open_,
            rate=rate,
            proxies=tuple(proxy or ()),
            **given,
        )
    except ValidationError as error:
        raise SpecError(_of_settings(error.errors())) from None
    except UnicodeDecodeError:
        raise SpecError(f"{keys} is no text file of keys in UTF-8") from None
    except ValueError as error:
        raise SpecError(str(error)) from None
    serve_(
        run=run,
        index=index,
        store=store,
        settings=settings,
        items=items,
        mode=state,  # type: ignore[arg-type]
        threads=threads,
        most=most,
        watch=watch,
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    index: Annotated[Path | None, typer.Option(help="Index of one of the runs.")] = None,
) -> None:
    """Write a one-page HTML report of one or several evaluated runs."""
    from limerank.report.page import write_report

    write_report(out, runs=runs, index=index)
    print(f"{out} written")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path(
        "limerank-demo"
    ),
    small: Annotated[
        bool, typer.Option("--small", help="In a minute, only to see it work.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve the demo's model on this machine's address.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of --serve.")] = 8000,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The whole way on simulated logs: simulate, prepare, train, evaluate, index, rank, report."""
    from limerank.cli.demo import demo as run

    if not 0 <= port < 65536:  # found now, and not after all the work
        raise SpecError(f"--port is {port}, expected 0 to 65535")
    if serve:
        from limerank.serving.http.run import listener

        with listener("127.0.0.1", port):
            pass  # it is free: found now, too
    made = run(out, small=small, overwrite=overwrite, quiet=quiet)
    if serve:
        from limerank.serving.fill import fill
        from limerank.serving.http.run import serve as serve_
        from limerank.serving.http.settings import Settings
        from limerank.serving.stores import SqliteStore

        events = out / "events.db"
        if not events.exists():
            with SqliteStore(events) as store:
                fill(store, out / "data", base=out / "logs", quiet=quiet)
        serve_(
            run=made["run"],
            index=out / "index",
            store=str(events),
            settings=Settings(open=True, port=port),
            items=out / "logs" / "items.parquet",
        )


def _of_settings(errors: Sequence[Any]) -> str:
    """What pydantic says of a server's settings, in one line."""
    parts = []
    for one in errors:
        position = ".".join(map(str, one["loc"]))
        text = one["msg"].removeprefix("Value error, ")
        secret = position.startswith("keys")
        got = "" if secret or not position else f" is {one['input']!r}"
        parts.append(f"{position}{got}: {text}" if position else text)
    return "; ".join(parts)


def _print_coverage(table: Any, partial: bool = False) -> None:
    """How a table fits, where there is one; warnings go to standard error. ``partial``: the table
    need not hold all items."""
    if table is not None:
        print("\n".join(f"  {line}" for line in table.lines()))
        for warning in table.warnings(partial):
            print(f"warning: {warning}", file=sys.stderr)


def _bytes(text: str) -> int:
    units = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    units |= {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    number = text.strip().rstrip("BKMGTIbkmgti")
    unit = text.strip()[len(number) :].upper()
    try:
        found = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        found = 0
    if found < 1:
        raise SpecError(f"{text!r} is no amount of memory; expected such as 512MiB or 2GiB")
    return found


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; values are JSON where they parse as JSON, else text."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals:
            raise SpecError(f"{pair!r} is no setting; expected NAME=VALUE")
        if name in found:
            raise SpecError(f"{name} is set twice: {found[name]!r} and {text!r}")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found


def _ids(text: str) -> list[str]:
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise SpecError(f"cannot read {text[1:]}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SpecError(f"cannot read {text[1:]}: it is no text in UTF-8") from None
    else:
        lines = text.split(",")
    return [line.strip() for line in lines if line.strip()]


def main() -> None:
    """Entry point; how commands end: :class:`Commands`."""
    # Threads that wait by spinning halt a job whenever anything else runs on its cores; what reads
    # this is loaded later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="limerank")
    except KeyboardInterrupt:  # before any command began
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
