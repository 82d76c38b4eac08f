"""Small made-up batches and shapes that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import tomli_w
import torch

from limerank.data.batch import Batch, Features, Interactions, Items, Users
from limerank.data.description import load_spec
from limerank.data.features import anchored_tokens, item_keys
from limerank.data.prepare import prepare
from limerank.models.config import DataShape, ModelConfig, config_class
from limerank.models.neighbours import NeighbourLists
from limerank.models.tasks import Task

SHAPE = DataShape(
    item_ids=40,
    item_tokens=12,
    item_numeric=3,
    user_tokens=6,
    user_numeric=2,
    event_tokens=9,
    context_tokens=5,
    clock=True,
    positive=3,
    tasks=(
        Task(name="click", kind="binary", mean=0.4),
        Task(name="watch", kind="duration", mean=12.0),
    ),
    anchors={"colour": (0, 5), "size": (6, 6)},
)


PLAIN = {
    "anchors": (),
    "vectors": 0,
    "base_rates": False,
    "id_evidence": 0.0,
    "counter_hours": 0,
}
"""A model without what is made of a log before it is trained."""
ANCHORED = anchored_tokens(
    {
        "anchors": list(SHAPE.anchors),
        "items": {
            "tokens": SHAPE.item_tokens,
            "features": [
                {"name": name, "kind": "categorical", "start": start, "size": size}
                for name, (start, size) in SHAPE.anchors.items()
            ],
        },
    }
)


def config_of(model: str, **settings: object) -> ModelConfig:
    """A model's configuration with those of the settings that it has, by its own names."""
    kind = config_class(model)
    own = {kind.other_names.get(name, name): value for name, value in settings.items()}
    known = kind.model_fields.keys() - kind.unused
    return kind(model=model, **{name: own[name] for name in own if name in known})


@dataclass(frozen=True)
class CountedEvents:
    """Made-up events of a training window: (user, item, weight as a positive), users together; an
    event of weight 0 is counted only where ``token`` is None."""

    events: tuple[tuple[int, int, float], ...]
    token: int | None = None
    users_at_once: int = 3

    def blocks(self) -> Iterator[Interactions]:
        users = sorted({user for user, _, _ in self.events})
        for at in range(0, len(users), self.users_at_once):
            some = users[at : at + self.users_at_once]
            part = [one for one in self.events if one[0] in some]
            weights = np.array([weight for *_, weight in part], dtype=np.float32)
            yield Interactions(
                users=np.array([user for user, *_ in part]),
                items=np.array([item for _, item, _ in part]),
                weights=weights,
                counted=np.ones(len(part), bool) if self.token is None else weights > 0,
            )


def counted_events(users: int = 12, seed: int = 0, token: int | None = None) -> CountedEvents:
    """Random events of a small log whose items are those of :data:`SHAPE`."""
    rng = np.random.default_rng(seed)
    events = [
        (user, int(rng.integers(0, SHAPE.item_ids)), float(rng.integers(0, 3)))
        for user in range(users)
        for _ in range(int(rng.integers(1, 15)))
    ]
    return CountedEvents(tuple(events), token)


def features(rows: int, tokens: int, numeric: int, generator: torch.Generator) -> Features:
    """Random content: 0 to 3 different tokens per row."""
    counts = torch.randint(0, 4, (rows,), generator=generator).clamp(max=tokens)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    total = int(offsets[-1])
    order = torch.rand(rows, tokens, generator=generator).argsort(1)
    return Features(
        tokens=order[torch.arange(tokens) < counts[:, None]],
        weights=torch.rand(total, generator=generator),
        offsets=offsets,
        numeric=torch.randn(rows, numeric, generator=generator),
    )


def batch(
    lengths: list[int], counts: list[int], *, width: int = 0, seed: int = 0, items: int = 20
) -> Batch:
    """A random batch with these history lengths and candidate counts; ``width`` extra padding."""
    g = torch.Generator().manual_seed(seed)
    b, n, m = len(lengths), max(lengths) + width, max(counts) + width
    length_b, count_b = torch.tensor(lengths), torch.tensor(counts)
    held = torch.arange(n) < length_b[:, None]
    real = torch.arange(m) < count_b[:, None]
    distinct = items // 2
    since = torch.rand(b, n, generator=g).cumsum(1)
    newest = since.gather(1, (length_b - 1).clamp(min=0)[:, None]) if n else since
    age = (newest - since) * held
    labels = torch.stack(
        [
            torch.randint(0, 2, (b, m), generator=g).float(),
            torch.rand(b, m, generator=g) * 30,
        ],
        -1,
    )
    of_items = Items(
        ids=torch.randint(0, SHAPE.item_ids, (items,), generator=g),
        content=features(items, SHAPE.item_tokens, SHAPE.item_numeric, g),
    )
    return Batch(
        items=of_items,
        distinct=distinct,
        users=Users(
            items=torch.randint(0, items, (b, n), generator=g) * held,
            # Three features of three tokens each: as in every dataset, they share none.
            tokens=torch.randint(0, 3, (b, n, 3), generator=g) + torch.tensor([0, 3, 6]),
            age=age,
            lengths=length_b,
            features=features(b, SHAPE.user_tokens, SHAPE.user_numeric, g),
            context=torch.randint(0, SHAPE.context_tokens, (b, 2), generator=g),
            keys=item_keys(of_items.content, ANCHORED, np.arange(items), of_items.ids.numpy()),
        ),
        candidates=torch.randint(0, distinct, (b, m), generator=g) * real,
        counts=count_b,
        labels=labels * real[..., None],
    )


