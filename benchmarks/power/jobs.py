"""The jobs: what the package writes, as small as it can be."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w

from benchmarks.power.job import Job, MixtureError, tree_digest
from limerank.data.dataset import Dataset
from limerank.data.events import event_of
from limerank.data.exposures import exposure_of
from limerank.data.prepare import prepare
from limerank.errors import FormatError
from limerank.files import new_folder, read_json, write_json, write_text
from limerank.index.building import build_index
from limerank.index.changes import add_items, change_items, remove_items
from limerank.index.compaction import compact_index
from limerank.index.counting import Shown, count_again
from limerank.index.parts import build_part, join_parts
from limerank.index.reading import Index
from limerank.index.writing import writing
from limerank.models.config import DataShape, TrainConfig
from limerank.models.registry import build
from limerank.parts import Part, parts_folder
from limerank.ranking.bulk import rank_all
from limerank.ranking.recommender import Recommender
from limerank.refresh.config import load_config
from limerank.refresh.cycle import refresh, roll_back
from limerank.refresh.home import Home
from limerank.runs import selftest
from limerank.runs.alarms import is_unfinished, read_alarms
from limerank.runs.folder import Run, create_run, load_run, save_weights
from limerank.serving.export import export
from limerank.serving.stores import SqliteStore, State
from limerank.serving.watched import wanted
from limerank.training.trainer import train
from limerank.tuning.result import TuningResult
from limerank.tuning.tuner import tune

START, DAY = 1_700_000_000, 86_400
TINY = {"width": 8, "links": 2, "heads": 1, "hidden": 8}


def write_day(folder: Path, day: int, rows: int = 120) -> None:
    """A day's log; new items come in every day."""
    rng = np.random.default_rng(day)
    items = rng.integers(0, 12 + 2 * day, rows)
    chance = np.where(items % 2, 0.8, 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "user_id": rng.integers(0, 15, rows),
            "item_id": items,
            "time": START + day * DAY + np.sort(rng.integers(0, DAY, rows)),
            "click": (rng.random(rows) < chance).astype(np.int64),
            "device": rng.choice(["phone", "desk"], rows),
        }
    ).write_parquet(folder / f"day-{day}.parquet")


def description(files: str, items: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": "days",
        "events": [{"files": [files], "time": "time"}],
        "labels": [{"name": "click", "kind": "binary"}],
        "event_features": [{"name": "device", "kind": "categorical", "when": "context"}],
    }
    if items is not None:
        found["items"] = {
            "files": [items],
            "id": "item_id",
            "features": [{"name": "group", "kind": "categorical"}],
        }
    return found


def dataset_of(shared: Path) -> Path:
    """A dataset with an item table, prepared once."""
    out = shared / "data"
    if not out.exists():
        for day in (0, 1):
            write_day(shared / "log", day)
        pl.DataFrame(
            {"item_id": list(range(20)), "group": [f"g{k % 4}" for k in range(20)]}
        ).write_parquet(shared / "items.parquet")
        prepare(description("log/*.parquet", "items.parquet"), out, base=shared)
    return out


@functools.cache
def run_of(shared: Path) -> Run:
    """A run with the weights of the start."""
    path = shared / "run"
    if not path.exists():
        import torch

        from limerank.models.config import model_config_of

        dataset = Dataset(dataset_of(shared))
        torch.manual_seed(0)
        shape = DataShape.of(dataset.manifest)
        config = model_config_of({"model": "lime-mha", **TINY})
        path.mkdir()
        create_run(path, dataset, shape, config, TrainConfig())
        save_weights(path, build(shape, config))
    return load_run(path)


def index_version(path: Path) -> Any:
    """Everything that an index contains; None where there is none."""
    if not path.exists():
        return None
    index = Index.open(path, verify=True)
    parts = (index.vectors, index.weights, index.terms, index.counters, *index.hourly())
    return (
        index.counted,
        index.items,
        index.ids[:].tolist(),
        index.ids.find(range(60)).tolist(),
        index.hidden.tolist(),
        index.removed.tolist(),
        [None if part is None else part.tobytes() for part in parts],
    )


