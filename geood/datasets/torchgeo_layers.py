"""Images and labels as TorchGeo datasets that can be joined with `&`, with stricter reading.

TorchGeo keeps the index of files, brings all of them to one CRS and resolution, joins images with labels and draws
crops. The classes here add what it lacks: an unreadable file is an error and not a hole in the data; a validity mask
travels with the pixels (outside the files, nodata, mask band, alpha, NaN); unlabelled pixels are 255; where files
overlap, the first valid pixel counts; a crop on a file's own pixel grid is read unchanged, never resampled; few files
stay open, and none crosses to another process. The position of a crop is always that of the query, never the bounds
that TorchGeo returns, which version 0.9 rounds to float32.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.crs import CRS

from geood._torch_compat import import_torchvision
from geood.constants import IGNORE
from geood.datasets.reprojection import OpenFiles, SourceImage, SourcePart
from geood.datasets.samples import CropPixels, TrainingBands
from geood.errors import DataError
from geood.geo.gdal import GDAL_FAILURES, reason
from geood.geo.grid import Grid, Window
from geood.geo.labels.id_rasters import IdRaster
from geood.geo.labels.reading import first_labels
from geood.geo.labels.rules import LabelRules
from geood.geo.scene import Scene, SceneSource

import_torchvision()

from torchgeo.datasets import DatasetNotFoundError, RasterDataset  # noqa: E402

log = logging.getLogger("geood")
IMAGE = "image"  # column of the joint index with the path of the image


class Box(NamedTuple):
    """Rectangle in CRS units, float64."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class LabelledImages:
    """Images joined with their labels; `read` returns the pixels of a box on the ground."""

    def __init__(self, images: ImageLayer, labels: LabelLayer) -> None:
        self.images, self.labels = images, labels
        images.index[IMAGE] = images.index.filepath  # TorchGeo 0.10 drops the paths when it joins
        try:
            self.joint = images & labels
        except RuntimeError:
            raise DataError(
                f"the labels ({_first(labels)}) do not overlap the images ({_first(images)}): images cover "
                f"{_extent(images)}, labels {_extent(labels)} in {images.target_crs}; check the CRS of both"
            ) from None

    @property
    def res(self) -> tuple[float, float]:
        """Size of a crop's pixel (x, y) in CRS units."""
        x, y = self.images.res
        return float(x), float(y)

    def read(self, box: Box) -> CropPixels:
        """Read the pixels of a box whose sides are whole numbers of pixels.

        Raises:
            DataError: a file cannot be read.
        """
        pixels, ids = self.images.read(box), self.labels.read(box)
        return pixels._replace(ids=np.where(pixels.valid, ids, IGNORE))


class _Rasters(RasterDataset):  # type: ignore[misc]
    """Base of image and label rasters: the index, and the files that a query meets, without TorchGeo's merge."""

    def __init__(self, paths: Sequence[Path], *, crs: CRS, res: Any, opener: Callable[[str], Any]) -> None:
        self.target_crs, self._open = crs, OpenFiles(opener)
        files = [str(path) for path in paths]
        with _whole_index(self, files, crs):
            super().__init__(files, crs=crs, res=res)
        self._paths, self._boxes = list(self.index.filepath), self.index.geometry.bounds.to_numpy()

    def files_at(self, box: Box) -> list[str]:
        """Return the files whose bounding box intersects a box, in order."""
        xmin, ymin, xmax, ymax = self._boxes.T
        hits = (xmin < box.xmax) & (xmax > box.xmin) & (ymin < box.ymax) & (ymax > box.ymin)
        return [self._paths[i] for i in np.flatnonzero(hits)]

    def box_at(self, box: Box) -> Box | None:
        """Return the bounding box of the first file that holds the whole of a box; None if none does."""
        xmin, ymin, xmax, ymax = self._boxes.T
        hits = (xmin <= box.xmin) & (xmax >= box.xmax) & (ymin <= box.ymin) & (ymax >= box.ymax)
        return Box(*map(float, self._boxes[np.flatnonzero(hits)[0]])) if hits.any() else None


