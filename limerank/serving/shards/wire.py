"""What a front and the servers of shards send each other: tensors as safetensors, with numbers in
the metadata. Nothing in it can run code.

A *question* is one user's state with what to rank; an *answer* the best rows of the shard, as rows
of the full index. A question may also ask which rows the shard hides, or whether it answers at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from limerank.errors import SpecError

FORMAT = 1
"""Of questions and answers; both sides need the same one."""
MEDIA = "application/octet-stream"
PATH = "/v1/shard"
MOST_ANSWER = 256 << 20
"""Bytes of an answer, at most."""

HIDDEN, NOTHING = -1, 0
"""In place of a number of items: which rows the shard hides, and whether it answers."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """A request to one shard.

    Attributes:
        run: fingerprint of the run.
        base: of the full index.
        number, of: of the shard that is asked.
        k: items to return, at most; or :data:`HIDDEN` or :data:`NOTHING`.
        weights: of the tasks' logits, f32 [K].
        state: the tensors of one user's state; see :func:`tensors_of`.
        exclude: rows of the full index to leave out, all of them of this shard, i64.
        allow: which rows of the shard may be ranked, bool; None: all.
    """

    run: str
    base: str
    number: int
    of: int
    k: int
    weights: NDArray[np.float32]
    state: Mapping[str, Tensor]
    exclude: Rows
    allow: NDArray[np.bool_] | None = None

    def to_bytes(self) -> bytes:
        tensors = {f"state.{name}": _own(value) for name, value in self.state.items()}
        tensors["weights"] = torch.from_numpy(np.ascontiguousarray(self.weights, np.float32))
        tensors["exclude"] = torch.from_numpy(np.ascontiguousarray(self.exclude, np.int64))
        if self.allow is not None:
            tensors["allow"] = torch.from_numpy(np.packbits(self.allow))
        numbers = {"run": self.run, "base": self.base, "number": self.number, "of": self.of}
        return _packed(tensors, {**numbers, "k": self.k})

    @classmethod
    def from_bytes(cls, data: bytes, rows: int) -> Question:
        """Read a question.

        Args:
            data: as received.
            rows: of the shard.

        Raises:
            SpecError: it is not a question, or one of another version.
        """
        tensors, numbers = _unpacked(data, "question")
        try:
            allow = tensors.get("allow")
            if allow is not None and allow.shape != (-(-rows // 8),):
                raise ValueError(f"allow has {tuple(allow.shape)} bytes for {rows} rows")
            state = {
                name.removeprefix("state."): value
                for name, value in tensors.items()
                if name.startswith("state.")
            }
            return cls(
                str(numbers["run"]),
                str(numbers["base"]),
                int(numbers["number"]),
                int(numbers["of"]),
                int(numbers["k"]),
                _vector(tensors["weights"], torch.float32),
                state,
                _vector(tensors["exclude"], torch.int64),
                None
                if allow is None
                else np.unpackbits(_vector(allow, torch.uint8), count=rows).astype(bool),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"this is not a question to a shard: {error}") from None


@dataclass(frozen=True)
class Answer:
    """The best items of a shard, or which rows it hides.

    Attributes:
        total: rows of the full index that the shards divide.
        rows: of the full index, best first, i64 [n].
        values: ranking values, f32 [n].
        logits: f32 [n, K].
    """

    total: int
    rows: Rows
    values: NDArray[np.float32]
    logits: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        arrays = {"rows": self.rows, "values": self.values, "logits": self.logits}
        tensors = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}
        return _packed(tensors, {"total": self.total})

    @classmethod
    def from_bytes(cls, data: bytes) -> Answer:
        """Read an answer.

        Raises:
            SpecError: it is not an answer, or one of another version.
        """
        tensors, numbers = _unpacked(data, "answer")
        try:
            rows = _vector(tensors["rows"], torch.int64)
            values = _vector(tensors["values"], torch.float32)
            logits: NDArray[np.float32] = tensors["logits"].float().numpy()
            if len(rows) != len(values) or logits.ndim != 2 or len(logits) != len(rows):
                raise ValueError("rows, values and logits differ in number")
            return cls(int(numbers["total"]), rows, values, logits)
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"this is not an answer of a shard: {error}") from None


def tensors_of(state: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a state, by the names of their fields; those that are None are left out."""
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {name: state}
    found: dict[str, Tensor] = {}
    for field in _names(state):
        found |= tensors_of(getattr(state, field), f"{name}.{field}" if name else field)
    return found


def state_of(like: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A state from its tensors.

    Args:
        like: a state of the same model.
        tensors: as of :func:`tensors_of`.

    Raises:
        SpecError: a tensor is missing, unknown, or of another type.
    """
    unused = dict(tensors)
    found = _filled(like, unused, "")
    if unused:
        raise SpecError(f"the state has unknown parts: {', '.join(sorted(unused)[:10])}")
    return found


def _filled(like: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if like is None:
        return None
    if isinstance(like, Tensor):
        found = tensors.pop(name, None)
        if found is None or found.dtype != like.dtype or found.dim() != like.dim():
            got = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise SpecError(
                f"the state's {name} is {got}, expected {like.dtype}, {like.dim()} axes"
            )
        return found
    parts = {
        field: _filled(getattr(like, field), tensors, f"{name}.{field}" if name else field)
        for field in _names(like)
    }
    return type(like)(**parts)


def _names(state: Any) -> list[str]:
    if is_dataclass(state):
        return [field.name for field in fields(state)]
    return list(state._fields)


def _own(value: Tensor) -> Tensor:
    """A copy that shares no memory, which the format demands."""
    return value.detach().cpu().contiguous().clone()


def _vector(value: Tensor, kind: torch.dtype) -> NDArray[Any]:
    if value.dim() != 1 or value.dtype != kind:
        raise ValueError(f"an array is {value.dtype} {list(value.shape)}, expected {kind} [n]")
    return value.numpy()


def _packed(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> bytes:
    text = json.dumps({"format": FORMAT, **numbers})
    return save(tensors, {"limerank": text})


def _unpacked(data: bytes, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        numbers = json.loads(header["__metadata__"]["limerank"])
        if numbers["format"] != FORMAT:
            raise ValueError(f"it has format {numbers['format']!r:.20}, expected {FORMAT}")
        return load(data), numbers
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise SpecError(
            f"this is not a {what} of this version of limerank: {str(error) or repr(error):.200}"
        ) from None
