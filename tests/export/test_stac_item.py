"""A STAC item of a bundle is valid by the schemas of STAC 1.1 and of the MLM extension 1.5, and tells the truth."""

import json
import shutil
from pathlib import Path

import geopandas
import pytest
from jsonschema import Draft7Validator
from pyproj import Transformer
from referencing import Registry, Resource
from shapely.geometry import Point, box, shape

from geood.errors import ConfigError, DataError, OutputError
from geood.export import export_bundle
from geood.export.stac_item import EXTENSION, footprint
from support.bundles import make_bundle, with_statistics

SCHEMAS = Path(__file__).parents[1] / "support" / "schemas"
STAC = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema"
ELSEWHERE = {
    "mlm": EXTENSION,
    "classification": "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.1.0/schema.json",
    "Feature": "https://geojson.org/schema/Feature.json",
    "Geometry": "https://geojson.org/schema/Geometry.json",
}


@pytest.fixture(scope="module")
def registry():
    """All schemas by the address that others know them by, which in two of them is not their own $id."""
    pairs = []
    for path in SCHEMAS.glob("*.json"):
        address = ELSEWHERE.get(path.stem, f"{STAC}/{path.name}")
        schema = json.loads(path.read_text(encoding="utf-8")) | {"$id": address}
        pairs.append((address, Resource.from_contents(schema)))
    return Registry().with_resources(pairs)


def faults(item, registry):
    return [
        f"{error.json_path}: {error.message}"
        for address in (f"{STAC}/item.json", EXTENSION)
        for error in Draft7Validator(registry.contents(address), registry=registry).iter_errors(item)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    whole = make_bundle(
        folder / "plain.safetensors",
        segmenter={"outlier": "head"},
        data={
            "classes": {0: "land", 1: "low vegetation", 2: "grün"},
        },
    )
    with_statistics(whole, folder / "model.safetensors")
    blocks = geopandas.GeoDataFrame(geometry=[box(500000, 0, 500100, 100), box(500100, 0, 500200, 50)], crs=32640)
    blocks.to_file(folder / "split.gpkg", layer="blocks")
    return folder


def test_an_item_is_valid_and_tells_bands_classes_and_ground(run, registry, tmp_path):
    made = export_bundle(run, "stac", tmp_path / "item.json")
    item = json.loads(made.path.read_text(encoding="utf-8"))
    assert faults(item, registry) == [] and made.difference is None
    assert item["geometry"]["type"] == "Polygon" and item["bbox"][0] == pytest.approx(57.0, abs=0.01)
    fields = item["properties"]
    assert fields["mlm:input"][0]["bands"] == ["band_1", "band_2", "band_3"]
    names = [one["name"] for one in fields["mlm:output"][1]["classification:classes"]]
    assert names == ["land", "low_vegetation", "gr_n"]
    assert (tmp_path / item["assets"]["model"]["href"]).resolve() == (run / "model.safetensors").resolve()
    text = made.path.read_text(encoding="utf-8")  # no path of the machine that trained
    assert not [key for key in ("images", '"weights"', "folder", "stages_from", "tune_from") if key in text]


def test_an_item_without_the_training_s_blocks_has_no_place(run, registry, tmp_path):
    export_bundle(run / "plain.safetensors", "stac", tmp_path / "item.json")
    (tmp_path / "model.safetensors").write_bytes((run / "plain.safetensors").read_bytes())
    item = json.loads(export_bundle(tmp_path / "model.safetensors", "stac", tmp_path / "b.json").path.read_text())
    assert item["geometry"] is None and "bbox" not in item and faults(item, registry) == []


def test_blocks_that_cannot_be_read_are_told(tmp_path):
    (tmp_path / "split.gpkg").write_text("no database")
    with pytest.raises(DataError, match="move it away"):
        footprint(tmp_path / "split.gpkg")


def test_ground_across_the_date_line_is_the_ground_and_not_the_rest_of_the_earth(run, registry, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((run / "plain.safetensors").read_bytes())
    x, y = Transformer.from_crs(4326, 32660, always_xy=True).transform(180.0, -17.0)
    blocks = geopandas.GeoDataFrame(geometry=[box(x - 500, y - 500, x + 500, y + 500)], crs=32660)
    blocks.to_file(tmp_path / "split.gpkg", layer="blocks")
    item = json.loads(export_bundle(tmp_path, "stac", tmp_path / "a.json").path.read_text(encoding="utf-8"))
    outline = shape(item["geometry"])
    assert faults(item, registry) == [] and outline.is_valid and outline.area < 0.001
    assert outline.contains(Point(179.999, -17)) and outline.contains(Point(-179.999, -17))
    assert item["bbox"][0] > 179 and item["bbox"][2] < -179  # as GeoJSON has it (RFC 7946, 5.2)
    box_of = blocks.set_geometry([box(1e9, 1e9, 2e9, 2e9)], crs=32660)
    box_of.to_file(tmp_path / "split.gpkg", layer="blocks")
    with pytest.raises(DataError, match="move it away"):
        export_bundle(tmp_path, "stac", tmp_path / "b.json")


def test_the_place_of_a_run_is_known_whatever_its_folder_is_called(run, tmp_path):
    odd = tmp_path / "a; run!"
    odd.mkdir()
    shutil.copy(run / "split.gpkg", odd)
    assert footprint(odd / "split.gpkg") == footprint(run / "split.gpkg") is not None


def test_what_cannot_be_exported_is_refused_before_any_work(run, tmp_path):
    bundle = run / "model.safetensors"
    with pytest.raises(ConfigError, match="choose one of onnx, deepness, stac"):
        export_bundle(bundle, "pdf", tmp_path / "x.pdf")
    with pytest.raises(ConfigError, match=r"ends in \.json; name it x\.json"):
        export_bundle(bundle, "stac", tmp_path / "x.onnx")
    (tmp_path / "x.json").touch()
    with pytest.raises(OutputError, match="exists already"):
        export_bundle(bundle, "stac", tmp_path / "x.json")
    for to, name in (("stac", "model.json"), ("onnx", "model.onnx")):
        shutil.copy(bundle, tmp_path / name)
        with pytest.raises(OutputError, match="is the model itself"):
            export_bundle(tmp_path / name, to, tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_bytes() == bundle.read_bytes()
