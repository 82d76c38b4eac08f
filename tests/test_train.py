"""Training: exact resume, early stopping, what is learned, what is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.quality import validated
from limerank.data.dataset import Dataset
from limerank.errors import DataError, FormatError, SpecError, UnknownError
from limerank.evaluation.evaluate import evaluate
from limerank.models import Ranker, build
from limerank.models.config import DataShape, TrainConfig
from limerank.models.two_tower import TwoTower
from limerank.runs.folder import load_run
from limerank.training.checkpoints import Checkpoints, Progress
from limerank.training.objectives import batch_size, objective_on
from limerank.training.optim import EmbeddingAdagrad, Optimiser
from limerank.training.reporting import Curves, finish
from limerank.training.trainer import train
from tests.worlds import PLAIN, config_of, prepare_log

MODEL = {"width": 16, "heads": 2, "links": 4, "blocks": 2, "hidden": 8}
LEARNING = {
    "epochs": 12,
    "batch_size": 64,
    "learning_rate": 0.012,
    "table_learning_rate": 0.05,
    "patience": 99,
}
QUICK = {"epochs": 3, "batch_size": 64, "patience": 9}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_log(tmp_path_factory.mktemp("train"))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def _equal(one: Path, other: Path) -> bool:
    a, b = _weights(one), _weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _curves(run: Path) -> list[dict]:
    timed = ("seconds", "impressions_per_s")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def test_labels_that_are_all_alike_are_refused_before_anything_is_written(data, tmp_path):
    alike = object.__new__(Dataset)
    alike.__dict__.update(Dataset(data).__dict__)
    label = np.array(alike.events["label_click"])
    label[alike.impression_rows(alike.requests_of("validation"))] = 1
    alike.events = {**alike.events, "label_click": label}
    with pytest.raises(DataError, match=r"'click' is 1 for all .*one of positives"):
        train(alike, tmp_path / "run", model=config_of("lime-mha", **MODEL))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor", "two-tower"])
def test_training_lowers_the_loss_and_writes_a_run(data, tmp_path, model):
    seen = []
    last = train(
        data,
        tmp_path / "run",
        model=config_of(model, **MODEL),
        config=TrainConfig(**LEARNING),
        report=seen.append,
    )
    losses = [line["loss"] for line in seen if "loss" in line]
    assert losses[-1] < losses[0]
    learned = evaluate(tmp_path / "run", split="train", lists=0)
    assert learned.tasks["click"]["auc"] > 0.55
    assert last.to_dict() == seen[-1]
    auc = last.metrics["click"]["auc"]
    assert validated(seen[-1]) == {"best_step": last.best_step, "best_click/auc": auc}
    assert (last.metric, last.run) == ("click/calibrated_ne", tmp_path / "run")
    best = f"best validation click/calibrated_ne {last.best:.4f} at step {last.best_step}"
    assert best in repr(last)
    assert last.best == min(
        line["validation"]["click"]["calibrated_ne"] for line in seen if "validation" in line
    )
    assert not (tmp_path / "run" / "trainer").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == seen
    validations = [line for line in seen if "validation" in line]
    assert len(validations) == 12
    assert {"auc", "gauc", "ne"} <= validations[0]["validation"]["click"].keys()
    assert {"xauc", "mae_s"} <= validations[0]["validation"]["watch"].keys()
    assert ("effective_links" in validations[0]) == (model != "two-tower")


def test_the_same_seed_gives_the_same_weights(data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(
            data,
            tmp_path / name,
            model=config_of("lime-mha", **MODEL),
            config=TrainConfig(seed=seed, **QUICK),
        )
    assert _equal(tmp_path / "a", tmp_path / "b")
    assert not _equal(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor", "mha", "truncated-mha"])
def test_half_lives_start_at_the_ages_of_the_log(data, tmp_path, model):
    train(
        data,
        tmp_path / "run",
        model=config_of(model, **MODEL),
        config=TrainConfig(epochs=1, learning_rate=1e-9),
    )
    dataset = Dataset(data)
    users = dataset.batch(dataset.requests_of("train")).users
    ages = users.age[users.age > 0]
    where = "reading.log_rate" if model.startswith("lime") else "log_rate"
    found = float(torch.log(torch.tensor(2.0))) / _weights(tmp_path / "run")[where].exp()
    low, high = ages.quantile(0.02), ages.quantile(0.1)
    assert low <= found.min() <= high
    low, high = 10 * ages.quantile(0.9), 10 * ages.quantile(0.98)
    assert low <= found.max() <= high


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 11])
def test_a_run_cut_off_anywhere_ends_as_an_uninterrupted_one(data, tmp_path, monkeypatch, at):
    import limerank.training.trainer as module

    monkeypatch.setattr(module, "REPORT_SECONDS", 0.0)
    model = config_of("lime-xor", **MODEL)
    config = TrainConfig(**QUICK, checkpoint_seconds=0.0)
    train(data, tmp_path / "full", model=model, config=config)

    def stop(line):
        if line["step"] == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(data, tmp_path / "cut", model=model, config=config, report=stop)
    train(data, tmp_path / "cut", model=model, config=config)
    assert _equal(tmp_path / "full", tmp_path / "cut")
    assert _curves(tmp_path / "full") == _curves(tmp_path / "cut")


SCRIPT = """
import sys
import torch
from limerank import ModelConfig, TrainConfig, train
torch.set_num_threads(1)
data, out, model, config = sys.argv[1:]
train(data, out, model=ModelConfig.model_validate_json(model),
      config=TrainConfig.model_validate_json(config))
