"""Docstrings: the examples of the public names run, and all of them begin as the house says."""

import ast
import doctest
import re
import shutil
from functools import cache
from pathlib import Path

import geopandas
import numpy as np
import pytest
from PIL import Image
from shapely.geometry import box

import geood
from geood.config import load_config, to_yaml
from geood.prediction import predict
from support.bundles import make_bundle, small_config
from support.cpu import slow
from support.rasters import picture, write_raster

PACKAGE = Path(__file__).parent.parent / "geood"
PUBLIC = [name for name in geood.__all__ if name != "__version__" and not name.endswith("Error")]
SHORT = {
    "batch": 2,
    "segmenter_steps": 2,
    "flow_steps": 2,
    "joint_steps": 2,
    "validate_every": 2,
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with all that the examples name: a scene and its labels, a model, scores, a config, a data set."""
    folder = tmp_path_factory.mktemp("workshop")
    make_bundle(folder / "model.safetensors")
    write_raster(folder / "scene.tif", picture(96, 128))
    labels = np.random.default_rng(0).choice([0, 1, 2, 7], (96, 128)).astype("uint8")
    (folder / "labelled").mkdir()
    write_raster(folder / "labelled" / "a.tif", picture(96, 128))
    write_raster(folder / "labelled" / "a_labels.tif", labels, nodata=255)
    predict([folder / "scene.tif"], folder / "scores.tif", bundle_path=folder / "model.safetensors")
    squares = [box(0, 0, 10, 10), box(20, 0, 30, 10)]
    columns = {"score_max": [0.9, 0.8], "verdict": ["real", "false"], "area_m2": [100.0, 100.0]}
    geopandas.GeoDataFrame(columns, geometry=squares, crs=32640).to_file(folder / "reviewed.gpkg", layer="anomalies")
    for i in range(2):
        for kind, array in (("images", picture(96, 128, seed=i).transpose(1, 2, 0)), ("labels", labels % 3 % 2)):
            (folder / "PAIRS" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / "PAIRS" / kind / f"{i}.png")
    big = picture(400, 400, seed=2)
    (folder / "ground").mkdir()
    write_raster(folder / "ground" / "north.tif", big)
    write_raster(folder / "ground" / "labels.tif", (big[0] % 3).astype("uint8"), nodata=255)
    data = {"images": ["north.tif"], "labels": ["labels.tif"], "crop_px": 64, "crops": 8, "validation_crops": 2}
    data |= {"root": "ground", "block_m": 25.0, "validation": 0.3}
    config = small_config(data=data, train=SHORT, negatives={"patch_max_px": 32})
    (folder / "aerial.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(folder / "aerial.yaml").train.batch == 2
    return folder


def parts_of(text):
    """Return the names of a docstring's sections."""
    return set(re.findall(r"^ {4}(\w+):$", text, re.MULTILINE))


@pytest.mark.usefixtures("little_effort")
@pytest.mark.parametrize("name", [*(name for name in PUBLIC if name != "train"), *slow("train")])
def test_the_example_of_a_public_name_runs(name, workshop, tmp_path, monkeypatch, miniature):
    public = getattr(geood, name)
    root, _ = miniature("camvid")
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    (tmp_path / "CAMVID").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    [example] = doctest.DocTestFinder(recurse=False).find(public, name, globs={})
    assert example.examples, f"{name} has no example"
    report = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_tells_what_it_takes_gives_and_raises(name):
    public = getattr(geood, name)
    wanted = {"Args", "Raises", "Example"} | (set() if isinstance(public, type) else {"Returns"})
    assert wanted <= parts_of(public.__doc__), f"{name} lacks {wanted - parts_of(public.__doc__)}"


NO_VERBS = """a all an and another any anything as at both by each either every everything for from how if in it its
more most neither no none not nothing of on one only or other same some something such that the their them then
there these they this those to what whatever when where whether which who whose why with""".split()  # noqa: SIM905
BANNED = ("What", "How", "Whether", "Where", "Those", "The same")


@cache
def docstrings():
    return list(_docstrings())


def _docstrings():
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield path.relative_to(PACKAGE), node, text


def is_property(node):
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_no_docstring_begins_with_a_banned_word():
    for path, node, text in docstrings():
        first = next((word for word in BANNED if re.match(rf"{word}\b", text)), None)
        assert first is None, f"{path}:{getattr(node, 'lineno', 1)} begins with {first}"


def test_a_functions_docstring_begins_with_a_verb():
    """As far as can be told: with no article, pronoun, preposition or conjunction. Properties are nouns."""
    for path, node, text in docstrings():
        if isinstance(node, ast.FunctionDef) and not is_property(node):
            first = re.split(r"\W", text.lstrip("`"), maxsplit=1)[0]
            assert first.lower() not in NO_VERBS, f"{path}:{node.lineno} {node.name} begins with {first}"
