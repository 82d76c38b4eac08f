"""The catalogue, encoded once: what scoring and the user stage need of every item.

The folder (``n`` items, width ``d``; LIME models have ``C = H l`` link weights per item and ``g``
head terms; files are bare little-endian arrays, row after row, mapped into memory)::

    manifest.json    format, model fingerprint, counts, scales; size and SHA-256 of each file
    vectors.f32      [n, d]   output of the item tower: histories and reference scoring read it
    weights.u8       [n, C]   link weights; LIME only
    terms.i8         [n, g]   the item's part of the head's first layer; LIME only
    ids.i64          [n]      external ids that are integers; or, where they are text,
    ids.utf8, id_ends.i64     all texts, one after another, and where each ends
    id_keys.i64      [n]      what ids are looked up by, ascending: the integers, hashes of texts
    id_rows.i32      [n]      the row of each key
    hidden_rows.i32  [m]      rows that histories may hold and rankings never offer, ascending

Quantisation, both affine per column, with scales that the manifest holds::

    weights[i, c] = weight_low[c] + weight_step[c] * code        code = 0 .. 255
    terms[i, g]   = term_middle[g] + term_step[g] * code         code = -127 .. 127

Link weights are shares of one, and mostly far below it, so a column spans the range that the
catalogue really uses. An affine form costs a scorer nothing: what is constant in a column goes to
the user's side, once per request. ``weight_mean``, the mean code of each column, and
``weight_spread``, how far an item's codes are from them, are for a scorer that rounds the user's
side as well: the mean of that error can be taken away, and the rest has a bound.

Files only ever grow, and the manifest alone says how many of their rows count: bytes beyond are
ignored. So rows can be added behind the readers' backs and become visible when the manifest is
replaced in one step; a change of an item is a new row and the removal of the old one; a build can
go on from the rows that it wrote. (Rows beyond ``sorted`` would be found by a search through the
tail, and removed rows be hidden ones; this version writes neither.)
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike, NDArray

from limerank.batch import Items
from limerank.checkpoint import Run, load_run
from limerank.dataset import Dataset, FeatureTable
from limerank.errors import DataError, FingerprintError, FormatError, SpecError, UnknownError
from limerank.files import new_folder, read_json, write_json
from limerank.models import Lime
from limerank.progress import Bar
from limerank.schema import Spec, Table, validate
from limerank.tables import Encoding, as_text, candidates, encode, read_table, whole_numbers

FORMAT = 1
CHUNK = 16384
"""Items encoded at once."""

DTYPES = {
    "vectors.f32": "<f4",
    "weights.u8": "|u1",
    "terms.i8": "|i1",
    "ids.i64": "<i8",
    "ids.utf8": "|u1",
    "id_ends.i64": "<i8",
    "id_keys.i64": "<i8",
    "id_rows.i32": "<i4",
    "hidden_rows.i32": "<i4",
}
OTHER_LENGTHS = ("ids.utf8", "hidden_rows.i32")
"""Files whose length is not the number of rows."""


SCALED = ("weight_low", "weight_step", "weight_mean", "term_middle", "term_step")

# Ids


class IdTable:
    """The external ids of an index's rows, and the rows of ids.

    ``ids[rows]`` gives an array of integers or of text, ``len(ids)`` the number of rows.
    """

    def __init__(
        self,
        values: NDArray[Any],
        ends: NDArray[np.int64] | None,
        keys: NDArray[np.int64],
        rows: NDArray[np.int32],
    ) -> None:
        self.text = ends is not None
        """Whether ids are text; else they are integers."""
        self._values, self._ends, self._keys, self._rows = values, ends, keys, rows

    @classmethod
    def of(cls, values: NDArray[Any]) -> IdTable:
        """A table held in memory; DataError where one is given twice."""
        arrays = _id_arrays(values)
        text = "ids.utf8" in arrays
        return cls(
            arrays["ids.utf8" if text else "ids.i64"],
            arrays.get("id_ends.i64"),
            arrays["id_keys.i64"],
            arrays["id_rows.i32"],
        )

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, rows: Any) -> Any:
        if self._ends is None:
            return self._values[rows]
        at = np.arange(len(self))[rows]
        if at.ndim == 0:
            return self._texts(at[None])[0]
        texts = np.empty(at.shape, dtype=object)
        texts[...] = np.array(self._texts(at.ravel()), dtype=object).reshape(at.shape)
        return texts

    def _texts(self, rows: NDArray[Any]) -> list[str]:
        assert self._ends is not None
        ends = self._ends[rows].tolist()
        starts = np.where(rows > 0, self._ends[np.maximum(rows, 1) - 1], 0).tolist()
        flat = self._values.data
        return [str(flat[a:b], "utf-8") for a, b in zip(starts, ends, strict=True)]

    def find(self, ids: ArrayLike | Sequence[Any]) -> NDArray[np.int64]:
        """The row of each id, i64; -1 where the index does not hold it.

        Where ids are integers, their text ("42") is found as well.
        """
        given = np.asarray(ids).ravel() if isinstance(ids, np.ndarray) else list(ids)  # type: ignore[arg-type]
        found = np.full(len(given), -1, dtype=np.int64)
        if not len(given) or not len(self):
            return found
        if self._ends is None:
            wanted, legal = _as_integers(given)
            at = np.minimum(np.searchsorted(self._keys, wanted), len(self) - 1)
            hit = legal & (self._keys[at] == wanted)
            found[hit] = self._rows[at[hit]]
            return found
        texts = [str(value) for value in given]
        wanted = _hashes(texts)
        at = np.searchsorted(self._keys, wanted)
        todo = np.arange(len(texts))
        while len(todo):  # a second time only where two texts have one hash
            inside = at[todo] < len(self)
            todo = todo[inside]
            todo = todo[self._keys[at[todo]] == wanted[todo]]
            rows = self._rows[at[todo]].astype(np.int64)
            same = np.array(
                [held == texts[k] for held, k in zip(self._texts(rows), todo, strict=True)],
                dtype=bool,
            )
            found[todo[same]] = rows[same]
            todo = todo[~same]
            at[todo] += 1
        return found


def _as_integers(values: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Values as integers, and which of them are integers or their plain text."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values.astype(np.int64), np.ones(len(values), dtype=bool)
    numbers = np.zeros(len(values), dtype=np.int64)
    legal = np.zeros(len(values), dtype=bool)
    for place, value in enumerate(values):
        if isinstance(value, (bool, np.bool_)):
            continue
        if isinstance(value, (int, np.integer)) or (
            isinstance(value, str) and str(value).removeprefix("-").isdecimal()
        ):
            number = int(value)
            if -(1 << 63) <= number < 1 << 63 and str(number) == str(value):
                numbers[place], legal[place] = number, True
    return numbers, legal


def _hashes(texts: Sequence[str]) -> NDArray[np.int64]:
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


# The index


@dataclass(frozen=True)
class Scales:
    """What turns the codes of an index into numbers; see the module's text.

    Attributes:
        weight_low, weight_step, weight_mean: f32 [C].
        term_middle, term_step: f32 [g].
        weight_spread: the largest sum over an item's weights of |code - weight_mean|.
    """

    weight_low: NDArray[np.float32]
    weight_step: NDArray[np.float32]
    weight_mean: NDArray[np.float32]
    term_middle: NDArray[np.float32]
    term_step: NDArray[np.float32]
    weight_spread: float

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Scales:
        """From the manifest's lists of numbers."""
        low, step, mean, middle, term_step = (
            np.asarray(values[name], dtype=np.float32) for name in SCALED
        )
        return cls(low, step, mean, middle, term_step, float(values["weight_spread"]))

    def json(self) -> dict[str, Any]:
        """As the manifest's lists of numbers."""
        lists = {name: getattr(self, name).tolist() for name in SCALED}
        return {**lists, "weight_spread": self.weight_spread}

    def check(self, weights: int, terms: int) -> None:
        """ValueError where there is not one finite number per column."""
        for name in SCALED:
            column = getattr(self, name)
            expected = weights if name.startswith("weight") else terms
            if column.shape != (expected,) or not np.isfinite(column).all():
                raise ValueError(f"{name} holds {column.shape} numbers of {expected}")

    def weights(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Link weights that codes [..., C] stand for."""
        return self.weight_low + self.weight_step * codes

    def terms(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Head terms that codes [..., g] stand for."""
        return self.term_middle + self.term_step * codes


class Index:
    """An index folder, opened: memory-mapped, in milliseconds whatever its size.

    Attributes:
        fingerprint: that of the run whose model built it.
        model: the model's name.
        ids: external ids by row.
        vectors: f32 [n, d].
        weights: u8 [n, C]; None for models without links.
        terms: i8 [n, g]; None for models without links.
        scales: of weights and terms.
        hidden: rows that rankings never offer, i32, ascending.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest = read_json(self.path / "manifest.json", "an index")
        if self.manifest.get("format") != FORMAT:
            raise FormatError(
                f"{self.path} has index format {self.manifest.get('format')}, expected {FORMAT}; "
                "build it again with this version"
            )
        try:
            self.fingerprint: str = self.manifest["fingerprint"]
            self.model: str = self.manifest["model"]
            self._rows = int(self.manifest["items"])
            files: dict[str, dict[str, Any]] = self.manifest["files"]
            arrays = {name: self._map(name, entry) for name, entry in files.items()}
            self.vectors: NDArray[np.float32] = arrays["vectors.f32"]
            text = "ids.utf8" in arrays
            self.ids = IdTable(
                arrays["ids.utf8" if text else "ids.i64"],
                arrays["id_ends.i64"] if text else None,
                arrays["id_keys.i64"],
                arrays["id_rows.i32"],
            )
            self.hidden: NDArray[np.int32] = arrays["hidden_rows.i32"]
            self.weights: NDArray[np.uint8] | None = arrays.get("weights.u8")
            self.terms: NDArray[np.int8] | None = arrays.get("terms.i8")
            self.scales: Scales | None = None
            if self.weights is not None and self.terms is not None:
                self.scales = Scales.of(self.manifest["scales"])
                self.scales.check(self.weights.shape[1], self.terms.shape[1])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise FormatError(
                f"{self.path}/manifest.json is damaged ({error!r}); build the index again"
            ) from None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        fingerprint: str | None = None,
        *,
        verify: bool = False,
    ) -> Index:
        """Open an index.

        Args:
            path: the folder.
            fingerprint: of the run that is going to use it.
            verify: read everything and compare the checksums (sizes are always compared).

        Raises:
            FingerprintError: another model built it.
            FormatError: it is no index, of another format, or a file is missing, cut off or,
                with ``verify``, changed.
        """
        index = cls(path)
        if fingerprint is not None and index.fingerprint != fingerprint:
            raise FingerprintError(
                f"{index.path} was built by the model {index.fingerprint}, not by {fingerprint}; "
                "build an index with this run, or rank with the run that built it"
            )
        if verify:
            index.verify()
        return index

    def _map(self, name: str, entry: dict[str, Any]) -> NDArray[Any]:
        path = self.path / name
        shape = tuple(int(size) for size in entry["shape"])
        dtype = np.dtype(DTYPES[name])
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if min(shape) < 0 or (name not in OTHER_LENGTHS and shape[0] != self._rows):
            raise ValueError(f"{name} has the shape {shape}, of {self._rows} rows")
        try:
            held = path.stat().st_size
        except FileNotFoundError:
            raise FormatError(f"{self.path} is damaged: it holds no {name}") from None
        if held < size:
            raise FormatError(
                f"{self.path} is damaged: {name} has {held:,} bytes, expected {size:,}; "
                "build the index again"
            )
        if size == 0:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", shape=shape)

    def __len__(self) -> int:
        return self._rows

    def row_of(self, id: Any) -> int:
        """The row of one external id; UnknownError where the index does not hold it."""
        row = int(self.ids.find([id])[0])
        if row < 0:
            raise UnknownError(f"the index {self.path} holds no item {id!r}")
        return row

    def verify(self) -> None:
        """Compare every file with its checksum; FormatError where one has changed."""
        for name, entry in self.manifest["files"].items():
            array = self._map(name, entry).reshape(-1).view(np.uint8)
            found = hashlib.sha256()
            for at in range(0, len(array), 1 << 24):
                found.update(array[at : at + (1 << 24)].data)
            if found.hexdigest() != entry.get("sha256"):
                raise FormatError(f"{self.path} is damaged: {name} has changed; build it again")


# Building


@dataclass(frozen=True)
class _Catalogue:
    """Items to encode: external ids, rows of the id table, content, whether rankings may offer
    them; and which of these rows are wanted."""

    ids: NDArray[Any]
    codes: NDArray[np.int64]
    content: FeatureTable
    candidate: NDArray[np.bool_]
    rows: NDArray[np.int64]

    def chunks(self) -> Iterator[Items]:
        for at in range(0, len(self.rows), CHUNK):
            rows = self.rows[at : at + CHUNK]
            yield Items(torch.from_numpy(self.codes[rows]), self.content.take(rows))


class _File:
    """An array that is written row by row and hashed on the way."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self._dtype = name, np.dtype(DTYPES[name])
        self._file = open(folder / name, "wb")  # noqa: SIM115  # closed by __exit__
        self._hash = hashlib.sha256()
        self._shape: tuple[int, ...] = (0,)

    def append(self, rows: NDArray[Any]) -> None:
        data = np.ascontiguousarray(rows, dtype=self._dtype)
        self._shape = (self._shape[0] + len(data), *data.shape[1:])
        self._file.write(data.data)
        self._hash.update(data.data)

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"shape": list(self._shape), "sha256": self._hash.hexdigest()}

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def build_index(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: Dataset | str | os.PathLike[str] | None = None,
    items: str | os.PathLike[str] | None = None,
    merge: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Encode a catalogue into the new folder ``out``; returns its manifest.

    Args:
        run: whose model encodes; its fingerprint goes into the index.
        data: the dataset whose items are encoded, those included that training has not seen, in
            its order; the one that the run was trained on when not given.
        items: a table of items instead, in the layout of the run's item table (CSV, TSV or
            Parquet): a newer catalogue, or new items alone. Items that training has seen keep
            what it learned of them; of the others the content decides.
        merge: encode the dataset's items as well; the table wins where both have an item.
        overwrite: replace ``out`` where it exists.
        quiet: show no progress.

    Raises:
        DataError: an item id twice, a column of the table is missing, or an item encodes to NaN.
        FormatError: ``out`` exists and ``overwrite`` is false.
        SpecError: ``items`` is given and the run's data had no item table; or the model is a
            variant.
    """
    run = run if isinstance(run, Run) else load_run(run)
    if run.ranker.config.variant is not None:
        raise SpecError(
            f"{run.path} is the variant {run.ranker.config.variant!r}, which is there to be "
            "measured and not to be served; train without a variant"
        )
    parts: list[_Catalogue] = []
    table = None if items is None else _from_table(run, Path(items))
    if table is None or merge:
        dataset = data if isinstance(data, Dataset) else run.dataset(data)
        parts.append(_from_dataset(dataset, table))
    if table is not None:
        parts.append(table)
    with new_folder(out, overwrite=overwrite) as folder:
        ids = [part.ids[part.rows] for part in parts]
        arrays = _id_arrays(ids[0] if len(ids) == 1 else np.concatenate(ids))
        offered = np.concatenate([part.candidate[part.rows] for part in parts])
        arrays["hidden_rows.i32"] = np.flatnonzero(~offered)
        files = {}
        for name, array in arrays.items():
            with _File(folder, name) as file:
                file.append(array)
            files[name] = file.entry()
        written, scales = _write_items(folder, run, parts, quiet)
        manifest = {
            "format": FORMAT,
            "fingerprint": run.fingerprint,
            "model": run.ranker.config.model,
            "items": sum(len(part.rows) for part in parts),
            "sorted": sum(len(part.rows) for part in parts),
            "scales": scales,
            "files": {**files, **written},
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def _from_dataset(dataset: Dataset, table: _Catalogue | None) -> _Catalogue:
    """All items of a dataset but those that the table has."""
    rows = np.arange(len(dataset.items), dtype=np.int64)
    codes = np.where(rows < dataset.trained_items, rows + 1, 0)
    if table is not None:
        here, there = pl.Series(dataset.item_ids), pl.Series(table.ids)
        if here.dtype == there.dtype:  # they differ only where one is empty
            rows = rows[~here.is_in(there.implode()).to_numpy()]
    return _Catalogue(dataset.item_ids, codes, dataset.items, dataset.candidate, rows)


def _from_table(run: Run, path: Path) -> _Catalogue:
    """The items of a file in the layout of the run's item table."""
    spec = validate(Spec, run.manifest["spec"], str(run.path / "encoding.json"))
    if spec.items is None:
        raise SpecError(
            f"the data of {run.path} has no item table, so nothing is known of items but their "
            "ids; index the dataset itself"
        )
    known = pl.read_parquet(run.path / "vocab" / "items.parquet")["id"]
    text = path.name.lower().endswith((".parquet", ".pq"))
    own = {"format": None, "columns": ()} if text else {"format": None}
    layout = Table.model_validate({**spec.items.model_dump(), **own, "files": (path.name,)})
    layout = layout.model_copy(update={"files": (glob.escape(path.name),)})
    frame, bad = read_table(layout, path.resolve().parent, layout.read)
    if bad:
        raise DataError(f"{path}: {bad} lines could not be parsed")
    ids = _item_ids(frame[spec.items.id], known.dtype == pl.String, path)
    vocabularies = {
        feature.name: pl.read_parquet(run.path / "vocab" / f"item_{feature.name}.parquet")
        for feature in spec.items.features
        if feature.kind == "categorical"
    }
    encoding = Encoding(run.manifest["encoding"]["items"], vocabularies)
    content = encode(frame, spec.items.features, encoding, ids)
    rows = pl.DataFrame([ids.alias("id")]).join(
        pl.DataFrame([known.alias("id"), pl.Series("row", np.arange(len(known)))]),
        on="id",
        how="left",
        maintain_order="left",
    )["row"]
    row = rows.fill_null(len(known)).to_numpy()
    codes = np.where(row < run.manifest["encoding"]["trained_items"], row + 1, 0).astype(np.int64)
    return _Catalogue(
        ids.to_numpy(),
        codes,
        FeatureTable(content.tokens, content.weights, content.offsets, content.numeric),
        candidates(frame, layout),
        np.arange(len(ids), dtype=np.int64),
    )


