import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from geood.errors import DataError, OutputError
from geood.evaluation.pictures import _mosaic, _read_truth, draw_overview
from geood.geo.display import read_photo

UTM = "EPSG:32633"


def write(path, array, *, crs=UTM, nodata=None, transform=None):
    profile = {"driver": "GTiff", "count": len(array), "dtype": array.dtype, "nodata": nodata, "crs": crs}
    transform = transform or Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    with rasterio.open(
        path, "w", height=array.shape[1], width=array.shape[2], transform=transform, **profile
    ) as target:
        target.write(array)
    return path


@pytest.fixture
def rasters(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.zeros((1, 60, 80), np.uint8)
    ids[:, 10:30, 20:50] = 9
    scores = rng.random((1, 60, 80), np.float32) * 0.3 + 0.6 * (ids == 9)
    scores[:, :, :5] = np.nan
    return {
        "scene": write(tmp_path / "scene.tif", rng.integers(1, 255, (3, 60, 80), np.uint8), nodata=0),
        "scores": write(tmp_path / "scores.tif", scores.astype(np.float32), nodata=float("nan")),
        "classes": write(tmp_path / "classes.tif", rng.integers(0, 3, (1, 60, 80), np.uint8), nodata=255),
        "labels": write(tmp_path / "labels.tif", ids, nodata=255),
    }


def draw(out, rasters, **changes):
    given = {
        "class_names": {0: "land", 1: "road", 2: "water"},
        "anomaly": [9],
        "negatives": np.random.default_rng(1).random((5, 3, 16, 24)),
        "threshold": 0.5,
        "metrics": {"AP": 0.5, "FPR95": float("nan")},
    }
    draw_overview(out, **{**rasters, **given, **changes})


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_overview_shows_hits_and_misses(tmp_path, rasters):
    out = tmp_path / "overview.png"
    draw(out, rasters)
    seen = pixels(out).reshape(-1, 3)
    assert seen.shape[0] > 500_000
    for colour in ((0x00, 0xC8, 0x53), (0xFF, 0x00, 0xC8)):
        assert (seen == colour).all(1).sum() > 1000
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_overview_without_classes_labels_and_negatives(tmp_path, rasters):
    out = tmp_path / "overview.png"
    draw(out, {**rasters, "classes": None, "labels": None}, negatives=None)
    assert pixels(out).std() > 10


def test_same_input_same_picture(tmp_path, rasters):
    draw(tmp_path / "a.png", rasters)
    draw(tmp_path / "b.png", rasters)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_one_band_float_scene_with_gaps(tmp_path, rasters):
    band = np.random.default_rng(2).normal(1000, 50, (1, 60, 80)).astype(np.float32)
    band[:, 20:40, 20:40] = np.nan
    scene = write(tmp_path / "radar.tif", band, nodata=float("nan"))
    photo = read_photo(scene)
    assert (photo[20:40, 20:40] == 1).all()
    assert photo.min() >= 0 and photo.max() <= 1 and 0.3 < photo[:20].mean() < 0.7
    draw(tmp_path / "overview.png", {**rasters, "scene": scene})


def test_large_scenes_are_read_small(tmp_path):
    scene = write(tmp_path / "large.tif", np.ones((3, 400, 5000), np.uint8))
    assert read_photo(scene).shape == (80, 1000, 3)


def test_truth_on_another_grid_lands_on_the_scene(tmp_path, rasters):
    """Labels of double pixel size over a wider area show the anomaly where it lies on the ground."""
    ids = np.zeros((1, 50, 60), np.uint8)
    ids[:, 10 + 5 : 10 + 15, 10 + 10 : 10 + 25] = 9
    coarse = write(tmp_path / "coarse.tif", ids, transform=Affine(1, 0, 500_000 - 10, 0, -1, 5_000_000 + 10))
    fine, moved = (
        _read_truth(labels, rasters["scene"], shape=(60, 80), anomaly=[9]) for labels in (rasters["labels"], coarse)
    )
    np.testing.assert_array_equal(fine, moved)
    assert (fine == 1).sum() == 600


def test_mosaic_holds_every_sample_clipped():
    samples = np.stack([np.full((3, 4, 6), v) for v in (-1.0, 0.25, 0.5, 0.75, 2.0)])
    picture = _mosaic(samples)
    assert picture.shape == (2 * 6 + 2, 3 * 8 + 2, 3)
    for i, value in enumerate((0, 0.25, 0.5, 0.75, 1)):
        top, left = 2 + (i // 3) * 6, 2 + (i % 3) * 8
        assert (picture[top : top + 4, left : left + 6] == value).all()


def test_what_cannot_be_read_or_written_is_explained(tmp_path, rasters):
    with pytest.raises(DataError, match=r"missing\.tif"):
        draw(tmp_path / "overview.png", {**rasters, "scene": tmp_path / "missing.tif"})
    with pytest.raises(OutputError, match="choose another"):
        draw(tmp_path / "no folder" / "overview.png", rasters)
