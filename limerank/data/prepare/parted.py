"""The rows of a part of a log, as they are left for joining, and how all of them are joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.pipeline import ahead
from limerank.data.prepare.asked import Asked
from limerank.data.prepare.coding import RowCoder, stretch
from limerank.data.prepare.findings import Findings
from limerank.data.prepare.ids import Ids
from limerank.data.prepare.logfiles import LogFile
from limerank.data.prepare.opening import OpenSources
from limerank.data.prepare.partition import Array, blocks
from limerank.data.prepare.plan import OF_PART, Parts
from limerank.data.prepare.spooling import Spooling
from limerank.errors import FormatError
from limerank.files import (
    checksum,
    make_folder,
    write_json,
)
from limerank.parts import Part, digest_of, sealed
from limerank.progress import Bar

EVENTS, LISTS, TEXTS = "spools/events/0.bin", "spools/lists/0.bin", "texts/{}.parquet"
"""Files of a part."""


class _File(NamedTuple):
    """A file of a source, by their numbers."""

    source: int
    number: int


def files_of(sources: OpenSources, part: Part) -> list[_File]:
    """The files of a part: those whose middle is in its share of the bytes of all files."""
    files = [
        _File(source, number)
        for source, of in enumerate(sources.readers)
        for number in range(len(of))
    ]
    sizes = np.array([sources.readers[one.source][one.number].rows.size for one in files])
    middles = np.cumsum(sizes) - sizes / 2
    owners = np.minimum(part.of * middles / max(sizes.sum(), 1), part.of - 1).astype(np.int64)
    return [files[k] for k in np.flatnonzero(owners == part.number - 1).tolist()]


class PartSpooling(Spooling):
    """Reads the files of one part, and leaves their rows as they come.

    Args:
        asked, work, quiet: as for :class:`~limerank.data.prepare.spooling.Spooling`.
        sources: all files, open.
        parts: the folder of parts.
        chosen: the files of this part.
    """

    def __init__(
        self,
        asked: Asked,
        work: Path,
        quiet: bool,
        sources: OpenSources,
        parts: Parts,
        chosen: Sequence[_File],
    ) -> None:
        self._opened, self._parts, self._chosen = sources, parts, chosen
        super().__init__(asked, work, quiet)

    def opened(self) -> OpenSources:
        return self._opened

    def ids_are_text(self, which: int) -> None:
        self._parts.are_text(which)
        super().ids_are_text(which)

    def make_spools(self, bits: int | None = None) -> None:
        super().make_spools(0)

    def fill_spools(self) -> None:
        self._files: list[dict[str, Any]] = []
        readers = [self.sources.readers[one.source][one.number] for one in self._chosen]
        total = sum(reader.rows.size for reader in readers)
        with Bar("reading", total=total, unit="bytes", quiet=self.quiet) as bar:
            for one, reader in zip(self._chosen, readers, strict=True):
                self.findings = self.coder.findings = Findings()
                self.read_rows_of(reader, one.source, bar)
                self._files.append(
                    {
                        "source": one.source,
                        "file": self.sources.files[one.source][one.number].sealed().to_dict(),
                        "findings": self.findings.to_dict(),
                        "where": reader.selection.values,
                    }
                )

    def write(self, folder: Path, parts: Parts) -> dict[str, Any]:
        """Complete the folder of the part; returns what it says of itself."""
        learned = {}
        for name, ids in text_ids(self.coder).items():
            learned[name] = ids.learned
            path = folder / TEXTS.format(name)
            make_folder(path.parent)
            ids.texts().alias("text").to_frame().write_parquet(path)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        about = {
            "plan": digest_of(parts.plan),
            "integral": self.sources.integral,
            "hashed": self.coder.hashed,
            "files": self._files,
            "learned": learned,
            "checksums": {str(path.relative_to(folder)): checksum(path) for path in files},
        }
        write_json(folder / OF_PART, sealed(about))
        return about


def text_ids(coder: RowCoder) -> dict[str, Ids]:
    """The ids and categories of a coder that are texts, by the column of spools that has them."""
    all_ids = {"user": coder.users, "item": coder.items}
    all_ids |= {f"feature_{name}": ids for name, ids in coder.features.items()}
    return {name: ids for name, ids in all_ids.items() if ids.text}


class PartFiles:
    """A complete part.

    Args:
        path: its folder.
        about: what it says of itself.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, about

    def verify(self) -> None:
        """Compare all files with their checksums.

        Raises:
            FormatError: one differs, or is missing.
        """
        for name, expected in self.about["checksums"].items():
            file = self.path / name
            if not file.exists() or checksum(file) != expected:
                raise FormatError(
                    f"{file} is {'damaged' if file.exists() else 'missing'}; remove {self.path} "
                    "and run its --part again"
                )

    def recoding(self, coder: RowCoder) -> dict[str, NDArray[np.int64]]:
        """Learn the texts of this part as the next ones; column -> new code by code in the part."""
        found = {}
        for name, ids in text_ids(coder).items():
            texts = pl.read_parquet(self.path / TEXTS.format(name))["text"]
            new = ids.learn_again(texts, self.about["learned"][name])
            found[name] = np.concatenate([np.arange(ids.known), new])
        return found

    def rows(
        self, name: str, dtypes: Mapping[str, Any], coder: RowCoder, codes: Mapping[str, Array]
    ) -> Iterator[dict[str, Array]]:
        """Its rows as they were read, with new codes.

        Args:
            name: of the file.
            dtypes: of its columns.
            coder: that has learned the texts.
            codes: from :meth:`recoding`.
        """
        if not (self.path / name).exists():
            return
        for columns in blocks(self.path / name, dtypes):
            if "user" in codes:
                old = coder.user_codes(columns["user"])
                columns["user"] = coder.user_keys(codes["user"][old])
            items = "item" if "item" in columns else "values"
            if "item" in codes:
                columns[items] = codes["item"][columns[items]]
            if len(columns[items]):
                stretch(coder.item_range, columns[items])
            for column in columns.keys() & codes.keys() - {"user", "item"}:
                # Categories have the codes from 1 on.
                columns[column] = np.concatenate([[-1], codes[column]])[columns[column]] + 1
            yield columns


