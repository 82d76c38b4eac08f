"""Training on several processes: W processes make the update of one.

In float64 the weights are compared. In float32 those of parameters whose true gradient is zero
differ, because Adam makes steps of its rounding: there losses and predictions are compared.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.data.protocol import Split
from limerank.errors import FormatError, SpecError
from limerank.evaluation.predict import predict
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models import build
from limerank.models.config import DataShape, TrainConfig
from limerank.models.registry import OF_THE_PACKAGE, model_of
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_optimiser, load_run
from limerank.runs.selftest import passes
from limerank.training import held_out
from limerank.training.beginning import begin
from limerank.training.checkpoints import Checkpoints, NotFiniteError, Progress, check_same_step
from limerank.training.distributed import group, tables
from limerank.training.distributed.gradients import sum_gradients
from limerank.training.impressions import measured_alike
from limerank.training.objectives import objective_of
from limerank.training.optim import Optimiser
from limerank.training.step import Step
from limerank.training.trainer import train
from limerank.world import Alone, collected, dealt, decided
from tests.processes import doubled, together
from tests.worlds import config_of, prepare_log, write_pages, write_positives

SMALL = {"width": 8, "links": 4, "hidden": 6, "heads": 2, "blocks": 2}
STILL = {name: 0.0 for name in ("dropout", "anchor_dropout", "profile_dropout")}
STILL["impression_dropout"] = STILL["counter_dropout"] = 0.0
STEPS = 5
WEIGHTS = 1e-11
"""Largest difference of a weight in float64: orders of sums, and what Adam makes of it."""
ROUNDING = 1e-14
"""Size of the gradient of a weight whose true gradient is zero, at most."""

METRICS, PREDICTIONS = 2e-3, 2e-3
"""The same of metrics and predictions in float32, after two epochs of a small log."""
ROOT = Path(__file__).parents[1]
CASES = [(2, True), (3, False)]
MOST = int(os.environ.get("LIMERANK_PROCESSES", "2"))
"""Processes of a test, at most."""

TRAINED = sorted(OF_THE_PACKAGE)


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> dict[str, Dataset]:
    """A log of impressions, one with impression features, and one of positives."""
    folder = tmp_path_factory.mktemp("logs")
    found = {"impressions": Dataset(prepare_log(folder / "impressions", users=50))}
    for name, write in (("pages", write_pages), ("positives", write_positives)):
        spec = write(folder / name)
        prepare(load_spec(spec), folder / f"{name}-data", base=spec.parent)
        found[name] = Dataset(folder / f"{name}-data")
    for name, (validation, test) in DAYS.items():
        spec = load_spec(folder / "impressions" / "log" / "spec.toml")
        split = Split(validation_from=validation, test_from=test)
        base = folder / "impressions" / "log"
        prepare(spec.model_copy(update={"split": split}), folder / name / "data", base=base)
        found[name] = Dataset(folder / name / "data")
    return found


@pytest.fixture
def exactly(monkeypatch):
    """Models compute in float64 throughout."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


def begun(dataset: Dataset, model: str, **settings):
    """A model in float64 before its first step, its objective and its configuration."""
    config = TrainConfig(**{"batch_size": 48, **settings})
    shape = DataShape.of(dataset.manifest)
    kind = objective_of(config.objective, shape.tasks)
    shape = shape.model_copy(update={"tasks": kind.tasks(shape, config)})
    objective = kind(dataset, shape, config)
    objective.check(model_of(model), dataset.requests_of("validation"))
    torch.manual_seed(0)
    ranker = build(shape, config_of(model, **SMALL, **STILL, id_dropout=0.3))
    begin(ranker, objective, config, None, True)
    return ranker.double().train(), objective, config


def trained(world, start, plan, sharded=False):
    """Losses of each step; and on process 0 the weights after the last one."""
    ranker, objective, config = copy.deepcopy(start)
    objective.world = world
    if sharded:
        tables.shard(ranker, world)
    optimiser = Optimiser(ranker, config, 10, objective.batch_size)
    step = Step(ranker, objective, optimiser, config, world)
    losses = []
    for number, (rows, batch) in enumerate(zip(plan, objective.batches(plan), strict=True)):
        found = step(doubled(batch), number, objective.counts_part(rows))
        losses.append((float(found.total), found.impressions))
    state = optimiser.state()
    weights = {name: weight.detach() for name, weight in ranker.named_parameters()} | state
    return losses, weights | tables.full_tables(ranker, state)


