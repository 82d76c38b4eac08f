"""A run still says what it said when it was trained, or is refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from limerank import selftest
from limerank.checkpoint import save_weights
from limerank.config import ModelConfig, TrainConfig
from limerank.errors import FormatError
from limerank.files import checksum
from limerank.trained import load_trained
from limerank.training import train
from tests.catalogues import MODELS, data, make_run, shop

NAME = selftest.NAME


@pytest.mark.parametrize("model", MODELS)
def test_a_run_says_what_it_said(model, tmp_path):
    of = shop(model)
    shutil.copytree(of.run.path, tmp_path / "run")
    assert not selftest.passes(load_trained(tmp_path / "run")), "nothing was kept"
    selftest.keep(tmp_path / "run", of.run.ranker, of.data.batch(of.requests(5)))
    assert selftest.passes(load_trained(tmp_path / "run"))


def test_training_keeps_it(tmp_path):
    model = ModelConfig(model="lime-mha", width=16, heads=2, links=4, hidden=8)
    train(data().path, tmp_path / "run", model=model, config=TrainConfig(epochs=1))
    assert selftest.passes(load_trained(tmp_path / "run"))


def test_another_answer_is_refused(tmp_path):
    run = make_run(tmp_path / "run", data(), model="lime-xor")
    selftest.keep(tmp_path / "run", run.ranker, data().batch(shop("lime-xor").requests(5)))
    held = load_file(tmp_path / "run" / NAME)
    held["logits"][0] += 0.1
    weights = {"weights": checksum(tmp_path / "run" / "model.safetensors")}
    save_file(held, tmp_path / "run" / NAME, weights)
    with pytest.raises(FormatError, match="does not say what it said"):
        selftest.passes(load_trained(tmp_path / "run"))
    held.pop("logits")
    save_file(held, tmp_path / "run" / NAME, weights)
    with pytest.raises(FormatError, match="damaged"):
        selftest.passes(load_trained(tmp_path / "run"))
    (tmp_path / "run" / NAME).write_bytes(b"not tensors")
    with pytest.raises(FormatError, match="damaged"):
        selftest.passes(load_trained(tmp_path / "run"))


def test_other_weights_are_not_compared(tmp_path):
    """Training was killed between the weights and what they say."""
    run = make_run(tmp_path / "run", data(), model="lime-mha")
    selftest.keep(tmp_path / "run", run.ranker, data().batch(shop("lime-mha").requests(5)))
    with torch.no_grad():
        run.ranker.links.mul_(1.1)
    save_weights(tmp_path / "run", run.ranker)
    assert not selftest.passes(load_trained(tmp_path / "run"))
