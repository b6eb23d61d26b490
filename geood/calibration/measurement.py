"""Measurement of validation ground: scored as `predict` scores, all of it that is inlier, block by block.

Of more than 8 million pixels a part is drawn, block by block, evenly by seed; a block larger than 4 million is cut to
one window of that size. Scores are kept as float16, so that takes 16 MB for each kind of score; they are rounded up, so
that as many lie above a threshold, which is a number of float16 too, as in the map. Two passes are made: a short one
over 2 million pixels, from which the offset of the outlier head and the tails of the experts come, and the long one,
from which come all thresholds and the record.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geood.calibration.cells import onto_working, statistic_names
from geood.calibration.false_polygons import LEAST_PX, spread_of
from geood.calibration.rates import rate_interval
from geood.calibration.tiled_scoring import ImageSource, TileScores, passed_tiles, prediction_tiles, scored_tiles
from geood.config import FALSE_POSITIVE_RATES, OF_ENCODER, scores_from
from geood.datasets import Crops, ValidationPart, decoded_frame, open_ids, seed_of, validation_parts
from geood.geo.grid import Tile, Window
from geood.geo.scene import Scene
from geood.geo.scene_reading import AUTOMATIC, PixelSource, settle_reading
from geood.metrics import PixelCurve
from geood.models import CalibrationRecord, ModelBundle, for_inference
from geood.polygons import count_areas
from geood.progress import Progress

MOST_PX = 8_000_000  # of the long pass
SHORT_PX = 2_000_000  # of the short one
SAMPLE_PX = 1_000_000  # pixels of the short pass that are kept
BLOCK_PX = 4_000_000  # of one block
STEPS = 30  # thresholds of a record, beside those of the fixed rates
WIDEST_SHARE = 0.3  # of pixels above the lowest of them
MOST_CELLS = 256
LARGEST = 65504.0  # of float16


class GroundSample(NamedTuple):
    """Inlier pixels of the short pass: logits (1, K, 1, N), outlier logit (1, 1, N), scores (1, N) of the bank."""

    logits: Tensor
    outlier: Tensor
    of_bank: dict[str, Tensor]


@dataclass
class _Part:
    """A part of validation ground with its masks (h, w), and what is scored of it.

    `own` (h, w) is the score of the config, NaN but for inliers; `values` are scores of inlier pixels by kind.
    """

    place: ValidationPart
    owned: NDArray[np.bool_]
    inlier: NDArray[np.bool_]
    own: NDArray[np.float32]
    scale: float
    values: dict[str, list[NDArray[np.float16]]] = field(default_factory=lambda: defaultdict(list))


class _Known(NamedTuple):
    """Owned and inlier pixels (h, w) of the write window of a tile."""

    owned: NDArray[np.bool_]
    inlier: NDArray[np.bool_]


def sample_ground(bundle: ModelBundle, crops: Crops) -> GroundSample | None:
    """Pass a part of the validation ground through the networks and keep inlier pixels of it; None if there are none.

    Raises:
        DataError: an image cannot be read.
    """
    bundle = for_inference(bundle)
    chosen, seed = _chosen(validation_parts(crops.ground, crops.config), crops, SHORT_PX)
    rng = np.random.default_rng(seed)
    area = sum(part.window.height * part.window.width for part in chosen)
    share = min(1.0, SAMPLE_PX / max(1, area))
    served = () if bundle.inliers is None else bundle.inliers.serves
    kinds = scores_from(*(need for need in OF_ENCODER if need in served))
    kept: list[tuple[Tensor, ...]] = []
    for source, parts in _images(bundle, crops, chosen):
        known, tiles = _Knower(parts), _tiles_of(bundle, source, parts)
        for one, data in passed_tiles(bundle, source, tiles, known, kinds=("outlier",), device=bundle.device):
            (rows, cols), output = one.inner, one.output
            shape = rows.stop - rows.start, cols.stop - cols.start
            mask = onto_working(data.inlier, one.tile, scale=source.scale, shape=shape)
            places = np.flatnonzero(mask)
            places = np.sort(rng.choice(places, round(share * len(places)), replace=False))
            assert output.outlier is not None
            maps = [each[:, rows, cols] for each in (output.logits[0], output.outlier[0][None])]
            maps += one.scores_of(bundle, kinds, one.inner).values() if kinds else []
            chosen_px = torch.from_numpy(places)
            kept.append(tuple(each.flatten(1).float().cpu()[:, chosen_px] for each in maps))
    if not kept or not sum(part[0].shape[1] for part in kept):
        return None
    logits, outlier, *of_bank = (torch.cat(each, 1) for each in zip(*kept, strict=True))
    return GroundSample(logits[None, :, None], outlier[None], dict(zip(kinds, of_bank, strict=True)))


def measure_ground(bundle: ModelBundle, crops: Crops) -> tuple[dict[str, dict[str, float]], CalibrationRecord | None]:
    """Score the validation ground by all kinds; return thresholds by kind and rate, and the record.

    Without an inlier pixel there are no thresholds and no record.

    Raises:
        DataError: an image cannot be read.
    """
    bundle = for_inference(bundle)
    every = validation_parts(crops.ground, crops.config)
    chosen, _ = _chosen(every, crops, MOST_PX)
    kinds, own = bundle.scores, bundle.config.score.kind
    scored: list[tuple[int, _Part]] = []
    images: list[Path] = []
    cells: list[tuple[int, NDArray[np.float32]]] = []
    with Progress("calibrating", len(chosen)) as progress:
        for source, parts in _images(bundle, crops, chosen):
            number = len(images)
            images.append(parts[0].place.image)
            tiles = _tiles_of(bundle, source, parts)
            for tile, known, scores in scored_tiles(
                bundle,
                source,
                tiles,
                _Knower(parts),
                kinds=kinds,
                device=bundle.device,
                cells_within=lambda data: data.owned,
            ):
                assert scores.cells is not None
                cells += [(number, cell) for cell in scores.cells]
                for part in parts:
                    _take(part, tile, known, scores=scores, own=own)
            scored += [(number, part) for part in parts]
            progress.advance(len(parts))
    curves = {kind: PixelCurve() for kind in kinds}
    for _, part in scored:
        for kind, values in part.values.items():
            for some in values:
                curves[kind].update(some, np.zeros(some.shape, np.uint8))
    if not curves[own].negatives:
        return {kind: {} for kind in kinds}, None
    thresholds = {k: {str(r): float(c.fpr_threshold(r)) for r in FALSE_POSITIVE_RATES} for k, c in curves.items()}
    blocks = _by_block(scored)
    intervals = {kind: _intervals(kind, thresholds[kind], blocks) for kind in kinds}
    steps = _steps(curves[own], thresholds[own])
    record = _record(bundle, blocks, scored, steps).model_copy(
        update={"intervals": {k: found for k, found in intervals.items() if found}, "drawn": len(chosen) < len(every)}
    )
    return thresholds, _with_cells(record, bundle, cells, seed=crops.config.train.seed)


def _chosen(parts: list[ValidationPart], crops: Crops, most_px: int) -> tuple[list[ValidationPart], int]:
    """Return parts drawn evenly up to about so many pixels, in their order, none larger than a block; and the seed."""
    seed = seed_of(crops.config.train.seed, 77)
    rng = np.random.default_rng(seed)
    taken: list[tuple[int, ValidationPart]] = []
    area = 0
    for i in rng.permutation(len(parts)):
        part = _cut(parts[i], rng)
        size = part.window.height * part.window.width
        if taken and area + size > most_px:
            break
        taken.append((int(i), part))
        area += size
    return [part for _, part in sorted(taken, key=lambda pair: pair[0])], seed


def _cut(part: ValidationPart, rng: np.random.Generator) -> ValidationPart:
    row, col, height, width = part.window
    if height * width <= BLOCK_PX:
        return part
    side = math.isqrt(BLOCK_PX)
    rows, cols = min(height, side), min(width, side)
    window = Window(row + int(rng.integers(height - rows + 1)), col + int(rng.integers(width - cols + 1)), rows, cols)
    return ValidationPart(part.image, part.block, window)


def _images(
    bundle: ModelBundle, crops: Crops, chosen: Sequence[ValidationPart]
) -> Iterator[tuple[PixelSource, list[_Part]]]:
    """Yield each image as `predict` reads it, with its parts; those without an owned pixel are left out."""
    nodata = AUTOMATIC.nodata_for(bundle.bands)
    by_image: dict[Path, list[ValidationPart]] = defaultdict(list)
    for part in chosen:
        by_image[part.image].append(part)
    for path, places in by_image.items():
        with ExitStack() as stack:
            scene = stack.enter_context(Scene.open(path, nodata))
            reading = settle_reading(scene, bundle.bands, bundle.resolution, AUTOMATIC, photo_width=bundle.photo_width)
            decoded = decoded_frame(crops.ground, path)
            source: PixelSource
            if decoded is None:
                source = stack.enter_context(Scene.open(reading.source(str(path), nodata)))
            else:
                source = ImageSource(decoded.image, decoded.valid, reading.scale)
            labels = stack.enter_context(open_ids(crops.ground, crops.config, path, scene.grid, decoded=decoded))
            if labels is None:
                continue
            parts = []
            for place in places:
                owned, ids = labels.read(place)
                inlier = owned & np.isin(ids, crops.class_ids)
                parts.append(_Part(place, owned, inlier, np.full(inlier.shape, np.nan, np.float32), reading.scale))
            if any(part.owned.any() for part in parts):
                yield source, parts


def _tiles_of(bundle: ModelBundle, source: PixelSource, parts: Sequence[_Part]) -> Iterator[Tile]:
    """Yield the tiles of `predict` that touch a part."""
    height, width = (source.grid.height, source.grid.width) if isinstance(source, Scene) else source.mask.shape  # type: ignore[attr-defined]
    for tile in prediction_tiles(height, width, source.scale, bundle):
        if any(min(part.place.window.within(tile.write)[2:]) > 0 for part in parts):
            yield tile


class _Knower:
    """Callable that tells the owned and inlier pixels of a tile, None if it has none that are valid."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts

    def __call__(self, tile: Tile, valid: NDArray[np.bool_]) -> _Known | None:
        owned, inlier = np.zeros(valid.shape, np.bool_), np.zeros(valid.shape, np.bool_)
        for part in self._parts:
            here, there = _shared(part, tile)
            owned[here] |= part.owned[there]
            inlier[here] |= part.inlier[there]
        owned &= valid
        return _Known(owned, inlier & valid) if owned.any() else None