ZERO_AT_START = (
    "from_anchors.weight",
    "profile.mix.weight",
    "profile.network.2.weight",
    "counters.from_buckets.weight",
    "counters.from_numbers.weight",
)


def random_lists(items: int, most: int) -> NeighbourLists:
    """Neighbours by chance: 0 to ``most`` other items of each row of the id table."""
    rng = np.random.default_rng(5)
    ids, shares = np.zeros((items, most), np.int32), np.zeros((items, most), np.float32)
    for row in range(1, items):
        count = min(int(rng.integers(0, most + 1)), items - 2)
        ids[row, :count] = rng.choice(np.delete(np.arange(1, items), row - 1), count, replace=False)
        shares[row, :count] = np.sort(rng.uniform(0.1, 1.5, count))[::-1]
    return NeighbourLists(torch.from_numpy(ids), torch.from_numpy(shares))


def unsure(ranker: torch.nn.Module) -> None:
    """Every link asks for another count of events than training starts from, and what starts at
    zero or without neighbours does not any more."""
    if getattr(ranker, "neighbour_table", None) is not None:
        ranker.neighbour_table.set(random_lists(*ranker.neighbour_table.ids.shape))
    with torch.no_grad():
        for name, weight in ranker.named_parameters():
            if name.endswith(("log_prior", *ZERO_AT_START)):
                weight.normal_()
        for name, buffer in ranker.named_buffers():
            if name.endswith("statistics"):
                buffer.normal_()


