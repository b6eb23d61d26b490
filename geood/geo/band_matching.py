"""Assignment of a scene's bands to a model's, by the user's choice, by band names, or by position.

Swapped bands give scores that look like any others, so the band names of scene and model are compared, and a
contradiction is an error. No pixels are read here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from geood.errors import ConfigError, DataError, shown
from geood.geo.bands import Bands
from geood.geo.scene import Scene

_NUMBER = re.compile(r"0{0,9}[1-9][0-9]{0,5}")  # GeoTIFF has room for 65,535 bands
# Default descriptions of unnamed bands: their number, or the colour interpretation that GDAL gives the first band.
_UNNAMED = re.compile(r"(band|gray|grey|undefined|layer)?[ _-]?\d*", re.IGNORECASE)


def parse_bands(text: str, bands: Bands) -> dict[str, int]:
    """Parse `--bands` to the scene's band (from 1) of each model band: `red=3,green=2,blue=1`, or `3,2,1` in order.

    Raises:
        ConfigError: the text is neither, or does not name each band of the model exactly once.
    """
    wanted = f"--bands {shown(text)}: needed is one scene band for each of the model's ({', '.join(bands.names)})"
    example = ",".join(f"{name}={i}" for i, name in enumerate(bands.names, 1))
    parts = [part.strip() for part in text.split(",")]
    named = [part.rpartition("=") for part in parts]
    if not all(_NUMBER.fullmatch(number.strip()) for _, _, number in named):
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
            raise ConfigError(f"{wanted}; {shown(name.strip()) or 'a number alone'} {why}; {hint}")
        given[known[plain]] = number
    if missing := [name for name in bands.names if name not in given]:
        raise ConfigError(f"{wanted}; {', '.join(missing)} missing; give them as {example}")
    return given


def match_bands(scene: Scene, bands: Bands, given: Mapping[str, int] | None) -> tuple[tuple[int, ...], str]:
    """Return the scene's band indices in the model's order, and a sentence on how they were assigned.

    `given` takes precedence, and may include a band that the file declares as alpha; then band names, if the scene has
    each of the model's names exactly once, in any order and among other bands; then positions, if the number of bands
    fits.

    Raises:
        DataError: no rule applies, or names contradict positions; the message lists the bands of both sides.
    """
    if given is not None:
        chosen = tuple(given[name] for name in bands.names)
        if strange := sorted(set(chosen) - {*scene.band_indexes, *scene.alpha}):
            raise DataError(
                f"{scene.path}: has no band {strange[0]}, only {listed(scene.band_indexes, scene.band_names)}; choose "
                "among these for --bands"
            )
        return chosen, f"{listed(chosen, bands.names)}, as given"
    standing = {name.lower(): i for i, name in zip(scene.band_indexes, scene.band_names, strict=True)}
    names = [name.lower() for name in bands.names]
    said = [name.lower() for name in scene.band_names]
    once = [said.count(name) == 1 and not _UNNAMED.fullmatch(name) for name in names]
    if all(once) and len(set(names)) == len(names):
        chosen = tuple(standing[name] for name in names)
        return chosen, f"{listed(chosen, bands.names)}, by their names in the scene"
    try:
        scene.check_bands(bands)
    except DataError as error:
        hint = f" (band {scene.alpha[0]} is declared as alpha, but can be named there)" if scene.alpha else ""
        raise DataError(f"{error}, or say which to take: --bands {_example(bands)}{hint}") from None
    moved = [name for name, one, i in zip(names, once, bands.indexes, strict=True) if one and standing[name] != i]
    if moved:
        raise DataError(
            f"{scene.path}: its bands are {listed(scene.band_indexes, scene.band_names)}, the model was trained on "
            f"{listed(bands.indexes, bands.names)}: {', '.join(moved)} at another position, and not all names are in "
            f"both; say which to take: --bands {_example(bands)}"
        )
    masks = ", ".join(str(i) for i in bands.indexes if i in scene.alpha)
    but = f"; band {masks} is declared as alpha, but was a band in training" if masks else ""
    return bands.indexes, f"{listed(bands.indexes, bands.names)}, by position (not all are named in both){but}"


def listed(indexes: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(_pairs(indexes, names))


def _pairs(indexes: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    for index, name in zip(indexes, names, strict=True):
        yield f"{index}: {name}"


def _example(bands: Bands) -> str:
    return ",".join(f"{name}=N" for name in bands.names)
