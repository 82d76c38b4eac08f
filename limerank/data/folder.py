"""The folder of a dataset: its files, its format and its splits.

The folder that ``limerank prepare`` writes (``n`` events sorted by user, then time; ``U`` users,
``I`` items, ``R`` requests; every array a little-endian ``.npy`` file)::

    dataset.json                manifest: format, spec, encoding, counts, summary
    spec.toml                   the description that it was prepared from
    events/item.npy             i32 [n]    item row
    events/time.npy             i64 [n]    milliseconds since 1970, or the order
    events/label_NAME.npy       u8 [n] for binary labels, f32 [n] seconds for durations,
                                f32 [n] weights for positive ones, 0: no positive
    events/ratio_NAME.npy       f32 [n]    share of the item's length (NaN: not known), with `of`
    events/feature_NAME.npy     i32 [n]    code of a category or of a numeric bucket, 0: unknown
    events/impression_NAME.npy  i32 [n]    impression feature: code of a category, 0: unknown;
                                f32 [n]    or its number, NaN: missing
    users/, items/              one row per user or item:
        tokens.npy              i32 [T]    content tokens, row by row
        token_weights.npy       f32 [T]    1, or 1 / number of values of a multi-valued feature
        token_offsets.npy       i64 [rows + 1]
        numeric.npy             f32 [rows, F]  normalised numbers and text vectors, 0: missing
    items/train_count.npy       i64 [I]    impressions in the training window
    items/candidate.npy         bool [I]   false: only in histories, never ranked
    items/display.parquet       one text per item and column of `display`, where there are some
    users/event_offsets.npy     i64 [U + 1]  where each user's events begin; last, where they end
    requests/user.npy           i32 [R]
    requests/first.npy          i64 [R]    event row of the first impression
    requests/count.npy          i32 [R]    impressions, in consecutive event rows
    requests/history_start.npy  i64 [R]    the user's history before the request: rows
    requests/history_end.npy    i64 [R]    [start, end) of the events, or of history/rows.npy
    requests/split.npy          u8 [R]     0 train, 1 validation, 2 test, 3 held-out users
    history/rows.npy            i64 [H]    with `history.keep`: event rows of the retained events
    log/                        what extending the dataset, and seeing it through the encoding of an
                                earlier run, needs of the log
        request_key.npy         u64 [n]    key of each event's request id, 0: none; with `request`
        source.npy              u8 [n]     number of the [[events]] of each event, if several
        split.npy               u8 [n]     value of the column of splits, where there is one
        feature_NAME.npy        f32 [n]    a numeric outcome or context as it was given
        unknown_NAME_row.npy    i64 [k]    event rows whose value of a category has no code, and
        unknown_NAME_code.npy   i64 [k]    a number of that value, which
        unknown_NAME.parquet               columns code, value give as text
        users.npy               u64 [U]    by user, what decides whether it is held out
        items.parquet, users.parquet       columns of the tables that features are read from
        item_rows.npy, user_rows.npy       i64, the item or user row of each row of these tables
    vocab/users.parquet         column id, in user order
    vocab/items.parquet         column id, in item order: the items of the training window first
    vocab/KIND_NAME.parquet     columns value, code: KIND is item, user or event; code 0 is unknown

What a content token is: :mod:`limerank.data.features`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.errors import FormatError

FORMAT = 4
"""Version of the folder's format. Version 2 adds impression features, version 3 positive labels,
version 4 the edges of the time since the newest event; a dataset is written in the lowest version
that has what it needs."""
READABLE = (1, 2, 3, 4)
"""Versions that a reader opens; it refuses others."""
DISPLAY = "display.parquet"
LOG = "log"
"""The folder of what later steps need of the log."""
MANIFEST = "dataset.json"
SPLITS = ("train", "validation", "test", "held-out")
"""By the numbers in ``requests/split.npy``."""


def open_array(path: Path) -> NDArray[Any]:
    """An array of a dataset folder, memory-mapped; FormatError where it is missing or damaged."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FormatError(f"{path.parent.parent} is damaged: {path} is missing") from None
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path.parent.parent} is damaged: {path}: {error}") from None
    return array
