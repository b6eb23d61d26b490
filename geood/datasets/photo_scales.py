"""Scales at which photographs are read for training, and their pixels and labels brought to them.

A photograph has no metres, so its width stands for its scale: a config may bring all photographs to one, and the width
that a network was trained at is kept, for `geo.scene_reading` to read other photographs at. Pixels are resampled as
those of scenes are (`geo.resampling`), labels are the nearest. Windows are on the working grid, and a window is the
same pixels whatever is read around it. Crops and splits are not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from geood.config import Config
from geood.constants import IGNORE
from geood.datasets.frames import Decoded, Frame, orientation_in
from geood.errors import ConfigError, DataError
from geood.geo.grid import Window
from geood.geo.resampling import nearest, resample, resized, taps
from geood.geo.scene import Scene, SceneSource
from geood.geo.scene_reading import resampling_of_photo

log = logging.getLogger("geood")


class PhotoScale(NamedTuple):
    """Height and width of a photograph in its own pixels, as viewers show it, and its scale: working pixels per own."""

    height: int
    width: int
    scale: float = 1.0

    @property
    def working(self) -> tuple[int, int]:
        """Height and width in working pixels."""
        if self.scale == 1:
            return self.height, self.width
        return resized(self.height, self.scale), resized(self.width, self.scale)


def settle_scales(
    frames: Sequence[Frame], config: Config, *, training: Sequence[int], pixel_m: float | None
) -> tuple[list[PhotoScale], int | None]:
    """Choose the scale of each frame, and the width in pixels at which the network is trained.

    That width is `data.width_px`, else the one that all training photographs have, else their median. There is none
    where the size of a pixel is known in metres, or where images have a place, as that is then their scale.

    Args:
        frames: all frames, of both sides of the split.
        config: the config, whose `data.width_px` may ask for a width.
        training: indexes of the frames to train on.
        pixel_m: metres per pixel, if the catalog tells them.

    Raises:
        ConfigError: a width is asked for, and metres are known.
        DataError: an image cannot be read, has a place though a width is asked for, or lies too far from that width.
    """
    wanted = config.data.width_px
    if wanted is not None and pixel_m is not None:
        raise ConfigError(
            f"data.width_px {wanted}: pixels of these data.sets are {pixel_m:g} m, which is their scale; leave it out"
        )
    sizes, unplaced = [], []
    for i, frame in enumerate(frames):
        with Scene.open(SceneSource(str(frame.base or frame.image), measured=())) as scene:
            placed, grid = scene.grid.placed, scene.grid
            size = PhotoScale(*orientation_in(frame, grid).size(grid.height, grid.width))
        if wanted is not None:
            size = _resized(size, wanted, frame, placed=placed)
        sizes.append(size)
        unplaced += [] if placed or pixel_m is not None else [i]
    own = sorted(sizes[i].width for i in set(unplaced) & set(training))
    if wanted is not None:
        changed = sum(size.scale != 1 for size in sizes)
        log.info("%d of %d photographs are resampled to a width of about %d px", changed, len(sizes), wanted)
    elif own and own[0] != own[-1]:
        middle = own[(len(own) - 1) // 2]
        said = "training photographs are %d to %d px wide, %d in the median, and trained on as they are; predict and "
        said += "evaluate will read photographs at the median; data.width_px brings all to one width"
        log.warning(said, own[0], own[-1], middle)
    return sizes, wanted or (own[(len(own) - 1) // 2] if own else None)


def _resized(size: PhotoScale, wanted: int, frame: Frame, *, placed: bool) -> PhotoScale:
    """Return a size with the scale that brings a frame to a width."""
    if placed:
        raise DataError(
            f"{frame.image}: has a CRS or coordinates, so it is no photograph, and data.width_px is for those; leave "
            "data.width_px out, or train on scenes (data.kind)"
        )
    try:
        return size._replace(scale=resampling_of_photo(size.width, wanted)[0])
    except DataError as error:
        raise DataError(f"{frame.image}: {error}") from None


def read_scaled(size: PhotoScale, window: Window, read: Callable[[Window], Decoded]) -> Decoded:
    """Read a window of the working grid of a photograph: area averages or bilinear pixels, nearest ids.

    Args:
        size: the photograph's size and scale.
        window: a window inside its working grid.
        read: reads a window of the photograph's own pixels, as viewers show it.

    Raises:
        DataError: the pixels cannot be read.
    """
    if size.scale == 1:
        return read(window)
    scale = size.scale
    spans = ((window.row, window.height, size.height), (window.col, window.width, size.width))
    down, across = (taps(first, length, scale=scale, size=whole) for first, length, whole in spans)
    under = Window(down.start, across.start, down.stop - down.start, across.stop - across.start)
    own = read(under)
    image, valid = resample(own.image, own.valid, down, across)
    rows, cols = (nearest(first, length, scale=scale, size=whole) for first, length, whole in spans)
    ids = own.ids[np.ix_(rows - under.row, cols - under.col)]
    return own._replace(image=image, valid=valid, ids=np.where(valid, ids, np.uint8(IGNORE)))
