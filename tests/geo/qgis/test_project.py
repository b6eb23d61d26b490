"""Projects: what QGIS itself finds in them, in which order and style, also after the folder has moved."""

import re
import shutil
import sqlite3
import zipfile
from contextlib import closing
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from typer.testing import CliRunner

from geood.cli.app import app
from geood.config.sections import PredictConfig
from geood.errors import ConfigError, DataError, OutputError
from geood.geo.grid import Grid
from geood.geo.qgis.form import POLYGON_REVIEW
from geood.geo.qgis.project import raster_layer, write_project
from geood.geo.qgis.styles import above_style, class_style, ramp_style
from geood.polygons.export import PolygonSource, write_anomalies, write_frame, write_together
from support.qgis import ask_qgis
from support.rasters import HALF_METRE, picture, write_raster, write_scores, write_torn

SCRIPT = """
project = QgsProject.instance()
found = {"read": project.read(sys.argv[1]), "crs": project.crs().authid(), "title": project.title(), "layers": []}
for node in project.layerTreeRoot().findLayers():
    layer, manager = node.layer(), node.layer().styleManager()
    found["layers"].append([node.name(), node.isVisible(), layer.isValid(), sorted(manager.styles()),
                            manager.currentStyle(), layer.renderer().type(), node.parent().name()])
"""
SCENE = "scene & <one>.tif"


def make_map(folder):
    """Scene, scores with both styles, classes, and polygons with a sample, as predict leaves them."""
    grid = Grid(300, 400, HALF_METRE, CRS.from_epsg(32633))
    scores = np.full((300, 400), 0.1, np.float32)
    scores[20:40, 30:50] = 0.9
    write_scores(folder / "a.tif", grid, scores, GEOOD_SCENE=SCENE)
    write_scores(folder / "a.classes.tif", grid, np.zeros((300, 400), np.uint8))
    styles = {"a": ramp_style(0.5), "a.above": above_style(0.5), "a.classes": class_style({0: "land"})}
    for stem, qml in styles.items():
        (folder / f"{stem}.qml").write_text(qml, encoding="utf-8")
    settings = PredictConfig(sample_cells=5, sample_side_m=25.0)
    shared = {"threshold": 0.5, "classes": None, "class_names": None, "predict": settings, "model": "abc"}
    write_anomalies(folder / "a.tif", folder / "a.gpkg", overwrite=False, **shared)
    write_raster(folder / SCENE, picture(300, 400, dtype="uint16", high=3000))
    return folder / "a.gpkg"


