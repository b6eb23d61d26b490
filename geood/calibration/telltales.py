"""Changes that a scene tells of itself: haze, gain, bands in another order.

Scenes of one kind differ much in each statistic of their cells, by land cover above all, so that haze or swapped bands
hide in that scatter. Together they do not hide: what a change does to the statistics of a cell is known, whatever the
cell shows. They hide still less in the light within each class that the model takes pixels for (`class_light`), which
is looked at where it was measured; else the light of whole cells is. So calibration cells are changed in thought, a
linear discriminant (Fisher 1936) is fitted between them and the cells as they are, and the scene is placed along it: 0
where the ground lies, 1 where the changed ground lies.
The place of an image is the mean of its cells; how much it differs between images is measured on the calibration
images, each placed by a discriminant that was fitted without it. A change is told where the scene lies past halfway,
and farther out than the largest place over all changes in 95 % of new images (a one-sided t interval; 99 % with fewer
than ten images, or by light of whole cells). Known bands are needed for that, no pixels: a change of light moves levels
and contrasts, another order exchanges them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy  # whose packages load on first use: before the first tile none is needed
from numpy.typing import NDArray

from geood.calibration.class_light import (
    MOST_BANDS,
    ClassRows,
    Floats,
    band_pairs,
    bands_and_channels,
    class_rows,
    from_usual,
    usual_of,
)

FALSE_ALARMS, SELDOM = 0.05, 0.01  # within classes of ten images or more; else
LEAST_IMAGES, MANY_IMAGES, FOLDS = 5, 10, 5
HALFWAY = 0.5
SHRINK, FAR = 0.1, 6.0
LIGHT = {  # level and contrast as changed: offset and factor, of the bands' range
    "haze": (0.4, 0.5),
    "light haze": (0.2, 0.75),
    "brighter by gain": (0.0, 1.4),
    "darker by gain": (0.0, 0.65),
}
NOISE = 0.05  # standard deviation, of the bands' range, in each band: it raises contrasts as a gain does
_LEAST = 1e-3


class CellLight(NamedTuple):
    """Light of n cells of B bands: `level` and `contrast` (n, B), `likeness` and `order` (n, P) of the pairs of bands.

    `fineness` (n, 2) are detail and noise, `dark` (n,) is the dark channel.
    """

    level: Floats
    contrast: Floats
    likeness: Floats
    order: Floats
    fineness: Floats
    dark: Floats


Change = Callable[[CellLight], CellLight]


class Looks(NamedTuple):
    """Looks of cells as numbers: those of a `scene` (m, D), and calibration cells (n, D) by `ground`.

    `ground` takes the change that they are seen with, None as they are. `within` tells whether the light within classes
    is looked at, or that of whole cells.
    """

    scene: Floats
    ground: Callable[[Change | None], Floats]
    within: bool


class Telltale(NamedTuple):
    """Change that a scene looks like: its name, and how far out the scene lies as a share of the limit (above 1)."""

    name: str
    beyond: float


def light_of(cells: Floats, names: Sequence[str]) -> CellLight | None:
    """Return the light of cells (n, S) whose statistics have these names; None if some were not measured."""
    by = {kind: [i for i, name in enumerate(names) if name.split()[0] == kind] for kind in _KINDS}
    bands = len(by["level"])
    whole = all(len(by[kind]) == len(band_pairs(bands)) for kind in ("likeness", "order"))
    if not whole or any(len(by[kind]) != 1 for kind in ("dark", "detail", "noise")):
        return None
    level, contrast, likeness, order = (cells[:, by[kind]] for kind in ("level", "contrast", "likeness", "order"))
    level, dark = level.clip(0, 1), cells[:, by["dark"][0]].clip(0, 1)
    return CellLight(level, contrast, likeness, order, cells[:, by["detail"] + by["noise"]], dark)


_KINDS = ("level", "contrast", "likeness", "order", "detail", "noise", "dark")


def told_by(
    scene: Floats, ground: Floats, image: NDArray[np.int64], *, names: Sequence[str], bands: Sequence[str]
) -> Telltale | None:
    """Return the change that a scene looks like most; None if it is like the ground, or images are too few to tell.

    Args:
        scene: statistics (m, S) of the scene's cells.
        ground: statistics (n, S) of calibration cells.
        image: the image of each of these (n,).
        names: the names (S,) of the statistics.
        bands: the names of the bands.
    """
    numbers, looks = np.unique(image), _looks_of(ground, scene, names)
    if looks is None or len(numbers) < LEAST_IMAGES:
        return None
    plain = looks.ground(None)
    changes = _changes(bands)
    places, own = np.empty((len(changes), len(numbers))), np.empty(len(changes))
    fold = np.searchsorted(numbers, image) % min(FOLDS, len(numbers))
    rest, all_of_it = {k: _discriminant(plain[fold != k]) for k in np.unique(fold)}, _discriminant(plain)
    for row, change in enumerate(changes.values()):
        changed = looks.ground(change)
        along = np.empty(len(plain))
        for k, discriminant in rest.items():
            along[fold == k] = discriminant(changed[fold != k])(plain[fold == k])
        places[row] = [along[image == number].mean() for number in numbers]
        own[row] = all_of_it(changed)(looks.scene).mean()
    mean, spread = places.mean(1), np.maximum(places.std(1, ddof=1), _LEAST)
    alarms = FALSE_ALARMS if looks.within and len(numbers) >= MANY_IMAGES else SELDOM
    far = float(scipy.special.stdtrit(len(numbers) - 1, 1 - alarms))
    far *= np.sqrt(1 + 1 / len(numbers))
    largest = ((places - mean[:, None]) / spread[:, None]).max(0)
    limit = max(far, float(largest.mean() + far * largest.std(ddof=1)))
    beyond = np.where(own > HALFWAY, (own - mean) / spread / limit, 0.0)
    first = int(beyond.argmax())
    return Telltale(list(changes)[first], float(beyond[first])) if beyond[first] > 1 else None


def _looks_of(ground: Floats, scene: Floats, names: Sequence[str]) -> Looks | None:
    """Return what cells of ground (n, S) and scene (m, S) look like; None if it was not measured."""
    rows, here = class_rows(ground, names), class_rows(scene, names)
    if rows is not None and here is not None:
        known, new = _light_of_rows(rows), _looks_of_light(_light_of_rows(here))
        usual = usual_of(_looks_of_light(known), rows, len(bands_and_channels(names)[1]))

        def within(change: Change | None) -> Floats:
            return from_usual(_looks_of_light(change(known) if change else known), rows, usual, len(ground))

        return Looks(from_usual(new, here, usual, len(scene)), within, within=True)
    light, other = light_of(ground, names), light_of(scene, names)
    if light is None or other is None:
        return None
    return Looks(_looks(other), lambda change: _looks(change(light) if change else light), within=False)


def _light_of_rows(rows: ClassRows) -> CellLight:
    """Return the light of parts of cells; what is not measured of them is 0, and nothing looks at it."""
    none = np.zeros((len(rows.of), 2))
    return CellLight(rows.level, rows.contrast, rows.likeness, np.zeros_like(rows.likeness), none, none[:, 0])


def _discriminant(plain: Floats) -> Callable[[Floats], Callable[[Floats], Floats]]:
    """Return the function of a second group that gives the place of looks along the discriminant of both.

    It is 0 at the mean of the first, `plain`, and 1 at that of the second.
    """
    middle = plain.mean(0)
    apart = plain - middle
    spread = np.maximum(np.sqrt(np.einsum("ij,ij->j", apart, apart) / len(plain)), 10 * _LEAST)

    def standard(looks: Floats) -> Floats:
        clipped: Floats = ((looks - middle) / spread).clip(-FAR, FAR)
        return clipped

    one = standard(plain)
    at = one.mean(0)
    scatter = _covariance(one - at)

    def against(changed: Floats) -> Callable[[Floats], Floats]:
        other = standard(changed)
        to = other.mean(0)
        within = (scatter + _covariance(other - to)) / 2 + SHRINK * np.eye(one.shape[1])
        weights = np.linalg.solve(within, to - at)
        start = float(at @ weights)
        length = max(float(to @ weights) - start, _LEAST)

        def place(looks: Floats) -> Floats:
            found: Floats = (standard(looks) @ weights - start) / length
            return found

        return place

    return against


def _covariance(apart: Floats) -> Floats:
    """Return the covariance of rows (n, S) that lie around 0, as `np.cov` does in a third of the time."""
    found: Floats = apart.T @ apart / (len(apart) - 1)
    return found


def _changes(bands: Sequence[str]) -> dict[str, Change]:
    """Return the changes that are looked for, by their names: of light, and orders of a few bands."""
    found: dict[str, Change] = {
        name: partial(_dimmed, offset=offset, factor=factor) for name, (offset, factor) in LIGHT.items()
    }
    found["noise"] = _noisy
    count = len(bands)
    if 1 < count <= MOST_BANDS:
        orders = [order for order in itertools.permutations(range(count)) if list(order) != sorted(order)]
        orders = [order for order in orders if count < MOST_BANDS or sum(map(int.__ne__, order, range(count))) == 2]
        for order in orders:
            name = f"bands in another order ({', '.join(bands[i] for i in order)})"
            found[name] = partial(_reordered, order=order)
    return found


def _dimmed(light: CellLight, offset: float, factor: float) -> CellLight:
    """Return the light of cells seen through haze or with another gain."""
    fineness = light.fineness + np.array([0.0, np.log(factor)])
    level, dark = ((offset + factor * values).clip(0, 1) for values in (light.level, light.dark))
    return light._replace(level=level, contrast=factor * light.contrast, fineness=fineness, dark=dark)


def _noisy(light: CellLight) -> CellLight:
    """Return the light of cells with noise of its own in each band."""
    contrast = np.hypot(light.contrast, NOISE)
    kept = light.contrast / contrast
    pairs, bands = band_pairs(kept.shape[1]), kept.shape[1]
    both = np.stack([kept[:, one] * kept[:, other] for one, other in pairs], 1) if pairs else light.likeness
    grey, before = NOISE / bands**0.5, np.maximum(light.contrast.mean(1), _LEAST)
    step = np.hypot(np.exp(light.fineness[:, 0]) * before, 2 * grey / np.pi**0.5) / np.hypot(before, grey)
    noise = np.hypot(np.exp(light.fineness[:, 1]), grey)
    return light._replace(
        contrast=contrast,
        likeness=light.likeness * both,
        order=0.5 + (light.order - 0.5) * both,
        fineness=np.log(np.stack([step, noise], 1)),
        dark=(light.dark - 2 * NOISE).clip(0, 1),
    )


def _reordered(light: CellLight, order: Sequence[int]) -> CellLight:
    """Return the light of cells whose bands have another order; all pairs of bands must have been measured."""
    pairs = band_pairs(len(order))
    likeness, higher = [], []
    for one, other in pairs:
        pair = order[one], order[other]
        turned = pair not in pairs
        at = pairs.index(pair[::-1] if turned else pair)
        likeness.append(light.likeness[:, at])
        higher.append(1 - light.order[:, at] if turned else light.order[:, at])
    level, contrast = light.level[:, list(order)], light.contrast[:, list(order)]
    return light._replace(level=level, contrast=contrast, likeness=np.stack(likeness, 1), order=np.stack(higher, 1))


def _looks(light: CellLight) -> Floats:
    """Return what whole cells look like as numbers (n, D)."""
    return np.concatenate([_looks_of_light(light), light.order, light.fineness, light.dark[:, None]], 1)


def _looks_of_light(light: CellLight) -> Floats:
    """Return levels, contrasts and correlations as numbers (n, D) that a change moves alike in all."""
    pairs, contrast = band_pairs(light.level.shape[1]), np.maximum(light.contrast, _LEAST)
    grey = contrast.mean(1) / (light.level.mean(1) + 0.02)
    looks = [light.level, np.log(contrast), np.arctanh(light.likeness.clip(-0.995, 0.995)), np.log(grey)[:, None]]
    for at, (one, other) in enumerate(pairs):
        first, second = contrast[:, one], contrast[:, other]
        colour = first**2 + second**2 - 2 * light.likeness[:, at] * first * second
        tilt = (light.level[:, one] - light.level[:, other]) / (light.level[:, one] + light.level[:, other] + 0.05)
        steep = (first**2 - second**2) / (first**2 + second**2 + 2 * light.likeness[:, at] * first * second + _LEAST**2)
        looks.append(np.stack([0.5 * np.log(np.maximum(colour, _LEAST**2)), tilt, steep.clip(-3, 3)], 1))
    return np.concatenate(looks, 1)