def assert_alike(start, cases, plan=None) -> None:
    """Each case: a number of processes, and whether their table is sharded."""
    plan = start[1].plan(0)[:STEPS] if plan is None else plan
    losses, weights = trained(Alone(), start, plan)
    for size, sharded in cases:
        found = together(size, lambda world, sharded=sharded: trained(world, start, plan, sharded))
        for of_losses, of_weights in found:
            for name, weight in of_weights.items():
                if not (sharded and "item_tower.ids" in name):
                    assert torch.equal(weight, found[0][1][name]), f"{name} on {size} processes"
            np.testing.assert_allclose(of_losses, losses, rtol=1e-11)
        for name, weight in weights.items():
            apart = (found[0][1][name] - weight).abs()
            seen = weights.get(f"{name}/exp_avg_sq")
            if seen is not None:  # a shift that a softmax ignores: Adam makes steps of its rounding
                apart = apart[seen.sqrt() > ROUNDING]
            most = float(apart.max()) if apart.numel() else 0.0
            assert most <= WEIGHTS, f"{name} on {size} processes: {most}"


@pytest.mark.parametrize("model", TRAINED)
def test_any_number_of_processes_trains_the_same_weights(logs, exactly, model):
    assert_alike(begun(logs["impressions"], model), [(2, False), (3, True)])


@pytest.mark.parametrize("negatives", [0, 12])
@pytest.mark.parametrize("model", TRAINED)
def test_positives_among_all_items_likewise(logs, exactly, model, negatives):
    start = begun(logs["positives"], model, negatives=negatives)
    assert start[1].negatives.full == (not negatives)
    assert_alike(start, [(2, True), (4, False)] if negatives else [(3, True)])


@pytest.mark.parametrize("log", ["impressions", "pages", "positives"])
@pytest.mark.parametrize("together", [1, 0])
def test_exact_histories_likewise(logs, exactly, log, together):
    assert_alike(begun(logs[log], "lime-mha", exact=True, exact_requests=together), CASES)


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_impression_features_likewise(logs, exactly, model):
    assert_alike(begun(logs["pages"], model), [(2, True), (4, False)])


@pytest.mark.parametrize("log", ["impressions", "positives"])
def test_a_process_without_a_request_changes_nothing(logs, exactly, log):
    start = begun(logs[log], "lime-mha")
    rows = np.concatenate(start[1].plan(0))
    assert_alike(start, CASES, [rows[:1], rows[5:7], rows[9:10]])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("model", ["lime-mha", "mha"])
def test_predictions_have_the_bits_of_one_process(logs, model, size):
    dataset = logs["impressions"]
    ranker = begun(dataset, model)[0].float()
    rows = dataset.requests_of("validation")
    alone = predict(ranker, dataset, rows, impressions=8)
    for found in together(
        size,
        lambda world: predict(copy.deepcopy(ranker), dataset, rows, impressions=8, world=world),
    ):
        for name, value in vars(alone).items():
            if value is None:
                assert getattr(found, name) is None
            else:
                np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("log", "task"), [("impressions", "click"), ("positives", "choice")])
def test_validations_have_the_bits_of_one_process(logs, log, task, size, monkeypatch):
    monkeypatch.setattr(held_out, "NUMBERS", 1 << 12)  # several pieces of a batch
    dataset = logs[log]
    ranker, objective, _ = begun(dataset, "lime-mha")
    ranker.float()
    rows = dataset.requests_of("validation")
    alone = objective.measure(ranker, rows)
    assert alone.metrics[task] and alone.link_use is not None

    def measured(world):
        own = copy.copy(objective)
        own.world = world
        found = own.measure(copy.deepcopy(ranker), rows)
        return found, measured_alike(world, found)

    for found, alike in together(size, measured):
        assert found.metrics == alike.metrics == alone.metrics
        assert list(found.calibration) == list(alike.calibration) == list(alone.calibration)
        np.testing.assert_array_equal(found.link_use, alone.link_use)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("batches", [0, 1, 2, 3, 7])
