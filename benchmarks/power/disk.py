"""States that a disk may be in after a power loss, from a record of calls.

What is assumed of the disk and its file system:

- A write, or a change of size, is on the disk when the file is synchronised (``fsync``,
  ``fdatasync``) afterwards. Before that, any sector of 512 bytes of it may be there or not, in any
  order; where a file has grown, sectors that are not there are zeros.
- A creation, renaming, link or removal is on the disk when the folder of the name is synchronised
  afterwards. Before that it may be there or not, in any order, apart from this: calls that concern
  the same name take effect in their order. (Synchronising a file does not synchronise its name.)
- A renaming is there or not, never a half of it.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.power.shim import Call

SECTOR = 512

Name = tuple[int, str]
"""A folder, and a name in it."""


@dataclass
class Node:
    """A file, a folder or a symbolic link.

    Attributes:
        kind: "file", "folder" or "link".
        data: of a file before the first call, or the target of a link.
        changed: time of the last change, in nanoseconds since 1970; None: of a file of the record.
        changes: positions of the calls that change it: its bytes, or the names in a folder.
        syncs: positions of the calls that synchronise it.
    """

    kind: str
    data: bytes = b""
    changed: int | None = None
    changes: list[int] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """One call: of bytes, or of names.

    Attributes:
        node: whose bytes or size change; None: names change.
        offset, data: the bytes of a write.
        size: the new size; None: a write.
        names: (folder, name) -> the node that it has afterwards, or None.
    """

    node: int | None = None
    offset: int = 0
    data: bytes = b""
    size: int | None = None
    names: Mapping[Name, int | None] = field(default_factory=dict)


State = dict[str, tuple[str, bytes, int | None]]
"""Path below the folder -> kind, bytes or target, time of the last change."""


class Disk:
    """A folder before a record of calls, and what the calls change.

    Args:
        folder: as it is before the calls.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.nodes: list[Node] = [Node("folder")]
        self.first: dict[Name, int] = {}
        """Names before the calls."""
        self.changes: list[Change | None] = []
        """By the position of the call; None: it changes nothing."""
        self.notes: dict[int, str] = {}
        self.texts: list[str] = []
        self._durable: dict[tuple[int, int], bytes] = {}
        """(node, number of its changes) -> its bytes, where none of them is pending."""
        self._inodes = {self.folder.stat().st_ino: 0}
        self._read(self.folder, 0)
        self._names: dict[Name, int | None] = {**self.first}

    def _read(self, folder: Path, parent: int) -> None:
        for path in sorted(folder.iterdir()):
            found = path.lstat()
            known = self._inodes.get(found.st_ino)
            if known is None:
                kind, data = "file", b""
                if stat.S_ISDIR(found.st_mode):
                    kind = "folder"
                elif stat.S_ISLNK(found.st_mode):
                    kind, data = "link", os.fsencode(os.readlink(path))
                else:
                    data = path.read_bytes()
                known = self._new(Node(kind, data, found.st_mtime_ns), found.st_ino)
                if kind == "folder":
                    self._read(path, known)
            self.first[parent, path.name] = known

    def _new(self, node: Node, inode: int) -> int:
        self.nodes.append(node)
        self._inodes[inode] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def _name(self, path: str) -> Name:
        """The folder and the last part of an absolute path, as all calls so far leave them."""
        parts = Path(path).relative_to(self.folder).parts
        node = 0
        for part in parts[:-1]:
            below = self._names[node, part]
            assert below is not None, path
            node = below
        return node, parts[-1]

    def add(self, call: Call) -> None:
        """Take note of the next call."""
        position = len(self.changes)
        change: Change | None = None
        if call.kind in "OMY":
            kind = {"O": "file", "M": "folder", "Y": "link"}[call.kind]
            made = self._new(Node(kind, call.second), call.one)
            change = Change(names={self._name(call.first): made})
        elif call.kind == "A":
            self._new(Node("file"), call.one)
        elif call.kind in "WT":
            node = self._inodes[call.one]
            if call.kind == "W":
                change = Change(node, call.two, call.second)
            else:
                change = Change(node, size=call.two)
        elif call.kind == "S":
            self.nodes[self._inodes[call.one]].syncs.append(position)
        elif call.kind == "U":
            change = Change(names={self._name(call.first): None})
        elif call.kind in "RXL":
            old, new = self._name(call.first), self._name(os.fsdecode(call.second))
            held = self._names[old]
            names: dict[Name, int | None] = {new: held}
            if call.kind == "R":
                names = {old: None, new: held}
            elif call.kind == "X":
                names[old] = self._names[new]
            change = Change(names=names)
        elif call.kind == "N":
            self.notes[position] = call.first
        self.changes.append(change)
        self.texts.append(call.text.replace(f"{self.folder}/", ""))
        if change is None:
            return
        if change.node is not None:
            self.nodes[change.node].changes.append(position)
        for (folder, name), held in change.names.items():
            if position not in self.nodes[folder].changes[-1:]:
                self.nodes[folder].changes.append(position)
            self._names[folder, name] = held

    def pending(self, end: int) -> list[int]:
        """Positions of the calls before ``end`` that may be lost when the power fails there."""
        found = []
        for position in range(end):
            change = self.changes[position]
            if change is None:
                continue
            nodes = [change.node] if change.node is not None else [f for f, _ in change.names]
            if not any(_between(self.nodes[node].syncs, position, end) for node in nodes):
                found.append(position)
        return found

    def needs(self, pending: Sequence[int]) -> dict[int, set[int]]:
        """Call that changes names -> earlier pending ones that it cannot be on the disk without."""
        latest: dict[Name, int] = {}
        found: dict[int, set[int]] = {}
        for position in pending:
            change = self.changes[position]
            assert change is not None
            before: set[int] = set()
            for name in change.names:
                if name in latest:
                    before |= {latest[name]} | found[latest[name]]
                latest[name] = position
            if change.names:
                found[position] = before
        return found

    def state(
        self,
        end: int,
        lost: frozenset[int] = frozenset(),
        sector: Callable[[int, int], bool] = lambda position, number: True,
        grown: bool = False,
    ) -> State:
        """The files after the calls before ``end``, without those that are ``lost``.

        Args:
            sector: whether the ``number``-th sector of the file, as the call at ``position`` wrote
                it, is on the disk; asked for calls that are pending and not lost.
            grown: files have the size that lost writes would have given them.
        """
        names: dict[Name, int | None] = dict(self.first)
        folders: dict[int, list[int]] = {}
        pending = set(self.pending(end))
        for position in range(end):
            change = self.changes[position]
            if change is None:
                continue
            if change.node is not None:
                folders.setdefault(change.node, []).append(position)
            elif position not in lost:
                names |= change.names
        below: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), node in names.items():
            if node is not None:
                below.setdefault(folder, []).append((name, node))
        found: State = {}
        todo = [("", 0)]
        contents: dict[int, bytes] = {}
        while todo:
            path, folder = todo.pop()
            for name, node in below.get(folder, []):
                here, of = f"{path}{name}", self.nodes[node]
                if of.kind == "folder":
                    found[here] = ("folder", b"", None)
                    todo.append((f"{here}/", node))
                elif of.kind == "link":
                    found[here] = ("link", of.data, None)
                else:
                    if node not in contents:
                        positions = folders.get(node, [])
                        known = (node, len(positions))
                        if pending.isdisjoint(positions):
                            if known not in self._durable:
                                self._durable[known] = self._content(of, positions)
                            contents[node] = self._durable[known]
                        else:
                            contents[node] = self._content(
                                of, positions, lost, pending, sector, grown
                            )
                    time = of.changed if not folders.get(node) else None
                    found[here] = ("file", contents[node], time)
        return found

    def _content(
        self,
        node: Node,
        positions: Sequence[int],
        lost: frozenset[int] = frozenset(),
        pending: Collection[int] = (),
        sector: Callable[[int, int], bool] = lambda position, number: True,
        grown: bool = False,
    ) -> bytes:
        data = bytearray(node.data)
        for position in positions:
            change = self.changes[position]
            assert change is not None
            if change.size is not None:
                if position not in lost:
                    data = data[: change.size] + bytes(max(0, change.size - len(data)))
                continue
            end = change.offset + len(change.data)
            if position in lost:
                if grown and len(data) < end:
                    data += bytes(end - len(data))
                continue
            spans = [(change.offset, end)]
            if position in pending:
                spans = [
                    (max(at, change.offset), min(at + SECTOR, end))
                    for at in range(change.offset // SECTOR * SECTOR, end, SECTOR)
                    if sector(position, at // SECTOR)
                ]
                if grown and len(data) < end:
                    data += bytes(end - len(data))
            for start, stop in spans:
                if len(data) < start:
                    data += bytes(start - len(data))
                data[start:stop] = change.data[start - change.offset : stop - change.offset]
        return bytes(data)

    def states(self, end: int, seed: int, draws: int) -> Iterator[tuple[str, Callable[[], State]]]:
        """States in which the power may fail before the call at ``end``, each with a description:
        all that is pending is there, or nothing; bytes without names and names without bytes; all
        but one call, and one call alone; and ``draws`` at random, with torn writes."""
        pending = self.pending(end)
        needs = self.needs(pending)
        names = frozenset(needs)
        writes = frozenset(pending) - names
        yield "all", lambda: self.state(end)
        if not pending:
            return
        yield "nothing", lambda: self.state(end, frozenset(pending))
        if names and writes:
            yield "names", lambda: self.state(end, writes)
            yield "names and sizes", lambda: self.state(end, writes, grown=True)
            yield "bytes", lambda: self.state(end, names)
        of_node: dict[int | None, set[int]] = {}
        for position in sorted(writes):
            of_node.setdefault(self._node(position), set()).add(position)
        for of in map(frozenset, of_node.values()):
            yield f"all but the bytes of {min(of)}", partial(self.state, end, of)
        for position in sorted(names):
            later = {one for one in names if position in needs[one]} | {position}
            yield f"all but {position}", partial(self.state, end, frozenset(later))
            alone = names - needs[position] - {position}
            yield f"only {position}", partial(self.state, end, alone)
        for draw in range(draws):
            yield f"draw {draw}", partial(self._drawn, end, f"{seed} {end} {draw}", pending, needs)

    def _drawn(
        self, end: int, seed: str, pending: Sequence[int], needs: Mapping[int, set[int]]
    ) -> State:
        """A state at random: a share of the calls is lost, and of the others some sectors."""
        rng = random.Random(seed)
        share = rng.choice((0.2, 0.5, 0.8))
        lost: set[int] = set()
        for position in pending:
            if rng.random() < share or needs.get(position, set()) & lost:
                lost.add(position)
        torn: dict[tuple[int, int], bool] = {}

        def sector(position: int, number: int) -> bool:
            return torn.setdefault((position, number), rng.random() < 0.7)

        return self.state(end, frozenset(lost), sector, rng.random() < 0.5)

    def _node(self, position: int) -> int | None:
        change = self.changes[position]
        return None if change is None else change.node


def _between(ascending: Sequence[int], low: int, high: int) -> bool:
    """Whether a number lies between two others."""
    at = bisect_right(ascending, low)
    return at < len(ascending) and ascending[at] < high


def digest(state: State) -> str:
    """Identifies a state."""
    found = hashlib.sha256()
    for path in sorted(state):
        kind, data, _ = state[path]
        found.update(f"{len(path)} {path} {kind} {len(data)} ".encode("utf-8", "surrogateescape"))
        found.update(data)
    return found.hexdigest()


def write_state(state: State, folder: Path) -> None:
    """Fill an empty folder with the files of a state."""
    for path in sorted(state):
        kind, data, changed = state[path]
        target = folder / path
        if kind == "folder":
            target.mkdir()
        elif kind == "link":
            os.symlink(os.fsdecode(data), target)
        else:
            target.write_bytes(data)
            if changed is not None:
                os.utime(target, ns=(changed, changed))
