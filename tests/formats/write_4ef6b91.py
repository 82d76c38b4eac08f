"""Write the folders of ``tests/test_formats.py`` with limerank at commit 4ef6b91.

It runs against that version alone: a format that changes gets a script and a folder of its own.
What is written, and how to write it: README.md beside this file.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from starlette.testclient import TestClient

import limerank
from limerank.data.dataset import Dataset
from limerank.data.events import event_of
from limerank.data.prepare import prepare
from limerank.data.spec import load_spec
from limerank.evaluation.evaluate import evaluate, predict
from limerank.files import write_json
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import add_items, remove_items, update_items
from limerank.models.config import ModelConfig, TrainConfig
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_run
from limerank.runs.model import seal
from limerank.serving.engine import Serving
from limerank.serving.fill import fill
from limerank.serving.http.app import application
from limerank.serving.http.settings import Settings
from limerank.serving.state import UserStates
from limerank.serving.stores import SqliteStore, ValkeyStore
from limerank.training.trainer import train

MODELS = (
    "lime-mha",
    "lime-xor",
    "popularity",
    "two-tower",
    "truncated-mha",
    "lrea",
    "din",
    "sasrec",
    "mha",
    "hstu",
)
SMALL = {"width": 8, "heads": 2, "links": 4, "blocks": 2, "hidden": 8, "places": 16}
USERS, ITEMS = 40, 30
START = 1_700_000_000
TIMES = (1_701_500_000_000, 1_702_000_000_000)
"""Of requests: within the log, and after its end."""
KEY = "r" * 20


# Logs and datasets


def write_logs(folder: Path) -> None:
    """The same users and items with a clock and all kinds of features, and with an order alone."""
    rng = np.random.default_rng(7)
    rows = []
    for user in range(USERS):
        liked, time = rng.integers(0, 5), START + int(rng.integers(0, 400_000))
        for request in range(int(rng.integers(3, 10))):
            time += int(rng.integers(4_000, 90_000))
            for item in rng.choice(ITEMS, size=int(rng.integers(1, 5)), replace=False):
                click = int(rng.random() < (0.8 if item % 5 == liked else 0.25))
                watch = round(float(rng.exponential(20.0)) * (0.2 + click), 3)
                tab = f"tab{rng.integers(0, 3)}"
                speed = round(float(rng.random()), 3)
                shown = user * 1000 + request
                rows.append((user, int(item), time, shown, click, watch, 10.0 + item, tab, speed))
    names = ["user_id", "item_id", "time", "request_id", "click", "watch", "length", "tab", "speed"]
    events = pl.DataFrame(rows, schema=names, orient="row")
    items = pl.DataFrame(
        {
            "item_id": list(range(ITEMS)),
            "group": [f"g{item % 5}" for item in range(ITEMS)],
            "tags": [f"t{item % 3}|t{item % 7}" for item in range(ITEMS)],
            "price": [float(10 + item) for item in range(ITEMS)],
            "title": [[item / 10, item % 3 - 1.0, 0.5] for item in range(ITEMS)],
            "sold": [int(item % 11 != 10) for item in range(ITEMS)],
        },
        schema_overrides={"title": pl.List(pl.Float32)},
    )
    users = pl.DataFrame(
        {
            "user_id": list(range(USERS)),
            "country": [f"c{user % 3}" for user in range(USERS)],
            "age": [20 + user for user in range(USERS)],
        }
    )
    (folder / "log").mkdir(parents=True)
    events.write_parquet(folder / "log" / "events.parquet", compression="zstd")
    items.write_parquet(folder / "log" / "items.parquet", compression="zstd")
    users.write_csv(folder / "log" / "users.csv")
    ordered = events.select(
        pl.format("u{}", "user_id").alias("who"),
        pl.format("i{}", "item_id").alias("what"),
        pl.int_range(pl.len()).alias("step"),
        "click",
    )
    ordered.write_csv(folder / "log" / "ordered.csv")
    (folder / "log" / "clocked.toml").write_text(CLOCKED)
    (folder / "log" / "ordered.toml").write_text(ORDERED)
    for name in ("clocked", "ordered"):
        spec = load_spec(folder / "log" / f"{name}.toml")
        prepare(spec, folder / name, base=folder / "log")
        copy = folder / name / "spec.toml"
        copy.write_text(copy.read_text().replace(str(folder), ".."))


CLOCKED = """\
name = "clocked"