def _shared(part: _Part, tile: Tile) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the pixels that a part and the write window of a tile share, in the arrays of the tile and of the part."""
    window, write = part.place.window, tile.write
    inner = window.within(write)
    return tuple(  # type: ignore[return-value]
        inner._replace(row=inner.row - outer.row, col=inner.col - outer.col).slices for outer in (write, window)
    )


def _take(part: _Part, tile: Tile, known: _Known, *, scores: TileScores, own: str) -> None:
    """Keep the scores of the inlier pixels that a part shares with a tile; labelled ground may hold no data."""
    here, there = _shared(part, tile)
    mask = part.inlier[there] & known.inlier[here]
    for kind, score in scores.scores.items():
        part.values[kind].append(rounded_up(np.clip(score[here][mask], -LARGEST, LARGEST)))
    part.own[there] = np.where(mask, scores.scores[own][here], np.nan)


def rounded_up(scores: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round scores (n,), finite and in the range of float16, up to its numbers: each of these is exceeded as before."""
    near = scores.astype(np.float16)
    below = near < scores
    near[below] = np.nextafter(near[below], np.float16(np.inf))
    return near


class _Block(NamedTuple):
    """The image of a block, and the scores of its inlier pixels by kind."""

    image: int
    values: dict[str, NDArray[np.float16]]


