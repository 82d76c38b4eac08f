"""Which features of items are anchored: those whose values repeat within histories."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.errors import SpecError
from limerank.models.config import DataShape


def write(folder, **item_features):
    """60 users, each with two brands; 200 items of 20 brands, each with a serial number of its own,
    a title of eight common words, and a list of two tags."""
    rng = np.random.default_rng(0)
    items = 200
    pl.DataFrame(
        {
            "id": range(items),
            "brand": [f"b{item % 20}" for item in range(items)],
            "serial": [f"s{item}" for item in range(items)],
            "title": ["|".join(f"w{w}" for w in rng.choice(30, 8, False)) for _ in range(items)],
            "tags": ["|".join(f"t{w}" for w in rng.choice(12, 2, False)) for _ in range(items)],
        }
    ).write_parquet(folder / "items.parquet")
    rows = [
        (user, int(rng.choice([user % 20, (user * 7) % 20]) + 20 * rng.integers(10)), at, at % 2)
        for user in range(60)
        for at in range(20)
    ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "time", "click"], orient="row").with_columns(
        pl.col("time") * 100_000 + 1_700_000_000
    ).write_parquet(folder / "log.parquet")
    features = {
        "brand": {},
        "serial": {},
        "title": {"split": "|"},
        "tags": {"split": "|"},
    }
    return {
        "name": "anchors",
        "events": [{"files": ["log.parquet"], "time": "time"}],
        "labels": [{"name": "click", "kind": "binary"}],
        "requests": {"size": 1},
        "items": {
            "files": ["items.parquet"],
            "id": "id",
            "features": [
                {"name": name, "kind": "categorical", **how, **item_features.get(name, {})}
                for name, how in features.items()
            ],
        },
    }


def anchors_of(spec, folder, **settings):
    summary = prepare(spec, folder / "data", base=folder, overwrite=True, **settings)
    manifest = json.loads((folder / "data" / "dataset.json").read_text())
    assert list(DataShape.of(manifest).anchors) == manifest["encoding"]["anchors"]
    return summary, manifest["encoding"]["anchors"]


def test_features_whose_values_repeat_are_anchored(tmp_path):
    summary, found = anchors_of(write(tmp_path), tmp_path)
    assert found == ["brand", "tags"], "serials do not repeat; titles have too many values"
    assert "anchored (repeat within histories): items, brand, tags" in summary.text()
    assert anchors_of(write(tmp_path), tmp_path, memory="512MiB")[1] == found


def test_a_description_decides(tmp_path):
    spec = write(tmp_path, brand={"anchor": False}, title={"anchor": True})
    assert anchors_of(spec, tmp_path)[1] == ["title", "tags"]


def test_an_anchor_is_a_category_of_an_item(tmp_path):
    spec = write(tmp_path)
    number = {"name": "price", "kind": "numeric", "anchor": True}
    with pytest.raises(ValueError, match="anchor is for categorical"):
        Spec.model_validate({**spec, "items": {**spec["items"], "features": [number]}})
    of_event = {"name": "device", "kind": "categorical", "anchor": True}
    with pytest.raises(SpecError, match="features of the item table; device"):
        prepare({**spec, "event_features": [of_event]}, tmp_path / "data", base=tmp_path)
