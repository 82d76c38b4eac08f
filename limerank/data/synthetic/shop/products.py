"""The products of a simulated shop: what they are, and how often each is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limerank.data.synthetic.shop.world import STEPS_PER_DAY, ShopWorld

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Category:
    """A category of the shop.

    Attributes:
        name: as the item table has it.
        noun: of a title.
        price: the median, in euros.
        cycle: days until a user needs the product again; 0 for what lasts.
    """

    name: str
    noun: str
    price: float
    cycle: int = 0


CATEGORIES = (
    Category("Trail shoes", "trail shoe", 120), Category("Road shoes", "road shoe", 110),
    Category("Hiking boots", "hiking boot", 170), Category("Sandals", "sandal", 60),
    Category("Rain jackets", "rain jacket", 140), Category("Fleece jackets", "fleece jacket", 80),
    Category("T-shirts", "T-shirt", 30), Category("Running shorts", "running short", 40),
    Category("Socks", "sock pair", 15), Category("Caps", "cap", 25),
    Category("Tents", "tent", 280), Category("Sleeping bags", "sleeping bag", 160),
    Category("Sleeping mats", "sleeping mat", 80), Category("Stoves", "stove", 60),
    Category("Gas cartridges", "gas cartridge", 8, 30), Category("Headlamps", "headlamp", 45),
    Category("Camping chairs", "camping chair", 50), Category("Helmets", "helmet", 90),
    Category("Bike lights", "bike light", 35), Category("Inner tubes", "inner tube", 7, 35),
    Category("Chain oil", "chain oil", 9, 28), Category("Saddle bags", "saddle bag", 40),
    Category("Gloves", "glove pair", 30), Category("Yoga mats", "yoga mat", 45),
    Category("Dumbbells", "dumbbell", 55), Category("Skipping ropes", "skipping rope", 18),
    Category("Resistance bands", "resistance band", 16),
    Category("Energy bars", "energy bar box", 24, 12),
    Category("Protein powder", "protein powder", 32, 24),
    Category("Electrolytes", "electrolyte tablets", 12, 18),
    Category("Coffee", "coffee", 14, 15), Category("Trail mix", "trail mix", 9, 14),
    Category("Sun cream", "sun cream", 15, 30), Category("Plasters", "plaster pack", 7, 35),
    Category("Shoe wax", "shoe wax", 11, 40), Category("Detergent", "detergent", 13, 25),
    Category("Swimsuits", "swimsuit", 50), Category("Goggles", "goggles", 28),
    Category("Dry bags", "dry bag", 30), Category("Water bottles", "water bottle", 22),
)  # fmt: skip
STYLES = (
    "Alpine", "Arctic", "Aurora", "Basalt", "Canyon", "Cedar", "Cobalt", "Delta", "Ember", "Fjord",
    "Granite", "Harbour", "Juniper", "Kestrel", "Lagoon", "Meadow", "Nomad", "Onyx", "Pacific",
    "Quartz", "Ridge", "Sierra", "Tundra", "Vector",
)  # fmt: skip
"""First words of titles. Every item has a style, which half of the titles name."""
TITLED = 0.5
BRAND_STARTS = ("Al", "Bor", "Cam", "Dor", "El", "Fen", "Gar", "Hol", "Is", "Jor", "Kal", "Lum")
BRAND_ENDS = ("ani", "beck", "dale", "en", "fell", "ga", "heim", "ico", "ka", "land", "mark", "ora")
BRANDS, BRANDS_OF_CATEGORY = 96, 9
TIERS = 3
"""Price levels of a category."""
SET_SIZE = 10
"""Items that go together: of any categories, and nothing but the purchases shows which."""
HEAD, TAIL = 150, 0.9
"""The popularity of the k-th item is (HEAD + k) ** -TAIL."""
FIRST_ITEMS = 0.75
"""Share of the items that the shop sells when the log begins; the others are launched later."""
LAUNCH_BOOST, LAUNCH_DAYS = 3.0, 8.0
PROMOTED, PROMOTED_BOOST = 0.01, 6.0
"""Share of the items that a week's campaign promotes, and by how much."""
APPEAL_SPREAD = 0.35


class Pool:
    """Items in groups; draws an item of a group by the weights of the present step."""

    def __init__(self, key: Ints, groups: int) -> None:
        self._order = np.argsort(key, kind="stable")
        self._first = np.searchsorted(key[self._order], np.arange(groups + 1))

    def weigh(self, weight: Values) -> None:
        self._up_to = np.append(0.0, np.cumsum(weight[self._order]))

    def total(self, group: Ints) -> Values:
        """Weight of all items of these groups; 0 where none is on sale."""
        return self._up_to[self._first[group + 1]] - self._up_to[self._first[group]]

    def draw(self, group: Ints, rng: np.random.Generator) -> Ints:
        """An item of each of these groups, which have a weight."""
        low, high = self._up_to[self._first[group]], self._up_to[self._first[group + 1]]
        at = np.searchsorted(self._up_to, low + (high - low) * rng.random(len(group)), "right") - 1
        return self._order[np.clip(at, self._first[group], self._first[group + 1] - 1)]

    def members(self, group: Ints) -> tuple[Ints, Ints]:
        """Items of all these groups, one group after another, and which position each is of."""
        first, count = self._first[group], self._first[group + 1] - self._first[group]
        of = np.repeat(np.arange(len(group)), count)
        within = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        return self._order[first[of] + within], of


