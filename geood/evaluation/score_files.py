"""Score files of any tool: found by image name, read from NumPy, GeoTIFF and HDF5.

There is one file for each image; higher is more anomalous. Shape and type are looked at before anything is read, since
a file of a few bytes can unpack to any size, and no file leads to another one. Nothing is known of labels or figures.
"""

from __future__ import annotations

import math
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geood.datasets import Frame
from geood.errors import ConfigError, DataError, counted, shown
from geood.geo.gdal import open_raster, reading
from geood.geo.listing import files_in, same_name

SCORE_SUFFIXES = (".npy", ".hdf5", ".h5", ".tif", ".tiff")
LARGEST = 65504.0  # largest finite float16
FEW_STEPS = 64  # of float16 between the lowest and the highest score, below which rounding is told
MOST_BLOCK_BYTES = 250_000_000  # of one compressed block of a file, or those of all its scores
UNREADABLE = (  # what NumPy and h5py raise for files that are damaged, or made to do harm
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    MemoryError,
    ArithmeticError,
    SyntaxError,
    tokenize.TokenError,
)
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
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
        self._low, self._high = math.inf, -math.inf  # of all scores that were read
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
                f"{folder}: {len(missing)} of {counted(len(frames), 'image')} without a score file: {listed}; write "
                "each as NAME.npy, .tif, or .hdf5 with a data set `value`"
            )

    def read(self, frame: Frame, shape: tuple[int, int]) -> Scores:
        """Read the scores (H, W) of a frame, float16 or float32.

        Raises:
            DataError: the file cannot be read, has another shape, or has scores beyond the range of float16.
        """
        path = self._paths[frame.name]
        scores = read_scores(path, shape)
        if (np.isfinite(scores) & ((scores > LARGEST) | (scores < -LARGEST))).any():
            raise DataError(f"{path}: holds scores beyond {LARGEST:g}, the range of float16; rescale them")
        kept: Scores = scores if scores.dtype == np.float16 else scores.astype(np.float32)
        known = np.isfinite(kept)
        self._low = min(self._low, float(kept.min(where=known, initial=math.inf)))
        self._high = max(self._high, float(kept.max(where=known, initial=-math.inf)))
        return kept

    def lost_in_rounding(self) -> str | None:
        """Return in words how few numbers of float16, in which scores are counted, tell all of them apart, if so."""
        if not self._low < self._high:
            return None
        largest = np.float16(max(abs(self._low), abs(self._high)))
        step = float(np.spacing(min(largest, np.nextafter(np.float16(LARGEST), np.float16(0)))))  # beyond is infinity
        steps = (self._high - self._low) / step
        if steps >= FEW_STEPS:
            return None
        return (
            f"scores from {self._low:.9g} to {self._high:.9g} are counted in steps of {step:.3g}, as float16 has them, "
            "so most are ties and the figures are not theirs (the table of protocol fishyscapes alone counts them as "
            "they are); shift and rescale them, such as to 0 to 1"
        )


def _grouped(named: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for name, path in named:
        groups.setdefault(name, []).append(path)
    return groups


def read_scores(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    """Read numbers (H, W) from a score file whose shape and type are looked at before its contents.

    Raises:
        DataError: the file cannot be read, has another shape, holds no numbers, or leads to other files.
    """
    read = {".npy": _read_npy, ".hdf5": _read_hdf5, ".h5": _read_hdf5}.get(path.suffix.lower(), _read_raster)
    try:
        return read(path, shape).reshape(shape)
    except UNREADABLE as error:
        why = shown(str(error).partition("\n")[0] or type(error).__name__, most=200)
        raise DataError(f"{path}: no scores can be read from it ({why}); write it again") from None


def _check_shape(path: Path, found: tuple[int, ...] | None, dtype: Any, shape: tuple[int, int]) -> None:
    """Check shape and type of scores that have not been read; axes of length 1 are no matter."""
    flat, wanted = (tuple(n for n in sizes or () if n != 1) for sizes in (found, shape))
    if found is None or flat != wanted or len(found) < 2 or np.dtype(dtype).kind not in "fiu":
        raise DataError(
            f"{path}: {shown(str(dtype))} of shape {shown(found)}; scores are numbers (height, width) = {shape}, one "
            "for each pixel of the image"
        )


def _check_blocks(path: Path, block: tuple[int, ...] | None, dtype: Any, shape: tuple[int, int]) -> None:
    """Check that a block, which is decoded whole, is not much larger than the scores themselves."""
    size = math.prod(block or ()) * np.dtype(dtype).itemsize
    if size > max(MOST_BLOCK_BYTES, math.prod(shape) * np.dtype(dtype).itemsize):
        raise DataError(f"{path}: is kept in blocks of {size:,} bytes; write it again in smaller ones")


def _read_npy(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # of the parser, on odd headers
        version = np.lib.format.read_magic(file)
        if version not in NPY_HEADERS:
            raise DataError(f"{path}: is of version {version} of NumPy's format; save it with numpy.save")
        found, _, dtype = NPY_HEADERS[version](file)
        _check_shape(path, found, dtype, shape)
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _read_hdf5(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    library = h5py()
    with library.File(path, "r") as file:
        link = file.get("value", getlink=True)
        if link is None:
            raise DataError(f"{path}: has no data set value; write the scores under that name")
        if not isinstance(link, library.HardLink):
            raise DataError(f"{path}: its value is a link and no data set; write the scores into the file itself")
        stored = file["value"]
        if not isinstance(stored, library.Dataset):
            raise DataError(f"{path}: its value is no data set; write the scores under that name")
        _check_shape(path, stored.shape, stored.dtype, shape)
        if stored.external or stored.is_virtual:
            raise DataError(f"{path}: its scores lie in other files; write them into the file itself")
        _check_blocks(path, stored.chunks, stored.dtype, shape)
        return np.asarray(stored)


def _read_raster(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    with reading(path), open_raster(path) as source:
        found = (source.count, source.height, source.width)
        _check_shape(path, found if source.count > 1 else found[1:], source.dtypes[0], shape)
        _check_blocks(path, source.block_shapes[0], source.dtypes[0], shape)
        scores = source.read(1)
        known = source.read_masks(1) > 0
    return scores if known.all() else np.where(known, scores, np.nan)  # what is declared to be no score is none


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
