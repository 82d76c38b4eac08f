"""Files of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from limerank.errors import FormatError
from limerank.files import new_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a file of tensors in one step.

    Args:
        path: the file.
        tensors: name -> tensor, of any shape and type.
        metadata: texts beside them.

    Raises:
        FormatError: it cannot be written.
    """
    with new_file(path) as partial:
        try:
            found = {name: value.contiguous() for name, value in tensors.items()}
            save_file(found, partial, dict(metadata))
        except SafetensorError as error:
            raise FormatError(
                f"{path} cannot be written: {error}; free space, or check its disk"
            ) from None