KINDS = ("all", "category", "brand", "style", "tier", "set")
ALL, CATEGORY, BRAND, STYLE, TIER, SET = range(len(KINDS))


class Products:
    """The products; :meth:`move` before each step of time.

    Attributes:
        category, brand, style, tier, set: of each item, i64 [I].
        cycle: days until a user needs the item again, f64 [I]; 0 for what lasts.
        appeal: factor of the probability that a view puts it into the cart, f64 [I].
        price: in euros, f64 [I].
        launch: step from which it is on sale, i64 [I]; 0 or less: from the beginning.
        pools: by kind (:data:`KINDS`); groups of all but ``set`` are of one category.
        weight: share of the views that follow popularity at this step, f64 [I].
    """

    def __init__(self, world: ShopWorld, rng: np.random.Generator) -> None:
        n = world.items
        self._world, self._rng = world, rng
        self.categories = len(CATEGORIES)
        share = rng.lognormal(0.0, 0.5, self.categories)
        self.category = rng.choice(self.categories, n, p=share / share.sum())
        self.category[: min(n, self.categories)] = np.arange(min(n, self.categories))
        typical = np.argsort(rng.random((self.categories, BRANDS)), axis=1)[:, :BRANDS_OF_CATEGORY]
        rank = np.minimum(rng.exponential(2.5, n).astype(np.int64), BRANDS_OF_CATEGORY - 1)
        self.brand = typical[self.category, rank]
        self.style = rng.integers(0, len(STYLES), n)
        self.set = rng.permutation(n) // SET_SIZE
        level = rng.standard_normal(n)
        self.tier = np.searchsorted([-0.45, 0.6], level)
        medians = np.array([one.price for one in CATEGORIES])
        self.price = np.maximum(np.round(medians[self.category] * np.exp(0.45 * level)), 2) - 0.05
        self.cycle = np.array([float(one.cycle) for one in CATEGORIES])[self.category]
        self.appeal = np.clip(np.exp(APPEAL_SPREAD * rng.standard_normal(n)), 0.4, 2.2)
        self.launch = np.where(
            rng.random(n) < FIRST_ITEMS,
            -rng.integers(0, 400 * STEPS_PER_DAY, n),
            rng.integers(1, max(world.steps, 2), n),
        )
        self.launch[: self.categories] = np.minimum(self.launch[: self.categories], 0)
        self._base = rng.permutation((HEAD + np.arange(n)) ** -TAIL)
        keys = {
            "all": (np.zeros(n, dtype=np.int64), 1),
            "category": (self.category, self.categories),
            "brand": (self.category * BRANDS + self.brand, self.categories * BRANDS),
            "style": (self.category * len(STYLES) + self.style, self.categories * len(STYLES)),
            "tier": (self.category * TIERS + self.tier, self.categories * TIERS),
            "set": (self.set, int(self.set.max()) + 1),
        }
        self.pools = tuple(Pool(*keys[kind]) for kind in KINDS)
        self._promoted = np.ones(n)
        self.move(0)

    def move(self, step: int) -> None:
        """Launch what is due, and let campaigns and the boost of new items come and go."""
        if step % (7 * STEPS_PER_DAY) == 0:
            drawn = self._rng.random(len(self.launch)) < PROMOTED
            self._promoted = np.where(drawn, PROMOTED_BOOST, 1.0)
        age = (step - self.launch) / STEPS_PER_DAY
        fresh = 1.0 + LAUNCH_BOOST * np.exp(-np.maximum(age, 0.0) / LAUNCH_DAYS)
        weight = np.where(age >= 0, self._base * fresh * self._promoted, 0.0)
        self.weight = weight / weight.sum()
        for pool in self.pools:
            pool.weigh(self.weight)

    def titles(self) -> list[str]:
        """Such as "Ridge trail shoe 214": a style's word or any other, what it is, a number."""
        rng = self._rng
        named = rng.random(len(self.style)) < TITLED
        word = np.where(named, self.style, rng.integers(0, len(STYLES), len(self.style)))
        number = 100 + np.arange(len(self.style)) % 900
        return [
            f"{STYLES[w]} {CATEGORIES[c].noun} {k}"
            for w, c, k in zip(word, self.category, number, strict=True)
        ]

    def brand_names(self) -> list[str]:
        """The brand of each item."""
        names = [start + end for start in BRAND_STARTS for end in BRAND_ENDS]
        return [names[(5 * brand) % len(names)] for brand in self.brand]

    def category_names(self) -> list[Any]:
        """The category of each item."""
        return [CATEGORIES[category].name for category in self.category]
