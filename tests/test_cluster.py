"""Parts on a cluster: each is tried a bounded number of times, and the result is that of one
process. Ray itself is tested where it is installed: pip install ray."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import polars as pl
import pytest

from limerank.cluster import work
from limerank.cluster.jobs import run_parts
from limerank.cluster.on_ray import RayWorkers
from limerank.errors import DataError, FormatError, SpecError, StoreError
from limerank.index import writing
from limerank.index.building import build_index
from limerank.index.parts import join_parts
from limerank.parts import Part, parts_folder
from limerank.ranking import bulk
from limerank.ranking.bulk import join_ranked, rank_all
from limerank.ranking.recommender import Recommender
from tests.catalogues import shop
from tests.test_parts import bytes_of


class Here:
    """Workers of this process: each part in turn; ``fails`` raises for some."""

    most = 3

    def __init__(self, job, parts, fails=lambda number: None):
        self.job, self.parts, self.fails = job, parts, fails
        self.begun, self.running, self.stopped = [], [], False

    def begin(self, number):
        assert len(self.running) < self.most
        self.begun.append(number)
        self.running.append(number)

    def ended(self):
        number = self.running.pop()  # in no order
        try:
            self.fails(number)
            work.compute(self.job, Part(number, self.parts))
        except Exception as error:  # noqa: BLE001
            return number, error
        return number, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped = True


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several parts of small catalogues, and no run that another test has loaded."""
    monkeypatch.setattr(writing, "CHUNK", 16)
    monkeypatch.setattr(bulk, "PART", 8)
    for cached in (work._run, work._recommender):
        cached.cache_clear()


def index_job(of, out, **more):
    given = {"run": str(of.run.path), "out": str(out), "data": str(of.data.path)}
    return {"command": "index", "items": None, "merge": False, **given, **more}


def test_an_index_is_that_of_one_process(tmp_path):
    of, out, made = shop("lime-xor"), tmp_path / "index", []

    def workers(job):
        made.append(Here(job, 4))
        return made[-1]

    run_parts(workers, index_job(of, out), 4)
    join_parts(of.run, out)
    build_index(of.run, tmp_path / "one", data=of.data)
    assert bytes_of(out) == bytes_of(tmp_path / "one")
    assert sorted(made[0].begun) == [1, 2, 3, 4] and made[0].stopped


def test_rankings_are_those_of_one_process(tmp_path):
    of, out = shop("lime-mha"), tmp_path / "recs.parquet"
    recommender = Recommender(of.run, of.index, of.data)
    given = {"users": None, "k": 4, "exclude_seen": True, "time": None, "rules": None}
    paths = {"run": str(of.run.path), "index": str(of.index.path), "data": str(of.data.path)}
    job = {"command": "rank", "out": str(out), "items": None, "scorer": "auto", "threads": 1}
    run_parts(functools.partial(Here, parts=3), job | paths | given, 3)
    join_ranked(recommender, out, **given)
    rank_all(recommender, tmp_path / "one.parquet", k=4)
    assert out.read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_a_part_that_fails_is_tried_again(tmp_path):
    """As a worker that is killed; a driver that is called again goes on."""
    of, out, left = shop("lime-xor"), tmp_path / "index", [3, 3, 2]

    def fails(number):
        if number in left:
            left.remove(number)
            raise StoreError("the worker has ended")

    pools = []

    def workers(job):
        pools.append(Here(job, 4, fails))
        return pools[-1]

    with pytest.raises(StoreError, match="part 3/4 failed 2 times, and the job is stopped: the w"):
        run_parts(workers, index_job(of, out), 4, retries=1)
    assert pools[0].stopped
    run_parts(workers, index_job(of, out), 4, retries=1)
    join_parts(of.run, out)
    build_index(of.run, tmp_path / "one", data=of.data)
    assert bytes_of(out) == bytes_of(tmp_path / "one")


