"""Procedural aerial scenes with labels for the demo, and unknown objects in the test scene only.

A scene is painted as three maps, albedo, height above ground and class, and then rendered: one sun shades the heights
and casts their shadows, a sensor blurs and adds noise. Roofs, crowns and objects are therefore lit alike, which makes
the picture believable and keeps an object from standing out by its lighting. Everything is in metres and drawn from one
seed. This module knows nothing of training; it writes ordinary GeoTIFFs that are read like any others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from geood.constants import IGNORE
from geood.datasets.synthetic.landscape import (
    CLASSES,
    LAND,
    PIXEL_M,
    ROAD,
    UNKNOWN,
    Canvas,
    Point,
    blur,
    fractal,
    grow_trees,
    paint_landscape,
)
from geood.datasets.synthetic.objects import FLAT, OBJECTS, VEHICLES, ObjectShape
from geood.errors import OutputError
from geood.geo.grid import Window

CRS = "EPSG:32633"
ORIGIN = (382000.0, 5820000.0)  # inside the UTM zone, so that map positions and areas are realistic
SUN_TO = (-0.82, -0.57)  # (row, column) direction of shadows: the sun is in the south-east
SUN_TAN = 1.05  # tangent of its elevation, about 46 degrees
AMBIENT = np.array([0.30, 0.34, 0.42], np.float32)  # share of light left in shadow; the sky is blue


@dataclass(frozen=True)
class Planted:
    """Unknown object of the test scene: its kind, the window that encloses it, and its area in pixels."""

    kind: str
    window: Window
    area_px: int


@dataclass(frozen=True)
class World:
    """Paths of the scenes and labels that `make_world` wrote, the meaning of the ids, and the planted objects."""

    folder: Path
    train_images: tuple[Path, ...]
    train_labels: tuple[Path, ...]
    test_image: Path
    test_labels: Path
    planted: tuple[Planted, ...]
    classes: dict[int, str] = field(default_factory=lambda: dict(CLASSES))
    anomaly: tuple[int, ...] = (UNKNOWN,)


def make_world(folder: Path, *, seed: int, size_px: int = 1024, scenes: int = 3) -> World:
    """Write `scenes` training scenes and one test scene, `size_px` square, with their labels, into `folder`.

    Images are uint8, three bands, 0.25 m pixels, UTM zone 33N, nodata 0; labels are uint8 class ids on the same grid,
    255 where there is no data. Files: `train_1.tif`, ..., `test.tif`, and labels of the same names in `labels/`. The
    same seed gives the same pixels. Existing files of these names are replaced.

    Raises:
        OutputError: the folder cannot be made or written.
        ValueError: `size_px` is under 128, too small for a landscape.
    """
    if size_px < 128:
        raise ValueError(f"size_px must be at least 128, got {size_px}")
    names = [*(f"train_{i + 1}" for i in range(scenes)), "test"]
    planted: list[Planted] = []
    try:
        (folder / "labels").mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(names):
            canvas = paint_landscape(np.random.default_rng([seed, index]), size_px)
            void = np.zeros((size_px, size_px), bool)
            if name == "test":
                void |= np.add.outer(np.arange(size_px), np.arange(size_px)[::-1]) < size_px // 7
                canvas.labels[void] = IGNORE  # before planting, so that no object is cut
                planted = _plant(canvas)
            grow_trees(canvas)
            pixels, labels = _render(canvas), canvas.labels
            pixels[void], labels[void] = 0, IGNORE
            transform = Affine(PIXEL_M, 0, ORIGIN[0] + 1.2 * index * size_px * PIXEL_M, 0, -PIXEL_M, ORIGIN[1])
            _write(folder / f"{name}.tif", pixels.transpose(2, 0, 1), transform=transform, nodata=0)
            _write(folder / "labels" / f"{name}.tif", labels[None], transform=transform, nodata=IGNORE)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise OutputError(
            f"{folder}: the demo's scenes cannot be written there ({error}); choose another folder"
        ) from error
    images = tuple(folder / f"{name}.tif" for name in names)
    masks = tuple(folder / "labels" / f"{name}.tif" for name in names)
    return World(folder, images[:-1], masks[:-1], images[-1], masks[-1], tuple(planted))


def _write(path: Path, pixels: NDArray[np.uint8], *, transform: Affine, nodata: int) -> None:
    bands, height, width = pixels.shape
    profile: dict[str, Any] = {"dtype": "uint8", "count": bands, "height": height, "width": width, "nodata": nodata}
    profile |= {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    profile |= {"crs": CRS, "transform": transform}
    if bands == 3:
        profile["photometric"] = "RGB"
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels)


def _plant(canvas: Canvas) -> list[Planted]:
    """Put each kind of unknown object on free land, and vehicles on the roads; those without room are left out."""
    rng, planted = canvas.rng, list[Planted]()
    for kind, (shape, reach) in OBJECTS.items():
        room = max(0.0, canvas.side_m - 2 * reach)
        for _ in range(80):
            x, y = reach + room * rng.random(2)
            centre = (float(x), float(y))
            found = _stand(canvas, shape, centre=centre, angle=float(rng.uniform(0, np.pi)), reach_m=reach)
            if found:
                planted.append(Planted(kind, *found))
                break
    for (kind, (shape, reach)), share in zip(VEHICLES.items(), rng.permutation([0.22, 0.45, 0.7]), strict=True):
        line = canvas.roads[0]
        at, ahead = line.interpolate(share, normalized=True), line.interpolate(share + 0.004, normalized=True)
        angle = float(np.arctan2(ahead.y - at.y, ahead.x - at.x))
        centre = (at.x - 1.75 * np.sin(angle), at.y + 1.75 * np.cos(angle))
        found = _stand(canvas, shape, centre=centre, angle=angle, reach_m=reach, ground=ROAD)
        if found:
            planted.append(Planted(kind, *found))
    return planted


def _stand(
    canvas: Canvas, shape: ObjectShape, *, centre: Point, angle: float, reach_m: float, ground: int = LAND
) -> tuple[Window, int] | None:
    """Place one object on the canvas if all of it, with a margin on land, lies on the right kind of ground."""
    where, u, v = canvas.frame(centre, angle, reach_m)
    if not u.size:
        return None
    height, albedo = shape(u, v, canvas.rng)
    inside = height > 0
    needed = np.ones_like(inside) if ground == LAND else inside
    if not inside.any() or (canvas.labels[where][needed] != ground).any():
        return None
    canvas.height[where][inside] = np.where(height[inside] <= FLAT, 0, height[inside])
    canvas.albedo[where][inside] = albedo[inside]
    canvas.labels[where][inside] = UNKNOWN
    rows, cols = np.nonzero(inside)
    top, left = where[0].start + int(rows.min()), where[1].start + int(cols.min())
    return Window(top, left, int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1), int(inside.sum())


def _render(canvas: Canvas) -> NDArray[np.uint8]:
    """Shade the heights with one sun, cast their shadows, then blur and add noise as a sensor does; 1 to 255."""
    height, rng = canvas.height, canvas.rng
    south, east = np.gradient(height, PIXEL_M)
    steep = np.hypot(south, east) > 5  # a wall, seen from above as an edge
    south, east = np.where(steep, 0, south), np.where(steep, 0, east)
    incidence = (SUN_TAN + south * SUN_TO[0] + east * SUN_TO[1]) / (SUN_TAN * np.sqrt(1 + south**2 + east**2))
    buried = np.zeros_like(height)
    reach = int(height.max() / SUN_TAN / PIXEL_M) + 1
    for distance in range(1, reach):
        down, right = round(-SUN_TO[0] * distance), round(-SUN_TO[1] * distance)
        ray = height[down:, right:] - np.float32(distance * PIXEL_M * SUN_TAN)
        target = buried[: height.shape[0] - down, : height.shape[1] - right]
        np.maximum(target, ray - height[: target.shape[0], : target.shape[1]], out=target)
    lit = 1 - np.clip(buried / 0.5, 0, 1)
    light = AMBIENT + (1 - AMBIENT) * (np.clip(incidence, 0, 1.5) * lit)[..., None]
    relief = 1 + 0.035 * fractal(rng, canvas.size, 2.2)
    radiance = blur(canvas.albedo * light.astype(np.float32) * relief[..., None], 1)
    ripple = 0.012 * blur(rng.standard_normal(height.shape, np.float32), 1)
    radiance = 0.96 * radiance + 0.035 + ripple[..., None]
    radiance += rng.standard_normal(radiance.shape, np.float32) * np.float32(0.011)
    return np.clip(np.rint(radiance * 255), 1, 255).astype(np.uint8)
