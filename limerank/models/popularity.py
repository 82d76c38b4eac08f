"""Popularity: items by ids and content, users by features, without histories."""

from __future__ import annotations

from torch import Tensor

from limerank.data.batch import Users
from limerank.models.config import DataShape, HeadConfig
from limerank.models.layers import HeadState, HeadTerms
from limerank.models.ranker import Ranker, plus


class PopularityConfig(HeadConfig):
    """Settings of the ranking without histories."""

    model: str = "popularity"


class Popularity(Ranker):
    """o = 0: the head reads t, u and c alone; t of an item that training has not seen is its
    content."""

    config: PopularityConfig

    def __init__(self, shape: DataShape, config: PopularityConfig) -> None:
        super().__init__(shape, config)
        del self.event_tower
        self.head = self.new_head()
        del self.head.from_links

    def encode_items(self, vectors_ud: Tensor) -> HeadTerms:
        return HeadTerms(self.head.from_item(vectors_ud))

    def user_state(self, users: Users, vectors_ud: Tensor) -> HeadState:
        return HeadState(self.head.from_request(*self.user_tower(users)))

    def score(self, state: HeadState, terms: HeadTerms, extra: Tensor | None = None) -> Tensor:
        return self.head(plus(terms.head + state.head[:, None], extra))