def _item_ids(values: pl.Series, text: bool, path: Path) -> pl.Series:
    """The id column of a table in the type of the run's ids."""
    if text:
        ids = as_text(values) if values.dtype.is_float() else values.cast(pl.String)
        ids = ids.set((ids.str.len_bytes() == 0).fill_null(False), None)
    elif values.dtype == pl.String:
        ids = whole_numbers(values)
    else:
        ids = values.cast(pl.Int64, strict=False)
        if values.dtype.is_float():
            ids = ids.set((ids.cast(values.dtype) != values).fill_null(False), None)
    missing = ids.is_null()
    if missing.any():
        wrong = values.filter(missing).drop_nulls()
        if len(wrong) and not text:
            raise DataError(f"{path}: the item id {wrong[0]!r} is no integer, as the run's ids are")
        raise DataError(f"{path}: {missing.sum()} rows of {len(ids)} have no item id")
    return ids


def _id_arrays(ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Ids and what they are looked up by, as the arrays of the format."""
    arrays: dict[str, NDArray[Any]] = {}
    texts: list[str] = []
    if ids.dtype.kind in "iu":
        arrays["ids.i64"] = keys = ids.astype(np.int64)
    else:
        texts = [str(value) for value in ids]
        encoded = [value.encode() for value in texts]
        arrays["ids.utf8"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        arrays["id_ends.i64"] = np.cumsum(lengths)
        keys = _hashes(texts)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    again = order[1:][keys[1:] == keys[:-1]]
    if texts and len(again):  # equal hashes: are the texts equal, too?
        group = order[np.isin(keys, keys[1:][keys[1:] == keys[:-1]])]
        again = group[pl.Series([texts[row] for row in group]).is_duplicated().to_numpy()]
    if len(again):
        some = ", ".join(repr(value) for value in dict.fromkeys(ids[again].tolist()))
        raise DataError(f"each item must have an id of its own; given more than once: {some:.200}")
    arrays["id_keys.i64"], arrays["id_rows.i32"] = keys, order.astype(np.int32)
    return arrays


def _write_items(
    folder: Path, run: Run, parts: list[_Catalogue], quiet: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Write vectors and, for LIME, weights and terms; returns the manifest's parts."""
    ranker = run.ranker
    device = next(ranker.parameters()).device
    total = sum(len(part.rows) for part in parts)
    lime = isinstance(ranker, Lime)
    width, spans = ranker.config.width, _Spans()
    with (
        torch.inference_mode(),
        Bar("indexing", total=total * (2 if lime else 1), unit="rows", quiet=quiet) as bar,
    ):
        with _File(folder, "vectors.f32") as vectors:
            for part in parts:
                for items in part.chunks():
                    found_ud = ranker.item_vectors(items.to(device)).float()
                    _refuse_nan(found_ud)
                    vectors.append(found_ud.cpu().numpy())
                    if lime:
                        spans.add(*ranker.encode_items(found_ud))
                    bar.advance(len(found_ud))
            if not total:
                vectors.append(np.zeros((0, width), np.float32))
        entries = {"vectors.f32": vectors.entry()}
        if not lime:
            return entries, None
        if not total:
            spans.add(*ranker.encode_items(torch.zeros(0, width, device=device)))
        scales, spread = spans.scales(total), 0.0
        with (
            _File(folder, "weights.u8") as weights,
            _File(folder, "terms.i8") as terms,
            open(folder / "vectors.f32", "rb") as file,
        ):
            for _ in range(0, max(total, 1), CHUNK):
                numbers = np.frombuffer(bytearray(file.read(CHUNK * width * 4)), dtype="<f4")
                found_ud = torch.from_numpy(numbers).view(-1, width)
                w_uc, t_ug = ranker.encode_items(found_ud.to(device))
                codes = _codes(w_uc, scales.weight_low, scales.weight_step, 0, 255)
                away = np.abs(codes - scales.weight_mean).sum(1)
                spread = max(spread, float(away.max(initial=0)))
                weights.append(codes)
                terms.append(_codes(t_ug, scales.term_middle, scales.term_step, -127, 127))
                bar.advance(len(found_ud))
        entries["weights.u8"], entries["terms.i8"] = weights.entry(), terms.entry()
    return entries, replace(scales, weight_spread=spread).json()


def _refuse_nan(vectors_ud: torch.Tensor) -> None:
    finite_u = torch.isfinite(vectors_ud).all(1)
    if not finite_u.all():
        raise DataError(
            f"{int((~finite_u).sum())} of {len(finite_u)} items encode to NaN: look for extreme "
            "numbers in their rows, or train again"
        )


class _Spans:
    """Ranges of columns, over chunks of rows."""

    def __init__(self) -> None:
        self._low: list[torch.Tensor] = []
        self._high: list[torch.Tensor] = []
        self._sum = torch.zeros(0)

    def add(self, weights_uc: torch.Tensor, terms_ug: torch.Tensor) -> None:
        if not self._low:
            big = float("inf")
            self._low = [part.new_full(part.shape[1:], big) for part in (weights_uc, terms_ug)]
            self._high = [-part for part in self._low]
            self._sum = weights_uc.new_zeros(weights_uc.shape[1:], dtype=torch.float64)
        if not len(weights_uc):
            return
        for place, part in enumerate((weights_uc, terms_ug)):
            self._low[place] = torch.minimum(self._low[place], part.amin(0))
            self._high[place] = torch.maximum(self._high[place], part.amax(0))
        self._sum += weights_uc.sum(0, dtype=torch.float64)

    def scales(self, rows: int) -> Scales:
        (w_low, t_low), (w_high, t_high) = (
            [part.double().cpu().numpy() for part in parts] for parts in (self._low, self._high)
        )
        if not rows:
            w_low, w_high = np.zeros_like(w_low), np.ones_like(w_high)
            t_low, t_high = np.zeros_like(t_low), np.ones_like(t_high)
        w_step, t_step = (w_high - w_low) / 255, (t_high - t_low) / 254
        w_step[w_step == 0] = t_step[t_step == 0] = 1.0
        mean = (self._sum.cpu().numpy() / max(rows, 1) - w_low) / w_step
        low, step, mean, middle, term_step = (
            column.astype(np.float32)
            for column in (w_low, w_step, mean, (t_low + t_high) / 2, t_step)
        )
        return Scales(low, step, mean, middle, term_step, 0.0)


def _codes(
    values: torch.Tensor, low: NDArray[np.float32], step: NDArray[np.float32], least: int, most: int
) -> NDArray[Any]:
    low_c, step_c = (torch.from_numpy(part).to(values.device) for part in (low, step))
    codes: NDArray[Any] = ((values - low_c) / step_c).round_().clamp_(least, most).cpu().numpy()
    return codes.astype(np.uint8 if least == 0 else np.int8)
