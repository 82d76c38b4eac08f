"""The self-test of a run: logits of a few requests, written with the weights and computed again.

``selftest.safetensors`` contains the requests as tensors, and their logits. A server computes them
again before it serves a run. It thus finds damaged weights, a changed encoding, or a machine that
computes otherwise, before it answers a request.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limerank.data.batch import Batch, Features, Impressions, ItemKeys, Items, Users
from limerank.errors import FormatError
from limerank.files import checksum, require_file
from limerank.models import Ranker
from limerank.models.config import DataShape
from limerank.runs.model import SELFTEST, WEIGHTS, Trained, seal
from limerank.runs.tensors import write_tensors

NAME = SELFTEST
TOLERANCE = 1e-3
"""Largest difference of a logit, absolute and relative: other processors round otherwise."""
FEATURES = ("tokens", "weights", "offsets", "numeric")
SHOWN = ("tokens", "numbers")
KEYS = ("keys", "shares", "offsets")
USERS = ("items", "tokens", "age", "lengths", "context")


def logits_of(ranker: Ranker, batch: Batch) -> Tensor:
    """Logits [n, K] of a batch's impressions, in evaluation mode, in the memory of the host."""
    was_training = ranker.training
    ranker.eval()
    with torch.inference_mode():
        logits: Tensor = ranker(batch)[batch.real].float().cpu()
    ranker.train(was_training)
    return logits


def write(path: Path, ranker: Ranker, batch: Batch, logits: Tensor | None = None) -> None:
    """Write a batch and its logits beside the weights that were just saved, and the checksums of
    all files of the run; ``logits``: of :func:`logits_of`, where they are known."""
    logits = logits_of(ranker, batch) if logits is None else logits
    users = batch.users
    tensors: dict[str, Tensor] = {
        "logits": logits,
        "ids": batch.items.ids,
        "candidates": batch.candidates,
        "counts": batch.counts,
        "distinct": torch.tensor(batch.distinct),
        **{f"users.{name}": getattr(users, name) for name in USERS},
        **{f"items.{name}": getattr(batch.items.content, name) for name in FEATURES},
        **{f"features.{name}": getattr(users.features, name) for name in FEATURES},
    }
    if users.keys is not None:
        keys = ranker.complete(users.keys)
        tensors |= {f"keys.{name}": getattr(keys, name) for name in KEYS}
    if batch.shown is not None:
        tensors |= {f"shown.{name}": getattr(batch.shown, name) for name in SHOWN}
    tensors = {name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}
    write_tensors(path / NAME, tensors, {"weights": checksum(path / WEIGHTS)})
    seal(path)


def passes(trained: Trained) -> bool:
    """Whether a run gives the logits of its self-test; False if it has none for its weights.

    Raises:
        FormatError: it gives other logits, or the file is damaged.
    """
    file = trained.path / NAME
    if not file.exists():
        return False
    require_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            of = (opened.metadata() or {}).get("weights")
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if of != checksum(trained.path / WEIGHTS):
            return False  # training was killed between the two files
        content, features = (
            Features(**{name: held[f"{part}.{name}"] for name in FEATURES})
            for part in ("items", "features")
        )
        keys = None
        if "keys.keys" in held:
            keys = ItemKeys(**{name: held[f"keys.{name}"] for name in KEYS})
        batch = Batch(
            items=Items(ids=held["ids"], content=content),
            distinct=int(held["distinct"]),
            users=Users(
                **{name: held[f"users.{name}"] for name in USERS}, features=features, keys=keys
            ),
            candidates=held["candidates"],
            counts=held["counts"],
            labels=torch.zeros(0),
            shown=Impressions(**{name: held[f"shown.{name}"] for name in SHOWN})
            if "shown.tokens" in held
            else None,
        )
        expected = held["logits"]
        _check(batch, trained.ranker.shape)
        with torch.inference_mode():
            device = next(trained.ranker.parameters()).device
            found = trained.ranker(batch.to(device))[batch.real.to(device)].float().cpu()
    except (
        IndexError,
        KeyError,
        OSError,
        OverflowError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        raise FormatError(f"{file} is damaged: {error}; train the run again") from None
    if found.shape != expected.shape or not torch.allclose(
        found, expected, atol=TOLERANCE, rtol=TOLERANCE
    ):
        off = (found - expected).abs().max() if found.shape == expected.shape else float("nan")
        raise FormatError(
            f"{trained.path} does not give the logits of its self-test (one differs by "
            f"{float(off):.3g}): its files were changed since training, or this machine computes "
            "otherwise"
        )
    return True


def _check(batch: Batch, shape: DataShape) -> None:
    """ValueError if a part of a batch refers to rows that do not exist."""
    users, content = batch.users, batch.items.content
    b, n = users.items.shape
    rows = len(batch.items.ids)
    in_range = {
        "ids": (batch.items.ids, shape.item_ids),
        "candidates": (batch.candidates, rows),
        "counts": (batch.counts, batch.candidates.shape[1] + 1),
        "users.items": (users.items, rows),
        "users.lengths": (users.lengths, n + 1),
        "users.tokens": (users.tokens, shape.event_tokens),
        "users.context": (users.context, shape.context_tokens),
        "items.tokens": (content.tokens, shape.item_tokens),
        "features.tokens": (users.features.tokens, shape.user_tokens),
    }
    if batch.shown is not None:
        in_range["shown.tokens"] = (batch.shown.tokens, shape.impression_tokens)
    for name, (part, size) in in_range.items():
        if part.dtype != torch.int64:
            raise ValueError(f"{name} has the type {part.dtype}, expected integers")
        if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < max(size, 1):
            raise ValueError(f"{name} has numbers outside 0 .. {size - 1}")
    ragged = [
        ("items", content.offsets, rows, content.tokens, content.weights),
        ("features", users.features.offsets, b, users.features.tokens, users.features.weights),
    ]
    if (keys := users.keys) is not None:
        ragged.append(("keys", keys.offsets, rows, keys.keys, keys.shares))
    for name, offsets, count, parts, weights in ragged:
        if (
            len(offsets) != count + 1
            or int(offsets[0])
            or int(offsets[-1]) != len(parts)
            or bool((offsets.diff() < 0).any())
            or len(weights) != len(parts)
        ):
            raise ValueError(f"{name}.offsets do not fit its parts")
    if len(users.lengths) != b or len(batch.counts) != b or not 0 <= batch.distinct <= rows:
        raise ValueError("its parts are of different numbers of requests")