"""


def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(data, tmp_path):
    """SIGKILL, twice, wherever it strikes; then the same settings to the end, here."""
    model = config_of("lime-mha", **MODEL)
    config = TrainConfig(epochs=8, batch_size=32, patience=99, checkpoint_seconds=0.0)
    train(data, tmp_path / "full", model=model, config=config)
    out, kills = tmp_path / "killed", 0
    command = [sys.executable, "-c", SCRIPT, str(data), str(out)]
    command += [model.model_dump_json(), config.model_dump_json()]
    for lines in (1, 9):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        curves = out / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if curves.exists() and len(curves.read_bytes().splitlines()) >= lines:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    if (out / "trainer").exists():
        train(data, out, model=model, config=config)
    assert _equal(tmp_path / "full", out)


def test_a_finished_run_and_other_settings_are_refused(data, tmp_path):
    model, config = config_of("two-tower", **MODEL), TrainConfig(**QUICK)
    train(data, tmp_path / "run", model=model, config=config)
    with pytest.raises(FormatError, match=r"finished run.*--overwrite"):
        train(data, tmp_path / "run", model=model, config=config)

    def stop(line):
        raise StoppedError

    with pytest.raises(StoppedError):
        train(data, tmp_path / "cut", model=model, config=config, report=stop)
    other = TrainConfig(**{**QUICK, "epochs": 4})
    with pytest.raises(FormatError, match=r"train.epochs is 3, not 4"):
        train(data, tmp_path / "cut", model=model, config=other)
    train(data, tmp_path / "cut", model=model, config=other, overwrite=True)


def test_a_training_killed_in_its_last_step_has_ended(data, tmp_path):
    """Its alarms are there, and a part of what it would be resumed from: it is not trained again
    from the start."""
    run = tmp_path / "run"
    train(data, run, model="two-tower", config={"epochs": 1})
    (run / "trainer").mkdir()
    (run / "trainer" / "lock").touch()
    weights = (run / "model.safetensors").read_bytes()
    with pytest.raises(FormatError, match="is a finished run"):
        train(data, run, model="two-tower", config={"epochs": 1})
    assert not (run / "trainer").exists()
    assert (run / "model.safetensors").read_bytes() == weights


def test_what_a_killed_training_left_beside_its_folder_is_removed_when_it_is_resumed(
    data, tmp_path
):
    def stop(line):
        raise StoppedError

    model, config = config_of("two-tower", **MODEL), TrainConfig(**QUICK)
    with pytest.raises(StoppedError):
        train(data, tmp_path / "run", model=model, config=config, report=stop)
    (tmp_path / ".run.partial-12ab.lock").touch()
    (tmp_path / ".run.partial-34cd").mkdir()  # the folder that it replaced
    (tmp_path / ".run.partial-34cd" / "config.json").write_text("{}")
    (tmp_path / ".run.partial-34cd.lock").touch()
    train(data, tmp_path / "run", model=model, config=config)
    assert os.listdir(tmp_path) == ["run"]


def test_a_full_disk_names_the_curves(tmp_path, files_of_at_most):
    curves, progress = Curves(tmp_path, []), Progress()
    with (
        pytest.raises(FormatError, match=r"metrics.jsonl cannot be written: .*; free space there"),
        files_of_at_most(10),
    ):
        curves.write({"step": 1, "loss": 0.123456}, progress)
    assert progress.lines == 0
    curves.resume(progress.lines)
    curves.write({"step": 1}, progress)
    assert curves.lines() == [{"step": 1}], "the part of a line is removed"


def test_lines_that_a_checkpoint_counts_are_on_the_disk_before_it(data, tmp_path, monkeypatch):
    """Else a power loss takes them, and the resumed training lacks its best validation."""
    run, fsync, save = tmp_path / "run", os.fsync, Checkpoints.save
    durable, checked = [0], []

    def synced(descriptor):
        found, curves = os.fstat(descriptor), run / "metrics.jsonl"
        if curves.exists() and found.st_ino == curves.stat().st_ino:
            durable.append(found.st_size)
        fsync(descriptor)

    def saved(checkpoints, progress):
        lines = (run / "metrics.jsonl").read_bytes()
        checked.append((progress.lines, lines[: durable[-1]].count(b"\n")))
        save(checkpoints, progress)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Checkpoints, "save", saved)
    monkeypatch.setattr(Checkpoints, "affordable", lambda self: True)  # however slow the disk is
    config = TrainConfig(epochs=2, batch_size=64, checkpoint_seconds=0.0)
    train(data, run, model=config_of("two-tower", **MODEL), config=config)
    assert checked and checked[-1][0] > 0
    assert all(counted == on_disk for counted, on_disk in checked), checked


@pytest.mark.parametrize("folder", [False, True])
def test_a_disk_that_fails_in_the_last_step_is_named(tmp_path, monkeypatch, folder):
    run, synced = tmp_path / "run", os.fsync
    (run / "trainer").mkdir(parents=True)
    curves = Curves(run, [])
    curves.write({"step": 1}, Progress())

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        synced(descriptor)

    named = run if folder else run / "metrics.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(FormatError, match=f"^{named} cannot be written: .*; check its disk"):
            finish(run, curves, ())
    assert not (run / "alarms.json").exists(), "the training has not ended"
    finish(run, curves, ())
    assert sorted(os.listdir(run)) == ["alarms.json", "metrics.jsonl"]


def test_a_folder_in_which_another_process_trains_is_refused(data, tmp_path):
    """With --overwrite too; the one that is training is not disturbed."""
    model, config = config_of("two-tower", **MODEL), TrainConfig(**QUICK)
    train(data, tmp_path / "alone", model=model, config=config)
    refused = []

    def try_as_well(line):
        for overwrite in (False, True):
            if len(refused) < 2:
                with pytest.raises(FormatError, match=rf"another process.*{os.getpid()}.*wait"):
                    train(data, tmp_path / "run", model=model, config=config, overwrite=overwrite)
                refused.append(overwrite)

    train(data, tmp_path / "run", model=model, config=config, report=try_as_well)
    assert refused == [False, True]
    assert _equal(tmp_path / "alone", tmp_path / "run")
    train(data, tmp_path / "run", model=model, config=config, overwrite=True)
    assert _equal(tmp_path / "alone", tmp_path / "run")


def test_early_stopping_keeps_the_best(data, tmp_path):
    seen = []
    last = train(
        data,
        tmp_path / "run",
        model=config_of("two-tower", **MODEL),
        config=TrainConfig(
            epochs=60, batch_size=64, learning_rate=0.01, table_learning_rate=0.2, patience=2
        ),
        report=seen.append,
    )
    found = {line["step"]: line["validation"] for line in seen if "validation" in line}
    assert len(found) < 60
    best = min(found, key=lambda step: found[step]["click"]["calibrated_ne"])
    assert (last.best_step, last.metrics) == (best, found[best])
    result = evaluate(tmp_path / "run", split="validation", lists=0)
    assert result.tasks["click"]["ne"] == pytest.approx(last.best, abs=1e-6)
    assert last.ne == {"click": last.best}


def test_stored_weights_are_calibrated_on_the_validation_split(data, tmp_path):
    config = {**QUICK, "table_learning_rate": 2.0, "metric": "click/auc"}
    model, found, results = config_of("lime-mha", **MODEL), {}, {}
    for name, calibrate in (("yes", True), ("no", False)):
        results[name] = train(
            data,
            tmp_path / name,
            model=model,
            config=TrainConfig(**config, calibrate=calibrate),
        )
        found[name] = evaluate(tmp_path / name, split="validation", lists=0).tasks
    yes, no = found["yes"], found["no"]
    last = results["yes"]
    assert last.metrics == results["no"].metrics and last.best_step == results["no"].best_step
    assert results["no"].calibration == () or not len(results["no"].calibration)
    (scale, shift), (one, _) = last.calibration
    assert scale != 1 and shift != 0 and one == 1
    assert yes["click"]["ne"] == pytest.approx(last.metrics["click"]["calibrated_ne"], abs=1e-6)
    assert yes["click"]["ne"] < no["click"]["ne"] - 0.01
    # Not by the AUC of probabilities: float32 rounds those of extreme logits to the same number.
    dataset = Dataset(data)
    batch = dataset.batch(dataset.requests_of("validation"))
    with torch.inference_mode():
        mapped, plain = (
            load_run(tmp_path / name).ranker(batch)[batch.real][:, 0] for name in ("yes", "no")
        )
    torch.testing.assert_close(mapped, scale * plain + shift, atol=1e-4, rtol=1e-4)
    assert yes["click"]["calibration"] == pytest.approx(1, abs=0.02)
    assert yes["watch"]["calibration"] == pytest.approx(1, abs=0.02)
    assert abs(no["watch"]["calibration"] - 1) > abs(yes["watch"]["calibration"] - 1)
    assert results["no"].ne == {"click": pytest.approx(no["click"]["ne"])}
    differing = [
        name
        for name, weight in _weights(tmp_path / "no").items()
        if not torch.equal(weight, _weights(tmp_path / "yes")[name])
    ]
    assert differing == ["head.out.bias", "head.out.weight", "profile.mix.weight"]
    assert "before calibration" in last.text()
    assert "before calibration" not in results["no"].text()


def test_a_model_that_cannot_be_calibrated_is_refused_unless_it_need_not(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(TwoTower, "last_layers", Ranker.last_layers)
    with pytest.raises(SpecError, match=r"last_layers and calibrate.*calibrate=false"):
        train(data, tmp_path / "run", model="two-tower")
    assert not (tmp_path / "run").exists()
    train(data, tmp_path / "run", model="two-tower", config={"epochs": 1, "calibrate": False})


def test_a_metric_that_is_not_there_is_an_error(data, tmp_path):
    with pytest.raises(SpecError, match=r"click/auc.*watch/xauc"):
        train(data, tmp_path / "run", config=TrainConfig(metric="click/ndcg"))


def test_an_empty_split_is_an_error(data, tmp_path):
    dataset = Dataset(data)
    dataset.requests["split"] = dataset.requests["split"] * 0
    with pytest.raises(DataError, match="no requests in its validation split"):
        train(dataset, tmp_path / "run", model=config_of("two-tower", **MODEL))


def test_padding_is_cheap(tmp_path):
    """At least 85 % of what training computes is real, with histories and requests of any size."""
    seen = []
    data = prepare_log(tmp_path, users=400)
    config = TrainConfig(epochs=1, batch_size=256)
    model = config_of("two-tower", **MODEL, **PLAIN)  # batches of a fold have fewer to choose from
    train(data, tmp_path / "run", model=model, config=config, report=seen.append)
    shares = [line["real_positions"] for line in seen if "real_positions" in line]
    assert sum(shares) / len(shares) >= 0.85


def test_bf16_trains(data, tmp_path):
    config = TrainConfig(**LEARNING, bf16=True)
    train(data, tmp_path / "run", model=config_of("lime-mha", **MODEL), config=config)
    learned = evaluate(tmp_path / "run", split="train", lists=0)
    assert learned.tasks["click"]["auc"] > 0.55
    kinds = {weight.dtype for weight in _weights(tmp_path / "run").values()}
    assert kinds == {torch.float32, torch.int32}, "and rows of neighbours"


def test_rates_grow_with_the_square_root_of_the_batch(data, tmp_path):
    """A quarter of the batch at twice the rate of the configuration is the same step size."""
    ranker = build(DataShape.of(Dataset(data).manifest), config_of("two-tower", **MODEL))
    small = Optimiser(
        ranker, TrainConfig(learning_rate=0.002, table_learning_rate=0.2), 10, impressions=256
    )
    large = Optimiser(
        ranker, TrainConfig(learning_rate=0.001, table_learning_rate=0.1), 10, impressions=1024
    )
    assert small.scale * small.config.learning_rate == large.scale * large.config.learning_rate


def test_rows_with_few_gradients_stay_near_their_start():
    """``w -= rate * g / sqrt(sum of g^2 + start)``: the first step of a row is small, and after
    many gradients the accumulator hardly counts."""
    table = torch.nn.Parameter(torch.zeros(2, 4, dtype=torch.float64))
    plain = torch.nn.Parameter(torch.zeros(2, 4, dtype=torch.float64))
    damped = EmbeddingAdagrad([table], 0.0, start=9.0), EmbeddingAdagrad([plain], 0.0)
    steps = []
    for _ in range(400):
        before = table.detach().clone(), plain.detach().clone()
        for part in (table, plain):
            part.grad = torch.sparse_coo_tensor(
                [[1]], torch.ones(1, 4, dtype=torch.float64), (2, 4), check_invariants=True
            )
        for one in damped:
            one.step(0.1)
        after = table.detach(), plain.detach()
        steps.append([float((a - b)[1, 0]) for a, b in zip(before, after, strict=True)])
    assert not table[0].any() and not plain[0].any(), "rows without a gradient stay"
    assert steps[0] == pytest.approx([0.1 / 10**0.5, 0.1])
    assert steps[-1] == pytest.approx([0.1 / 409**0.5, 0.1 / 400**0.5])


def test_the_accumulator_is_of_one_impression_s_gradient(data):
    """The loss is a mean over the batch, so its square falls with the square of the batch."""
    ranker = build(DataShape.of(Dataset(data).manifest), config_of("two-tower", **MODEL))
    starts = {
        n: Optimiser(ranker, TrainConfig(), 10, impressions=n).tables.start for n in (64, 1024)
    }
    assert starts == {64: 9 / 64**2, 1024: 9 / 1024**2}
    objective = objective_on(Dataset(data), TrainConfig())
    assert objective.rates.accumulator == 9
    given = objective_on(Dataset(data), TrainConfig(table_accumulator=0.5))
    assert given.rates.accumulator == 0.5


def test_an_item_starts_as_its_content(data):
    ranker = build(DataShape.of(Dataset(data).manifest), config_of("two-tower", **MODEL))
    tower = ranker.item_tower
    assert float(tower.ids.weight.detach().std()) < 0.2 * float(
        tower.content.table.weight.detach().std()
    )


@pytest.mark.parametrize(("total", "expected"), [(200, 64), (80_000, 200), (10**7, 1024)])
def test_batches_follow_the_size_of_the_log(data, total, expected):
    """About 400 batches an epoch, of 64 to 1,024 impressions, where nothing is set."""
    assert batch_size(TrainConfig(), total) == expected
    assert batch_size(TrainConfig(batch_size=7), total) == 7


@pytest.mark.parametrize(
    ("model", "config", "device", "error", "message"),
    [
        ({}, {"metric": "click/auk"}, "cpu", SpecError, r"did you mean 'click/auc'\?"),
        ({}, {"task_weights": {"klick": 1}}, "cpu", UnknownError, r"did you mean 'click'\?"),
        (
            {},
            {"task_weights": {"click": 1, "buy": 2}},
            "cpu",
            UnknownError,
            "'buy'; known: 'click'",
        ),
        ({}, {}, "gpu", SpecError, r"no device 'gpu'; expected cpu, cuda.*did you mean 'cuda'"),
        ({}, {}, "cuda:x", SpecError, "no device 'cuda:x'"),
        (
            {"model": "lime-xor"},
            {"exact": True},
            "cpu",
            SpecError,
            "exact needs lime-mha; got lime-xor",
        ),
    ],
)
def test_a_start_that_cannot_succeed_leaves_nothing(
    data, tmp_path, model, config, device, error, message
):
    given = {"model": "two-tower", **MODEL, **model}
    with pytest.raises(error, match=message):
        train(
            data,
            tmp_path / "run",
            model=config_of(**given),
            config=TrainConfig(**config),
            device=device,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_the_old_run_is_replaced(data, tmp_path):
    model, config = config_of("two-tower", **MODEL), TrainConfig(**QUICK)
    train(data, tmp_path / "run", model=model, config=config)
    before = _weights(tmp_path / "run")
    with pytest.raises(SpecError, match=r"'cuda' is not available: .*or give the device cpu"):
        train(data, tmp_path / "run", model=model, config=config, device="cuda", overwrite=True)
    after = _weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def _breaks(monkeypatch, at):
    """From step ``at`` on every dense weight is NaN."""
    step = Optimiser.step

    def breaking(self, number):
        step(self, number)
        if number >= at:
            with torch.no_grad():
                for weight in self.dense:
                    weight.fill_(float("nan"))

    monkeypatch.setattr(Optimiser, "step", breaking)


def test_a_training_that_diverges_keeps_the_last_finite_weights(data, tmp_path, monkeypatch):
    model = config_of("lime-mha", **MODEL)
    config = TrainConfig(**QUICK, checkpoint_seconds=0.0)
    seen = []
    with monkeypatch.context() as patched:
        patched.setattr("limerank.training.trainer.REPORT_SECONDS", 1e9)
        train(data, tmp_path / "full", model=model, config=config, report=seen.append)
        first = next(line["step"] for line in seen if "validation" in line)
        _breaks(patched, first + 1)
        with pytest.raises(
            DataError, match=rf"diverged by step .*weights of step {first}, the best"
        ):
            train(data, tmp_path / "run", model=model, config=config)
    state = load_file(tmp_path / "run" / "trainer" / "state.safetensors")
    for tensors in (state, _weights(tmp_path / "run")):
        assert all(x.isfinite().all() for x in tensors.values() if x.is_floating_point())
    assert evaluate(tmp_path / "run", split="validation", lists=0).tasks
    train(data, tmp_path / "run", model=model, config=config)  # goes on from what was finite
    assert _equal(tmp_path / "full", tmp_path / "run")


def test_a_training_that_diverges_at_once_leaves_nothing(data, tmp_path, monkeypatch):
    _breaks(monkeypatch, 0)
    with pytest.raises(DataError, match=r"the loss is nan; no weights were saved.*Try lower rates"):
        train(data, tmp_path / "run", model=config_of("two-tower", **MODEL))
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_take_a_bounded_share_of_the_time(data, tmp_path, monkeypatch):
    """On a clock of this test: a step takes a second, a checkpoint ten."""
    from limerank.training import checkpoints as module

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock, saved = Clock(), []
    step, save = Optimiser.step, module.save_state

    def slow_step(self, *given):
        step(self, *given)
        clock.now += 1

    def slow_save(*given):
        save(*given)
        saved.append(clock.now)
        clock.now += 10

    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Optimiser, "step", slow_step)
    monkeypatch.setattr(module, "save_state", slow_save)
    config = TrainConfig(epochs=80, batch_size=64, patience=99, checkpoint_seconds=0.0)
    train(data, tmp_path / "run", model=config_of("two-tower", **MODEL), config=config)
    assert len(saved) >= 2
    assert 10 * len(saved) <= module.CHECKPOINT_SHARE * (clock.now + 10 / module.CHECKPOINT_SHARE)
    assert min(b - a for a, b in pairwise(saved)) >= 10 / module.CHECKPOINT_SHARE


def test_the_optimisers_state_goes_to_the_device_of_its_weights(data):
    """As on a GPU, whose checkpoint is read into host memory; "meta" stands for it."""
    shape, config = DataShape.of(Dataset(data).manifest), config_of("two-tower", **MODEL)
    trained = Optimiser(build(shape, config), TrainConfig(), 10)
    for weight in trained.dense:
        weight.grad = torch.ones_like(weight)
    trained.step(0)
    held = trained.state()
    resumed = Optimiser(build(shape, config).to("meta"), TrainConfig(), 10)
    resumed.load(held)
    for weight in resumed.dense:
        state = resumed.adam.state[weight]
        assert state["exp_avg"].device == state["exp_avg_sq"].device == weight.device
        assert state["step"].device.type == "cpu" and state["step"] == 1


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    model, config = config_of("two-tower", **MODEL), TrainConfig(**QUICK)

    def stop(line):
        raise StoppedError

    with pytest.raises(StoppedError):
        train(data, tmp_path / "run", model=model, config=config, report=stop)
    (tmp_path / "run" / "trainer" / "state.safetensors").write_bytes(b"12345678nothing")
    with pytest.raises(FormatError, match=r"state\.safetensors is damaged.*--overwrite"):
        train(data, tmp_path / "run", model=model, config=config)


def test_a_run_folder_holds_no_ids_of_users(tmp_path):
    """Ids that occur nowhere else, looked for in every byte; Parquet is read."""
    import polars as pl

    from limerank.data.description import load_spec
    from limerank.data.prepare import prepare
    from tests.worlds import write_log

    spec = write_log(tmp_path / "log")
    events = pl.read_parquet(tmp_path / "log" / "events.parquet")
    named = events.with_columns(pl.format("u{}@mail", "user_id").alias("user_id"))
    named.write_parquet(tmp_path / "log" / "events.parquet")
    users = pl.read_csv(tmp_path / "log" / "users.csv")
    users.with_columns(pl.format("u{}@mail", "user_id").alias("user_id")).write_csv(
        tmp_path / "log" / "users.csv"
    )
    prepare(load_spec(spec), tmp_path / "data", base=spec.parent)
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text())
    manifest["summary"]["warnings"].append("the user id 'u3@mail' has 40 % of the events")
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(manifest))
    run = tmp_path / "run"
    train(tmp_path / "data", run, model=config_of("lime-mha", **MODEL))
    evaluate(run)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text = str(pl.read_parquet(path).rows()).encode()
        assert b"@mail" not in text, path
