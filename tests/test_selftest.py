"""A run still gives the scores that it gave when it was trained, or is refused."""

from __future__ import annotations

import contextlib
import json
import random
import shutil

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from limerank.errors import FormatError
from limerank.files import checksum, read_json, write_json
from limerank.index import items as items_module
from limerank.index.building import build_index
from limerank.index.changes import unreadable_items
from limerank.models.config import ModelConfig, TrainConfig
from limerank.ranking.recommender import Recommender
from limerank.runs import selftest
from limerank.runs.alarms import ALARMS
from limerank.runs.folder import load_run, save_weights
from limerank.runs.model import load_trained
from limerank.serving.state import user_features
from limerank.training.trainer import train
from tests.catalogues import MODELS, data, make_run, shop

NAME = selftest.NAME


@pytest.mark.parametrize("model", MODELS)
def test_a_run_repeats_its_scores(model, tmp_path):
    of = shop(model)
    shutil.copytree(of.run.path, tmp_path / "run")
    assert not selftest.passes(load_trained(tmp_path / "run")), "no scores are stored"
    selftest.write(tmp_path / "run", of.run.ranker, of.data.batch(of.requests(5)))
    assert selftest.passes(load_trained(tmp_path / "run"))


def test_training_keeps_it(tmp_path):
    model = ModelConfig(model="lime-mha", width=16, heads=2, links=4, hidden=8)
    train(data().path, tmp_path / "run", model=model, config=TrainConfig(epochs=1))
    assert selftest.passes(load_trained(tmp_path / "run"))


def test_another_answer_is_refused(tmp_path):
    run = make_run(tmp_path / "run", data(), model="lime-xor")
    selftest.write(tmp_path / "run", run.ranker, data().batch(shop("lime-xor").requests(5)))
    held = load_file(tmp_path / "run" / NAME)
    held["logits"][0] += 0.1
    weights = {"weights": checksum(tmp_path / "run" / "model.safetensors")}
    save_file(held, tmp_path / "run" / NAME, weights)
    with pytest.raises(FormatError, match="does not give the logits of its self-test"):
        selftest.passes(load_trained(tmp_path / "run"))
    held.pop("logits")
    save_file(held, tmp_path / "run" / NAME, weights)
    with pytest.raises(FormatError, match="damaged"):
        selftest.passes(load_trained(tmp_path / "run"))
    (tmp_path / "run" / NAME).write_bytes(b"not tensors")
    with pytest.raises(FormatError, match="damaged"):
        selftest.passes(load_trained(tmp_path / "run"))


def test_other_weights_are_not_compared(tmp_path):
    """Training was killed between the weights and what they say."""
    run = make_run(tmp_path / "run", data(), model="lime-mha")
    selftest.write(tmp_path / "run", run.ranker, data().batch(shop("lime-mha").requests(5)))
    with torch.no_grad():
        run.ranker.links.mul_(1.1)
    save_weights(tmp_path / "run", run.ranker)
    assert not selftest.passes(load_trained(tmp_path / "run"))


