"""The server of a shard: its best items for the state of a user of another server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from limerank.errors import SpecError, UnknownError
from limerank.models.anchors import Anchored
from limerank.ranking.scorer import Scorer
from limerank.serving.shards.wire import HIDDEN, Answer, Question, state_of


class ShardRanker:
    """Answers questions with one version of a shard.

    Args:
        scorer: over the shard.
        fingerprint: of the run.
        like: a state of the run's model.

    Raises:
        SpecError: the index is no shard.
    """

    def __init__(self, scorer: Scorer, fingerprint: str, like: Any) -> None:
        if scorer.index.shard is None:
            raise SpecError(
                "the index of this server is not a shard; split an index with limerank index "
                "--shards, and serve one of its shards here"
            )
        self.scorer, self.shard = scorer, scorer.index.shard
        self._fingerprint, self._like = fingerprint, like

    def answer(self, data: bytes) -> bytes:
        """The answer to a question.

        Raises:
            SpecError: it is not a question to this shard of this index and run, or is malformed.
        """
        shard, index = self.shard, self.scorer.index
        asked = Question.from_bytes(data, shard.rows)
        self._check(asked)
        tasks = self.scorer.tasks
        if asked.k <= 0:
            hidden = np.zeros(0, np.int64)
            if asked.k == HIDDEN:
                hidden = index.hidden[index.hidden < shard.rows].astype(np.int64) + shard.first
            none = np.zeros(len(hidden), np.float32)
            return Answer(
                shard.total, hidden, none, np.zeros((len(hidden), tasks), np.float32)
            ).to_bytes()
        state = state_of(self._like, asked.state)
        if state.anchored is not None:
            state = state._replace(anchored=self._own_links(state.anchored))
        allow = None
        if asked.allow is not None:
            allow = np.zeros(len(index), bool)
            allow[: shard.rows] = asked.allow
        exclude = asked.exclude - shard.first
        try:
            top = self.scorer.top(
                state, asked.k, weights=asked.weights, exclude=[exclude], allow=allow
            )
        except (UnknownError, IndexError, RuntimeError, ValueError) as error:
            raise SpecError(f"the question does not fit the model of the shard: {error}") from None
        found = top.rows[0] >= 0
        rows = top.rows[0][found] + shard.first
        return Answer(shard.total, rows, top.values[0][found], top.logits[0][found]).to_bytes()

    def _check(self, asked: Question) -> None:
        shard = self.shard
        expected: dict[str, Any] = {"run": self._fingerprint, "base": shard.base}
        expected |= {"number": shard.number, "of": shard.of}
        for name, value in expected.items():
            if getattr(asked, name) != value:
                what = {"run": "run", "base": "index"}.get(name, "shard")
                raise SpecError(
                    f"this server has {shard} of another {what}: {name} {value}, asked for "
                    f"{getattr(asked, name)}; serve the same run and the shards of one index"
                )
        if asked.k < HIDDEN:
            raise SpecError(f"k is {asked.k}, expected 1 or more")

    def _own_links(self, anchored: Anchored) -> Anchored:
        """The anchored links of a user with the rows of the shard as keys of items.

        The links of all other items become one, of the shard's further row, with the largest
        magnitude of each number: the steps of codes follow from the largest links of all items.
        """
        anchors, shard = self.scorer.index.anchors, self.shard
        keys, links = anchored.keys, anchored.links
        held = keys.dim() == 1 and links.dim() == 2 and len(keys) == len(links)
        ends = anchored.offsets.tolist()
        if anchors is None or not held or ends != [0, len(keys)] or bool((keys.diff() <= 0).any()):
            raise SpecError("the anchored links of the state are not those of one user")
        rows = keys - anchors.item_tokens
        is_value = rows < 0
        here = (rows >= shard.first) & (rows < shard.first + shard.rows)
        others = ~is_value & ~here
        parts = [(keys[is_value], links[is_value]), (keys[here] - shard.first, links[here])]
        if bool(others.any()) and shard.of > 1:
            other = torch.tensor([anchors.item_tokens + shard.rows])
            parts.append((other, links[others].abs().amax(0, keepdim=True)))
        found = torch.cat([part for part, _ in parts])
        return replace(
            anchored,
            offsets=torch.tensor([0, len(found)]),
            keys=found,
            links=torch.cat([part for _, part in parts]),
        )
