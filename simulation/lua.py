"""The part of Lua that the scripts of the Valkey store use, translated to Python.

The simulated server executes the very scripts that a real one gets: :func:`translated` makes a
Python function of a script's text. Statements: ``local``, assignment, ``if``, ``while``, both kinds
of ``for`` (over ``ipairs`` alone), local functions, ``return`` and calls. A construct beyond that
is a :class:`LuaError`, never a guess.

Values: text is bytes, a number is a float, ``nil`` is None, a table is a :class:`Table`, an array
from 1 on. As in Lua, only ``nil`` and ``false`` are false, and numbers and text are never equal.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

TOKEN = re.compile(
    r"""\s*(?:--[^\n]*\n\s*)*(?:
    (?P<number>\d+(?:\.\d+)?)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<mark>\.\.|==|~=|<=|>=|[-+*/%#<>=(){}\[\],.;])
    )""",
    re.VERBOSE,
)
WORDS = frozenset(
    (
        *("and", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local"),
        *("nil", "not", "or", "return", "then", "true", "while"),
    )
)
LEVELS: tuple[tuple[str, ...], ...] = (
    ("or",),
    ("and",),
    ("<", ">", "<=", ">=", "~=", "=="),
    ("..",),
    ("+", "-"),
    ("*", "/", "%"),
)
"""Binary operators, from the loosest to the tightest."""


class LuaError(Exception):
    """The script uses what this translation does not know, or fails while it runs."""


class Table:
    """An array from 1 on."""

    def __init__(self, values: Sequence[Any] = ()) -> None:
        self.values = list(values)

    def get(self, at: Any) -> Any:
        position = int(number(at))
        return self.values[position - 1] if 1 <= position <= len(self.values) else None

    def set(self, at: Any, value: Any) -> None:
        position = int(number(at))
        if position == len(self.values) + 1:
            self.values.append(value)
        elif 1 <= position <= len(self.values):
            self.values[position - 1] = value
        else:
            raise LuaError(f"an array of {len(self.values)} values gets one at {position}")


def true(value: Any) -> bool:
    """Whether a condition holds."""
    return value is not None and value is not False


def number(value: Any) -> float:
    """An operand of arithmetic."""
    found = to_number(value)
    if found is None:
        raise LuaError(f"arithmetic with {value!r}")
    return found


def to_number(value: Any) -> float | None:
    """``tonumber``."""
    if isinstance(value, float):
        return value
    if isinstance(value, bytes):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def text(value: Any) -> bytes:
    """An operand of ``..``, and an argument of a command."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, float):
        return f"{value:.14g}".encode()
    raise LuaError(f"{value!r} is used as text")


def same(one: Any, other: Any) -> bool:
    """``==``."""
    return type(one) is type(other) and bool(one == other)


def less(one: Any, other: Any) -> bool:
    """``<``."""
    if type(one) is not type(other):
        raise LuaError(f"{one!r} is compared with {other!r}")
    return bool(one < other)


def size(value: Any) -> float:
    """``#``."""
    return float(len(value.values if isinstance(value, Table) else value))


def index(value: Any, at: Any) -> Any:
    """``value[at]``."""
    if not isinstance(value, Table):
        raise LuaError(f"{value!r} is indexed")
    return value.get(at)


def each(table: Table) -> Iterator[tuple[float, Any]]:
    """``ipairs``."""
    for at, value in enumerate(table.values, 1):
        if value is None:
            return
        yield float(at), value


def steps(first: Any, last: Any, by: Any = 1.0) -> Iterator[float]:
    """The values of a numeric ``for``."""
    value, end, step = number(first), number(last), number(by)
    while value <= end if step > 0 else value >= end:
        yield value
        value += step


def find(value: Any, part: Any, first: Any = 1.0, plain: Any = False) -> Any:
    """``string.find``, of a plain text."""
    if not true(plain):
        raise LuaError("string.find with a pattern")
    at = text(value).find(text(part), int(number(first)) - 1)
    return None if at < 0 else float(at + 1)


def sub(value: Any, first: Any, last: Any = -1.0) -> bytes:
    """``string.sub``."""
    data = text(value)
    begin, end = int(number(first)), int(number(last))
    begin = max(begin if begin > 0 else len(data) + begin + 1 if begin else 1, 1)
    end = end if end >= 0 else len(data) + end + 1
    return data[begin - 1 : max(end, 0)]


def formatted(form: Any, *values: Any) -> bytes:
    """``string.format``, of whole numbers alone."""
    if form != b"%.0f":
        raise LuaError(f"string.format with {form!r}")
    return f"{number(values[0]):.0f}".encode()


LIBRARY: dict[str, Any] = {
    "string.find": find,
    "string.sub": sub,
    "string.format": formatted,
    "math.min": lambda *values: min(map(number, values)),
    "math.max": lambda *values: max(map(number, values)),
    "tonumber": to_number,
    "tostring": text,
}
RUNTIME: dict[str, Any] = {
    name.replace(".", "_"): function for name, function in LIBRARY.items()
} | {one.__name__: one for one in (true, number, text, same, less, size, index, each, steps, Table)}


class Translator:
    """Writes a script as the body of one Python function."""

    def __init__(self, script: str) -> None:
        self.tokens = list(_tokens(script))
        self.at = 0
        self.lines: list[str] = []
        self.scopes: list[dict[str, str]] = [{"KEYS": "KEYS", "ARGV": "ARGV"}]
        self.owners: dict[str, int] = {}
        self.depth, self.names, self.functions = 1, 0, 0

    # Tokens

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, wanted: str | None = None) -> str:
        _, value = self.peek()
        if wanted is not None and value != wanted:
            raise LuaError(f"got {value!r}, expected {wanted!r}")
        self.at += 1
        return value

    def taken(self, wanted: str) -> bool:
        kind, value = self.peek()
        if value == wanted and kind != "text":
            self.at += 1
            return True
        return False

    # Statements

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def declare(self, name: str) -> str:
        self.names += 1
        own = f"{name}_{self.names}"
        self.scopes[-1][name] = own
        self.owners[own] = self.functions
        return own

    def named(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise LuaError(f"the name {name!r} is not declared")

    def block(self, *ends: str) -> None:
        self.scopes.append({})
        self.depth += 1
        self.emit("pass")
        while self.peek()[1] not in ends or self.peek()[0] == "text":
            self.statement()
        self.depth -= 1
        self.scopes.pop()

    def statement(self) -> None:
        if self.taken(";"):
            return
        if self.taken("local"):
            self.local()
        elif self.taken("if"):
            self.condition()
        elif self.taken("while"):
            self.emit(f"while true({self.expression()}):")
            self.take("do")
            self.block("end")
            self.take("end")
        elif self.taken("for"):
            self.loop()
        elif self.taken("return"):
            bare = self.peek()[1] in ("end", "else", "elseif", "")
            self.emit(f"return {'None' if bare else self.expression()}")
        else:
            self.assignment()

    def local(self) -> None:
        if self.taken("function"):
            name = self.declare(self.take())
            self.take("(")
            self.functions += 1
            self.scopes.append({})
            parameters = []
            while not self.taken(")"):
                parameters.append(f"{self.declare(self.take())}=None")
                self.taken(",")
            self.emit(f"def {name}({', '.join(parameters)}):")
            self.block("end")
            self.scopes.pop()
            self.functions -= 1
            self.take("end")
            return
        names = [self.take()]
        while self.taken(","):
            names.append(self.take())
        values = self.expressions() if self.taken("=") else []
        values += ["None"] * (len(names) - len(values))
        self.emit(f"{', '.join(map(self.declare, names))} = {', '.join(values)}")

    def condition(self) -> None:
        self.emit(f"if true({self.expression()}):")
        self.take("then")
        self.block("elseif", "else", "end")
        while self.taken("elseif"):
            self.emit(f"elif true({self.expression()}):")
            self.take("then")
            self.block("elseif", "else", "end")
        if self.taken("else"):
            self.emit("else:")
            self.block("end")
        self.take("end")

    def loop(self) -> None:
        names = [self.take()]
        while self.taken(","):
            names.append(self.take())
        self.scopes.append({})
        if self.taken("="):
            values = f"steps({', '.join(self.expressions())})"
        else:
            self.take("in")
            self.take("ipairs")
            self.take("(")
            values = f"each({self.expression()})"
            self.take(")")
        self.emit(f"for {', '.join(map(self.declare, names))} in {values}:")
        self.take("do")
        self.block("end")
        self.scopes.pop()
        self.take("end")

    def assignment(self) -> None:
        targets = [self.suffixed()]
        if self.peek()[1] not in ("=", ","):
            self.emit(targets[0])
            return
        while self.taken(","):
            targets.append(self.suffixed())
        self.take("=")
        values = self.expressions()
        if len(values) != len(targets):
            raise LuaError(f"{len(values)} values for {len(targets)} names")
        if len(targets) == 1 and targets[0].startswith("index("):
            self.emit(
                f"{targets[0].removeprefix('index(').removesuffix(')')}".join(
                    ("assigned(", f", {values[0]})")
                )
            )
            return
        for target in targets:
            if self.owners.get(target, -1) != self.functions:
                raise LuaError(f"{target!r} is assigned to in an inner function, or is no name")
        self.emit(f"{', '.join(targets)} = {', '.join(values)}")

    # Expressions

    def expressions(self) -> list[str]:
        found = [self.expression()]
        while self.taken(","):
            found.append(self.expression())
        return found

    def expression(self, level: int = 0) -> str:
        if level == len(LEVELS):
            return self.unary()
        found = self.expression(level + 1)
        while self.peek()[1] in LEVELS[level] and self.peek()[0] != "text":
            operator = self.take()
            found = _binary(operator, found, self.expression(level + 1))
        return found

    def unary(self) -> str:
        if self.taken("not"):
            return f"(not true({self.unary()}))"
        if self.taken("-"):
            return f"(-number({self.unary()}))"
        if self.taken("#"):
            return f"size({self.unary()})"
        return self.suffixed()

    def suffixed(self) -> str:
        kind, value = self.peek()
        if kind == "number":
            return repr(float(self.take()))
        if kind == "text":
            return repr(_unescaped(self.take()))
        if self.taken("nil"):
            return "None"
        if self.taken("true"):
            return "True"
        if self.taken("false"):
            return "False"
        if self.taken("{"):
            values = [] if self.peek()[1] == "}" else self.expressions()
            self.take("}")
            return f"Table([{', '.join(values)}])"
        if self.taken("("):
            found = f"({self.expression()})"
            self.take(")")
        elif kind == "name" and value not in WORDS:
            found = self.name()
        else:
            raise LuaError(f"got {value!r}, expected an expression")
        while True:
            if self.taken("["):
                found = f"index({found}, {self.expression()})"
                self.take("]")
            elif self.taken("("):
                values = [] if self.peek()[1] == ")" else self.expressions()
                self.take(")")
                found = f"{found}({', '.join(values)})"
            else:
                return found

    def name(self) -> str:
        name = self.take()
        if self.peek()[1] == "." and self.peek()[0] == "mark":
            self.take(".")
            name = f"{name}.{self.take()}"
        if name == "redis.call":
            return "call"
        if name in LIBRARY:
            return name.replace(".", "_")
        return self.named(name)


def _tokens(script: str) -> Iterator[tuple[str, str]]:
    at, end = 0, len(script.rstrip())
    while at < end:
        found = TOKEN.match(script, at)
        if found is None or found.lastgroup is None:
            raise LuaError(f"got {script[at : at + 40]!r}")
        yield found.lastgroup, found[found.lastgroup]
        at = found.end()


def _unescaped(quoted: str) -> bytes:
    if "\\" in quoted:
        raise LuaError(f"an escape in {quoted}")
    return quoted[1:-1].encode()


def _binary(operator: str, left: str, right: str) -> str:
    forms = {
        "or": "either({0}, lambda: {1})",
        "and": "both({0}, lambda: {1})",
        "==": "same({0}, {1})",
        "~=": "(not same({0}, {1}))",
        "<": "less({0}, {1})",
        ">": "less({1}, {0})",
        "<=": "(not less({1}, {0}))",
        ">=": "(not less({0}, {1}))",
        "..": "(text({0}) + text({1}))",
    }
    form = forms.get(operator, f"(number({{0}}) {operator} number({{1}}))")
    return form.format(left, right)


def _either(one: Any, other: Callable[[], Any]) -> Any:
    return one if true(one) else other()


def _both(one: Any, other: Callable[[], Any]) -> Any:
    return other() if true(one) else one


def _assigned(table: Table, at: Any, value: Any) -> None:
    table.set(at, value)


RUNTIME |= {"either": _either, "both": _both, "assigned": _assigned}
Script = Callable[[Table, Table, Callable[..., Any]], Any]
"""Runs a script: its KEYS, its ARGV, and what ``redis.call`` does."""


@functools.cache
def translated(script: str) -> Script:
    """A script as a function.

    Raises:
        LuaError: it uses a construct that this translation does not know.
    """
    translator = Translator(script)
    while translator.peek()[0] != "end":
        translator.statement()
    source = "\n".join(["def run(KEYS, ARGV, call):", "    pass", *translator.lines])
    names = dict(RUNTIME)
    exec(compile(source, "<script>", "exec"), names)
    run: Script = names["run"]
    return run