def test_batches_are_dealt_and_collected(size, batches):
    plan = [torch.full((2 * at % 5, 2), at) for at in range(batches)]

    def work(world):
        own = dealt(plan, world)
        return len(own), collected(world, own, len(plan))

    found = together(size, work)
    assert len({own for own, _ in found}) == 1, "each process makes as many calls"
    for _, values in found:
        assert len(values) == batches
        assert all(torch.equal(one, other) for one, other in zip(values, plan, strict=True))


@pytest.mark.parametrize("rows", [1, 2, 5, 64, 97])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_lie_on_one_process_each(rows, size):
    layout = tables.Layout(rows, size)
    ranges = [layout.range(rank) for rank in range(size)]
    assert [low for low, _ in ranges[1:]] == [high for _, high in ranges[:-1]]
    assert ranges[0][0] == 0 and ranges[-1][1] == rows
    assert sorted(layout.positions(torch.arange(rows)).tolist()) == list(range(rows))
    full = torch.randn(rows, 3)

    def read(world):
        table = tables.ShardedTable(world, full)
        ids = torch.arange(0, rows, world.rank + 1).repeat(2)
        assert torch.equal(table(ids), full[ids])
        assert table(ids[:0]).shape == (0, 3)
        return table.rows(table.weight)

    found = together(size, read)
    assert torch.equal(found[0], full) and found[1:] == [None] * (size - 1)


def test_adjacent_rows_are_spread():
    layout = tables.Layout(100_000, 4)
    owners = layout.positions(torch.arange(400)) // layout.block
    assert torch.bincount(owners, minlength=4).tolist() == pytest.approx([100] * 4, abs=5)


@pytest.mark.parametrize(
    ("choice", "most", "found"),
    [
        ("auto", 10**9, False),
        ("auto", 10, True),
        ("sharded", 10**9, True),
        ("replicated", 10, False),
    ],
)
def test_large_tables_are_sharded(logs, choice, most, found):
    ranker = begun(logs["impressions"], "two-tower")[0]
    config = TrainConfig(tables=choice, table_bytes=most)
    assert together(2, lambda world: tables.is_sharded(ranker, config, world)) == [found] * 2
    assert not tables.is_sharded(ranker, config, Alone())


def checkpoints(world, start, run, sharded):
    """Checkpoints of a model whose tables are sharded, or not."""
    ranker, objective, config = copy.deepcopy(start)
    if sharded:
        tables.shard(ranker, world)
    optimiser = Optimiser(ranker, config, 10, objective.batch_size)
    return Checkpoints(run, ranker, optimiser, 0.0, world)


def everything(of: Checkpoints) -> dict[str, torch.Tensor]:
    """Weights, and what the optimiser has, of all rows."""
    state = of.optimiser.state()
    found = {**of.ranker.state_dict(), **state, **tables.full_tables(of.ranker, state)}
    return {name: value.detach().clone() for name, value in found.items()}


@pytest.mark.parametrize("writers", [(1, False), (2, True), (3, True)])
@pytest.mark.parametrize("readers", [(1, False), (2, False), (2, True), (4, True)])
def test_any_number_of_processes_reads_a_checkpoint(logs, tmp_path, writers, readers):
    start = begun(logs["impressions"], "two-tower")
    (tmp_path / "trainer").mkdir()

    def write(world):
        of = checkpoints(world, start, tmp_path, writers[1])
        with torch.no_grad():
            for weight in (*of.ranker.parameters(), *of.optimiser.tables.sums):
                weight += 1 + torch.arange(len(weight)).view(-1, *[1] * (weight.dim() - 1))
        of.save(Progress(step=3, lines=world.rank))
        of.save(Progress(step=5, lines=world.rank))
        return everything(of)

    def read(world):
        of = checkpoints(world, start, tmp_path, readers[1])
        return of.load(), everything(of)

    expected = together(writers[0], write)[0]
    for rank, (progress, found) in enumerate(together(readers[0], read)):
        assert progress == Progress(step=5)
        for name, value in expected.items():
            if rank == 0 or not (readers[1] and "item_tower.ids" in name):
                assert torch.equal(found[name], value), name
    assert len(list((tmp_path / "trainer").iterdir())) == (2 if writers[1] else 1)


