"""Laws of the house: imports only go down, through faces, without circles, and load nothing that is not needed."""

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from support.bundles import make_bundle
from support.rasters import picture, write_raster

PACKAGE = Path(__file__).parent.parent / "geood"
LADDER = [  # from the ground up; packages of one floor never import each other
    {"errors", "constants", "notebook", "progress", "_torch_compat", "_lazy", "_version"},
    {"catalog", "metrics", "atomic"},
    {"config"},
    {"geo"},
    {"models"},
    {"polygons", "datasets"},
    {"calibration"},
    {"prediction", "training", "evaluation", "review", "reporting", "export"},
    {"preflight"},
    {"cli"},
    {"_command"},
    {"__init__", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(LADDER) for room in rooms}
OPEN = LADDER[0] | {"atomic", "geo"}  # whose rooms are imported by name
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(path):
    """Return the package, or the single room, that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else path.stem


def module_of(path):
    """Return the dotted name of a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
PACKAGES = sorted({package_of(path) for path in FILES if path.parent != PACKAGE})
FACES = sorted(module for module, path in MODULES.items() if path.name == "__init__.py")


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def for_typing(tree):
    """Return the nodes that only a type checker sees."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    return {id(inner) for block in blocks for inner in ast.walk(block)}


@cache
def imports(path, *, typing=False):
    """Return (module, name or None) of all imports of a file, wherever in it; with `typing` those for types as well."""
    return list(_imports(path, typing=typing))


def _imports(path, *, typing):
    tree = tree_of(path)
    skipped = set() if typing else for_typing(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, line {node.lineno}; name the package"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in MODULES else (node.module, alias.name)


def inside_imports(path):
    """Yield (module, name) of the imports of other packages of geood."""
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] == "geood" and len(parts) > 1 and parts[1] != package_of(path):
            yield module, name


def test_no_room_imports_geood_itself_or_its_own_face():
    """Either would hide where a name comes from, and go round the ladder."""
    for path in FILES:
        if path.name not in ("__init__.py", "__main__.py"):
            own = module_of(path).rpartition(".")[0]
            assert not {module for module, _ in imports(path)} & {"geood", own}, path


@pytest.mark.parametrize("here", sorted({package_of(path) for path in FILES}))
def test_imports_go_down(here):
    assert here in FLOOR, f"{here} has no floor: give it one in this test"
    for path in (path for path in FILES if package_of(path) == here):
        for module, _ in inside_imports(path):
            there = module.split(".")[1]
            lowest = FLOOR[here] == FLOOR[there] == 0
            assert FLOOR[there] < FLOOR[here] or lowest, f"{path} imports {module}, which is not below it"


def test_training_prediction_and_evaluation_never_import_each_other():
    halls = {"training", "prediction", "evaluation", "review", "reporting"}
    for path in FILES:
        if package_of(path) in halls:
            assert not {module.split(".")[1] for module, _ in inside_imports(path)} & halls, path


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_within_a_package(package):
    """Circles for types count: they tell of two rooms that are one."""
    inside = {
        name: path for name, path in MODULES.items() if package_of(path) == package and path.name != "__init__.py"
    }
    graph = {name: {module for module, _ in imports(path, typing=True)} & set(inside) for name, path in inside.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("here", sorted({package_of(path) for path in FILES} - {"__init__"}))
def test_only_names_of_a_face_cross_a_border(here):
    for path in (path for path in FILES if package_of(path) == here):
        for module, name in inside_imports(path):
            if module.split(".")[1] not in OPEN:
                room = f"{path}: {module} is a room: import from its package's face"
                assert module in FACES and module.count(".") == 1, room
                assert name in exported(MODULES[module]), f"{path}: {module} does not export {name}"


def below(package):
    """Return the modules of a package."""
    return [name for name in MODULES if name.startswith(f"geood.{package}.")]


def exported(path):
    """Return the names in `__all__` of a face."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@pytest.mark.parametrize("face", [face for face in FACES if face != "geood._command"])  # which holds its names itself
def test_a_face_says_the_same_thrice(face):
    """`__all__`, the lazy map and the names for type checking."""
    tree, names = tree_of(MODULES[face]), exported(MODULES[face])
    lazy = [n.value for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call)]
    if not lazy:
        bound = {alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}
        assert names == bound - {"annotations"}
        return
    typed = for_typing(tree)
    checked = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and id(n) in typed for a in n.names}
    assert names - {"__version__"} == set(ast.literal_eval(lazy[0].args[1])) == checked


@pytest.mark.parametrize("face", FACES)
def test_each_exported_name_is_there(face):
    module = import_module(face)
    names = getattr(module, "__all__", ())
    assert set(names) <= set(dir(module)) and all(hasattr(module, name) for name in names)


