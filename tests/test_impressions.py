"""Impression features: a position, a price, a slot of one shown item, from the log to the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.impressions import LARGEST
from limerank.data.prepare import prepare
from limerank.errors import DataError, SpecError
from tests.worlds import PAGE_FEATURES, prepare_log, write_pages


def prepared(folder: Path, spec: Path, **options) -> Dataset:
    prepare(load_spec(spec), folder, base=spec.parent, **options)
    return Dataset(folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("pages")
    return prepared(folder / "data", write_pages(folder / "log"))


def shown_rows(dataset: Dataset) -> pl.DataFrame:
    """Rows of the log that were shown, in the order of the dataset's impressions."""
    frame = pl.read_parquet(dataset.path.parent / "log" / "shown.parquet")
    rows = dataset.impression_rows(np.arange(len(dataset.requests["count"])))
    assert len(rows) == len(frame)
    owner = np.repeat(dataset.requests["user"], dataset.requests["count"])
    order = pl.DataFrame(
        {
            "user_id": dataset.user_ids[owner],
            "item_id": dataset.item_ids[dataset.events["item"][rows]],
            "time": dataset.events["time"][rows] // 1000,
        }
    )
    return order.join(frame, on=order.columns, how="left", maintain_order="left")


def test_a_dataset_has_the_values_of_each_impression(pages):
    rows = pages.impression_rows(np.arange(len(pages.requests["count"])))
    given = shown_rows(pages)
    np.testing.assert_array_equal(
        pages.events["impression_price"][rows], given["price"].cast(pl.Float32).to_numpy()
    )
    for name in ("position", "slot"):
        words = pl.read_parquet(pages.path / "vocab" / f"event_{name}.parquet")
        codes = dict(words.select("value", "code").iter_rows())
        expected = [codes[str(value)] for value in given[name]]
        np.testing.assert_array_equal(pages.events[f"impression_{name}"][rows], expected)
    rest = np.setdiff1d(np.arange(len(pages.events["item"])), rows)
    assert len(rest) == len(rows) // 6  # the searches
    assert np.isnan(pages.events["impression_price"][rest]).all()
    assert not pages.events["impression_position"][rest].any()


def test_scales_come_from_the_training_impressions(pages):
    price = next(f for f in pages.encoding["impression_features"] if f["name"] == "price")
    rows = pages.impression_rows(pages.requests_of("train"))
    values = np.log1p(pages.events["impression_price"][rows].astype(np.float64))
    values = values[~np.isnan(values)]
    assert price["mean"] == pytest.approx(values.mean(), rel=1e-3)  # of a fine histogram
    assert price["std"] == pytest.approx(values.std(), rel=1e-3)


def test_batches_hold_tokens_and_numbers_of_candidates(pages):
    requests = pages.requests_of("test")[:5]
    batch = pages.batch(requests)
    shown, real = batch.shown, batch.real
    assert shown is not None
    assert shown.tokens.shape == shown.numbers.shape == (*batch.candidates.shape, 3)
    assert not shown.tokens[~real].any() and not shown.numbers[~real].any()
    rows = pages.impression_rows(requests)
    prices = pages.events["impression_price"][rows]
    entry = pages.impressions.features["price"]
    normal = np.clip((np.log1p(prices) - entry["mean"]) / entry["std"], -LARGEST, LARGEST)
    expected = np.nan_to_num(normal)
    np.testing.assert_allclose(shown.numbers[real][:, 1], expected, rtol=1e-5, atol=1e-6)
    assert not shown.numbers[..., 0].any() and not shown.numbers[..., 2].any()
    tokens = shown.tokens[real].numpy()
    known = tokens > 0
    np.testing.assert_array_equal(known[:, 1], ~np.isnan(prices))
    # Each feature has rows of its own in one table; row 0 is shared by what is unknown.
    sizes = [feature["size"] - 1 for feature in pages.encoding["impression_features"]]
    ends = np.cumsum(sizes)
    assert pages.impressions.tokens == ends[-1] + 1
    for at, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        of_feature = tokens[known[:, at], at]
        assert of_feature.min() > end - size and of_feature.max() <= end
    sequences = pages.sequences(requests)
    assert sequences.shown is not None
    assert torch.equal(sequences.shown.tokens, shown.tokens[real])
    assert torch.equal(sequences.shown.numbers, shown.numbers[real])


def test_histories_do_not_contain_impression_features(pages, tmp_path):
    without = prepared(
        tmp_path / "data", write_pages(tmp_path / "log", event_features=PAGE_FEATURES[:1])
    )
    assert pages.encoder.columns == without.encoder.columns
    assert pages.encoder.tokens == without.encoder.tokens
    requests = pages.requests_of("test")[:9]
    one, other = pages.batch(requests), without.batch(requests)
    assert torch.equal(one.users.tokens, other.users.tokens)
    assert other.shown is None
    assert without.manifest["format"] == 1 and pages.manifest["format"] == 2


def test_datasets_do_not_depend_on_the_size_of_blocks(tmp_path):
    spec = write_pages(tmp_path / "log", users=400)
    one, other = (
        prepared(tmp_path / name, spec, memory=memory)
        for name, memory in (("large", 2 << 30), ("small", 8 << 20))
    )
    assert one.encoding == other.encoding
    for name in one.impressions.columns:
        np.testing.assert_array_equal(one.events[name], other.events[name])
    assert one.manifest["summary"]["warnings"] == other.manifest["summary"]["warnings"]


def test_a_context_that_differs_within_requests_is_pointed_out(tmp_path):
    features = [
        {"name": "device", "kind": "categorical", "when": "context"},
        {"name": "price", "kind": "numeric", "when": "context"},
    ]
    spec = write_pages(tmp_path / "log", event_features=features)
    text = spec.read_text().replace("click = 1", "click = 1\nprice = 0")
    spec.write_text(text)
    warnings = prepared(tmp_path / "data", spec).manifest["summary"]["warnings"]
    found = [warning for warning in warnings if "impression feature" in warning]
    assert len(found) == 1
    assert found[0].startswith(
        "context feature price: its values differ within 480 of 480 requests"
    )


def test_descriptions_refuse_what_impressions_cannot_be(tmp_path):
    for wrong, message in (
        ({"name": "x", "kind": "numeric", "bias": True}, 'bias is for when = "impression"'),
        ({"name": "x", "kind": "numeric", "transform": "log1p"}, "impression features"),
        ({"name": "x", "kind": "text-vector", "when": "impression"}, "kind"),
    ):
        with pytest.raises(SpecError, match=message):
            load_spec(write_pages(tmp_path, event_features=[wrong]))
    missing = [{"name": "stock", "kind": "numeric", "when": "impression"}]
    spec = write_pages(tmp_path, event_features=missing)
    with pytest.raises(DataError, match="no column 'stock'"):
        prepared(tmp_path / "data", spec)


def test_datasets_without_impression_features_are_of_the_first_version(tmp_path):
    dataset = Dataset(prepare_log(tmp_path))
    assert dataset.manifest["format"] == 1
    assert dataset.impressions.columns == () and dataset.impressions.tokens == 0
    assert dataset.batch(dataset.requests_of("test")[:2]).shown is None
