"""Score files of any tool: found by image name, read from NumPy, GeoTIFF and HDF5.

There is one file for each image; higher is more anomalous. Shape, type and range are checked here. Nothing is known of
labels or figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geood.datasets import Frame
from geood.errors import ConfigError, DataError
from geood.geo.gdal import open_raster, reading
from geood.geo.listing import files_in, same_name

SCORE_SUFFIXES = (".npy", ".hdf5", ".h5", ".tif", ".tiff")
LARGEST = 65504.0  # largest finite float16
Scores = NDArray[np.floating]


class ScoreFiles:
    """Score files of frames in a folder, found by name: `.npy`, GeoTIFF, or HDF5 with a data set `value`."""

    def __init__(self, folder: Path, frames: Sequence[Frame]) -> None:
        """Find the files of all frames.

        Raises:
            DataError: the folder is missing, or a frame has no score file or two.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the folder of score files, one for each image")
        paths = files_in(folder, SCORE_SUFFIXES, deep=True)
        by_path = _grouped((same_name(p.relative_to(folder).with_suffix("").as_posix()), p) for p in paths)
        by_stem = _grouped((same_name(p.stem), p) for p in paths)
        images = Counter(frame.image.stem for frame in frames)
        self._paths: dict[str, Path] = {}
        for frame in frames:
            matches = by_path.get(same_name(frame.name))
            if not matches and images[frame.image.stem] == 1:  # otherwise the stem is ambiguous
                matches = by_stem.get(same_name(frame.name)) or by_stem.get(same_name(frame.image.stem))
            if matches and len(matches) > 1:
                raise DataError(
                    f"{matches[0]}: and {matches[1]} are both scores of {frame.name}; move one of them away"
                )
            if matches:
                self._paths[frame.name] = matches[0]
        missing = [frame.name for frame in frames if frame.name not in self._paths]
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise DataError(
                f"{folder}: {len(missing)} of {len(frames)} images have no score file: {listed}; write each as "
                "NAME.npy, .tif or .hdf5 (data set value)"
            )

    def read(self, frame: Frame, shape: tuple[int, int]) -> Scores:
        """Read the scores (H, W) of a frame, float16 or float32.

        Raises:
            DataError: the file cannot be read, has another shape, or has scores beyond the range of float16.
        """
        path = self._paths[frame.name]
        array = _read_array(path)
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise DataError(
                f"{path}: {array.dtype} of shape {array.shape}; scores are numbers (height, width) = {shape}, one for "
                "each pixel of the image"
            )
        if (np.isfinite(array) & (np.abs(array) > LARGEST)).any():
            raise DataError(f"{path}: holds scores beyond {LARGEST:g}, the range of float16; rescale them")
        scores: Scores = array if array.dtype == np.float16 else array.astype(np.float32)
        return scores


def _grouped(named: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for name, path in named:
        groups.setdefault(name, []).append(path)
    return groups


def _read_array(path: Path) -> NDArray[Any]:
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as opened:
                array: NDArray[Any] = np.lib.format.read_array(opened, allow_pickle=False)
            return np.squeeze(array)
        if path.suffix.lower() in (".hdf5", ".h5"):
            with h5py().File(path, "r") as file:
                return np.asarray(file["value"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no scores can be read from it ({error})") from None
    with reading(path), open_raster(path) as source:
        return np.squeeze(source.read(), axis=0) if source.count == 1 else np.asarray(source.read())


def h5py() -> Any:
    """Import and return h5py, the library for HDF5 files, which only some users need.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import h5py as library
    except ImportError:
        raise ConfigError("HDF5 files need h5py; install it with: pip install 'geood-toolkit[hdf5]'") from None
    return library
