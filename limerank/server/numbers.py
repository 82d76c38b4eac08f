"""What a server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Numbers:
    """Counters, histograms and gauges of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        into = self.registry
        self.requests = Counter(
            "limerank_requests", "Requests answered.", ["route", "status"], registry=into
        )
        self.seconds = Histogram(
            "limerank_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, registry=into
        )
        self.stages = Histogram(
            "limerank_stage_seconds", "Time of a stage.", ["stage"], buckets=SECONDS, registry=into
        )
        self.users = Gauge("limerank_users", "Users in the store.", registry=into)
        self.events = Gauge("limerank_events", "Events in the store.", registry=into)
        self.items = Gauge("limerank_items", "Items that can be ranked.", registry=into)
        self.index_version = Gauge("limerank_index_version", "Version of the index.", registry=into)
        self.queue = Gauge("limerank_queue_depth", "Requests that wait.", ["queue"], registry=into)
        self.model = Gauge(
            "limerank_model_info", "The model in use: 1.", ["run", "model"], registry=into
        )

    @contextmanager
    def stage(self, name: str, taken: dict[str, float] | None = None) -> Iterator[None]:
        """Time a stage; ``taken`` gets its milliseconds as well."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.stages.labels(name).observe(seconds)
            if taken is not None:
                taken[name] = round(1e3 * seconds, 3)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
