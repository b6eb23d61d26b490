"""Laws of light within classes: that of the pixels of a class, alike whatever land cover goes with it."""

import numpy as np
import pytest

from geood.calibration.cells import WITHIN_EVERY, CellMaps, cell_statistics, statistic_names
from geood.calibration.class_light import (
    LEAST_SHARE,
    MOST_CLASSES,
    band_pairs,
    class_light_names,
    class_rows,
    from_usual,
    usual_of,
)

BANDS, CLASSES = ("red", "green", "blue"), 3
NAMES = statistic_names(BANDS, CLASSES)
COLOURS = np.array([[0.2, 0.4, 0.1], [0.6, 0.5, 0.5], [0.1, 0.2, 0.5]], np.float32)


def picture(share, seed=0):
    """Bands (3, 64, 64) and classes (64, 64) of one cell, in which classes have about these shares."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(CLASSES, (64, 64), p=share).astype(np.uint8)
    bands = COLOURS[classes].transpose(2, 0, 1) + rng.normal(0, 0.03, (1, 64, 64)) + rng.normal(0, 0.01, (3, 64, 64))
    return bands.astype(np.float32), classes


def measured(bands, classes, known=None):
    """Statistics (1, S) of one cell."""
    side = classes.shape[0]
    maps = CellMaps(bands, np.zeros((side, side), np.float32), classes, np.zeros((8, 2, 2), np.float32), CLASSES)
    return cell_statistics(maps, np.ones((side, side), bool) if known is None else known, every=1).astype(float)


def test_it_is_that_of_the_known_pixels_of_a_class_and_rare_classes_have_none():
    bands, classes = picture([0.6, 0.38, 0.02])
    known = np.random.default_rng(1).random((64, 64)) < 0.8
    for mask in (np.ones((64, 64), bool), known):
        row = dict(zip(NAMES, measured(bands, classes, mask)[0], strict=True))
        for channel in (0, 1):
            own = bands[:, mask][:, ::WITHIN_EVERY][:, (classes[mask] == channel)[::WITHIN_EVERY]]
            pair = np.corrcoef(own[0], own[2])[0, 1]
            for i, band in enumerate(BANDS):
                assert row[f"within {channel} level {band}"] == pytest.approx(own[i].mean(), abs=1e-5)
                assert row[f"within {channel} contrast {band}"] == pytest.approx(own[i].std(), abs=1e-5)
            assert row[f"within {channel} likeness red blue"] == pytest.approx(pair, abs=1e-3)
        assert row["class 2"] < LEAST_SHARE and not any(row[n] for n in class_light_names(BANDS, 3) if "within 2" in n)


def test_rows_are_the_classes_of_a_cell_that_are_not_rare():
    cells = np.concatenate([measured(*picture([0.6, 0.38, 0.02])), measured(*picture([0, 0.5, 0.5]))])
    rows = class_rows(cells, NAMES)
    assert rows.cell.tolist() == [0, 0, 1, 1] and rows.of.tolist() == [0, 1, 1, 2]
    np.testing.assert_allclose(rows.level, COLOURS[rows.of], atol=0.01)
    older = [i for i, name in enumerate(NAMES) if not name.startswith("within")]
    assert class_rows(cells[:, older], [NAMES[i] for i in older]) is None


def test_land_cover_moves_nothing_and_light_moves_all_classes_alike():
    rng = np.random.default_rng(2)
    ground = np.concatenate([measured(*picture(rng.dirichlet(np.ones(3)), seed=n)) for n in range(40)])
    rows = class_rows(ground, NAMES)
    usual = usual_of(rows.level, rows, CLASSES)
    for share in ([1, 0, 0], [0, 1, 0], [0.1, 0.2, 0.7]):
        bands, classes = picture(share, seed=99)
        places = []
        for brighter in (0.0, 0.05):
            own = class_rows(measured(bands + np.float32(brighter), classes), NAMES)
            places.append(from_usual(own.level, own, usual, 1)[0])
        assert np.abs(places[0]).max() < 1.5 and places[1].min() > 2


def test_a_class_that_the_ground_lacks_says_nothing():
    rows = class_rows(np.concatenate([measured(*picture([0.5, 0.5, 0], seed=n)) for n in range(9)]), NAMES)
    usual = usual_of(rows.level, rows, CLASSES)
    own = class_rows(measured(*picture([0, 0, 1])), NAMES)
    assert not from_usual(own.level, own, usual, 1).any()


def test_of_many_bands_or_classes_or_of_one_it_is_not_measured():
    assert len(class_light_names(BANDS, 2)) == 2 * (3 + 3 + 3) and len(class_light_names(("grey",), 2)) == 4
    assert (
        not class_light_names(BANDS, 1)
        and not class_light_names(tuple("abcde"), 2)
        and not class_light_names(BANDS, MOST_CLASSES + 1)
    )
    assert len(band_pairs(4)) == 6 and band_pairs(6) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
