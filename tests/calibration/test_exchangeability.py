"""Laws of the comparison with calibration ground: few false alarms, and what differs is named."""

import numpy as np
import pytest

from geood.calibration import exchangeability
from geood.calibration.cells import statistic_names
from geood.calibration.exchangeability import drift_of, family_of, in_words
from geood.models import CalibrationRecord

NAMES = tuple(name for name in statistic_names(("red", "green", "blue"), 2) if not name.startswith("within"))
CLASSES = {0: "land", 1: "water"}


def cells(rng, count, image=0.0):
    """Cells of one image: statistics of unit spread around that of the image."""
    return (image + rng.normal(0, 1, (count, len(NAMES)))).astype(np.float32)


def record(rng, images=6, each=20):
    own = rng.normal(0, 0.3, (images, len(NAMES)))
    rows = np.concatenate([cells(rng, each, image) for image in own])
    return CalibrationRecord(
        kind="jsd",
        pixels=1,
        pixel_m=None,
        intervals={},
        thresholds=(0.5,),
        block_px=(1,),
        block_image=(0,),
        above=((0,),),
        statistics=NAMES,
        cells=tuple(tuple(map(float, row)) for row in rows),
        cell_image=tuple(int(i) for i in np.repeat(np.arange(images), each)),
    )


def test_exchangeable_cells_are_hardly_ever_called_unlike():
    rng = np.random.default_rng(0)
    alarms = [drift_of(cells(rng, 20), record(rng, images=1, each=60), seed=trial).unlike for trial in range(40)]
    assert sum(alarms) <= 1


def test_another_image_of_the_same_kind_is_seldom_called_unlike():
    rng = np.random.default_rng(1)
    alarms = [
        drift_of(cells(rng, 20, rng.normal(0, 0.3, len(NAMES))), record(rng), seed=trial).unlike for trial in range(30)
    ]
    assert sum(alarms) <= 3


def test_a_large_scene_of_the_same_kind_is_seldom_called_unlike_by_images_of_few_cells():
    rng = np.random.default_rng(2)
    alarms = [
        drift_of(cells(rng, 256, rng.normal(0, 0.3, len(NAMES))), record(rng, images=12, each=9), seed=trial).unlike
        for trial in range(30)
    ]
    assert sum(alarms) <= 4


@pytest.mark.parametrize(
    ("shifts", "word"),
    [
        ({"level": 2.0}, "brighter bands"),
        ({"level": -2.0}, "darker bands"),
        ({"level": 2.0, "contrast": -2.0}, "haze"),
        ({"contrast": 2.5}, "more contrast"),
        ({"level red": 3.5, "level blue": -3.5}, "their order"),
        ({"likeness": -3.0}, "their order"),
        ({"detail": -3.0, "noise": -2.5}, "blur"),
        ({"noise": 3.0}, "noise"),
        ({"class 1": 3.0}, "other land cover (water"),
        ({"feature": 3.0}, "content"),
        ({"score": 3.0}, "higher scores"),
    ],
)
@pytest.mark.parametrize("images", [6, 16])  # fewer and more than are left out in turn
def test_what_differs_is_named(images, shifts, word):
    rng = np.random.default_rng(2)
    moved = cells(rng, 30)
    for prefix, shift in shifts.items():
        moved[:, [name.startswith(prefix) for name in NAMES]] += shift
    drift = drift_of(moved, record(rng, images=images, each=120 // images))
    assert drift.unlike and drift.p <= 0.01 and drift.distance > 1 and word in in_words(drift, CLASSES)


def test_a_class_that_fills_a_few_images_and_is_rare_in_others_is_no_difference():
    """The shares of a class in the images of one city are no normal law, so a variance alone would be too narrow."""
    rng = np.random.default_rng(4)
    at = [name.startswith("class") for name in NAMES]
    own = np.where(rng.random(24) < 0.15, 4.0, 0.0)
    ground = record(rng, images=24, each=9)
    rows = np.array(ground.cells)
    rows[:, at] += own[np.array(ground.cell_image)][:, None]
    ground = ground.model_copy(update={"cells": tuple(map(tuple, rows.tolist()))})
    new = cells(rng, 9)
    new[:, at] += 4.0
    limits = exchangeability._limits(rows, np.array(ground.cell_image), 9, np.array([family_of(n) for n in NAMES]))
    assert not drift_of(new, ground).unlike and limits[at].min() > 1.5 * limits[np.logical_not(at)].max()
    new[:, at] += 12.0
    assert drift_of(new, ground).unlike


def test_light_within_classes_is_not_compared_by_itself():
    """It is 0 where a cell lacks a class, and serves telltales alone."""
    rng, names = np.random.default_rng(5), statistic_names(("red", "green", "blue"), 2)
    ground = record(rng)
    more = np.zeros((len(ground.cells), len(names) - len(NAMES)))
    wide = ground.model_copy(
        update={"statistics": names, "cells": tuple(map(tuple, np.hstack([ground.cells, more]).tolist()))}
    )
    own = cells(rng, 20)
    plain, other = drift_of(own, ground), drift_of(np.hstack([own, more[:20] + 9]).astype(np.float32), wide)
    assert {(d.name, d.apart) for d in plain.differs} == {
        (d.name, d.apart) for d in other.differs if "change" not in d.name
    }


def test_scores_of_another_kind_are_not_compared():
    """An energy of -2 beside a surprisal of 2 says nothing of the scene."""
    rng = np.random.default_rng(6)
    moved, ground = cells(rng, 30), record(rng)
    moved[:, [name.startswith("score") for name in NAMES]] -= 9
    assert [family_of(d.name) for d in drift_of(moved, ground).differs[:3]] == ["score"] * 3
    other = drift_of(moved, ground, scored=False)
    assert not other.unlike and other.distance < 1 and other.cells == 30


def test_too_few_cells_tell_nothing():
    rng = np.random.default_rng(3)
    whole = record(rng)
    few = whole.model_copy(update={"cells": whole.cells[:5], "cell_image": whole.cell_image[:5]})
    assert drift_of(cells(rng, 2), whole) is None
    assert drift_of(cells(rng, 20), few) is None and drift_of(cells(rng, 20), None) is None
    assert drift_of(cells(rng, 20)[:, :-1], whole) is None  # of another model
