"""`geood info` tells of every kind of file that geood writes, and refuses others with what they are good for."""

import json
import shutil
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import geopandas
import pandas as pd
import pytest
from shapely.geometry import box

from geood.cli.process import _run
from support.http_server import serving
from support.rasters import picture, write_raster

REFERENCE = Path(__file__).parents[2] / "configs" / "aerial.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory, bundle_path):
    """Outputs of one prediction, in each format, and a run folder around the bundle."""
    folder = tmp_path_factory.mktemp("made")
    scene = write_raster(folder / "scene.tif", picture(64, 64))
    model = ["--model", str(bundle_path)]
    assert _run(["predict", str(scene), "--out", str(folder / "o.gpkg"), *model], debug=False) == 0
    for name in ("j.geojson", "p.parquet", "f.fgb"):
        assert _run(["polygonize", str(folder / "o.tif"), "--out", str(folder / name)], debug=False) == 0
    run = folder / "run"
    run.mkdir()
    shutil.copy(bundle_path, run / "model.safetensors")
    (run / "config.yaml").write_text("data: {}\n")
    (run / "metrics.csv").write_text("stage,step,figure,value\nsegmenter,10,miou,0.5\n")
    (folder / "summary.csv").write_text("scene,threshold,anomalies\ns.tif,0.7,3\n")
    project = '<qgis version="3.22"><layer-tree-group><layer-tree-layer name="anomalies" source="./o.gpkg"/>'
    with zipfile.ZipFile(folder / "o.qgz", "w") as archive:
        archive.writestr("o.qgs", project + "</layer-tree-group></qgis>")
    (folder / "report.html").write_text('<meta name="generator" content="geood 1"><title>Tile 6</title>')
    (folder / "v.json").write_text(json.dumps([{"scene": "s.tif", "anomalies": 3}]))
    squares = geopandas.GeoDataFrame({"split": ["train", "validation"]}, geometry=[box(0, 0, 1, 1)] * 2, crs=32640)
    squares.to_file(folder / "split.gpkg", layer="crops")
    cell = geopandas.GeoDataFrame({"class_id": [254], "origin": ["cell"]}, geometry=[box(0, 0, 1, 1)], crs=32640)
    cell.to_file(folder / "next.reviewed.gpkg", layer="labels")
    (folder / "confusion.csv").write_text("true class,land,road\nland,7,1\n")
    (folder / "skipped.csv").write_text("path,why\na.tif,cut short\n")
    (folder / "not finished").mkdir()
    (folder / "not finished" / "config.yaml").write_text("data: {}\n")
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("o.tif", ["threshold", "1 band of float32, 64 x 64 pixels"]),
        ("o.classes.tif", ["classes"]),
        ("o.gpkg", ["polygons", "EPSG", "rank 1", "judged", "threshold  ", "answer"]),
        ("j.geojson", ["polygons", "rank 1"]),
        ("p.parquet", ["polygons", "rank 1"]),
        ("f.fgb", ["polygons", "rank 1"]),
        ("run", ["segmenter", "miou", "0 land, 1 road, 2 roof"]),
        ("run/model.safetensors", ["0 land, 1 road, 2 roof"]),
        ("run/metrics.csv", ["a row for each epoch"]),
        ("summary.csv", ["a row for each scene", "anomalies 3"]),
        ("o.qgz", ["QGIS 3.22", "anomalies  ./o.gpkg"]),
        ("report.html", ["Tile 6", "file://"]),
        ("v.json", ["s.tif"]),
        ("split.gpkg", ["split of a training run", "crops", "2 (1 train, 1 validation)"]),
        ("next.reviewed.gpkg", ["geood feedback", "1 (1 cell)"]),
        ("confusion.csv", ["confusion of a training run", "land 7"]),
        ("skipped.csv", ["could not be read"]),
        ("o.qml", ["style of QGIS"]),
        ("not finished", ["not finished; go on", "not finished' --resume"]),
        ("", ["o.gpkg", "o.qgz", "styles for QGIS: "]),
    ],
)
def test_info_of_each_kind(made, capsys, name, said):
    assert _run(["info", str(made / name)], debug=False) == 0
    text = capsys.readouterr().out
    for part in said:
        assert part in text


