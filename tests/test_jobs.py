"""Measurements in worker processes: what they report, and what a failure leaves."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks.jobs import finish, workers


def test_all_are_done_and_reported(tmp_path, capsys):
    jobs = [(pathlib.Path.touch, tmp_path / str(number)) for number in range(3)]
    with workers(2) as pool:
        finish(pool, "files", jobs)
        finish(pool, "nothing", [])
    assert len(list(tmp_path.iterdir())) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("files: 3 of 3 in ")


def test_a_failure_is_reported_and_starts_nothing_more(tmp_path):
    jobs = [(int, "seven")] + [(pathlib.Path.touch, tmp_path / str(n)) for n in range(500)]
    with pytest.raises(ValueError, match="seven"), workers(1) as pool:
        finish(pool, "files", jobs)
    assert len(list(tmp_path.iterdir())) < 500
