"""What a person typed is never replaced unless that is asked for by name."""

import sqlite3

import geopandas
import numpy as np
import pytest
from rasterio.crs import CRS

from geood.errors import OutputError
from geood.geo import gpkg
from geood.geo.grid import Grid
from geood.polygons.typed_verdicts import check_nothing_typed
from geood.prediction.pipeline import predict
from geood.prediction.polygonizing import polygonize
from geood.prediction.publication import Publication
from support.rasters import HALF_METRE, picture, write_raster, write_scores


@pytest.fixture
def scores(tmp_path):
    array = np.full((100, 100), 0.1, np.float32)
    array[10:30, 10:30] = array[50:60, 50:60] = 0.9
    tags = {
        "GEOOD_SCENE": "s.tif",
        "GEOOD_THRESHOLD": "0.5",
        "GEOOD_PREDICT": "{}",
        "GEOOD_CLASSES": '{"0": "land"}',
    }
    return write_scores(tmp_path / "s.tif", Grid(100, 100, HALF_METRE, CRS.from_epsg(32633)), array, **tags)


def type_in(path, column, value, layer="anomalies"):
    """Type a value into the first row, as a person would."""
    if path.suffix == ".parquet":
        frame = geopandas.read_parquet(path)
        frame.loc[0, column] = value
        frame.to_parquet(path)
    elif path.suffix == ".gpkg":
        with sqlite3.connect(path) as database:
            for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
                database.create_function(name, 1, lambda _: 0)
            database.execute(f"UPDATE {layer} SET {column} = ? WHERE fid = 1", (value,))
        database.close()
    else:
        frame = geopandas.read_file(path)
        frame[column] = frame[column].astype("object")
        frame.loc[0, column] = value
        frame.to_file(path)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet"])
def test_polygonize_keeps_verdicts_in_every_format(tmp_path, scores, suffix):
    out = tmp_path / f"o{suffix}"
    assert polygonize(scores, out) == 2
    assert polygonize(scores, out, overwrite=True) == 2  # nothing is typed yet
    type_in(out, "verdict", "real")
    before = out.read_bytes()
    with pytest.raises(OutputError, match=r"typed verdicts.* in 1 of its rows.*--discard-verdicts"):
        polygonize(scores, out, overwrite=True)
    assert out.read_bytes() == before
    assert polygonize(scores, out, overwrite=True, discard_verdicts=True) == 2
    check_nothing_typed(out, discard=False)


@pytest.mark.parametrize(
    ("column", "value", "layer"),
    [("comment", "a boat", "anomalies"), ("misses", 0, "sample"), ("complete", True, "sample")],
)
def test_comments_and_counts_are_typed_as_well(tmp_path, scores, column, value, layer):
    polygonize(scores, tmp_path / "o.gpkg")
    type_in(tmp_path / "o.gpkg", "comment", "  ")
    type_in(tmp_path / "o.gpkg", "reviewed", "2026-01-01T00:00:00Z")  # as QGIS does it by itself
    check_nothing_typed(tmp_path / "o.gpkg", discard=False)
    type_in(tmp_path / "o.gpkg", column, value, layer)
    with pytest.raises(OutputError, match="in 1 of its rows"):
        check_nothing_typed(tmp_path / "o.gpkg", discard=False)


def test_a_file_that_another_program_writes_to_is_not_replaced(tmp_path, scores, monkeypatch):
    monkeypatch.setattr(gpkg, "PATIENCE_S", 0.05)
    polygonize(scores, tmp_path / "o.gpkg")
    other = sqlite3.connect(tmp_path / "o.gpkg", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutputError, match="another program is writing to it"):
        polygonize(scores, tmp_path / "o.gpkg", overwrite=True)
    other.execute("ROLLBACK")
    other.close()


def test_a_file_that_may_not_be_read_is_not_replaced(tmp_path, scores, monkeypatch):
    polygonize(scores, tmp_path / "o.gpkg")
    monkeypatch.setattr("os.access", lambda path, how: path != tmp_path / "o.gpkg")  # root may read all
    with pytest.raises(OutputError, match="may not read it"):
        polygonize(scores, tmp_path / "o.gpkg", overwrite=True)


def test_a_damaged_file_can_be_replaced(tmp_path, scores):
    (tmp_path / "o.gpkg").write_bytes(b"no database")
    assert polygonize(scores, tmp_path / "o.gpkg", overwrite=True) == 2


def test_predict_keeps_verdicts_also_those_typed_while_it_worked(tmp_path, bundle_path, monkeypatch):
    scene, out = write_raster(tmp_path / "in" / "a.tif", picture(120, 120)), tmp_path / "a.gpkg"
    predict([scene], out, bundle_path=bundle_path, threshold=0.3)
    begin = Publication.begin

    def typed_meanwhile(self, *args):
        begin(self, *args)
        type_in(out, "verdict", "false")

    with monkeypatch.context() as patched:
        patched.setattr(Publication, "begin", typed_meanwhile)
        with pytest.raises(OutputError, match="typed verdicts"):
            predict([scene], out, bundle_path=bundle_path, threshold=0.3, overwrite=True)
    with pytest.raises(OutputError, match="typed verdicts"):  # before any work
        predict([scene], out, bundle_path=bundle_path, threshold=0.3, overwrite=True)
    assert geopandas.read_file(out, layer="anomalies")["verdict"].iloc[0] == "false"
    predict([scene], out, bundle_path=bundle_path, threshold=0.3, overwrite=True, discard_verdicts=True)
    assert geopandas.read_file(out, layer="anomalies")["verdict"].isna().all()
