"""Any ranker and a dataset's split -> exact metrics, with the slices that hide in a mean."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.data.history import DAY_MS
from limerank.errors import SpecError
from limerank.files import TABLE_ENDINGS, check_output, write_json, write_table
from limerank.models import Lime, Ranker
from limerank.models.config import Task
from limerank.models.losses import predictions
from limerank.progress import Bar, table
from limerank.runs.folder import load_run

EDGES = {
    "history": (0, 1, 10, 50, 200),
    "item impressions": (0, 1, 10, 100),
    "user days": (0, 1, 7, 30),
    "item days": (0, 1, 7, 30),
}
"""Where slices of each kind begin; see :func:`ages`."""
EVENTS_AT_ONCE = 1 << 20
"""Events whose times are looked through at once, so that what is held does not grow with a log."""
LIST_DEPTHS = (10, 50)
LIST_NUMBERS = 1 << 22
"""First-layer sums held at once while lists are scored, about."""
LIST_REQUESTS = 2000
"""Requests whose lists are measured; drawn at random where a split has more."""
LIST_SEED = 0
"""Of that draw: the same requests for every model."""


@dataclass(frozen=True)
class Predictions:
    """What a model said of n impressions, in the order of the split's requests.

    Attributes:
        rows: event rows, i64 [n].
        requests: request rows, i64 [n].
        values: probabilities or expected seconds, f32 [n, K].
        labels: what happened, f32 [n, K].
        link_use: mean weight of each link per head, f32 [H, l]; None for models without links.
    """

    rows: NDArray[np.int64]
    requests: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    link_use: NDArray[np.float32] | None


def predict(
    ranker: Ranker,
    dataset: Dataset,
    requests: NDArray[np.int64],
    *,
    history: int | None = None,
    impressions: int = 8192,
    quiet: bool = True,
) -> Predictions:
    """Score every impression of the requests with the history before it."""
    device = next(ranker.parameters()).device
    counts = dataset.requests["count"][requests].astype(np.int64)
    position = np.zeros(len(dataset.requests["count"]) + 1, dtype=np.int64)
    position[requests + 1] = counts
    np.cumsum(position, out=position)
    total, tasks = int(counts.sum()), len(dataset.tasks)
    values = np.empty((total, tasks), dtype=np.float32)
    labels = np.empty((total, tasks), dtype=np.float32)
    use: torch.Tensor | None = None
    plan = dataset.plan(requests, impressions, history)
    was_training = ranker.training
    ranker.eval()
    with (
        torch.inference_mode(),
        Bar("scoring", total=total, unit="impressions", quiet=quiet) as bar,
    ):
        for part, batch in zip(plan, dataset.batches(plan, history), strict=True):
            batch = batch.to(device)
            real = batch.real
            predicted = predictions(ranker(batch)[real].float(), ranker.shape.tasks)
            counts_b = batch.counts.cpu().numpy()
            starts = np.repeat(position[part] - (np.cumsum(counts_b) - counts_b), counts_b)
            at = starts + np.arange(len(starts))
            values[at] = predicted.cpu().numpy()
            labels[at] = batch.labels[real].cpu().numpy()
            if isinstance(ranker, Lime) and ranker.folds:
                terms = ranker.encode_items(ranker.item_vectors(batch.items)[: batch.distinct])
                seen = torch.bincount(batch.candidates[real], minlength=batch.distinct)
                used = seen.to(terms.weights.dtype) @ terms.weights
                use = used if use is None else use + used
            bar.advance(len(at))
    ranker.train(was_training)
    link_use = None
    if use is not None and total:
        link_use = (use / total).view(ranker.config.heads, -1).cpu().numpy()
    rows = dataset.impression_rows(requests)
    return Predictions(rows, np.repeat(requests, counts), values, labels, link_use)


def effective_links(link_use: NDArray[np.float32]) -> float:
    """Perplexity of the links' use, averaged over heads: l when all are used alike, 1 when one."""
    share = np.maximum(link_use.astype(np.float64), 1e-30)
    return float(np.exp(-(share * np.log(share)).sum(-1)).mean())


