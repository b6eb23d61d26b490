"""Laws of photographs at a width: crops are those of images of that width, and the width that counts is kept."""

import numpy as np
import pytest
from affine import Affine
from PIL import Image

from geood.config.sections import Config
from geood.datasets import open_crops
from geood.datasets.frames import Frame, decode
from geood.datasets.photo_scales import PhotoScale, read_scaled
from geood.errors import ConfigError, DataError
from geood.geo.grid import Window
from support.bundles import small_config
from support.cpu import slow
from support.rasters import picture, write_raster

HEIGHT, WIDTH = 91, 120


def write_photos(folder, factors, *, suffix="png", size=(HEIGHT, WIDTH), exif=None):
    """Write photographs enlarged by a factor each, pixel by pixel, and labels that are a function of the pixels."""
    for i, factor in enumerate(factors):
        image = picture(*size, seed=i)
        for kind, array in (("images", image.transpose(1, 2, 0)), ("labels", image[0] % 3)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            large = np.kron(array, np.ones((factor, factor) + (1,) * (array.ndim - 2), np.uint8)).astype(np.uint8)
            ending = suffix if kind == "images" else "png"
            Image.fromarray(large).save(folder / kind / f"p{i:02d}.{ending}", **({"exif": exif} if exif else {}))
    return folder


def config(folder, **keys):
    data = {"kind": "photos", "root": str(folder), "images": ["images"], "labels": ["labels"], "crop_px": 64}
    data |= {"crops": 24, "quarter_turns": False, "flips": "none", "scale_min": 1.0, "scale_max": 1.0}
    return small_config(data=data | {"brightness": 0.0, "contrast": 0.0, "validation": 0.2} | keys)


def pixels_of(crops):
    sides = ((crops.training_boxes, False), (crops.validation_boxes, True))
    return [(box, crops.ground.read(box, validation=side)) for boxes, side in sides for box in boxes]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("factors", [[4] * 6, [4, 1, 2, 4, 3, 2]])
def test_crops_at_a_width_are_those_of_photographs_of_that_width(tmp_path, suffix, factors):
    """The same windows with the same pixels and ids, from TIFFs read by windows and from whole images."""
    small = open_crops(config(write_photos(tmp_path / "small", [1] * 6, suffix=suffix)))
    large = open_crops(config(write_photos(tmp_path / "large", factors, suffix=suffix), width_px=WIDTH))
    assert large.training_boxes == small.training_boxes and large.validation_boxes == small.validation_boxes
    assert small.photo_width == large.photo_width == WIDTH
    for (_, one), (_, two) in zip(pixels_of(small), pixels_of(large), strict=True):
        np.testing.assert_allclose(one.image, two.image, atol=1e-4)
        np.testing.assert_array_equal(one.ids, two.ids)
        np.testing.assert_array_equal(one.valid, two.valid)


@pytest.mark.parametrize("width", [77, 313, *slow(101, 240)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_labels_stay_on_their_pixels_at_any_width(tmp_path, width, suffix):
    """Squares of one colour and one id each: inside of them a resampled pixel has the colour of its id."""
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 3, (6, 9)), np.ones((16, 16), int)).astype(np.uint8)[:HEIGHT, :131]
    for i in range(6):
        for kind, array in (("images", np.stack([100 * ids] * 3, -1)), ("labels", ids)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"p{i}.{suffix if kind == 'images' else 'png'}")
    crops = open_crops(config(tmp_path, width_px=width, min_valid=0.1))
    assert crops.photo_width == width
    for _, pixels in pixels_of(crops):
        whole = pixels.image[0] % 100 == 0
        assert whole[pixels.valid].mean() > 0.5
        np.testing.assert_array_equal(pixels.image[0][whole & pixels.valid], 100 * pixels.ids[whole & pixels.valid])


@pytest.mark.parametrize("scale", [0.25, 0.37, 1.0, 1.7])
def test_windows_put_together_are_the_whole(tmp_path, scale):
    image = picture(91, 133)
    image[:, 30:50, 20:70] = 0
    write_raster(tmp_path / "a.tif", image, nodata=0, crs=None, transform=Affine.identity())
    Image.fromarray(image[0] % 3).save(tmp_path / "a.png")
    frame, size = Frame("a", tmp_path / "a.tif", tmp_path / "a.png"), PhotoScale(91, 133, scale)

    def read(window):
        return decode(frame, window, indexes=(1, 2, 3))

    height, width = size.working
    whole = read_scaled(size, Window(0, 0, height, width), read)
    assert whole.ids.shape == (height, width) and not whole.valid.all() and (whole.ids[~whole.valid] == 255).all()
    for window in (Window(0, 0, 7, 9), Window(5, 3, height - 5, 11), Window(height - 1, width - 1, 1, 1)):
        part = read_scaled(size, window, read)
        np.testing.assert_array_equal(part.image, whole.image[:, *window.slices])
        np.testing.assert_array_equal(part.valid, whole.valid[window.slices])
        np.testing.assert_array_equal(part.ids, whole.ids[window.slices])


def test_the_width_is_the_common_one_else_the_median_of_those_trained_on(tmp_path, caplog):
    one = open_crops(config(write_photos(tmp_path / "one", [2] * 6)))
    assert one.photo_width == 2 * WIDTH and "median" not in caplog.text
    mixed = open_crops(config(write_photos(tmp_path / "mixed", [1, 1, 1, 2, 3, 3]), validation=0.2))
    widths = sorted(mixed.ground.sizes[i].width for i in range(6) if i not in mixed.ground.validation)
    assert mixed.photo_width == widths[(len(widths) - 1) // 2]
    assert f"{widths[0]} to {widths[-1]} px wide, {mixed.photo_width} in the median" in caplog.text
    assert {size.scale for size in mixed.ground.sizes} == {1.0}


def test_a_turned_photograph_has_the_width_that_viewers_show(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    crops = open_crops(config(write_photos(tmp_path, [1] * 6, exif=exif)))
    assert crops.photo_width == HEIGHT and crops.ground.sizes[0][:2] == (WIDTH, HEIGHT)
    crops = open_crops(config(tmp_path, width_px=2 * HEIGHT))
    for box, pixels in pixels_of(crops):
        assert crops.ground.sizes[box.frame].working == (2 * WIDTH, 2 * HEIGHT) and pixels.ids.shape == (64, 64)


def test_images_with_a_place_have_no_such_width(tmp_path):
    for i in range(6):
        write_raster(tmp_path / "images" / f"p{i}.tif", picture(HEIGHT, WIDTH, seed=i))
        write_raster(tmp_path / "labels" / f"p{i}.tif", picture(HEIGHT, WIDTH, seed=i)[0] % 3)
    assert open_crops(config(tmp_path)).photo_width is None
    with pytest.raises(DataError, match=r"p0\.tif: has a CRS or coordinates.*leave data\.width_px out"):
        open_crops(config(tmp_path, width_px=60))


def test_a_width_out_of_reach_and_one_of_scenes_are_refused(tmp_path, miniature):
    write_photos(tmp_path, [1] * 6)
    with pytest.raises(DataError, match=r"p00\.png: .*upsampled 8 times, and 4 is the most.*without data\.width_px"):
        open_crops(config(tmp_path, width_px=1000))
    with pytest.raises(ValueError, match="width_px is for kind photos"):
        config(tmp_path, kind="scenes", width_px=320)
    root, _ = miniature("potsdam")
    sets = {"root": str(root), "sets": [{"name": "potsdam"}], "crop_px": 64, "crops": 8, "validation_crops": 2}
    assert open_crops(Config.model_validate({"data": sets, "negatives": {"patch_max_px": 32}})).photo_width is None
    sets["width_px"] = 100
    with pytest.raises(ConfigError, match=r"width_px 100: pixels of these data\.sets are 0\.05 m"):
        open_crops(Config.model_validate({"data": sets, "negatives": {"patch_max_px": 32}}))
