"""limerank: a ranking model in which a few learned links stand between history and candidates.

The public names. The module of a name is imported when the name is first used::

    prepare(spec, out)  simulate(out)          logs -> dataset
    Dataset(path)                              a prepared dataset
    train(data, out, model=ModelConfig(...))   dataset -> run folder
    tune(data, out, model="lime-mha")          dataset -> best settings and their run folder
    load_run(path)      evaluate(run)          run -> model, metrics
    build_index(run, out)   Index              run -> index folder
    add_items(run, index, items)  update_items  put_items  change_items
    remove_items(index, ids)      compact_index     changes an index in place
    Recommender(run, index).rank(user=...)     index -> ranked items, with reasons
    event_of({...})     SqliteStore(path)      ValkeyStore(url)     event stores
    UserStates(run, index, store).ready(user)  store -> a user's current state
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from limerank.errors import did_you_mean

if TYPE_CHECKING:  # for type checkers and editors; at run time __getattr__ imports
    from limerank.data.dataset import Dataset as Dataset
    from limerank.data.description import load_spec as load_spec
    from limerank.data.events import event_of as event_of
    from limerank.data.prepare.job import prepare as prepare
    from limerank.data.spec import Spec as Spec
    from limerank.data.synthetic import simulate as simulate
    from limerank.data.synthetic.shop import simulate_shop as simulate_shop
    from limerank.errors import DataError as DataError
    from limerank.errors import FingerprintError as FingerprintError
    from limerank.errors import FormatError as FormatError
    from limerank.errors import LimerankError as LimerankError
    from limerank.errors import SpecError as SpecError
    from limerank.errors import StorageError as StorageError
    from limerank.errors import StoreError as StoreError
    from limerank.errors import UnknownError as UnknownError
    from limerank.evaluation.compare import compare as compare
    from limerank.evaluation.evaluate import evaluate as evaluate
    from limerank.index.building import build_index as build_index
    from limerank.index.changes import add_items as add_items
    from limerank.index.changes import change_items as change_items
    from limerank.index.changes import put_items as put_items
    from limerank.index.changes import remove_items as remove_items
    from limerank.index.changes import update_items as update_items
    from limerank.index.compaction import compact_index as compact_index
    from limerank.index.reading import Index as Index
    from limerank.models.config import ModelConfig as ModelConfig
    from limerank.models.config import TrainConfig as TrainConfig
    from limerank.ranking.recommender import Recommender as Recommender
    from limerank.runs.folder import load_run as load_run
    from limerank.serving.state import UserStates as UserStates
    from limerank.serving.stores import SqliteStore as SqliteStore
    from limerank.serving.stores import ValkeyStore as ValkeyStore
    from limerank.storage.fetching import fetch as fetch
    from limerank.storage.publishing import publish as publish
    from limerank.training.trainer import train as train
    from limerank.tuning.tuner import tune as tune

    __version__: str


_HOMES = {
    "DataError": "errors",
    "Dataset": "data.dataset",
    "FingerprintError": "errors",
    "FormatError": "errors",
    "Index": "index.reading",
    "LimerankError": "errors",
    "ModelConfig": "models.config",
    "Recommender": "ranking.recommender",
    "Spec": "data.spec",
    "SpecError": "errors",
    "SqliteStore": "serving.stores",
    "StorageError": "errors",
    "StoreError": "errors",
    "TrainConfig": "models.config",
    "UnknownError": "errors",
    "UserStates": "serving.state",
    "ValkeyStore": "serving.stores",
    "add_items": "index.changes",
    "build_index": "index.building",
    "change_items": "index.changes",
    "compact_index": "index.compaction",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluate",
    "event_of": "data.events",
    "fetch": "storage.fetching",
    "load_run": "runs.folder",
    "load_spec": "data.description",
    "prepare": "data.prepare.job",
    "publish": "storage.publishing",
    "put_items": "index.changes",
    "remove_items": "index.changes",
    "simulate": "data.synthetic",
    "simulate_shop": "data.synthetic.shop",
    "train": "training.trainer",
    "tune": "tuning.tuner",
    "update_items": "index.changes",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  (_HOMES lists the names)

if not TYPE_CHECKING:  # a type checker would take every name for one of the package

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("limerank")
        if name not in _HOMES:
            raise AttributeError(
                f"module 'limerank' has no attribute {name!r}{did_you_mean(name, __all__)}"
            )
        return getattr(importlib.import_module(f"limerank.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
