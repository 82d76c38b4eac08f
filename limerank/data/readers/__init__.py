"""Official layouts of public data sets, read as dataset descriptions.

A reader takes a folder as its publisher ships it and describes it as a
:class:`~limerank.data.spec.Spec`. Files that `prepare` can read as they are stay where they are;
what it cannot (``::`` separators, lists of impressions, behaviours without items) is converted to
Parquet, piece by piece, in a scratch folder. Each reader's module states the official columns and
what becomes of them.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limerank.data.spec import Spec
from limerank.errors import SpecError, check_choice, did_you_mean
from limerank.validation import validation_message

__all__ = ["LAYOUTS", "Layout", "read"]


@dataclass(frozen=True)
class Layout:
    """One official layout. Its module is imported when it is first used."""

    name: str
    about: str
    """What it reads, in one line."""
    module: str

    def options(self) -> dict[str, Any]:
        """The options that :func:`read` takes for this layout, with their defaults."""
        parameters = inspect.signature(self._function()).parameters.values()
        return {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "quiet"
        }

    def __call__(
        self, directory: Path, work: Path, *, quiet: bool = True, **options: Any
    ) -> tuple[Spec, Path]:
        """See :func:`read`."""
        known = self.options()
        unknown = sorted(options.keys() - known.keys())
        if unknown:
            raise SpecError(
                f"the layout {self.name} has no option {', '.join(unknown)}; "
                f"expected one of {', '.join(known)}{did_you_mean(unknown[0], known)}"
            )
        given = {name: _as(known[name], value, name) for name, value in options.items()}
        try:
            spec: Spec = self._function()(directory, work, quiet=quiet, **given)
        except ValidationError as error:
            message = validation_message(error, f"options of the layout {self.name}", Spec)
            raise SpecError(message) from None
        return spec, directory

    def _function(self) -> Callable[..., Spec]:
        function: Callable[..., Spec] = importlib.import_module(self.module).read
        return function


def _as(default: Any, value: Any, name: str) -> Any:
    """An option's value in the type of its default, as far as text can express it."""
    if isinstance(default, bool):
        known = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
        found = value if isinstance(value, bool) else known.get(str(value).lower())
        if found is None:
            raise SpecError(f"option {name} is {value!r}, expected yes or no")
        return found
    if isinstance(default, int) and not isinstance(value, int):
        raise SpecError(f"option {name} is {value!r}, expected an integer")
    if isinstance(default, tuple) and isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "amazon-reviews",
            "Amazon reviews of one category, 2014, 2018 and 2023: ratings or JSON lines",
            f"{__name__}.amazon_reviews",
        ),
        Layout("kuairand", "KuaiRand-Pure, -1K and -27K: short videos", f"{__name__}.kuairand"),
        Layout("mind", "MIND small and large: news", f"{__name__}.mind"),
        Layout("movielens", "MovieLens 1M, 10M, 20M, 25M, 32M, latest", f"{__name__}.movielens"),
        Layout(
            "retailrocket",
            "Retailrocket: views, carts and transactions of a shop",
            f"{__name__}.retailrocket",
        ),
        Layout("taobao-ad", "Taobao-Ad (Ali display ads)", f"{__name__}.taobao_ad"),
    )
}


def read(
    name: str,
    directory: str | os.PathLike[str],
    work: str | os.PathLike[str],
    *,
    quiet: bool = True,
    **options: Any,
) -> tuple[Spec, Path]:
    """Describe a folder in an official layout.

    Args:
        name: one of :data:`LAYOUTS`.
        directory: the folder as its publisher ships it, unpacked.
        work: a scratch folder for what must be converted first; it must live until the dataset is
            prepared, and may be deleted then.
        quiet: show no progress of conversions.
        options: of the layout, see :meth:`Layout.options`.

    Returns:
        The description, and the base folder that its relative file names refer to.

    Raises:
        SpecError: no such reader, no such option, or an option's value makes no sense.
        DataError: the folder does not hold the files of this layout.
    """
    check_choice("layout", name, sorted(LAYOUTS))
    return LAYOUTS[name](Path(directory).resolve(), Path(work).resolve(), quiet=quiet, **options)