class FilesJob(Job):
    """A folder that is replaced, and files, one of them in a new folder."""

    name = "files"
    steps = 4
    repeats = 1.0

    def step(self, number: int, root: Path) -> None:
        if number in (0, 1):
            with new_folder(root / "out", overwrite=True, mark="mark") as folder:
                (folder / "below").mkdir()
                for name in ("mark", "below/a", "below/b"):
                    (folder / name).write_text(f"{name} {number}" * 100)
        elif number == 2:
            write_json(root / "value.json", {"value": "old" * 300})
            write_text(root / "above" / "below" / "text", "text" * 300)
        else:
            write_json(root / "value.json", {"value": "new" * 400})

    def tidy(self, root: Path) -> None:
        for number in range(1, self.steps):
            self.step(number, root)

    def version(self, root: Path) -> Any:
        out, found = root / "out", None
        if out.exists():
            texts = {name: (out / name).read_text() for name in ("mark", "below/a", "below/b")}
            found = {text.removeprefix(f"{name} ")[:1] for name, text in texts.items()}
            expected = {name: f"{name} {min(found)}" * 100 for name in texts}
            if texts != expected:
                raise MixtureError(texts)
        text = root / "above" / "below" / "text"
        written = text.read_text() if text.exists() else None
        value = root / "value.json"
        # The second step writes two files: it is complete when both are there.
        held = read_json(value, "a value")["value"] if value.exists() else None
        if written not in (None, "text" * 300) or held not in (None, "old" * 300, "new" * 400):
            raise MixtureError((written, held))
        return found, held if written is not None else None


class ItemsJob(Job):
    """A live index: items are added, updated and removed, counters are refreshed, and it is
    compacted."""

    name = "index changes"
    steps = 5

    def set_up(self, root: Path) -> None:
        build_index(run_of(self.shared), root / "index", data=dataset_of(self.shared))

    def step(self, number: int, root: Path) -> None:
        run, path = run_of(self.shared), root / "index"
        if number == 0:
            add_items(run, path, [{"item_id": id, "group": "g1"} for id in (40, 41)])
        elif number == 1:
            change_items(
                run, path, update={"item_id": 3, "group": "g2"}, put={"item_id": 42, "group": "g0"}
            )
        elif number == 2:
            remove_items(path, [40, 5])
        elif number == 3:
            hour = START // 3600 + 60
            shown = Shown([3, 42], *np.array([[hour, hour], [9, 4], [2, 0]]))
            with writing(path):
                count_again(run, path, shown, hour + 1)
        else:
            compact_index(path)

    def version(self, root: Path) -> Any:
        return index_version(root / "index")


class BuildJob(Job):
    """An index that is built, and replaced."""

    name = "index build"
    steps = 2

    def step(self, number: int, root: Path) -> None:
        run, out = run_of(self.shared), root / "index"
        if number == 0:
            build_index(run, out, data=dataset_of(self.shared))
        else:
            items = [{"item_id": id, "group": "g3"} for id in range(3, 9)]
            build_index(run, out, items=items, overwrite=True)

    def version(self, root: Path) -> Any:
        return index_version(root / "index")


class PartsJob(Job):
    """An index whose two parts are built, and then joined."""

    name = "index in parts"
    steps = 3
    temporary = re.compile(rf"{Job.temporary.pattern}|\.parts")

    def step(self, number: int, root: Path) -> None:
        self._step(number, root / "index")

    def tidy(self, root: Path) -> None:
        for number in range(self.steps):
            self._step(number, root / "index", overwrite=True)

    def _step(self, number: int, out: Path, *, overwrite: bool = False) -> None:
        run = run_of(self.shared)
        if number < 2:
            build_part(run, out, Part(number + 1, 2), data=dataset_of(self.shared))
        else:
            join_parts(run, out, overwrite=overwrite)

    def version(self, root: Path) -> Any:
        found = index_version(root / "index")
        if found is not None:
            return found
        parts = sorted(parts_folder(root / "index").glob("part-*"))
        return [(path.name, index_version(path)) for path in parts]


class PrepareJob(Job):
    """A dataset that is prepared, extended and replaced."""

    name = "prepare"
    steps = 3
    repeats = 0.02

    def set_up(self, root: Path) -> None:
        for day in (0, 1):
            write_day(root / "log", day, rows=40)

    def step(self, number: int, root: Path) -> None:
        files = ("log/day-0.parquet", "log/*.parquet", "log/day-1.parquet")[number]
        prepare(
            description(files),
            root / ("second" if number == 1 else "first"),
            base=root,
            extend=root / "first" if number == 1 else None,
            overwrite=True,
        )

    def tidy(self, root: Path) -> None:
        for number in (1, 2):
            self.step(number, root)

    def version(self, root: Path) -> Any:
        return tuple(self._dataset(root / name) for name in ("first", "second"))

    def _dataset(self, path: Path) -> Any:
        if not path.exists():
            return None
        dataset = Dataset(path)
        manifest = {name: value for name, value in dataset.manifest.items() if name != "log"}
        return json.dumps(manifest, sort_keys=True), tree_digest(path, ("manifest.json",))


