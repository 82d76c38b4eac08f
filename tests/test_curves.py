"""Curves of numeric features: their definition, how knots are set, and what they can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from limerank import Dataset, ModelConfig, load_run, prepare, train
from limerank.models import build
from limerank.models.config import DataShape
from limerank.models.curves import KNOTS, SAMPLED, Curves


def curves(columns: tuple[int, ...] = (0,), width: int = 3) -> Curves:
    """Curves with random vectors."""
    torch.manual_seed(0)
    made = Curves(columns, width)
    torch.nn.init.normal_(made.out.weight)
    return made


def fit(made: Curves, numbers: torch.Tensor) -> None:
    made.fit(numbers.numpy(), np.arange(len(numbers)))


def test_a_curve_is_linear_between_knots_and_constant_beyond() -> None:
    made = curves((2, 0))
    numbers = torch.randn(500, 3)
    fit(made, numbers)
    knots = made.knots.numpy()
    np.testing.assert_allclose(knots[0], np.quantile(numbers[:, 2], np.linspace(0, 1, KNOTS)))
    given = torch.cat([numbers, 9 * torch.randn(100, 3)])
    with torch.no_grad():
        found = made(given).numpy()
        values = made.out.weight.view(3, 2, KNOTS).numpy()
    for number in range(3):
        expected = sum(
            np.interp(given[:, column], knots[at], values[number, at])
            for at, column in enumerate((2, 0))
        )
        np.testing.assert_allclose(found[:, number], expected, atol=1e-5)


def test_values_that_many_rows_share_have_vectors_of_their_own() -> None:
    """Half of the rows are 0, a quarter each 1 and 2: a step between them, not a slope."""
    made = curves()
    numbers = torch.tensor([0.0] * 50 + [1.0] * 25 + [2.0] * 25)[:, None]
    fit(made, numbers)
    with torch.no_grad():
        vectors = made(torch.tensor([[0.0], [1.0], [2.0]]))
    assert torch.isfinite(vectors).all()
    assert torch.linalg.matrix_rank(vectors - vectors.mean(0)) == 2


def test_knots_are_set_once() -> None:
    """Those of a run that is trained further stay; a feature without any gets its own."""
    made = curves((0, 1))
    fit(made, torch.zeros(0, 2))
    assert not made.knots.any()
    fit(made, torch.stack([torch.arange(9.0), torch.ones(9)], 1))
    before = made.knots.clone()
    assert before[1].tolist() == [1.0] * KNOTS
    fit(made, torch.stack([torch.arange(9.0) * 5, torch.arange(9.0)], 1))
    assert torch.equal(made.knots[0], before[0])
    assert made.knots[1].tolist() == pytest.approx(np.linspace(0, 8, KNOTS).tolist())


def test_many_rows_are_sampled() -> None:
    made = curves()
    fit(made, torch.arange(3.0 * SAMPLED)[:, None])
    assert made.knots[0].tolist() == pytest.approx(
        np.linspace(0, 3 * SAMPLED, KNOTS).tolist(), abs=10
    )


def log(count: int = 3000) -> pl.DataFrame:
    """Users like items of a middling price, whatever else."""
    draws = np.random.default_rng(0)
    item = draws.integers(0, 120, count)
    liked = draws.random(count) < np.where(np.abs(item - 60) < 20, 0.9, 0.1)
    return pl.DataFrame(
        {
            "user_id": draws.integers(0, 300, count),
            "item_id": item,
            "time": 1_700_000_000 + 60 * np.arange(count),
            "click": liked.astype(np.int64),
        }
    )


PRICES = pl.DataFrame({"item_id": np.arange(120), "price": np.arange(120.0)})
SPEC = {
    "name": "prices",
    "events": [{"time": "time"}],
    "labels": [{"name": "click", "kind": "binary"}],
    "items": {"id": "item_id", "features": [{"name": "price", "kind": "numeric"}]},
}
MODEL = {
    "model": "two-tower", "width": 8, "id_dropout": 0.9, "base_rates": False, "vectors": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    prepare(SPEC, folder / "data", events=log(), items=PRICES)
    return folder / "data"


def test_a_range_is_learned() -> None:
    """What is liked at middling prices alone, which a straight line cannot say."""
    made, prices = curves(width=1), torch.linspace(-2, 2, 400)[:, None]
    liked = (prices.abs() < 0.7).float()
    fit(made, prices)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        loss = (made(prices) - liked).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.02 < liked.var() / 10


def test_only_numeric_features_have_curves(data: Path) -> None:
    shape = DataShape.of(Dataset(data).manifest)
    assert (shape.item_numbers, shape.user_numbers) == ((0,), ())
    for curved, expected in ((True, True), (False, False)):
        ranker = build(shape, ModelConfig(**{**MODEL, "curves": curved}))
        assert (ranker.item_tower.content.curves is not None) == expected
        assert ranker.user_tower.content.curves is None


def knots_of(run: Path) -> torch.Tensor:
    made = load_run(run).ranker.item_tower.content.curves
    assert made is not None
    return made.knots


def test_a_run_that_is_trained_further_keeps_its_knots(data: Path, tmp_path: Path) -> None:
    """A feature that the earlier log did not have gets knots from the later one."""
    train(data, tmp_path / "first", model=MODEL, config={"epochs": 1})
    more = PRICES.with_columns(stars=pl.col("price") % 7)
    features = [{"name": name, "kind": "numeric"} for name in ("stars", "price")]
    spec = {**SPEC, "items": {"id": "item_id", "features": features}}
    later = log(4000).with_columns(pl.col("time") + 1000)
    prepare(spec, tmp_path / "data", events=later, items=more, encoding=data)
    train(tmp_path / "data", tmp_path / "second", start=tmp_path / "first", config={"epochs": 1})
    first, second = (knots_of(tmp_path / name) for name in ("first", "second"))
    names = [one["name"] for one in Dataset(tmp_path / "data").encoding["items"]["features"]]
    assert torch.equal(second[names.index("price")], first[0])
    assert second[names.index("stars")].diff().min() >= 0
    assert second[names.index("stars"), -1] > second[names.index("stars"), 0]