# Damage


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose training has ended, with its checksums."""
    path = tmp_path_factory.mktemp("finished") / "run"
    model = ModelConfig(model="lime-xor", width=16, heads=2, links=4, hidden=8)
    train(data().path, path, model=model, config=TrainConfig(epochs=1))
    return path


def names(run):
    """Of the files that ranking reads."""
    return sorted(
        str(file.relative_to(run))
        for file in run.rglob("*")
        if file.is_file()
        and file.suffix in (".json", ".safetensors", ".parquet")
        and file.name not in (ALARMS, "optimiser.safetensors")
    )


def test_every_file_that_ranking_reads_is_compared(finished):
    sums = read_json(finished / "checksums.json", "a run")["sha256"]
    assert sorted([*sums, "checksums.json"]) == names(finished)
    assert load_trained(finished).sealed
    for name in sums:
        file = finished / name
        full = file.read_bytes()
        at = len(full) // 2
        flipped = full[:at] + bytes([full[at] ^ 1]) + full[at + 1 :]
        for changed in (flipped, full[:-1], b"", None):
            if changed is None:
                file.unlink()
            else:
                file.write_bytes(changed)
            with pytest.raises(FormatError):
                load_trained(finished)
            file.write_bytes(full)
    (finished / "vocab" / "item_more.parquet").write_bytes(b"")
    with pytest.raises(FormatError, match=r"item_more\.parquet changed"):
        load_trained(finished)
    (finished / "vocab" / "item_more.parquet").unlink()
    assert load_trained(finished).sealed


def test_an_edited_encoding_or_vocabulary_is_found(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "vocab" / "item_group.parquet"
    table = pl.read_parquet(file)
    table.with_columns(table["value"].reverse().alias("value")).write_parquet(file)
    with pytest.raises(FormatError, match=r"vocab/item_group\.parquet changed"):
        load_trained(tmp_path / "run")
    (tmp_path / "run" / "checksums.json").unlink()
    assert not load_trained(tmp_path / "run").sealed, "runs of earlier versions open"
    manifest = read_json(tmp_path / "run" / "encoding.json", "a run")
    manifest["encoding"]["items"]["features"][-1]["mean"] = 5.0
    write_json(tmp_path / "run" / "encoding.json", manifest)
    with pytest.raises(FormatError, match="not the encoding that the run was trained with"):
        load_trained(tmp_path / "run")


def test_damage_without_checksums_is_one_error(finished, tmp_path):
    """Whatever happens to a file: the run is refused, or it ranks."""
    run, index = tmp_path / "run", tmp_path / "index"
    shutil.copytree(finished, run)
    (run / "checksums.json").unlink()
    build_index(run, index, data=data())
    rng = random.Random(0)
    user, item = {"country": "c1"}, {"item_id": 3, "group": "g1", "tags": "t1", "length": 3}

    def use():
        items_module._learned.cache_clear()
        loaded = load_run(run)
        selftest.passes(loaded)
        user_features.UserFeatureCache(loaded).check(user)
        unreadable_items(loaded, [item])
        recommender = Recommender(loaded, index)
        recommender.rank(history=[{"item": 3, "labels": {"click": 1}}], k=3)

    use()
    for name in names(run):
        file = run / name
        full = file.read_bytes()
        damaged = [None, b"", bytes(len(full)), full[: len(full) // 2], full[:-1], b"null"]
        for _ in range(6):
            other = bytearray(full)
            other[rng.randrange(len(other))] ^= rng.randrange(1, 256)
            damaged.append(bytes(other))
        if file.suffix == ".json":
            for _ in range(10):
                damaged.append(json.dumps(mistyped(json.loads(full), rng)).encode())
        for changed in damaged:
            file.unlink()
            if changed is not None:
                file.write_bytes(changed)
            with contextlib.suppress(FormatError):
                use()
            file.write_bytes(full)
    items_module._learned.cache_clear()


def mistyped(value, rng):
    """With one value of another type somewhere."""
    at = value
    while True:
        key = rng.choice(sorted(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], (dict, list)) or not at[key] or rng.random() < 0.2:
            break
        at = at[key]
    at[key] = rng.choice([None, -1, 10**30, "x", [], {}, [1], {"a": 1}, 1.5, True])
    return value


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("users.items", lambda part: part.fill_(10**6)),
        ("users.tokens", lambda part: part.fill_(-(10**9))),
        ("users.lengths", lambda part: part.fill_(10**9)),
        ("candidates", lambda part: part.fill_(10**6)),
        ("counts", lambda part: part.fill_(10**6)),
        ("ids", lambda part: part.fill_(10**12)),
        ("items.offsets", lambda part: part.fill_(7)),
        ("items.tokens", lambda part: part.fill_(10**9)),
        ("items.tokens", lambda part: part.float()),
        ("features.offsets", lambda part: part[:-1]),
        ("users.context", lambda part: part.fill_(10**9)),
        ("users.age", lambda part: part[:, :-1]),
        ("distinct", lambda part: torch.tensor([1, 2])),
        ("distinct", lambda part: torch.tensor(10**9)),
    ],
)
def test_scores_that_point_nowhere_are_damage(tmp_path, name, change):
    run = make_run(tmp_path / "run", data(), model="lime-xor")
    selftest.write(tmp_path / "run", run.ranker, data().batch(shop("lime-xor").requests(5)))
    held = load_file(tmp_path / "run" / NAME)
    held[name] = change(held[name]).contiguous()
    weights = {"weights": checksum(tmp_path / "run" / "model.safetensors")}
    save_file(held, tmp_path / "run" / NAME, weights)
    with pytest.raises(FormatError, match=r"damaged|does not give the logits of its self-test"):
        selftest.passes(load_trained(tmp_path / "run"))