class TrainJob(Job):
    """A training with checkpoints: a killed one is resumed, and ends with the same weights."""

    name = "training"
    steps = 1
    repeats = 0.02

    def step(self, number: int, root: Path) -> None:
        self._train(root)

    def tidy(self, root: Path) -> None:
        self._train(root, overwrite=True)

    def _train(self, root: Path, *, overwrite: bool = False) -> None:
        train(
            dataset_of(self.shared),
            root / "run",
            model={"model": "lime-mha", **TINY},
            config={"epochs": 2, "batch_size": 32, "checkpoint_seconds": 0},
            overwrite=overwrite,
        )

    def version(self, root: Path) -> Any:
        path = root / "run"
        if not path.exists():
            return "unfinished"
        try:
            run = load_run(path)
            tested = selftest.passes(run)
        except FormatError as error:
            if "training has not reached its first validation" not in str(error):
                raise
            run, tested = None, False
        if is_unfinished(path):
            return "unfinished"
        alarms = read_alarms(path)
        if run is None or alarms is None or not run.sealed or not tested:
            raise MixtureError("a finished run without its weights, its alarms or its self-test")
        (path / "metrics.jsonl").read_text()
        return run.fingerprint, [one.name for one in alarms]


class SearchJob(Job):
    """A search for settings: a trial, and one more."""

    name = "search"
    steps = 2
    temporary = re.compile(rf"{Job.temporary.pattern}|\.new")
    repeats = 0.02

    def step(self, number: int, root: Path) -> None:
        found = self._search(root, trials=number + 1)
        assert [one.state for one in found.trials] == ["finished"] * (number + 1), found

    def tidy(self, root: Path) -> None:
        self._search(root, trials=self.steps, overwrite=True)

    def _search(self, root: Path, *, trials: int, overwrite: bool = False) -> TuningResult:
        return tune(
            dataset_of(self.shared),
            root / "search",
            model={"model": "popularity", "width": 8, "hidden": 4},
            config={"epochs": 1, "batch_size": 64, "metric": "click/ne"},
            trials=trials,
            overwrite=overwrite,
        )

    def version(self, root: Path) -> Any:
        path = root / "search"
        if not (path / "best.json").exists():
            return None
        run = load_run(path / "best")
        if not selftest.passes(run) or read_alarms(path / "best") is None:
            raise MixtureError("the best trial has not ended, or not these weights")
        return read_json(path / "best.json", "settings")


class RefreshJob(Job):
    """The daily loop: a first cycle, a second one, and a rollback."""

    name = "refresh"
    steps = 3
    repeats = 0.005

    def set_up(self, root: Path) -> None:
        for day in (0, 1):
            write_day(root / "log", day)
        (root / "days.toml").write_text(tomli_w.dumps(description("log/*.parquet")))
        values = {
            "home": "home",
            "description": "days.toml",
            "model": "lime-mha",
            "train": {"width": 8, "links": 2, "epochs": 1},
            "gate": {"alarms": False, "tolerance": 0.9, "most_ne": 10.0},
            "data": {"most_shifted": 100.0},
        }
        (root / "refresh.toml").write_text(tomli_w.dumps(values))

    def step(self, number: int, root: Path) -> None:
        config = load_config(root / "refresh.toml")
        if number < 2:
            if number and not (root / "log" / "day-2.parquet").exists():
                write_day(root / "log", 2)
            done = refresh(config)
            assert done is None or done.outcome == "published", done
        else:
            roll_back(config.home)

    def version(self, root: Path) -> Any:
        home = load_config(root / "refresh.toml").home
        if not (home / "live").exists():
            if (home / "record.json").exists() and Home(home).published:
                return "to be published"
            return None
        found = wanted(home / "live")
        Index.open(found["index"], load_run(found["run"]).fingerprint, verify=True)
        assert selftest.passes(load_run(found["run"]))
        cycle = Path(found["run"]).parent.name
        if cycle not in {one.cycle for one in Home(home).entries}:
            raise MixtureError(f"cycle {cycle} is live and not recorded")
        return cycle


