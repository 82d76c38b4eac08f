"""Files of tensors, in the format of safetensors.

They are written here, since the library writes to a temporary file of its own first, beside the
file, which a killed process leaves for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from limerank.files import new_file

TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Type -> its name, in the library's order of tensors: the widest ones first."""
ALIGNED = 8
"""Tensors begin at a multiple of so many bytes of the file."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a file of tensors in one step; the library gives the same bytes.

    The format: the length of the header (u64, little-endian); the header, JSON, padded with spaces:
    name -> type, shape, first and last byte of the data; the data, wide types first.

    Args:
        path: the file.
        tensors: name -> tensor, of any shape; types as in :data:`TYPES`.
        metadata: texts beside them.

    Raises:
        FormatError: it cannot be written.
    """
    ranks = {of: rank for rank, of in enumerate(TYPES)}
    order = sorted(tensors, key=lambda name: (ranks[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    with new_file(path) as partial, open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            data = tensors[name].detach().cpu().contiguous().reshape(-1)
            if len(data):
                file.write(data.view(torch.uint8).numpy().data)
