"""The metrics of a server, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TASKS = ("follow", "watch", "verify", "store", "tally", "count")
"""Background tasks, see :mod:`limerank.serving.watching`."""
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Numbers:
    """Counters, histograms and gauges of one server, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        into = self.registry
        self.requests = Counter(
            "limerank_requests", "Requests answered.", ["route", "status"], registry=into
        )
        self.seconds = Histogram(
            "limerank_request_seconds",
            "Seconds from a request to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=into,
        )
        self.stages = Histogram(
            "limerank_stage_seconds",
            "Seconds of a stage of requests: state, score, shard, explain, similar, append.",
            ["stage"],
            buckets=SECONDS,
            registry=into,
        )
        self.intake = Counter(
            "limerank_intake_events",
            "Events received, from any source, by outcome: accepted, duplicate, expired, refused.",
            ["outcome"],
            registry=into,
        )
        for outcome in ("accepted", "duplicate", "expired", "refused"):
            self.intake.labels(outcome)
        self.exposures = Counter(
            "limerank_exposures",
            "Rankings that were shown, by arm and outcome: accepted, duplicate, expired.",
            ["arm", "outcome"],
            registry=into,
        )
        self.arm_requests = Counter(
            "limerank_arm_requests", "Rankings answered, by arm.", ["arm"], registry=into
        )
        self.arm_share = Gauge(
            "limerank_arm_share", "Share of the users that an arm has.", ["arm"], registry=into
        )
        self.arm_model = Gauge(
            "limerank_arm_info",
            "Version of the index of a model that an arm serves.",
            ["arm", "run", "model"],
            registry=into,
        )
        self.arm_shown = Gauge(
            "limerank_arm_shown",
            "Shown rankings whose outcomes are counted: their window is over. The same in all "
            "servers of a store, as all outcomes are.",
            ["arm"],
            registry=into,
        )
        self.arm_users = Gauge(
            "limerank_arm_users", "Users with such a ranking.", ["arm"], registry=into
        )
        self.arm_outcomes = Gauge(
            "limerank_arm_outcomes",
            "Shown items that an event with the label followed.",
            ["arm", "label"],
            registry=into,
        )
        self.arm_rate = Gauge(
            "limerank_arm_rate",
            "Outcomes per request or per user: value, low and high of its 95 % interval.",
            ["arm", "label", "per", "bound"],
            registry=into,
        )
        self.arm_difference = Gauge(
            "limerank_arm_difference",
            "Rate of an arm less that of the main arm, with a 95 % interval that stays valid while "
            "one looks.",
            ["arm", "label", "per", "bound"],
            registry=into,
        )
        self.arm_ratio = Gauge(
            "limerank_arm_sample_ratio_p",
            "p-value of the sample ratio of users; below 0.001 something is wrong with the arms.",
            registry=into,
        )
        self.arm_uncounted = Gauge(
            "limerank_arm_uncounted",
            "Rankings that are not counted, since too many users are.",
            registry=into,
        )
        self.counters_until = Gauge(
            "limerank_counters_until_seconds",
            "Unix time up to which the counters of an arm's index have impressions.",
            ["arm"],
            registry=into,
        )
        self.counters_left_out = Gauge(
            "limerank_counters_left_out",
            "Impressions that are not in the counters, since too many items were shown.",
            registry=into,
        )
        self.users = Gauge("limerank_users", "Users in the store.", registry=into)
        self.events = Gauge("limerank_events", "Events in the store.", registry=into)
        self.items = Gauge("limerank_items", "Items that can be ranked.", registry=into)
        self.index_version = Gauge("limerank_index_version", "Version of the index.", registry=into)
        self.queue = Gauge(
            "limerank_queue_depth",
            "Requests that wait or are being computed.",
            ["queue"],
            registry=into,
        )
        self.store_up = Gauge(
            "limerank_store_up",
            "1: the store answered the last check; 0: it did not.",
            registry=into,
        )
        self.connections = Gauge("limerank_connections", "Open connections.", registry=into)
        self.refused = Counter(
            "limerank_connections_closed",
            "Connections that the server refused or closed, by reason.",
            ["reason"],
            registry=into,
        )
        self.model = Gauge(
            "limerank_model_info", "The model in use: 1.", ["run", "model"], registry=into
        )
        self.store_warnings = Gauge(
            "limerank_store_warnings",
            "Problems of the store that an operator has to solve; the log has them.",
            registry=into,
        )
        self.index_verified = Gauge(
            "limerank_index_verified",
            "1: all checksums of the index in use are correct; 0: not all are compared yet, or one "
            "is wrong.",
            registry=into,
        )
        self.index_damaged = Gauge(
            "limerank_index_damaged",
            "1: a checksum of the index in use is wrong, and answers may be wrong.",
            registry=into,
        )
        live = Gauge(
            "limerank_live_items",
            "Live items that are not ranked: skipped, because the model cannot read them, and "
            "pending, because the index could not be changed.",
            ["state"],
            registry=into,
        )
        self.live_skipped, self.live_pending = live.labels("skipped"), live.labels("pending")
        self.shard_up = Gauge(
            "limerank_shard_up",
            "1: the shard answered the last question; 0: it did not.",
            ["shard"],
            registry=into,
        )
        self.shard_questions = Counter(
            "limerank_shard_questions",
            "Questions to shards by outcome: answered, failed, and skipped, where the shard hung "
            "shortly before.",
            ["shard", "outcome"],
            registry=into,
        )
        self.shard_seconds = Histogram(
            "limerank_shard_seconds",
            "Seconds from a question to the answer of a shard.",
            ["shard"],
            buckets=SECONDS,
            registry=into,
        )
        self.log_writes = Counter(
            "limerank_log_changes",
            "Changes written to the event log (--log) by outcome: acknowledged, failed.",
            ["outcome"],
            registry=into,
        )
        self.log_seconds = Histogram(
            "limerank_log_seconds",
            "Seconds until the brokers of the event log acknowledged a request's changes.",
            buckets=SECONDS,
            registry=into,
        )
        self.failures = Counter(
            "limerank_background_failures",
            "Failed attempts of background tasks; each is tried again.",
            ["task"],
            registry=into,
        )
        self.failing = Gauge(
            "limerank_background_failing",
            "1: the last attempt of the background task failed.",
            ["task"],
            registry=into,
        )
        for task in TASKS:  # present from the start, for alarms on their rates
            self.failures.labels(task)
            self.failing.labels(task)

    def log_ended(self, outcome: str, count: int, seconds: float) -> None:
        """Count changes that were written to the event log."""
        self.log_writes.labels(outcome).inc(count)
        if outcome == "acknowledged":
            self.log_seconds.observe(seconds)

    def shard_ended(self, number: int, outcome: str, seconds: float) -> None:
        """Count a question to a shard."""
        self.shard_questions.labels(str(number), outcome).inc()
        if outcome == "answered":
            self.shard_seconds.labels(str(number)).observe(seconds)

    def show_shards(self, of: int, down: list[int]) -> None:
        """Bring the gauge of shards up to date; those in ``down`` do not answer."""
        for number in range(1, of + 1):
            self.shard_up.labels(str(number)).set(number not in down)

    def stage(self, name: str, taken: dict[str, float] | None = None) -> Stage:
        """Time a stage; ``taken`` gets its milliseconds as well."""
        return Stage(self.stages.labels(name), name, taken)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Stage:
    """A timed block. A class and not a generator, since every request pays for it."""

    __slots__ = ("_name", "_observed", "_started", "_taken")

    def __init__(self, observed: Histogram, name: str, taken: dict[str, float] | None) -> None:
        self._observed, self._name, self._taken = observed, name, taken

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self._started
        self._observed.observe(seconds)
        if self._taken is not None:
            self._taken[self._name] = round(1e3 * seconds, 3)