class ExportJob(Job):
    """A log of a store's events, with its description, and one that replaces it."""

    name = "export"
    steps = 2
    repeats = 0.5

    def step(self, number: int, root: Path) -> None:
        path = self.shared / "exported.db"
        if not path.exists():
            with SqliteStore(path) as store:
                store.append([_event(user, at) for user in range(3) for at in range(20)])
                store.show([exposure_of(1, 1000, "main.a", (5, 6))])
        with SqliteStore(path) as store:
            until = 10 if number == 0 else 100_000
            export(store, root / "log.parquet", until=until, describe=True, overwrite=True)

    def version(self, root: Path) -> Any:
        path = root / "log.parquet"
        if not path.exists():
            return None
        if not path.with_suffix(".toml").exists():
            raise MixtureError("a log without its description")
        return pl.read_parquet(path).rows()


class RankJob(Job):
    """Every user's best items, in one file."""

    name = "rank --all"
    steps = 2
    repeats = 0.5

    def step(self, number: int, root: Path) -> None:
        run, data = run_of(self.shared), dataset_of(self.shared)
        index = self.shared / "index"
        if not index.exists():
            build_index(run, index, data=data)
        recommender = Recommender(run, index, data)
        rank_all(recommender, root / "out.parquet", k=3 + number, overwrite=True)

    def tidy(self, root: Path) -> None:
        self.step(1, root)

    def version(self, root: Path) -> Any:
        path = root / "out.parquet"
        return pl.read_parquet(path).rows() if path.exists() else None


def _event(user: int, at: int) -> Any:
    return event_of({"user": user, "item": at % 7, "time": at, "id": f"{at}", "labels": {"c": 1}})


class StoreJob(Job):
    """An event store in a new folder: events, exposures, features, items, states, a user who is
    deleted, and events again."""

    name = "event store"
    steps = 9
    temporary = re.compile(r"\.partial|-journal")

    def step(self, number: int, root: Path) -> None:
        raise NotImplementedError("the steps share a store, see run")

    def run(self, root: Path, start: int, acknowledge: Callable[[int], None]) -> None:
        with SqliteStore(self._path(root)) as store:
            steps: list[Callable[[], object]] = [
                lambda: store.append([_event(user, at) for user in (1, 2) for at in range(30)]),
                lambda: store.append([_event(1, 100 + at) for at in range(5)]),
                lambda: store.show([exposure_of(1, 200, "main.a", (5, 6))]),
                lambda: store.set_features(2, {"country": "x" * 3000}),
                lambda: store.put_items({7: {"group": "g1"}, 8: None}),
                lambda: self._put_state(store),
                lambda: store.delete_user(1),
                lambda: store.append([_event(1, 500), _event(3, 1)]),
                lambda: store.append([_event(3, at) for at in range(2, 60)]),
            ]
            for number in range(start, self.steps):
                steps[number]()
                acknowledge(number + 1)

    @staticmethod
    def _path(root: Path) -> Path:
        return root / "above" / "below" / "events.db"

    @staticmethod
    def _put_state(store: SqliteStore) -> None:
        version = store.version(2)
        assert version is not None
        assert store.put_state(2, "window", State(b"fingerprint", version, b"data" * 400))

    def version(self, root: Path) -> Any:
        if not self._path(root).exists():
            return self._empty()
        with SqliteStore(self._path(root)) as store:
            users = {}
            for user in store.users():
                held = store.held(user)
                assert held is not None
                state = store.state(user, "window")
                users[user] = (
                    held.features,
                    [(one.time, one.item, one.id) for one in held.events],
                    store.exposures(user, 0, 1000),
                    None if state is None else state.data,
                    store.event_count(user),
                )
            assert not store.check()
            return users, store.items(), store.counts()

    def _empty(self) -> Any:
        with SqliteStore(self.shared / "empty.db") as store:
            return {}, store.items(), store.counts()


JOBS: Mapping[str, Callable[[Path], Job]] = {
    kind.name: functools.partial(kind)
    for kind in (
        FilesJob,
        ItemsJob,
        BuildJob,
        PartsJob,
        PrepareJob,
        TrainJob,
        SearchJob,
        RefreshJob,
        ExportJob,
        RankJob,
        StoreJob,
    )
}
"""Name -> a job, given the folder for what the jobs share."""
