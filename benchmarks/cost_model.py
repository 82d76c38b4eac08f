"""Machines, bytes and seconds at a scale that was not measured: arithmetic on measured rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.cost_inputs import Assumptions, Measured

DAY = 86_400.0
MOST_ROWS = 2**31 - 1
"""Rows of an index: they are numbered by int32."""


def on_line(low: float, high: float, at: float, first: float, second: float) -> float:
    """The line through (first, low) and (second, high), at another point."""
    return low + (high - low) * (at - first) / (second - first)


@dataclass(frozen=True)
class Costs:
    """All that the page shows, by equation.

    Args:
        measured: what rows say.
        assumptions: what they cannot say.
    """

    measured: Measured
    assumptions: Assumptions

    # Load

    def peak_requests(self, users: float) -> float:
        """Requests in a second, at the peak of a day."""
        a = self.assumptions
        return users * a.active_share * a.requests / DAY * a.peak_factor

    def peak_events(self, users: float) -> float:
        """Events in a second, at the peak of a day."""
        a = self.assumptions
        return users * a.active_share * a.events / DAY * a.peak_factor

    def impressions(self, users: float) -> float:
        """Impressions in a day."""
        a = self.assumptions
        return users * a.active_share * a.requests * a.impressions

    def log_rows(self, users: float) -> float:
        """Impressions and events in a day."""
        a = self.assumptions
        return self.impressions(users) + users * a.active_share * a.events

    # Machines

    def by_cores(self, cores: float) -> float:
        """Machines whose cores do the work of this many busy ones."""
        return cores / (self.assumptions.cores * self.assumptions.utilisation)

    def by_memory(self, size: float) -> float:
        """Machines whose memory holds this many bytes."""
        return size / (1e9 * self.assumptions.memory_gb * self.assumptions.memory_used)

    def by_job(self, core_seconds: float) -> float:
        """Machines that do this work within the time of a daily job."""
        return self.by_cores(core_seconds / (3600 * self.assumptions.job_hours))

    @property
    def network(self) -> float:
        """Bytes in a second that the network of a machine carries."""
        a = self.assumptions
        return a.network_gbit_per_s * 1e9 / 8 * a.utilisation

    # Index

    @property
    def scanned_bytes(self) -> float:
        """Bytes that a scan reads for an item: link weights and the terms of the head."""
        return self.measured.item_bytes - self.measured.unscanned_bytes

    @property
    def resident_bytes(self) -> float:
        """Bytes of an item that a server needs in memory: all but the vectors."""
        return self.measured.item_bytes - self.measured.vector_bytes

    def build_seconds(self, items: float) -> float:
        """Time to build an index in parts: encoding, then writing."""
        a = self.assumptions
        written = items * self.measured.item_bytes / (1e9 * a.disk_gb_per_s)
        cores = a.cores * a.utilisation
        return (items / self.measured.encoded / cores + written) / a.index_machines

    def copy_seconds(self, items: float) -> float:
        """Time to copy an index to a server."""
        return items * self.measured.item_bytes / self.network

    # Ranking

    def scan_machines(self, items: float, users: float, seconds: float) -> float:
        """Machines that rank the full catalogue in every request: what processors, the memory's
        bandwidth and its size ask for, whichever is most.

        Args:
            items: of the catalogue.
            users: all users.
            seconds: of a core, to score an item.
        """
        a, scored = self.assumptions, self.peak_requests(users) * items
        return max(
            self.by_cores(scored * seconds),
            scored * self.scanned_bytes / (1e9 * a.memory_gb_per_s * a.utilisation),
            self.by_memory(a.copies * items * self.resident_bytes),
            a.copies,
        )

    def most_items(self, users: float, seconds: float) -> float:
        """The largest catalogue that ``machines_limit`` machines rank in every request."""
        limit = self.assumptions.machines_limit
        one = self.scan_machines(1e12, users, seconds)  # linear in the number of items
        return min(1e12 * limit / one, MOST_ROWS)

    @property
    def request_seconds(self) -> float:
        """Core seconds of a request for ``candidates``, and of the update of its user's state."""
        a, m = self.assumptions, self.measured
        return max(m.request + (a.candidates - 512) * m.candidate, 0) + self.update_seconds

    def candidate_machines(self, users: float) -> float:
        """Machines that rank the candidates of a retriever. Each holds the full index."""
        cores = self.peak_requests(users) * self.request_seconds
        return max(self.by_cores(cores), self.assumptions.copies)

    @property
    def equal_items(self) -> float:
        """The catalogue whose scan takes as long as a request for candidates."""
        return self.request_seconds / self.measured.scan

    def shards(self, items: float) -> int:
        """Shards whose scans take ``shard_ms`` on one core."""
        return max(math.ceil(1e3 * items * self.measured.scan / self.assumptions.shard_ms), 1)

    def front_seconds(self, shards: float) -> float:
        """Core seconds of the front of this many shards, for a request."""
        return on_line(self.measured.front_1, self.measured.front_4, shards, 1, 4)

    # Users

    @property
    def update_seconds(self) -> float:
        m = self.measured
        return on_line(m.update_200, m.update_2000, self.assumptions.stored_events, 200, 2000)

    @property
    def state_bytes(self) -> float:
        m = self.measured
        return on_line(m.state_200, m.state_2000, self.assumptions.stored_events, 200, 2000)

    def primaries(self, users: float) -> float:
        """Valkey servers that write the events of the peak."""
        return self.peak_events(users) / (self.measured.primary * self.assumptions.utilisation)

    def stored(self, users: float, event_bytes: float) -> float:
        """Bytes of all stored events, once."""
        return users * self.assumptions.stored_events * event_bytes

    # Jobs

    @property
    def step_bytes(self) -> float:
        """Bytes of a sharded table that cross the network for an impression: an id (8) and a
        vector to its reader, and a gradient back."""
        m = self.measured
        return self.assumptions.distinct_share * m.items_read * (8 + 2 * 4 * m.width)

    def training_machines(self, users: float, rate: float) -> float:
        """Machines that train on a day's impressions within ``job_hours``: what processors and,
        from two machines on, the network ask for.

        Args:
            users: all users.
            rate: impressions of a core second.
        """
        work = self.by_job(self.impressions(users) / rate / self.measured.efficiency)
        return work if work <= 1 else max(work, self.training_network(users), 2)

    def training_network(self, users: float) -> float:
        """Machines whose networks carry the rows of a sharded table, within ``job_hours``."""
        sent = self.impressions(users) * self.step_bytes
        return sent / (3600 * self.assumptions.job_hours) / self.network

    def table_bytes(self, items: float) -> float:
        """Bytes of the embeddings of item ids, with the optimiser's number for each."""
        return items * 4 * (self.measured.width + 1)

    def bulk_seconds(self, items: float) -> float:
        """Core seconds for the best items of one user."""
        m = self.measured
        return on_line(m.bulk_small, m.bulk_large, items, 1e5, 1e6)