def write_log(
    folder: Path, *, users: int = 40, items: int = 30, seed: int = 0, **spec: object
) -> Path:
    """A small clocked log with two tasks, an item table and a user table; returns its spec."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for user in range(users):
        liked = rng.integers(0, 5)
        time = 1_700_000_000 + int(rng.integers(0, 400_000))
        for request in range(int(rng.integers(2, 12))):
            time += int(rng.integers(4_000, 90_000))
            for item in rng.choice(items, size=int(rng.integers(1, 6)), replace=False):
                click = int(rng.random() < (0.8 if item % 5 == liked else 0.25))
                watch = float(rng.exponential(20.0)) * (0.2 + click)
                rows.append((user, int(item), time, user * 1000 + request, click, watch))
    frame = pl.DataFrame(
        rows, schema=["user_id", "item_id", "time", "request_id", "click", "watch"], orient="row"
    )
    frame.write_parquet(folder / "events.parquet")
    pl.DataFrame(
        {
            "item_id": list(range(items)),
            "group": [f"g{item % 5}" for item in range(items)],
            "tags": [f"t{item % 3}|t{item % 7}" for item in range(items)],
            "length": [float(10 + item) for item in range(items)],
        }
    ).write_csv(folder / "items.csv")
    pl.DataFrame(
        {"user_id": list(range(users)), "country": [f"c{user % 3}" for user in range(users)]}
    ).write_csv(folder / "users.csv")
    path = folder / "spec.toml"
    path.write_text(
        tomli_w.dumps(
            {
                "name": "small",
                "events": [{"files": ["events.parquet"], "time": "time", "request": "request_id"}],
                "labels": [
                    {"name": "click", "kind": "binary"},
                    {"name": "watch", "kind": "duration"},
                ],
                "items": {
                    "files": ["items.csv"],
                    "id": "item_id",
                    "features": [
                        {"name": "group", "kind": "categorical"},
                        {"name": "tags", "kind": "categorical", "split": "|"},
                        {"name": "length", "kind": "numeric"},
                    ],
                },
                "users": {
                    "files": ["users.csv"],
                    "id": "user_id",
                    "features": [{"name": "country", "kind": "categorical"}],
                },
                "history": {"length": 20},
                **spec,
            }
        )
    )
    return path


PAGE_FEATURES = [
    {"name": "device", "kind": "categorical", "when": "context"},
    {"name": "position", "kind": "categorical", "when": "impression", "bias": True},
    {"name": "price", "kind": "numeric", "when": "impression", "transform": "log1p"},
    {"name": "slot", "kind": "categorical", "when": "impression"},
]


def write_pages(
    folder: Path, *, users: int = 60, pages: int = 8, size: int = 6, seed: int = 0, **spec: object
) -> Path:
    """A log of pages of ``size`` shown items with a position, a price and a slot of each, and of
    searches without them; returns its spec. Cheap and early items are clicked."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    n = users * pages
    page = np.repeat(np.arange(n), size)
    position = np.tile(np.arange(size), n)
    price = rng.lognormal(3, 1, len(page)).round(2)
    logit = 1.5 - 1.2 * (np.log(price) - 3) - 0.7 * position
    click = rng.random(len(page)) < 1 / (1 + np.exp(-logit))
    time = 1_700_000_000 + np.arange(n) % pages * 40_000 + np.arange(n) * 7
    device = np.repeat([f"d{k}" for k in rng.integers(0, 3, n)], size)
    shown = pl.DataFrame(
        {
            "user_id": page // pages,
            "item_id": np.argsort(rng.random((n, 40)))[:, :size].ravel(),
            "time": time[page],
            "request_id": page,
            "click": click.astype(np.int64),
            "device": device,
            "position": position + 1,
            "price": pl.Series(price).set(pl.Series(rng.random(len(page)) < 0.1), None),
            "slot": [f"s{k % 2}" for k in range(len(page))],
        }
    )
    shown.write_parquet(folder / "shown.parquet")
    searched = {"user_id": np.arange(n) // pages, "item_id": rng.integers(0, 40, n)}
    pl.DataFrame({**searched, "time": time - 100, "device": device[::size]}).write_parquet(
        folder / "searched.parquet"
    )
    path = folder / "spec.toml"
    sources = [
        {"files": ["shown.parquet"], "time": "time", "request": "request_id"},
        {"files": ["searched.parquet"], "time": "time", "shown": False, "constant": {"click": 1}},
    ]
    labels = [{"name": "click", "kind": "binary"}]
    path.write_text(
        tomli_w.dumps(
            {
                "name": "pages",
                "events": sources,
                "labels": labels,
                "event_features": PAGE_FEATURES,
                **spec,
            }
        )
    )
    return path


def prepare_log(folder: Path, **options: object) -> Path:
    """A prepared dataset of :func:`write_log`'s log."""
    spec = write_log(folder / "log", **options)
    prepare(load_spec(spec), folder / "data", base=spec.parent)
    return folder / "data"


def write_positives(
    folder: Path, *, users: int = 60, groups: int = 6, size: int = 10, seed: int = 0, **spec: object
) -> Path:
    """A log of positives, without a record of what was shown: every user views and buys items of
    one of ``groups`` groups of ``size`` items each; returns its spec. Item i is of group
    ``i % groups``. A purchase weighs 3, a view 1."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for user in range(users):
        group, time = int(rng.integers(groups)), 1_700_000_000 + int(rng.integers(0, 400_000))
        for _ in range(int(rng.integers(4, 10))):
            time += int(rng.integers(4_000, 90_000))
            for step in range(int(rng.integers(1, 4))):
                item = group + groups * int(rng.integers(size))
                event = "purchase" if rng.random() < 0.3 else "view"
                rows.append((f"u{user}", f"i{item}", time + step, event))
    names = ["user_id", "item_id", "time", "event"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(folder / "events.csv")
    path = folder / "spec.toml"
    path.write_text(
        tomli_w.dumps(
            {
                "name": "positives",
                "events": [{"files": ["events.csv"], "time": "time"}],
                "labels": [
                    {
                        "name": "choice",
                        "kind": "positive",
                        "column": "event",
                        "any_of": ["view", "purchase"],
                        "weights": {"view": 1, "purchase": 3},
                    }
                ],
                "requests": {"by": "session", "gap": 1800},
                "history": {"length": 20},
                **spec,
            }
        )
    )
    return path


def write_csv(folder: Path) -> None:
    """Files as the README has them, of 30 users and 40 items: events.csv and items.csv."""
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,time,clicked,seconds"]
    for user in range(30):
        time = 1_718_000_000 + user * 977
        for _ in range(30):
            time += int(rng.integers(20, 40_000))
            item, click = int(rng.integers(0, 40)), int(rng.integers(0, 2))
            lines.append(f"{user},{item},{time},{click},{rng.exponential(9):.1f}")
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    items = [f"{item},c{item % 4},a{item % 3}|b{item % 5}" for item in range(40)]
    (folder / "items.csv").write_text("item_id,category,tags\n" + "\n".join(items) + "\n")