[[events]]
files = ["events.parquet"]
time = "time"
request = "request_id"

[[labels]]
name = "click"
kind = "binary"

[[labels]]
name = "watch"
kind = "duration"
cap = 60.0
of = "length"

[[event_features]]
name = "tab"
kind = "categorical"
when = "context"

[[event_features]]
name = "speed"
kind = "numeric"

[items]
files = ["items.parquet"]
id = "item_id"
candidate = "sold"
features = [
    { name = "group", kind = "categorical" },
    { name = "tags", kind = "categorical", split = "|" },
    { name = "price", kind = "numeric", transform = "log1p" },
    { name = "title", kind = "text-vector" },
]

[users]
files = ["users.csv"]
id = "user_id"
features = [{ name = "country", kind = "categorical" }, { name = "age", kind = "numeric" }]

[split]
held_out_users = 0.1
held_out_items = 0.1

[history]
length = 12
keep = "click"
"""

ORDERED = """\
name = "ordered"

[[events]]
files = ["ordered.csv"]
user = "who"
item = "what"
order = "step"

[[labels]]
name = "click"
kind = "binary"

[split]
by = "position"

[history]
length = 8

[requests]
size = 4
"""


# Runs


def train_runs(folder: Path) -> None:
    jobs = [(name, "clocked", name) for name in MODELS] + [("ordered", "ordered", "lime-xor")]
    for name, data, model in jobs:
        run = folder / "runs" / name
        train(
            folder / data,
            run,
            model=ModelConfig(model=model, **SMALL),
            config=TrainConfig(epochs=4, impressions=64, rate=0.01, history=10),
        )
        settle(run, data)


def settle(run: Path, data: str) -> None:
    """The dataset moved: the run's folder names no path of this machine."""
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", {**config, "data": data})
    seal(run)


def cut_off(folder: Path) -> None:
    """Start two trainings with the same settings; the second one is killed after a checkpoint.

    Without dropout: what is dropped is drawn at random, and how is not part of the format.
    """
    model = ModelConfig(model="lime-mha", **SMALL, dropout=0, id_dropout=0)
    config = TrainConfig(epochs=4, impressions=64, checkpoint_seconds=0.0)
    train(folder / "clocked", folder / "finished", model=model, config=config)

    validated = []

    def kill(line: dict[str, object]) -> None:
        validated.append("validation" in line)
        if sum(validated) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        train(folder / "clocked", folder / "unfinished", model=model, config=config, report=kill)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (folder / "unfinished" / "model.safetensors").exists()
    assert (folder / "unfinished" / "trainer" / "state.safetensors").exists()
    settle(folder / "unfinished", "clocked")


# Indexes and stores


def build_indexes(folder: Path) -> None:
    for name, data in [("lime-mha", "clocked"), ("two-tower", "clocked"), ("ordered", "ordered")]:
        index = folder / "indexes" / name
        run = load_run(folder / "runs" / name)
        build_index(run, index, data=Dataset(folder / data))
        if data == "clocked":
            add_items(run, index, [live(900), live(901)])
            update_items(run, index, live(3, group="g4"))
            remove_items(index, [4, 901])


def live(item: int, **more: object) -> dict[str, object]:
    columns = {"group": "g1", "tags": "t1|t2", "price": item % 100 + 8.0, "sold": 1}
    return {"item_id": item, **columns, "title": [0.1, 0.2, item % 7 / 7], **more}


def fill_store(folder: Path, store: SqliteStore | ValkeyStore) -> None:
    """All users of the log with their features, one of no log, states of both modes, live items."""
    fill(store, folder / "clocked", base=folder / "log")
    store.append([event_of(one) for one in posted()])
    store.set_features("somebody", {"country": "c1", "age": 33})
    store.put_items({910: live(910), 911: live(911)})
    store.put_items({911: None})
    run = load_run(folder / "runs" / "lime-mha")
    index = Index.open(folder / "indexes" / "lime-mha", run.fingerprint)
    for mode in ("window", "streaming"):
        states = UserStates(run, index, store, mode=mode, keep=True)
        for user in (1, 2, "somebody"):
            states.ready(user)


