"""Trainings by several processes that a cluster starts: the run is the one that torchrun's
processes train, whatever ends meanwhile. Ray itself is tested where it is installed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limerank.cluster import training
from limerank.cluster.on_ray import MOST_OUTPUT, Printed, RayTraining, _Process
from limerank.cluster.training import train_together
from limerank.errors import DataError, FormatError, LimerankError, SpecError
from limerank.training.trainer import train
from tests.test_distributed import ROOT, SMALL, STILL, launched, torchrun
from tests.worlds import config_of, prepare_log

LOST = LimerankError("process 1 of 2 has lost another one (reset by peer)")


class Here:
    """Attempts of a training, each a list of what ends: rank, and its text or its error."""

    def __init__(self, *attempts):
        self.attempts, self.jobs, self.stopped = list(attempts), [], 0
        self.printed = ["epoch 1\n"]

    def begin(self, job):
        self.jobs.append(job)
        self.left = list(self.attempts.pop(0))
        return self

    def ended(self, seconds):
        assert seconds <= training.POLL_SECONDS
        found = self.left.pop(0)
        return found() if callable(found) else found

    def output(self):
        return self.printed.pop() if self.printed else ""

    def stop(self):
        self.stopped += 1


@pytest.fixture
def job(tmp_path):
    return {"data": "data", "out": str(tmp_path / "run"), "overwrite": False}


def test_the_result_is_that_of_process_0(job):
    of, stream = Here([None, (1, ""), None, (0, "AUC 0.7")]), io.StringIO()
    assert train_together(of.begin, job, 2, stream=stream) == "AUC 0.7"
    assert of.stopped == 1 and stream.getvalue() == "epoch 1\n" and of.jobs == [job]


def test_all_are_started_again_after_one_has_ended(job, tmp_path):
    killed = RuntimeError("The actor died: SIGKILL")
    of, stream = (
        Here([(1, LOST), (0, killed)], [(0, killed), None, (1, LOST)], [(0, "done")]),
        (io.StringIO()),
    )
    assert train_together(of.begin, job, 2, retries=2, stream=stream) == "done"
    assert of.stopped == 3
    assert (
        "(RuntimeError: The actor died: SIGKILL); all are started again, from the last"
        in stream.getvalue()
    )
    assert "checkpoint (2 of 2)" in stream.getvalue()
    of = Here(*[[(0, killed), (1, LOST)]] * 3)
    with pytest.raises(
        LimerankError, match=r"ended early 3 times, at last: RuntimeError: The actor d"
    ):
        train_together(of.begin, job, 2, retries=2, stream=stream)
    assert of.stopped == 3 and not of.attempts


def test_errors_that_would_come_again_end_the_training(job):
    """The reason is that of the process that has one, not of those that lost it."""
    for error in (DataError("the loss is not finite"), FormatError("it is a finished run")):
        of = Here([(0, LOST), (1, error)])
        with pytest.raises(type(error), match=str(error)):
            train_together(of.begin, job, 2, stream=io.StringIO())
        assert of.stopped == 1
    for size, retries in ((0, 1), (2, -1)):
        with pytest.raises(SpecError, match="expected at least 1 and at least 0"):
            train_together(Here().begin, job, size, retries=retries)


def test_processes_that_hang_after_one_failed_are_not_waited_for(job, monkeypatch):
    monkeypatch.setattr(training, "LINGER_SECONDS", 0.0)
    of = Here([(1, RuntimeError("ended")), None], [(0, "done")])
    assert train_together(of.begin, job, 2, stream=io.StringIO()) == "done"
    assert of.stopped == 2


def test_a_run_is_replaced_once(job, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")

    def begun():
        (run / "new").write_text("{}")
        (run / "new").replace(run / "config.json")
        return 0, RuntimeError("killed")

    of = Here([(0, RuntimeError("killed at once"))], [begun], [(0, "done")])
    train_together(of.begin, job | {"overwrite": True}, 1, stream=io.StringIO())
    assert [one["overwrite"] for one in of.jobs] == [True, True, False]


@pytest.mark.parametrize("stood_before", [True, False])
def test_a_run_that_is_stored_is_not_trained_again(job, tmp_path, stood_before):
    """Process 0 may end after its last file."""
    run, killed = tmp_path / "run", RuntimeError("killed")
    if stood_before:
        run.mkdir()
        (run / "config.json").write_text("{}")
        (run / "alarms.json").write_text("{}")

    def stored():
        run.mkdir(exist_ok=True)
        (run / "new").write_text("{}")
        (run / "new").replace(run / "config.json")
        (run / "alarms.json").write_text("{}")
        return 0, killed

    of = Here([(0, killed)], [stored])
    text = train_together(of.begin, job | {"overwrite": True}, 1, stream=io.StringIO())
    assert "trained and stored" in text and not of.attempts


def test_a_finished_run_of_before_is_no_result(job, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "alarms.json"):
        (run / name).write_text("{}")
    of = Here([(0, FormatError("is a finished run; pass --overwrite"))])
    with pytest.raises(FormatError, match="pass --overwrite"):
        train_together(of.begin, job, 1, stream=io.StringIO())


def test_output_that_nobody_takes_is_bounded():
    printed = Printed()
    print("x" * 10 * MOST_OUTPUT, "end", file=printed)
    assert printed.writable() and len(text := printed.taken()) == MOST_OUTPUT
    assert text.endswith(" end\n") and printed.taken() == ""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return Path(prepare_log(tmp_path_factory.mktemp("log") / "log", users=30))


def arguments(data: Path, out: Path) -> dict:
    """Of ``train``, without noise that depends on the number of processes."""
    config = {"batch_size": 64, "epochs": 1, "checkpoint_seconds": 0.0, "tables": "sharded"}
    model = config_of("lime-xor", **SMALL, **STILL).model_dump(mode="json")
    return {"data": str(data), "out": str(out), "model": model, "config": config}


def test_a_process_trains_as_the_command_does(data, tmp_path, monkeypatch):
    """An actor's call with one process, in this one."""
    given = arguments(data, tmp_path / "run")
    job = {**given, "device": "cpu", "collective_seconds": 60.0, "quiet": False}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")
    process = _Process()
    text = process.train(job, 0, 1, "127.0.0.1", 1, 1)
    assert "AUC" in text and "training" in process.output()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    train(**{**given, "out": str(tmp_path / "other")})
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "other"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_arguments_of_the_command(call, data, tmp_path, monkeypatch):
    given = ["train", data, "--out", tmp_path / "run", "--model", "two-tower"]
    on = [*given, "--on", "ray"]
    for command, text in (
        ([*given, "--workers", "2"], "--workers goes with --on ray"),
        ([*given, "--on", "spark", "--workers", "2"], "no --on 'spark'; expected one of ray"),
        (on, "--workers is None, expected N or N:THREADS, such as 4:8"),
        ([*on, "--workers", "0"], "--workers is 0, expected N or N:THREADS"),
        ([*on, "--workers", "2:x"], "--workers is 2:x, expected N or N:THREADS"),
        ([*on, "--workers", "2:2", "--threads", "2"], "leave --threads out"),
        ([*on[:3], "s3://shop/run", "--on", "ray", "--workers", 2], "--on: you need a folder"),
    ):
        status, _, error = call(*command)
        assert status == 2 and text in error, error
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    status, _, error = call(*on, "--workers", "2")
    assert status == 2 and 'Ray is not installed: pip install "limerank[ray]"' in error
    asked = []

    class Cluster(Here):
        def __init__(self, *given):
            asked.append(given)
            super().__init__([(0, "AUC 0.7")])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append(self.jobs)

    monkeypatch.setattr("limerank.cluster.on_ray.RayTraining", Cluster)
    status, output, error = call(*on, "--workers", "3:2", "--set", "dropout=0", "--epochs", 2)
    assert status == 0 and "AUC 0.7" in output and "Next: limerank evaluate" in output, error
    (job,) = asked[1]
    assert asked[0] == (3, 2, 0) and json.loads(json.dumps(job)) == job
    assert job["model"]["model"] == "two-tower" and job["config"]["epochs"] == 2
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    status, _, error = call(*on, "--workers", "2")
    assert status == 2 and "call the command without torchrun" in error


