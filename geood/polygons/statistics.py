"""Components of one window, and the statistics of their pixels in it.

A component that continues in other windows has its statistics there too; they add up. Nothing here knows whether it
continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geood.geo.grid import Window
from geood.polygons.evidence import PixelEvidence
from geood.polygons.runs import Vertices, WindowComponents, resolve_equivalences


class WindowPixels(NamedTuple):
    """A window; if any pixel exceeds the threshold, also its scores, the mask of such pixels, and evidence on them."""

    window: Window
    score: NDArray[np.float32] | None = None
    above: NDArray[np.bool_] | None = None
    evidence: PixelEvidence = PixelEvidence()


class WindowStatistics(NamedTuple):
    """The components of a window, numbered from 0, and its pixels above the threshold in reading order.

    `of_label`, `of_run` and `of_pixel` are the component of each label, run and pixel; `run_px` is the length of each
    run without the padding. `box` (n, 4) is first row, first column, end row, end column. `scores` and `evidence` are
    those of the pixels. A component that lies in the padding alone has no pixels and an empty box.
    """

    of_label: NDArray[np.int32]
    of_run: NDArray[np.int32]
    of_pixel: NDArray[np.int32]
    run_px: NDArray[np.int32]
    box: NDArray[np.int64]
    area_px: NDArray[np.int64]
    score_sum: NDArray[np.float64]
    score_max: NDArray[np.float64]
    scores: NDArray[np.float32]
    evidence: PixelEvidence


def window_statistics(labelled: WindowComponents, pixels: WindowPixels, *, connectivity: int) -> WindowStatistics:
    """Join labels to components, across contacts too if `connectivity` is 8, and compute their statistics."""
    if connectivity == 8:
        count, of_label = resolve_equivalences(labelled.label_count, labelled.contacts)
    else:
        count, of_label = labelled.label_count, np.arange(labelled.label_count, dtype=np.int32)
    row, start, end, label = labelled.runs
    of_run = of_label[label]
    run_px = np.where(row > 0, end - np.maximum(start, 1), 0)
    of_pixel = np.repeat(of_run, run_px)
    scores = np.zeros(0, np.float32)
    if pixels.score is not None and pixels.above is not None:
        scores = pixels.score[pixels.above]
    box, filled = empty_boxes(count), np.flatnonzero(run_px)
    score_max = np.full(count, -np.inf, np.float32)
    if len(filled):  # by runs, which are fewer than pixels
        run_starts = np.cumsum(run_px[filled]) - run_px[filled]
        np.maximum.at(score_max, of_run[filled], np.maximum.reduceat(scores, run_starts))
    row_origin, col_origin = pixels.window.row - 1, pixels.window.col - 1  # of the padded window
    np.minimum.at(box[:, 0], of_run[filled], row[filled] + row_origin)
    np.minimum.at(box[:, 1], of_run[filled], np.maximum(start[filled], 1) + col_origin)
    np.maximum.at(box[:, 2], of_run[filled], row[filled] + row_origin + 1)
    np.maximum.at(box[:, 3], of_run[filled], end[filled] + col_origin)
    score_sum = np.asarray(np.bincount(of_pixel, weights=scores, minlength=count), np.float64)
    area_px = np.bincount(of_pixel, minlength=count)
    return WindowStatistics(
        of_label,
        of_run,
        of_pixel,
        run_px,
        box,
        area_px,
        score_sum,
        score_max.astype(np.float64),
        scores,
        pixels.evidence,
    )


def empty_boxes(count: int) -> NDArray[np.int64]:
    """Return boxes (n, 4) (first row, first column, end row, end column) that are neutral in a union with any other."""
    boxes = np.full((count, 4), -1, np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    return boxes


class ComponentPart(NamedTuple):
    """The pixels and vertices of one component in a window."""

    component: int
    scores: NDArray[np.float32]
    evidence: PixelEvidence
    vertices: Vertices


def split_by_component(
    stats: WindowStatistics, vertices: Vertices, chosen: NDArray[np.bool_]
) -> Iterator[ComponentPart]:
    """Yield the part of each component marked in `chosen`, in order."""
    rank = np.cumsum(chosen) - 1
    pixel_index, pixel_at = _group_indices(stats.of_pixel, chosen, rank)
    vertex_index, vertex_at = _group_indices(stats.of_label[vertices.label], chosen, rank)
    scores, evidence = stats.scores[pixel_index], stats.evidence.select(pixel_index)
    vertices = vertices.select(vertex_index)
    for i, component in enumerate(np.flatnonzero(chosen).tolist()):
        pixel_slice, vertex_slice = slice(pixel_at[i], pixel_at[i + 1]), slice(vertex_at[i], vertex_at[i + 1])
        yield ComponentPart(component, scores[pixel_slice], evidence.select(pixel_slice), vertices.select(vertex_slice))


def _group_indices(
    owner: NDArray[Any], marked: NDArray[np.bool_], rank: NDArray[Any]
) -> tuple[NDArray[np.intp], list[int]]:
    """Return the indexes whose owner is marked, grouped by owner, and the offset of each group."""
    chosen = np.flatnonzero(marked[owner])
    ranks = rank[owner[chosen]]
    order = np.argsort(ranks.astype(np.uint16) if len(marked) < 2**16 else ranks, kind="stable")
    return chosen[order], [0, *np.cumsum(np.bincount(ranks, minlength=int(marked.sum()))).tolist()]
