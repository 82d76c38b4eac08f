"""Which implementation computes what, why, and how to choose another one.

Two parts of a model have more than one implementation:

- the **user stage** of LIME in evaluation mode: "native" (C++, limerank.kernels.personal) or
  "torch" (limerank.models.lime, the definition). Each ranker has its own choice, made when its run
  is loaded or by ``ranker.choose_user_stage``; "auto" takes the native one where the model has it,
  on the CPU and in float32.
- **inference**, every operation that has a faster form without gradients (fused attention, pieces
  that fit into the processor's cache): "fast", or "as-trained", the forms that training uses. One
  choice for the process.

The environment variables ``LIMERANK_USER_STAGE`` and ``LIMERANK_INFERENCE`` choose where a program
does not. In training mode, both are those of training. The choice of a scorer is an argument of its
own (limerank.ranking.scorer).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from limerank.errors import SpecError, check_choice

USER_STAGES = ("auto", "native", "torch")
INFERENCE = ("fast", "as-trained")


@dataclass(frozen=True)
class Choice:
    """What computes a part, and why."""

    part: str
    used: str
    why: str

    def __str__(self) -> str:
        return f"{self.part} {self.used} ({self.why})"


def user_stage(
    wanted: str | None, *, has_native: bool, device: torch.device, dtype: torch.dtype
) -> Choice:
    """The implementation of a ranker's user stage.

    Args:
        wanted: one of :data:`USER_STAGES`; the environment's choice, else "auto", when not given.
        has_native: whether the model has a native one.
        device: of its weights.
        dtype: of its weights.

    Raises:
        SpecError: there is no such implementation, or it cannot compute this model.
    """
    source = "chosen"
    if wanted is None:
        wanted = os.environ.get("LIMERANK_USER_STAGE", "auto")
        source = "chosen by LIMERANK_USER_STAGE"
    check_choice("user stage", wanted, USER_STAGES)
    reason = ""
    if not has_native:
        reason = "the model has no native one"
    elif device.type != "cpu":
        reason = f"the weights are on {device.type}"
    elif dtype != torch.float32:
        reason = f"the weights are {str(dtype).removeprefix('torch.')}"
    if wanted == "torch":
        return Choice("user stage", "torch", source)
    if wanted == "native" and reason:
        raise SpecError(f"the user stage cannot be native: {reason}; choose torch or auto")
    if reason:
        return Choice("user stage", "torch", reason)
    return Choice(
        "user stage", "native", source if wanted == "native" else "float32 weights on the CPU"
    )


class _Inference:
    """The choice of the process."""

    def __init__(self) -> None:
        self.use(os.environ.get("LIMERANK_INFERENCE", "fast"))

    def use(self, name: str) -> None:
        check_choice("inference", name, INFERENCE)
        self.name = name
        self.fast = name == "fast"


_inference = _Inference()


def use_inference(name: str) -> str:
    """Choose the operations of inference, one of :data:`INFERENCE`, for this process.

    Returns:
        The choice before.

    Raises:
        SpecError: no such choice.
    """
    before = _inference.name
    _inference.use(name)
    return before


def inference() -> Choice:
    """The operations of inference in this process."""
    why = {"fast": "forms without gradients", "as-trained": "the forms of training"}
    return Choice("inference", _inference.name, why[_inference.name])


def fast_inference() -> bool:
    """Whether an operation takes its fast form now: no gradients are recorded, and "fast" is
    chosen."""
    return _inference.fast and not torch.is_grad_enabled()
