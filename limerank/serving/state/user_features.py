"""Encodings that depend on a user's features alone: the same for all users with equal features."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from limerank.data.batch import Features, Users
from limerank.data.encoding import Encoding, encode, frame_of, read_vocabulary
from limerank.data.features import FeatureTable
from limerank.data.spec import Spec
from limerank.errors import DataError, UnknownError, did_you_mean
from limerank.runs.model import Trained
from limerank.validation import validate

CACHED_USERS = 512
"""Sets of user features whose encodings are cached."""


@dataclass(frozen=True)
class EncodedUser:
    """One set of user features, encoded.

    Attributes:
        digest: identifies the set.
        features: the encoded features, of one user.
        u: the user tower's output, [1, d]; [1, 0] of a model without one.
    """

    digest: bytes
    features: Features
    u: Tensor


class UserFeatureCache:
    """The most recently used encodings of users' features by one run. Safe in several threads.

    Args:
        trained: the model, and how its data's users were encoded.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self._ranker: Any = trained.ranker
        self._device = next(trained.ranker.parameters()).device
        self._cached: OrderedDict[bytes, EncodedUser] = OrderedDict()
        self._links: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, features: Mapping[str, Any]) -> None:
        """Refuse features of a user (columns of the user table) that the run cannot read.

        Stored features that another run cannot read count as unknown there.

        Raises:
            UnknownError: the user table has no such column.
            DataError: the column cannot have such a value.
        """
        known = self._columns
        wrong = [name for name in features if name not in known]
        if wrong:
            raise UnknownError(
                f"the user table has no column {', '.join(map(repr, wrong))}; it has "
                f"{', '.join(map(repr, known)) or 'none'}{did_you_mean(wrong[0], known)}"
            )
        self._table(features)

    def knows(self, features: Mapping[str, Any]) -> bool:
        """Whether the encoding of these features is cached."""
        with self._lock:
            return _digest(features) in self._cached

    def of(self, features: Mapping[str, Any]) -> EncodedUser:
        """The encoding of a user's features."""
        digest = _digest(features)
        with self._lock:
            if digest in self._cached:
                self._cached.move_to_end(digest)
                return self._cached[digest]
        encoded_user = self._encoded(digest, features)
        with self._lock:
            self._cached[digest] = encoded_user
            while len(self._cached) > CACHED_USERS:
                self._cached.popitem(last=False)
        return encoded_user

    @torch.inference_mode()
    def _encoded(self, digest: bytes, features: Mapping[str, Any]) -> EncodedUser:
        try:
            table = self._table(features)
        except DataError:
            table = FeatureTable.unknown(self.trained.manifest["encoding"]["users"])
        encoded = table.take(np.zeros(1, np.int64)).to(self._device)
        empty = torch.zeros((1, 0), dtype=torch.int64, device=self._device)
        users = Users(
            items=empty,
            tokens=empty[..., None],
            age=empty.float(),
            lengths=torch.zeros(1).long(),
            features=encoded,
            context=empty,
        )
        fitted = self._ranker.fitted  # such a model has no towers
        u_bd: Tensor = torch.zeros(1, 0) if fitted else self._ranker.user_tower(users)[0]
        return EncodedUser(digest, encoded, u_bd)

    @torch.inference_mode()
    def links(self, encoded_user: EncodedUser) -> tuple[Tensor, Tensor]:
        """LIME-MHA: contextualised links [1, l, d] and their queries [H, l, e]."""
        with self._lock:
            found = self._links.get(encoded_user.digest)
        if found is None:
            links_bld = self._ranker.contextualise(encoded_user.u)
            q_bhle = self._ranker.reading.queries(links_bld)
            found = links_bld, q_bhle[0]
            with self._lock:
                self._links[encoded_user.digest] = found
                while len(self._links) > CACHED_USERS:
                    self._links.popitem(last=False)
        return found

    def _table(self, features: Mapping[str, Any]) -> FeatureTable:
        encoding = self.trained.manifest["encoding"]["users"]
        spec, known = self._spec.users, self._columns
        if spec is None or all(features.get(name) is None for name in known):
            return FeatureTable.unknown(encoding)
        try:
            frame = frame_of(spec, [features], ids=False)
            found = encode(
                frame, spec.features, Encoding(encoding, self._vocabularies), pl.Series(["user"])
            )
        except DataError as error:
            raise DataError(
                f"the features {dict(features)!r:.200} cannot be read: {error}"
            ) from None
        return FeatureTable(found.tokens, found.weights, found.offsets, found.numeric)

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        """Columns of the user table."""
        spec = self._spec.users
        return () if spec is None else tuple(dict.fromkeys(f.column for f in spec.features))

    @cached_property
    def _spec(self) -> Spec:
        return validate(Spec, self.trained.manifest["spec"], str(self.trained.path))

    @cached_property
    def _vocabularies(self) -> dict[str, pl.DataFrame]:
        features = () if self._spec.users is None else self._spec.users.features
        return {
            feature.name: read_vocabulary(self.trained.path, f"user_{feature.name}")
            for feature in features
            if feature.kind == "categorical"
        }


def _digest(features: Mapping[str, Any]) -> bytes:
    text = json.dumps(features, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
