"""One cycle of the daily loop: prepare, check, train, judge, index, publish.

Every step writes its output in one piece, and is skipped where that is there already. So a cycle
that was killed at any moment is continued by the next call, and ends as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limerank.data.canonical import LARGEST_TIME, iso
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.exposures import MAIN
from limerank.data.prepare import prepare
from limerank.errors import DataError, FormatError
from limerank.files import (
    make_folder,
    read_json,
    remove_folder,
    sweep_folder,
    write_json,
    writes_to,
)
from limerank.index.building import build_index
from limerank.locks import held_alone
from limerank.models.config import configs_of
from limerank.refresh.checks import check_data
from limerank.refresh.config import Export, RefreshConfig
from limerank.refresh.gate import Verdict, judge
from limerank.refresh.home import NEW, Entry, Home, Rollout, now
from limerank.refresh.rollout import decided, now_ms
from limerank.runs.alarms import read_alarms
from limerank.serving.export import export as write_export
from limerank.serving.stores import existing, exists, open_store
from limerank.serving.stores.valkey_server import redacted
from limerank.storage.manifest import read_manifest
from limerank.storage.publishing import publish_folder
from limerank.storage.uris import parse_uri
from limerank.training.resume import end
from limerank.training.trainer import train
from limerank.training.warm import model_name

Say = Callable[[str], None]


def refresh(
    config: RefreshConfig, *, say: Say = lambda line: None, quiet: bool = True
) -> Entry | None:
    """Run a cycle, or the rest of one that was interrupted.

    Args:
        config: the daily loop.
        say: called with a line for each step.
        quiet: show no progress bars.

    Returns:
        What became of the cycle; None where the log has nothing new, or a rollout goes on.

    Raises:
        FormatError: another process runs a cycle in the same folder, or a folder is damaged.
        LimerankError: a step failed; the next call goes on with the same cycle.
    """
    make_folder(config.home)
    with held_alone(config.home / "lock", f"{config.home} is being refreshed"):
        home = Home(config.home)
        home.settle()
        _send(home, config.publish.to, quiet)  # what an earlier call could not send
        entry = None
        if home.rollout is None or decided(config, home, say):
            entry = _Cycle(config, home, home.begin(), say, quiet).run()
        _send(home, config.publish.to, quiet)
        return entry


def _send(home: Home, to: str | None, quiet: bool = True) -> None:
    """Publish the live run and index under a URI, unless they are published there."""
    if to is None or home.live is None:
        return
    uri = parse_uri(to)
    folder = home.folder(home.live)
    publish_folder(folder, uri, read_manifest(uri), only=("run", "index"), quiet=quiet)


def roll_back(home: Path, to: str | None = None) -> tuple[str, str]:
    """End a rollout, or make the cycle live that was live before: the cycle that users had, and the
    one that they have. What is live then is published under ``to``, if it is given.

    Raises:
        FormatError: there is none, or another process runs a cycle.
    """
    with _opened(home) as found:
        done = found.roll_back()
        _send(found, to)
        return done


def promote(home: Path, to: str | None = None) -> tuple[str | None, str]:
    """Give all users the model that is rolled out: the cycle that was live, and the one that is,
    which is published under ``to``, if it is given.

    Raises:
        FormatError: there is no rollout, or another process runs a cycle.
    """
    with _opened(home) as found:
        done = found.promote()
        _send(found, to)
        return done


@contextmanager
def _opened(home: Path) -> Iterator[Home]:
    if not (home / "record.json").exists():
        raise FormatError(f"{home} is no folder of a daily loop: it has no record.json")
    with held_alone(home / "lock", f"{home} is being refreshed"):
        opened = Home(home)
        opened.settle()
        yield opened


class _Cycle:
    def __init__(self, config: RefreshConfig, home: Home, name: str, say: Say, quiet: bool) -> None:
        self.config, self.home, self.name, self.quiet = config, home, name, quiet
        self.folder = home.folder(name)
        self.state = home.read_cycle(name)
        self.say = say

    def run(self) -> Entry | None:
        current = self.home.live
        self.say(
            f"cycle {self.name}: {'no model is live' if current is None else f'{current} is live'}"
        )
        if self.config.export is not None:
            self._export(self.config.export)
        before = self.home.latest_data()
        data = self.folder / "data"
        with self._step("prepare", data) as todo:
            if todo:
                self._prepare(before, data)
        dataset = Dataset(data)
        added = before is None or dataset.manifest["summary"]["added"]["rows"] > 0
        if not added and current is not None:
            self.home.drop(self.name)
            self.say("nothing is new in the log; nothing was changed")
            return None
        if not added:
            self.say("  nothing is new in the log, but no model is live: it is trained once more")
        elif before is not None:
            reasons = check_data(dataset, Dataset(before), self.config.data)
            if reasons:
                return self._finish("refused", reasons, data=False)
        run, index = self.folder / "run", self.folder / "index"
        with self._step("train", run if ended(run) else self.folder / "none") as todo:
            if todo:
                try:
                    self._train(dataset, run, current)
                except DataError:  # the next call reads what the log has by then
                    for folder in (run, data):
                        remove_folder(folder)
                    raise
        parent = None if current is None else self.home.folder(current) / "run"
        with self._step("judge", self.folder / "verdict.json") as todo:
            if todo:
                verdict = judge(run, parent, data, self.config.gate, self.folder, quiet=self.quiet)
                write_json(self.folder / "verdict.json", verdict.to_dict())
        verdict = Verdict.of(read_json(self.folder / "verdict.json", "the verdict of a cycle"))
        if not verdict.passed:
            return self._finish("refused", verdict.reasons, data=True)
        with self._step("index", index) as todo:
            if todo:
                build_index(run, index, data=dataset, quiet=self.quiet)
        if current is not None and self.config.publish.share < 1:
            return self._finish("rolling out", verdict.reasons, data=True)
        return self._finish("published", verdict.reasons, data=True)

    def _export(self, export: Export) -> None:
        """Write what the store has that no cycle has exported; nothing where it has nothing new."""
        out = export.folder / f"exported-{self.name}.parquet"
        since = export.since_ms if self.home.exported is None else self.home.exported
        if "exported" not in self.state:
            out.unlink(missing_ok=True)  # of a cycle that was removed
        if not out.exists():
            first = self.home.live is None and export.since is not None
            if first and not exists(export.store):
                self.say(f"  there is no store {export.store} yet: nothing is exported")
                return
            until = now_ms() - round(1000 * export.window)
            if since is not None and since >= until:
                return
            self.state["exported"] = until
            write_json(self.folder / "cycle.json", self.state)
        until = self.state["exported"]
        with self._step("export", out) as todo:
            if not todo:
                return
            with open_store(existing(export.store)) as store:
                done = write_export(
                    store,
                    out,
                    since=1 - LARGEST_TIME if since is None else since,
                    until=until,
                    window=export.window,
                    like=self.config.description,
                    quiet=self.quiet,
                )
            if done.description is not None:  # the loop has its own
                done.description.unlink()
            if not done.shown + done.events:
                out.unlink()

    def _prepare(self, before: Path | None, out: Path) -> None:
        """Prepare the dataset."""
        spec, base = load_spec(self.config.description), self.config.description.parent
        memory = self.config.memory
        if before is None:
            prepare(spec, out, base=base, memory=memory, quiet=self.quiet)
            return
        since = None
        if self.config.window_ms is not None:
            since = Dataset(before).manifest["summary"]["time"]["last"] - self.config.window_ms
        prepare(spec, out, base=base, extend=before, since=since, memory=memory, quiet=self.quiet)

    def _train(self, dataset: Dataset, run: Path, current: str | None) -> None:
        config = self.config
        parent = None if current is None else self.home.folder(current) / "run"
        cycles = len(self.home.entries)
        if config.scratch_every and cycles % config.scratch_every == 0:
            parent = None
        if parent is None or model_name(parent) != config.model:
            model, training = configs_of(config.model, dict(config.train))
            train(dataset, run, model=model, config=training, quiet=self.quiet)
        else:
            train(dataset, run, start=parent, config=config.warm, quiet=self.quiet)

    @contextmanager
    def _step(self, name: str, output: Path) -> Iterator[bool]:
        """A step, with whether its output is to be made; its time goes into ``cycle.json``. Beside
        an output that is there, what a killed process left is removed."""
        if output.exists():
            with writes_to(output):
                sweep_folder(output)
            yield False
            return
        self.say(f"  {name}")
        started = time.monotonic()
        yield True
        if self.folder.exists():
            self.state["seconds"][name] = round(time.monotonic() - started, 1)
            write_json(self.folder / "cycle.json", self.state)

    def _finish(self, outcome: Any, reasons: Any, *, data: bool) -> Entry:
        entry = Entry(
            cycle=self.name,
            outcome=outcome,
            reasons=tuple(reasons),
            data=data,
            began=self.state["began"],
            ended=now(),
            seconds=self.state["seconds"],
            exported=self.state.get("exported"),
        )
        share = self.config.publish.share
        rollout = Rollout(self.name, share, now_ms()) if outcome == "rolling out" else None
        self.home.finish(entry, rollout)
        self.home.sweep(self.config.keep)
        self.say(f"  {outcome}" + (f" to {share:.0%} of the users" if rollout else ""))
        for reason in entry.reasons:
            self.say(f"    {reason}")
        if rollout is not None:
            export = self.config.export
            store = "STORE" if export is None else redacted(export.store)
            self.say(
                f"  Compare both: limerank ab --store {store} --share {MAIN}={1 - share:g} "
                f"--share {NEW}={share:g} --since {iso(rollout.since)}"
            )
        if outcome == "refused" and self.home.live is None:
            self.say(
                "  No model is live. Correct what the reasons name, or the settings; then run the "
                "same command again"
            )
        return entry


def ended(run: Path) -> bool:
    """Whether a training has ended."""
    if not run.exists() or read_alarms(run) is None:
        return False
    end(run)
    return True
