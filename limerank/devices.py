"""Devices that compute models: their names, and whether this machine has them."""

from __future__ import annotations

import torch

from limerank.errors import SpecError, did_you_mean

KINDS = ("cpu", "cuda")
ALIASES = {"gpu": "cuda", "nvidia": "cuda"}


def device_of(name: str | torch.device) -> torch.device:
    """The device of this name: "cpu", "cuda" (the current GPU), or a GPU by number, "cuda:1".

    Raises:
        SpecError: the name is unknown, or this machine or this PyTorch has no such device.
    """
    kind, _, number = str(name).partition(":")
    if kind not in KINDS or (number and not (kind == "cuda" and number.isdecimal())):
        alike = ALIASES.get(kind.casefold(), kind)
        raise SpecError(
            f"no device {str(name)!r}; expected cpu, cuda, or cuda:N for the N-th GPU"
            f"{did_you_mean(alike, KINDS)}"
        )
    if kind == "cuda":
        if not torch.cuda.is_available():
            why = (
                "this PyTorch is built without CUDA: install one with it"
                if torch.version.cuda is None
                else "PyTorch finds no usable GPU: see nvidia-smi"
            )
            raise SpecError(
                f"the device {str(name)!r} is not available: {why}, or give the device cpu"
            )
        if number and int(number) >= torch.cuda.device_count():
            raise SpecError(
                f"the device {str(name)!r} is not available: this machine has "
                f"{torch.cuda.device_count()} GPUs, cuda:0 and on"
            )
    return torch.device(name)
