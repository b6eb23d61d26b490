"""Record of a calibration, kept in a bundle: what was measured on the inlier ground that training left out.

It holds what a threshold's promise, the count of false polygons and the comparison with a scene need, and no pixels.
How it is measured, and what is read from it, is in the package `calibration`; here is only its schema, since a header
may come from anybody.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from geood.config import SCORES
from geood.errors import shown

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MOST_BLOCKS = 100_000


class CalibrationRecord(BaseModel):
    """Figures of inlier ground, read as `predict` reads it; n blocks, T thresholds, A least areas, S statistics.

    Attributes:
        kind: the kind of score that thresholds, polygons and cells are of.
        pixels: inlier pixels that were scored.
        pixel_m: side of these pixels in metres, by their mean area; None: unknown.
        intervals: interval of the achieved false-positive rate, by kind of score and promised rate; without an entry
            there were too few blocks for one, or nothing lay above.
        thresholds: ascending scores (T,).
        block_px: inlier pixels of each block (n,).
        block_image: the image of each block (n,), counted from 0.
        above: inlier pixels of each block above each threshold (n, T).
        least_px: least areas of a polygon, in pixels of that side (A,); empty if no polygons were counted.
        polygons: false polygons of at least an area, by threshold (A, T).
        connectivity: of the pixels of these polygons; a bundle of an earlier geood has that of its config.
        spread: by how much their rate differs from image to image beyond chance: variance by squared mean (A, T).
        statistics: names of the statistics of a cell (S,).
        cells: statistics of cells (c, S).
        cell_image: the image of each cell (c,).
        drawn: whether only a part of the ground was scored, because there was more than needed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: str
    pixels: NonNegativeInt
    pixel_m: Positive | None
    intervals: dict[str, dict[str, tuple[Share, Share]]]
    thresholds: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=1000)]
    block_px: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, max_length=MOST_BLOCKS)]
    block_image: tuple[NonNegativeInt, ...]
    above: tuple[tuple[NonNegativeInt, ...], ...]
    least_px: Annotated[tuple[NonNegativeInt, ...], Field(max_length=100)] = ()
    polygons: tuple[tuple[NonNegativeInt, ...], ...] = ()
    spread: tuple[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], ...] = ()
    connectivity: Literal[4, 8] = 8
    statistics: tuple[str, ...] = ()
    cells: tuple[tuple[Finite, ...], ...] = ()
    cell_image: tuple[NonNegativeInt, ...] = ()
    drawn: bool = False

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        blocks, steps, areas = len(self.block_px), len(self.thresholds), len(self.least_px)
        tables = {
            "above": (self.above, blocks, steps),
            "polygons": (self.polygons, areas, steps),
            "spread": (self.spread, areas, steps),
            "cells": (self.cells, len(self.cell_image), len(self.statistics)),
        }
        for name, (rows, high, wide) in tables.items():
            if len(rows) != high or any(len(row) != wide for row in rows):
                raise ValueError(f"{name}: is not a table of {high} x {wide}")
        if len(self.block_image) != blocks:
            raise ValueError("block_image: there must be one for each block")
        if any(low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ValueError("thresholds: must ascend")
        if strange := [kind for kind in (self.kind, *self.intervals) if kind not in SCORES]:
            raise ValueError(f"got {shown(strange[0])}, which is not a score")
        return self

    @property
    def km2(self) -> float | None:
        """Inlier ground in square kilometres; None where the size of a pixel is not known."""
        return None if self.pixel_m is None else self.pixels * self.pixel_m**2 / 1e6

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_px)

    @property
    def images(self) -> int:
        """Number of images that the blocks lie in."""
        return len(set(self.block_image))
