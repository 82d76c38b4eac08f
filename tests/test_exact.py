"""Exact histories: one pass over a user's events is the same as a request for each impression."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.errors import SpecError
from limerank.evaluation.evaluate import evaluate
from limerank.kernels import reference
from limerank.kernels.prefix import nothing_yet, prefix_attention
from limerank.models import build, lime
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.models.lime import LimeMha
from limerank.models.tasks import task_losses, total_loss
from limerank.runs.folder import load_run
from limerank.training.trainer import train
from tests.worlds import PLAIN, unsure


def full_pass(q, k, v, rate, time, prefixes, size):
    """Reads of all prefixes, ``size`` events at a time."""
    carry, reads = nothing_yet(q, time[:, 0]), []
    n = time.shape[1]
    for start in range(0, n, size):
        some = slice(start, min(start + size, n))
        # Some histories are shorter, or have ended: what is behind their end is never read.
        counts = (prefixes.max(1).values - start).clamp(0, some.stop - start)
        here = (prefixes - start).clamp(min=0).minimum(counts[:, None])
        read, carry = prefix_attention(
            q, k[:, :, some], v[:, :, some], rate, time[:, some], here, counts, carry
        )
        ends = (prefixes > start) & (prefixes <= some.stop) | ((prefixes == 0) & (start == 0))
        reads.append(torch.where(ends[..., None, None, None], read, 0.0))
    return torch.stack(reads).sum(0)


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("span", [0.1, 5.0, 4000.0])
def test_every_prefix_reads_what_the_reference_reads(size, span):
    """Outputs and gradients against the loop over prefixes, with ages from hours to years."""
    g = torch.Generator().manual_seed(0)
    users, heads, links, n, e = 3, 2, 3, 13, 4
    q = torch.randn(users, heads, links, e, generator=g).requires_grad_()
    k = torch.randn(users, heads, n, e, generator=g).requires_grad_()
    v = torch.randn(users, heads, n, e, generator=g).requires_grad_()
    rate = (torch.rand(heads, links, generator=g) / span * 20).requires_grad_()
    time = (torch.rand(users, n, generator=g) * span / n).cumsum(1)
    prefixes = torch.tensor(
        [[0, 0, 1, 2, 2, 3, 4, 9, 12, 13, 13], [0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 6], [0] * 11]
    )
    found = full_pass(q, k, v, rate, time, prefixes, size)
    expected = torch.stack(
        [
            torch.stack(
                [
                    reference.link_attention(
                        q[b : b + 1],
                        k[b : b + 1],
                        v[b : b + 1],
                        rate,
                        (time[b, max(p - 1, 0)] - time[b])[None],
                        torch.tensor([p]),
                    )[0]
                    for p in prefixes[b].tolist()
                ]
            )
            for b in range(users)
        ]
    )
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    pull = torch.randn(found.shape, generator=g)
    ours = torch.autograd.grad((found * pull).sum(), [q, k, v, rate])
    theirs = torch.autograd.grad((expected * pull).sum(), [q, k, v, rate])
    for one, other in zip(ours, theirs, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(
            one, other, atol=1e-4 * max(1.0, float(other.abs().max())), rtol=1e-3
        )


@pytest.fixture(scope="module", params=["clock", "order", "filtered"])
def data(request, tmp_path_factory):
    """Logs in which impressions of a request have times of their own; requests of 1 and of 8."""
    folder = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    rows = []
    for user in range(12):
        n = int(rng.integers(3, 70))
        time = 1_700_000_000 + np.cumsum(rng.choice([0, 60, 600, 90_000], n))
        items = rng.integers(0, 25, n)
        liked = rng.random(n) < np.where(items % 3 == user % 3, 0.8, 0.2)
        rows += [
            {"user_id": user, "item_id": int(i), "time": int(t), "pos": p, "click": int(c)}
            for p, (i, t, c) in enumerate(zip(items, time, liked, strict=True))
        ]
    pl.DataFrame(rows).write_parquet(folder / "events.parquet")
    clock = request.param != "order"
    found = []
    for size in (1, 8):
        source = {"files": ["events.parquet"], **({"time": "time"} if clock else {"order": "pos"})}
        spec = Spec.model_validate(
            {
                "name": "exact",
                "events": [source],
                "labels": [{"name": "click", "kind": "binary"}],
                "split": {"by": "position", "train": 0.7, "validation": 0.15},
                "requests": {"size": size, "gap": 1e6},
                "history": {
                    "length": 200,
                    **({"keep": "click"} if request.param == "filtered" else {}),
                },
            }
        )
        prepare(spec, folder / f"data-{size}", base=folder)
        found.append(Dataset(folder / f"data-{size}"))
    return found


def ranker_of(dataset):
    torch.manual_seed(0)
    config = ModelConfig(model="lime-mha", width=16, heads=2, links=4, hidden=8)
    ranker = build(DataShape.of(dataset.manifest), config).eval()
    assert isinstance(ranker, LimeMha)
    unsure(ranker)
    with torch.no_grad():
        for weight in ranker.parameters():
            if weight.dim() > 1:
                weight.mul_(1.7)
    return ranker


@pytest.mark.parametrize("chunk", [3, 64])
@pytest.mark.parametrize("together", [0, 1, 3])
def test_one_pass_is_a_request_for_each_impression(data, monkeypatch, chunk, together):
    """Logits, and the gradients of every weight."""
    monkeypatch.setattr(lime, "PREFIX_CHUNK", chunk)
    monkeypatch.setattr(lime, "PREFIX_PART", 2 * chunk)
    single, wide = data
    ranker = ranker_of(single)
    requests = single.requests_of("train")
    stretches = wide.plan(wide.requests_of("train"), 1, 10**6, together=together)
    stretches.sort(key=lambda rows: rows[0])
    assert {len(rows) for rows in stretches if len(rows) > 1} <= (
        {2, 3} if together else {*range(99)}
    )
    # Every other one first: neighbours that stand side by side would be one history.
    shuffled = [*stretches[::2], *stretches[1::2]]
    sequences = wide.sequences(np.concatenate(shuffled))
    assert len(sequences.users.lengths) == len(stretches) or not together
    at = {int(row): position for position, row in enumerate(single.requests["first"][requests])}
    order = [at[int(row)] for rows in shuffled for row in wide.impression_rows(rows)]
    batch = single.batch(requests[order])
    gradients = []
    for logits, labels in (
        (ranker.sequence_logits(sequences), sequences.labels),
        (ranker(batch)[batch.real], batch.labels[batch.real]),
    ):
        torch.testing.assert_close(labels, batch.labels[batch.real], atol=0, rtol=0)
        total_loss(task_losses(logits, labels, ranker.shape.tasks), {}).backward()
        gradients.append(
            {n: w.grad.to_dense() for n, w in ranker.named_parameters() if w.grad is not None}
        )
        for weight in ranker.parameters():
            weight.grad = None
        gradients[-1]["logits"] = logits.detach()
    assert gradients[0].keys() == gradients[1].keys()
    for name, other in gradients[1].items():
        scale = max(1e-3, float(other.abs().max()))
        torch.testing.assert_close(
            gradients[0][name] / scale,
            other / scale,
            atol=2e-4,
            rtol=1e-3,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("together", [0, 1, 2])
def test_every_impression_is_trained_once(data, together):
    wide = data[1]
    requests = wide.requests_of("train")
    plan = wide.plan(requests, 64, 10**6, np.random.default_rng(0), together)
    assert sorted(np.concatenate(plan)) == sorted(requests)
    if not together:
        users = [set(wide.requests["user"][rows].tolist()) for rows in plan]
        assert len(set().union(*users)) == sum(map(len, users))
    batches = list(wide.sequence_batches(plan))
    assert sum(batch.impressions for batch in batches) == wide.requests["count"][requests].sum()
    again = wide.plan(requests, 64, 10**6, np.random.default_rng(0), together)
    assert all((one == other).all() for one, other in zip(plan, again, strict=True))


@pytest.mark.parametrize("together", [0, 1])
def test_training_learns_and_resumes_like_any_other(data, tmp_path, together):
    wide = data[1]
    config = TrainConfig(
        exact=True,
        exact_requests=together,
        epochs=8,
        patience=9,
        batch_size=64,
        table_learning_rate=0.1,
        checkpoint_seconds=0,
    )
    model = ModelConfig(model="lime-mha", width=16, links=4, hidden=8, profile=0, **PLAIN)
    train(wide, tmp_path / "full", model=model, config=config)
    assert evaluate(tmp_path / "full", split="train", lists=0).tasks["click"]["auc"] > 0.55

    class StopError(Exception):
        pass

    def stop(line):
        if "validation" in line:
            raise StopError

    with pytest.raises(StopError):
        train(wide, tmp_path / "cut", model=model, config=config, report=stop)
    train(wide, tmp_path / "cut", model=model, config=config)
    full, cut = (load_run(tmp_path / name).ranker.state_dict() for name in ("full", "cut"))
    assert all(torch.equal(full[name], cut[name]) for name in full)


def test_other_models_say_that_they_cannot(data, tmp_path):
    with pytest.raises(SpecError, match=r"exact needs lime-mha; got hstu"):
        train(
            data[1],
            tmp_path / "run",
            model=ModelConfig(model="hstu", width=16),
            config=TrainConfig(exact=True),
        )


def test_requests_together_are_for_exact_histories():
    assert TrainConfig(exact=True, exact_requests=0).exact_requests == 0
    with pytest.raises(ValueError, match=r"exact_requests is 0.*set exact=true as well"):
        TrainConfig(exact_requests=0)


def test_memory_does_not_hold_every_prefix(monkeypatch):
    """What the backward pass keeps grows with the carries, not with prefixes x links x width."""
    retained = []

    def pack(tensor):
        retained.append(tensor.numel())
        return tensor

    n, links, e = 512, 8, 32
    q, k, v = torch.randn(1, 1, links, e), torch.randn(1, 1, n, e), torch.randn(1, 1, n, e)
    rate, time = torch.rand(1, links), torch.arange(n)[None] / 10.0
    q.requires_grad_()

    def run(start, *carry):
        from limerank.kernels.prefix import Carry

        part, some, count = slice(start, start + 64), torch.arange(64)[None], torch.tensor([64])
        read, after = prefix_attention(
            q, k[:, :, part], v[:, :, part], rate, time[:, part], some, count, Carry(*carry)
        )
        return read.square().sum(), *after

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        carry, total = nothing_yet(q, time[:, 0]), torch.zeros(())
        for start in range(0, n, 64):
            found, *carry = torch.utils.checkpoint.checkpoint(
                run, start, *carry, use_reentrant=False
            )
            total = total + found
    assert sum(retained) < n * links * e / 4
    total.backward()
    assert q.grad.isfinite().all()
