"""Laws of validation ground: what validation owns, whole, once for each image, and nothing of the other side."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.warp import calculate_default_transform, reproject

from geood.calibration.measurement import _images
from geood.datasets import validation_ground
from geood.datasets.photo_crops import open_photos
from geood.datasets.scene_crops import open_scenes
from geood.datasets.validation_ground import _in_cell, decoded_frame, open_ids, validation_parts
from geood.errors import DataError
from geood.geo.grid import Window
from geood.geo.scene import Scene
from support.bundles import small_config
from support.rasters import picture, write_raster
from support.scenery import SIZE, config, make_scene, truth


def owned(folder, path):
    """Pixels and ids of an image that validation owns, from all parts; and the crops and blocks of the config."""
    settings = config(folder, block_m=30.0)
    crops = open_scenes(settings)
    with Scene.open(path) as scene:
        shape, grid = (scene.grid.height, scene.grid.width), scene.grid
    times, ids = np.zeros(shape, int), np.full(shape, 255)
    with open_ids(crops.ground, settings, path, grid) as reader:
        for part in validation_parts(crops.ground, settings):
            if part.image == path:
                mine, its_ids = reader.read(part)
                times[part.window.slices] += mine
                ids[part.window.slices] = np.where(mine, its_ids, ids[part.window.slices])
    return times, ids, crops


def test_parts_are_the_validation_blocks_each_pixel_once_with_its_label(tmp_path):
    folder = make_scene(tmp_path)
    times, ids, crops = owned(folder, folder / "a.tif")
    with rasterio.open(folder / "a.tif") as file:
        box, image = crops.ground.layers.images.index.geometry.iloc[0].bounds, file.read()
    blocks = crops.ground.blocks
    cells = {(c, r) for c in range(20) for r in range(20)} & blocks.validation
    assert cells and times.max() == 1
    for col, row in cells:
        west, north = blocks.west + col * blocks.width, blocks.north - row * blocks.height
        middle = int((box[3] - (north - blocks.height / 2)) / 0.5), int((west + blocks.width / 2 - box[0]) / 0.5)
        if middle[0] < 300 and middle[1] < 300:
            assert times[middle] == 1
    assert 0.2 < times.mean() < 0.5
    assert np.array_equal(ids[times == 1], truth(image)[times == 1]) and (ids[times == 0] == 255).all()


def test_an_image_in_another_crs_gives_the_same_ground(tmp_path):
    folder = make_scene(tmp_path)
    times, _, _ = owned(folder, folder / "a.tif")
    with rasterio.open(folder / "a.tif") as file:
        to, width, height = calculate_default_transform(file.crs, "EPSG:3857", file.width, file.height, *file.bounds)
        array = np.zeros((3, height, width), np.uint8)
        reproject(
            file.read(), array, src_transform=file.transform, src_crs=file.crs, dst_transform=to, dst_crs="EPSG:3857"
        )
    write_raster(folder / "a2.tif", array, crs="EPSG:3857", transform=to, nodata=0)
    other, ids, _ = owned(folder, folder / "a2.tif")
    assert other.max() == 1 and other[array[0] > 0].mean() == pytest.approx(times.mean(), abs=0.02)
    assert (ids[(other == 1) & (array[0] > 0)] != 255).mean() > 0.95


def test_of_an_image_that_lies_askew_validation_owns_the_same_ground(tmp_path):
    """Each pixel whose centre lies in a block of validation, and no other."""
    folder = make_scene(tmp_path)
    with rasterio.open(folder / "a.tif") as file:
        middle = file.transform @ (150, 150)
        turned = Affine.translation(*middle) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
        turned = turned @ Affine.translation(-110, -110)
        array = np.zeros((3, 220, 220), np.uint8)
        to = {"dst_transform": turned, "dst_crs": file.crs}
        reproject(file.read(), array, src_transform=file.transform, src_crs=file.crs, **to)
    write_raster(folder / "a2.tif", array, transform=turned, nodata=0)
    times, _, crops = owned(folder, folder / "a2.tif")
    rows, cols = np.mgrid[:220, :220] + 0.5
    x, y = turned.a * cols + turned.b * rows + turned.c, turned.d * cols + turned.e * rows + turned.f
    blocks = crops.ground.blocks
    wanted = sum(_in_cell(blocks, cell, x, y).astype(int) for cell in blocks.validation)
    assert 0 < wanted.mean() < 1 and np.array_equal(times, wanted)


def test_photographs_are_parts_as_a_whole_and_calibration_decodes_each_once(tmp_path, bundle, monkeypatch):
    for i in range(4):
        image = picture(64, 96, seed=i)
        for name, array in ((f"p{i}.png", np.moveaxis(image, 0, 2)), (f"p{i}_ids.png", truth(image))):
            Image.fromarray(array).save(tmp_path / name)
    data = {"kind": "photos", "root": str(tmp_path), "images": ["p?.png"], "labels": ["p?_ids.png"], "crop_px": 64}
    settings = small_config(data=data | {"crops": 4})
    crops = open_photos(settings)
    parts = validation_parts(crops.ground, settings)
    held = [crops.ground.frames[i].image for i in sorted(crops.ground.validation)]
    assert [part.image for part in parts] == held and len({part.block for part in parts}) == len(parts)
    for part in parts:
        assert part.window[2:] == (64, 96) and decoded_frame(crops.ground, part.image).image.shape == (3, 64, 96)
        with open_ids(crops.ground, settings, part.image, None) as reader:
            mine, ids = reader.read(part)
        assert mine.all() and ids.max() < 3
    seen, decode = [], validation_ground.decode
    monkeypatch.setattr(validation_ground, "decode", lambda frame, **how: seen.append(frame) or decode(frame, **how))
    taken = [part for _, parts in _images(bundle, crops, parts) for part in parts]
    assert [part.place for part in taken] == parts and all(part.inlier.any() for part in taken)
    assert len(seen) == len(parts)


def test_labels_that_lie_elsewhere_are_none_and_damaged_ones_an_error(tmp_path):
    folder = make_scene(tmp_path)
    settings = config(folder)
    ground = open_scenes(settings).ground
    with Scene.open(folder / "a.tif") as scene:
        grid, beyond = scene.grid, scene.grid[Window(0, 10_000, SIZE, SIZE)]
    with open_ids(ground, settings, folder / "b.tif", beyond) as reader:
        assert reader is None
    (folder / "truth.tif").write_bytes(b"no raster")
    with pytest.raises(DataError, match="truth"), open_ids(ground, settings, folder / "a.tif", grid):
        pass
