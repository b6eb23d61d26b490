"""Pictures of results: scene, classes, scores, ground truth and synthetic negatives side by side on one page.

Rasters are read at the size at which they are drawn, so memory stays small for any scene. A picture is for looking at;
the figures in its title are computed elsewhere. Drawn on matplotlib's file canvas: no window, no global state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from affine import Affine
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from rasterio.vrt import WarpedVRT

from geood.atomic import atomic_write, output_errors
from geood.constants import IGNORE
from geood.geo.display import LONGEST_PX, Picture, read_band, read_photo, score_range
from geood.geo.gdal import open_raster, reading
from geood.geo.qgis.styles import class_colours

HIT, MISSED, FALSE = "#00c853", "#ff00c8", "#ffb300"


def draw_overview(  # noqa: PLR0913 - the panels of one page, each given by name
    out: Path,
    *,
    scene: Path,
    scores: Path,
    classes: Path | None,
    labels: Path | None,
    class_names: Mapping[int, str],
    anomaly: Sequence[int],
    negatives: NDArray[np.floating] | None,
    threshold: float,
    metrics: Mapping[str, float],
) -> None:
    """Draw a scene and its results as one PNG; an existing file is replaced.

    Args:
        out: the PNG.
        scene: the raster that was predicted.
        scores: its score raster.
        classes: its class raster of channel indexes, 255 for none; None: no such panel.
        labels: a raster of class ids on any grid; None: no ground truth is shown.
        class_names: name of each channel index in `classes`.
        anomaly: ids in `labels` that are anomalies.
        negatives: synthetic negatives (N, C, h, w) in [0, 1]; None: no such panel.
        threshold: score above which a pixel counts as detected.
        metrics: figures for the title, as shares in [0, 1].

    Raises:
        DataError: a raster cannot be read.
        OutputError: the picture cannot be written.
    """
    photo = read_photo(scene)
    score = read_band(scores, photo.shape[:2])
    truth = _read_truth(labels, scene, shape=photo.shape[:2], anomaly=anomaly) if labels else None
    panels: list[tuple[str, Callable[[Axes], None]]] = [("scene", lambda ax: _show(ax, photo))]
    if classes:
        index = read_band(classes, photo.shape[:2])
        panels.append(("classes", lambda ax: _show_classes(ax, index, class_names)))
    panels.append(("anomaly score", lambda ax: _show_score(ax, score, threshold)))
    if truth is not None:
        panels.append(("ground truth", lambda ax: _show_truth(ax, photo, truth)))
    panels.append((f"above {threshold:.3g}", lambda ax: _show_detected(ax, photo, score > threshold, truth)))
    if negatives is not None and len(negatives):
        panels.append(("synthetic negatives", lambda ax: _show(ax, _mosaic(negatives))))
    listed = "   ".join(f"{name} {100 * value:.1f} %" for name, value in metrics.items() if np.isfinite(value))
    _draw_page(out, panels, title=f"{scene.name}    {listed}")


def draw_frame(
    out: Path,
    photo: Picture,
    *,
    score: NDArray[np.floating],
    truth: NDArray[np.uint8],
    classes: tuple[NDArray[np.uint8], Mapping[int, str]] | None,
    threshold: float,
    title: str,
) -> None:
    """Draw a photograph and its scores as one PNG; an existing file is replaced.

    Args:
        out: the PNG.
        photo: three bands (H, W, 3) in [0, 1].
        score: its anomaly scores (H, W).
        truth: 0 inlier, 1 anomaly, 255 void (H, W).
        classes: class indexes (H, W) and the name of each; None: no such panel.
        threshold: score above which a pixel counts as detected.
        title: the title of the page.

    Raises:
        OutputError: the picture cannot be written.
    """
    step = -(-max(score.shape) // LONGEST_PX)  # the page shows no more pixels, and large images fill the memory
    photo, score, truth = photo[::step, ::step], score[::step, ::step], truth[::step, ::step]
    panels: list[tuple[str, Callable[[Axes], None]]] = [("image", lambda ax: _show(ax, photo))]
    if classes:
        index, names = classes[0][::step, ::step].astype(np.float32), classes[1]
        panels.append(("classes", lambda ax: _show_classes(ax, index, names)))
    panels.append(("anomaly score", lambda ax: _show_score(ax, score.astype(np.float32), threshold)))
    panels.append((f"above {threshold:.3g}", lambda ax: _show_detected(ax, photo, score > threshold, truth)))
    _draw_page(out, panels, title=title, columns=2, ratio=score.shape[0] / score.shape[1])


def _draw_page(
    out: Path,
    panels: list[tuple[str, Callable[[Axes], None]]],
    *,
    title: str,
    columns: int = 3,
    ratio: float = 1.0,
) -> None:
    """Draw panels in rows, each with its title, as one PNG; `ratio` is the height of a panel over its width."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, (5 * ratio + 0.4) * rows), dpi=110, layout="constrained")
    for position, (name, draw) in enumerate(panels):
        ax = figure.add_subplot(rows, min(columns, len(panels)), position + 1)
        ax.set_title(name, loc="left", fontsize=12)
        ax.set_axis_off()
        draw(ax)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    with output_errors(out), atomic_write(out) as partial:
        figure.savefig(partial, format="png")


