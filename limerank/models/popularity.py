"""What everybody gets: items by their ids and content, users by their features, and no history."""

from __future__ import annotations

from torch import Tensor

from limerank.data.batch import Users
from limerank.models.config import DataShape, ModelConfig
from limerank.models.layers import HeadTerms
from limerank.models.ranker import Ranker


class Popularity(Ranker):
    """o = 0: the head sees t, u and c alone. Of an item that training has not seen, its content."""

    def __init__(self, shape: DataShape, config: ModelConfig) -> None:
        super().__init__(shape, config)
        del self.event_tower
        self.head = self.new_head()
        del self.head.from_links

    def encode_items(self, vectors_ud: Tensor) -> HeadTerms:
        return HeadTerms(self.head.from_item(vectors_ud))

    def encode_users(self, users: Users, vectors_ud: Tensor) -> HeadTerms:
        return HeadTerms(self.head.from_request(*self.user_tower(users)))

    def score(self, state: HeadTerms, terms: HeadTerms) -> Tensor:
        return self.head(terms.head + state.head[:, None])
