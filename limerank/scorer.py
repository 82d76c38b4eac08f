"""User states meet the items of an index: scores, and the best k.

Two scorers stand behind one interface, and the caller says which:

- :class:`ModelScorer`: the model itself in float32, for any ranker. The reference.
- :class:`QuantisedScorer`: LIME over the bytes of the index, in the integer arithmetic that a
  native kernel does, so that whatever computes it gives the same sums. Its definition, for one
  request with folded links ``F`` [C, g] (C = H l) and user terms ``U`` [g]::

      F0  = F - mean of F over the links of each head      # shares of a head sum to one
      M   = weight_step * F0
      s   = max over C of |M| / 127                        # per first-layer sum
      Q   = round(M / s)                                   # i8 [C, g]
      c   = U + sum over heads of the means + weight_low F0 + term_middle + weight_mean (M - s Q)
      a_i = s * (codes_i Q) + term_step * term_codes_i + c           # codes_i Q in integers
      logits_i = head(a_i)

  What the subtracted means and ``weight_mean`` take away are errors that all items share; they
  go where they are exact, to the user's side.

  Error bound, per first-layer sum: ``|a - a_float| <= sum_C (weight_step / 2) |F0| +
  sum_C |codes - weight_mean| s / 2 + term_step / 2`` (:meth:`QuantisedScorer.bound`); what it
  costs in quality is measured by :func:`quantisation_report`.

Tasks combine into one ranking value as a weighted sum of their logits, ``sum_k w_k logit_k``: of
probabilities and expected durations it ranks by their odds and seconds multiplied, each raised to
its weight. Without weights the first task alone ranks.

Shape letters: B requests, n items, m items of a chunk, K tasks, C = H l link weights, g first-layer
sums of the head.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from limerank import metrics
from limerank.checkpoint import Run
from limerank.dataset import Dataset
from limerank.errors import FingerprintError, SpecError, UnknownError
from limerank.index import Index
from limerank.models import Lime, Ranker
from limerank.models.ranker import gather
from limerank.progress import Bar

Rows = NDArray[np.int64]

CHUNK_NUMBERS = 1 << 21
"""First-layer sums (or item terms) held at once, about."""
EXACT_COLUMNS = 512
"""Of u8 x i8 products that a float32 sums without rounding: 512 * 255 * 127 < 2 ** 24."""
ABSENT = torch.iinfo(torch.int64).min
"""The key of a place that no item takes."""


class TopK(NamedTuple):
    """The best items of B requests, best first; of equal values the lower row comes first.

    There are min(k, number of candidates that are not hidden) places. Where exclusions leave a
    request fewer items than that, the places behind them hold row -1, value -inf and logits NaN.

    Attributes:
        rows: index rows, i64 [B, k].
        values: ranking values, f32 [B, k].
        logits: f32 [B, k, K].
    """

    rows: Rows
    values: NDArray[np.float32]
    logits: NDArray[np.float32]


class Scorer(abc.ABC):
    """Scores requests against the items of an index.

    Implementations give :meth:`_requests` and :meth:`_logits`; or, where they are faster as a
    whole, :meth:`scores` and :meth:`top` themselves, which the contract suite holds to the same
    results.
    """

    name: str
    """What a report calls it."""

    def __init__(self, ranker: Ranker, index: Index) -> None:
        if index.model != ranker.config.model or index.vectors.shape[1] != ranker.config.width:
            raise FingerprintError(
                f"{index.path} was built by a {index.model} of width {index.vectors.shape[1]}, "
                f"not by a {ranker.config.model} of width {ranker.config.width}"
            )
        self.ranker, self.index = ranker, index
        self.tasks = len(ranker.shape.tasks)

    def __len__(self) -> int:
        return len(self.index)

    @torch.inference_mode()
    def scores(self, state: Any, rows: ArrayLike | None = None) -> NDArray[np.float32]:
        """Logits f32 [B, n, K].

        Args:
            state: of the ranker's ``encode_users``, B requests.
            rows: index rows to score: [n], the same for every request, or [B, n], each request's
                own; all of the index when not given.

        Raises:
            UnknownError: a row is out of range.
        """
        requests = self._requests(state)
        batch = len(state[0])
        chosen = None if rows is None else self._checked(rows)
        if chosen is not None and chosen.ndim == 2 and len(chosen) != batch:
            raise SpecError(f"rows are for {len(chosen)} requests, the state is of {batch}")
        count = len(self) if chosen is None else chosen.shape[-1]
        out = np.empty((batch, count, self.tasks), dtype=np.float32)
        for low, high in self._chunks(state, count):
            part = slice(low, high) if chosen is None else chosen[..., low:high]
            out[:, low:high] = self._logits(requests, part).cpu().numpy()
        return out

    @torch.inference_mode()
    def top(
        self,
        state: Any,
        k: int,
        *,
        weights: ArrayLike | None = None,
        rows: ArrayLike | None = None,
        exclude: Sequence[ArrayLike] | None = None,
        allow: NDArray[np.bool_] | None = None,
    ) -> TopK:
        """The best k items of each request; rows that the index hides are never among them.

        Args:
            state: of the ranker's ``encode_users``, B requests.
            k: how many.
            weights: of the tasks' logits in the ranking value, [K] or [B, K]; the first task
                alone when not given.
            rows: the candidates, a set of index rows; all of the index when not given.
            exclude: per request, index rows to leave out.
            allow: which items of the index may be ranked, bool [n] or [B, n].

        Raises:
            UnknownError: a row is out of range.
            SpecError: k is below 1, or an argument does not fit the number of requests, tasks or
                items.
        """
        batch = len(state[0])
        weights_bk = torch.from_numpy(self._weights(weights, batch))
        if k < 1:
            raise SpecError(f"k is {k}, expected at least 1")
        chosen = None if rows is None else np.unique(self._checked(rows))
        allowed_bn = None
        if allow is not None:
            allow = np.asarray(allow)
            if allow.dtype != np.bool_ or allow.shape not in ((len(self),), (batch, len(self))):
                raise SpecError(
                    f"allow is {allow.dtype} {list(allow.shape)}, expected bool [{len(self)}] or "
                    f"[{batch}, {len(self)}]"
                )
            if allow.ndim == 1:
                chosen = np.flatnonzero(allow) if chosen is None else chosen[allow[chosen]]
        hidden = self.index.hidden
        if chosen is not None:
            chosen, hidden = np.setdiff1d(chosen, hidden, assume_unique=True), hidden[:0]
        if allow is not None and allow.ndim == 2:
            allowed_bn = allow if chosen is None else allow[:, chosen]
        count = len(self) if chosen is None else len(chosen)
        gone_b, gone_at = self._excluded(exclude, chosen, batch)
        requests = self._requests(state)
        k = min(k, count - len(hidden))
        best = torch.full((batch, k), ABSENT)
        logits = torch.full((batch, k, self.tasks), float("nan"))
        for low, high in self._chunks(state, count):
            part = slice(low, high) if chosen is None else chosen[low:high]
            found_bmk = self._logits(requests, part).cpu()
            keys_bm = _keys((found_bmk * weights_bk[:, None]).sum(-1), low)
            first, last = np.searchsorted(gone_at, [low, high])
            keys_bm[gone_b[first:last], torch.from_numpy(gone_at[first:last] - low)] = ABSENT
            first, last = np.searchsorted(hidden, [low, high])
            keys_bm[:, torch.from_numpy(hidden[first:last].astype(np.int64) - low)] = ABSENT
            if allowed_bn is not None:
                keys_bm[torch.from_numpy(~allowed_bn[:, low:high])] = ABSENT
            # What beats the k-th best so far is picked from the chunk, then merged with the best.
            size = min(k, high - low)
            new, at = keys_bm.topk(size, sorted=False)
            new_logits = found_bmk.gather(1, at[..., None].expand(-1, -1, self.tasks))
            best, order = torch.cat([best, new], 1).topk(k)
            logits = torch.cat([logits, new_logits], 1).gather(
                1, order[..., None].expand(-1, -1, self.tasks)
            )
        places, values = _unpack(best)
        missing = best == ABSENT
        values[missing] = float("-inf")
        logits[missing] = float("nan")
        found = places.numpy()
        if chosen is not None and len(chosen):
            found = chosen[np.where(missing, 0, found)]
        return TopK(np.where(missing, -1, found), values.numpy(), logits.numpy())

    def bound(self, state: Any) -> NDArray[np.float32]:
        """Largest error of a first-layer sum of each request against the model, f32 [B, g]."""
        raise NotImplementedError(f"the {self.name} scorer has no stated bound")

    @abc.abstractmethod
    def _requests(self, state: Any) -> Any:
        """Whatever is computed once per request."""

    @abc.abstractmethod
    def _logits(self, requests: Any, rows: slice | Rows) -> Tensor:
        """Logits [B, m, K] of a range of items, of rows [m], or of each request's own [B, m]."""

    def _chunks(self, state: Any, count: int) -> Iterator[tuple[int, int]]:
        size = max(256, CHUNK_NUMBERS // (max(len(state[0]), 1) * self.ranker.scratch(state)))
        return ((low, min(low + size, count)) for low in range(0, count, size))

    def _checked(self, rows: ArrayLike) -> Rows:
        found = np.asarray(rows)
        if found.size == 0:
            return np.zeros(found.shape if found.ndim else (0,), np.int64)
        if found.dtype.kind not in "iu" or found.ndim not in (1, 2):
            raise SpecError(f"rows are {found.dtype} {list(found.shape)}, expected integers")
        wrong = found[(found < 0) | (found >= len(self))]
        if len(wrong):
            raise UnknownError(f"the index has rows 0 .. {len(self) - 1}; got {int(wrong[0])}")
        return found.astype(np.int64)

    def _weights(self, weights: ArrayLike | None, batch: int) -> NDArray[np.float32]:
        if weights is None:
            return np.eye(1, self.tasks, dtype=np.float32)
        found = np.asarray(weights, dtype=np.float32)
        if found.shape not in ((self.tasks,), (batch, self.tasks)) or not np.isfinite(found).all():
            raise SpecError(
                f"task weights are {found.tolist()}, expected one finite number for each of the "
                f"{self.tasks} tasks"
            )
        return found.reshape(-1, self.tasks)

    def _excluded(
        self, exclude: Sequence[ArrayLike] | None, chosen: Rows | None, batch: int
    ) -> tuple[Tensor, Rows]:
        """(request, place among the candidates) of what is left out, in order of the places."""
        if exclude is None:
            return torch.zeros(0, dtype=torch.int64), np.zeros(0, np.int64)
        if len(exclude) != batch:
            raise SpecError(f"exclude is for {len(exclude)} requests, the state is of {batch}")
        parts = [self._checked(rows).ravel() for rows in exclude]
        request = np.repeat(np.arange(batch), [len(part) for part in parts])
        at = np.concatenate([np.zeros(0, np.int64), *parts])
        if chosen is not None:
            place = np.searchsorted(chosen, at)
            held = place < len(chosen)
            held[held] = chosen[place[held]] == at[held]
            request, at = request[held], place[held]
        order = np.argsort(at, kind="stable")
        return torch.from_numpy(request[order]), at[order]


def _keys(values_bm: Tensor, first: int) -> Tensor:
    """i64 keys whose order is: greater value, then lower place. NaN comes last."""
    values_bm = values_bm.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    bits = (values_bm + 0.0).view(torch.int32)  # + 0.0: -0 equals 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    places = torch.arange(first, first + values_bm.shape[1])
    return (bits.long() << 32) | (0xFFFFFFFF - places)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values that keys were made of."""
    places = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    bits = (keys >> 32).int()
    return places, (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32).clone()


class ModelScorer(Scorer):
    """The model's own float32 arithmetic over the item vectors of an index.

    Args:
        keep: encode all items now and keep their terms in memory; else each call encodes the
            items that it scores.
    """

    name = "model"

    def __init__(self, ranker: Ranker, index: Index, *, keep: bool = False) -> None:
        super().__init__(ranker, index)
        self._kept: Any = None
        if keep:
            size = 65536
            with torch.inference_mode():
                parts = [self._terms(slice(at, at + size)) for at in range(0, len(index), size)]
                parts = parts or [self._terms(slice(0, 0))]
                self._kept = type(parts[0])(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _requests(self, state: Any) -> Any:
        return state

    def _terms(self, rows: slice | Rows) -> Any:
        device = next(self.ranker.parameters()).device
        vectors_ud = torch.from_numpy(np.array(self.index.vectors[rows], dtype=np.float32))
        return self.ranker.encode_items(vectors_ud.to(device))

    def _logits(self, requests: Any, rows: slice | Rows) -> Tensor:
        if isinstance(rows, slice):
            terms = self._terms(rows) if self._kept is None else _take(self._kept, rows)
        elif self._kept is not None:
            terms = gather(self._kept, torch.from_numpy(rows).to(self._kept[0].device))
        else:
            distinct, places = np.unique(rows, return_inverse=True)
            terms = self._terms(distinct)
            at = torch.from_numpy(places.reshape(rows.shape)).to(terms[0].device)
            terms = gather(terms, at)
        logits: Tensor = self.ranker.score(requests, terms)
        return logits


def _take(terms: Any, rows: slice) -> Any:
    return type(terms)(*(part[rows] for part in terms))


class _Folded(NamedTuple):
    """Of each request, what :class:`QuantisedScorer` computes once."""

    codes: Tensor  # Q as float32 [B, C, g]
    step: Tensor  # s [B, 1, g]
    constant: Tensor  # c [B, 1, g]


class QuantisedScorer(Scorer):
    """LIME over the bytes of an index; see the module's text for the arithmetic.

    Raises:
        SpecError: the model has no links.
    """

    name = "quantised"

    def __init__(self, ranker: Ranker, index: Index) -> None:
        super().__init__(ranker, index)
        if not isinstance(ranker, Lime) or index.scales is None:
            raise SpecError(
                f"the quantised scorer is for LIME models; the {ranker.config.model} is scored by "
                "the model scorer"
            )
        assert index.weights is not None and index.terms is not None
        self.lime: Lime = ranker
        self._codes_nc, self._terms_ng = index.weights, index.terms
        low_c, step_c, mean_c, middle_g, term_step_g = (
            torch.from_numpy(getattr(index.scales, name))
            for name in ("weight_low", "weight_step", "weight_mean", "term_middle", "term_step")
        )
        self._low_c1, self._step_c1, self._mean_c1 = (
            low_c[:, None],
            step_c[:, None],
            mean_c[:, None],
        )
        self._middle_g, self._term_step_g = middle_g, term_step_g
        self._spread = index.scales.weight_spread

    def _requests(self, state: Any) -> _Folded:
        folded_bcg = self.lime.fold(state).float().cpu()
        heads = folded_bcg.unflatten(1, (self.lime.config.heads, -1))
        means_bh1g = heads.mean(2, keepdim=True)
        centred_bcg = (heads - means_bh1g).flatten(1, 2)
        user_bg = state.head.float().cpu() + means_bh1g.sum((1, 2)) + self._middle_g
        user_bg = user_bg + (self._low_c1 * centred_bcg).sum(1)
        matrix_bcg = self._step_c1 * centred_bcg
        step_b1g = matrix_bcg.abs().amax(1, keepdim=True) / 127
        step_b1g = torch.where(step_b1g > 0, step_b1g, 1.0)
        codes_bcg = (matrix_bcg / step_b1g).round()
        user_bg = user_bg + (self._mean_c1 * (matrix_bcg - step_b1g * codes_bcg)).sum(1)
        return _Folded(codes_bcg, step_b1g, user_bg[:, None])

    def bound(self, state: Any) -> NDArray[np.float32]:
        heads = self.lime.fold(state).float().cpu().unflatten(1, (self.lime.config.heads, -1))
        centred_bcg = (heads - heads.mean(2, keepdim=True)).flatten(1, 2).abs()
        step_bg = (self._step_c1 * centred_bcg).amax(1) / 127
        of_weights_bg = (self._step_c1 * centred_bcg).sum(1) / 2
        bound_bg = of_weights_bg + self._spread * step_bg / 2 + self._term_step_g / 2
        found: NDArray[np.float32] = bound_bg.numpy()
        return found

    def _logits(self, requests: _Folded, rows: slice | Rows) -> Tensor:
        codes_mc = torch.from_numpy(self._codes_nc[rows].astype(np.float32))
        terms_mg = torch.from_numpy(self._terms_ng[rows].astype(np.float32)) * self._term_step_g
        sums_bmg = integer_products(codes_mc, requests.codes)
        first_bmg = sums_bmg * requests.step + (terms_mg + requests.constant)
        device = self.lime.head.out.weight.device
        logits: Tensor = self.lime.head(first_bmg.to(device))
        return logits


def integer_products(codes: Tensor, matrix_bcg: Tensor) -> Tensor:
    """Exact products of u8 codes [m, C] or [B, m, C] with i8 [B, C, g], all held as float32.

    The sums are the integers that a native kernel adds up, rounded to float32 once at most.
    """
    width = matrix_bcg.shape[1]
    if width > EXACT_COLUMNS:
        total = torch.zeros((), dtype=torch.float64)
        for at in range(0, width, EXACT_COLUMNS):
            part = slice(at, at + EXACT_COLUMNS)
            total = total + integer_products(codes[..., part], matrix_bcg[:, part]).double()
        return total.float()
    if codes.dim() == 3 or len(matrix_bcg) == 1:
        return codes @ matrix_bcg
    sums_mx = codes @ matrix_bcg.transpose(0, 1).flatten(1)
    return sums_mx.unflatten(1, (len(matrix_bcg), -1)).transpose(0, 1)


def scorer_for(name: Literal["auto", "quantised", "model"], ranker: Ranker, index: Index) -> Scorer:
    """The scorer of this name; "auto" is "quantised" where the index holds link weights, else
    "model"."""
    if name == "auto":
        name = "model" if index.weights is None else "quantised"
    if name == "quantised":
        return QuantisedScorer(ranker, index)
    if name == "model":
        return ModelScorer(ranker, index)
    raise SpecError(f"no scorer {name!r}; expected auto, quantised or model")


# What quantisation costs


def quantisation_report(
    run: Run,
    index: Index,
    dataset: Dataset,
    *,
    split: str = "test",
    depth: int = 100,
    users: int = 500,
    requests: int = 20_000,
    scorer: Scorer | None = None,
    quiet: bool = True,
) -> dict[str, float]:
    """What a scorer over an index loses against the float32 model.

    Args:
        run: of the model that built the index.
        index: of the dataset's items.
        dataset: whose requests are scored.
        split: whose impressions are scored for AUC; users come from it, too.
        depth: of the lists that are compared.
        users: lists are compared for so many users, as of their last request in the split.
        requests: at most so many, spaced evenly, for AUC.
        scorer: what is measured; the quantised scorer when not given.

    Returns:
        ``requests``, ``impressions`` and ``users``; for each task ``TASK/auc`` (binary) or
        ``TASK/xauc`` of the model and ``TASK/auc_lost`` or ``TASK/xauc_lost``;
        ``logit_error_max`` and ``logit_error_rms`` over the lists; ``overlap``, the mean share of
        the model's first ``depth`` items of the whole index (ranked by the first task) that are
        among the scorer's first ``depth``, and ``overlap_min``.

    Raises:
        UnknownError: the index does not hold an item of the dataset.
    """
    ranker = run.ranker
    measured = QuantisedScorer(ranker, index) if scorer is None else scorer
    reference = ModelScorer(ranker, index)
    rows = index.ids.find(dataset.item_ids)
    if (rows < 0).any():
        missing = dataset.item_ids[rows < 0]
        raise UnknownError(
            f"the index {index.path} lacks {len(missing)} items of {dataset.path}, such as "
            f"{missing[0]!r}; build it from the whole dataset"
        )
    history = run.train.history
    chosen = _spaced(dataset.requests_of(split), requests)
    last = np.flatnonzero(np.diff(dataset.requests["user"][chosen], append=-1))
    of_users = _spaced(chosen[last], users)
    tasks = ranker.shape.tasks
    labels: list[NDArray[np.float32]] = []
    said: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    squares = count = 0.0
    most = 0.0
    overlaps: list[float] = []
    with (
        torch.inference_mode(),
        Bar("comparing", total=len(chosen) + len(of_users), unit="requests", quiet=quiet) as bar,
    ):
        plan = dataset.plan(chosen, 4096, history)
        for part, batch in zip(plan, dataset.batches(plan, history), strict=True):
            at = dataset.requests["first"][part][:, None] + np.arange(batch.candidates.shape[1])
            real = batch.real.numpy()
            at = np.where(real, at, at[:, :1])
            candidates = rows[dataset.events["item"][at]]
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            both = (reference.scores(state, candidates), measured.scores(state, candidates))
            said.append((both[0][real], both[1][real]))
            labels.append(batch.labels.numpy()[real])
            bar.advance(len(part))
        for some in np.array_split(of_users, -(-len(of_users) // 32)) if len(of_users) else []:
            batch = dataset.batch(some, history)
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            error = measured.scores(state) - reference.scores(state)
            squares += float(np.square(error, dtype=np.float64).sum())
            most = max(most, float(np.abs(error).max(initial=0)))
            count += error.size
            true, found = (each.top(state, depth).rows for each in (reference, measured))
            overlaps += [
                len(np.intersect1d(a, b)) / len(a) for a, b in zip(true, found, strict=True)
            ]
            bar.advance(len(some))
    result: dict[str, float] = {
        "requests": len(chosen),
        "impressions": sum(map(len, labels)),
        "users": len(of_users),
        "logit_error_max": most,
        "logit_error_rms": (squares / count) ** 0.5 if count else 0.0,
        "overlap": float(np.mean(overlaps)) if overlaps else 1.0,
        "overlap_min": min(overlaps, default=1.0),
    }
    if labels:
        label = np.concatenate(labels)
        exact, rounded = (np.concatenate(parts) for parts in zip(*said, strict=True))
        for place, task in enumerate(tasks):
            measure, name = (
                (metrics.auc, "auc") if task.kind == "binary" else (metrics.xauc, "xauc")
            )
            before, after = (measure(label[:, place], z[:, place]) for z in (exact, rounded))
            result[f"{task.name}/{name}"] = before
            result[f"{task.name}/{name}_lost"] = before - after
    return result


def _spaced(values: Rows, most: int) -> Rows:
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]
