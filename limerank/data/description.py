"""Dataset descriptions as TOML files: read, and written."""

from __future__ import annotations

import glob
import tomllib
from pathlib import Path

from limerank.data.spec import Spec
from limerank.errors import SpecError
from limerank.files import write_text
from limerank.validation import validate


def load_spec(path: str | Path) -> Spec:
    """Read a dataset description.

    Raises:
        SpecError: the file is missing, is not TOML, or a field is wrong (named in the message).
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such dataset description") from None
    except IsADirectoryError:
        raise SpecError(
            f"{path} is a folder, expected a dataset description, such as {path / 'spec.toml'}"
        ) from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    return validate(Spec, values, str(path))


def write_spec(path: str | Path, spec: Spec, base: Path) -> None:
    """Write a description as TOML that can be read from any folder.

    Names of files become absolute patterns: relative ones are taken from ``base``, whose own name
    is no pattern and is escaped.
    """
    import tomli_w

    folder = Path(glob.escape(str(base.resolve())))
    values = spec.model_dump(mode="json", exclude_defaults=True)
    for table in (*values["events"], values.get("items"), values.get("users")):
        if table:
            table["files"] = [str(folder / file) for file in table["files"]]
    write_text(path, tomli_w.dumps(values))
