"""Team-draft interleaving: the rankings of two arms in one list, with the team of each item.

Radlinski, Kurup and Joachims, "How Does Clickthrough Data Reflect Retrieval Quality?" (CIKM 2008):
in each round both teams pick the best item of their ranking that the list lacks, and a coin decides
which picks first. An outcome is credited to the team that picked its item. Since both teams have
the same chance of each position, the team with more credit has the better ranking, and a user
serves as their own control.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from limerank.serving.stores import Id


def team_draft(
    first: Sequence[Id], second: Sequence[Id], k: int, seed: str
) -> list[tuple[Id, int]]:
    """Interleave two rankings.

    Args:
        first, second: items, the best ones first.
        k: items of the list, at most.
        seed: decides the coins, so that a list can be computed again.

    Returns:
        The list: each item, and the position of the team that picked it: 0 or 1. Where a ranking
        has no item left, the other picks alone.
    """
    coins = random.Random(seed)
    left = [iter(first), iter(second)]
    picks: list[tuple[Id, int]] = []
    chosen: set[Id] = set()
    counts = [0, 0]
    open_ = {0, 1}
    while len(picks) < k and open_:
        team = coins.randrange(2) if counts[0] == counts[1] else int(counts[1] < counts[0])
        if team not in open_:
            team = 1 - team
        item = next((one for one in left[team] if one not in chosen), None)
        if item is None:
            open_.discard(team)
            continue
        chosen.add(item)
        counts[team] += 1
        picks.append((item, team))
    return picks