def test_texts_for_programs_do_not_fill_the_screen(made, capsys):
    """The settings of a map are JSON, its table of false polygons may have thousands of characters."""
    assert _run(["info", str(made / "o.tif")], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    [settings] = [line for line in lines if line.startswith("predict ")]
    assert len(settings) < 250 and settings.endswith(" characters, for programs)")
    assert any(line.startswith("classes ") and "for programs" not in line for line in lines)


def test_a_folder_of_styles_alone_is_told_as_that(made, tmp_path, capsys):
    for name in ("o.qml", "o.above.qml"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    assert _run(["info", str(tmp_path)], debug=False) == 0
    said = capsys.readouterr().out
    assert "styles for QGIS: 2, taken with the layers of the same names" in said and "tells more of" not in said


def test_areas_of_photographs_are_told_in_pixels(made, tmp_path, capsys):
    """A photograph has no metres, so its polygons have no areas in m2."""
    photo = geopandas.read_file(made / "o.gpkg", layer="anomalies").assign(area_m2=float("nan"))
    photo.to_parquet(tmp_path / "photo.parquet")
    assert _run(["info", str(tmp_path / "photo.parquet")], debug=False) == 0
    text = capsys.readouterr().out
    assert "nan" not in text and " m2" not in text
    assert f"{photo['area_px'].sum():,} px in all, {photo['area_px'].min():,} px the smallest" in text
    drawn = photo.iloc[:1].assign(rank=None, area_px=None, score_p95=None)  # by hand, which makes the others floats
    pd.concat([photo, drawn], ignore_index=True).to_parquet(tmp_path / "drawn.parquet")
    assert _run(["info", str(tmp_path / "drawn.parquet")], debug=False) == 0
    assert [line for line in text.splitlines() if " px" in line] == [
        line for line in capsys.readouterr().out.splitlines() if " px" in line
    ]


def test_large_areas_are_told_without_a_power_of_ten(made, tmp_path, capsys):
    frame = geopandas.read_file(made / "o.gpkg", layer="anomalies")
    frame.assign(area_m2=12345.6).to_parquet(tmp_path / "large.parquet")
    assert _run(["info", str(tmp_path / "large.parquet")], debug=False) == 0
    text = capsys.readouterr().out
    assert " m2 in all, 12,300 m2 the smallest" in text and ", 12,300 m2" in text and "e+" not in text


def test_other_files_are_refused_with_what_they_are_good_for(made, tmp_path, capsys):
    labels = geopandas.GeoDataFrame({"class": ["roof"]}, geometry=[box(0, 0, 1, 1)], crs=32640)
    labels.to_file(tmp_path / "labels.gpkg")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "p.html").write_text("<title>news</title>")
    (tmp_path / "p.qgz").write_text("no archive")
    (tmp_path / "j.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for path, code, said in (
        (made / "scene.tif", 3, "geood plan"),
        (tmp_path / "labels.gpkg", 3, "data.labels"),
        (tmp_path / "t.csv", 3, "columns: a, b"),
        (tmp_path / "p.html", 3, "not a report of geood"),
        (tmp_path / "p.qgz", 3, "copy it again"),
        (tmp_path / "j.json", 3, "cannot be read as JSON"),
        (tmp_path / "empty", 2, "without files of geood"),
        (tmp_path / "none.gpkg", 3, "no such file"),
    ):
        assert _run(["info", str(path)], debug=False) == code
        assert said in capsys.readouterr().err


def test_no_content_of_a_file_is_a_bug_of_geood(made, tmp_path, capsys):
    """Values of any shape, archives of any kind, and columns that a person removed end in an answer or one error."""
    for name, text in (("n.json", "5"), ("l.json", '{"type": "Feature", "properties": [1]}'), ("t.json", '"x"')):
        (tmp_path / name).write_text(text)
        assert _run(["info", str(tmp_path / name)], debug=False) == 0, name
    with zipfile.ZipFile(tmp_path / "u.qgz", "w") as archive:
        archive.writestr("o.qgs", '<!DOCTYPE q [<!ENTITY a "b">]><q/>'.encode("utf-16"))
    content = bytearray((made / "o.qgz").read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1  # as if encrypted
    (tmp_path / "e.qgz").write_bytes(content)
    for name in ("u.qgz", "e.qgz"):
        assert _run(["info", str(tmp_path / name)], debug=False) == 3, name
    frame = geopandas.read_file(made / "o.gpkg", layer="anomalies").drop(columns=["class_name", "rank"])
    frame.to_file(tmp_path / "a.vrt.gpkg", layer="anomalies")
    assert _run(["info", str(tmp_path / "a.vrt.gpkg")], debug=False) == 0
    assert "polygons" in capsys.readouterr().out
    with closing(sqlite3.connect(made / "o.gpkg")) as database:
        [page] = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'anomalies'").fetchone()
        [size] = database.execute("PRAGMA page_size").fetchone()
    content = bytearray((made / "o.gpkg").read_bytes())
    content[(page - 1) * size : page * size] = bytes(size)
    (tmp_path / "d.gpkg").write_bytes(content)
    assert _run(["info", str(tmp_path / "d.gpkg")], debug=False) == 3
    assert "d.gpkg: cannot be read as a vector file" in capsys.readouterr().err


def test_what_may_not_be_read_is_told(tmp_path, capsys, monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)  # root may read all
    assert _run(["info", str(tmp_path)], debug=False) == 3
    assert "cannot be read (Permission denied)" in capsys.readouterr().err


def test_info_asks_no_server(tmp_path):
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [0, 0]}}
    point["properties"] = {"class_id": 1, "origin": "cell"}
    with serving(tmp_path) as server:
        crs = {"type": "link", "properties": {"href": server.url("crs.wkt"), "type": "esriwkt"}}
        collection = {"type": "FeatureCollection", "crs": crs, "features": [point]}
        (tmp_path / "labels.geojson").write_text(json.dumps(collection))
        assert _run(["info", str(tmp_path / "labels.geojson")], debug=False) == 0
        assert not server.requests


def test_the_reference_config_is_shown(capsys):
    assert _run(["info", str(REFERENCE)], debug=False) == 0
    assert "segmenter:" in capsys.readouterr().out
