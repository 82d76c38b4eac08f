"""Hidden ids and dropout follow from the seed, the step and the id, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from limerank.data.dataset import Dataset
from limerank.models import build
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.models.noise import hidden_ids, key_of
from limerank.training.objectives import Impressions
from limerank.training.optim import Optimiser
from limerank.training.step import Step
from limerank.training.trainer import train
from limerank.world import Alone
from tests.worlds import SHAPE, batch, config_of, prepare_log


def splitmix(x: int) -> int:
    """The published finaliser, by Python's integers."""
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_ids_are_hidden_by_their_hash():
    key = key_of(3, 41)
    ids = torch.tensor([0, 1, 2, 77, 2**31 + 5, 2**40])
    expected = [
        splitmix((int(one) * 0x9E3779B97F4A7C15 + key) % 2**64) >> 40 < round(0.3 * 2**24)
        for one in ids
    ]
    assert hidden_ids(ids, 0.3, key).tolist() == expected


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_is_that_of_ids_and_of_steps(share):
    ids = torch.arange(200_000)
    assert float(hidden_ids(ids, share, key_of(0, 0)).double().mean()) == pytest.approx(
        share, abs=0.005
    )
    of_steps = torch.stack([hidden_ids(ids[:50], share, key_of(0, step)) for step in range(4000)])
    assert float(of_steps.double().mean()) == pytest.approx(share, abs=0.005)
    assert (of_steps.double().mean(0) - share).abs().max() < 0.05, "no id is hidden more often"


def test_steps_and_seeds_hide_independently():
    ids = torch.arange(100_000)
    keys = [key_of(seed, step) for seed in range(3) for step in range(3)]
    assert len(set(keys)) == 9 and key_of(1, 2) != key_of(2, 1)
    masks = torch.stack([hidden_ids(ids, 0.3, key) for key in keys]).double()
    together = masks @ masks.T / len(ids)
    apart = together[~torch.eye(9, dtype=torch.bool)]
    assert (apart - 0.09).abs().max() < 0.005


@pytest.mark.parametrize("model", ["lime-mha", "two-tower"])
def test_an_item_is_hidden_in_any_batch_alike(model):
    torch.manual_seed(0)
    ranker = build(SHAPE, config_of(model, width=8, id_dropout=0.5, dropout=0.0)).train()
    full = batch([5, 2], [3, 4]).items
    plain = replace(full, content=replace(full.content, weights=full.content.weights * 0))
    plain = replace(plain, content=replace(plain.content, numeric=plain.content.numeric * 0))
    order = torch.randperm(len(full.ids))[:7]
    some = replace(plain, ids=plain.ids[order])
    some = replace(
        some,
        content=replace(some.content, offsets=torch.zeros(8).long(), numeric=torch.zeros(7, 3)),
    )
    some = replace(
        some,
        content=replace(some.content, tokens=torch.zeros(0).long(), weights=torch.zeros(0)),
    )
    ranker.begin_step(0, 7)
    assert torch.equal(ranker.item_vectors(plain)[order], ranker.item_vectors(some))
    before = ranker.item_vectors(plain)
    ranker.begin_step(0, 8)
    assert not torch.equal(ranker.item_vectors(plain), before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_log(tmp_path_factory.mktemp("noise"))


def test_the_noise_of_a_step_does_not_depend_on_what_came_before(data):
    dataset, config = Dataset(data), TrainConfig(batch_size=64)
    shape = DataShape.of(dataset.manifest)
    objective = Impressions(dataset, shape, config)
    (batch,) = objective.batches(objective.plan(0)[:1])

    def loss(number: int, draws: int) -> float:
        torch.manual_seed(1)
        ranker = build(shape, ModelConfig(model="lime-mha", width=8, dropout=0.3)).train()
        torch.rand(draws)
        step = Step(ranker, objective, Optimiser(ranker, config, 10), config, Alone())
        return float(step(batch, number).total)

    assert loss(5, 0) == loss(5, 1000) != loss(6, 0)


def test_checkpoints_hold_no_state_of_a_generator(data, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(line):
        if "validation" in line and line["step"] > 8:
            raise StoppedError

    config = TrainConfig(epochs=9, batch_size=64, patience=9, checkpoint_seconds=0.0)
    model = ModelConfig(model="two-tower", width=8)
    with pytest.raises(StoppedError):
        train(data, tmp_path / "run", model=model, config=config, report=stop)
    names = load_file(tmp_path / "run" / "trainer" / "state.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"model", "optimiser"}
    assert "optimiser.item_tower.ids.weight/sums" in names