def posted() -> list[dict[str, object]]:
    return [
        {
            "user": "somebody",
            "item": item,
            "time": 1000 * (START + 60 * item),
            "labels": {"click": item % 2, "watch": 7.5},
            "ratios": {"watch": 0.5},
            "features": {"speed": 0.3},
            "context": {"tab": "tab1"},
            "id": f"event-{item}",
        }
        for item in range(1, 8)
    ]


def fill_stores(folder: Path) -> None:
    path = folder / "events.db"
    with SqliteStore(path) as store:
        fill_store(folder, store)
    assert not list(folder.glob("events.db-*")), "the file alone holds everything"
    with tempfile.TemporaryDirectory() as work:
        socket = f"{work}/socket"
        options = ["--port", "0", "--unixsocket", socket, "--dir", work, "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always"]
        server = subprocess.Popen(["redis-server", *options], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        next(line for line in server.stdout if "eady to accept connections" in line)
        with ValkeyStore(f"unix://{socket}") as store:
            fill_store(folder, store)
        write_json(folder / "valkey.json", dumped(socket))
        server.terminate()
        server.wait()


def dumped(socket: str) -> list[list[str]]:
    """The commands that make the server's keys again, in base64."""
    import valkey

    client = valkey.Valkey(unix_socket_path=socket)
    commands: list[list[bytes]] = []
    for key in sorted(client.scan_iter()):
        kind = client.type(key)
        if kind == b"string":
            commands.append([b"SET", key, client.get(key)])
        elif kind == b"hash":
            flat = [part for pair in sorted(client.hgetall(key).items()) for part in pair]
            commands.append([b"HSET", key, *flat])
        elif kind == b"list":
            commands.append([b"RPUSH", key, *client.lrange(key, 0, -1)])
        elif kind == b"set":
            commands.append([b"SADD", key, *sorted(client.smembers(key))])
        elif kind == b"zset":
            pairs = client.zrange(key, 0, -1, withscores=True)
            flat = [part for one, score in pairs for part in (b"%.0f" % score, one)]
            commands.append([b"ZADD", key, *flat])
        else:
            raise ValueError(kind)
    return [[base64.b64encode(part).decode() for part in command] for command in commands]


# The numbers of this version


def expected(folder: Path) -> dict[str, dict[str, object]]:
    return {
        "datasets": {name: dataset_facts(folder / name) for name in ("clocked", "ordered")},
        "runs": {
            path.name: run_facts(
                path, folder / ("ordered" if path.name == "ordered" else "clocked")
            )
            for path in sorted((folder / "runs").iterdir())
        },
        "finished": run_facts(folder / "finished", folder / "clocked"),
        "indexes": {
            path.name: index_facts(path, folder) for path in sorted((folder / "indexes").iterdir())
        },
        "stores": {mode: server_facts(folder, mode) for mode in ("window", "streaming")},
    }


def data_of(run_or_index: Path) -> Path:
    name = "ordered" if run_or_index.name == "ordered" else "clocked"
    return run_or_index.parents[1] / name


def dataset_facts(path: Path) -> dict[str, object]:
    data = Dataset(path)
    batch = data.batch(data.requests_of("test")[:3])
    return {
        "events": len(data.events["item"]),
        "users": data.user_ids[:5].tolist(),
        "items": data.item_ids[:5].tolist(),
        "trained_items": data.trained_items,
        "requests": {
            split: len(data.requests_of(split))
            for split in ("train", "validation", "test", "held-out")
        },
        "lengths": batch.users.lengths.tolist(),
        "tokens": batch.users.tokens.tolist(),
        "ages": batch.users.age.tolist(),
        "context": batch.users.context.tolist(),
        "labels": batch.labels.tolist(),
        "content": batch.items.content.numeric.sum(1).tolist(),
    }


def run_facts(path: Path, data: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as work:
        metrics = evaluate(path, data=data, lists=50, out=Path(work) / "metrics.json")
    run, dataset = load_run(path), Dataset(data)
    predictions = predict(run.ranker, dataset, dataset.requests_of("test")[:5], history=10)
    slices = [
        {"kind": one["kind"], "slice": one["slice"], "impressions": one["impressions"]}
        for one in metrics["slices"]
    ]
    return {
        "fingerprint": run.fingerprint,
        "sealed": run.sealed,
        "metrics": {**metrics, "slices": slices},
        "predictions": predictions.values.tolist(),
    }


def index_facts(path: Path, folder: Path) -> dict[str, object]:
    run = load_run(folder / "runs" / path.name)
    index = Index.open(path, run.fingerprint)
    scorers = ["model"] if path.name == "two-tower" else ["model", "quantised", "native"]
    users = ["u1", "u5"] if path.name == "ordered" else [1, 5, None]
    facts: dict[str, object] = {
        "version": index.version,
        "ids": index.ids[:].tolist(),
        "removed": index.removed.tolist(),
        "hidden": index.hidden.tolist(),
    }
    for scorer in scorers:
        recommender = Recommender(run, path, data_of(path), scorer=scorer)
        facts[scorer] = [
            without_times(recommender.rank(user, k=5, explain=2).json()) for user in users
        ]
    history = ["i1", "i2", "i3"] if path.name == "ordered" else [1, 2, 3]
    facts["history"] = without_times(recommender.rank(history=history, k=3).json())
    return facts


def without_times(answer: dict[str, object]) -> dict[str, object]:
    answer.pop("milliseconds")
    return answer


def server_facts(folder: Path, mode: str) -> list[list[object]]:
    """(method, path, body, status, answer) of requests to a server of copies of these folders."""
    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(folder / "indexes" / "lime-mha", f"{work}/index")
        shutil.copy(folder / "events.db", work)
        engine = Serving(
            folder / "runs" / "lime-mha",
            Path(work) / "index",
            SqliteStore(f"{work}/events.db"),
            items=folder / "log" / "items.parquet",
            mode=mode,
        )
        app = application(engine, Settings(keys={"read": (KEY,)}))
        with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
            return [ask(client, *one) for one in questions()]


def questions() -> list[tuple[str, str, object]]:
    found: list[tuple[str, str, object]] = []
    for user in (1, 2, "somebody", "nobody"):
        for time in TIMES:
            found.append(("POST", "/v1/rank", {"user": user, "k": 5, "time": time}))
        found.append(("GET", f"/v1/users/{user}", None))
    few = {"user": 1, "time": TIMES[1]}
    history = {"history": [{"item": 1, "labels": {"click": 1}}], "time": TIMES[1]}
    chosen = {"candidates": [1, 2, 900, 910], "context": {"tab": "tab2"}}
    return [
        *found,
        ("POST", "/v1/rank", {**few, **chosen, "exclude_seen": False}),
        ("POST", "/v1/rank", {**few, "filter": {"group": ["g1"]}, "task_weights": {"watch": 1}}),
        ("POST", "/v1/rank", {**history, "k": 3}),
        ("POST", "/v1/explain", {**few, "items": [1, 910]}),
        ("GET", "/v1/items/3", None),
        ("GET", "/v1/items/910", None),
        ("GET", "/v1/items/911", None),
        ("GET", "/v1/users?prefix=some", None),
    ]


def ask(client: TestClient, method: str, path: str, body: object) -> list[object]:
    answer = client.request(method, path, json=body)
    found = answer.json()
    found.pop("milliseconds", None)
    return [method, path, body, answer.status_code, found]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "written"
        write_logs(folder)
        train_runs(folder)
        cut_off(folder)
        build_indexes(folder)
        fill_stores(folder)
        facts = expected(folder)
        shutil.rmtree(folder / "finished")
        out.mkdir(parents=True, exist_ok=True)
        (out / "expected.json").write_text(text_of(facts))
        with tarfile.open(out / "written.tar.xz", "w:xz") as archive:
            archive.add(folder, arcname=".", filter=anonymous)
    print(f"written by {limerank.__file__}: {out}")


def text_of(facts: dict[str, dict[str, object]]) -> str:
    """JSON, a fact a line; floats with 8 digits."""

    def rounded(value: object) -> object:
        if isinstance(value, float):
            return float(f"{value:.8g}")
        if isinstance(value, dict):
            return {name: rounded(part) for name, part in value.items()}
        return [rounded(part) for part in value] if isinstance(value, list) else value

    blocks = []
    for kind, named in facts.items():
        lines = [f"{json.dumps(name)}: {json.dumps(rounded(one))}" for name, one in named.items()]
        blocks.append(f"{json.dumps(kind)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = START
    return entry


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
