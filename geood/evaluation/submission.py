"""Submission files for benchmark servers.

SegmentMeIfYouCan takes HDF5 files of float16 in a folder tree of its own; its official command line reads the tree that
is written here. Fishyscapes takes a container, starts it with a folder of images as /input and an empty folder /output,
and expects an anomaly map and a segmentation for each image; the container need only run `geood submit`. Labels are
never read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geood.atomic import atomic_write
from geood.catalog import data_set
from geood.datasets import Frame, decode, find_frames
from geood.errors import ConfigError, DataError, OutputError, counted
from geood.evaluation.score_files import h5py
from geood.evaluation.tile_scores import for_scoring, frame_readings, score_frame
from geood.geo.listing import files_in, same_name
from geood.geo.scene_reading import AUTOMATIC, ReadingOptions
from geood.models import ModelBundle
from geood.progress import Progress

log = logging.getLogger("geood")
TRACKS = {
    "smiyc-anomaly": "AnomalyTrack-all",
    "smiyc-obstacle": "ObstacleTrack-all",
    "smiyc-lost-and-found": "LostAndFound-test",
}
FISHYSCAPES = "fishyscapes"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def submit(  # noqa: PLR0913 - the options of a verb
    benchmark: str,
    root: Path,
    bundle: ModelBundle,
    out: Path,
    *,
    method: str,
    settings: Sequence[str] = (),
    options: ReadingOptions = AUTOMATIC,
    overwrite: bool = False,
) -> int:
    """Score all images of a benchmark and write its submission files; return the number of images.

    Args:
        benchmark: `smiyc-anomaly`, `smiyc-obstacle`, `smiyc-lost-and-found` or `fishyscapes`.
        root: the folder of the data set; for `fishyscapes` any folder of images.
        bundle: the bundle; its default score is written.
        out: where to write: `anomaly_p/METHOD/TRACK/NAME.hdf5` below it (the official tool's DIR_OUTPUTS), or
            `NAME_anomaly.npy` (float32) and `NAME_segmentation.npy` (uint8) in it.
        method: name of the method in the official tool.
        settings: `score.KEY=value` and `predict.KEY=value`.
        options: how the images are read, as for `predict`.
        overwrite: replace files that exist.

    Raises:
        ConfigError: the benchmark is unknown, `method` cannot name a folder, or h5py is not installed.
        DataError: images are missing or unreadable, have other bands than the bundle, or share a name.
        OutputError: a file exists or cannot be written.
    """
    if benchmark not in (*TRACKS, FISHYSCAPES):
        raise ConfigError(
            f"{benchmark}: not a benchmark that geood can write for; known: {', '.join(TRACKS)}, {FISHYSCAPES}"
        )
    if method in ("", ".", "..") or Path(method).name != method:
        raise ConfigError(f"--method {method}: it becomes the name of a folder; give one without / in it")
    bundle = bundle.with_settings(settings)
    if benchmark != FISHYSCAPES:
        h5py()  # before the work, not after it
    frames = _images(root) if benchmark == FISHYSCAPES else _track(benchmark, root)
    readings, nodata = frame_readings(frames, bundle, options), options.nodata_for(bundle.bands)
    folder = out if benchmark == FISHYSCAPES else out / "anomaly_p" / method / TRACKS[benchmark]
    existing = [path for frame in frames for path in _files(benchmark, folder, frame) if path.exists()]
    if existing and not overwrite:
        raise OutputError(f"{existing[0]}: exists already; add --overwrite to replace it, or choose another --out")
    kind = bundle.config.score.kind
    with for_scoring(bundle) as ready, Progress(f"scoring for {benchmark}", len(frames)) as progress:
        assert ready is not None
        for frame in frames:
            reading = readings[frame.name]
            decoded = decode(
                frame._replace(labels=None), indexes=reading.indexes, nodata=nodata, measured=reading.measured
            )
            scored = score_frame(ready, decoded, kinds=[kind], scale=reading.scale)
            assert scored.classes is not None
            if not np.isfinite(scored.scores[kind]).all():
                raise DataError(
                    f"{frame.image}: has scores that are not finite; the model may be damaged, copy it again"
                )
            try:
                folder.mkdir(parents=True, exist_ok=True)
                paths = _files(benchmark, folder, frame)
                write = partial(_write, overwrite=overwrite)
                score, classes = (decoded.orientation.back(a) for a in (scored.scores[kind], scored.classes))
                if benchmark == FISHYSCAPES:
                    write(paths[0], score.astype(np.float32))
                    write(paths[1], np.array(bundle.class_ids, np.uint8)[classes])
                else:
                    write(paths[0], score)
            except OSError as error:
                raise OutputError(
                    f"{folder}: cannot be written ({error}); free space, or choose another --out"
                ) from None
            progress.advance()
    return len(frames)


def _track(benchmark: str, root: Path) -> list[Frame]:
    """Return all images of a track, labelled or not."""
    entry = data_set(benchmark)
    split = entry.splits[0]
    frames = find_frames(entry, root, split).frames
    if split.count and len(frames) < split.count and benchmark != "smiyc-lost-and-found":
        log.warning(
            "%s: %s, %d in the complete track; the server wants all", root, counted(len(frames), "image"), split.count
        )
    return frames


def _images(folder: Path) -> list[Frame]:
    """Return the images of a folder, in the order of their names."""
    paths = files_in(folder, IMAGES) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder}: no images ({', '.join(IMAGES)}); give the folder that holds them")
    by_stem: dict[str, Path] = {}
    for path in paths:
        first = by_stem.setdefault(same_name(path.stem), path)
        if first != path:
            raise DataError(f"{first}: and {path.name} would have scores of one name; rename one of them")
    return [Frame(path.stem, path, None) for path in paths]


def _files(benchmark: str, folder: Path, frame: Frame) -> list[Path]:
    """Return the paths of the files that are written for a frame."""
    if benchmark == FISHYSCAPES:
        return [folder / f"{frame.name}_{kind}.npy" for kind in ("anomaly", "segmentation")]
    return [folder / f"{frame.name}.hdf5"]


def _write(path: Path, array: NDArray[np.generic], *, overwrite: bool) -> None:
    """Write an array to one file, atomically."""
    with atomic_write(path, overwrite=overwrite) as made:
        if path.suffix == ".hdf5":
            with h5py().File(made, "w") as file:
                file.create_dataset("value", data=array, compression=7)
        else:
            np.save(made, array)