def test_the_newest_checkpoint_counts(logs, tmp_path):
    """A run goes from one process to two with a sharded table, and back."""
    start = begun(logs["impressions"], "two-tower")
    (tmp_path / "trainer").mkdir()

    def save(step, sharded):
        of = lambda world: checkpoints(world, start, tmp_path, sharded)  # noqa: E731
        together(2, lambda world: of(world).save(Progress(step=step)))

    for step, sharded in ((1, False), (2, True), (3, False)):
        save(step, sharded)
        names = {path.name for path in (tmp_path / "trainer").iterdir()}
        assert names == ({"latest.json", "step-000000002"} if sharded else {"state.safetensors"})
        assert checkpoints(Alone(), start, tmp_path, False).load().step == step


def test_damaged_and_uncommitted_shards(logs, tmp_path):
    start = begun(logs["impressions"], "two-tower")
    (tmp_path / "trainer").mkdir()
    together(2, lambda world: checkpoints(world, start, tmp_path, True).save(Progress(step=4)))
    load = checkpoints(Alone(), start, tmp_path, False).load
    torn = tmp_path / "trainer" / "step-000000009"  # killed before the commit mark
    torn.mkdir()
    (torn / "rest.safetensors").write_bytes(b"torn")
    assert load().step == 4
    mark = json.loads((tmp_path / "trainer" / "latest.json").read_text())
    (file,) = (name for name in mark["files"] if ".000000000000-" in name)
    shard = tmp_path / "trainer" / "step-000000004" / file
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"is damaged \(it has \d+ bytes, expected \d+\).*over"):
        load()
    shard.unlink()
    with pytest.raises(FormatError, match=r"is damaged \(it is missing\): the training cannot"):
        load()
    del mark["files"][file]
    (tmp_path / "trainer" / "latest.json").write_text(json.dumps(mark))
    with pytest.raises(FormatError, match=r"it lacks the positions 0 to \d+ of item_tower.ids"):
        load()
    (tmp_path / "trainer" / "latest.json").write_text(json.dumps({**mark, "format": 7}))
    with pytest.raises(FormatError, match="has format 7, expected 1; pass --overwrite"):
        load()


def test_weights_that_are_not_finite_on_one_process_stop_all(logs, tmp_path):
    start = begun(logs["impressions"], "two-tower")
    (tmp_path / "trainer").mkdir()

    def save(world):
        of = checkpoints(world, start, tmp_path, True)
        if world.rank == 1:
            of.optimiser.tables.sums[0][0] = float("inf")
        with pytest.raises(NotFiniteError):
            of.save(Progress(step=1))

    together(2, save)
    assert not list((tmp_path / "trainer").iterdir())


def test_process_0_decides():
    def value(world):
        return decided(world, lambda: {"rank": world.rank, "nan": float("nan"), "third": 1 / 3})

    for found in together(3, value):
        assert found["rank"] == 0 and found["nan"] != found["nan"] and found["third"] == 1 / 3

    def refused(world):
        def action():
            raise FormatError("it is a finished run")

        with pytest.raises(FormatError, match="it is a finished run") as caught:
            decided(world, action)
        return str(caught.value)

    texts = together(2, refused)
    assert texts == ["it is a finished run", "process 0 of 2: it is a finished run"]


def test_processes_that_read_different_checkpoints_are_refused(tmp_path):
    def work(world):
        with pytest.raises(FormatError, match=r"of the steps 20, 0: put the run on a file system"):
            check_same_step(world, 20 if world.rank == 0 else 0, tmp_path)
        return check_same_step(world, 7, tmp_path)

    together(2, work)


