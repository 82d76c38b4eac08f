"""An embedding table whose rows lie on several processes: each has a share of them.

Row r of R has the position ``r A mod R``, with A coprime to R, and each process owns a block of
consecutive positions. So popular items, which often have adjacent rows, are spread evenly, and
a block is what a checkpoint file contains (limerank.training.distributed.shards).

A step asks the owners for the distinct rows that it reads. What arrives is a leaf of the graph:
backward needs no exchange, and afterwards the gradients of the leaf go to the owners, which sum
them in the order of the ranks and make the update of their rows. A table in GPU memory, such as
TorchRec's, can stand here with the same three methods: ``forward``, ``push`` and ``rows``.

Shape letters: n ids, u distinct ones, R rows of the table, d width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.models import Ranker
from limerank.models.config import TrainConfig
from limerank.models.tables import EmbeddingTable
from limerank.world import World

GOLDEN = 0.6180339887
"""Share of the rows that lies between the positions of two neighbours, about."""


class Layout(NamedTuple):
    """Which process owns which rows.

    Attributes:
        rows: of the table, R.
        size: processes.
    """

    rows: int
    size: int

    @property
    def factor(self) -> int:
        """A: it depends on the number of rows alone."""
        factor = int(self.rows * GOLDEN) | 1
        while math.gcd(factor, self.rows) != 1:
            factor += 2
        return factor

    @property
    def block(self) -> int:
        """Positions of each process, at most."""
        return -(-self.rows // self.size)

    def range(self, rank: int) -> tuple[int, int]:
        """The positions of a process: first, and last + 1."""
        return min(rank * self.block, self.rows), min((rank + 1) * self.block, self.rows)

    def positions(self, rows_n: Tensor) -> Tensor:
        """Positions i64 [n] of rows."""
        return (rows_n * self.factor) % self.rows


class Read(NamedTuple):
    """Rows that were read: the positions that each process asked this one for, counted from its
    first one; how many it asked each process for; and what it received, [u, d]."""

    asked: list[Tensor]
    counts: list[int]
    leaf: Tensor


class ShardedTable(EmbeddingTable):
    """The rows of a table that this process owns, as :attr:`weight` [own rows, d].

    Args:
        world: the processes.
        full: all rows, [R, d]; the same on each process.
    """

    def __init__(self, world: World, full: Tensor) -> None:
        self.world = world
        self.layout = Layout(len(full), world.size)
        self.low, self.high = self.layout.range(world.rank)
        super().__init__(self.high - self.low, full.shape[1])
        self.weight = nn.Parameter(self.own_part(full.detach()), full.requires_grad)
        self._read: list[Read] = []

    def reset_parameters(self) -> None:
        """Leave the weights as they are: rows come from the full table."""

    def own_part(self, full: Tensor) -> Tensor:
        """The own ones of all rows [R, ...], by position."""
        rows = torch.arange(self.layout.rows)
        position = self.layout.positions(rows)
        own = (position >= self.low) & (position < self.high)
        part = full.new_empty(self.high - self.low, *full.shape[1:])
        part[position[own] - self.low] = full[rows[own]]
        return part

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [n, d] of ids i64 [n]. All processes call it, also with no ids."""
        distinct, inverse = torch.unique(ids, return_inverse=True)
        positions, order = self.layout.positions(distinct).sort()
        owners = torch.bincount(positions // self.layout.block, minlength=self.world.size)
        counts: list[int] = owners.tolist()
        asked = [one - self.low for one in self.world.exchange(positions.split(counts))]
        weight = self.weight.detach()
        leaf = torch.cat(self.world.exchange([weight[one] for one in asked], counts))
        if torch.is_grad_enabled():
            leaf.requires_grad_()
            self._read.append(Read(asked, counts, leaf))
        column = torch.empty_like(order)
        column[order] = torch.arange(len(order), device=order.device)
        return F.embedding(column[inverse], leaf)

    @torch.no_grad()
    def push(self, share: Tensor | float) -> None:
        """Send the gradients of what was read to the owners, and set the gradient of the own rows:
        the sum over all processes, times ``share``. All processes call it."""
        rows, values = [], []
        for read in self._read:
            grad = torch.zeros_like(read.leaf) if read.leaf.grad is None else read.leaf.grad
            sizes = [len(one) for one in read.asked]
            values += self.world.exchange(grad.split(read.counts), sizes)
            rows += read.asked
        self._read = []
        self.weight.grad = torch.sparse_coo_tensor(
            torch.cat(rows)[None],
            torch.cat(values) * share,
            self.weight.shape,
            check_invariants=False,
        )

    def rows(self, own: Tensor) -> Tensor | None:
        """All rows [R, ...] in their order, in the memory of the host, from the own ones [own rows,
        ...] of each process; None on all but process 0. All processes call it."""
        own = own.detach().cpu()
        sent = [own, *(own[:0] for _ in range(self.world.size - 1))]
        found = torch.cat(self.world.exchange(sent))
        if self.world.rank:
            return None
        return found[self.layout.positions(torch.arange(self.layout.rows))]


def sharded_tables(ranker: nn.Module) -> dict[str, ShardedTable]:
    """The sharded tables of a model by the names of their weights."""
    return {
        f"{name}.weight": part
        for name, part in ranker.named_modules()
        if isinstance(part, ShardedTable)
    }


def shard(ranker: Ranker, world: World) -> None:
    """Keep only the own rows of the table of item ids on this process."""
    tower = ranker.item_tower
    tower.ids = ShardedTable(world, tower.ids.weight)


def is_sharded(ranker: Ranker, config: TrainConfig, world: World) -> bool:
    """Whether the processes of a training share the rows of the table of item ids."""
    if world.size == 1 or config.tables == "replicated":
        return False
    weight = ranker.item_tower.ids.weight
    held = (weight.numel() + len(weight)) * weight.element_size()
    return config.tables == "sharded" or held > config.table_bytes


def own_state(ranker: Ranker, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an optimiser has of the full model, with the own rows of sharded tables."""
    own = {
        f"{name}/sums": table.own_part(state[f"{name}/sums"])
        for name, table in sharded_tables(ranker).items()
    }
    return {**state, **own}


def full_tables(ranker: Ranker, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights and ``NAME/sums`` of all rows of the sharded tables, on process 0; an empty tensor
    for each on the others. All processes call it.

    Args:
        state: what the optimiser has.
    """
    found = {}
    for name, table in sharded_tables(ranker).items():
        for of, own in ((name, table.weight), (f"{name}/sums", state[f"{name}/sums"])):
            full = table.rows(own)
            found[of] = own[:0] if full is None else full
    return found
