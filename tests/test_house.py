"""Laws of how the house is kept: sizes, names, who writes and who prints, what the map names, where tests lie."""

import ast
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "geood"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {str(path.relative_to(PACKAGE)): path for path in FILES if path.name != "__init__.py"}
SMALL = {  # one idea each, and no neighbour to join
    "__main__.py",
    "_lazy.py",
    "_version.py",
    "catalog/vocabulary.py",
    "constants.py",
    "datasets/sources.py",
}
LARGE = {"config/sections.py"}  # all keys of the config in one place, with the texts of the schema
RENAMERS = {"atomic.py"}
PRINTERS = "cli/"
HELD_BY = {  # rooms without a test file of their own name, and the file whose laws hold them
    "__main__": "test_version",
    "_lazy": "test_layers",
    "catalog/aerial": "catalog/test_entry",
    "catalog/lookup": "catalog/test_entry",
    "catalog/roads": "catalog/test_entry",
    "catalog/taxonomies": "catalog/test_entry",
    "catalog/vocabulary": "catalog/test_entry",
    "cli/app": "test_end_to_end",
    "cli/beginning": "preflight/test_drafting",
    "cli/data": "datasets/test_check",
    "cli/demo": "test_end_to_end",
    "cli/measuring": "test_end_to_end",
    "calibration/judgement": "prediction/test_scene_verdict",
    "calibration/tiled_scoring": "evaluation/test_tile_scores",
    "cli/threshold_options": "prediction/test_scene_verdict",
    "cli/options": "test_end_to_end",
    "cli/project": "geo/qgis/test_project",
    "cli/report": "reporting/test_page",
    "cli/reviewing": "review/test_auditing",
    "config/loading": "config/test_sections",
    "constants": "metrics/test_protocols",
    "datasets/disparity": "evaluation/test_catalog_sets",
    "datasets/files": "datasets/test_scene_crops",
    "datasets/outlier_photos": "training/test_negative_sources",
    "datasets/samples": "datasets/test_crops",
    "datasets/screening": "datasets/test_crops",
    "datasets/sources": "datasets/test_sets",
    "datasets/synthetic/landscape": "datasets/synthetic/test_world",
    "datasets/synthetic/objects": "datasets/synthetic/test_world",
    "datasets/torchgeo_layers": "datasets/test_scene_crops",
    "errors": "cli/test_process",
    "notebook": "models/test_given_bundle",
    "evaluation/by_name": "test_docstrings",
    "evaluation/class_mapping": "evaluation/test_catalog_sets",
    "evaluation/leaderboards": "evaluation/test_catalog_sets",
    "evaluation/measurement": "evaluation/test_catalog_sets",
    "evaluation/results": "evaluation/test_scenes",
    "export/deepness": "export/test_graph",
    "export/formats": "export/test_stac_item",
    "cli/export": "export/test_onnx_file",
    "geo/border": "geo/test_scene",
    "geo/display": "evaluation/test_pictures",
    "geo/cog/layout": "geo/cog/test_encoding",
    "geo/gdal": "geo/test_paths",
    "geo/ogr": "prediction/test_publication",
    "geo/labels/id_shapes": "geo/labels/test_drawings",
    "geo/labels/rules": "geo/labels/test_drawings",
    "geo/opener": "geo/test_scene",
    "geo/qgis/style_templates": "geo/qgis/test_styles",
    "geo/scene_reading": "geo/test_resampling",
    "metrics/curve": "metrics/test_protocols",
    "metrics/distance": "metrics/test_protocols",
    "metrics/segmentation": "metrics/test_pixels",
    "metrics/smiyc_bins": "metrics/test_protocols",
    "models/bundle_tensors": "models/test_bundle_header",
    "models/flows/coupling": "models/flows/test_flow",
    "models/encoder": "models/test_segmenter",
    "models/encoder_weights": "models/test_segmenter",
    "polygons/block_windows": "polygons/test_components",
    "polygons/evidence": "polygons/test_components",
    "polygons/external_sort": "polygons/test_export",
    "polygons/extraction": "polygons/test_export",
    "polygons/formats": "polygons/test_export",
    "polygons/geodesic_area": "polygons/test_export",
    "polygons/names": "polygons/test_export",
    "polygons/quantiles": "polygons/test_components",
    "polygons/rings": "polygons/test_components",
    "polygons/runs": "polygons/test_components",
    "polygons/seams": "polygons/test_components",
    "polygons/simplification": "polygons/test_export",
    "polygons/statistics": "polygons/test_components",
    "polygons/surroundings": "polygons/test_components",
    "polygons/valid_counts": "polygons/test_components",
    "preflight/config_text": "preflight/test_drafting",
    "preflight/imagery": "preflight/test_drafting",
    "preflight/machine": "preflight/test_drafting",
    "preflight/picture": "preflight/test_checking",
    "preflight/settings": "preflight/test_drafting",
    "preflight/trial": "preflight/test_checking",
    "prediction/dispatch": "prediction/test_faults",
    "prediction/engine": "prediction/test_pipeline",
    "prediction/estimate": "prediction/test_budget",
    "prediction/job": "prediction/test_pipeline",
    "prediction/outputs": "prediction/test_pipeline",
    "prediction/plan": "prediction/test_pipeline",
    "prediction/rasters": "prediction/test_pipeline",
    "prediction/scored_scenes": "prediction/test_unreadable",
    "prediction/scene_checks": "geo/test_band_matching",
    "prediction/worker": "prediction/test_pipeline",
    "prediction/polygonizing": "prediction/test_scene_verdict",
    "prediction/run_table": "prediction/test_scene_verdict",
    "prediction/threshold_choice": "prediction/test_scene_verdict",
    "models/calibration_record": "models/test_bundle_header",
    "reporting/charts": "reporting/test_page",
    "reporting/evaluations": "reporting/test_page",
    "reporting/gallery": "reporting/test_page",
    "reporting/maps": "reporting/test_page",
    "reporting/pictures": "reporting/test_page",
    "reporting/runs": "reporting/test_page",
    "reporting/scenes": "reporting/test_page",
    "reporting/splits": "reporting/test_page",
    "reporting/tables": "reporting/test_page",
    "review/copies": "review/test_reading",
    "review/ground": "review/test_auditing",
    "review/promises": "review/test_auditing",
    "review/scenes": "review/test_lessons",
    "training/calibration": "training/test_trainer",
    "training/callbacks": "training/test_trainer",
    "training/first_checks": "preflight/test_checking",
    "training/plans": "training/test_trainer",
    "training/stage": "training/test_trainer",
}


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def calls(path):
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


