"""The reference of settings, generated from the classes that define them.

A setting is a field of a configuration class. Its meaning is the docstring below the field; the
first sentence is what ``limerank train --help`` shows.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Config = type[BaseModel]

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "pattern": "like"}
"""Constraints of a field that its type text shows."""

SCALARS: Mapping[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    Any: "value",
}


@dataclass(frozen=True)
class Setting:
    """One setting, as texts.

    Attributes:
        name: the field's name.
        default: the default as JSON, or a word: "required", "not set", "computed".
        values: the type and its bounds.
        meaning: the field's docstring, in one line of Markdown.
    """

    name: str
    default: str
    values: str
    meaning: str

    @property
    def summary(self) -> str:
        """The first sentence of the meaning."""
        sentence = re.match(r".*?[.](?=\s|$)", self.meaning)
        return sentence[0] if sentence else self.meaning


@dataclass(frozen=True)
class Section:
    """Settings that belong together.

    Attributes:
        title: the heading.
        text: what they are settings of, and how they are given; one paragraph of Markdown.
        settings: in the order in which the class defines them.
        of: setting -> who has it, such as "all models"; empty where all of one class.
    """

    title: str
    text: str
    settings: tuple[Setting, ...]
    of: Mapping[Setting, str]


def settings_of(config: Config) -> list[Setting]:
    """All fields of a configuration class, those of its base classes first, without those that its
    models do not have."""
    texts = _docstrings(config)
    unused: frozenset[str] = getattr(config, "unused", frozenset())
    return [
        Setting(name, _default(field), _values(field), texts.get(name, ""))
        for name, field in config.model_fields.items()
        if name not in unused
    ]


def sections(topic: str = "") -> list[Section]:
    """The sections of the reference.

    Args:
        topic: "training", "models", a model's name, "tune", "dataset", "refresh" or "server";
            empty: all.

    Raises:
        SpecError: there is no such topic.
    """
    from limerank.errors import check_choice
    from limerank.models.registry import FITTED
    from limerank.models.registry import OF_THE_PACKAGE as MODELS

    topics = ("training", "models", *MODELS, *FITTED, "tune", "dataset", "refresh", "server")
    if topic:
        check_choice("topic", topic, topics)
    found = []
    if topic in ("", "training", *MODELS):
        found.append(training())
    if topic in ("", "models", *MODELS):
        found.append(models(topic if topic in MODELS else ""))
    if topic in ("", "models", *FITTED):
        found.append(fitted(topic if topic in FITTED else ""))
    if topic in ("", "tune"):
        found.append(searched())
    if topic in ("", "dataset"):
        found += dataset()
    if topic in ("", "refresh"):
        found += daily_loop()
    if topic in ("", "server"):
        found.append(server())
    return found


def training() -> Section:
    """Settings of training."""
    from limerank.models.config import TrainConfig

    text = "`limerank train --set NAME=VALUE`, or a `TrainConfig` in Python."
    return Section("Training settings", text, tuple(settings_of(TrainConfig)), {})


def models(only: str = "") -> Section:
    """Settings of all models, each setting once, or of one model."""
    from limerank.models.registry import MODELS, OF_THE_PACKAGE

    owners: dict[Setting, list[str]] = {}
    names = [only] if only else list(OF_THE_PACKAGE)
    for name in names:
        for one in settings_of(MODELS[name].config):
            if one.name != "model":  # --model
                owners.setdefault(one, []).append(name)
    text = "`limerank train --model MODEL --set NAME=VALUE`, or a `ModelConfig` in Python."
    settings = sorted(owners, key=lambda one: -len(owners[one]))
    of = {one: _list_of(owners[one], names) for one in settings}
    return Section("Model settings", text, tuple(settings), {} if only else of)


def fitted(only: str = "") -> Section:
    """Settings of the models that are fitted by counting, or of one of them."""
    from limerank.models.registry import FITTED, MODELS

    of = {
        one: name
        for name in FITTED
        if only in ("", name)
        for one in settings_of(MODELS[name].config)
        if one.name != "model"  # --model
    }
    text = (
        "`limerank train --model item-knn --set NAME=VALUE`, or a `ModelConfig` in Python. These "
        "models are counted in one pass over the training window; most-popular has no settings."
    )
    return Section("Models that are fitted by counting", text, tuple(of), {} if only else of)


def _list_of(owners: list[str], everyone: list[str]) -> str:
    if len(owners) == len(everyone):
        return "all"
    others = [name for name in everyone if name not in owners]
    return "all but " + ", ".join(others) if len(others) < len(owners) else ", ".join(owners)


def dataset() -> list[Section]:
    """Settings of a dataset description."""
    from limerank.data.spec import Spec

    return _of_file(Spec, "Dataset description")


def daily_loop() -> list[Section]:
    """Settings of ``limerank refresh``."""
    from limerank.refresh.config import RefreshConfig

    return _of_file(RefreshConfig, "Daily loop")


def _of_file(root: Config, what: str) -> list[Section]:
    """Settings of a TOML file, one section for each of its tables."""
    names: dict[Config, list[str]] = {root: []}
    todo: list[tuple[str, Config]] = [("", root)]
    while todo:
        prefix, config = todo.pop(0)
        for field_name, field in config.model_fields.items():
            for inner in _records(field.annotation):
                name, many = prefix + field_name, get_origin(field.annotation) is tuple
                if inner not in names:
                    todo.append((f"{name}.", inner))
                names.setdefault(inner, []).append(f"[[{name}]]" if many else f"[{name}]")
    found = []
    for config, tables in names.items():
        title = " and ".join(f"`{name}`" for name in tables) or "the file itself"
        text = inspect.cleandoc(config.__doc__ or "").partition("\n\n")[0]
        found.append(Section(f"{what}: {title}", _plain(text), tuple(settings_of(config)), {}))
    return found


def searched() -> Section:
    """The settings that ``limerank tune`` searches, with their ranges."""
    from limerank.models.config import TrainConfig
    from limerank.models.registry import MODELS, OF_THE_PACKAGE
    from limerank.tuning.space import SPACE

    owners: dict[Setting, str] = {}
    for name, one in SPACE.items():
        having = [
            model
            for model in OF_THE_PACKAGE
            if name in TrainConfig.model_fields or name in MODELS[model].config.model_fields
        ]
        values = one.text
        config = TrainConfig if name in TrainConfig.model_fields else MODELS[having[0]].config
        (setting,) = (known for known in settings_of(config) if known.name == name)
        owners[replace(setting, values=values, meaning=setting.summary)] = _list_of(
            having, list(OF_THE_PACKAGE)
        )
    text = "What `limerank tune` varies. `--set NAME=VALUE` fixes a setting."
    return Section("Settings that are searched", text, tuple(owners), owners)


def server() -> Section:
    """Settings of a server."""
    from limerank.serving.http.settings import Settings

    text = "`limerank serve --set NAME=VALUE`, or an option of its own."
    return Section("Server settings", text, tuple(settings_of(Settings)), {})


def listing(section: Section, *, brief: bool = False) -> Panel:
    """A section as a panel for a terminal.

    Args:
        section: what to show.
        brief: only name, default and summary of each setting, and who has it.
    """
    rows = Table.grid(padding=(0, 2, 0, 0))
    for one in section.settings:
        cells = [one.name, one.default, *([] if brief else [one.values])]
        of = section.of.get(one, "")
        meaning = one.summary if brief else one.meaning
        cells.append(meaning + (f" [{of}]" if of not in ("", "all") else ""))
        rows.add_row(*(Text(cell.replace("`", "")) for cell in cells))
    return Panel(
        rows,
        title=Text(section.title.replace("`", "")),
        title_align="left",
        border_style="dim",
    )


def markdown() -> str:
    """The complete reference as a page of Markdown."""
    lines = [
        "# Settings",
        "",
        "Every setting of training, of the models, of a dataset description, of the daily loop and",
        "of a server.",
        "This page is generated from the code: `make settings` writes it, and",
        "`limerank settings` prints it.",
    ]
    for section in sections():
        lines += ["", f"## {section.title}", "", section.text, ""]
        head = ["Setting", *(["Models"] if section.of else []), "Default", "Values", "Meaning"]
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for one in section.settings:
            cells = [f"`{one.name}`", *([section.of[one]] if section.of else [])]
            code = one.default[0] in '"-[{tf' or one.default[0].isdigit()
            cells += [f"`{one.default}`" if code else one.default, one.values, one.meaning]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _docstrings(config: Config) -> dict[str, str]:
    """Field -> the string below its definition, as one line of Markdown."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except OSError:  # a class that was typed into a shell
            continue
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = _plain(text.value.value)
    return found


def _plain(text: str) -> str:
    """A docstring as one line of Markdown: roles and double backquotes become code."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "{}" if field.default_factory is dict else "computed"
    if field.default is None:
        return "not set"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    return json.dumps(field.default)


def _values(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(one, name)}"
        for one in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(one, name, None) is not None
    ]
    return " ".join([_type_text(field.annotation), " and ".join(bounds)]).strip()


def _type_text(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_type_text(one) for one in inner if one is not NoneType)
    if origin is tuple:
        return f"list of {_type_text(inner[0])}"
    if origin is dict:
        return f"table {_type_text(inner[0])} → {_type_text(inner[1])}"
    if annotation in SCALARS:
        return SCALARS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return str(getattr(annotation, "__name__", annotation))


def _records(annotation: Any) -> Iterator[Config]:
    """The configuration classes in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _records(part)
