"""Comparison of a scene's cells with those of calibration ground: may they have come from one place?

Two conditions must hold before a scene is called different. First, a permutation test of the largest difference of
means over all statistics (maximum of |t|, Westfall and Young 1993), at a false alarm rate of 1 % for cells that are
exchangeable. Any two places differ by chance beyond that, since the cells of one scene are alike; so, second, a
difference must be larger than those of new images, and half a standard deviation of a cell or more. It is measured in
standard deviations of the mean of a new image, from the variance between images of the calibration ground and that of
cells within them. How large the largest of a family (light, texture, land cover ...) becomes by chance is seen on the
calibration images, each compared with the others: the limit of each family is that of 99 % of new images, a one-sided
t interval, for a scene with as many cells as they have; one with more has the same.
Land cover above all scatters far beyond what its variance tells, as a class that most images lack fills a few. With
fewer than ten images each statistic has its own 99 % t interval; with fewer than three no variance is known, and 1.5
standard deviations of a cell are taken.

Haze, gain and another order of the bands stay within what single statistics scatter; they are told together, by
`telltales`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # whose packages load on first use: before the first tile none is needed
from numpy.typing import NDArray

from geood.calibration.class_light import bands_and_channels
from geood.calibration.telltales import told_by
from geood.models import CalibrationRecord

FALSE_ALARMS = 0.01
PERMUTATIONS = 999
LEAST_CELLS, LEAST_SCENE_CELLS, LEAST_OF_IMAGE = 16, 3, 3
MOST_OF_SCENE = 256
LEAST_IMAGES, LEAST_LEFT_OUT = 3, 10  # for a variance between images, and for leaving each out in turn
APART = 1.5  # standard deviations of a cell: the limit where images are too few to tell one
LEAST_LIMIT = 0.5
FAMILIES = {
    "change": ("change",),
    "light": ("level", "contrast", "likeness", "dark", "order"),
    "texture": ("detail", "noise"),
    "cover": ("class",),
    "features": ("feature",),
    "score": ("score",),
}
_FLOORS = {
    "level": 0.01,
    "contrast": 0.01,
    "likeness": 0.02,
    "detail": 0.05,
    "noise": 0.1,
    "class": 0.05,
    "dark": 0.01,
    "order": 0.02,
}


class Difference(NamedTuple):
    """One statistic that differs: its name, means of scene and calibration ground, and standard deviations between."""

    name: str
    scene: float
    ground: float
    apart: float


class Drift(NamedTuple):
    """Distance of a scene from calibration ground.

    `p` is the p-value of the permutation test; `distance` is the largest difference as a share of its limit, above 1
    for a scene that is unlike; `differs` are the statistics beyond it, the farthest first, empty if `p` is above 1 %.
    """

    p: float
    distance: float
    differs: tuple[Difference, ...]
    cells: int

    @property
    def unlike(self) -> bool:
        """True if the scene is not like the calibration ground."""
        return bool(self.differs)


def drift_of(
    cells: NDArray[np.float32],
    record: CalibrationRecord | None,
    *,
    names: tuple[str, ...] | None = None,
    scored: bool = True,
    seed: int = 0,
) -> Drift | None:
    """Compare the cells (n, S) of a scene with those of a record; None if either has too few to tell.

    Args:
        cells: statistics of the scene's cells, in any order of tiles that does not change from run to run.
        record: the record of the calibration; one of an older geood has fewer statistics, which are compared alone.
        names: names (S,) of the statistics of `cells`; None: those of the record.
        scored: the scores of both are of one kind with the same settings; others have other units and are not compared.
        seed: seed of the permutations.
    """
    if record is None or len(record.cells) < LEAST_CELLS or len(cells) < LEAST_SCENE_CELLS:
        return None
    names = record.statistics if names is None else names
    if cells.shape[1] != len(names) or not set(record.statistics) <= set(names):
        return None
    cells = cells[:, [names.index(name) for name in record.statistics]]
    every_ground = np.asarray(record.cells, np.float64)
    chosen = np.linspace(0, len(cells) - 1, min(len(cells), MOST_OF_SCENE)).round().astype(int)
    every_scene = np.asarray(cells[chosen], np.float64)
    left_out = ("within ",) if scored else ("within ", "score ")
    own = [i for i, name in enumerate(record.statistics) if not name.startswith(left_out)]
    compared = [record.statistics[i] for i in own]
    ground, scene = every_ground[:, own], every_scene[:, own]
    deviation = np.maximum(ground.std(0), _floors(compared))
    apart = (scene.mean(0) - ground.mean(0)) / deviation
    families = np.array([family_of(name) for name in compared])
    limits = _limits(ground / deviation, np.asarray(record.cell_image), len(scene), families)
    p, each = _permuted(scene, ground, deviation, np.random.default_rng(seed))
    beyond = np.abs(apart) / limits
    order = [int(i) for i in np.argsort(-beyond) if beyond[i] > 1 and each[i] <= FALSE_ALARMS]
    differs = tuple(
        Difference(compared[i], float(scene.mean(0)[i]), float(ground.mean(0)[i]), float(apart[i])) for i in order
    )
    told = None
    if p <= FALSE_ALARMS:
        bands, _ = bands_and_channels(compared)
        image = np.asarray(record.cell_image)
        told = told_by(every_scene, every_ground, image, names=record.statistics, bands=bands)
    if told is not None:
        differs = (Difference(f"change {told.name}", told.beyond, 1.0, told.beyond), *differs)
    return Drift(p, max(float(beyond.max()), told.beyond if told else 0.0), differs, len(scene))


def family_of(name: str) -> str:
    """Return the family of a statistic."""
    first = name.split(maxsplit=1)[0]
    return next(family for family, names in FAMILIES.items() if first in names)


def _floors(names: Sequence[str]) -> NDArray[np.float64]:
    """Return the least deviations (S,): below, differences do not matter, however constant the ground is."""
    return np.array([_FLOORS.get(name.split()[0], 1e-3) for name in names])


def _limits(
    ground: NDArray[np.float64], image: NDArray[np.int64], count: int, families: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Return how far apart (S,) the mean of `count` cells of a new image may be.

    Args:
        ground: statistics of calibration cells in standard deviations (c, S).
        image: the image of each cell (c,).
        count: cells of the scene.
        families: the family of each statistic (S,).
    """
    each = [ground[image == i] for i in np.unique(image)]
    each = [cells for cells in each if len(cells) >= LEAST_OF_IMAGE]
    if len(each) < LEAST_IMAGES:
        return np.full(ground.shape[1], APART)
    images = _Images(
        np.array([len(cells) for cells in each]),
        np.array([cells.mean(0) for cells in each]),
        np.array([cells.var(0, ddof=1) for cells in each]),
    )
    left_out = len(each) >= LEAST_LEFT_OUT
    alike = min(count, int(np.median(images.sizes))) if left_out else count  # what is left out has no more cells
    own = images.deviation(alike, len(ground))
    far: NDArray[np.float64] = np.full(len(own), scipy.special.stdtrit(len(each) - 1, 1 - FALSE_ALARMS / 2))
    if left_out:
        places = _left_out(images, ground, LEAST_LIMIT / far[0])
        level = float(scipy.special.stdtrit(len(each) - 1, 1 - FALSE_ALARMS)) * np.sqrt(1 + 1 / len(each))
        for family in np.unique(families):
            largest = places[:, families == family].max(1)
            far[families == family] = largest.mean() + level * largest.std(ddof=1)
    limits: NDArray[np.float64] = np.maximum(LEAST_LIMIT, far * own)
    return limits


