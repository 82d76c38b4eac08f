"""What costs on paper are computed from: assumptions, and the values of measured rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import rows
from benchmarks.tables import Row
from limerank.errors import DataError, SpecError, check_names


def assumed(default: float, unit: str, what: str, least: float, most: float) -> Any:
    """A field of :class:`Assumptions`."""
    limits = {"unit": unit, "what": what, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=limits)


@dataclass(frozen=True)
class Assumptions:
    """What no row says. ``what`` of each field is its description.

    Raises:
        SpecError: a value outside of its range.
    """

    cores: float = assumed(64, "cores", "of a machine", 1, 1024)
    utilisation: float = assumed(0.6, "share", "of processors and networks in use", 0.01, 1)
    memory_gb: float = assumed(512, "GB", "memory of a machine", 1, 1e5)
    memory_used: float = assumed(0.7, "share", "of the memory that data may fill", 0.01, 1)
    memory_gb_per_s: float = assumed(300, "GB/s", "bandwidth of a machine's memory", 1, 1e5)
    network_gbit_per_s: float = assumed(10, "Gbit/s", "network of a machine", 1e-3, 1e4)
    disk_gb_per_s: float = assumed(1, "GB/s", "writing to a machine's disk", 0.01, 1e3)
    copies: float = assumed(2, "copies", "of everything that is served or stored", 1, 10)
    active_share: float = assumed(0.5, "share", "of the users who come in a day", 1e-6, 1)
    requests: float = assumed(20, "requests", "of an active user in a day", 1e-3, 1e5)
    impressions: float = assumed(10, "impressions", "shown by a request", 1, 1e4)
    events: float = assumed(50, "events", "of an active user in a day", 1e-3, 1e5)
    stored_events: float = assumed(2000, "events", "stored of a user", 1, 1e6)
    peak_factor: float = assumed(3, "times", "the mean rate, at the peak of a day", 1, 100)
    candidates: float = assumed(512, "candidates", "of a request behind a retriever", 1, 1e6)
    shard_ms: float = assumed(50, "ms", "for a scan of a shard on one core", 0.1, 1e4)
    index_machines: float = assumed(8, "machines", "that build an index", 1, 1e4)
    job_hours: float = assumed(6, "hours", "for a daily job", 0.01, 24)
    distinct_share: float = assumed(
        1, "share", "of the items read by a training step that differ", 0.001, 1
    )
    machines_limit: float = assumed(
        100, "machines", "from which ranking the full catalogue makes no sense", 1, 1e6
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata
            if not limits["least"] <= value <= limits["most"]:
                raise SpecError(
                    f"{field.name} = {value}: expected {limits['least']:g} to {limits['most']:g} "
                    f"({limits['unit']})"
                )

    @classmethod
    def of(cls, settings: Iterable[str]) -> Assumptions:
        """From texts such as ``cores=32``.

        Raises:
            UnknownError: no assumption has this name.
            SpecError: a value that is not a number in its range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, float] = {}
        for one in settings:
            name, sign, text = one.partition("=")
            if not sign:
                raise SpecError(f"--set {one}: expected NAME=NUMBER, such as cores=32")
            check_names("assumption", [name], known)
            try:
                values[name] = float(text)
            except ValueError:
                raise SpecError(
                    f"--set {one}: {text!r} is not a number, such as {name}=2"
                ) from None
        return cls(**values)


Value = Callable[[Row], float]


def metric(name: str) -> Value:
    return lambda row: float(row["metrics"][name])


def measured(
    what: str, bench: str, case: Mapping[str, Any], value: str | Value, run: str, unit: str = ""
) -> Any:
    """A field of :class:`Measured`: the metric, or the function, of the row of this case.

    Args:
        what: its description.
        bench: the benchmark of the row.
        case: what the row's case contains; None: what it lacks.
        value: the name of a metric, or a function of the row.
        run: the command that measures the row.
        unit: "s", "B", or none for counts and shares.
    """
    taken = metric(value) if isinstance(value, str) else value
    source = {"what": what, "bench": bench, "case": case, "value": taken, "run": run}
    return dataclasses.field(metadata=source | {"unit": unit})


measured_time = functools.partial(measured, unit="s")
measured_size = functools.partial(measured, unit="B")