def task_metrics(
    predicted: Predictions,
    dataset: Dataset,
    tasks: tuple[Task, ...],
    chosen: NDArray[np.bool_] | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of each task over the chosen impressions (all, when not given)."""
    pick = slice(None) if chosen is None else chosen
    users = dataset.requests["user"][predicted.requests[pick]]
    main = next((position for position, task in enumerate(tasks) if task.kind == "binary"), None)
    found: dict[str, dict[str, float]] = {}
    for position, task in enumerate(tasks):
        value, label = predicted.values[pick, position], predicted.labels[pick, position]
        if task.kind == "binary":
            found[task.name] = {
                "auc": metrics.auc(label, value),
                "gauc": metrics.gauc(label, value, users),
                "log_loss": metrics.log_loss(label, value),
                "ne": metrics.normalized_entropy(label, value),
                "calibration": metrics.calibration(label, value),
                "ece": metrics.ece(label, value),
            }
        else:
            positive = label > 0 if main is None else predicted.labels[pick, main]
            found[task.name] = {
                "xauc": metrics.xauc(label, value),
                "wtauc": metrics.wtauc(positive, value, label),
                "mae_s": metrics.mae(label, value),
                "calibration": metrics.calibration(label, value),
            }
    return found


def slices(
    predicted: Predictions, dataset: Dataset
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """The slices that every report shows: (kind, name, which impressions)."""
    return cut(ages(predicted, dataset))


def ages(predicted: Predictions, dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """How well the log knows the user and the item of each impression, i64 [n] by kind of slice:
    ``history``, events that the user had before it; ``item impressions``, how often the item was
    shown in the training window; and where the log has a clock ``user days`` and ``item days``,
    whole days since the first event of either."""
    starts, ends = dataset.requests["history_start"], dataset.requests["history_end"]
    items = np.asarray(dataset.events["item"][predicted.rows])
    found = {
        "history": (ends - starts)[predicted.requests],
        "item impressions": dataset.train_count[items],
    }
    if dataset.clock:
        times = dataset.events["time"]
        begun = times[dataset.event_offsets[dataset.requests["user"][predicted.requests]]]
        first = _first_times(dataset)[items]
        found["user days"] = (times[predicted.rows] - begun) // DAY_MS
        found["item days"] = (times[predicted.rows] - first) // DAY_MS
    return found


def _first_times(dataset: Dataset) -> NDArray[np.int64]:
    """When each item is first met in the log, [items]."""
    items, times = dataset.events["item"], dataset.events["time"]
    found = np.full(len(dataset.items), np.iinfo(np.int64).max)
    for start in range(0, len(items), EVENTS_AT_ONCE):
        some = slice(start, start + EVENTS_AT_ONCE)
        np.minimum.at(found, items[some], times[some])
    return found


def cut(ages: Mapping[str, NDArray[np.int64]]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Slices by what :func:`ages` gives: (kind, name, which impressions)."""
    for kind, values in ages.items():
        edges = EDGES[kind]
        group = np.searchsorted(edges, values, side="right") - 1
        for position, low in enumerate(edges):
            if position + 1 == len(edges):
                name = f"{low}+"
            else:
                high = edges[position + 1] - 1
                name = str(low) if high == low else f"{low}-{high}"
            yield kind, name, group == position


def list_metrics(
    ranker: Ranker,
    dataset: Dataset,
    requests: NDArray[np.int64],
    *,
    most: int = LIST_REQUESTS,
    history: int | None = None,
    quiet: bool = True,
) -> dict[str, float]:
    """NDCG@k, HR@k and MRR of the liked items in the ranking of the whole catalogue.

    Of each request with a positive of the main task (the first binary one, else watch time > 0),
    all its positives are relevant; items that the user has met before are left out of the list,
    and so are positives that the user has met before.

    Args:
        most: requests that are measured, at most. Where there are more, they are drawn at random,
            always the same ones.
    """
    tasks = ranker.shape.tasks
    main = next((position for position, task in enumerate(tasks) if task.kind == "binary"), 0)
    items = len(dataset.items)
    # Requests are drawn before they are looked through: a long split costs what is asked for.
    drawn = requests
    if len(requests) > most:
        drawn = np.random.default_rng(LIST_SEED).permutation(requests)
    relevant: dict[int, NDArray[np.int32]] = {}
    for request in drawn:
        if len(relevant) == most:
            break
        if len(found := _relevant(dataset, request, tasks[main].name)):
            relevant[int(request)] = found
    requests = np.sort(np.array(list(relevant), dtype=np.int64))
    device = next(ranker.parameters()).device
    was_training = ranker.training
    ranker.eval()
    ranks: list[NDArray[np.float64]] = []
    plan = dataset.plan(requests, 1024, history) if len(requests) else []
    with (
        torch.inference_mode(),
        Bar("ranking", total=len(requests), unit="requests", quiet=quiet) as bar,
    ):
        vectors = torch.cat(
            [
                ranker.item_vectors(
                    dataset.item_batch(np.arange(at, min(at + 65536, items))).to(device)
                )
                for at in range(0, items, 65536)
            ]
        )
        terms = ranker.encode_items(vectors)
        for part in plan:
            batch = dataset.batch(part, history).to(device)
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            chunk = max(1, LIST_NUMBERS // (max(items, 1) * ranker.scratch(state)))
            for at in range(0, len(part), chunk):
                some = type(state)(*(of_all[at : at + chunk] for of_all in state))
                scores = ranker.score(some, terms)[..., main].float().cpu().numpy()
                for request, line in zip(part[at : at + chunk], scores, strict=True):
                    ranks.append(_ranks(dataset, request, line, relevant[int(request)]))
                bar.advance(len(scores))
    ranker.train(was_training)
    result = {"requests": float(len(ranks)), "catalogue": float(dataset.candidate.sum())}
    if ranks:
        offsets = np.concatenate([[0], np.cumsum([len(found) for found in ranks])])
        flat = np.concatenate(ranks)
        for depth in LIST_DEPTHS:
            result[f"ndcg@{depth}"] = metrics.ndcg(flat, depth, offsets)
            result[f"hr@{depth}"] = metrics.hit_rate(flat, depth, offsets)
        result["mrr"] = metrics.mrr(flat, offsets)
    return result


def _seen(dataset: Dataset, request: int) -> NDArray[np.int32]:
    """Items of the whole history before a request."""
    columns = dataset.requests
    rows = slice(columns["history_start"][request], columns["history_end"][request])
    items: NDArray[np.int32] = dataset.events["item"][
        rows if dataset.retained is None else dataset.retained[rows]
    ]
    return items


def _relevant(dataset: Dataset, request: int, label: str) -> NDArray[np.int32]:
    """Items of a request that the user liked and had not met before."""
    first = dataset.requests["first"][request]
    shown = slice(first, first + dataset.requests["count"][request])
    liked = dataset.events["item"][shown][dataset.events[f"label_{label}"][shown] > 0]
    return np.setdiff1d(liked[dataset.candidate[liked]], _seen(dataset, request))


def _ranks(
    dataset: Dataset, request: int, scores: NDArray[np.float32], relevant: NDArray[np.int32]
) -> NDArray[np.float64]:
    """The rank of each relevant item, ascending; each counts the others above it, and of equal
    scores the lower row comes first."""
    scores[np.isnan(scores)] = -np.inf
    scores[_seen(dataset, request)] = -np.inf
    scores[~dataset.candidate] = -np.inf
    ranks = [
        1
        + np.count_nonzero(scores > scores[item])
        + np.count_nonzero(scores[:item] == scores[item])
        for item in relevant
    ]
    return np.sort(np.array(ranks, dtype=np.float64))


def evaluate(
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "test",
    history: int | None = None,
    at_least: int = 0,
    lists: int = LIST_REQUESTS,
    out: str | os.PathLike[str] | None = None,
    predictions: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """All metrics of a run on one split; written to a file in the run folder.

    Args:
        run: a run folder.
        data: the dataset; the one the run was trained on when not given.
        split: "train", "validation", "test", or "held-out": users that training never saw.
        history: see only so many of a user's latest events, such as 0 for features alone; as many
            as in training when not given.
        at_least: only requests with at least so many events before them, so that different
            histories are compared on the same impressions.
        lists: rank the whole catalogue for NDCG, HR and MRR at so many requests, drawn at random
            where the split has more (the same ones for every run); 0: no lists.
        out: where to write; ``metrics.json`` in the run folder when not given, and where anything
            but the test split with all history is read, ``metrics-WHAT.json`` beside it.
        predictions: a file to write what was said of each impression to, Parquet or, where its name
            ends in ``.csv``, CSV: columns user, item, time, request, what :func:`ages` gives
            (history, item_impressions, user_days, item_days), and per task ``TASK`` and
            ``TASK_predicted``. It names users; nothing else that this writes does.

    Raises:
        FormatError: ``run`` is no run, or ``out`` or ``predictions`` cannot be written (found
            before anything is computed).
        UnknownError: no such split.
        SpecError: ``history``, ``at_least`` or ``lists`` is below 0.
    """
    for name, value in (("history", history), ("at_least", at_least), ("lists", lists)):
        if value is not None and value < 0:
            raise SpecError(f"{name} is {value}, expected 0 or more")
    target = Path(run) / _file_name(split, history, at_least) if out is None else Path(out)
    if out is not None:
        check_output(target, (".json",))
    if predictions is not None:
        check_output(predictions, TABLE_ENDINGS)
    loaded = load_run(run)
    dataset = loaded.dataset(data)
    requests = dataset.requests_of(split)
    requests = requests[dataset.history_lengths(requests, 1 << 62) >= at_least]
    if out is None:  # the folder is a run
        check_output(target)
    if history is None:
        history = loaded.train.history
    predicted = predict(loaded.ranker, dataset, requests, history=history, quiet=quiet)
    if predictions is not None:
        _write_predictions(predicted, dataset, Path(predictions))
    tasks = loaded.ranker.shape.tasks
    result: dict[str, Any] = {
        "model": loaded.ranker.config.model,
        "dataset": dataset.name,
        "split": split,
        "history": dataset.history_length if history is None else history,
        "at_least": at_least,
        "requests": len(requests),
        "impressions": len(predicted.rows),
        "tasks": task_metrics(predicted, dataset, tasks) if len(predicted.rows) else {},
        "slices": [
            {
                "kind": kind,
                "slice": name,
                "impressions": int(chosen.sum()),
                "tasks": task_metrics(predicted, dataset, tasks, chosen) if chosen.any() else {},
            }
            for kind, name, chosen in slices(predicted, dataset)
        ],
    }
    if predicted.link_use is not None:
        result["effective_links"] = effective_links(predicted.link_use)
    if lists:
        result["lists"] = list_metrics(
            loaded.ranker, dataset, requests, most=lists, history=history, quiet=quiet
        )
    result = _without_nan(result)
    write_json(target, result)
    return result


def _file_name(split: str, history: int | None, at_least: int) -> str:
    parts = ["metrics"]
    if split != "test":
        parts.append(split)
    if history is not None:
        parts.append(f"history-{history}")
    if at_least:
        parts.append(f"at-least-{at_least}")
    return "-".join(parts) + ".json"


def _write_predictions(predicted: Predictions, dataset: Dataset, path: Path) -> None:
    columns = {
        "user": dataset.user_ids[dataset.requests["user"][predicted.requests]],
        "item": dataset.item_ids[dataset.events["item"][predicted.rows]],
        "time": np.asarray(dataset.events["time"][predicted.rows]),
        "request": predicted.requests,
        **{column(kind): values for kind, values in ages(predicted, dataset).items()},
    }
    for position, task in enumerate(dataset.tasks):
        columns[task] = predicted.labels[:, position]
        columns[f"{task}_predicted"] = predicted.values[:, position]
    write_table(pl.DataFrame(columns), path)


def column(kind: str) -> str:
    """The name of a kind of :func:`ages` in a table of predictions."""
    return kind.replace(" ", "_")


def table_text(result: Mapping[str, Any]) -> str:
    """What :func:`evaluate` found, to read: a block of metrics and a table of slices."""
    lines = [
        f"{result['model']} on {result['dataset']}, {result['split']} split: "
        f"{result['impressions']:,} impressions in {result['requests']:,} requests",
        "",
    ]
    blocks = [
        (task, "  ".join(f"{name} {_shown(v)}" for name, v in found.items()))
        for task, found in result["tasks"].items()
    ]
    if "lists" in result:
        lists = {
            name: value for name, value in result["lists"].items() if "@" in name or name == "mrr"
        }
        blocks += [
            ("lists", "  ".join(f"{name} {_shown(v)}" for name, v in lists.items())),
            (
                "",
                f"(whole catalogue of {result['lists']['catalogue']:,.0f} items, "
                f"{result['lists']['requests']:,.0f} requests with a positive, met items left out)",
            ),
        ]
    if "effective_links" in result:
        blocks.append(("links", f"effective number {result['effective_links']:.1f}"))
    lines += table(blocks, "<<", (10,))
    heads = [(task, next(iter(found))) for task, found in result["tasks"].items()]
    rows = [("slice", "impressions", *(f"{task} {metric}" for task, metric in heads))]
    for part in result["slices"]:
        values = [part["tasks"].get(task, {}).get(metric) for task, metric in heads]
        name = f"{part['kind']} {part['slice']}"
        rows.append((name, f"{part['impressions']:,}", *map(_shown, values)))
    lines += ["", *table(rows, "<" + ">" * (1 + len(heads)), (26, 12, *[16] * len(heads)))]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _without_nan(value: Any) -> Any:
    """NaN (a metric that is not defined, such as AUC of one class) as null."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
