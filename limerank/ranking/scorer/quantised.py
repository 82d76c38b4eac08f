"""LIME over the bytes of an index: the arithmetic of the native scorer, written in torch.

For one request with folded links ``F`` [C, g] (C = H l) and user terms ``U`` [g]::

    F0  = F - mean of F over the links of each head      # shares of a head sum to one
    M   = weight_step * F0
    s   = max over C of |M| / 127                        # per first-layer sum
    Q   = round(M / s)                                   # i8 [C, g]
    c   = U + sum over heads of the means + weight_low F0 + term_middle + weight_mean (M - s Q)
    a_i = s * (codes_i Q) + term_step * term_codes_i + c           # codes_i Q in integers
    logits_i = head(a_i)

Subtracting the means and ``weight_mean`` removes the errors that all items share; both terms are
added exactly, on the user's side.

Anchored links are r more columns, whose codes ``k_i`` depend on the request
(:mod:`limerank.ranking.scorer.anchored`): ``M`` has r more rows ``zs A_z``, which count in the
maximum, and ``codes_i Q`` becomes ``codes_i Q + k_i Q_z``. Additions of the caller come last.

With profiles, an item has S more codes, its key, and ``q`` [K, S] of a request is quantised per
logit, as ``F0`` is per first-layer sum::

    M_k = weight_step * q_k;  s_k = max |M_k| / 127;  Q_k = round(M_k / s_k)
    c_k = weight_low q_k + weight_mean (M_k - s_k Q_k)
    z_k += s_k (codes_i Q_k) + c_k

Shape letters: B requests, m items of a chunk, K logits, C = H l link weights, S numbers of a key,
g first-layer sums of the head, r numbers of an anchored link.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from limerank.errors import SpecError
from limerank.index import Index
from limerank.models import Ranker
from limerank.models.anchors import Anchored
from limerank.models.config import HeadConfig
from limerank.models.head import Head
from limerank.models.ranker import plus
from limerank.ranking.scorer.anchored import CodedLinks, Postings, set_keys
from limerank.ranking.scorer.chunked import ChunkedScorer
from limerank.ranking.scorer.contract import Rows

EXACT_COLUMNS = 512
"""Of u8 x i8 products that a float32 sums without rounding: 512 * 255 * 127 < 2 ** 24."""
STEEPEST = {"relu": 1.0, "silu": 1.1, "hardswish": 1.5}
"""Largest slope of each activation."""


class _Folded(NamedTuple):
    """The values that :class:`QuantisedScorer` computes once per request."""

    codes: Tensor  # Q as float32 [B, C, g]
    step: Tensor  # s [B, 1, g]
    constant: Tensor  # c [B, 1, g]
    linked: Tensor | None  # Q_z as float32 [B, r, g]
    links: Anchored | None  # k of sets and items
    query: Query | None


class Query(NamedTuple):
    """The query of a profile in integers: codes as float32 [B, K, S], step and constant [B, K]."""

    codes: Tensor
    step: Tensor
    constant: Tensor


class QuantisedScorer(ChunkedScorer):
    """LIME over the bytes of an index; see the module's text for the arithmetic.

    Raises:
        SpecError: the model has no links.
    """

    name = "quantised"
    activation_error = 0.0
    """Largest error of a hidden unit's activation against the model's."""

    def __init__(self, ranker: Ranker, index: Index) -> None:
        super().__init__(ranker, index)
        if not ranker.folds or ranker.link_shape is None or index.scales is None:
            raise SpecError(
                f"the quantised scorer is for LIME models; use the model scorer for "
                f"{ranker.config.model}"
            )
        assert index.weights is not None and index.terms is not None
        assert isinstance(ranker.head, Head) and isinstance(ranker.config, HeadConfig)
        self._heads, self._head = ranker.link_shape[0], ranker.head
        self._slope = STEEPEST[ranker.config.activation]
        links = index.weights.shape[1] - index.keys
        self._codes_nc, self._keys_ns = index.weights[:, :links], index.weights[:, links:]
        self._terms_ng = index.terms
        low_c, step_c, mean_c, middle_g, term_step_g = (
            torch.from_numpy(getattr(index.scales, name))
            for name in ("weight_low", "weight_step", "weight_mean", "term_middle", "term_step")
        )
        self._of_keys = tuple(column[links:] for column in (low_c, step_c, mean_c))
        low_c, step_c, mean_c = (column[:links] for column in (low_c, step_c, mean_c))
        self._low_c1, self._step_c1, self._mean_c1 = (
            low_c[:, None],
            step_c[:, None],
            mean_c[:, None],
        )
        self._middle_g, self._term_step_g = middle_g, term_step_g
        self._spread = index.scales.weight_spread
        self._postings = None if index.anchors is None else Postings.of(index.anchors)

    def _coded(self, state: Any) -> tuple[CodedLinks | None, Tensor | None]:
        """The anchored links of requests in integers, and zs A_z [B, r, g]; None without them."""
        if state.anchored is None:
            return None, None
        assert self.index.anchors is not None and self._postings is not None
        anchored = Anchored(*(part.cpu() for part in vars(state.anchored).values()))
        coded = CodedLinks.of(anchored, self.index.anchors, self._postings)
        layer_gr = self.ranker.from_anchors.weight.float().cpu()
        return coded, coded.step[..., None] * layer_gr.T

    def _requests(self, state: Any) -> _Folded:
        coded, linked_brg = self._coded(state)
        folded_bcg = self.ranker.fold(state).float().cpu()
        heads = folded_bcg.unflatten(1, (self._heads, -1))
        means_bh1g = heads.mean(2, keepdim=True)
        centred_bcg = (heads - means_bh1g).flatten(1, 2)
        user_bg = state.head.float().cpu() + means_bh1g.sum((1, 2)) + self._middle_g
        user_bg = user_bg + (self._low_c1 * centred_bcg).sum(1)
        matrix_bcg = self._step_c1 * centred_bcg
        rows_bxg = matrix_bcg if linked_brg is None else torch.cat([matrix_bcg, linked_brg], 1)
        step_b1g = rows_bxg.abs().amax(1, keepdim=True) / 127
        step_b1g = torch.where(step_b1g > 0, step_b1g, 1.0)
        codes_bcg = (matrix_bcg / step_b1g).round()
        user_bg = user_bg + (self._mean_c1 * (matrix_bcg - step_b1g * codes_bcg)).sum(1)
        linked_brg = None if linked_brg is None else (linked_brg / step_b1g).round()
        links = None if coded is None else coded.links
        return _Folded(codes_bcg, step_b1g, user_bg[:, None], linked_brg, links, self._query(state))

    def _query(self, state: Any) -> Query | None:
        if state.query is None:
            return None
        low_s, step_s, mean_s = self._of_keys
        q_bks = state.query.float().cpu()
        m_bks = step_s * q_bks
        step_bk1 = m_bks.abs().amax(-1, keepdim=True) / 127
        step_bk1 = torch.where(step_bk1 > 0, step_bk1, 1.0)
        codes_bks = (m_bks / step_bk1).round()
        constant_bk = q_bks @ low_s + (m_bks - step_bk1 * codes_bks) @ mean_s
        return Query(codes_bks, step_bk1[..., 0], constant_bk)

    def bound(self, state: Any) -> NDArray[np.float32]:
        heads = self.ranker.fold(state).float().cpu().unflatten(1, (self._heads, -1))
        centred_bcg = (heads - heads.mean(2, keepdim=True)).flatten(1, 2).abs()
        step_bg = (self._step_c1 * centred_bcg).amax(1) / 127
        spread, of_links_bg = self._spread, torch.zeros(())
        coded, linked_brg = self._coded(state)
        if coded is not None and linked_brg is not None:
            assert self.index.anchors is not None
            step_bg = torch.maximum(step_bg, linked_brg.abs().amax(1) / 127)
            spread += 127 * linked_brg.shape[1]  # of codes that are 127 at most
            rounded = (len(self.index.anchors.features) + 1) / 2
            of_links_bg = rounded * linked_brg.abs().sum(1)
        # Half a step, and more where items are out of the range of the index's scales.
        assert self.index.scales is not None
        weights_c, terms_g = map(
            torch.from_numpy, (self.index.scales.weight_error, self.index.scales.term_error)
        )
        weights_c = weights_c[: len(self._low_c1)]
        of_weights_bg = (weights_c[:, None] * centred_bcg).sum(1)
        bound_bg = of_weights_bg + of_links_bg + spread * step_bg / 2 + terms_g
        found: NDArray[np.float32] = bound_bg.numpy()
        return found

    @torch.inference_mode()
    def logit_bound(self, state: Any, rows: ArrayLike | slice | None = None) -> NDArray[np.float32]:
        """Largest error of each logit of :meth:`scores` against the model, f32 [B, n, K].

        From the bound ``e`` of the first-layer sums: a hidden unit ``f(a)`` is off by at most
        ``S e``, S the largest slope of f; a gated one, ``f(a') a''``, by ``S e' (|a''| + e'') +
        |f(a')| e''``. Rounding of float32 comes on top.
        """
        requests, error_bg = self._requests(state), torch.from_numpy(self.bound(state))
        chosen = slice(0, len(self)) if rows is None else self._checked(rows)
        head, slope, off = self._head, self._slope, self.activation_error
        error_b1g = error_bg[:, None]
        if head.gated:
            first_bmh, gate_bmh = self._sums(requests, chosen).chunk(2, -1)
            of_first, of_gate = error_b1g.chunk(2, -1)
            of_z = (slope * of_first + off) * (gate_bmh.abs() + of_gate)
            of_z = of_z + head.activation(first_bmh).abs() * of_gate
        else:
            count = len(self) if isinstance(chosen, slice) else chosen.shape[-1]
            of_z = (slope * error_b1g + off).expand(-1, count, -1)
        of_logits = of_z @ head.out.weight.float().cpu().abs().T + self._query_bound(state)
        found: NDArray[np.float32] = of_logits.numpy()
        return found

    def _query_bound(self, state: Any) -> Tensor:
        """Largest error of what the profile adds to each logit, [B, 1, K] or 0."""
        query = self._query(state)
        if query is None or self.index.scales is None:
            return torch.zeros(())
        error_s = torch.from_numpy(self.index.scales.weight_error[-self.index.keys :])
        mean_s = self._of_keys[2]
        off = torch.maximum(mean_s, 255 - mean_s).sum()  # of an item's codes from the means
        error_bk = state.query.float().cpu().abs() @ error_s + off * query.step / 2
        return error_bk[:, None]

    def _sums(self, requests: _Folded, rows: slice | Rows, extra: Tensor | None = None) -> Tensor:
        """First-layer sums [B, m, g]."""
        codes_mc = torch.from_numpy(self._codes_nc[rows].astype(np.float32))
        terms_mg = torch.from_numpy(self._terms_ng[rows].astype(np.float32)) * self._term_step_g
        sums_bmg = integer_products(codes_mc, requests.codes)
        if requests.links is not None and requests.linked is not None:
            sums_bmg = sums_bmg + self._link_codes(requests.links, rows) @ requests.linked
        sums_bmg = sums_bmg * requests.step + (terms_mg + requests.constant)
        return plus(sums_bmg, extra)

    def _link_codes(self, links: Anchored, rows: slice | Rows) -> Tensor:
        """k [B, m, r]: integers, as float32."""
        assert self.index.anchors is not None and self.ranker.anchors is not None
        if isinstance(rows, slice) or rows.ndim == 1:
            keys = set_keys(self.index.anchors, rows)
            at = torch.arange(len(keys.offsets) - 1)
        else:
            distinct, positions = np.unique(rows, return_inverse=True)
            keys = set_keys(self.index.anchors, distinct)
            at = torch.from_numpy(positions.reshape(rows.shape))
        return self.ranker.anchors.gathered(links, keys, at)

    def _logits(self, requests: _Folded, rows: slice | Rows, extra: Tensor | None = None) -> Tensor:
        device = self._head.out.weight.device
        extra = None if extra is None else extra.cpu()
        logits: Tensor = self._head(self._sums(requests, rows, extra).to(device))
        if requests.query is None:
            return logits
        codes_ms = torch.from_numpy(self._keys_ns[rows].astype(np.float32))
        codes_bks, step_bk, constant_bk = requests.query
        alike_bmk = integer_products(codes_ms, codes_bks.mT) * step_bk[:, None]
        return logits + (alike_bmk + constant_bk[:, None]).to(device)


def integer_products(codes: Tensor, matrix_bcg: Tensor) -> Tensor:
    """Exact products of u8 codes [m, C] or [B, m, C] with i8 [B, C, g], all stored as float32.

    The sums are the integers that the native kernel computes, rounded to float32 at most once.
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
