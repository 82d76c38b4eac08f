"""Items whose vectors are most alike, and the lists of neighbours that they fill."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limerank.data.dataset import Dataset
from limerank.training import nearest as module
from limerank.training import neighbours
from limerank.training.collaborative import FOLDS, folds_of, statistics
from limerank.training.nearest import nearest
from limerank.training.neighbours import BY_VECTORS, FEW, neighbour_lists
from tests.test_neighbours import counted_by_user
from tests.worlds import prepare_log


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return Dataset(prepare_log(tmp_path_factory.mktemp("nearest") / "data", users=60, items=25))


def vectors(items, folds=2, groups=12, width=8, seed=0):
    """Vectors of items around the centres of groups; row 0 has none."""
    torch.manual_seed(seed)
    centres = torch.randn(groups, width)
    own = centres[torch.randint(groups, (items,))] + 0.3 * torch.randn(items, width)
    found = own + 0.02 * torch.randn(folds, items, width)
    found[:, 0] = 0
    return found


def listed(found, items, most):
    """Rows and similarities of each fold and item."""
    others = {}
    for part in found:
        for row, ids, values in zip(*(of.tolist() for of in part[1:]), strict=True):
            assert (part.fold, row) not in others
            others[part.fold, row] = dict(zip(ids, values, strict=True))
    return others


def test_they_are_those_of_all_pairs(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 100)
    items, most = 40, 6
    of = vectors(items)
    known = [torch.randint(0, items, (items, 3), dtype=torch.int32) for _ in of]
    found = listed(nearest(of, known, most), items, most)
    assert set(found) == {(fold, row) for fold in range(2) for row in range(1, items)}
    for (fold, row), others in found.items():
        similarity = (of[fold] @ of[fold, row] / of.shape[-1]).clamp(min=0)
        similarity[[row, *known[fold][row].tolist()]] = 0
        expected = similarity.topk(most).values
        values = torch.tensor(list(others.values()))
        torch.testing.assert_close(values, expected)
        for other, value in others.items():
            assert value == pytest.approx(float(similarity[other]), abs=1e-6)


def test_items_of_a_large_catalogue_are_compared_with_those_of_the_nearest_groups(monkeypatch):
    items, most = 900, 10
    of = vectors(items)
    none = [torch.zeros(items, 1, dtype=torch.int32)] * 2
    exact = listed(nearest(of, none, most), items, most)
    monkeypatch.setattr(module, "COMPARED", 2 * items * items // 5)
    found = listed(nearest(of, none, most), items, most)
    assert set(found) == set(exact)
    share = np.mean([len(found[key].keys() & exact[key].keys()) / most for key in exact])
    assert 0.9 < share < 1
    sizes = [len(own) * len(others) for own, others in module._groups(of[-1, 1:], items**2 // 5)]
    assert sum(sizes) < items**2 / 3


def test_the_items_with_the_longest_vectors_are_compared(monkeypatch):
    of = vectors(50, folds=1)
    of[0, 20:] *= 30
    monkeypatch.setattr(module, "ITEMS", 30)
    found = listed(nearest(of, [torch.zeros(50, 1, dtype=torch.int32)], 5), 50, 5)
    assert {row for _, row in found} == set(range(20, 50))
    assert all(other >= 20 for others in found.values() for other, value in others.items() if value)


@pytest.mark.parametrize("items", [1, 2])
def test_a_catalogue_may_be_empty(items):
    of = vectors(items, folds=1)
    found = listed(nearest(of, [torch.zeros(items, 4, dtype=torch.int32)], 3), items, 3)
    assert all(not any(others.values()) for others in found.values())


@pytest.mark.parametrize("most", [4, 20])
def test_lists_hold_what_users_and_vectors_say(data, most, monkeypatch):
    """Against the definition, over all pairs."""
    monkeypatch.setattr(neighbours, "weight_of_order", lambda *_: 3.0)
    rows, plain = data.trained_items + 1, neighbour_lists(data, most, None, True)
    of, (chosen, followed) = statistics(data, 8, False).values, counted_by_user(data)
    folds, scale = folds_of(np.arange(len(chosen))), None
    found = neighbour_lists(data, most, of, True)
    for fold in reversed(range(FOLDS + 1)):
        users = chosen[folds != fold]
        together, n = users.T @ users, users.sum(0)
        together += 3 * followed[folds != fold].sum(0)
        alike = (of[fold] @ of[fold].T / of.shape[-1]).clamp(min=0).numpy()
        norm = np.sqrt(np.outer(n, n)) + FEW
        for row in range(rows):
            counted = plain[fold].ids[row][plain[fold].shares[row] > 0].numpy()
            expected = BY_VECTORS * FEW * alike[row] / norm[row]
            expected[counted] += together[row, counted] / norm[row, counted]
            near = np.argsort(-alike[row])
            near = near[~np.isin(near, [row, *counted])][:most]
            expected[~np.isin(np.arange(rows), [*counted, *near])] = 0
            best = -np.sort(-expected)[:most]
            ids, shares = (part[row].numpy() for part in found[fold])
            if scale is None and best[0]:
                scale = shares[0] / best[0]
            np.testing.assert_allclose(shares, best * (scale or 1), rtol=1e-4)
            listed = ids[shares > 0]
            assert len(set(listed)) == len(listed) and row not in listed
            np.testing.assert_allclose(
                expected[listed] * (scale or 1), shares[shares > 0], rtol=1e-4
            )
    of_all = found[-1].shares
    assert of_all[of_all > 0].mean() == pytest.approx(0.5, rel=1e-4)
    assert (of_all > 0).sum() >= (plain[-1].shares > 0).sum()
