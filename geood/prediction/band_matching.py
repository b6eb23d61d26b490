"""Which of a scene's bands serve a model, and whether their numbers are those it was trained on.

A mix-up of bands or of their scaling gives scores that look like any others, so what is known of both sides is
compared: names, and the range of a small sample of pixels. Nothing is rescaled here; what is odd is said.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from geood.errors import ConfigError, DataError
from geood.geo.bands import Bands
from geood.geo.scene import Scene, places

log = logging.getLogger("geood")
# What files call a band that has no name: its place, or the colour that GDAL gives the first of any.
_UNNAMED = re.compile(r"(band|gray|grey|undefined|layer)?[ _-]?\d*", re.IGNORECASE)
SAMPLES = (64, 256, 1024)  # windows, more of them where a scene is mostly empty
ENOUGH = 20_000  # valid pixels of a sample
OUTSIDE = 0.25  # of a band's pixels beyond the training range; 0.01 by construction at home
SHIFTED = 0.35  # of the training range between the scene's mean and the training mean
# By how much another order of bands must lower the sum of both over all bands, in itself and as a share, to be named.
# Right orders of real scenes gained 0.08 at most, red swapped with infrared at least 0.30, and a third.
GAIN, GAINED = 0.18, 0.3


def parse_bands(text: str, bands: Bands) -> dict[str, int]:
    """The scene's band for each of a model's, from `red=3,green=2,blue=1` or, in the model's order, `3,2,1`.

    Raises:
        ConfigError: if it is neither, or does not name each band of the model once.
    """
    wanted = f"--bands {text}: needed is one scene band for each of the model's ({', '.join(bands.names)})"
    example = ",".join(f"{name}={i}" for i, name in enumerate(bands.names, 1))
    parts = [part.strip() for part in text.split(",")]
    named = [part.rpartition("=") for part in parts]
    if not all(number.strip().isascii() and number.strip().isdigit() and int(number) for _, _, number in named):
        raise ConfigError(f"{wanted}, counted from 1; give them as {example}")
    numbers = [int(number) for _, _, number in named]
    if all(not mark for _, mark, _ in named):
        if len(numbers) != bands.count or len(set(bands.names)) != bands.count:
            raise ConfigError(f"{wanted}, got {len(numbers)}; give as many, in this order")
        return dict(zip(bands.names, numbers, strict=True))
    known = {name.lower(): name for name in bands.names}
    given: dict[str, int] = {}
    for (name, _, _), number in zip(named, numbers, strict=True):
        plain = name.strip().lower()
        if plain not in known or known[plain] in given:
            near = difflib.get_close_matches(plain, known, n=1)
            hint = f"did you mean {known[near[0]]}?" if near and plain not in known else f"give them as {example}"
            why = "is named twice" if plain in known else "is none of them"
            raise ConfigError(f"{wanted}; {name.strip() or 'a number alone'} {why}; {hint}")
        given[known[plain]] = number
    if missing := [name for name in bands.names if name not in given]:
        raise ConfigError(f"{wanted}; {', '.join(missing)} missing; give them as {example}")
    return given


def match_bands(scene: Scene, bands: Bands, given: Mapping[str, int] | None) -> tuple[tuple[int, ...], str]:
    """The scene's bands in the model's order, and a sentence about how they were found.

    What is `given` comes first, be it a band that the file calls alpha; then names, where the scene has each of the
    model's just once, in any order and among any others; then places, where the number of bands fits.

    Raises:
        DataError: naming the bands of both sides, if none of these leads to an answer, or names contradict places.
    """
    if given is not None:
        chosen = tuple(given[name] for name in bands.names)
        if strange := sorted(set(chosen) - {*scene.band_indexes, *scene.alpha}):
            raise DataError(
                f"{scene.path}: has no band {strange[0]}, only {_listed(scene.band_indexes, scene.band_names)}; choose "
                "among these for --bands"
            )
        return chosen, f"{_listed(chosen, bands.names)}, as given"
    standing = {name.lower(): i for i, name in zip(scene.band_indexes, scene.band_names, strict=True)}
    names = [name.lower() for name in bands.names]
    said = [name.lower() for name in scene.band_names]
    once = [said.count(name) == 1 and not _UNNAMED.fullmatch(name) for name in names]
    if all(once) and len(set(names)) == len(names):
        chosen = tuple(standing[name] for name in names)
        text = f"{_listed(chosen, bands.names)}, by their names in the scene"
        if chosen != bands.indexes:
            log.info("%s: bands %s (in the training scenes: %s)", scene.path, text, _listed(bands.indexes, bands.names))
        return chosen, text
    try:
        scene.check_bands(bands)
    except DataError as error:
        hint = f" (band {scene.alpha[0]} is said to be alpha: it can be named there)" if scene.alpha else ""
        raise DataError(f"{error}, or say which to take: --bands {_example(bands)}{hint}") from None
    moved = [name for name, one, i in zip(names, once, bands.indexes, strict=True) if one and standing[name] != i]
    if moved:
        raise DataError(
            f"{scene.path}: its bands are {_listed(scene.band_indexes, scene.band_names)}, the model was trained on "
            f"{_listed(bands.indexes, bands.names)}: {', '.join(moved)} stands elsewhere, and not all names are in "
            f"both; say which to take: --bands {_example(bands)}"
        )
    return bands.indexes, f"{_listed(bands.indexes, bands.names)}, by their places (not all are named in both)"


def far_from_training(scene: Scene, bands: Bands, indexes: Sequence[int]) -> list[str]:
    """Sentences about bands whose numbers lie far from those the model was trained on, by a sample of the scene."""
    looked_at = sorted({*scene.band_indexes, *indexes})
    sample = _sample(scene, looked_at)
    if not sample.shape[1]:
        return []
    rows = dict(zip(looked_at, sample, strict=True))
    sentences = []
    for i, index in enumerate(indexes):
        outside, shift = _misfit(rows[index], bands, i)
        if outside > OUTSIDE:
            what = f"{100 * outside:.0f} % of its pixels lie outside what the model was trained on"
        elif abs(shift) > SHIFTED:
            what = f"it is far {'brighter' if shift > 0 else 'darker'} than what the model was trained on"
        else:
            continue
        low, middle, high = np.percentile(rows[index], [1, 50, 99])
        sentences.append(
            f"band {index} ({bands.names[i]}): {what} ({bands.low[i]:.6g} to {bands.high[i]:.6g}); here 98 % lie in "
            f"{low:.6g} to {high:.6g}, half below {middle:.6g}; {_cause(scene, bands, rows[index], i)}"
        )
    better = _better_order(bands, indexes, rows)
    if better:
        now, then = _listed(indexes, bands.names), _listed(better, bands.names)
        choice = ",".join(f"{name}={index}" for name, index in zip(bands.names, better, strict=True))
        sentences.append(
            f"its bands look mixed up: {now} are read, {then} would fit the training better (--bands {choice})"
        )
    return sentences


def _sample(scene: Scene, indexes: Sequence[int]) -> NDArray[np.float64]:
    """Valid digital numbers (C, N) of the scene's own pixels, from windows spread over it."""
    found: list[NDArray[Any]] = []
    done = count = 0
    for most in SAMPLES:
        for window in places(scene.grid, most, skip=done):
            array, valid = scene.stored(window, indexes)
            found.append(array[:, ::2, ::2][:, valid[::2, ::2]])
            count += found[-1].shape[1]
        done = most
        if count >= ENOUGH:
            break
    return np.concatenate(found, axis=1).astype(np.float64)


