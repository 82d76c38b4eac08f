"""Files of tensors: the bytes of safetensors, without its temporary files."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save

from limerank.errors import FormatError
from limerank.runs.tensors import TYPES, write_tensors


def test_the_bytes_are_those_of_the_library(tmp_path):
    torch.manual_seed(0)
    tensors = {
        f"{name} {k}": (torch.randn(k, 3) * 50).to(of)
        for of, name in TYPES.items()
        for k in (0, 1, 5)
    }
    tensors |= {"scalar": torch.tensor(2.5), "transposed": torch.randn(3, 4).T.contiguous()}
    for metadata in ({}, {"progress": '{"ä": "\\n"}'}):
        write_tensors(tmp_path / "x", tensors, metadata)
        assert (tmp_path / "x").read_bytes() == save(tensors, metadata or None)
    loaded = load_file(tmp_path / "x")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert os.listdir(tmp_path) == ["x"]


def test_a_view_is_written_as_it_reads(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "x", {"columns": table[:, 1:3], "all": table.T}, {})
    loaded = load_file(tmp_path / "x")
    assert torch.equal(loaded["columns"], table[:, 1:3]) and torch.equal(loaded["all"], table.T)


def test_a_full_disk_is_reported(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.ones(2)}, {})
    held = (tmp_path / "x").read_bytes()
    with (
        pytest.MonkeyPatch.context() as patched,
        pytest.raises(FormatError, match=r"x cannot be written: No space left .*; free space"),
    ):
        full = partial(open, "/dev/full", "wb")
        patched.setattr("limerank.runs.tensors.open", lambda *_: full(), raising=False)
        write_tensors(tmp_path / "x", {"a": torch.zeros(2)}, {})
    assert (tmp_path / "x").read_bytes() == held
    assert sorted(os.listdir(tmp_path)) == ["x"]
