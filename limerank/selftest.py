"""What a run said of a few requests when it was trained, and whether it still says so.

``selftest.safetensors`` lies beside the weights: the requests as tensors, and their logits. A
server computes them again before it serves a run, so that weights which were damaged, an encoding
that has changed or a machine that computes otherwise are found before any user meets them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limerank.batch import Batch, Features, Items, Users
from limerank.errors import FormatError
from limerank.files import checksum
from limerank.models import Ranker
from limerank.trained import Trained

NAME = "selftest.safetensors"
TOLERANCE = 1e-3
"""Largest difference of a logit, absolute and relative: other processors round otherwise."""
FEATURES = ("tokens", "weights", "offsets", "numeric")
USERS = ("items", "tokens", "age", "lengths", "context")


def keep(path: Path, ranker: Ranker, batch: Batch) -> None:
    """Write what the model says of a batch, beside the weights that were just saved."""
    was_training = ranker.training
    ranker.eval()
    with torch.inference_mode():
        logits = ranker(batch)[batch.real].float().cpu()
    ranker.train(was_training)
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
    tensors = {name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}
    partial = path / f".{NAME}.partial"
    save_file(tensors, partial, {"weights": checksum(path / "model.safetensors")})
    partial.replace(path / NAME)


def passes(trained: Trained) -> bool:
    """Whether a run was compared with what it said; False: it has kept nothing of these weights.

    Raises:
        FormatError: it says something else now, or the file is damaged.
    """
    file = trained.path / NAME
    if not file.exists():
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            of = (opened.metadata() or {}).get("weights")
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if of != checksum(trained.path / "model.safetensors"):
            return False  # a training that was killed between the two files
        content, features = (
            Features(*(held[f"{part}.{name}"] for name in FEATURES))
            for part in ("items", "features")
        )
        items, tokens, age, lengths, context = (held[f"users.{name}"] for name in USERS)
        batch = Batch(
            Items(held["ids"], content),
            int(held["distinct"]),
            Users(items, tokens, age, lengths, features, context),
            held["candidates"],
            held["counts"],
            torch.zeros(0),
        )
        expected = held["logits"]
    except (KeyError, SafetensorError, RuntimeError) as error:
        raise FormatError(f"{file} is damaged: {error}; train the run again") from None
    with torch.inference_mode():
        device = next(trained.ranker.parameters()).device
        found = trained.ranker(batch.to(device))[batch.real.to(device)].float().cpu()
    if found.shape != expected.shape or not torch.allclose(
        found, expected, atol=TOLERANCE, rtol=TOLERANCE
    ):
        off = (found - expected).abs().max() if found.shape == expected.shape else float("nan")
        raise FormatError(
            f"{trained.path} does not say what it said when it was trained (a logit differs by "
            f"{float(off):.3g}): its files were changed, or this machine computes otherwise"
        )
    return True
