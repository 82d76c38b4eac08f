"""What computes is a choice with a name, and each choice gives the same logits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from limerank.errors import SpecError
from limerank.kernels import dispatch
from limerank.models import build
from limerank.models.registry import OF_THE_PACKAGE
from limerank.runs.folder import load_run
from tests.catalogues import make_run, shop
from tests.worlds import SHAPE, batch, config_of


@pytest.fixture
def as_trained():
    before = dispatch.use_inference("as-trained")
    yield
    dispatch.use_inference(before)


@pytest.mark.parametrize("model", OF_THE_PACKAGE)
def test_inference_as_trained_is_training_bit_for_bit(model, as_trained):
    torch.manual_seed(0)
    ranker = build(SHAPE, config_of(model, width=16, heads=2, links=5, blocks=3)).eval()
    full = batch([300, 0, 5, 130], [70, 3, 1, 40])
    with_gradients = ranker(full).detach()
    with torch.inference_mode():
        assert torch.equal(ranker(full), with_gradients)
        assert dispatch.inference().used == "as-trained"
        before = dispatch.use_inference("fast")
        fast = ranker(full)
        dispatch.use_inference(before)
    real = full.real
    torch.testing.assert_close(fast[real], with_gradients[real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_a_run_has_the_user_stage_that_was_asked_for(model, monkeypatch):
    of = shop(model)
    stages = {}
    for name in ("native", "torch", "auto"):
        run = load_run(of.run.path, user_stage=name)
        with torch.inference_mode():
            users = of.data.batch(of.requests(6))
            stages[name] = run.ranker(users)
        assert (run.ranker.personaliser is None) == (name == "torch")
    assert torch.equal(stages["native"], stages["auto"])
    torch.testing.assert_close(stages["native"], stages["torch"], atol=2e-5, rtol=1e-4)
    assert load_run(of.run.path).ranker.user_stage.used == "native"
    monkeypatch.setenv("LIMERANK_USER_STAGE", "torch")
    chosen = load_run(of.run.path).ranker.user_stage
    assert str(chosen) == "user stage torch (chosen by LIMERANK_USER_STAGE)"
    assert load_run(of.run.path, user_stage="native").ranker.user_stage.used == "native"


def test_a_user_stage_that_cannot_compute_is_refused(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", shop("two-tower").data, model="two-tower")
    assert run.ranker.user_stage.why == "the model has no native one"
    with pytest.raises(SpecError, match="cannot be native: the model has no native one"):
        run.ranker.choose_user_stage("native")
    ranker = build(SHAPE, config_of("lime-mha", width=16)).double()
    assert ranker.choose_user_stage("auto").why == "the weights are float64"
    with pytest.raises(SpecError, match=r"no user stage 'nativ'.*did you mean 'native'"):
        ranker.choose_user_stage("nativ")
    monkeypatch.setenv("LIMERANK_USER_STAGE", "native")
    with pytest.raises(SpecError, match="the weights are float64"):
        ranker.choose_user_stage()
    with pytest.raises(SpecError, match=r"no inference 'slow'; expected one of fast, as-trained"):
        dispatch.use_inference("slow")
    assert dispatch.inference().used == "fast", "a choice that is refused changes nothing"


def test_the_environment_chooses_the_operations_of_inference():
    code = "from limerank.kernels import dispatch; print(dispatch.inference())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"LIMERANK_INFERENCE": "as-trained", "PATH": ""},
    )
    assert done.stdout.strip() == "inference as-trained (the forms of training)"