def test_a_room_has_40_to_400_lines():
    lines = {room: len(path.read_text(encoding="utf-8").splitlines()) for room, path in ROOMS.items()}
    assert {room: count for room, count in lines.items() if count < 40 and room not in SMALL} == {}
    assert {room: count for room, count in lines.items() if count > 400 and room not in LARGE} == {}
    assert {room for room in SMALL if lines[room] >= 40} | {room for room in LARGE if lines[room] <= 400} == set()


def test_a_folder_holds_at_most_28_entries():
    folders = [PACKAGE, *{path.parent for path in FILES}]
    held = {str(f): sum(not e.name.startswith("__pycache__") for e in f.iterdir()) for f in folders}
    assert {folder: count for folder, count in held.items() if count > 28} == {}


def test_a_room_opens_with_what_is_in_it():
    assert [str(path) for path in FILES if not ast.get_docstring(tree_of(path))] == []


def test_files_get_their_names_in_the_atomic_rooms_only():
    """As `os.replace(a, b)`, `from os import replace`, `path.rename(b)` or, with one argument, `path.replace(b)`."""
    for room, path in ROOMS.items():
        tree = tree_of(path)
        taken = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "os" for a in n.names]
        renames = [c for c in calls(path) if ast.unparse(c.func) in ("os.replace", "os.rename", "shutil.move")]
        renames += [c for c in calls(path) if isinstance(c.func, ast.Attribute) and _renames(c)]
        assert (not renames and not {"replace", "rename"} & set(taken)) or room in RENAMERS, (
            f"{room} renames files itself: use geood.atomic"
        )


def _renames(call):
    """Tell a call of a path's method from those of strings (two arguments), tables and dataclasses (keywords)."""
    arguments = len(call.args), len(call.keywords)
    return (
        call.func.attr in ("replace", "rename") and arguments == (1, 0) and not isinstance(call.args[0], ast.Constant)
    )


def test_only_the_command_line_prints():
    for room, path in ROOMS.items():
        prints = [c for c in calls(path) if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not prints or room.startswith(PRINTERS), f"{room} prints"


def test_per_cents_have_three_digits():
    """With fewer, 100 % would be printed as 1e+02 %."""
    few = re.compile(r"\.[12]g\} ?%|%\.[12]g %%|'%\.[12]g'\|format\(100")
    texts = [*FILES, *PACKAGE.rglob("*.html")]
    assert [str(path) for path in texts if few.search(path.read_text(encoding="utf-8"))] == []


def test_no_two_classes_share_a_name():
    names = Counter(
        node.name
        for path in FILES
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_the_map_names_every_room_and_none_besides():
    """The tree in docs/architecture.md: folders end in a slash, rooms in .py."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [tree] = [block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "__main__.py" in block]
    folders, named = [], []
    for line in tree.splitlines():
        if found := re.match(r"( *)([\w/]+/|\w+\.py)(?:\s|$)", line):
            depth, name = len(found[1]) // 2, found[2]
            if name.endswith("/"):
                folders[depth:] = [name]
            else:
                named.append("".join([*folders[:depth], name]).removeprefix("geood/"))
    assert sorted(named) == sorted(ROOMS)


def test_there_are_at_most_28_entries_in_the_package():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 28


def test_tests_lie_where_the_rooms_lie():
    tests = {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")}
    bare = set()
    for room in (name.removesuffix(".py") for name in ROOMS):
        folder, _, name = room.rpartition("/")
        if f"{folder}/test_{name.removeprefix('_')}.py".lstrip("/") not in tests:
            bare.add(room)
    assert bare == set(HELD_BY)
    assert {f"{test}.py" for test in HELD_BY.values()} <= tests


def test_temporary_files_of_tests_lie_in_pytests_own_folder(tmp_path_factory):
    """Also those of a process that a test starts."""
    asked = [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert told == tempfile.gettempdir() and Path(told).parent == tmp_path_factory.getbasetemp()
