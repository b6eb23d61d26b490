"""Laws of what is printed at the end of a prediction: a command that works, for what was written."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from rasterio.crs import CRS

from geood.cli.printing import _held_out, print_cut, print_next
from geood.config import DataConfig
from geood.geo.grid import Grid
from geood.prediction import Prediction
from support.rasters import HALF_METRE, write_scores


def made(folder, anomalies, *, polygons="a b.gpkg", scene="s.tif"):
    polygons = None if polygons is None else folder / polygons
    return Prediction(str(folder / scene), folder / "a b.tif", polygons, None, 0.5, 100, anomalies)


def test_a_map_is_shown_and_then_counted(tmp_path, capsys):
    (tmp_path / "s.tif").touch()
    print_next([made(tmp_path, 3)])
    shown, then = capsys.readouterr().out.splitlines()
    assert shown.split() == (
        f"next geood project '{tmp_path}/a b.gpkg' --scene {tmp_path}/s.tif --out '{tmp_path}/a b.qgz'".split()
    )
    assert then == f"then       geood audit '{tmp_path}/a b.gpkg', once polygons have verdicts"


def test_scores_alone_are_cut_and_several_maps_shown_together(tmp_path, capsys):
    print_next([made(tmp_path, None, polygons=None)])
    assert f"geood polygonize '{tmp_path}/a b.tif' --out '{tmp_path}/a b.gpkg'" in capsys.readouterr().out
    print_next([made(tmp_path, 1, polygons="a.gpkg"), made(tmp_path, 1, polygons="b.gpkg")])
    assert f"geood project {tmp_path} --out {tmp_path}/all.qgz" in capsys.readouterr().out
    (tmp_path / "new").mkdir()
    for name in ("a.tif", "b.tif"):
        (tmp_path / "new" / name).touch()
    print_next([made(tmp_path, 1, polygons=f"{name}.gpkg", scene=f"new/{name}.tif") for name in "ab"])
    assert f"geood project {tmp_path} --scene {tmp_path}/new --out {tmp_path}/all.qgz" in capsys.readouterr().out
    print_next([])
    assert not capsys.readouterr().out


def test_polygons_cut_again_tell_their_threshold_and_the_way_on(tmp_path, capsys):
    out = tmp_path / "cut it.gpkg"
    with closing(sqlite3.connect(out)) as database, database:
        database.execute("CREATE TABLE run (threshold REAL, polygons_per_km2 REAL, false_per_km2 REAL)")
        database.execute("INSERT INTO run VALUES (0.5, 22.84, 5)")
    print_cut(out, 1)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"polygons   {out}: 1 above 0.5"
    assert said[1:] == [
        "per km2    22.8 polygons, 5 false ones expected",
        f"next       geood project '{out}' --out '{tmp_path}/cut it.qgz'",
        f"then       geood audit '{out}', once polygons have verdicts",
    ]
    print_cut(tmp_path / "x.fgb", 0)
    assert capsys.readouterr().out == f"polygons   {tmp_path}/x.fgb: 0\n"


def test_of_a_map_without_a_polygon_a_threshold_that_cuts_some_is_named(tmp_path, capsys):
    scores = np.linspace(0, 0.4, 100 * 100, dtype=np.float32).reshape(100, 100)
    write_scores(tmp_path / "a b.tif", Grid(100, 100, HALF_METRE, CRS.from_epsg(32633)), scores)
    print_next([made(tmp_path, 0)])
    said = capsys.readouterr().out
    assert "nothing lies above the threshold" in said
    threshold = float(said.partition("--threshold ")[2].partition(",")[0])
    assert 0 < (scores > threshold).mean() < 0.01
    assert Path(tmp_path / "a b.tif").is_file()


def test_what_is_held_out_is_named_where_its_name_is_known():
    camvid = DataConfig(sets=[{"name": "camvid"}], hold_out=["pedestrian", "bicyclist"])
    assert _held_out(camvid) == "9 pedestrian, 10 bicyclist"
    scenes = {"images": ["a.tif"], "labels": ["b.tif"], "classes": {0: "land", 1: "road"}}
    assert [_held_out(DataConfig(**scenes, anomaly=held)) for held in ([9], {9: "slum"}, [])] == ["9", "9 slum", "none"]
