"""The arrows between the modules, read from their source: which may import which, and what nobody
may use."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "limerank"

# Low to high: a module imports from what is listed before its own folder, and within a folder from
# what is listed before it there. Names side by side do not know each other, or only in one
# direction: there is no circle. A new module gets its position here; CONTRIBUTING.md shows the same
# list.
LAYERS = """
errors
progress results locks files parts devices world metrics validation
storage: uris < systems < logs manifest cache < publishing fetching < arguments
kernels
data: canonical ragged batching counters pipeline folder formats < protocol labels < spec
    < description sources display < encoding < history batch events features summary < impressions
    < event_log packing alignment exposures < dataset synthetic coverage attribution
    < interactions recoded prepare readers
models
runs: alarms folder model formats lineage tensors < selftest
index evaluation
ranking: scorer anchored conditions alike < explain item_table rules < request < ruled similar
    < flow results < recommender < bulk fidelity
training: distributed collaborative nearest neighbours negatives optim positives softmax replay
    renumbering < impressions result numbering < held_out < catalogue < objectives < step
    < checkpoints < reporting resume warm < beginning fitting < trainer
tuning: result space < study training < tuner
serving: stores telemetry messages shards < feed < intake exposing reading counting state copying
    < served < current interleaving < arms rebuilding < answers < engine watched < watching fill
    export < kafka < http
cluster: work jobs < training < on_ray
refresh: config home < checks gate rollout < cycle
report
cli
__main__
"""


def _ranks() -> dict[str, int]:
    """Name of a folder, or of a module within a folder whose order is given -> its rank."""
    found: dict[str, int] = {}
    lines = LAYERS.replace("\n    ", " ").strip().splitlines()
    for position, line in enumerate(lines):
        folders, _, inner = line.partition(":")
        found |= dict.fromkeys(folders.split(), 100 * position)
        for step, names in enumerate(inner.split("<")):
            found |= {f"{folders}.{name}": 100 * position + step for name in names.split()}
    return found


RANK = _ranks()

BASELINES = frozenset(
    {
        "popularity",
        "two_tower",
        "din",
        "sasrec",
        "target_attention",
        "hstu",
        "linformer",
        "most_popular",
        "item_knn",
    }
)

# Formats that run code when they are read, and their writers.
UNSAFE_MODULES = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"})
UNSAFE_CALLS = frozenset({"torch.save", "torch.load", "pd.read_pickle", "pandas.read_pickle"})

MOST_LINES = 550
"""Of a module. Most have below 400."""

HEAVY = ("torch", "pyarrow", "polars", "matplotlib")


def source_files(folder: Path) -> dict[str, Path]:
    """Dotted module name -> file, for every module under `folder`."""
    named = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


SOURCES = source_files(PACKAGE)
TREES = {name: ast.parse(path.read_text("utf-8"), str(path)) for name, path in SOURCES.items()}


def imported(name: str) -> Iterator[str]:
    """Yield the full name of each thing that module `name` imports, wherever in the file it does.

    `from a.b import c` gives `a.b.c` where that is a module of ours, and `a.b` otherwise.
    Function-level and type-checking imports count: they are arrows all the same.
    """
    is_package = SOURCES[name].name == "__init__.py"
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = name.split(".")
                up = node.level - is_package
                anchor = anchor[: len(anchor) - up]
                base = ".".join([*anchor, base] if base else anchor)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in SOURCES else base


# Module -> modules of ours that it imports. The package's own __init__ stands aside: it gives the
# public names and knows everybody.
ARROWS = {
    name: {other for other in imported(name) if other.partition(".")[0] == "limerank"} - {name}
    for name in SOURCES
    if name != "limerank"
}


def entry(name: str) -> str:
    """`limerank.models.lime` -> `models`."""
    return name.split(".")[1]


def position(name: str) -> str:
    """`limerank.data.prepare.job` -> `data.prepare`: the name that `LAYERS` has for it."""
    inner = ".".join(name.split(".")[1:3])
    return inner if inner in RANK else entry(name)


def reached(name: str) -> set[str]:
    """All modules of ours that importing from `name` can lead to."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        new = ARROWS.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