def _misfit(numbers: NDArray[np.float64], bands: Bands, band: int) -> tuple[float, float]:
    """The share of numbers outside a band's range, and how far their scaled mean lies from that of training."""
    scaled = (numbers - bands.low[band]) / (bands.high[band] - bands.low[band])
    outside = float(((scaled < 0) | (scaled > 1)).mean())
    return outside, float(np.clip(scaled, 0, 1).mean()) - bands.fill[band]


def _cause(scene: Scene, bands: Bands, numbers: NDArray[np.float64], band: int) -> str:
    """What most likely makes a band lie far from training."""
    middle, most = float(np.median(numbers)), float(np.percentile(numbers, 99))
    if scene.dtype.kind in "iu" and scene.dtype.itemsize > 1 and max(bands.high) <= 255 < most:
        return f"the model knows numbers of 8 bit, the scene is {scene.dtype}: bring it to 8 bit as in training"
    if scene.dtype.kind == "f" and most <= 2 and min(bands.high) > 50:
        return "the scene looks like reflectance from 0 to 1: bring it to the scale of the training scenes"
    if middle > 2 * bands.high[band] or most < bands.low[band] + (bands.high[band] - bands.low[band]) / 8:
        return "check its bit depth, and the scale of its numbers"
    return "check the order and the scale of its bands; if they are right, the place is unlike those of the training"


def _better_order(
    bands: Bands, indexes: Sequence[int], rows: Mapping[int, NDArray[np.float64]]
) -> tuple[int, ...] | None:
    """Other bands of the scene, or these in another order, if they are clearly more like the training."""
    cost = np.array([[_distance(rows[j], bands, i) for j in rows] for i in range(bands.count)])
    now = sum(_distance(rows[index], bands, i) for i, index in enumerate(indexes))
    taken = linear_sum_assignment(cost)
    if len(taken[0]) < bands.count:
        return None
    best = float(cost[taken].sum())
    return tuple(list(rows)[j] for j in taken[1]) if now - best > max(GAIN, GAINED * now) else None


def _distance(numbers: NDArray[np.float64], bands: Bands, band: int) -> float:
    outside, shift = _misfit(numbers, bands, band)
    return outside + abs(shift)


def _listed(indexes: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(_pairs(indexes, names))


def _pairs(indexes: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    for index, name in zip(indexes, names, strict=True):
        yield f"{index}: {name}"


def _example(bands: Bands) -> str:
    return ",".join(f"{name}=N" for name in bands.names)
