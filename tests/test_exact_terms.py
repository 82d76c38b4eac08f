"""The bench of the parts of a model covers every form once, and its page shows each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import datasets, exact_terms, exact_terms_page, peers, quality, quality_page, rows
from limerank.data.dataset import Dataset
from limerank.models.config import ITEM, DataShape, ModelConfig, TrainConfig
from tests.worlds import prepare_log


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_log(tmp_path_factory.mktemp("exact"), users=60)


def test_the_forms_are_settings_of_both_models(data):
    features = tuple(DataShape.of(Dataset(data).manifest).anchors)
    assert features
    found = {form: exact_terms.settings_of(data, form) for form in exact_terms.FORMS}
    assert found[exact_terms.DEFAULTS] == {}
    assert found[exact_terms.ITEMS] == {"anchors": (ITEM,)}
    assert found[exact_terms.VALUES] == {"anchors": features}
    assert TrainConfig(**found.pop(exact_terms.BY_AUC)).metric == "click/auc"
    for model in exact_terms.MODELS:
        for settings in found.values():
            config = ModelConfig(model=model, **settings)
            assert {name: getattr(config, name) for name in settings} == settings


def test_a_log_without_anchored_features_has_no_values(data, monkeypatch):
    shape = DataShape.of(Dataset(data).manifest).model_copy(update={"anchors": {}})
    monkeypatch.setattr(DataShape, "of", lambda manifest: shape)
    jobs = list(exact_terms.cases({"a log": data}, ("lime-mha",), 1, again=True))
    left_out = {exact_terms.ITEMS, exact_terms.VALUES}
    assert {job[4] for job in jobs} == set(exact_terms.FORMS) - left_out


def test_finished_rows_are_skipped_and_the_page_shows_them(data, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    for module in (datasets, peers, quality):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.setattr(peers, "DEFAULTS", {"bf16": False, "epochs": 1, "width": 8, "links": 4})
    jobs = list(exact_terms.cases({"a log": data}, ("lime-mha",), 1))
    assert len(jobs) == len(exact_terms.FORMS)
    for _, *arguments in (jobs[0], jobs[-1]):
        exact_terms.measure(*arguments)
    waiting = list(exact_terms.cases({"a log": data}, ("lime-mha",), 1))
    assert waiting == jobs[1:-1]
    found = list(rows.rows("exact_terms"))
    for row in found:
        assert 0 < row["metrics"]["validation_auc"] < 1
        assert row["metrics"]["impressions"] > 0
    page = exact_terms_page.exact_terms(found)
    assert "| the defaults | 1 |" in page and "| stopped by AUC | 1 |" in page
    assert page.count("| **") == 2  # the best validation NE: after one epoch both are the same


def test_peers_stand_in_the_quality_page_where_the_impressions_are_the_same():
    metrics = {"impressions | history 0": 30, "impressions | history 1-9": 70}
    peer = {"impressions": 100, "auc": 0.625, "gauc": 0.5, "ne": 0.9}
    case = {"dataset": "ml1m", "model": "item mean", "features": "item rate"}
    row = {"case": case, "metrics": peer, "seed": 0}
    lines = quality_page.beside([{"metrics": metrics}], [row])
    assert any(line.startswith("| item mean | 1 | 0.6250 |") for line in lines)
    peer["impressions"] = 101  # another state of the dataset
    assert not quality_page.beside([{"metrics": metrics}], [row])
