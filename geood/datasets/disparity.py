"""Distance of the pixels of a frame, from the disparities and cameras that a data set has beside its images.

Disparities are 16-bit PNGs in units of 1/256 pixel, 0 where unknown, decoded as in NFlowJS's evaluation by distance
(Cityscapes' own code reads them one step smaller); cameras are JSON files with baseline and focal lengths.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geood.datasets.frames import Frame
from geood.errors import DataError
from geood.geo.gdal import open_raster, reading

STEPS_PER_PX = 256  # unit of the disparity files


def has_distance(frame: Frame) -> bool:
    """Return True if disparity and camera of a frame exist where its data set keeps them."""
    return all(path.is_file() for path in _files(frame))


def distance_of(frame: Frame) -> NDArray[np.float32]:
    """Compute the distance in metres of each pixel of a frame, float32 (H, W), NaN where unknown.

    Raises:
        DataError: disparity or camera cannot be read.
    """
    disparity, camera = _files(frame)
    try:
        found = json.loads(camera.read_text(encoding="utf-8"))
        baseline = float(found["extrinsic"]["baseline"])
        focal = (float(found["intrinsic"]["fx"]) + float(found["intrinsic"]["fy"])) / 2
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{camera}: not a camera file with baseline, fx and fy ({error}); download it again") from None
    with reading(disparity), open_raster(disparity) as source:
        steps = source.read(1)
    return distance_of_disparity(steps / STEPS_PER_PX, baseline_m=baseline, focal_px=focal)


def _files(frame: Frame) -> tuple[Path, Path]:
    """Return the paths of disparity and camera of `ROOT/leftImg8bit/SPLIT/SCENE/NAME_leftImg8bit.png`."""
    scene, split, root = frame.image.parent.name, frame.image.parents[1].name, frame.image.parents[3]
    stem = frame.name
    return (
        root / "disparity" / split / scene / f"{stem}_disparity.png",
        root / "camera" / split / scene / f"{stem}_camera.json",
    )


def distance_of_disparity(
    disparity_px: NDArray[np.floating], *, baseline_m: float, focal_px: float
) -> NDArray[np.float32]:
    """Compute distance in metres, float32 of the same shape; NaN where `disparity_px` is NaN or not above 0.

    `baseline_m` is the distance between the two cameras, `focal_px` the mean of the focal lengths along x and y.
    Disparity is in pixels, whatever the unit of a file.

    Raises:
        ValueError: the baseline or the focal length is not above 0.
    """
    if not (baseline_m > 0 and focal_px > 0):
        raise ValueError(f"baseline and focal length must be above 0, got {baseline_m} m and {focal_px} px")
    disparity = np.asarray(disparity_px, np.float64)
    distance = np.full(disparity.shape, np.nan)
    np.divide(baseline_m * focal_px, disparity, out=distance, where=disparity > 0)
    return distance.astype(np.float32)