def test_gradients_are_means_over_the_impressions_of_all_processes():
    def work(world):
        dense = [torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)]
        table = torch.zeros(5, 2, requires_grad=True)
        if world.rank == 0:
            dense[0].grad = torch.full((2, 3), 6.0)
            table.grad = torch.sparse_coo_tensor(
                torch.tensor([[1, 1]]), torch.ones(2, 2), (5, 2), check_invariants=True
            )
        else:
            dense[1].grad = torch.full((2,), 4.0)
            table.grad = torch.sparse_coo_tensor(
                torch.tensor([[1, 4]]), torch.ones(2, 2), (5, 2), check_invariants=True
            )
        terms = 3.0 if world.rank == 0 else 1.0
        sums = sum_gradients(world, dense, [table], torch.tensor([terms, world.rank]))
        return sums, dense[0].grad, dense[1].grad, table.grad.to_dense()

    for sums, one, other, table in together(2, work):
        assert sums.tolist() == [4, 1]
        assert (one == 1.5).all() and (other == 1).all()
        assert table[:, 0].tolist() == [0, 0.75, 0, 0, 0.25]


def test_restarts_that_would_hang_are_refused(monkeypatch):
    monkeypatch.setenv(group.RESTARTS, "3")
    monkeypatch.setenv(group.SHARED_STORE, "True")
    with pytest.raises(SpecError, match=r"up to 3 times.*set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        group.check_restarts()
    monkeypatch.setenv(group.SHARED_STORE, "False")
    group.check_restarts()
    monkeypatch.setenv(group.SHARED_STORE, "True")
    monkeypatch.setenv(group.RESTARTS, "0")
    group.check_restarts()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    assert group.own_device("cuda") == "cuda" and group.own_device("cuda:1") == "cuda:1"
    for name, value in (("RANK", 5), ("WORLD_SIZE", 8), ("MASTER_PORT", 1), ("LOCAL_RANK", 3)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert group.own_device("cuda") == "cuda:3" and group.own_device("cpu") == "cpu"
    with pytest.raises(SpecError, match=r"'cuda:1' is one GPU for all 8 processes; give cuda"):
        group.own_device("cuda:1")


def test_one_process_of_a_launcher_is_alone(monkeypatch):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with group.processes() as world:
        assert isinstance(world, Alone)


# Processes

QUICK = {"batch_size": 64, "epochs": 2, "patience": 9, "checkpoint_seconds": 0.0}
DAYS = {
    "yesterday": ("2023-11-19T12:00:00Z", "2023-11-20T12:00:00Z"),
    "today": ("2023-11-21T12:00:00Z", "2023-11-22T12:00:00Z"),
}
"""Where the validation and the test split of two datasets of one log begin."""
TRAININGS = {
    "impressions": ("impressions", "lime-mha", {}),
    "positives": ("positives", "two-tower", {"objective": "catalogue"}),
    "sharded": ("impressions", "lime-xor", {"tables": "sharded"}),
    "warm": ("today", "lime-mha", {"tables": "sharded"}),
}


def trainings(logs, folder: Path, names=tuple(TRAININGS)):
    """Keyword arguments of ``train``, without noise that depends on the number of processes."""
    found = []
    for name in names:
        log, model, settings = TRAININGS[name]
        training = {
            "data": str(logs[log].path),
            "out": str(folder / name),
            "model": config_of(model, **SMALL, **STILL).model_dump(mode="json"),
            "config": {**QUICK, **settings},
        }
        if name == "warm":
            training["start"] = str(logs["yesterday"].path.parent / "run")
        found.append(training)
    return found


def launched(command, folder: Path, plan, **environment: str) -> subprocess.CompletedProcess:
    """A command with a file of trainings, from the root of the repository."""
    file = folder / "trainings.json"
    file.write_text(json.dumps(plan))
    return subprocess.run(
        [sys.executable, *command, "tests/distributed_worker.py", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def torchrun(size: int, *more: str) -> list[str]:
    return ["-m", "torch.distributed.run", f"--nproc-per-node={size}", *more]


def centred(requests: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values without the mean of their request."""
    counts = np.bincount(requests).clip(min=1)
    return values - (np.bincount(requests, values) / counts)[requests]


def assert_same_run(found: Path, expected: Path, bits: bool) -> None:
    """Weights of the same bits; or losses, metrics and predictions that agree in float32."""
    one, other = (load_file(path / "model.safetensors") for path in (found, expected))
    if bits:
        assert all(torch.equal(one[name], other[name]) for name in other)
        return
    curves = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (found, expected)
    ]
    validations = [[line for line in lines if "validation" in line] for lines in curves]
    assert len(validations[0]) == len(validations[1]) >= 2
    for of_one, of_other in zip(*validations, strict=True):
        for task, metrics in of_other["validation"].items():
            assert of_one["validation"][task] == pytest.approx(metrics, abs=METRICS)
    runs = [load_run(path) for path in (found, expected)]
    dataset = runs[0].dataset()
    predicted = [predict(run.ranker, dataset, dataset.requests_of("test")) for run in runs]
    values = [one.values for one in predicted]
    if runs[0].ranker.shape.tasks[0].of_kind.catalogue:  # a softmax ignores a shift of a request
        values = [centred(one.requests, one.values[:, 0]) for one in predicted]
    np.testing.assert_allclose(values[0], values[1], rtol=PREDICTIONS, atol=PREDICTIONS)


@pytest.fixture(scope="module")
def of_one(logs, tmp_path_factory) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("one")
    (first,) = trainings(logs, folder, ["warm"])
    yesterday = logs["yesterday"].path
    first |= {"data": yesterday, "out": first.pop("start"), "config": {**QUICK, "epochs": 1}}
    train(**first)
    for training in trainings(logs, folder):
        train(**training)
    return folder


@pytest.fixture(scope="module")
def of_two(logs, of_one, tmp_path_factory) -> Path:
    """The same runs of two processes that torchrun started."""
    folder = tmp_path_factory.mktemp("two")
    done = launched(torchrun(2), folder, trainings(logs, folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_the_run_of_one(of_one, of_two, tmp_path, name):
    """Both objectives and a sharded table, from an empty folder to a finished run, with gloo; and
    the run is indexed and ranked."""
    assert_same_run(of_two / name, of_one / name, bits=False)
    assert not (of_two / name / "trainer").exists()
    run = load_run(of_two / name)
    assert passes(run)
    assert set(load_optimiser(run.path)) == set(load_optimiser(of_one / name))
    build_index(run, tmp_path / "index", data=run.data)
    recommender = Recommender(run, Index.open(tmp_path / "index", run.fingerprint))
    assert len(recommender.rank(history=[run.dataset().item_ids[0]], k=5)) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rank", "step"),
    [("sharded", 0, 9), ("impressions", 1, 3), ("impressions", 0, 0), ("sharded", 1, 19)][
        : 1 if MOST == 2 else 4
    ],
)
def test_a_killed_process_is_restarted_and_the_weights_have_the_same_bits(
    logs, of_two, tmp_path, name, rank, step
):
    killed = launched(
        torchrun(2, "--max-restarts=2"),
        tmp_path,
        trainings(logs, tmp_path, [name]),
        KILL=f"{rank}:{step}:{tmp_path / 'marker'}",
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
    )
    assert killed.returncode == 0, killed.stderr
    assert (tmp_path / "marker").exists() and "exitcode: -9" in killed.stderr
    assert_same_run(tmp_path / name, of_two / name, bits=True)


@pytest.mark.slow
@pytest.mark.skipif(MOST < 3, reason="LIMERANK_PROCESSES=4 starts 3 and 4 processes as well")
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("name", ["impressions", "sharded"])
def test_another_number_of_processes_goes_on(logs, of_one, tmp_path, name, size):
    """Two processes are killed; another number of them resumes from their checkpoint."""
    plan = trainings(logs, tmp_path, [name])
    killed = launched(torchrun(2), tmp_path, plan, KILL=f"1:9:{tmp_path / 'marker'}")
    assert killed.returncode and (tmp_path / name / "trainer").exists()
    resumed = launched(torchrun(size), tmp_path, plan)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / name, of_one / name, bits=False)
