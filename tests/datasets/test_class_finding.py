"""Laws of the classes that labels hold: those of vector files by name, those of rasters by id, anomalies aside."""

import geopandas as gpd
import numpy as np
import pytest
from rasterio.crs import CRS
from shapely.geometry import box

from geood.config import Config
from geood.datasets import settle_classes
from geood.errors import ConfigError, DataError
from support.rasters import write_raster

UTM = CRS.from_epsg(32633)


def config(folder, **data):
    given = {"root": str(folder), "images": ["a.tif"], "label_attribute": "class", "classes": "auto"}
    return Config.model_validate({"data": given | data})


def drawn(path, values):
    shapes = [box(i, 0, i + 1, 1) for i in range(len(values))]
    gpd.GeoDataFrame({"class": values}, geometry=shapes, crs=UTM).to_file(path)


def test_texts_are_classes_by_their_usual_spelling(tmp_path):
    drawn(tmp_path / "l.gpkg", ["Road", "road", "road", " Open  land", "BOAT", "2", None, " "])
    found = settle_classes(config(tmp_path, labels=["l.gpkg"], anomaly=["boat"], background="open land"))
    assert found.data.classes == {0: "2", 1: "Open land", 2: "road"}
    assert (found.data.anomaly, found.data.background_id) == ({253: "boat"}, 1)
    assert settle_classes(found) is found
    with pytest.raises(ConfigError, match="background sea is not one of classes"):
        settle_classes(config(tmp_path, labels=["l.gpkg"], background="sea"))


def test_numbers_are_ids(tmp_path):
    drawn(tmp_path / "l.gpkg", [3, 7, 7, 300, 255])
    found = settle_classes(config(tmp_path, labels=["l.gpkg"], anomaly=[7], label_ids={300: 4}))
    assert found.data.classes == {3: "class 3", 4: "class 4"}
    ids = np.repeat(np.array([0, 1, 5, 255], "uint8"), 16).reshape(8, 8)
    write_raster(tmp_path / "l.tif", ids)
    found = settle_classes(config(tmp_path, labels=["l.tif"], anomaly=[5], label_attribute=None))
    assert found.data.classes == {0: "class 0", 1: "class 1"}


def test_more_texts_than_ids_are_refused_and_not_left_out(tmp_path):
    drawn(tmp_path / "l.gpkg", [f"plot {i}" for i in range(255)])
    with pytest.raises(DataError, match="class of the labels holds 255 texts, and there are ids for 254"):
        settle_classes(config(tmp_path, labels=["l.gpkg"]))


def test_two_classes_at_least_are_needed(tmp_path):
    drawn(tmp_path / "l.gpkg", ["road", "Road"])
    with pytest.raises(
        DataError, match=r"l\.gpkg: data\.classes is auto, and the labels hold 'road', 'Road', where two"
    ):
        settle_classes(config(tmp_path, labels=["l.gpkg"]))
