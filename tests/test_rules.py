"""Rules of a request: the list is that of a loop over the full ranking, and every entry point has
the same rules."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.errors import DataError, SpecError, UnknownError
from limerank.index.changes import remove_items
from limerank.ranking import rules as limits_of_rules
from limerank.ranking.recommender import Recommender
from limerank.ranking.rules import POOL, Rules, read_rules, rules_of
from limerank.serving.engine import Serving
from limerank.serving.messages import Rank
from limerank.serving.stores import SqliteStore
from tests.catalogues import ITEMS, plain_log, shop

USER = 3


@cache
def recommender(model: str = "lime-mha") -> Recommender:
    """Reads the item table that the description of the dataset names."""
    of = shop(model)
    return Recommender(of.run, of.index, of.data)


@cache
def features() -> dict[int, dict[str, object]]:
    table = pl.read_csv(plain_log() / "items.csv").to_dicts()
    return {
        one["item_id"]: {
            "group": {one["group"]},
            "tags": set(one["tags"].split("|")),
            "length": one["length"],
        }
        for one in table
    }


@cache
def everything(model: str = "lime-mha") -> list[tuple[int, np.float32]]:
    """Item and value, best first, as ranked without rules."""
    full = recommender(model).rank(USER, k=ITEMS, exclude_seen=False)
    return [(item.id, np.float32(item.value)) for item in full]


def holds(condition, item: int, name: str) -> bool:
    values = features()[item][name]
    if isinstance(condition, list):
        condition = {"any": condition}
    number = values if name == "length" else None
    values = {values} if name == "length" else values
    return all(
        {
            "any": lambda of: bool(values & set(of)),
            "all": lambda of: set(of) <= values,
            "not": lambda of: not values & set(of),
            "from": lambda of: number >= of,
            "to": lambda of: number <= of,
        }[part](of)
        for part, of in condition.items()
    )


def fits(conditions, item: int) -> bool:
    return all(holds(condition, item, name) for name, condition in conditions.items())


def by_loop(rules: dict, k: int) -> list[int]:
    """The list, by the definition: one item after another, over the full ranking."""
    rows = recommender().index.ids.find
    order = []
    for item, value in everything():
        for boost in rules.get("boosts", []):
            named = item in boost["items"] if "items" in boost else True
            if named and fits(boost.get("filter", {}), item):
                value = value * np.float32(boost.get("multiply", 1)) + np.float32(
                    boost.get("add", 0)
                )
        order.append((item, value))
    order.sort(key=lambda one: (-one[1], int(rows([one[0]])[0])))
    pins = {pin["position"]: pin["item"] for pin in rules.get("pins", [])}
    order = [
        (item, value)
        for item, value in order
        if item not in pins.values() and fits(rules.get("filter", {}), item)
    ]
    counts = {name: Counter() for name in rules.get("per", {})}

    def count(item):
        for name, of in counts.items():
            of.update(features()[item][name])

    def within(item):
        return all(
            counts[name][value] < most
            for name, most in rules.get("per", {}).items()
            for value in features()[item][name]
        )

    for item in pins.values():
        count(item)
    chosen, wanted = [], k - len(pins)
    weight, like = rules.get("diversity", 0), list(pins.values())
    pool = order[: max(POOL * wanted, 100)] if weight else []
    while pool and len(chosen) < wanted:
        low, high = float(pool[-1][1]), float(pool[0][1])
        left = [(i, v) for i, v in pool if i not in chosen and within(i)]
        if not left:
            break
        alike = recommender()._flow.alike
        row = {item: int(rows([item])[0]) for item, _ in order} | {
            item: int(rows([item])[0]) for item in like
        }
        at = np.array([row[item] for item, _ in left])
        nearest = np.zeros(len(left))
        if like + chosen:
            nearest = np.max([alike.to(row[one], at) for one in like + chosen], axis=0)
        gain = [
            (1 - weight) * (float(v) - low) / ((high - low) or 1) - weight * near
            for (_, v), near in zip(left, nearest.tolist(), strict=True)
        ]
        best = left[int(np.argmax(gain))][0]
        chosen.append(best)
        count(best)
    for item, _ in order[len(pool) :]:
        if len(chosen) < wanted and within(item):
            chosen.append(item)
            count(item)
    found = []
    for position in range(1, k + 1):
        if position in pins:
            found.append(pins.pop(position))
        elif chosen:
            found.append(chosen.pop(0))
        else:
            break
    return (found + [item for _, item in sorted(pins.items())])[:k]


GROUPS = st.lists(st.sampled_from([f"g{k}" for k in range(6)]), max_size=3)
TAGS = st.lists(st.sampled_from([f"t{k}" for k in range(8)]), max_size=3)
PART = st.sampled_from(["any", "not", "all"])
RANGE = st.tuples(st.integers(0, 110), st.integers(0, 110)).map(sorted)
FILTER = st.fixed_dictionaries(
    {},
    optional={
        "group": GROUPS | st.builds(lambda part, of: {part: of}, PART, GROUPS),
        "tags": TAGS | st.builds(lambda part, of: {part: of}, PART, TAGS),
        "length": RANGE.map(lambda of: {"from": of[0], "to": of[1]})
        | st.integers(0, 110).map(lambda low: {"from": low})
        | st.integers(0, 110).map(lambda high: {"to": high}),
    },
)
ITEM = st.integers(0, ITEMS - 1)
BOOST = st.fixed_dictionaries(
    {"filter": FILTER.filter(bool)},
    optional={
        "add": st.sampled_from([-1.5, 0.25, 3]),
        "multiply": st.sampled_from([0, 0.5, 2]),
        "items": st.lists(ITEM, max_size=9),
    },
)
PINS = st.dictionaries(st.integers(1, 9), ITEM, max_size=3).map(
    lambda of: [
        {"position": position, "item": item}
        for position, item in of.items()
        if list(of.values()).count(item) == 1
    ]
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "filter": FILTER,
        "boosts": st.lists(BOOST, max_size=3),
        "pins": PINS,
        "per": st.dictionaries(st.sampled_from(["group", "tags"]), st.integers(1, 4), max_size=2),
        "diversity": st.sampled_from([0.0, 0.3, 1.0]),
    },
)


@settings(max_examples=120)
@given(RULES, st.integers(9, ITEMS), st.sampled_from([1, 5, 100]))
def test_a_list_by_rules_is_that_of_a_loop_over_everything(rules, k, least):
    """However large the first part of the ranking is that a limit reads."""
    held = limits_of_rules.LEAST_POOL
    try:
        if not rules.get("diversity"):
            limits_of_rules.LEAST_POOL = least
        ranking = recommender().rank(USER, k=k, exclude_seen=False, rules=rules)
    finally:
        limits_of_rules.LEAST_POOL = held
    assert [item.id for item in ranking] == by_loop(rules, k)
    model = dict(everything())
    pinned = {pin["item"] for pin in rules.get("pins", [])}
    for item in ranking:
        assert item.value - item.boost == pytest.approx(float(model[item.id]), abs=1e-4)
        assert item.pinned == (item.id in pinned)


def test_every_form_of_a_condition(tmp_path):
    """On an item table with gaps, given by hand."""
    table = pl.read_csv(plain_log() / "items.csv")
    table = table.with_columns(
        group=pl.when(pl.col("item_id") < 9).then(None).otherwise(pl.col("group")),
        length=pl.when(pl.col("item_id") == 20).then(None).otherwise(pl.col("length")),
    )
    table.write_parquet(tmp_path / "items.parquet")
    of = shop("lime-mha")
    one = Recommender(of.run, of.index, of.data, items=tmp_path / "items.parquet")

    def ids(**conditions):
        found = one.rank(None, k=ITEMS, rules={"filter": conditions})
        return sorted(item.id for item in found)

    every, none = set(range(ITEMS)), set(range(9))
    groups = {item: f"g{item % 5}" for item in every - none}
    assert ids(group="g1") == [item for item, of in groups.items() if of == "g1"]
    assert ids(group=[None]) == sorted(none)
    assert ids(group=["g1", None]) == sorted(none | {i for i, of in groups.items() if of == "g1"})
    assert ids(group={"not": ["g1"]}) == sorted(every - set(ids(group="g1")))
    assert ids(group={"not": [None]}) == sorted(every - none)
    both = [item for item in every if {f"t{item % 3}", f"t{item % 7}"} == {"t1", "t2"}]
    assert ids(tags={"all": ["t1", "t2"]}) == sorted(both)
    assert ids(tags={"any": ["t1", "t2"], "not": ["t2"]}) == [
        item
        for item in every
        if "t1" in {f"t{item % 3}", f"t{item % 7}"} and "t2" not in {f"t{item % 3}", f"t{item % 7}"}
    ]
    assert ids(length={"from": 29, "to": 31}) == [19, 21]
    assert ids(length={"to": 10.5}) == [0] and ids(length={"from": 99}) == [ITEMS - 1]
    assert ids(length=[None]) == [20] and 20 in ids(length={"not": [12]})
    assert ids() == sorted(every) and ids(group=[]) == []


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        ({"filter": {"colour": ["red"]}}, "no item feature is called 'colour'; known: group, tags"),
        ({"filter": {"grup": ["g1"]}}, "did you mean 'group'"),
        ({"filter": {"length": {"from": 50, "to": 10}}}, "no number is from 50 to 10"),
        ({"filter": {"group": {"from": 1}}}, "'group' is a categorical feature"),
        ({"filter": {"length": ["long"]}}, "expected numbers"),
        ({"filter": {"group": {"or": ["g1"]}}}, "no part is called 'or'"),
        ({"filter": {"group": {}}}, "it is empty"),
        ({"filter": {"group": [["g1"]]}}, "a list as a value"),
        ({"filter": {"group": ["x"] * 1001}}, "1,001 values, expected at most 1,000"),
        ({"per": {"length": 2}}, "'length' is a numeric feature, expected a categorical one"),
        ({"per": {"colour": 2}}, "no item feature is called 'colour'"),
        ({"per": {"group": 0}}, "per.group"),
        ({"boosts": [{"add": 1}]}, "a boost is for no item"),
        ({"boosts": [{"items": [3], "multiply": -1}]}, "boosts.0.multiply"),
        ({"pins": [{"item": 3, "position": 21}]}, "position 21, and the list ends at k = 20"),
        ({"pins": [{"item": 3, "position": 1}, {"item": "3", "position": 2}]}, "two pins have"),
        ({"pins": [{"item": 999, "position": 1}]}, "999"),
        ({"diversity": 1.5}, "diversity"),
        ({"divrsity": 0.5}, "did you mean 'diversity'"),
        ("per = {group = 1", "not TOML"),
        ("nothing-here.toml", "cannot read the rules in nothing-here.toml"),
    ],
)
def test_wrong_rules_are_refused_with_what_to_do(rules, what):
    with pytest.raises((SpecError, UnknownError, DataError)) as error:
        recommender().rank(USER, rules=rules)
    assert what in str(error.value)


def test_diversity_is_bounded_and_needs_a_model_that_describes_items():
    with pytest.raises(SpecError, match="expected at most 500 with diversity"):
        recommender().rank(USER, k=501, rules={"diversity": 0.5})


def test_rules_from_toml_a_file_and_a_mapping_are_one(tmp_path):
    text = 'filter = {group = ["g1"]}\nper = {tags = 1}\n[[pins]]\nitem = 7\nposition = 2\n'
    path = tmp_path / "rules.toml"
    path.write_text(text)
    values = {
        "filter": {"group": ["g1"]},
        "per": {"tags": 1},
        "pins": [{"item": 7, "position": 2}],
    }
    assert read_rules(str(path)) == read_rules(text) == rules_of(values) == Rules(**values)
    assert read_rules("diversity = 0.5", str(path)).diversity == 0.5
    assert rules_of(None) is None and not Rules().select


def test_unknown_candidates_and_pins_are_skipped_on_request(tmp_path):
    of = shop("lime-mha")
    rules = {"unknown": "skip", "pins": [{"item": 5, "position": 1}, {"item": "x", "position": 2}]}
    ranking = recommender().rank(USER, candidates=[5, 999, 8], exclude_seen=False, rules=rules)
    assert [item.id for item in ranking] == [5, 8] and ranking.skipped == 2
    with pytest.raises(UnknownError, match="pins are not in"):
        recommender().rank(USER, rules={"pins": rules["pins"]})
    with pytest.raises(SpecError, match="not one of the candidates"):
        recommender().rank(USER, candidates=[8], rules={"pins": rules["pins"][:1]})
    engine = engine_of(of, tmp_path)
    remove_items(engine._served.index.path, [8])
    engine.follow()
    asked = Rank(candidates=[5, 999, 8], **rules)
    answer = engine.rank(asked)
    assert [one["item"] for one in answer["items"]] == [5] and answer["skipped"] == 3
    engine.close()


def engine_of(of, path):
    import shutil

    shutil.copytree(of.index.path, path / "index")
    items = plain_log() / "items.csv"
    return Serving(of.run.path, path / "index", SqliteStore(path / "events.db"), items=items)


def test_the_server_follows_the_same_rules(tmp_path):
    engine = engine_of(shop("lime-mha"), tmp_path)
    rules = {
        "filter": {"length": {"from": 12}, "group": {"not": ["g2"]}},
        "boosts": [{"filter": {"tags": ["t4"]}, "add": 0.7}, {"items": [31], "multiply": 0.5}],
        "pins": [{"item": 2, "position": 3}],
        "per": {"group": 2},
        "diversity": 0.4,
    }
    time = recommender().form.log_end
    here = recommender().rank(None, k=8, rules=rules, time=time)
    answer = engine.rank(Rank(k=8, time=time, **rules))
    assert [one["item"] for one in answer["items"]] == [item.id for item in here]
    assert [one.get("pinned", False) for one in answer["items"]] == [item.pinned for item in here]
    assert [one.get("boost", 0.0) for one in answer["items"]] == pytest.approx(
        [item.boost for item in here], abs=1e-5
    )
    assert answer["items"][2]["item"] == 2 and "skipped" not in answer
    # Live items have features at once, and lose them when they are removed.
    engine.put_items([{"item_id": 900, "group": "new", "tags": "t4|t5", "length": 12.5}])
    found = engine.rank(Rank(k=8, filter={"tags": {"all": ["t4", "t5"]}, "length": {"to": 13}}))
    assert [one["item"] for one in found["items"]] == [900]
    found = engine.rank(Rank(k=ITEMS, per={"group": 1}))["items"]
    assert {one["features"]["group"] for one in found} == {*(f"g{k}" for k in range(5)), "new"}
    assert len(found) == 6
    engine.remove_item("900")
    assert engine.rank(Rank(filter={"group": "new"}))["items"] == []
    engine.close()
