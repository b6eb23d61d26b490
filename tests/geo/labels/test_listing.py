"""Laws of the listing of label files: all that is in them is told, with its area, and nothing is changed."""

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import LineString, Point, Polygon, box

from geood.errors import DataError
from geood.geo.labels.listing import FoundValue, list_labels

UTM = CRS.from_epsg(32633)
BOW_TIE = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])  # of 50 m2, as viewers fill it


def written(path, rows, *, layer="a", attribute="class"):
    frame = gpd.GeoDataFrame(
        {attribute: [value for value, _ in rows], "name": range(len(rows))},
        geometry=[None if shape is None else shape for _, shape in rows],
        crs=UTM,
    )
    frame.set_geometry(frame.geometry.translate(500_000, 5_000_000)).to_file(path, layer=layer)
    return path


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_values_come_with_their_number_and_area(tmp_path, suffix):
    rows = [
        ("road", box(0, 0, 10, 10)),
        ("road", box(20, 0, 40, 10)),
        ("Road ", box(0, 50, 1, 51)),
        (None, box(0, 70, 9, 79)),
    ]
    path = written(tmp_path / "a.gpkg", rows)
    if suffix == ".parquet":
        gpd.read_file(path).to_parquet(path := tmp_path / "a.parquet")
    [layer] = list_labels(path).layers
    assert layer.shapes == {"Polygon": 4} and "33N" in layer.crs and not layer.problems
    text, numbers = layer.attributes
    assert text.text and [(v.value, v.number) for v in text.values] == [("road", 2), ("Road ", 1)]
    assert [v.area_m2 for v in text.values] == pytest.approx([300, 1], rel=2e-3)  # UTM is not true to scale
    assert not numbers.text and [v.value for v in numbers.values] == [0, 1, 2, 3]


def test_layers_and_what_is_wrong_with_them_are_told(tmp_path):
    path = written(tmp_path / "a.gpkg", [(1, BOW_TIE), (2, box(30, 0, 40, 10)), (3, box(35, 0, 45, 10)), (4, None)])
    written(path, [("x", LineString([(0, 0), (5, 5)])), ("x", Point(3, 3))], layer="thin")
    areas, thin = list_labels(path).layers
    assert (areas.name, thin.name) == ("a", "thin")
    assert [problem.partition(":")[0] for problem in areas.problems] == [
        "rows without a geometry, left out",
        "outlines that are not valid, repaired",
        "pairs of shapes that overlap",
    ]
    assert areas.attributes[0].values[0].area_m2 == pytest.approx(50, rel=2e-3)
    assert thin.shapes == {"LineString": 1, "Point": 1} and "data.label_buffer_m" in thin.problems[0]
    assert thin.attributes[0].values == (FoundValue("x", 2, 0.0),)
    widened = list_labels(path, buffer_m=2).layers[1].attributes[0].values
    assert widened[0].area_m2 == pytest.approx(50**0.5 * 4 + np.pi * 4 + np.pi * 4, rel=0.01), "as they will be burnt"


def test_a_line_without_length_is_widened_as_a_point_is(tmp_path):
    path = written(tmp_path / "l.gpkg", [("x", LineString([(3, 3), (3, 3)]))])
    [found] = list_labels(path, buffer_m=2).layers[0].attributes[0].values
    assert found.area_m2 == pytest.approx(np.pi * 4, rel=0.01)


def test_a_raster_is_one_layer_of_ids(tmp_path):
    ids = np.full((40, 50), 255, np.uint8)
    ids[:10] = 3
    ids[10:12] = 7
    profile = {"driver": "GTiff", "count": 1, "height": 40, "width": 50, "dtype": "uint8"}
    place = {"crs": UTM, "transform": Affine(2, 0, 500_000, 0, -2, 5_000_000)}
    for name, more in (("placed", place), ("bare", {})):
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile, **more) as file:
            file.write(ids, 1)
    [layer] = list_labels(tmp_path / "placed.tif").layers
    [found] = layer.attributes
    assert [(v.value, v.number) for v in found.values] == [(3, 500), (7, 100)]
    assert [v.area_m2 for v in found.values] == pytest.approx([2000, 400], rel=2e-3)
    assert layer.problems == ("70.0 % of it is unlabelled",)
    [bare] = list_labels(tmp_path / "bare.tif").layers
    assert bare.crs is None and bare.attributes[0].values[0] == FoundValue(3, 500, None)
    with pytest.raises(DataError, match="no such file"):
        list_labels(tmp_path / "none.gpkg")