LIME: dict[str, Any] = {"model": "lime-mha"}
STATES = LIME | {"what": "states", "d": 64, "links": 32}
LIST = {"items": 1_000_000, "hidden": 32, "gated": True, "activation": "relu", "threads": 1}
BULK = LIME | {"weights": 32, "hidden": 32, "threads": 1, "k": 100}
SHARDS = LIME | {"items": 1_000_000}
TRAINING = {"d": 64, "N": 128, "per_request": 16, "bf16": False, "threads": 2}
SHARED = LIME | {"store": "valkey", "servers": 2}
PARQUET = {"ids": "integers", "format": "parquet", "events": 20_000_000}
LARGE = LIME | {"items": 10_000_000, "what": None}
INDEX, SCORER, SERVING = ("python -m benchmarks." + name for name in ("index", "scorer", "serving"))
LARGE_INDEX = f"{INDEX} --model lime-mha --items 1_000_000 --table 10_000_000"
STATE, TRAIN = "python -m benchmarks.state", "python -m benchmarks.training"


@dataclass(frozen=True)
class Measured:
    """What rows say. Times are seconds of one core, sizes bytes; ``what`` describes each field."""

    item_bytes: float = measured_size(
        "the index, an item", "index", LIME | {"items": 1_000_000}, "bytes_per_item", INDEX
    )
    unscanned_bytes: float = measured_size(
        "of that, vectors and ids, which a scan does not read (the index of two-tower)",
        "index",
        {"model": "two-tower", "items": 1_000_000},
        "bytes_per_item",
        INDEX,
    )
    vector_bytes: float = measured_size(
        "of that, vectors",
        "index",
        LIME | {"items": 1_000_000},
        lambda row: 4.0 * row["case"]["d"],
        INDEX,
    )
    encoded: float = measured(
        "items encoded for an index, a core second",
        "index",
        LARGE,
        "items_per_processor_s",
        LARGE_INDEX,
    )
    scan: float = measured_time(
        "core time to score an item of a full catalogue, at least: the scorer alone",
        "scorer",
        LIST,
        lambda row: row["metrics"]["ms_p50"] / 1e3 / row["case"]["items"],
        SCORER,
    )
    scan_large: float = measured_time(
        "core time to score an item of a full catalogue, at most: all of a ranking of ten "
        "million, both threads in use throughout",
        "index",
        LARGE,
        lambda row: (
            row["metrics"]["rank_ms_p50"] / 1e3 * row["case"]["threads"] / row["case"]["items"]
        ),
        LARGE_INDEX,
    )
    candidate: float = measured_time(
        "core time to score a candidate of a list",
        "scorer",
        LIST,
        lambda row: row["metrics"]["list_us_p50"] / 1e6 / row["metrics"]["list_candidates"],
        SCORER,
    )
    request: float = measured_time(
        "core time of a request for 512 candidates whose user's state is up to date, at most: "
        "all cores, which two servers, their store and the client share",
        "serving",
        SHARED | {"what": "512 candidates"},
        lambda row: row["machine"]["cores"] / row["metrics"]["requests_per_s"],
        SERVING,
    )
    update_200: float = measured_time(
        "core time to add an event to a stream of 200 events",
        "state",
        STATES | {"events": 200},
        lambda row: row["metrics"]["streaming_update_ms_p50"] / 1e3,
        STATE,
    )
    update_2000: float = measured_time(
        "core time to add an event to a stream of 2,000 events",
        "state",
        STATES | {"events": 2000},
        lambda row: row["metrics"]["streaming_update_ms_p50"] / 1e3,
        STATE,
    )
    state_200: float = measured_size(
        "a stream of 200 events",
        "state",
        STATES | {"events": 200},
        "streaming_bytes",
        STATE,
    )
    state_2000: float = measured_size(
        "a stream of 2,000 events",
        "state",
        STATES | {"events": 2000},
        "streaming_bytes",
        STATE,
    )
    sqlite_event: float = measured_size(
        "an event in an SQLite store, on disk",
        "state",
        {"what": "store", "store": "sqlite", "users": 1_000_000},
        "bytes_per_event",
        f"{STATE} --users 1_000_000 --folder FOLDER",
    )
    valkey_event: float = measured_size(
        "an event in a Valkey store, in memory",
        "state",
        {"what": "memory", "store": "valkey", "events": 200},
        "bytes_per_event",
        f"{STATE} --valkey --users 1_000",
    )
    primary: float = measured(
        "events written to a primary in a second, at least: two servers and the client shared its "
        "cores",
        "serving",
        SHARED | {"what": "events, 50 a request"},
        "events_per_s",
        SERVING,
    )
    asked_bytes: float = measured_size(
        "a question to a shard",
        "shards",
        SHARDS | {"shards": 4},
        lambda row: 1e3 * row["metrics"]["kb_asked"] / row["case"]["shards"],
        "python -m benchmarks.shards",
    )
    answered_bytes: float = measured_size(
        "an answer of a shard",
        "shards",
        SHARDS | {"shards": 4},
        lambda row: 1e3 * row["metrics"]["kb_answered"] / row["case"]["shards"],
        "python -m benchmarks.shards",
    )
    front_1: float = measured_time(
        "core time of a front with one shard",
        "shards",
        SHARDS | {"shards": 1},
        lambda row: row["metrics"]["cpu_ms_of_front"] / 1e3,
        "python -m benchmarks.shards",
    )
    front_4: float = measured_time(
        "core time of a front with four shards",
        "shards",
        SHARDS | {"shards": 4},
        lambda row: row["metrics"]["cpu_ms_of_front"] / 1e3,
        "python -m benchmarks.shards",
    )
    trained_mha: float = measured(
        "impressions that lime-mha trains on, a core second",
        "training",
        TRAINING | LIME,
        lambda row: row["metrics"]["impressions_per_s"] / row["case"]["threads"],
        TRAIN,
    )
    trained_xor: float = measured(
        "impressions that lime-xor trains on, a core second",
        "training",
        TRAINING | {"model": "lime-xor"},
        lambda row: row["metrics"]["impressions_per_s"] / row["case"]["threads"],
        TRAIN,
    )
    items_read: float = measured(
        "items that training reads for an impression, its share of the history included",
        "training",
        TRAINING | LIME,
        lambda row: 1 + row["case"]["N"] / row["case"]["per_request"],
        TRAIN,
    )
    width: float = measured(
        "numbers of an item's embedding", "training", TRAINING | LIME, lambda row: row["case"]["d"],
        TRAIN,
    )  # fmt: skip
    efficiency: float = measured(
        "share of the cores that remains for a training on several processes; measured with two",
        "distributed",
        LIME | {"processes": 2, "tables": "sharded", "item_ids": 1_000_000},
        "efficiency",
        "python -m benchmarks.distributed",
    )
    prepared: float = measured(
        "events prepared in a core second",
        "prepare",
        PARQUET,
        lambda row: row["case"]["events"] / row["metrics"]["cpu_s"],
        "python -m benchmarks.prepare --events 20_000_000",
    )
    prepared_alone: float = measured(
        "events prepared in a second by one process, on two cores",
        "prepare",
        PARQUET,
        "events_per_s",
        "python -m benchmarks.prepare --events 20_000_000",
    )
    bulk_small: float = measured_time(
        "core time for the best of 100,000 items for a user, many users in one pass",
        "bulk",
        BULK | {"items": 100_000},
        lambda row: 1 / row["metrics"]["users_per_s"],
        "python -m benchmarks.bulk",
    )
    bulk_large: float = measured_time(
        "the same, of 1,000,000 items",
        "bulk",
        BULK | {"items": 1_000_000},
        lambda row: 1 / row["metrics"]["users_per_s"],
        "python -m benchmarks.bulk",
    )

    @classmethod
    def read(cls, of: Callable[[str], Iterable[Row]] = rows) -> Measured:
        """The values of the stored rows.

        Args:
            of: name of a benchmark -> its rows.

        Raises:
            DataError: a row is missing; the message names the benchmark to run.
        """
        values = {
            field.name: field.metadata["value"](row_of(field, of))
            for field in dataclasses.fields(cls)
        }
        return cls(**values)

    @classmethod
    def sources(cls, of: Callable[[str], Iterable[Row]] = rows) -> list[Row]:
        """The rows themselves, each once."""
        found: list[Row] = []
        for field in dataclasses.fields(cls):
            if (row := row_of(field, of)) not in found:
                found.append(row)
        return found


def row_of(field: dataclasses.Field[Any], of: Callable[[str], Iterable[Row]]) -> Row:
    """The row that a field of :class:`Measured` is computed from."""
    source = field.metadata
    bench, case = source["bench"], source["case"]
    shown = ", ".join(f"{key} {value}" for key, value in case.items() if value is not None)
    found = []
    for row in of(bench):
        if any(row["case"].get(key) != value for key, value in case.items()):
            continue
        try:
            source["value"](row)
        except (KeyError, TypeError):  # a row of another measurement of the same case
            continue
        found.append(row)
    if not found:
        raise DataError(
            f"no row of {bench!r} with {shown}, for {field.name}: {source['what']}; measure it "
            f"with `{source['run']}`"
        )
    return found[-1]
