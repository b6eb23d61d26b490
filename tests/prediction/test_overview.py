"""The overview of a map: drawn with the outputs or not at all, named before any work, at a bounded size."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from geood.calibration.verdict import HOLDS, UNKNOWN
from geood.errors import DataError, OutputError, TilesFailedError
from geood.geo.display import read_photo
from geood.prediction.overview import draw_map
from geood.prediction.pipeline import predict
from support.rasters import picture, write_raster, write_torn


@pytest.fixture(scope="module")
def mapped(bundle_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapped")
    scene = write_raster(folder / "$x$.tif", picture(90, 240))
    [made] = predict([scene], folder / "m.gpkg", bundle_path=bundle_path, threshold=0.5, overview=True)
    return made


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_it_is_one_of_the_outputs(mapped, bundle_path):
    assert mapped.overview == mapped.scores.with_name("m.overview.png") and pixels(mapped.overview).std() > 10
    folder = mapped.scores.parent
    taken = folder / "n.overview.png"
    taken.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"n\.overview\.png: exists already"):
        predict([mapped.scene], folder / "n.gpkg", bundle_path=bundle_path, overview=True)
    assert taken.read_bytes() == b"mine" and not (folder / "n.tif").exists()
    [plain] = predict([mapped.scene], folder / "n.tif", bundle_path=bundle_path)
    assert plain.overview is None


def test_scores_alone_and_each_verdict_are_drawn(mapped, tmp_path):
    given = {"scene": str(mapped.scene), "scores": mapped.scores, "label": "$x^", "threshold": 0.5}
    seen = []
    for i, answer in enumerate((HOLDS, UNKNOWN)):
        verdict = dataclasses.replace(mapped.verdict, answer=answer)
        draw_map(tmp_path / f"{i}.png", polygons=None, verdict=verdict, **given)
        seen.append(pixels(tmp_path / f"{i}.png"))
    draw_map(tmp_path / "none.png", polygons=mapped.polygons, verdict=None, **given)
    assert (max(seen[0].shape) < 2500 and seen[0].shape != seen[1].shape) or (seen[0] != seen[1]).any()


@pytest.mark.parametrize("nodata", [float(np.finfo("f4").min), float("inf")])
def test_an_image_whose_nodata_is_beyond_all_numbers_is_drawn_without_a_warning(tmp_path, nodata):
    array = picture(40, 60, dtype="uint16", high=1000).astype(np.float32) / 1000
    array[:, 10:20, 10:20] = nodata
    path = write_raster(tmp_path / "s.tif", array, nodata=nodata if np.isfinite(nodata) else None)
    photo = read_photo(path)
    assert (photo[10:20, 10:20] == 1).all() and photo[20:].std() > 0.2


@pytest.mark.parametrize(("dtype", "apart"), [("uint8", 0), ("uint16", 0.05)])  # stretched by what is seen
def test_of_a_damaged_file_all_is_drawn_that_can_be_read(tmp_path, dtype, apart):
    array, torn = picture(256, 256, dtype=dtype), np.zeros((256, 256), np.bool_)
    whole = read_photo(write_raster(tmp_path / "a.tif", array))
    shown = read_photo(write_torn(tmp_path / "b.tif", array, torn=[(1, 2), (3, 3)]))
    torn[64:128, 128:192] = torn[192:, 192:] = True
    assert (shown[torn] == 1).all() and np.allclose(shown[~torn], whole[~torn], rtol=0, atol=apart)
    write_torn(tmp_path / "c.tif", array, torn=list(np.ndindex(4, 4)))
    with pytest.raises(DataError, match=r"c\.tif: cannot be read"):
        read_photo(tmp_path / "c.tif")


def test_a_map_without_some_tiles_has_its_picture(tmp_path, bundle_path):
    scene = write_torn(tmp_path / "torn.tif", picture(192, 256), torn=[(1, 1)])
    with pytest.raises(TilesFailedError) as error:
        predict([scene], tmp_path / "m.gpkg", bundle_path=bundle_path, overview=True, settings=["predict.tile_px=64"])
    assert pixels(error.value.made[0].overview).std() > 10
