"""Picture of training crops with their labels laid over: the quickest way to see that both lie on each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from geood.atomic import atomic_write, check_output, output_errors
from geood.constants import IGNORE
from geood.datasets import CropPixels, Crops
from geood.errors import ConfigError, OutputError
from geood.geo.qgis.styles import class_colours

OWN = ".check.png"  # ending of the name that a picture has beside its config
DRAWN_BY = "geood check"  # in the file's text Software, by which an earlier picture is known
COLUMNS, ROWS = 3, 4
TRIED = 4  # times as many crops are looked at as are drawn
STRENGTH = 0.45  # of a label's colour over the image
ANOMALY = "#ff00c8"
LINE = 1.0  # white: the border of a label
GAP_PX = 4
TITLE = 74  # letters above a crop


def check_picture(out: Path) -> None:
    """Check that a picture of crops can be written, and that it replaces nothing but an earlier one.

    Raises:
        ConfigError: its name does not end in .png.
        OutputError: another file has that name, or it cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: the picture is a PNG; end its name in .png")
    if out.is_file() and not out.name.endswith(OWN) and not _is_own(out):
        raise OutputError(f"{out}: is there already and no picture of `geood check`; give another --out, or move it")
    check_output(out, overwrite=True)


def _is_own(path: Path) -> bool:
    """Return whether a file is a picture of crops."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == DRAWN_BY
    except (OSError, ValueError, Image.DecompressionBombError):  # no picture, or one of more than Pillow opens
        return False


def draw_crops(out: Path, crops: Crops) -> None:
    """Draw crops as they are read, each beside itself with its labels laid over, as one PNG; replaces an existing one.

    Crops with an anomaly, which are left out of training, come first, as far as some were met.

    Raises:
        DataError: a file cannot be read.
        OutputError: the picture cannot be written.
    """
    data = crops.config.data
    names = {class_id: data.classes[class_id] for class_id in crops.class_ids}
    colours = class_colours(names)
    held = dict.fromkeys(data.anomaly, ANOMALY)
    figure = Figure(figsize=(5.2 * COLUMNS, 2.8 * ROWS + 0.6), dpi=100, layout="constrained")
    for position, (title, pixels) in enumerate(_chosen(crops)):
        image = _shown(crops.bands.scale(pixels.image, pixels.valid), pixels.valid)
        over = _laid_over(image, pixels.ids, {**colours, **held})
        gap = np.ones((image.shape[0], GAP_PX, 3), np.float32)
        ax = figure.add_subplot(ROWS, COLUMNS, position + 1)
        ax.imshow(np.concatenate([image, gap, over], axis=1), interpolation="nearest", vmin=0, vmax=1)
        ax.set_title(_fitting(title), loc="left", fontsize=8)
        ax.set_axis_off()
    handles = [Patch(color=colours[i], label=f"{i} {names[i]}") for i in names]
    handles += [Patch(color=ANOMALY, label="anomaly")] if held else []
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=9)
    legend = "Each crop, and beside it the same with its labels, outlined. "
    legend += "No colour: not labelled. White areas: no data, or validation."
    figure.suptitle(legend, x=0.01, ha="left", fontsize=11)
    with output_errors(out), atomic_write(out) as partial:
        figure.savefig(partial, format="png", metadata={"Software": DRAWN_BY})


def _chosen(crops: Crops) -> Iterator[tuple[str, CropPixels]]:
    """Yield titles and pixels of crops to be drawn: some with an anomaly, then those that show most classes."""
    read = partial(crops.ground.read, validation=False)
    held = crops.report.with_anomaly[:COLUMNS]
    boxes, number = crops.training_boxes, COLUMNS * ROWS - len(held)
    at = np.unique(np.linspace(0, len(boxes) - 1, min(TRIED * number, len(boxes))).round().astype(int))
    best = sorted(at, key=lambda i: -_telling(read(boxes[i])))[:number]  # read again below: all take much memory
    for crop in held:
        yield f"left out, has an anomaly: {crops.ground.name(crop)}", read(crop)
    for i in sorted(best):
        yield crops.ground.name(boxes[i]), read(boxes[i])


def _telling(pixels: CropPixels) -> float:
    """Return how much a crop shows: its classes, whose borders tell whether labels lie right, by its share of data."""
    known = pixels.ids[pixels.valid]
    return len(np.unique(known[known != IGNORE])) * float(pixels.valid.mean())


def _fitting(title: str) -> str:
    """Return a title that ends before the next one begins: a long name loses its middle."""
    return title if len(title) <= TITLE else f"{title[: TITLE - 41]}…{title[-40:]}"


def _shown(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return up to three bands (H, W, 3) of an image (C, H, W) in [0, 1], white where it is invalid."""
    bands: Sequence[int] = (0, 1, 2) if len(image) >= 3 else (0, 0, 0)
    return np.where(valid, image[list(bands)], 1).transpose(1, 2, 0).astype(np.float32)


def _laid_over(image: NDArray[np.float32], ids: NDArray[np.int64], colours: Mapping[int, str]) -> NDArray[np.float32]:
    """Return an image (H, W, 3) with the colour of each label laid over it, and a line along the border of labels.

    The line tells a label from ground of its own colour: green on trees, red on roofs.
    """
    over = image.copy()
    for class_id, colour in colours.items():
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)
        over[ids == class_id] = (1 - STRENGTH) * over[ids == class_id] + STRENGTH * rgb
    known = np.isin(ids, list(colours))
    over[known & _borders(np.where(known, ids, IGNORE))] = LINE
    return over


def _borders(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the pixels (H, W) with another value beside or below them, or above them, by which areas end."""
    found = np.zeros(ids.shape, bool)
    across, down = ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1]
    found[:, 1:] |= across
    found[:, :-1] |= across
    found[1:] |= down
    found[:-1] |= down
    return found