def opened(parts: Parts) -> Iterator[PartFiles]:
    """All parts of a folder in order; they are complete."""
    for number in range(1, parts.of + 1):
        about = parts.complete(number)
        assert about is not None
        yield PartFiles(parts.folder / Part(number, parts.of).folder, about)


class JoinedSpooling(Spooling):
    """Takes the rows of all parts, as if their files were read one after the other.

    Args:
        asked, work, quiet: as for :class:`~limerank.data.prepare.spooling.Spooling`.
        parts: the parts, which are complete.
    """

    def __init__(self, asked: Asked, work: Path, quiet: bool, parts: Parts) -> None:
        self._parts = parts
        super().__init__(asked, work, quiet)

    def opened(self) -> OpenSources:
        return self._parts.sources(self.asked)

    def fill_spools(self) -> None:
        files: list[list[dict[str, Any]]] = [[] for _ in self.spec.events]
        lists = {} if self.lists is None else self.lists.dtypes
        with Bar("joining", total=self._parts.of, unit="parts", quiet=self.quiet) as bar:
            for part in opened(self._parts):
                part.verify()
                codes = part.recoding(self.coder)
                for columns in ahead(part.rows(EVENTS, self.spool.dtypes, self.coder, codes)):
                    self.spool.add(columns)
                for columns in ahead(part.rows(LISTS, lists, self.coder, codes)):
                    assert self.lists is not None
                    self.lists.add(columns)
                self.coder.hashed = self.coder.hashed or part.about["hashed"]
                for one in part.about["files"]:
                    files[one["source"]].append(one)
                bar.advance(1)
        for number, of in enumerate(files):
            begin = self.findings.rows
            for one in of:
                self.findings.add(one["findings"])
            self.check_where([one["where"] for one in of], number, begin)
        self._sealed = [[LogFile(**one["file"]) for one in of] for of in files]

    def sealed_files(self) -> list[list[LogFile]]:
        return self._sealed