HEAVY = ("torch", "torchvision", "torchgeo", "timm", "lightning", "rasterio", "geopandas", "pyogrio", "pandas")
HEAVY += ("xarray", "dask", "distributed", "matplotlib", "scipy", "sklearn", "numpy", "pydantic", "pyproj", "shapely")
RASTERS = ("rasterio", "geopandas", "pyogrio", "shapely")
MATHS = ("losses", "pasting", "negative_sources", "optimizers")
PROCEDURES = ("geood.training.trainer", "geood.evaluation.scenes", "geood.prediction.pipeline")
WORKER = ("geopandas", "pyogrio", "pandas", "matplotlib", "lightning", "torchgeo", "sklearn", "tensorboard")
PREDICTING = ("torch._dynamo", "torch._inductor", "sympy", "geopandas", "pandas", "pyogrio", "pyarrow", "matplotlib")
PREDICTING += ("lightning", "torchgeo", "sklearn", "scipy.special", "scipy.optimize", "huggingface_hub", "torch.onnx")
PREDICTING += ("timm", "timm.models", "timm.models.vgg", "timm.data", "torchvision", "torchvision.datasets")
ALONE = {  # what is imported, and what may not be loaded then; each in a process that has loaded nothing
    "command line": (["geood", "geood.cli.process"], HEAVY),
    "faces": ([f"geood.{name}" for name in (*sorted(LADDER[7]), "preflight", "datasets", "polygons")], HEAVY),
    "config": (["geood.config", "geood.catalog"], ("torch", "rasterio")),
    "metrics": (below("metrics"), ("torch", "rasterio", "geopandas", "pydantic")),
}
WITH_TABLES = {  # the same in a process that has loaded what reads rasters and tables
    "geo": ([name for name in MODULES if name.startswith("geood.geo.")], ("torch", "lightning", "matplotlib")),
    "polygons": (below("polygons"), ("torch", "lightning", "matplotlib")),
    "journal": ([f"geood.prediction.{room}" for room in ("journal", "workdir", "outputs")], ("torch", "lightning")),
}
WITH_TORCH = {  # the same in a process that has loaded torch
    "models": (below("models"), RASTERS),
    "losses": ([f"geood.training.{room}" for room in MATHS], RASTERS),
    "worker": (["geood.prediction.worker"], WORKER),
    "calibration": (below("calibration"), ("scipy.stats", "matplotlib")),
}
LOADED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
"""
LOADED += """
import importlib, json
from support.bare import apart

def load(modules, absent):
    for name in modules:
        importlib.import_module(name)
    return [name for name in absent if name in sys.modules]

def predict(bundle, scene, absent):
    import geood.prediction.pipeline
    from geood.prediction.engine import Engine
    found, maps = [], Engine.maps
    def seen(*arguments):
        found.append(load([], absent))
        return maps(*arguments)
    Engine.maps = seen
    geood.prediction.pipeline.predict([scene], scene + ".gpkg", bundle=bundle)
    return found[0]

def with_tables(cases):
    import geopandas, pydantic, pyogrio, rasterio
    return {name: apart(lambda: load(*case)) for name, case in cases.items()}

alone, tables, with_torch, bundle, scene, predicting = json.load(sys.stdin)
found = {name: apart(lambda: load(*case)) for name, case in alone.items()}
found |= apart(lambda: with_tables(tables))
import torch
found |= {name: apart(lambda: load(*case)) for name, case in with_torch.items()}
found["prediction"] = apart(lambda: predict(bundle, scene, predicting))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What was loaded by each import that ought not to be; in forks of one process, which loads torch but once."""
    bundle = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    make_bundle(bundle)
    scene = bundle.with_name("scene.tif")
    write_raster(scene, picture(64, 64))
    told = json.dumps([ALONE, WITH_TABLES, WITH_TORCH, str(bundle), str(scene), PREDICTING])
    done = subprocess.run([sys.executable, "-c", LOADED], input=told, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*ALONE, *WITH_TABLES, *WITH_TORCH])
def test_nothing_heavy_is_loaded_where_it_is_not_needed(found, name):
    assert found[name] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCEDURES)
def test_a_procedure_can_be_imported_first(name):
    """Nothing that needs torchvision may be imported before its missing operators are declared.

    A prediction is imported first in the quick test below, and so is what needs all of torchvision in
    `test_torch_compat`.
    """
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True)


def test_a_prediction_has_loaded_none_of_what_its_first_tile_does_not_need_when_that_is_computed(found):
    """The scene has a CRS, and polygons are asked for. Each takes as long to load as a small tile to be scored."""
    assert found["prediction"] == []
