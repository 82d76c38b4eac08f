"""The reference of settings: complete, up to date, and shown by the command line."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import BaseModel, Field, ValidationError

from limerank.cli import reference
from limerank.cli.app import COMMANDS, command_of
from limerank.errors import SpecError
from limerank.models.aliases import COMMON_NAMES
from limerank.models.config import ModelConfig, TrainConfig, configs_of
from limerank.models.registry import MODELS, OF_THE_PACKAGE
from limerank.serving.http.settings import Settings
from limerank.validation import validate

DOCS = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


class Base(BaseModel):
    size: int = Field(8, ge=1)
    """Size of a :class:`~somewhere.Vector`. Larger
    is slower."""


class Toy(Base):
    name: str
    """Required; see ``size``."""
    kind: Literal["a", "b"] = "a"
    """One of two."""
    share: float | None = Field(None, gt=0, le=1)
    """A share."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weights."""
    files: tuple[str, ...] = ()
    """Files."""


def test_a_setting_is_read_from_its_class():
    found = {one.name: one for one in reference.settings_of(Toy)}
    assert list(found) == ["size", "name", "kind", "share", "weights", "files"]
    size = found["size"]
    assert (size.default, size.values) == ("8", "integer ≥ 1")
    assert size.meaning == "Size of a `Vector`. Larger is slower."
    assert size.summary == "Size of a `Vector`."
    assert (found["name"].default, found["name"].values) == ("required", "text")
    assert (found["kind"].default, found["kind"].values) == ('"a"', '`"a"`, `"b"`')
    assert (found["share"].default, found["share"].values) == ("not set", "number > 0 and ≤ 1")
    assert (found["weights"].default, found["weights"].values) == ("{}", "table text → number")
    assert (found["files"].default, found["files"].values) == ("[]", "list of text")


def test_the_page_is_up_to_date():
    """In a process of its own: other tests register models."""
    command = [sys.executable, "-m", "limerank", "settings", "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert DOCS.read_text("utf-8") == done.stdout, "out of date: make settings"


def test_every_setting_has_a_meaning():
    for section in reference.sections():
        for one in section.settings:
            assert one.meaning.endswith((".", ")")), f"{section.title}: {one.name}"
            assert len(one.summary) <= 200, f"{section.title}: {one.name}: {one.summary}"


def test_names_of_other_libraries_are_those_of_no_setting_here():
    settings = {name for model in MODELS.values() for name in model.config.model_fields}
    settings |= set(TrainConfig.model_fields)
    assert set(COMMON_NAMES) <= settings
    others = [other for names in COMMON_NAMES.values() for other in names]
    assert len(others) == len(set(others)) and not settings & set(others)


def test_python_names_the_setting_that_is_meant():
    with pytest.raises(
        ValidationError, match="training has no such setting; it is called learning_rate"
    ):
        TrainConfig(lr=0.1)
    with pytest.raises(ValidationError, match="lime-xor has no such setting; it is called width"):
        ModelConfig(dim=8)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TrainConfig, "learning_rate"),
        (TrainConfig, "table_learning_rate"),
        (TrainConfig, "weight_decay"),
        (TrainConfig, "clip"),
        (TrainConfig, "checkpoint_seconds"),
        (ModelConfig, "dropout"),
        (Settings, "seconds"),
        (Settings, "rate"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(config, name, number):
    with pytest.raises(SpecError, match=f"{name}: Input should be a finite number; got"):
        validate(config, {name: number}, "it")


def test_the_largest_seed():
    seed = 2**63 - 1
    assert TrainConfig(seed=seed).seed == seed
    torch.Generator().manual_seed(seed)
    np.random.default_rng([seed, 0])
    with pytest.raises(SpecError, match=f"seed: Input should be less than {seed + 1}"):
        validate(TrainConfig, {"seed": seed + 1}, "it")


def test_a_setting_of_the_other_class_is_named():
    for config, given, owner in (
        (
            ModelConfig,
            {"epochs": 3},
            "lime-xor has no such setting; it is a setting of TrainConfig",
        ),
        (TrainConfig, {"width": 32}, "it is a setting of ModelConfig;"),
        (TrainConfig, {"slots": 3}, r"it is a setting of ModelConfig\(model='lrea'\);"),
    ):
        with pytest.raises(SpecError, match=owner.rstrip(";") + "; got"):
            validate(config, given, "it")


def test_weights_of_tasks_are_a_table():
    with pytest.raises(SpecError, match=r'a weight for each task.*{"watch": 0.3}; got 0.3$'):
        configs_of("lime-xor", {"task_weights": 0.3})
    with pytest.raises(SpecError, match=r"^the configuration of lime-xor is not valid:"):
        configs_of("lime-xor", {"width": 0})


def test_help_of_train_lists_the_names_of_set(call):
    status, output, _ = call("train", "--help")
    assert status == 0
    for model in OF_THE_PACKAGE:
        for name in [*TrainConfig.model_fields, *MODELS[model].config.model_fields]:
            if name != "model":
                assert re.search(rf"^│ {name} +\S", output, re.MULTILINE), name
    assert re.search(r"--width .*Length of the vectors", output)
    assert output.count("[default: (64)]") == 1, "the default of --width"


@pytest.mark.parametrize("topic", ["", "training", "models", "lime-mha", "dataset", "server"])
def test_settings_are_listed_by_topic(call, topic):
    status, output, _ = call("settings", *([topic] if topic else []))
    assert status == 0
    assert ("learning" in output) == (topic in ("", "training", "lime-mha"))
    assert ("links" in output) == (topic in ("", "models", "lime-mha"))
    assert ("slots" in output) == (topic in ("", "models"))
    assert ("drain_seconds" in output) == (topic in ("", "server"))
    assert ("[[events]]" in output) == (topic in ("", "dataset"))


def test_a_misspelt_topic_is_named(call):
    status, _, error = call("settings", "lime-mah")
    assert status == 2 and "did you mean 'lime-mha'?" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_and_the_exit_statuses(call, command):
    status, output, _ = call(command, "--help")
    assert status == 0
    assert re.search(rf"^ +limerank {command}\b", output, re.MULTILINE), "an example"
    assert "Exit status: 0" in output


def test_commands_are_what_their_modules_define():
    for name in COMMANDS:
        command = command_of(name)
        assert command.name == name
        assert command.callback.__module__ == f"limerank.cli.{name}"
        settings = {"epochs", "batch_size", "width", "links", "history"}
        settings |= {"learning_rate", "table_learning_rate"}
        for option in command.params:
            if name == "train" and option.name in settings:
                continue  # their help is that of the setting
            assert option.help and option.help.endswith((".", ")")), f"{name}: {option.name}"


def test_help_loads_no_large_library():
    code = (
        "import sys\nsys.argv = ['limerank', *sys.argv[1:]]\n"
        "from limerank.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    print('loaded:', *({'torch', 'numpy', 'pyarrow', 'polars'} & sys.modules.keys()))"
    )
    for arguments in (["--help"], ["--version"], ["evaluate", "--help"], ["serve", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].strip() == "loaded:", arguments