def _read_truth(labels: Path, scene: Path, *, shape: tuple[int, int], anomaly: Sequence[int]) -> NDArray[np.uint8]:
    """Read labels on the scene's grid at the drawn size: 1 anomaly, 0 another label, 255 none."""
    with reading(labels), open_raster(scene) as source, open_raster(labels) as target:
        if source.crs is None:
            ids, known = target.read(1, out_shape=shape), target.dataset_mask(out_shape=shape) > 0
        else:
            scale = Affine.scale(source.width / shape[1], source.height / shape[0])
            grid = {"crs": source.crs, "transform": source.transform @ scale, "height": shape[0], "width": shape[1]}
            with WarpedVRT(target, **grid, add_alpha=target.nodata is None) as warped:  # nearest neighbour
                ids, known = warped.read(1), warped.dataset_mask() > 0
    return np.where(known & (ids != IGNORE), np.isin(ids, list(anomaly)), IGNORE).astype(np.uint8)


def _show(ax: Axes, picture: Picture) -> None:
    ax.imshow(picture, interpolation="nearest", vmin=0, vmax=1)


def _show_classes(ax: Axes, index: NDArray[np.float32], names: Mapping[int, str]) -> None:
    colours = class_colours(dict(names))
    table = ListedColormap([colours.get(i, "#ffffff") for i in range(max(names) + 1)])
    shown = np.ma.masked_where(index == IGNORE, index)
    ax.imshow(shown, cmap=table, vmin=-0.5, vmax=max(names) + 0.5, interpolation="nearest")
    _legend(ax, {names[i]: colours[i] for i in sorted(names)})


def _show_score(ax: Axes, score: NDArray[np.floating], threshold: float) -> None:
    """Show the score map; its colours reach to the threshold at least."""
    low, high = score_range(score, least_high=threshold)
    ax.set_facecolor("white")
    image = ax.imshow(score, cmap="inferno", vmin=low, vmax=high, interpolation="nearest")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.ax.axhline(threshold, color="#00e5ff", linewidth=2)
    bar.ax.tick_params(labelsize=8)


def _show_truth(ax: Axes, photo: Picture, truth: NDArray[np.uint8]) -> None:
    _show(ax, _tint(_pale(photo), truth == 1, MISSED))
    _legend(ax, {"anomaly": MISSED})


def _show_detected(ax: Axes, photo: Picture, detected: NDArray[np.bool_], truth: NDArray[np.uint8] | None) -> None:
    """Show the pixels above the threshold; with ground truth, hits, misses and false alarms in different colours."""
    if truth is None:
        _show(ax, _tint(_pale(photo), detected, HIT))
        return
    picture = _tint(_pale(photo), detected & (truth == 0), FALSE)
    picture = _tint(picture, ~detected & (truth == 1), MISSED)
    _show(ax, _tint(picture, detected & (truth == 1), HIT))
    _legend(ax, {"hit": HIT, "missed": MISSED, "false alarm": FALSE})


def _legend(ax: Axes, colours: Mapping[str, str]) -> None:
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    ax.legend(
        handles=handles, loc="lower left", fontsize=8, framealpha=0.85, ncols=len(handles) if len(handles) < 4 else 3
    )


def _pale(photo: Picture) -> Picture:
    grey = photo.mean(2, keepdims=True)
    return np.repeat(0.35 + 0.65 * grey, 3, axis=2)


def _tint(picture: Picture, where: NDArray[np.bool_], colour: str) -> Picture:
    tinted = picture.copy()
    tinted[where] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return tinted


def _mosaic(samples: NDArray[np.floating]) -> Picture:
    """Arrange samples (N, C, h, w) in a near-square picture (H, W, 3), clipped to [0, 1], with white gaps."""
    count, bands, height, width = samples.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    picture = np.ones((rows * (height + 2) + 2, columns * (width + 2) + 2, 3), np.float32)
    shown = samples[:, :3] if bands >= 3 else np.repeat(samples[:, :1], 3, axis=1)
    for i, sample in enumerate(np.clip(shown, 0, 1)):
        top, left = 2 + (i // columns) * (height + 2), 2 + (i % columns) * (width + 2)
        picture[top : top + height, left : left + width] = sample.transpose(1, 2, 0)
    return picture