def test_every_module_has_its_layer() -> None:
    ordered = {name.partition(".")[0] for name in RANK if "." in name}
    strangers = {position(name) for name in ARROWS} - RANK.keys()
    strangers |= {
        name
        for name in ARROWS
        if entry(name) in ordered and name.count(".") > 1 and position(name) == entry(name)
    }
    assert not strangers, f"add these to LAYERS: {sorted(strangers)}"
    lacking = {name for name in RANK if not any(position(one) == name for one in ARROWS)}
    assert lacking <= {name for name in RANK if name in ordered}, (
        f"nothing is called {sorted(lacking)}"
    )


def test_imports_point_downwards() -> None:
    upward = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others - {"limerank"}
        if RANK[position(other)] > RANK[position(name)]
    ]
    assert not upward, f"imports that point upwards: {sorted(upward)}"


def test_modules_are_short() -> None:
    """A file that a reader cannot hold in mind has more than one reason to change: divide it."""
    names = ("benchmarks", "histories", "simulation")
    others = [ROOT / name for name in names if (ROOT / name).is_dir()]
    paths = [path for folder in others for path in source_files(folder).values()]
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in (*SOURCES.values(), *paths)
    }
    long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not long, f"modules of more than {MOST_LINES} lines: {long}"


def test_the_guide_shows_these_layers() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert f"```\n{LAYERS.strip()}\n```" in guide, "copy LAYERS into CONTRIBUTING.md"


def test_nothing_imports_the_public_names_from_inside() -> None:
    """`from limerank import train` inside the package would be a circle through its __init__."""
    inside = [name for name, others in ARROWS.items() if "limerank" in others]
    assert not inside, f"import from the module that defines the name: {inside}"


def test_public_names_are_what_they_say() -> None:
    """A module of the same name would stand before a function as soon as it is imported."""
    import limerank

    modules = {name.split(".")[1] for name in SOURCES if name.count(".") >= 1}
    assert not modules & set(limerank.__all__)
    code = "from limerank import *; import limerank; from types import ModuleType as M\n"
    code += "print([n for n in limerank.__all__ if isinstance(globals()[n], M)])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_no_circles() -> None:
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_kernels_stand_alone() -> None:
    allowed = {"torch", "triton", "numpy"} | sys.stdlib_module_names
    foreign = [
        f"{name} -> {other}"
        for name in ARROWS
        if entry(name) == "kernels"
        for other in imported(name)
        if other.partition(".")[0] not in allowed
        and not other.startswith("limerank.kernels")
        and other != "limerank.errors"
    ]
    assert not foreign, f"kernels import torch, triton, numpy and errors: {foreign}"


def test_metrics_know_nothing_of_ours() -> None:
    metrics = {name for name in ARROWS if entry(name) == "metrics"}
    used = {other for name in metrics for other in ARROWS[name]}
    assert used - metrics <= {"limerank.errors"}, used - metrics


def test_only_triton_files_import_triton() -> None:
    users = {
        name for name in SOURCES if any(o.partition(".")[0] == "triton" for o in imported(name))
    }
    assert all(name.endswith("_triton") for name in users), sorted(users)


def test_baselines_and_lime_do_not_know_each_other() -> None:
    lime = "limerank.models.lime"
    baselines = {f"limerank.models.{name}" for name in BASELINES}
    assert not (reached(lime) | reached("limerank.models.lime_xor")) & baselines
    # What LIME shares with them (towers, blocks) must not lead back to it either; the registry
    # is the one module that knows all.
    models = {name for name in ARROWS if name.startswith("limerank.models.")}
    models -= {"limerank.models.registry", "limerank.models.lime_xor"}
    assert not [name for name in models if lime in reached(name)]


def test_serving_never_reaches_the_logs() -> None:
    """Nor what needs them: live items are encoded, and a run is loaded, without its dataset."""
    forbidden = {"data.prepare", "data.dataset", "training", "data.synthetic"}
    serving = {"data.events", "data.event_log", "ranking.request", "runs.model"}
    serving |= {name for name in RANK if name.startswith("serving.")} - {"serving.fill"}
    changing = {f"limerank.index.{name}" for name in ("items", "changes", "compaction")}
    reaching = [
        f"{name} -> {other}"
        for name in ARROWS
        if position(name) in serving or name in changing
        for other in reached(name) - {"limerank"}
        if position(other) in forbidden
    ]
    assert not reaching, sorted(reaching)