def _by_block(scored: Sequence[tuple[int, _Part]]) -> list[_Block]:
    found: dict[str, list[tuple[int, _Part]]] = defaultdict(list)
    for number, part in scored:
        if part.values:
            found[part.place.block].append((number, part))
    blocks = []
    for parts in found.values():
        kinds = parts[0][1].values
        values = {kind: np.concatenate([v for _, part in parts for v in part.values[kind]]) for kind in kinds}
        if next(iter(values.values())).size:
            blocks.append(_Block(parts[0][0], values))
    return blocks


def _counts(kind: str, blocks: Sequence[_Block], thresholds: Sequence[float]) -> NDArray[np.int64]:
    """Return the pixels (n, T) of each block above each threshold, a number of float16."""
    counts = np.empty((len(blocks), len(thresholds)), np.int64)
    for i, block in enumerate(blocks):
        values = np.sort(block.values[kind])
        counts[i] = len(values) - np.searchsorted(values, np.asarray(thresholds, np.float16), "right")
    return counts


def _intervals(kind: str, thresholds: dict[str, float], blocks: Sequence[_Block]) -> dict[str, tuple[float, float]]:
    """Return the interval of the rate on new ground as large as that of calibration, at each threshold."""
    counts = _counts(kind, blocks, list(thresholds.values()))
    pixels = np.array([block.values[kind].size for block in blocks])
    image = np.array([block.image for block in blocks])
    found = {rate: rate_interval(counts[:, i], pixels, image, blocks=len(blocks)) for i, rate in enumerate(thresholds)}
    return {rate: interval for rate, interval in found.items() if interval}


