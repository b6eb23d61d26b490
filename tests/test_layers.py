"""Laws of the house: imports only go down, rooms load nothing that they do not need."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "geood"
LADDER = [  # from the ground up; rooms of one floor never import each other, but for the lowest
    {"errors", "constants", "progress", "_torch_compat", "_lazy", "_version"},
    {"catalog", "atomic"},
    {"config"},
    {"geo", "metrics"},
    {"models"},
    {"polygons", "datasets"},
    {"prediction", "training", "evaluation"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(LADDER) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def package_of(path):
    """The package, or the single room, that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else path.stem


def module_of(path):
    """The dotted name of a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path):
    """Every `geood` module and other top-level name that a file imports, wherever in it, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in MODULES else (node.module, alias.name)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_down(path):
    here = package_of(path)
    assert here in FLOOR, f"{here} has no floor: give it one in this test"
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "geood" and len(parts) > 1 and parts[1] != here:
            assert FLOOR[parts[1]] < FLOOR[here] or FLOOR[here] == 0, f"{here} imports {module}, which is not below it"


@pytest.mark.parametrize("package", sorted({package_of(path) for path in FILES if path.parent != PACKAGE}))
def test_no_circle_within_a_package(package):
    inside = {name: path for name, path in MODULES.items() if package_of(path) == package and path.parent != PACKAGE}
    graph = {name: {module for module, _ in imports(path)} & set(inside) for name, path in inside.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_only_the_command_line_prints():
    for path in FILES:
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        prints = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not prints or package_of(path) == "cli", path


def test_help_and_import_load_nothing_heavy():
    heavy = "('torch', 'rasterio', 'geopandas', 'dask')"
    code = f"import sys, geood, geood.cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["training.trainer", "evaluation.scenes"])
def test_a_procedure_can_be_imported_first(name):
    """Nothing that needs torchvision may be imported before its missing operators are declared."""
    subprocess.run([sys.executable, "-c", f"import geood.{name}"], check=True)