def test_a_poisoned_part_ends_the_job(tmp_path):
    of, out, tried = shop("lime-xor"), tmp_path / "index", []

    def fails(number):
        tried.append(number)
        if number == 2:
            raise RuntimeError("killed")

    with pytest.raises(FormatError, match=r"part 2/4 failed 4 times, .*: killed"):
        run_parts(functools.partial(Here, parts=4, fails=fails), index_job(of, out), 4)
    assert tried.count(2) == 4 and all(tried.count(number) <= 1 for number in (1, 3, 4))
    assert parts_folder(out).exists() and not out.exists()


def test_errors_of_the_data_are_not_tried_again(tmp_path):
    of, out, tried = shop("lime-xor"), tmp_path / "index", []

    def fails(number):
        tried.append(number)
        raise DataError("2 of 16 items encode to NaN")

    with pytest.raises(DataError, match="part 3/3 failed, and the job is stopped: 2 of 16 items"):
        run_parts(functools.partial(Here, parts=3, fails=fails), index_job(of, out), 3)
    assert tried == [3]
    for parts, retries in ((0, 1), (1, -1)):
        with pytest.raises(SpecError, match="expected at least 1 and at least 0"):
            run_parts(functools.partial(Here, parts=3), {}, parts, retries=retries)


def test_arguments_of_the_commands(call, tmp_path, monkeypatch):
    of, out = shop("two-tower"), tmp_path / "index"
    given = ["index", of.run.path, "--out", out, "--data", of.data.path]
    ranked = ["rank", "--run", of.run.path, "--index", of.index.path, "--data", of.data.path]
    file = tmp_path / "recs.parquet"
    for command, text in (
        ([*given, "--on", "spark"], "no --on 'spark'; expected one of ray"),
        ([*given, "--on", "ray", "--part", "1/2"], "give --part, or --on"),
        ([*given[:-2], "--on", "ray", "--compact"], "leave out --compact"),
        ([*given[:3], "s3://shop/index", "--on", "ray"], "--on: you need a folder that all"),
        ([*given[:3], "s3://shop/index", "--shards", 2], "--shards: you need a folder that all"),
        ([*ranked, "--user", 1, "--on", "ray"], "go with --all-users"),
        ([*ranked, "--all-users", "--out", file, "--on", "ray", "--join"], "leave out --part"),
    ):
        status, _, error = call(*command)
        assert status == 2 and text in error
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    status, _, error = call(*given, "--on", "ray")
    assert status == 2 and 'pip install "limerank[ray]"' in error
    monkeypatch.setattr(
        "limerank.cluster.on_ray.RayWorkers", lambda job, parts, threads: Here(job, parts)
    )
    status, output, error = call(*given, "--on", "ray", "--parts", 3, "--quiet")
    assert status == 0 and "90 items" in output, error
    many = [*ranked, "--all-users", "-k", 3, "--out", file, "--on", "ray", "--quiet"]
    status, output, error = call(*many, "--rules", "filter = {group = ['g1']}")
    assert status == 0 and "ranked items of 30 users" in output, error
    assert len(pl.read_parquet(file))
    status, _, error = call(*many)
    assert status == 2 and "already exists" in error


@pytest.mark.slow
def test_on_ray(tmp_path, monkeypatch):
    """A worker is killed; the index is that of one process."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", str(os.environ.get("OMP_NUM_THREADS", "1")))
    root = str(Path(__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    of, out = shop("lime-xor"), tmp_path / "index"
    ray.init(
        num_cpus=1,  # one process imports torch
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=100 << 20,
    )
    try:
        job = index_job(of, out)

        class Killed(RayWorkers):
            def __init__(self, job, mark):
                super().__init__(job, 3)
                self._task = self._ray.remote(num_cpus=1, max_retries=0)(_killed_by(mark))

        run_parts(lambda of: Killed(of, str(tmp_path / "once")), job, 3)
        join_parts(of.run, out)
        build_index(of.run, tmp_path / "one", data=of.data)
        assert bytes_of(out) == bytes_of(tmp_path / "one")
    finally:
        ray.shutdown()


def _killed_by(mark):
    """A task that is killed at part 2, once: then there is a file ``mark``."""

    def task(job, number, of):
        if number == 2 and not os.path.exists(mark):
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        writing.CHUNK = 16
        work.compute(job, Part(number, of))

    return task
