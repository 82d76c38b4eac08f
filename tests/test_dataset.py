"""Datasets: batches hold what the log says, once, and nothing later than they may."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limerank.data.batching import distinct_items
from limerank.data.dataset import Dataset
from limerank.data.history import latest
from limerank.errors import FormatError, UnknownError
from tests.worlds import prepare_log


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return Dataset(prepare_log(tmp_path_factory.mktemp("dataset")))


def test_a_plan_holds_every_request_once(dataset):
    requests = dataset.requests_of("train")
    for generator in (None, np.random.default_rng(0)):
        plan = dataset.plan(requests, 50, None, generator)
        np.testing.assert_array_equal(np.sort(np.concatenate(plan)), requests)
        sizes = [int(dataset.requests["count"][part].sum()) for part in plan]
        assert max(sizes) < 80
    one, other = (dataset.plan(requests, 50, None, np.random.default_rng(s)) for s in (1, 2))
    again = dataset.plan(requests, 50, None, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=False))


def test_a_batch_is_what_the_log_says(dataset):
    requests = dataset.requests_of("test")[:9]
    batch, columns = dataset.batch(requests), dataset.requests
    items = batch.items.ids.numpy()
    for b, request in enumerate(requests):
        first, count = columns["first"][request], columns["count"][request]
        shown = slice(first, first + count)
        assert int(batch.counts[b]) == count
        rows = dataset.events["item"][shown]
        expected = np.where(rows < dataset.trained_items, rows + 1, 0)
        np.testing.assert_array_equal(items[batch.candidates[b, :count]], expected)
        np.testing.assert_array_equal(
            batch.labels[b, :count, 0], dataset.events["label_click"][shown]
        )
        np.testing.assert_array_equal(
            batch.labels[b, :count, 1], dataset.events["label_watch"][shown]
        )
        end = columns["history_end"][request]
        start = max(columns["history_start"][request], end - dataset.history_length)
        assert int(batch.users.lengths[b]) == end - start
        rows = dataset.events["item"][start:end]
        expected = np.where(rows < dataset.trained_items, rows + 1, 0)
        np.testing.assert_array_equal(items[batch.users.items[b, : end - start]], expected)
        times = dataset.events["time"]
        assert (times[start:end] < times[first]).all()
        age = (times[end - 1] - times[start:end]) / 86_400_000
        np.testing.assert_allclose(batch.users.age[b, : end - start], age, rtol=1e-5, atol=1e-6)
    assert batch.distinct == len(np.unique(batch.candidates[batch.real]))


def test_a_shorter_history_keeps_the_latest(dataset):
    requests = dataset.requests_of("test")[:9]
    long, short = dataset.batch(requests), dataset.batch(requests, length=2)
    for b, length in enumerate(short.users.lengths.tolist()):
        full = int(long.users.lengths[b])
        retained = short.items.ids[short.users.items[b, :length]]
        all_of_them = long.items.ids[long.users.items[b, :full]]
        torch.testing.assert_close(retained, all_of_them[full - length :])


def test_histories_come_from_one_function(dataset):
    """Events given one user at a time, as a server has them, make the same history."""
    requests = dataset.requests_of("test")[:9]
    columns = dataset.requests
    together = latest(
        dataset.events,
        dataset.encoder,
        columns["history_start"][requests],
        columns["history_end"][requests],
        12,
    )
    for b, request in enumerate(requests):
        start, end = int(columns["history_start"][request]), int(columns["history_end"][request])
        own = {name: np.array(column[start:end]) for name, column in dataset.events.items()}
        alone = latest(own, dataset.encoder, np.array([0]), np.array([end - start]), 12)
        n = int(alone.lengths[0])
        assert n == together.lengths[b]
        np.testing.assert_array_equal(alone.items[0], together.items[b, :n])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[b, :n])
        np.testing.assert_array_equal(alone.age[0], together.age[b, :n])


@given(
    newest=st.integers(-(10**13), 10**13),
    after=st.integers(-(10**8), 4 * 10**10),
    length=st.integers(0, 2),
    part=st.floats(0, 1),
)
def test_a_context_lasts_as_long_as_it_says(dataset, newest, after, length, part):
    encoder, time = dataset.encoder, newest + after
    nothing = {name: np.zeros(1, np.int64) for name in encoder.context_columns}

    def tokens(at):
        found = encoder.context(nothing, np.array([at]), np.array([newest]), np.array([length]))
        return found.tolist()

    until = encoder.context_until(time, newest, length)
    assert time < until == int(until)
    assert tokens(time) == tokens(time + int(part * (int(until) - 1 - time)))
    assert tokens(time) == tokens(int(until) - 1) != tokens(int(until))


def test_tokens_stay_in_their_table(dataset):
    for batch in dataset.batches(dataset.plan(dataset.requests_of("train"), 300)):
        assert int(batch.users.tokens.amax()) < dataset.encoder.tokens
        assert int(batch.users.context.amax()) < dataset.encoder.context_tokens
        assert int(batch.items.ids.amax()) <= dataset.trained_items


def test_distinct_items_put_candidates_first():
    rows, distinct, candidates, history = distinct_items(
        np.array([7, 2, 7], np.int32), np.array([9, 2, 1, 9], np.int32)
    )
    assert set(rows[:distinct].tolist()) == {2, 7}
    assert set(rows.tolist()) == {1, 2, 7, 9}
    np.testing.assert_array_equal(rows[candidates], [7, 2, 7])
    np.testing.assert_array_equal(rows[history], [9, 2, 1, 9])


def test_a_folder_that_is_not_a_dataset_is_named(dataset, tmp_path):
    with pytest.raises(FormatError, match="is not a dataset"):
        Dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": 99}')
    with pytest.raises(FormatError, match="format 99, expected 1 or 2"):
        Dataset(Path(tmp_path))
    with pytest.raises(UnknownError, match="no split 'tomorrow'"):
        dataset.requests_of("tomorrow")
