import itertools

import numpy as np
import pytest
import rasterio

from geood.constants import IGNORE
from geood.datasets.synthetic.landscape import UNKNOWN
from geood.datasets.synthetic.objects import OBJECTS, VEHICLES
from geood.datasets.synthetic.world import CRS, make_world
from geood.errors import OutputError

SIZE = 512


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), seed=1, size_px=SIZE, scenes=2)


def read(path):
    with rasterio.open(path) as source:
        return source.read()


def test_same_seed_same_pixels_other_seed_other_pixels(tmp_path):
    first, again, other = (
        make_world(tmp_path / n, seed=s, size_px=128, scenes=0) for n, s in (("a", 5), ("b", 5), ("c", 6))
    )
    np.testing.assert_array_equal(read(first.test_image), read(again.test_image))
    np.testing.assert_array_equal(read(first.test_labels), read(again.test_labels))
    assert (read(first.test_image) != read(other.test_image)).any()
    assert first.planted == again.planted


def test_unknown_objects_stand_in_the_test_scene_only(world):
    for labels in world.train_labels:
        assert set(np.unique(read(labels))) <= set(world.classes)
    ids = read(world.test_labels)
    assert set(np.unique(ids)) <= {*world.classes, UNKNOWN, IGNORE}
    assert 0.005 < (ids == UNKNOWN).mean() < 0.2
    assert world.anomaly == (UNKNOWN,)


def test_planted_objects_are_the_unknown_pixels_exactly(world):
    labels = read(world.test_labels)[0]
    assert sum(p.area_px for p in world.planted) == (labels == UNKNOWN).sum()
    covered = np.zeros(labels.shape, bool)
    for planted in world.planted:
        window = labels[planted.window.slices]
        assert window.shape == planted.window[2:]
        covered[planted.window.slices] = True
    assert covered[labels == UNKNOWN].all()
    areas = [p.area_px for p in world.planted]
    assert max(areas) > 10 * min(areas)  # several sizes


def test_each_class_occurs_in_each_scene(world):
    for labels in world.train_labels:
        share = np.bincount(read(labels).ravel(), minlength=5)[:5] / SIZE**2
        assert (share > 0.005).all()


def test_labels_lie_on_the_grid_of_their_image_in_metres(world):
    pairs = [*zip(world.train_images, world.train_labels, strict=True), (world.test_image, world.test_labels)]
    extents = []
    for image, labels in pairs:
        with rasterio.open(image) as a, rasterio.open(labels) as b:
            assert (a.transform, a.crs, a.shape) == (b.transform, b.crs, b.shape)
            assert a.crs.to_string() == CRS
            assert a.res == (0.25, 0.25)
            assert (a.count, a.dtypes[0], a.nodata, b.nodata) == (3, "uint8", 0, 255)
            extents.append(a.bounds)
    assert all(a.right <= b.left for a, b in itertools.pairwise(extents))


def test_no_data_is_one_corner_of_the_test_scene_and_nowhere_else(world):
    image, labels = read(world.test_image), read(world.test_labels)[0]
    empty = (image == 0).all(0)
    np.testing.assert_array_equal(empty, labels == IGNORE)
    assert empty[0, -1] and not empty[-1, 0] and 0.002 < empty.mean() < 0.05
    assert all(read(path).min() > 0 for path in world.train_images)


def test_shadows_fall_away_from_the_sun(world):
    """The land just north-west of a building, where its shadow falls, is darker than the land south-east of it."""
    for image, labels in zip(world.train_images, world.train_labels, strict=True):
        light, ids = read(image).mean(0), read(labels)[0]
        house, land = ids == 2, ids == 0
        shadow, sunny = (np.roll(house, (r, c), (0, 1)) & land for r, c in ((-8, -6), (8, 6)))
        assert light[shadow].mean() < 0.75 * light[sunny].mean()


@pytest.mark.parametrize("kind", [*OBJECTS, *VEHICLES])
def test_objects_fit_into_their_reach_and_have_real_colours(kind):
    shape, reach = {**OBJECTS, **VEHICLES}[kind]
    axis = np.arange(-reach, reach, 0.25, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    height, albedo = shape(u, v, np.random.default_rng(0))
    inside = height > 0
    assert inside.any()
    assert not inside[[0, -1]].any() and not inside[:, [0, -1]].any()
    assert albedo[inside].min() >= 0 and albedo[inside].max() <= 1.1
    assert height.max() < 10


def test_a_scene_too_small_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 128"):
        make_world(tmp_path, seed=0, size_px=64)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("here already")
    with pytest.raises(OutputError, match="choose another folder"):
        make_world(tmp_path / "file", seed=0, size_px=128, scenes=0)