def _steps(curve: PixelCurve, thresholds: dict[str, float]) -> tuple[float, ...]:
    """Return the thresholds of a record, ascending: at shares from 0.3 to one pixel, and those of the fixed rates."""
    shares = np.geomspace(WIDEST_SHARE, 1 / max(2 / WIDEST_SHARE, curve.negatives), STEPS)
    highest = float(curve.fpr_threshold(0.0))
    drawn = {float(curve.fpr_threshold(float(share))) for share in shares}
    return tuple(sorted({*drawn, *thresholds.values(), highest}))


def _record(
    bundle: ModelBundle, blocks: list[_Block], scored: Sequence[tuple[int, _Part]], steps: tuple[float, ...]
) -> CalibrationRecord:
    """Return the record of blocks, with polygons where the pixels of the images have a size in metres.

    Polygons are cut from scores on an image's own grid, so their least areas are those of its pixels. Where these are
    finer than the model's, polygons of single ones are counted too.
    """
    own, resolution = bundle.config.score.kind, bundle.resolution
    counts = _counts(own, blocks, steps)
    pixels = [int(block.values[own].size) for block in blocks]
    polygons: dict[str, object] = {}
    if resolution is not None:
        images = sorted({number for number, _ in scored})
        finer = min(part.scale for _, part in scored) < 1
        by_image = np.zeros((len(images), len(_least_px(1.0, finer=finer)), len(steps)), np.int64)
        known, area = np.zeros(len(images)), np.zeros(len(images))
        for number, part in scored:
            least, place = _least_px(part.scale, finer=finer), images.index(number)
            by_image[place] += count_areas(part.own, steps, least, connectivity=bundle.config.predict.connectivity)
            known[place] += np.isfinite(part.own).sum()
            area[place] += np.isfinite(part.own).sum() * part.scale**2
        full = area > 0
        places = range(by_image.shape[1]), range(len(steps))
        spread = [[spread_of(by_image[full, a, t], area[full]) for t in places[1]] for a in places[0]]
        scale = float(np.sqrt(area.sum() / known.sum()))
        resolution = resolution * scale if scale != 1 else resolution
        polygons = {
            "least_px": _least_px(scale, finer=finer),
            "connectivity": bundle.config.predict.connectivity,
            "polygons": tuple(tuple(int(n) for n in row) for row in by_image.sum(0)),
            "spread": tuple(tuple(float(f"{s:.4g}") for s in row) for row in spread),
        }
    return CalibrationRecord(
        kind=own,
        pixels=sum(pixels),
        pixel_m=resolution,
        intervals={},
        thresholds=steps,
        block_px=tuple(pixels),
        block_image=tuple(block.image for block in blocks),
        above=tuple(tuple(int(n) for n in row) for row in counts),
        **polygons,  # type: ignore[arg-type]
    )


def _least_px(scale: float, *, finer: bool) -> tuple[int, ...]:
    """Return the least areas that are counted, in pixels of an image of which each is `scale` of the model's a side.

    The first is one pixel where some image is `finer` than the model.
    """
    counted = tuple(math.ceil(least / scale**2 - 1e-6) for least in LEAST_PX)
    return (1, *counted) if finer else counted


def _with_cells(
    record: CalibrationRecord, bundle: ModelBundle, cells: list[tuple[int, NDArray[np.float32]]], *, seed: int
) -> CalibrationRecord:
    """Return the record with at most 256 cells, drawn evenly."""
    if not cells:
        return record
    chosen = sorted(np.random.default_rng([seed, 78]).permutation(len(cells))[:MOST_CELLS])
    return record.model_copy(
        update={
            "statistics": statistic_names(bundle.bands.names, len(bundle.class_ids)),
            "cells": tuple(tuple(float(f"{value:.4g}") for value in cells[i][1]) for i in chosen),
            "cell_image": tuple(cells[i][0] for i in chosen),
        }
    )
