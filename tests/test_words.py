"""Identifiers and texts use the field's terms: the words that they replaced do not come back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Word -> what to call it instead. One word has one meaning.
REPLACED = {
    "told": "given, passed, reported",
    "said": "predictions",
    "met": "seen",
    "kept": "cached, retained, stored, filtered",
    "way": "route, path, method",
    "ways": "routes, paths, methods",
    "place": "position, location, rank",
    "places": "positions, locations, ranks",
    "gone": "removed, deleted, missing",
    "whole": "full, complete, unpadded",
    "happened": "outcome, event",
    "people": "users",
    "anew": "again, rebuilt",
    "visitor": "user",
    "neighbouring": "adjacent",  # neighbours are items that the same users chose
}


def words(name: str) -> set[str]:
    """`seenItems_of` -> {seen, items, of}."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def python_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a module names, but what it only uses of others."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg | ast.keyword) and node.arg is not None:
            yield getattr(node, "lineno", 0), node.arg
        elif isinstance(node, ast.alias):
            yield node.lineno, node.asname or node.name
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, node.name


# Comments and texts, or a name. Template texts hold expressions: these are read as well.
SCRIPT = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<name>[A-Za-z_$][\w$]*)""",
    re.DOTALL,
)


def script_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each identifier of a script."""
    source = re.sub(
        r"`(?:\\.|[^`\\])*`",
        lambda text: " ".join(re.findall(r"\$\{([^}]*)\}", text[0])) + "\n" * text[0].count("\n"),
        source,
    )
    for found in SCRIPT.finditer(source):
        if found["name"]:
            yield source.count("\n", 0, found.start()) + 1, found["name"]


def replaced(path: Path) -> list[str]:
    """Uses of replaced words in a file, and in its name."""
    source = path.read_text("utf-8")
    names = list(script_names(source) if path.suffix == ".js" else python_names(source))
    where = path.relative_to(ROOT).as_posix()
    found = []
    for line, name in [(0, path.stem), *names]:
        for word in sorted(words(name) & REPLACED.keys()):
            found.append(f"{where}:{line}: {name}: not {word}, but {REPLACED[word]}")
    return sorted(set(found))


FILES = [
    *sorted((ROOT / "limerank").rglob("*.py")),
    *sorted((ROOT / "limerank").rglob("*.js")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "histories").rglob("*.py")),
    *sorted((ROOT / "simulation").rglob("*.py")),
    *sorted((ROOT / "tests").rglob("*.py")),
]


def test_identifiers_use_the_field_s_terms() -> None:
    found = [line for path in FILES for line in replaced(path)]
    assert not found, "\n".join(found)


# Words of texts (documents, docstrings, comments, messages, help, the page), whatever they meant.
PHRASES = re.compile(
    r"\b(anew|at hand|for good|gone|kept|met|people|said|told|visitors?|what happened|whoever)\b",
    re.IGNORECASE,
)

TEXTS = [
    *(path for path in FILES if ROOT / "tests" not in path.parents),
    *(path for kind in ("html", "cpp", "h") for path in sorted(ROOT.glob(f"limerank/**/*.{kind}"))),
    *sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]),
    *sorted([*ROOT.glob("deploy/*.md"), *ROOT.glob("examples/**/*.md")]),
]


def test_texts_use_the_field_s_terms() -> None:
    found = []
    for path in TEXTS:
        where = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            word = PHRASES.search(line)
            if word:
                found.append(f"{where}:{number}: {word[0]!r} in {line.strip()}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(places): pass", ["places"]),
        ("kept_rows = 1", ["kept_rows"]),
        ("a.metItems(said=1)", ["metItems", "said"]),
        ("import a.b as told", ["told"]),
        ("class WayBack: pass", ["WayBack"]),
        ("x = 'placeholder kept'; replace(x); always = metrics = 1", []),
    ],
)
def test_the_search_finds_words_in_python(source: str, expected: list[str]) -> None:
    found = [name for _, name in python_names(source) if words(name) & REPLACED.keys()]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("const told = 1 // kept", ["told"]),
        ("/* kept */ let x = 'kept' + \"way\"", []),
        ("`on the way: ${whole.length}`", ["whole"]),
        ("input.placeholder = replace(metric)", []),
    ],
)
def test_the_search_finds_words_in_scripts(source: str, expected: list[str]) -> None:
    found = [name for _, name in script_names(source) if words(name) & REPLACED.keys()]
    assert found == expected