def test_reading_an_index_takes_little() -> None:
    """What opens an index needs neither models nor data, and never reaches what writes one."""
    allowed = {f"limerank.{name}" for name in ("errors", "files", "locks", "kernels", "index")}
    allowed |= {f"limerank.data.{name}" for name in ("canonical", "ragged", "counters")}
    allowed |= {
        f"limerank.index.{name}" for name in ("reading", "format", "lookup", "anchors", "display")
    }
    # A URI in place of a path: fetched by what knows files and checksums alone.
    storage = {name for name in SOURCES if name.startswith("limerank.storage")}
    allowed |= {*storage, "limerank.progress", "limerank.validation"}
    assert reached("limerank.index") <= allowed, sorted(reached("limerank.index") - allowed)
    of_storage = set().union(*map(reached, storage))
    assert of_storage <= allowed - {"limerank.kernels", "limerank.index", "limerank.data.canonical"}
    writing = ("items", "building", "writing", "changes", "compaction")
    writers = {f"limerank.index.{name}" for name in writing}
    ranking = (
        "limerank.ranking.scorer",
        "limerank.ranking.explain",
        "limerank.ranking.recommender",
    )
    assert not [name for name in ranking if reached(name) & writers]


def test_nobody_imports_benchmarks() -> None:
    outside = {"benchmarks", "histories", "simulation"}
    users = [
        name for name in SOURCES if any(o.partition(".")[0] in outside for o in imported(name))
    ]
    assert not users, users


def test_nothing_is_pickled() -> None:
    trees = dict(TREES)
    if (ROOT / "benchmarks").is_dir():
        for name, path in source_files(ROOT / "benchmarks").items():
            trees[name] = ast.parse(path.read_text("utf-8"), str(path))
    found = [
        f"{name}:{line}: {what}" for name, tree in trees.items() for line, what in unsafe_uses(tree)
    ]
    assert not found, found


def unsafe_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of each use of a format that runs code when it is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            names = ["" if ast.unparse(node.value) == "False" else "torch.load"]
        else:
            continue
        for name in names:
            if name in UNSAFE_CALLS or name.partition(".")[0] in UNSAFE_MODULES:
                yield node.lineno, name


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("import pickle", 1),
        ("from joblib import dump", 2),
        ("from torch import save", 1),
        ("import torch\ntorch.save({}, 'x')", 1),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", 1),
        ("import numpy as np\nnp.load('x', allow_pickle=False)", 0),
        ("from safetensors.torch import save_file", 0),
    ],
)
def test_the_search_for_pickles_finds_them(source: str, uses: int) -> None:
    assert len(list(unsafe_uses(ast.parse(source)))) == uses


def test_public_names_are_sorted_and_resolve() -> None:
    limerank = importlib.import_module("limerank")

    def constants_classes_functions(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert limerank.__all__ == sorted(limerank.__all__, key=constants_classes_functions)
    assert len(set(limerank.__all__)) == len(limerank.__all__)
    missing = [name for name in limerank.__all__ if not hasattr(limerank, name)]
    assert not missing, missing


def test_public_names_have_types() -> None:
    """What editors and type checkers see of the package is what it gives when it runs."""
    limerank = importlib.import_module("limerank")
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"limerank.{home}.{name}" for name, home in limerank._HOMES.items()}
    assert seen == homes


def test_public_names_complete_and_misspelt_ones_are_named() -> None:
    limerank = importlib.import_module("limerank")
    assert dir(limerank) == sorted([*limerank.__all__, "__version__"])
    with pytest.raises(AttributeError, match="did you mean 'train'"):
        limerank.trian  # noqa: B018


def test_command_line_starts_light() -> None:
    """`limerank --help` answers at once: what is heavy is imported by the command that needs it."""
    code = f"import limerank.cli.main, sys; print(*(set({HEAVY}) & sys.modules.keys()))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_opening_an_index_starts_light() -> None:
    """What reaches storages is imported when a path is a URI."""
    heavy = ("torch", "pyarrow", "pydantic", "rich", "limerank.storage.fetching")
    code = f"import limerank.index, sys; print(*(set({heavy}) & sys.modules.keys()))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_wheel_holds_every_file(tmp_path: Path) -> None:
    """Tests run on an editable installation: this one finds what a wheel would leave out."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("limerank-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("limerank/")}
    written = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    built = {name for name in packed if name.endswith(".so")}
    assert [name.split(".")[0] for name in built] == ["limerank/kernels/_native"]
    assert packed - built == {name for name in written if "/native/" not in name}
    assert "limerank/py.typed" in packed
