"""Ranking through shards: a server that has the full index asks servers of its shards for their
best items, and merges them.

The *front* has the users' events and states, and the full index, mapped and not scanned: it reads
the items of histories from it, and ids and features of the items of a ranking. It sends the state
of one user (a few kilobytes for LIME) to all shards at once. Each scans its own rows and returns
its best k with their scores. An item's score does not depend on the shard that computes it, and
equal values are ordered by the row in the index, so the merged k are those of one scan.

:mod:`~limerank.serving.shards.wire` defines what is sent, :mod:`~limerank.serving.shards.client`
asks, :mod:`~limerank.serving.shards.scorer` merges and :mod:`~limerank.serving.shards.answering`
answers.
"""