class ImageLayer(_Rasters):
    """Images of equal bands. A sample holds `image` float32 (C, H, W) in digital numbers and `valid` bool (H, W)."""

    is_image = True

    def __init__(
        self, paths: Sequence[Path], bands: TrainingBands, *, nodata: float | None, res: Any, crs: CRS | None = None
    ) -> None:
        self._indexes = bands.indexes
        opener = functools.partial(_open_scene, bands=bands, nodata=nodata)
        with opener(str(paths[0])) as first:
            grid = first.grid
        super().__init__(paths, crs=crs or grid.crs, res=res or grid.upright_size, opener=opener)
        self._warn_of_covered()

    def _warn_of_covered(self) -> None:
        """Warn of images whose footprint lies wholly under those of earlier ones, as other dates do."""
        shapes = self.index.geometry.to_numpy()
        grown = shapely.buffer(shapes, max(self.res), join_style="mitre")
        near = shapely.STRtree(shapes)
        covered = []
        for i, shape in enumerate(shapes):
            earlier = [j for j in near.query(shape) if j < i]
            if earlier and shapely.union_all(grown[earlier]).covers(shape):
                covered.append(self._paths[i])
        if covered:
            log.warning(
                "%d of %d images lie wholly under earlier ones, %s first, and are read only where those hold no data; "
                "leave them out of data.images, or train on one date at a time",
                len(covered),
                len(shapes),
                covered[0],
            )

    @property
    def ground(self) -> Grid:
        """Grid of the crops' pixels that spans all images."""
        (xmin, ymin, xmax, ymax), (xres, yres) = self.index.total_bounds, self.res
        height, width = math.ceil((ymax - ymin) / yres), math.ceil((xmax - xmin) / xres)
        return Grid(height, width, Affine(xres, 0.0, xmin, 0.0, -yres, ymax), self.target_crs)

    def footprint(self, box: Box) -> Box:
        """Return the bounding box of the first image at a box."""
        return Box(*self._boxes[self._paths.index(self.files_at(box)[0])].tolist())

    def read(self, box: Box) -> CropPixels:
        """Read the pixels of a box whose sides are whole numbers of pixels, without labels.

        Raises:
            DataError: a file cannot be read.
        """
        image, valid = self._mosaic((slice(box.xmin, box.xmax), slice(box.ymin, box.ymax)))
        return CropPixels(image, valid, np.full(valid.shape, IGNORE, np.int64))

    def __getitem__(self, query: Any) -> dict[str, Any]:
        image, valid = self._mosaic(query)
        return {"image": torch.from_numpy(image), "valid": torch.from_numpy(valid)}

    def _source(self, path: str) -> SourceImage:
        scene: Scene = self._open(path)

        def read(window: Window) -> SourcePart:
            array, valid = scene.read(window, self._indexes)
            image = array.astype(np.float32)
            image[:, ~valid] = 0
            return SourcePart(image, valid)

        return SourceImage(path, scene.grid, read, len(self._indexes))

    def _mosaic(self, query: Any) -> SourcePart:
        """Read a query's pixels from the files that intersect it; where several do, the first valid pixel counts."""
        target = _grid(self, query)
        mosaic: SourcePart | None = None
        for path in self.files_at(Box(*target.bounds)):
            pixels = self._source(path).onto(target)
            if mosaic is None or not mosaic.valid.any():
                mosaic = pixels
            else:
                new = pixels.valid & ~mosaic.valid
                mosaic.data[:, new] = pixels.data[:, new]
                mosaic = SourcePart(mosaic.data, mosaic.valid | pixels.valid)
            if mosaic.valid.all():
                break
        if mosaic is None:
            raise IndexError(f"{query} lies outside all files")
        return mosaic


def _open_scene(path: str, *, bands: TrainingBands, nodata: float | None) -> Scene:
    return Scene.open(SceneSource(path, bands.indexes, nodata, measured=bands.measured))


class LabelLayer(_Rasters):
    """Rasters of class ids, on any grid or CRS. A sample holds `mask` int64 (H, W), 255 where there is no label."""

    is_image = False

    def __init__(self, paths: Sequence[Path], *, crs: CRS, res: tuple[float, float], rules: LabelRules) -> None:
        opener = functools.partial(open_label_raster, label_ids=rules.label_ids)
        super().__init__(paths, crs=crs, res=res, opener=opener)

    def read(self, box: Box) -> NDArray[np.int64]:
        """Read the class ids (H, W) of a box whose sides are whole numbers of pixels, 255 where there is no label.

        Raises:
            DataError: a file cannot be read.
        """
        target = _grid(self, (slice(box.xmin, box.xmax), slice(box.ymin, box.ymax)))
        return first_labels((self._open(path) for path in self.files_at(Box(*target.bounds))), target)

    def __getitem__(self, query: Any) -> dict[str, Any]:
        x, y = query[0], query[1]
        return {"mask": torch.from_numpy(self.read(Box(x.start, y.start, x.stop, y.stop)))}


def open_label_raster(path: str, *, label_ids: Mapping[int, int] | None = None) -> IdRaster:
    """Open a raster with a CRS and one band of class ids (alpha aside).

    Raises:
        DataError: the file is anything else.
    """
    file = IdRaster(Path(path), label_ids)
    if file.grid.crs is not None:
        return file
    file.close()
    raise DataError(f"{path}: these labels have no CRS; give them that of their image (gdal_edit.py -a_srs)")


@contextmanager
def _whole_index(layer: Any, files: list[str], crs: CRS) -> Iterator[None]:
    """Check, after TorchGeo has built a layer's index, that it holds all files; it skips silently what it cannot read.

    Raises:
        DataError: a file cannot be read, or not be reprojected to the layer's CRS.
    """
    try:
        yield
        missing = sorted(set(files) - set(layer.index.filepath))
    except DatasetNotFoundError:
        missing = files
    except (*GDAL_FAILURES, ProjError) as error:
        raise DataError(
            f"{files[0]} and the rest cannot be reprojected to one CRS ({reason(error)}); check each"
        ) from None
    if missing:
        raise DataError(f"{missing[0]}: cannot be read, or reprojected to {crs}; repair or remove it")


def _grid(layer: Any, query: Any) -> Grid:
    """Return the pixel grid of a query, in the layer's CRS and resolution."""
    x, y = query[0], query[1]
    (xres, yres), crs = layer.res, layer.target_crs
    height, width = round((y.stop - y.start) / yres), round((x.stop - x.start) / xres)
    return Grid(height, width, Affine(xres, 0.0, x.start, 0.0, -yres, y.stop), crs)


def _first(layer: Any) -> str:
    more = len(layer.index) - 1
    return f"{layer.index.filepath.iloc[0]}{f' and {more} more' if more else ''}"


def _extent(layer: Any) -> str:
    xmin, ymin, xmax, ymax = layer.index.total_bounds
    return f"x {xmin:.6g} to {xmax:.6g}, y {ymin:.6g} to {ymax:.6g}"
