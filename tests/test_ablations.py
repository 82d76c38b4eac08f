"""Every ablation is one change to a model that can be built, and the page has words for it."""

from __future__ import annotations

import pytest

from benchmarks.ablations import CHANGES, MODELS, cases
from benchmarks.ablations_page import BASE, DEFAULTS
from limerank.models import build
from limerank.models.config import ModelConfig
from tests.worlds import SHAPE

CASES = list(cases(MODELS, tuple(CHANGES)))


@pytest.mark.parametrize(("model", "what", "value"), CASES)
def test_a_change_changes_the_model(model, what, value):
    change = {k: v for k, v in CHANGES[what][value].items() if k in ModelConfig.model_fields}
    config = ModelConfig.model_validate({"model": model, **change})
    build(SHAPE, config)
    assert (config == ModelConfig(model=model)) == (what in (BASE, "history"))


def test_the_page_names_every_default():
    assert set(CHANGES) == {BASE, *DEFAULTS}
    assert {what for _, what, _ in CASES} == set(CHANGES)
