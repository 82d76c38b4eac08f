"""Impression features: a position, a price, a slot of one shown item, from the log to the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from limerank.cli import options
from limerank.data.batch import Impressions
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.event_log import EventForm
from limerank.data.impressions import LARGEST
from limerank.data.prepare import prepare
from limerank.errors import DataError, FormatError, SpecError, UnknownError
from limerank.evaluation.evaluate import Evaluation, evaluate
from limerank.evaluation.predict import predict
from limerank.index.building import build_index
from limerank.models import build
from limerank.models.config import DataShape
from limerank.models.ranker import gather
from limerank.models.registry import OF_THE_PACKAGE
from limerank.ranking.recommender import Recommender
from limerank.ranking.scorer import scorer_for
from limerank.runs import selftest
from limerank.runs.model import load_trained
from limerank.serving.engine import Serving
from limerank.serving.messages import Explain, Rank
from limerank.serving.stores import SqliteStore
from limerank.training.trainer import train
from tests.worlds import PAGE_FEATURES, config_of, prepare_log, write_pages


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
    assert without.manifest["format"] == pages.manifest["format"] == 4


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


def test_a_dataset_without_a_clock_is_of_the_lowest_version_that_it_needs(tmp_path):
    source = {"files": ["events.parquet"], "order": "time", "request": "request_id"}
    assert Dataset(prepare_log(tmp_path, events=[source])).manifest["format"] == 1


def test_datasets_without_impression_features(tmp_path):
    dataset = Dataset(prepare_log(tmp_path))
    assert dataset.impressions.columns == () and dataset.impressions.tokens == 0
    assert dataset.batch(dataset.requests_of("test")[:2]).shown is None


# Models


def ranker_of(dataset: Dataset, model: str, seed: int = 0):
    """A model whose impression features weigh something, as after training."""
    torch.manual_seed(seed)
    ranker = build(DataShape.of(dataset.manifest), config_of(model, width=16, hidden=8))
    assert ranker.impressions is not None
    for layer in (ranker.impressions.from_tokens, ranker.impressions.from_numbers):
        assert not layer.weight.any()  # they start at zero
        torch.nn.init.normal_(layer.weight)
    return ranker.eval()


@pytest.mark.parametrize("model", OF_THE_PACKAGE)
@torch.inference_mode()
def test_features_add_to_the_first_layer_of_every_model(pages, model):
    ranker = ranker_of(pages, model)
    batch = pages.batch(pages.requests_of("test")[:6])
    vectors = ranker.item_vectors(batch.items)
    terms = gather(ranker.encode_items(vectors[: batch.distinct]), batch.candidates)
    state = ranker.encode_users(batch.users, vectors)
    tower, shown = ranker.impressions, batch.shown
    # The reference: a row of the table for every known token, one number for every feature.
    expected = torch.zeros(*batch.candidates.shape, ranker.added)
    for b, m, f in np.ndindex(*shown.tokens.shape):
        if token := int(shown.tokens[b, m, f]):
            expected[b, m] += tower.from_tokens.weight @ tower.table.weight[token]
        expected[b, m] += tower.from_numbers.weight[:, f] * shown.numbers[b, m, f]
    base = ranker.extra(state, batch.users.keys, batch.candidates)
    extra = ranker.extra(state, batch.users.keys, batch.candidates, shown)
    torch.testing.assert_close(
        extra - (0 if base is None else base), expected, rtol=1e-4, atol=1e-5
    )
    logits = ranker(batch)
    torch.testing.assert_close(ranker.score(state, terms, extra), logits)
    real = batch.real
    assert (logits[real] - ranker.score(state, terms, base)[real]).abs().max() > 0.01


@pytest.mark.parametrize("model", ["lime-mha", "two-tower"])
@torch.inference_mode()
def test_unknown_features_add_nothing(pages, model):
    ranker = ranker_of(pages, model)
    batch = pages.batch(pages.requests_of("test")[:6])
    with_none = replace(batch, shown=None)
    with_unknown = replace(batch, shown=batch.shown.where(torch.tensor(False)))
    torch.testing.assert_close(ranker(with_none), ranker(with_unknown))


def test_all_features_and_single_ones_are_hidden_in_training(pages):
    ranker = ranker_of(pages, "lime-xor")
    tower = ranker.impressions
    torch.nn.init.ones_(tower.from_numbers.weight)
    torch.nn.init.zeros_(tower.from_tokens.weight)
    tower.train()
    torch.manual_seed(0)
    numbers = torch.tensor([1.0, 4.0, 16.0]).expand(100, 200, 3)
    shown = Impressions(tokens=torch.zeros(100, 200, 3, dtype=torch.int64), numbers=numbers)
    sums = tower(shown)[..., 0].round()
    share = tower.dropout
    assert (sums == 0).float().mean() == pytest.approx(share + (1 - share) * share**3, abs=0.01)
    assert (sums == 21).float().mean() == pytest.approx((1 - share) ** 4, abs=0.01)
    assert (sums == 5).float().mean() == pytest.approx((1 - share) ** 3 * share, abs=0.01)


def test_other_weights_start_as_without_impression_features(pages):
    shape = DataShape.of(pages.manifest)
    without = shape.model_copy(update={"impression_tokens": 0, "impression_features": 0})
    torch.manual_seed(3)
    one = build(shape, config_of("lime-xor", width=16)).state_dict()
    torch.manual_seed(3)
    other = build(without, config_of("lime-xor", width=16)).state_dict()
    assert one.keys() - other.keys() == {
        f"impressions.{name}.weight" for name in ("table", "from_tokens", "from_numbers")
    }
    assert all(torch.equal(one[name], weights) for name, weights in other.items())


@torch.inference_mode()
def test_exact_histories_see_the_same_features(pages):
    ranker = ranker_of(pages, "lime-mha")
    requests = pages.requests_of("test")[:4]
    sequences, batch = pages.sequences(requests), pages.batch(requests)
    found = ranker.sequence_logits(sequences)
    without = ranker.sequence_logits(replace(sequences, shown=None))
    torch.testing.assert_close(found, ranker(batch)[batch.real], rtol=1e-3, atol=1e-4)
    assert (found - without).abs().max() > 0.01


@torch.inference_mode()
def test_calibration_scales_what_is_added_to_logits(pages):
    for model in ("two-tower", "lime-mha"):
        ranker = ranker_of(pages, model)
        batch = pages.batch(pages.requests_of("test")[:4])
        before = ranker(batch)
        ranker.calibrate(torch.tensor([0.5]), torch.tensor([0.25]))
        torch.testing.assert_close(ranker(batch), 0.5 * before + 0.25, rtol=1e-4, atol=1e-5)


# Runs


@pytest.fixture(scope="module")
def run(pages) -> Path:
    folder = pages.path.parent / "run"
    # Without counters, an index of the end of the log ranks as the model did within it.
    model = config_of("lime-mha", width=16, hidden=8, links=4, counter_hours=0)
    train(pages, folder, model=model, config={"epochs": 3, "batch_size": 64})
    return folder


def test_a_run_learns_from_the_features_and_does_without(run, pages):
    found = {
        use: evaluate(run, impression_features=use, lists=0) for use in ("all", "known", "none")
    }
    auc = {use: one.tasks["click"]["auc"] for use, one in found.items()}
    assert auc["all"] > auc["known"] + 0.03 > auc["none"] + 0.06
    assert auc["none"] == pytest.approx(0.5, abs=0.1)  # neither items nor users differ
    assert found["none"].tasks["click"]["ne"] < 1.1
    names = sorted(path.name for path in run.glob("metrics*.json"))
    assert names == [
        "metrics-impression-features-known.json",
        "metrics-impression-features-none.json",
        "metrics.json",
    ]
    assert Evaluation.read(run / names[0]).impression_features == "known"
    assert "impression features: those that rankings know" in found["known"].text()
    with pytest.raises(SpecError, match="no impression_features 'some'"):
        evaluate(run, impression_features="some", lists=0)


def test_the_self_test_has_the_features(run):
    assert selftest.passes(load_trained(run))
    trained = load_trained(run)
    with torch.inference_mode():
        trained.ranker.impressions.from_tokens.weight.mul_(1.5)
    with pytest.raises(FormatError, match="does not give the logits of its self-test"):
        selftest.passes(trained)


def test_candidates_are_encoded_as_the_log_is(run, pages):
    form = EventForm(load_trained(run).manifest, run)
    given = shown_rows(pages)[:50]
    values = [{"price": row["price"], "slot": row["slot"]} for row in given.iter_rows(named=True)]
    found = form.shown(values)
    expected = pages.impressions.encode(
        {
            name: pages.events[name][pages.impression_rows(np.arange(20))[:50]]
            for name in pages.impressions.columns
        }
    ).where(torch.from_numpy(pages.impressions.used("known")))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.numbers, expected.numbers)
    assert not form.shown([{"slot": "never seen", "price": float("inf")}, {}]).tokens.any()
    with pytest.raises(DataError, match="'position', which is a bias"):
        form.shown([{"position": 1}])
    with pytest.raises(UnknownError, match="no impression feature is called 'prise'"):
        form.shown([{"prise": 1}])


# Rankings


@pytest.fixture(scope="module")
def index(run, pages) -> Path:
    folder = pages.path.parent / "index"
    build_index(run, folder)
    return folder


def a_page(pages: Dataset) -> tuple[int, dict, list[dict]]:
    """A request of the test split: its row, its arguments, and its candidates with values."""
    request = int(pages.requests_of("test")[3])
    first, count = int(pages.requests["first"][request]), int(pages.requests["count"][request])
    rows = slice(first, first + count)
    time = int(pages.events["time"][first])
    user = pages.user_ids[pages.requests["user"][request]]
    log = pl.read_parquet(pages.path.parent / "log" / "shown.parquet")
    page = log.filter((pl.col("user_id") == user) & (pl.col("time") == time // 1000))
    candidates = [
        {"item": row["item_id"], "price": row["price"], "slot": row["slot"]}
        for row in page.iter_rows(named=True)
    ]
    assert [one["item"] for one in candidates] == pages.item_ids[
        pages.events["item"][rows]
    ].tolist()
    context = {"device": page["device"][0]}
    return request, {"user": user, "time": time, "context": context, "k": count}, candidates


@pytest.mark.parametrize("scorer", ["model", "quantised", "native"])
def test_rankings_of_candidates_with_values_give_the_predictions_of_the_log(
    run, index, pages, scorer
):
    request, asked, candidates = a_page(pages)
    recommender = Recommender(run, index, scorer=scorer)
    predicted = predict(recommender.ranker, pages, np.array([request]), impression_features="known")
    expected = dict(
        zip((one["item"] for one in candidates), predicted.values[:, 0].tolist(), strict=True)
    )
    close = 2e-5 if scorer == "model" else 0.03  # the index rounds to one byte
    for order in (candidates, candidates[::-1]):
        ranking = recommender.rank(candidates=order, exclude_seen=False, **asked)
        assert {item.id for item in ranking} == set(expected)
        for item in ranking:
            assert item.scores["click"] == pytest.approx(expected[item.id], abs=close)
    plain = recommender.rank(
        candidates=[one["item"] for one in candidates], exclude_seen=False, **asked
    )
    found = predict(recommender.ranker, pages, np.array([request]), impression_features="none")
    expected = dict(zip(expected, found.values[:, 0].tolist(), strict=True))
    for item in plain:
        assert item.scores["click"] == pytest.approx(expected[item.id], abs=close)


def test_values_of_some_candidates_are_enough(run, index, pages):
    _, asked, candidates = a_page(pages)
    recommender = Recommender(run, index)
    asked["exclude_seen"] = False
    full = {item.id: item.value for item in recommender.rank(candidates=candidates, **asked)}
    ids = [one["item"] for one in candidates]
    plain = {item.id: item.value for item in recommender.rank(candidates=ids, **asked)}
    mixed = recommender.rank(candidates=[candidates[0], *ids[1:]], **asked)
    for item in mixed:
        expected = full if item.id == ids[0] else plain
        assert item.value == pytest.approx(expected[item.id], abs=1e-4)
    skipped = recommender.rank(
        candidates=[{"item": "unknown", "price": 3.0}, *candidates], skip_unknown=True, **asked
    )
    assert skipped.skipped == 1
    assert {item.id: item.value for item in skipped} == pytest.approx(full)


def test_candidates_that_cannot_be_read_are_refused(run, index, pages):
    recommender = Recommender(run, index)
    for candidates, error, message in (
        ([{"price": 3}], DataError, "expected an id, or a mapping with an item"),
        ([{"item": 1, "position": 1}], DataError, "which is a bias"),
        ([{"item": 1, "prise": 1}], UnknownError, "did you mean 'price'"),
        ([{"item": 1, "price": 3}, 1], DataError, "candidate 1 is listed more than once"),
        ([{"item": "nothing", "price": 3}], UnknownError, "1 of 1 candidates are not in"),
    ):
        with pytest.raises(error, match=message):
            recommender.rank(candidates=candidates)


def test_the_command_reads_candidates_with_values(tmp_path):
    file = tmp_path / "candidates.txt"
    file.write_text('{"item": 7, "price": 12.5}\n\n9\n"x"\n')
    assert options.candidates(f"@{file}") == [{"item": 7, "price": 12.5}, "9", '"x"']
    assert options.candidates("7, 9") == ["7", "9"]
    with pytest.raises(SpecError, match=r"is not JSON .*one per line"):
        options.candidates('{"item": 7, "price": 12.5}')


def test_explanations_have_the_exact_effects_of_the_values(run, index, pages):
    _, asked, candidates = a_page(pages)
    recommender = Recommender(run, index, scorer="model")
    asked["exclude_seen"] = False
    ranking = recommender.rank(candidates=candidates, explain=len(candidates), **asked)
    given = {one["item"]: one for one in candidates}
    checked = 0
    for item in ranking:
        assert item.explanation.value == pytest.approx(item.value, abs=1e-4)
        effects = {one.feature: one.effect for one in item.explanation.impression}
        assert set(effects) == {
            name for name in ("price", "slot") if given[item.id][name] is not None
        }
        for name, effect in effects.items():
            without = [{**one, name: None} for one in candidates]
            other = recommender.rank(candidates=without, **asked)
            value = next(one.value for one in other if one.id == item.id)
            assert effect == pytest.approx(item.value - value, abs=1e-4)
            checked += abs(effect) > 1e-3
            assert f"{name} {effect:+.4f}" in item.explanation.text()
    assert checked > 2
    plain = recommender.rank(candidates=list(given), explain=1, **asked)
    assert plain[0].explanation.impression == ()
    assert "impression" not in plain[0].explanation.to_dict()


def test_scorers_add_to_lists_with_exclusions(run, index):
    opened = Recommender(run, index)
    ranker, rows = opened.ranker, np.arange(3, 30)
    torch.manual_seed(0)
    extra = torch.randn(1, len(rows), ranker.added)
    with torch.inference_mode():
        users = opened._past(opened._given([1, 2], None), None, 1_700_000_000_000, {})
        state = ranker.encode_users(users.users, users.vectors)
    for name in ("model", "quantised", "native"):
        scorer = scorer_for(name, ranker, opened.index)
        scores = scorer.scores(state, rows, extra=extra)[0, :, 0]
        assert np.abs(scores - scorer.scores(state, rows)[0, :, 0]).max() > 0.1
        allow = np.ones(len(scorer), bool)
        allow[5:9] = False
        top = scorer.top(state, 40, rows=rows, exclude=[[10, 20]], allow=allow, extra=extra)
        found = top.rows[0][top.rows[0] >= 0]
        allowed = np.setdiff1d(rows, [5, 6, 7, 8, 10, 20])
        expected = allowed[np.argsort(-scores[allowed - 3], kind="stable")]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(top.logits[0, : len(found), 0], scores[expected - 3], atol=1e-5)
        for wrong in ({"rows": rows * 0}, {"rows": rows[:5]}, {}):
            with pytest.raises(SpecError, match="extra"):
                scorer.top(state, 3, extra=extra, **wrong)


def test_the_server_ranks_and_explains_candidates_with_values(run, index, pages, tmp_path):
    _, asked, candidates = a_page(pages)
    history = [{"item": one["item"], "time": asked["time"] - 90_000} for one in candidates[:2]]
    body = {"history": history, "time": asked["time"], "context": asked["context"]}
    recommender = Recommender(run, index)
    expected = recommender.rank(candidates=candidates, exclude_seen=False, k=9, **body)
    serving = Serving(run, index, SqliteStore(tmp_path / "events.db"))
    try:
        answer = serving.rank(Rank(candidates=candidates, exclude_seen=False, k=9, **body))
        assert [one["item"] for one in answer["items"]] == [item.id for item in expected]
        for one, item in zip(answer["items"], expected, strict=True):
            assert one["value"] == pytest.approx(item.value, abs=1e-4)
        explained = serving.explain(Explain(items=candidates[:2], **body))["items"]
        assert [one["item"] for one in explained] == [one["item"] for one in candidates[:2]]
        names = [effect["feature"] for effect in explained[0]["impression"]]
        assert names == [name for name in ("price", "slot") if candidates[0][name] is not None]
        assert serving.rank_at_once(Rank(candidates=candidates)) is None
        features = serving.model()["impression"]
        assert [one["name"] for one in features] == ["price", "slot"]
        assert features[1]["values"] == ["s0", "s1"]
    finally:
        serving.close()
    for wrong in ([{"price": 1}], [{"item": 1, "price": [2]}], [[1]]):
        with pytest.raises(ValidationError):
            Rank(candidates=wrong)
