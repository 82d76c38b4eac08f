"""Every model by its name: its class, the class of its configuration, and what it can do.

Adding a model takes a file with both classes and one line at the end of this one. A module outside
of the package adds models by :func:`register`; it has to be imported before a run of such a model
is trained or opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from limerank.errors import check_choice
from limerank.models.config import CONFIG_CLASSES, DataShape, ModelConfig
from limerank.models.din import Din, DinConfig
from limerank.models.hstu import Hstu, HstuConfig
from limerank.models.item_knn import ItemKnn, ItemKnnConfig
from limerank.models.lime import LimeMha
from limerank.models.lime_xor import LimeXor, LimeXorConfig
from limerank.models.linformer import LowRankAttention, LreaConfig
from limerank.models.links import LimeMhaConfig
from limerank.models.most_popular import MostPopular, MostPopularConfig
from limerank.models.popularity import Popularity, PopularityConfig
from limerank.models.ranker import Ranker
from limerank.models.sasrec import SasRec, SasRecConfig
from limerank.models.target_attention import (
    MhaConfig,
    TargetAttention,
    TruncatedAttention,
    TruncatedMhaConfig,
)
from limerank.models.two_tower import TwoTower, TwoTowerConfig


@dataclass(frozen=True)
class Model:
    """A registered model."""

    name: str
    ranker: type[Ranker]
    config: type[ModelConfig]

    @property
    def abilities(self) -> tuple[str, ...]:
        """What the model can do beyond ranking; see the class attributes of
        :class:`~limerank.models.ranker.Ranker`: "folds", "streams", "explains"."""
        return tuple(one for one in ("folds", "streams", "explains") if getattr(self.ranker, one))


MODELS: dict[str, Model] = {}
"""Name -> model, in the order in which help lists them."""


def register(name: str, ranker: type[Ranker], config: type[ModelConfig]) -> None:
    """Add a model.

    Args:
        name: what ``--model`` and ``ModelConfig(model=...)`` call it.
        ranker: its class; its arguments are a :class:`~limerank.models.config.DataShape` and a
            ``config``.
        config: the class of its configuration, with that name as the default of ``model``, or of
            several models that share their settings.

    Raises:
        TypeError: an argument is not of these types, or the name is empty.
        ValueError: another model has this name.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a model is a non-empty text; got {name!r}")
    for what, given, base in (("ranker", ranker, Ranker), ("config", config, ModelConfig)):
        if not isinstance(given, type) or not issubclass(given, base):
            raise TypeError(
                f"{what} of model {name!r}: expected a subclass of {base.__name__}; got {given!r}"
            )
    model = Model(name, ranker, config)
    if MODELS.setdefault(name, model) != model:
        raise ValueError(
            f"a model named {name!r} is already registered, of class "
            f"{MODELS[name].ranker.__name__}; choose another name"
        )
    CONFIG_CLASSES[name] = config


def model_of(name: str) -> Model:
    """The model of this name.

    Raises:
        SpecError: no model is registered under this name.
    """
    check_choice("model", name, MODELS)
    return MODELS[name]


def build(shape: DataShape, config: ModelConfig) -> Ranker:
    """A new ranker with random weights (torch's global generator)."""
    return model_of(config.model).ranker(shape, config)


register("lime-mha", LimeMha, LimeMhaConfig)
register("lime-xor", LimeXor, LimeXorConfig)
register("popularity", Popularity, PopularityConfig)
register("two-tower", TwoTower, TwoTowerConfig)
register("truncated-mha", TruncatedAttention, TruncatedMhaConfig)
register("lrea", LowRankAttention, LreaConfig)
register("din", Din, DinConfig)
register("sasrec", SasRec, SasRecConfig)
register("mha", TargetAttention, MhaConfig)
register("hstu", Hstu, HstuConfig)

OF_THE_PACKAGE = tuple(MODELS)
"""Names of the trained models that come with the package; others may be registered later."""

register("most-popular", MostPopular, MostPopularConfig)
register("item-knn", ItemKnn, ItemKnnConfig)

FITTED = tuple(name for name in MODELS if name not in OF_THE_PACKAGE)
"""Names of the models of the package that are fitted by counting."""