class _Images(NamedTuple):
    """Images of the calibration ground: number of cells (n,), means and variances of their statistics (n, S)."""

    sizes: NDArray[np.int64]
    means: NDArray[np.float64]
    variances: NDArray[np.float64]

    def deviation(self, count: int, total: int) -> NDArray[np.float64]:
        """Return the standard deviation (S,) of the mean of `count` cells of a new image from that of `total` here."""
        within = self.variances.mean(0)
        between = np.maximum(0, self.means.var(0, ddof=1) - within * np.mean(1 / self.sizes))
        spread: NDArray[np.float64] = np.sqrt(between * (1 + 1 / len(self.sizes)) + within * (1 / count + 1 / total))
        return spread


def _left_out(images: _Images, ground: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return how far (n, S) each image lies from the others, in deviations of a new one, at least `least` each."""
    places, total = np.empty_like(images.means), ground.sum(0)
    for i, (size, mean) in enumerate(zip(images.sizes, images.means, strict=True)):
        rest = len(ground) - int(size)
        gap = np.abs(mean - (total - size * mean) / rest)
        others = _Images(np.delete(images.sizes, i), np.delete(images.means, i, 0), np.delete(images.variances, i, 0))
        places[i] = np.where(gap >= LEAST_LIMIT, gap / np.maximum(others.deviation(int(size), rest), least), 0.0)
    return places


def _permuted(
    scene: NDArray[np.float64], ground: NDArray[np.float64], deviation: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, NDArray[np.float64]]:
    """Return the p-value of the largest difference, and adjusted ones (S,) of each (Phipson and Smyth 2010)."""
    both = np.concatenate([scene, ground]) / deviation
    count, total = len(scene), len(both)
    spread = np.maximum(both.std(0), 1e-9)

    def gaps(members: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = members @ both / count
        outside = (both.sum(0) - members @ both) / (total - count)
        found: NDArray[np.float64] = np.abs(inside - outside) / spread
        return found

    own = gaps(np.r_[np.ones(count), np.zeros(total - count)][None])[0]
    members = np.zeros((PERMUTATIONS, total))
    for row in members:
        row[rng.permutation(total)[:count]] = 1
    largest = gaps(members).max(1)
    each = (1 + (largest[:, None] >= own - 1e-12).sum(0)) / (1 + PERMUTATIONS)
    return float(each.min()), each


def in_words(drift: Drift, class_names: dict[int, str]) -> str:
    """Return what differs and what may have caused it, in a few words; empty if nothing does."""
    by_family: dict[str, list[Difference]] = {}
    for difference in drift.differs:
        by_family.setdefault(family_of(difference.name), []).append(difference)
    said = []
    if "change" in by_family:
        said.append(f"perhaps {by_family['change'][0].name.removeprefix('change ')}")
    if "light" in by_family:
        said.append(_light(by_family["light"]))
    if "texture" in by_family:
        said.append(_texture(by_family["texture"]))
    if "cover" in by_family:
        first = by_family["cover"][0]
        name = class_names.get(int(first.name.split()[1]), "?")
        said.append(f"other land cover ({name} {100 * first.scene:.0f} % against {100 * first.ground:.0f} %)")
    if "features" in by_family:
        said.append(f"content that the model does not know ({abs(by_family['features'][0].apart):.1f} deviations)")
    if "score" in by_family:
        first = max(by_family["score"], key=lambda difference: abs(difference.apart))
        said.append(f"{'higher' if first.apart > 0 else 'lower'} scores ({abs(first.apart):.1f} deviations)")
    return ", ".join(said)


def _light(found: list[Difference]) -> str:
    levels = [difference for difference in found if difference.name.startswith("level")]
    contrasts = [difference for difference in found if difference.name.startswith("contrast")]
    if levels and contrasts and all(d.apart > 0 for d in levels) and all(d.apart < 0 for d in contrasts):
        return "brighter and flatter bands (haze, or another scaling)"
    if any(difference.name.startswith("likeness") for difference in found):
        return "bands that go together otherwise (their order, another sensor or season, haze)"
    if levels:
        shift = max(levels, key=lambda difference: abs(difference.apart))
        word = "brighter" if shift.apart > 0 else "darker"
        if any((difference.apart > 0) != (shift.apart > 0) for difference in levels):
            return "bands brighter and darker than before (their order, another sensor or season)"
        return f"{word} bands (by {abs(shift.scene - shift.ground):.2f} of their range: gain, offset, season or sensor)"
    return _contrast(contrasts, next((difference for difference in found if difference.name == "dark"), None))


def _contrast(contrasts: list[Difference], dark: Difference | None) -> str:
    if contrasts:
        word = "more" if contrasts[0].apart > 0 else "less"
        times = contrasts[0].scene / max(contrasts[0].ground, 1e-6)
        return f"{word} contrast ({times:.1f} times: gain, season, sensor)"
    if dark is not None:
        return "brighter shadows (haze, or another scaling)" if dark.apart > 0 else "darker shadows than before"
    return "bands that lie otherwise to each other (their order, another sensor or season)"


def _texture(found: list[Difference]) -> str:
    noise = next((difference for difference in found if difference.name == "noise"), None)
    detail = next((difference for difference in found if difference.name == "detail"), None)
    first = noise or detail
    assert first is not None
    times = float(np.exp(abs(first.scene - first.ground)))
    if first.apart > 0:
        return f"finer grain, {times:.1f} times (noise, or sharper than the training images)"
    return f"less fine detail, {times:.1f} times (blur, or a coarser resolution than it says)"
