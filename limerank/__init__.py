"""limerank: a ranking model in which a few learned links stand between history and candidates.

The public names, loaded when they are first used::

    prepare(spec, out)  simulate(out)          logs -> dataset
    Dataset(path)                              a prepared dataset
    train(data, out, model=ModelConfig(...))   dataset -> run folder
    load_run(path)      evaluate(run)          run -> model, metrics
    build_index(run, out)   Index              run -> index folder
    add_items(run, index, items)  update_items  put_items  change_items
    remove_items(index, ids)      compact_index     a live index, changed in place
    Recommender(run, index).rank(user=...)     index -> ranked items, with reasons
    event_of({...})     SqliteStore(path)      ValkeyStore(url)     events, kept as they come
    UserStates(run, index, store).ready(user)  store -> what a scorer needs of a user, live
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DataError": "errors",
    "Dataset": "dataset",
    "FingerprintError": "errors",
    "FormatError": "errors",
    "Index": "index.reading",
    "LimerankError": "errors",
    "ModelConfig": "config",
    "Recommender": "rank",
    "Spec": "schema",
    "SpecError": "errors",
    "SqliteStore": "stores",
    "StoreError": "errors",
    "TrainConfig": "config",
    "UnknownError": "errors",
    "UserStates": "state",
    "ValkeyStore": "stores",
    "add_items": "index.changes",
    "build_index": "index.building",
    "change_items": "index.changes",
    "compact_index": "index.changes",
    "compare": "comparison",
    "evaluate": "evaluation",
    "event_of": "events",
    "load_run": "checkpoint",
    "load_spec": "schema",
    "prepare": "logs.preparation",
    "put_items": "index.changes",
    "remove_items": "index.changes",
    "simulate": "synthetic",
    "train": "training",
    "update_items": "index.changes",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  (names and homes stand in one table)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'limerank' has no attribute {name!r}")
    return getattr(importlib.import_module(f"limerank.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
