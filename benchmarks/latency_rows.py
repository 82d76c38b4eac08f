"""Which rows of the latency study the page, its goals and its plots compare."""

from __future__ import annotations

from benchmarks.tables import Row

ORDER = ("two-tower", "lime-mha", "lime-xor", "mha", "hstu", "faiss-flat")
LIMES = ("lime-mha", "lime-xor")
POINT = {"N": 1024, "M": 512, "d": 64, "batch": 1}
"""The point of all sweeps but the grid."""
Times = dict[tuple[str, int, int], float]
"""(model, N, M) -> milliseconds of a full request."""


def at_point(row: Row, *but: str) -> bool:
    """Whether a row has the usual width, links and batch, except for the varied keys."""
    case = row["case"]
    usual = {**POINT, "links": 32 if case["links"] is not None else None}
    return all(case[key] == usual[key] for key in ("d", "links", "batch") if key not in but)


def times_of(found: list[Row], state: str) -> Times:
    """Times of full requests on the grid, by model, history and candidates."""
    return {
        (row["case"]["model"], row["case"]["N"], row["case"]["M"]): row["metrics"]["ms_p50"]
        for row in found
        if row["case"]["state"] == state and at_point(row)
    }


def on_point(row: Row) -> bool:
    """Whether a row has the history and candidates of the sweeps."""
    return all(row["case"][key] == POINT[key] for key in ("N", "M"))
