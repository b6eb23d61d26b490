"""What the tests of training scenes share: one small scene whose labels are a function of its pixels."""

import numpy as np
from affine import Affine

from geood.datasets.torchgeo_layers import Box
from support.bundles import small_config
from support.rasters import HALF_METRE, picture, write_raster

STILL = {"brightness": 0.0, "contrast": 0.0, "scale_min": 1.0, "scale_max": 1.0}
SIZE = 300


def truth(image):
    """Class ids 0 to 2, a function of the image alone; every crop holds all of them."""
    return (image[0] % 3).astype("uint8")


def config(folder, *, bands=None, train=None, **keys):
    data = {"root": str(folder), "images": ["a*.tif"], "labels": ["truth*.tif"], "crop_px": 64, "crops": 24}
    data |= {"block_m": 40.0, "validation": 0.3, "min_valid": 0.3, "anomaly": [7]} | STILL | keys
    whole = {"low_percentile": 0.0, "high_percentile": 100.0}
    return small_config(data=data, bands=whole | (bands or {}), train=train or {})


def make_scene(folder):
    """Write one image of 300 x 300 pixels at 0.5 m, and its labels."""
    image = picture(SIZE, SIZE)
    write_raster(folder / "a.tif", image)
    write_raster(folder / "truth.tif", truth(image), nodata=255)
    return folder


def moved(right_px=0, down_px=0, pixel=0.5):
    return Affine(pixel, 0, 500_000.25 + right_px * 0.5, 0, -pixel, 4_649_776.75 - down_px * 0.5)


def digital(scenes, image):
    """Digital numbers of a scaled image (C, H, W)."""
    low, high = (np.array(v)[:, None, None] for v in (scenes.bands.low, scenes.bands.high))
    return np.rint(image.numpy() * (high - low) + low)


def read_all(scenes, height=SIZE, width=SIZE, transform=HALF_METRE):
    """The pixels of a whole image through the layers."""
    west, north, side = transform.c, transform.f, transform.a
    return scenes.ground.layers.read(Box(west, north - height * side, west + width * side, north))


def assert_mask_is_on_image(scenes, samples):
    assert len(samples)
    for sample in samples:
        known = sample["mask"].numpy() != 255
        assert known.any()
        assert not (known & ~sample["valid"].numpy()).any()
        known &= ((sample["image"][0] > 0) & (sample["image"][0] < 1)).numpy()  # a number training never saw is clipped
        assert known.any()
        assert np.array_equal(truth(digital(scenes, sample["image"]))[known], sample["mask"].numpy()[known])