def run(*arguments):
    done = CliRunner().invoke(app, ["project", *map(str, arguments)], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


def test_a_project_holds_a_map_from_the_top_down_wherever_its_folder_is(tmp_path):
    (tmp_path / "before").mkdir()
    path = make_map(tmp_path / "before")
    assert "layers 5 (maps 1, scenes 1)" in run(path, "--out", path.with_suffix(".qgz"))
    again = run(path, "--out", path.with_name("again.qgz"))
    assert "scores     none" not in again
    shutil.move(tmp_path / "before", tmp_path / "after ü")
    with zipfile.ZipFile(tmp_path / "after ü" / "a.qgz") as archive:
        assert archive.namelist() == ["a.qgs"] and str(tmp_path) not in archive.read("a.qgs").decode() and again
    found = ask_qgis(SCRIPT, tmp_path / "after ü" / "a.qgz", folder=tmp_path)
    assert (found["read"], found["crs"], found["title"]) == (True, "EPSG:32633", "a")
    ramp = ["above the threshold", "whole range"]
    assert found["layers"] == [
        ["anomalies", True, True, ["default"], "default", "singleSymbol", ""],
        ["sample", False, True, ["default"], "default", "singleSymbol", ""],
        ["scores", False, True, ramp, "whole range", "singlebandpseudocolor", ""],
        ["classes", False, True, ["default"], "default", "paletted", ""],
        [SCENE, True, True, ["default"], "default", "multibandcolor", ""],
    ]


def test_scenes_of_a_folder_are_found_by_the_names_of_the_maps(tmp_path):
    path = make_map(tmp_path)
    (tmp_path / "scenes").mkdir()
    shutil.move(tmp_path / SCENE, tmp_path / "scenes")
    write_raster(tmp_path / "scenes" / "another.tif", picture(30, 30))
    said = run(path, "--scene", tmp_path / "scenes", "--out", tmp_path / "a.qgz")
    assert "layers 5 (maps 1, scenes 1)" in said and "none lies" not in said
    both = run(
        path, "--scene", tmp_path / "scenes" / SCENE, "--scene", tmp_path / "scenes", "--out", tmp_path / "c.qgz"
    )
    assert "scenes 1)" in both  # which is one of the folder
    (tmp_path / "empty").mkdir()
    said = run(path, "--scene", tmp_path / "empty", "--out", tmp_path / "b.qgz")
    assert f"scene      none lies in {tmp_path / 'empty'}; --scene SCENE" in said


def test_maps_whose_scene_is_not_found_are_named_beside_others(tmp_path):
    path, lost = make_map(tmp_path), tmp_path / "lost" / "b.tif"
    lost.parent.mkdir()
    write_scores(
        lost, Grid(30, 30, HALF_METRE, CRS.from_epsg(32633)), np.zeros((30, 30), np.float32), GEOOD_SCENE="gone.tif"
    )
    said = run(path, lost, "--out", tmp_path / "a.qgz")
    assert "scenes 1)" in said and "scene      none of b.tif lies beside the map; --scene SCENE" in said
    said = run(path, lost, "--scene", tmp_path, "--out", tmp_path / "b.qgz")
    assert f"scene      none of b.tif lies in {tmp_path}; --scene SCENE" in said
    gone = write_raster(tmp_path / "elsewhere" / "gone.tif", picture(30, 30))
    said = run(path, lost, "--scene", tmp_path, "--scene", gone, "--out", tmp_path / "c.qgz")
    assert "scenes 2)" in said and "none of" not in said


def test_an_image_that_is_given_for_one_of_two_maps_hides_not_that_of_the_other(tmp_path):
    """It was the next step that the verb itself named, and left the project without the scene that it had found."""
    path, lost = make_map(tmp_path), tmp_path / "lost" / "b.tif"
    lost.parent.mkdir()
    write_scores(
        lost, Grid(30, 30, HALF_METRE, CRS.from_epsg(32633)), np.zeros((30, 30), np.float32), GEOOD_SCENE="gone.tif"
    )
    for name in ("gone.tif", "renamed.tif", SCENE):
        given = write_raster(tmp_path / "elsewhere" / name, picture(30, 30))
        said = run(path, lost, "--scene", given, "--out", tmp_path / "a.qgz", "--overwrite")
        assert f"scenes {1 if name == SCENE else 2})" in said and ("none of b.tif" in said) == (name == SCENE)
    said = run(path, "--scene", given, "--out", tmp_path / "b.qgz")
    assert "scenes 1)" in said and "none" not in said


def test_a_folder_becomes_a_project_of_groups_in_which_scores_are_shown_where_no_scene_is(tmp_path):
    path = make_map(tmp_path)
    (tmp_path / SCENE).unlink()
    frame = geopandas.read_file(path, layer="anomalies").drop(columns=list(POLYGON_REVIEW))
    write_frame(frame, tmp_path / "b.fgb", threshold=0.5, overwrite=False)
    assert f"scores     none beside {tmp_path / 'b.fgb'}: put its raster there" in run(
        tmp_path, "--out", tmp_path / "all.qgz"
    )
    found = ask_qgis(SCRIPT, tmp_path / "all.qgz", folder=tmp_path)
    shown = [(group, name, visible) for name, visible, *_, group in found["layers"]]
    assert shown == [
        ("a", "anomalies", True),
        ("a", "sample", False),
        ("a", "scores", True),
        ("a", "classes", False),
        ("b", "b", True),
    ]
    assert all(valid for _, _, valid, *_ in found["layers"])


def test_scenes_that_share_their_polygons_are_shown_with_the_scores_of_each(tmp_path):
    grid, settings = Grid(300, 400, HALF_METRE, CRS.from_epsg(32633)), PredictConfig(sample_cells=0)
    for name in ("a", "b"):
        scores = np.full((300, 400), 0.1, np.float32)
        scores[20:40, 30:50] = 0.9
        write_scores(tmp_path / f"all_{name}.tif", grid, scores, GEOOD_SCENE=f"{name}.png")
    write_scores(tmp_path / "all_a.classes.tif", grid, np.zeros((300, 400), np.uint8))
    sources = [PolygonSource(tmp_path / f"all_{name}.tif", None, None, f"{name}.png") for name in ("a", "b")]
    shared = {"threshold": 0.5, "predict": settings, "model": "abc", "overwrite": False}
    write_together(sources, tmp_path / "all.gpkg", **shared)
    with closing(sqlite3.connect(tmp_path / "all.gpkg")) as database, database:
        database.execute("CREATE TABLE run (scene TEXT)")
        database.executemany("INSERT INTO run VALUES (?)", [("a.png",), ("b.png",), ("gone.png",)])
    for given, out in ((tmp_path / "all.gpkg", "one.qgz"), (tmp_path, "folder.qgz")):
        assert "layers 4 (maps 1, scenes 0)" in run(given, "--out", tmp_path / out)
        with zipfile.ZipFile(tmp_path / out) as archive:
            root = ElementTree.fromstring(archive.read(f"{out[:-4]}.qgs"))
        names = [layer.get("name") for layer in root.iter("layer-tree-layer")]
        assert names == ["anomalies", "scores of a", "classes of a", "scores of b"]


def test_what_is_no_map_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.gpkg").write_text("no polygons")
    for path, error, match in (
        (tmp_path / "missing.gpkg", DataError, "no such file"),
        (tmp_path / "empty", DataError, "no map of geood in this folder"),
        (tmp_path / "x.gpkg", DataError, "cannot be read as"),
    ):
        with pytest.raises(error, match=match):
            run(path, "--out", tmp_path / "y.qgz")
    with pytest.raises(ConfigError, match=r"ends in \.qgz"):
        run(tmp_path / "empty", "--out", tmp_path / "y.qgs")
    (tmp_path / "y.qgz").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        run(tmp_path / "empty", "--out", tmp_path / "y.qgz")
    assert (tmp_path / "y.qgz").read_text() == "mine"


@pytest.mark.parametrize("content", [b"<qgis><unclosed></qgis>", b"\xff\xfe no text"])
def test_a_damaged_style_is_named(tmp_path, content):
    write_raster(tmp_path / "image.tif", picture(20, 20))
    (tmp_path / "image.qml").write_bytes(content)
    with pytest.raises(DataError, match=r"image.*style.*remove it"):
        write_project({"": [raster_layer(tmp_path / "image.tif", "image")]}, tmp_path / "p.qgz", overwrite=False)
    assert not (tmp_path / "p.qgz").exists()


@pytest.mark.parametrize("turned", [Affine.identity(), Affine.rotation(30), Affine.scale(1, -1)])
def test_the_view_holds_an_image_however_it_lies(tmp_path, turned):
    image = write_raster(tmp_path / "image.tif", picture(30, 40), transform=HALF_METRE @ turned)
    west, south, east, north = raster_layer(image, "image").bounds
    with rasterio.open(image) as file:
        corners = [file.transform @ corner for corner in ((0, 0), (40, 0), (0, 30), (40, 30))]
    assert all(west <= x <= east and south <= y <= north for x, y in corners)


def test_nodata_in_one_band_alone_does_not_stretch_an_image(tmp_path):
    """It was taken for a value where the other bands are valid, and the image was shown pale."""
    array = picture(128, 128, dtype="uint16") // 2 + 5_000
    array[2, :40] = 0
    [(_, style)] = raster_layer(write_raster(tmp_path / "image.tif", array, nodata=0), "image").styles
    assert all(float(low) >= 5_000 for low in re.findall("<minValue>([^<]*)", style)) and "<minValue>" in style


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    image = write_torn(tmp_path / "image.tif", picture(128, 128, dtype="uint16"), torn=[(0, 1)])
    assert raster_layer(image, "image").styles  # a map of it is looked at with what there is of it
    write_torn(image, picture(128, 128), torn=list(np.ndindex(2, 2)))
    with pytest.raises(DataError, match=r"image\.tif: cannot be read"):
        raster_layer(image, "image")


def test_a_map_without_a_polygon_has_a_project_and_a_path_that_qgis_cannot_open_is_refused(tmp_path):
    path = make_map(tmp_path)
    empty = geopandas.read_file(path, layer="anomalies").iloc[:0]
    empty.to_file(tmp_path / "none.gpkg", layer="anomalies")
    assert "layers 1" in run(tmp_path / "none.gpkg", "--out", tmp_path / "none.qgz")
    (tmp_path / "a|b").mkdir()
    shutil.copy(path, tmp_path / "a|b" / "a.gpkg")
    with pytest.raises(DataError, match=r"a\|b/a\.gpkg: QGIS takes \| in the path of polygons"):
        run(tmp_path / "a|b" / "a.gpkg", "--out", tmp_path / "x.qgz")
