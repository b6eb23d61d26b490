"""Laws of telltales: a change of light or of the order of bands is told, and land cover alone is not taken for one."""

import numpy as np
import pytest

from geood.calibration.cells import CellMaps, cell_statistics, statistic_names
from geood.calibration.telltales import _dimmed, _reordered, light_of, told_by

BANDS = ("red", "green", "blue")
NAMES = statistic_names(BANDS, 1)
COVERS = np.array(
    [[0.5, 0.42, 0.3], [0.2, 0.35, 0.15], [0.45, 0.45, 0.5], [0.1, 0.2, 0.35]]
)  # soil, plants, roofs, sea


def scene(rng, size=256):
    """Bands (3, H, W) in [0, 1]: patches of land cover in a share of the scene's own, with texture."""
    return covered(rng, size)[0]


def covered(rng, size=256):
    """A scene, and its land cover (H, W)."""
    share = rng.dirichlet(np.ones(len(COVERS)))
    cover = np.kron(rng.choice(len(COVERS), (size // 16, size // 16), p=share), np.ones((16, 16), np.uint8))
    cover = cover.astype(np.uint8)
    grain = rng.normal(0, 0.04, (1, size, size)) + rng.normal(0, 0.01, (3, size, size))
    return np.clip(COVERS[cover].transpose(2, 0, 1) * rng.uniform(0.9, 1.1) + grain, 0, 1).astype(np.float32), cover


def cells(bands, cover=None):
    """Statistics (n, S) of the cells of a scene of one class, or of those of its land cover (H, W)."""
    shape = bands.shape[1:]
    features = np.zeros((8, shape[0] // 32, shape[1] // 32), np.float32)
    classes = np.zeros(shape, np.uint8) if cover is None else cover
    maps = CellMaps(bands, np.zeros(shape, np.float32), classes, features, 1 if cover is None else len(COVERS))
    return cell_statistics(maps, np.ones(shape, bool), every=1).astype(float)


@pytest.fixture(scope="module")
def ground():
    rng = np.random.default_rng(0)
    images = [cells(scene(rng)) for _ in range(12)]
    return np.concatenate(images), np.repeat(np.arange(12), [len(image) for image in images])


CHANGES = {
    "": lambda bands: bands,
    "haze": lambda bands: 0.4 + 0.5 * bands,
    "brighter": lambda bands: np.clip(1.5 * bands, 0, 1),
    "(green, blue, red)": lambda bands: bands[[1, 2, 0]],
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_change_is_told_and_land_cover_is_none(ground, said):
    rng = np.random.default_rng(1)
    told = [told_by(cells(CHANGES[said](scene(rng))), *ground, names=NAMES, bands=BANDS) for _ in range(6)]
    names = [found.name if found else "" for found in told]
    assert sum(map(bool, names)) <= 1 if not said else sum(said in name for name in names) >= 4, names
    assert all(found.beyond > 1 for found in told if found)


WEAKER = {"thin haze": lambda bands: 0.2 + 0.75 * bands, "order": lambda bands: bands[::-1].copy()}


@pytest.mark.parametrize("said", ["", *WEAKER])
def test_light_within_classes_tells_what_land_cover_hides(said):
    """Where a model knows land cover, red and blue swapped are seen as well, and scenes as they are still pass."""
    rng, names = np.random.default_rng(0), statistic_names(BANDS, len(COVERS))
    images = [cells(*covered(rng)) for _ in range(12)]
    ground, image = np.concatenate(images), np.repeat(np.arange(12), [len(one) for one in images])
    found = []
    for _ in range(6):
        bands, cover = covered(rng)
        changed = cells(WEAKER[said](bands) if said else bands, cover)
        told = told_by(changed, ground, image, names=names, bands=BANDS)
        found.append(told.name if told else "")
    assert not any(found) if not said else all(said.removeprefix("thin ") in name for name in found), found


def test_a_change_in_thought_is_that_of_the_pixels():
    bands = 0.2 + 0.5 * scene(np.random.default_rng(2))
    plain = light_of(cells(bands), NAMES)
    for thought, pixels in (
        (_dimmed(plain, 0.3, 0.6), 0.3 + 0.6 * bands),
        (_reordered(plain, (2, 0, 1)), bands[[2, 0, 1]]),
    ):
        for one, other in zip(thought, light_of(cells(pixels.astype(np.float32)), NAMES), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-3)


def test_few_images_and_statistics_of_an_older_model_tell_nothing(ground):
    rows, image = ground
    hazy = cells(CHANGES["haze"](scene(np.random.default_rng(3))))
    few = image < 4
    assert told_by(hazy, rows[few], image[few], names=NAMES, bands=BANDS) is None
    old = [i for i, name in enumerate(NAMES) if not name.startswith(("dark", "order"))]
    names = [NAMES[i] for i in old]
    assert told_by(hazy[:, old], rows[:, old], image, names=names, bands=BANDS) is None
