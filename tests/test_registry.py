"""The registry of models: configurations, a model from outside, runs of earlier versions."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limerank.data.batch import Users
from limerank.errors import FormatError, SpecError
from limerank.evaluation.evaluate import evaluate
from limerank.models import MODELS, Ranker, build, register
from limerank.models.config import (
    CONFIG_CLASSES,
    HeadConfig,
    ModelConfig,
    TrainConfig,
    configs_of,
    model_config_of,
    train_config_of,
)
from limerank.models.layers import HeadState, HeadTerms
from limerank.models.linformer import LreaConfig
from limerank.models.links import LimeMhaConfig
from limerank.models.ranker import plus
from limerank.models.registry import OF_THE_PACKAGE
from limerank.runs import formats, selftest
from limerank.runs.folder import load_run
from limerank.training.trainer import train
from tests.worlds import SHAPE, batch, config_of, prepare_log


def test_a_configuration_is_of_its_models_own_class():
    assert type(ModelConfig(model="lrea", slots=3)) is LreaConfig
    assert type(ModelConfig.model_validate({"model": "lrea"})) is LreaConfig
    assert ModelConfig(model="lime-mha", links=3) == LimeMhaConfig(links=3)
    assert ModelConfig().model == "lime-xor"
    config = LreaConfig(slots=3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "lrea", "links": 3}, "lrea has no such setting; it is called slots here"),
        ({"model": "truncated-mha", "links": 3}, "it is called events here"),
        ({"model": "lime-mha", "slots": 3}, "it is called links here"),
        ({"model": "hstu", "places": 3}, "it is called positions here"),
        ({"model": "lime-mha", "blocks": 3}, "lime-mha has no such setting; expected one of"),
        ({"model": "two-tower", "hidden": 3}, "two-tower has no such setting"),
        ({"model": "lime-xor", "hiden": 3}, "did you mean 'hidden'?"),
        ({"model": "mha", "width": 6}, "heads must divide the width; got 4 and 6"),
    ],
)
def test_a_setting_that_a_model_does_not_have_is_named(settings, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**settings)
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(settings)


def test_an_unknown_model_gets_the_nearest_name():
    with pytest.raises(SpecError, match=r"no model 'lime-mah'.*did you mean 'lime-mha'"):
        ModelConfig(model="lime-mah")
    with pytest.raises(ValidationError, match="LimeMhaConfig is not the configuration of 'hstu'"):
        LimeMhaConfig(model="hstu")


def test_settings_of_a_model_and_of_its_training_are_separate():
    shape, training = configs_of("lrea", {"slots": 3, "epochs": 2})
    assert (shape, training) == (LreaConfig(slots=3), TrainConfig(epochs=2))
    for name, message in (("links", "it is called slots here"), ("epocs", "did you mean 'epochs'")):
        with pytest.raises(SpecError, match=rf"lrea and its training have no setting.*{message}"):
            configs_of("lrea", {name: 3})


def test_what_models_can_do():
    abilities = {name: set(MODELS[name].abilities) for name in OF_THE_PACKAGE}
    assert abilities.pop("lime-mha") == {"folds", "streams", "explains"}
    assert abilities.pop("lime-xor") == {"folds", "explains"}
    assert not any(abilities.values())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_keep_what_they_promise(name):
    ranker = build(SHAPE, config_of(name, width=16, heads=2, links=5)).eval()
    full = batch([5, 0, 2], [3, 1, 2])
    vectors = ranker.item_vectors(full.items)
    terms, state = ranker.encode_items(vectors), ranker.encode_users(full.users, vectors)
    assert (ranker.link_shape is not None) >= ranker.explains >= ranker.folds
    if ranker.folds:
        heads, links = ranker.link_shape
        assert terms._fields == ("weights", "head", "key")
        assert ranker.fold(state).shape == (3, heads * links, ranker.head.out.in_features * 2)
    if ranker.explains:
        assert ranker.link_weights(terms).shape == (len(vectors), *ranker.link_shape)
        assert ranker.read_weights(full.users, vectors).shape == (3, *ranker.link_shape, 5)
    if ranker.late_context:
        u, c = ranker.user_tower(full.users)
        history = ranker.history_state(full.users, vectors)
        for own, part in zip(state, ranker.state_of(history, u, c), strict=True):
            if isinstance(own, Tensor):
                torch.testing.assert_close(own, part)


class MeanConfig(HeadConfig):
    """Settings of a toy."""

    model: str = "toy-mean"
    scale: float = 1.0


class Mean(Ranker):
    """A toy: the mean of the events goes to the head."""

    config: MeanConfig

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.head = self.new_head()

    def encode_items(self, vectors_ud: Tensor) -> HeadTerms:
        return HeadTerms(self.head.from_item(vectors_ud))

    def user_state(self, users: Users, vectors_ud: Tensor) -> HeadState:
        events_bnd = self.event_tower(users, vectors_ud)
        real_bn1 = (torch.arange(events_bnd.shape[1]) < users.lengths[:, None])[..., None]
        mean_bd = (events_bnd * real_bn1).sum(1) / users.lengths.clamp(min=1)[:, None]
        read_bg = self.head.from_links(self.config.scale * mean_bd)
        return HeadState(self.head.from_request(*self.user_tower(users)) + read_bg)

    def score(self, state: HeadState, terms: HeadTerms, extra: Tensor | None = None) -> Tensor:
        return self.head(plus(terms.head + state.head[:, None], extra))


def test_a_model_from_outside_is_trained_and_evaluated(tmp_path):
    """One file is touched, its own; within the package it takes one line more, in the registry."""
    register("toy-mean", Mean, MeanConfig)
    register("toy-mean", Mean, MeanConfig)  # importing its module twice is no error
    try:
        with pytest.raises(
            ValueError, match="a model named 'toy-mean' is already registered, of class Mean"
        ):
            register("toy-mean", Ranker, MeanConfig)
        config, training = configs_of("toy-mean", {"scale": 2, "width": 8, "epochs": 1})
        train(prepare_log(tmp_path), tmp_path / "run", model=config, config=training)
        run = load_run(tmp_path / "run")
        assert type(run.ranker) is Mean and run.ranker.config == config
        assert evaluate(tmp_path / "run").model == "toy-mean"
    finally:
        del MODELS["toy-mean"], CONFIG_CLASSES["toy-mean"]
    with pytest.raises(FormatError, match=r"model 'toy-mean'.*import the module that registers it"):
        load_run(tmp_path / "run")


class NoHeadConfig(ModelConfig):
    """Settings of a toy, without those of a head."""

    model: str = "toy-headless"


def test_what_is_registered_is_checked():
    with pytest.raises(ValueError, match="a model named 'popularity' is already registered"):
        register("popularity", Mean, MeanConfig)
    for name, ranker, config, message in (
        ("", Mean, MeanConfig, "non-empty text; got ''"),
        (3, Mean, MeanConfig, "non-empty text; got 3"),
        ("toy", MeanConfig, MeanConfig, "ranker of model 'toy': expected a subclass of Ranker"),
        ("toy", Mean, TrainConfig, "config of model 'toy': expected a subclass of ModelConfig"),
        ("toy", Mean, ModelConfig(), "config of model 'toy': expected a subclass of ModelConfig"),
    ):
        with pytest.raises(TypeError, match=message):
            register(name, ranker, config)
    assert "toy" not in MODELS


def test_the_shared_head_needs_its_settings():
    register("toy-headless", Mean, NoHeadConfig)
    try:
        with pytest.raises(SpecError, match=r"NoHeadConfig has no settings.*derive it from.*Head"):
            build(SHAPE, NoHeadConfig())
    finally:
        del MODELS["toy-headless"], CONFIG_CLASSES["toy-headless"]


def test_a_model_is_given_by_its_name_or_by_its_settings():
    assert model_config_of("lime-mha") == LimeMhaConfig()
    assert model_config_of({"model": "lrea", "slots": 3}) == LreaConfig(slots=3)
    assert model_config_of(None) == ModelConfig()
    assert model_config_of(LreaConfig(slots=3)) == LreaConfig(slots=3)
    assert train_config_of({"epochs": 1}) == TrainConfig(epochs=1)
    assert train_config_of(None) == TrainConfig()
    with pytest.raises(SpecError, match="did you mean 'lime-mha'"):
        train("data", "run", model="lime-mah")
    with pytest.raises(SpecError, match="expected a ModelConfig, the name of a model or a mapping"):
        train("data", "run", model=3)
    with pytest.raises(SpecError, match=r"expected a TrainConfig or a mapping.*got 'epochs=1'"):
        train("data", "run", config="epochs=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_log(tmp_path_factory.mktemp("registry"))


IN_FORMAT_4 = {"links": 32, "blocks": 3, "places": 1024, "heads": 1, "variant": None}
CALLED_IN_FORMAT_4 = {"positions": "places", "slots": "links", "events": "links"}


def in_format_4(path, **changes):
    """Write a run as version 4 of the format has it."""
    stored = json.loads((path / "config.json").read_text())
    own = {CALLED_IN_FORMAT_4.get(name, name): value for name, value in stored["model"].items()}
    head = {"hidden": 32, "activation": "relu", "gated": True}
    before = {one: other for other, one in formats.TRAINING.items()}
    stored["train"] = {before.get(name, name): value for name, value in stored["train"].items()}
    del stored["train"]["objective"]
    stored |= {"format": 4, "model": {**head, **IN_FORMAT_4, **own, **changes}}
    (path / "config.json").write_text(json.dumps(stored))
    tensors = {
        ("places.weight" if name == "positions.weight" else name).replace(
            "of_position", "of_place"
        ): tensor
        for name, tensor in load_file(path / "model.safetensors").items()
    }
    save_file(tensors, path / "model.safetensors")
    for name in ("checksums.json", "selftest.safetensors"):
        (path / name).unlink()


@pytest.mark.parametrize("model", OF_THE_PACKAGE)
def test_runs_of_format_4_open_and_rank_alike(data, tmp_path, model):
    config = config_of(model, width=8, heads=2, links=3, blocks=2, hidden=6, positions=16)
    train(data, tmp_path / "run", model=config, config=TrainConfig(epochs=1, learning_rate=0.01))
    run = load_run(tmp_path / "run")
    assert selftest.passes(run)
    in_format_4(tmp_path / "run")
    old = load_run(tmp_path / "run")
    assert old.ranker.config == run.ranker.config and old.train == run.train
    found, expected = (dict(one.ranker.named_parameters()) for one in (old, run))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_run_of_a_variant_names_the_model_to_register(data, tmp_path):
    train(
        data,
        tmp_path / "run",
        model=ModelConfig(model="lime-mha", width=8),
        config=TrainConfig(epochs=1),
    )
    in_format_4(tmp_path / "run", variant="softest")
    with pytest.raises(FormatError, match=r"model 'lime-mha-softest'.*import the module"):
        load_run(tmp_path / "run")
