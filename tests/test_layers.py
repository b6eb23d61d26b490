"""Imports go down, the world side knows no torch, the maths side knows no files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "geood"
FLOORS = [
    {"errors", "memory", "version"},
    {"catalog"},
    {"config", "coupling", "curves", "grid", "journal", "ladder", "operators", "progress", "resampling"},
    {"bands", "config_file", "denseflow", "figures", "gdal"},
    {"area", "intake", "location", "raster", "qgis", "tiff"},
    {"cog", "mosaic", "polygons", "scene"},
    {"band_match", "flow", "segmenter", "negatives", "scores", "smoothing", "metrics"},
    {"component_metrics", "distances", "protocols"},
    {"inliers", "labels", "report", "scoreboard", "losses", "optimizers", "patches"},
    {"vector"},
    {"datasets", "bundle", "cluster", "outputs", "runs"},
    {"budget", "engine", "meaning", "scored", "stages"},
    {"workers"},
    {"scoring"},
    {"planning"},
    {"training", "prediction", "evaluation", "benchmark", "submission"},
    {"demo"},
    {"cli_data"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
WORLD = {
    "area",
    "band_match",
    "bands",
    "catalog",
    "cog",
    "config",
    "config_file",
    "errors",
    "gdal",
    "grid",
    "intake",
    "journal",
    "labels",
    "location",
    "mosaic",
    "outputs",
    "polygons",
    "progress",
    "qgis",
    "raster",
    "resampling",
    "scene",
    "tiff",
    "vector",
    "version",
}
MATHS = {
    "coupling",
    "denseflow",
    "flow",
    "inliers",
    "ladder",
    "segmenter",
    "negatives",
    "losses",
    "optimizers",
    "patches",
    "scores",
}
MATHS |= {"component_metrics", "curves", "distances", "metrics", "protocols", "smoothing"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else path.stem


def imports(path):
    """Every module that a file imports, wherever in the file, but for type checking."""
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
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    assert here in FLOOR, f"{here} has no floor: give it one in this test"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "geood" and len(parts) > 1 and parts[1] != here and parts[1] in FLOOR:
            assert FLOOR[parts[1]] < FLOOR[here], f"{here} imports {parts[1]}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sides_keep_apart(path):
    tops = {name.split(".")[0] for name in imports(path)}
    if room(path) in WORLD:
        assert not tops & {"torch", "torchvision", "lightning", "timm", "torchgeo"}
    if room(path) in MATHS:
        assert not tops & {"rasterio", "geopandas", "pyogrio", "shapely"}


def test_only_the_command_line_prints():
    for path in FILES:
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        prints = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not prints or room(path) in ("cli", "cli_data"), path


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys, geood, geood.cli; print([m for m in ('torch','rasterio','geopandas','dask') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["training", "evaluation"])
def test_a_procedure_can_be_imported_first(name):
    """Nothing that needs torchvision may be imported before its missing operators are declared."""
    subprocess.run([sys.executable, "-c", f"import geood.{name}"], check=True)


def test_polygons_are_cut_from_below():
    """Within the package imports go down too."""
    order = ["spool", "quantiles", "stretches", "outlines", "simplification", "windows", "ellipsoid", "validity"]
    order += ["tally", "files", "seams", "components", "cutting"]
    for path in (PACKAGE / "polygons").glob("*.py"):
        for name in imports(path):
            if name.startswith("geood.polygons."):
                assert order.index(name.split(".")[2]) < order.index(path.stem), (path.stem, name)