KILLED = """
from limerank.training.step import Step
import os, signal
from pathlib import Path
make = Step.__call__
def step(self, batch, at, *given):
    mark = Path(os.environ["KILL_MARK"])
    if at == 3 and self.world.rank == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return make(self, batch, at, *given)
Step.__call__ = step
"""


@pytest.mark.slow
def test_on_ray(data, tmp_path, monkeypatch):
    """Two actors, of which one is killed: the weights have the bits of torchrun's processes."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    given = arguments(data, tmp_path / "torchrun")
    done = launched(torchrun(2), tmp_path, [given])
    assert done.returncode == 0, done.stderr
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'limerank.training.trainer':\n"
        "            sys.meta_path.remove(self)\n"
        "            exec(KILLED, {})\n"
        f"KILLED = {KILLED!r}\n"
        "sys.meta_path.insert(0, Late())\n"
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in (
        ("OMP_NUM_THREADS", "1"),
        ("KILL_MARK", str(tmp_path / "mark")),
        ("RAY_worker_niceness", "0"),  # as all else of the tests
        ("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(ROOT)])),
    ):
        monkeypatch.setenv(name, value)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=100 << 20,
    )
    stream = io.StringIO()
    try:
        job = {**given, "out": str(tmp_path / "ray"), "device": "cpu", "quiet": False}
        job["collective_seconds"] = 120.0
        with RayTraining(2) as cluster:
            text = train_together(cluster.begin, job, 2, stream=stream)
        with pytest.raises(FormatError, match="is a finished run"), RayTraining(2) as cluster:
            train_together(cluster.begin, job, 2, stream=stream)
    finally:
        ray.shutdown()
    assert (tmp_path / "mark").exists() and "AUC" in text
    assert "all are started again, from the last checkpoint (1 of 3)" in stream.getvalue()
    assert "training lime-xor: loss" in stream.getvalue(), "the progress of process 0"
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("ray", "torchrun"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)
