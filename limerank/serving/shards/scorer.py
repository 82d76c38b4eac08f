"""The scorer of a front: rankings of the full catalogue by its shards, all else by itself."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from limerank.errors import FormatError, ShardError, SpecError
from limerank.parts import Part
from limerank.ranking.scorer import Scorer, TopK
from limerank.serving.shards.client import Shards
from limerank.serving.shards.wire import HIDDEN, NOTHING, Answer, Question, Rows, tensors_of

log = logging.getLogger("limerank.serving")


@contextlib.contextmanager
def missing_shards(scorer: Scorer, partial: bool) -> Iterator[set[int]]:
    """:meth:`ShardedScorer.asked` of any scorer: without shards, none is missing."""
    if isinstance(scorer, ShardedScorer):
        with scorer.asked(partial) as missing:
            yield missing
    else:
        yield set()


def left_out(scorer: Scorer, missing: Collection[int]) -> int:
    """How many items a ranking of the full catalogue lacks without the shards ``missing``."""
    return scorer.ranked_by(missing) if isinstance(scorer, ShardedScorer) and missing else 0


class ShardedScorer(Scorer):
    """Scores with the servers of the shards of an index.

    They rank the rows that the index had when it was split. Rows that live items added since are
    ranked by the scorer of the front itself, and rows that were hidden since are excluded from the
    questions. Candidates, and single scores, are computed by the front from its own index.

    Args:
        local: a scorer over the full index.
        fingerprint: of the run.
        shards: the servers.
    """

    name = "sharded"

    def __init__(self, local: Scorer, fingerprint: str, shards: Shards) -> None:
        super().__init__(local.ranker, local.index)
        self.local, self.shards, self._fingerprint = local, shards, fingerprint
        self._of_request = threading.local()
        self._learning = threading.Lock()
        self._total: int | None = None
        self._hidden_since: dict[int, Rows] = {}

    @contextlib.contextmanager
    def asked(self, partial: bool) -> Iterator[set[int]]:
        """How rankings of this thread treat shards that do not answer, while the block runs.

        Args:
            partial: leave their items out; otherwise it is an error.

        Yields:
            The numbers of those that were left out, so far.
        """
        missing: set[int] = set()
        self._of_request.missing = missing if partial else None
        try:
            yield missing
        finally:
            self._of_request.missing = None

    def ranked_by(self, numbers: Collection[int]) -> int:
        """How many items the shards of these numbers rank; hidden ones do not count."""
        total = 0 if self._total is None else self._total
        shards = [Part(number, len(self.shards)).range(total) for number in numbers]
        hidden = np.asarray(self.index.hidden)
        return sum(
            len(rows) - int(np.count_nonzero((hidden >= rows.start) & (hidden < rows.stop)))
            for rows in shards
        )

    def check(self) -> None:
        """Learn which rows the shards rank and hide, of all that answer.

        Raises:
            ShardError: none answers.
            FormatError: they were split from another index, or serve another run.
        """
        errors = self._learn([*range(1, len(self.shards) + 1)])
        if self._total is None:
            text = f"none of the {len(self.shards)} shards answers"
            first = f": {errors[0].detail}" if errors else ""
            raise ShardError(text, detail=f"{text}{first}. Start their servers, then this one")

    def ping(self) -> list[int]:
        """Ask all shards whether they answer; the numbers of those that do not.

        Raises:
            ShardError: none does.
        """
        found = self.shards.ask([self._plain(n, NOTHING) for n in range(1, len(self.shards) + 1)])
        errors = [one for one in found if isinstance(one, ShardError)]
        if len(errors) == len(found):
            raise errors[0]
        return [n for n, one in enumerate(found, 1) if isinstance(one, ShardError)]

    def scores(
        self,
        state: Any,
        rows: ArrayLike | slice | None = None,
        *,
        extra: Tensor | None = None,
    ) -> NDArray[np.float32]:
        if rows is None:
            raise SpecError(
                "boosts of the full catalogue are not ranked through shards: give candidates, or a "
                "filter"
            )
        return self.local.scores(state, rows, extra=extra)

    def top(
        self,
        state: Any,
        k: int,
        *,
        weights: ArrayLike | None = None,
        rows: ArrayLike | slice | None = None,
        exclude: Sequence[ArrayLike] | None = None,
        allow: NDArray[np.bool_] | None = None,
        extra: Tensor | None = None,
    ) -> TopK:
        """As of any scorer, for one request; without candidates the shards rank.

        Raises:
            ShardError: a shard does not answer, and the request takes no partial answer
                (:meth:`asked`); or none answers.
        """
        if rows is not None or extra is not None:
            return self.local.top(
                state, k, weights=weights, rows=rows, exclude=exclude, allow=allow, extra=extra
            )
        k = min(self._checked_k(k), len(self))
        of_tasks = self._weights(weights, 1)[0]
        allowed = self._allowed(allow, 1)
        if allowed is not None and allowed.ndim == 2:
            allowed = allowed[0]
        excluded = np.zeros(0, np.int64)
        if exclude is not None:
            if len(exclude) != 1:
                raise SpecError(f"shards rank for one request at a time, got {len(exclude)}")
            excluded = np.unique(self._checked(exclude[0]))
        found = self._answers(k, of_tasks, tensors_of(state), excluded, allowed)
        assert self._total is not None
        parts = [(one.rows, one.values, one.logits) for one in found]
        if len(self) > self._total:
            late = slice(self._total, len(self))
            top = self.local.top(state, k, weights=weights, rows=late, exclude=exclude, allow=allow)
            held = top.rows[0] >= 0
            parts.append((top.rows[0][held], top.values[0][held], top.logits[0][held]))
        all_rows, values, logits = (np.concatenate(of) for of in zip(*parts, strict=True))
        order = np.lexsort((all_rows, -values))[:k]
        return TopK(all_rows[order][None], values[order][None], logits[order][None])

    def _answers(
        self,
        k: int,
        weights: NDArray[np.float32],
        state: dict[str, Tensor],
        excluded: Rows,
        allowed: NDArray[np.bool_] | None,
    ) -> list[Answer]:
        of = len(self.shards)
        unknown = [number for number in range(1, of + 1) if number not in self._hidden_since]
        if unknown:
            self._learn(unknown)
        if self._total is None:
            raise ShardError(f"none of the {of} shards answers; try again")
        questions: list[bytes | None] = []
        for number in range(1, of + 1):
            mine = Part(number, of).range(self._total)
            if number not in self._hidden_since:
                questions.append(None)
                continue
            low, high = np.searchsorted(excluded, [mine.start, mine.stop])
            out = np.union1d(excluded[low:high], self._hidden_since[number])
            may = None if allowed is None else allowed[mine.start : mine.stop]
            questions.append(self._question(number, k, weights, state, out, may))
        found = self.shards.ask(questions)
        answers, failed = [], {}
        for number, one in enumerate(found, 1):
            if isinstance(one, Answer) and one.total == self._total:
                answers.append(one)
            elif isinstance(one, Answer):
                failed[number] = ShardError(
                    f"shard {number} of {of} was split again: restart the server that asks it"
                )
            else:
                failed[number] = one or ShardError(f"shard {number} of {of} does not answer")
        missing: set[int] | None = getattr(self._of_request, "missing", None)
        for number, error in failed.items():
            log.error("%s", error.detail)
            if missing is None or not answers:
                raise error
            missing.add(number)
        return answers

    def _question(
        self,
        number: int,
        k: int,
        weights: NDArray[np.float32],
        state: dict[str, Tensor],
        exclude: Rows,
        allow: NDArray[np.bool_] | None,
    ) -> bytes:
        return Question(
            self._fingerprint,
            self.index.base,
            number,
            len(self.shards),
            k,
            weights,
            state,
            exclude,
            allow,
        ).to_bytes()

    def _plain(self, number: int, what: int) -> bytes:
        """A question without a user."""
        weights = np.zeros(self.tasks, np.float32)
        return self._question(number, what, weights, {}, np.zeros(0, np.int64), None)

    def _learn(self, numbers: Sequence[int]) -> list[ShardError]:
        """Ask some shards which rows they rank and hide; the errors of those that do not answer.

        Raises:
            FormatError: a shard is of another index or run.
        """
        errors = []
        with self._learning:
            questions = [
                self._plain(number, HIDDEN)
                if number in numbers and number not in self._hidden_since
                else None
                for number in range(1, len(self.shards) + 1)
            ]
            for number, one in enumerate(self.shards.ask(questions), 1):
                if isinstance(one, ShardError):
                    log.error("%s", one.detail)
                    errors.append(one)
                if not isinstance(one, Answer):
                    continue
                if one.total > len(self) or self._total not in (None, one.total):
                    raise FormatError(
                        f"shard {number} divides an index of {one.total:,} rows, this one has "
                        f"{len(self):,}; serve the shards of this index"
                    )
                mine = Part(number, len(self.shards)).range(one.total)
                low, high = np.searchsorted(self.index.hidden, [mine.start, mine.stop])
                self._total = one.total
                self._hidden_since[number] = np.setdiff1d(
                    self.index.hidden[low:high].astype(np.int64), one.rows
                )
        return errors
