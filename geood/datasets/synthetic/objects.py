"""Unknown objects of the demo's test scene: shapes that no training scene holds.

Each is a function from local coordinates (u along, v across, in metres) to a height map and an albedo map; height 0 is
outside the object, so its mask is exact. Flat objects (a court, a pool) have the height `FLAT`. Sizes are realistic.
This module knows nothing of scenes, labels or light.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
ObjectShape = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]

FLAT = 0.01


def _blank(u: Array) -> tuple[Array, Array]:
    return np.zeros(u.shape, np.float32), np.zeros((*u.shape, 3), np.float32)


def aircraft(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a parked light twin: fuselage along u, straight wings with a stripe, tailplane and fin."""
    height, albedo = _blank(u)
    fuselage = (u / 7.0) ** 2 + (v / 0.95) ** 2 < 1
    sweep = 0.12 * np.abs(v)
    wing = (np.abs(v) < 7.6) & (u - 1.6 + sweep < 1.0) & (u - 1.6 + sweep > -1.0)
    tail = (np.abs(v) < 2.6) & (u + 5.9 + sweep < 0.65) & (u + 5.9 + sweep > -0.6)
    engines = (np.abs(np.abs(v) - 2.6) < 0.55) & (u > 0.4) & (u < 3.4)
    for part, level, colour in (
        (tail, 1.8, (0.86, 0.87, 0.90)),
        (wing, 1.5, (0.90, 0.91, 0.93)),
        (engines, 1.7, (0.72, 0.73, 0.76)),
        (fuselage, 2.3, (0.94, 0.94, 0.95)),
    ):
        height[part], albedo[part] = level, colour
    height[fuselage] += 0.8 * np.sqrt(1 - (v[fuselage] / 0.96) ** 2)
    stripe = (fuselage & (np.abs(v) < 0.28) & (u < 3)) | (wing & (np.abs(np.abs(v) - 6.6) < 0.5))
    albedo[stripe] = rng.choice([(0.75, 0.12, 0.12), (0.10, 0.25, 0.62)])
    albedo[fuselage & (u > 3.4) & (u < 4.4)] = (0.15, 0.17, 0.22)
    return height, albedo


def storage_tanks(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw round storage tanks of several sizes, pale, with a dark rim, a radial seam and a hatch."""
    height, albedo = _blank(u)
    for x, y, radius in ((-4.8, -4.6, 4.4), (4.8, -4.2, 4.0), (-4.4, 5.2, 3.4), (4.6, 5.0, 3.6)):
        r, theta = np.hypot(u - x, v - y), np.arctan2(v - y, u - x)
        inside = r < radius
        tone = rng.uniform(0.78, 0.9) - 0.05 * np.cos(8 * theta) * (r / radius)
        tone = np.where(r > radius - 0.4, 0.6, tone)
        tone = np.where((np.abs(v - y) < 0.2) & (u > x), 0.55, tone)
        tone = np.where(np.hypot(u - x - 0.5 * radius, v - y + 0.2 * radius) < 0.5, 0.4, tone)
        height[inside] = (6.5 + 0.12 * (radius - r))[inside]
        albedo[inside] = tone[inside][:, None] * np.array((1.0, 1.0, 0.97), np.float32)
    return height, albedo


def containers(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw shipping containers in two rows, some stacked, in the paints of shipping lines, with ribbed roofs."""
    height, albedo = _blank(u)
    paints = [
        (0.70, 0.22, 0.16),
        (0.16, 0.34, 0.60),
        (0.20, 0.48, 0.34),
        (0.82, 0.50, 0.16),
        (0.78, 0.78, 0.76),
        (0.40, 0.18, 0.20),
    ]
    for x in (-6.4, 6.4):
        for y in np.arange(-8.1, 8.2, 2.7):
            if rng.random() < 0.15:
                continue
            inside = (np.abs(u - x - rng.normal(0, 0.15)) < 6.05) & (np.abs(v - y) < 1.2)
            ribs = 1 + 0.10 * np.sign(np.sin(2 * np.pi * u / 1.0))
            height[inside] = 2.6 * rng.integers(1, 3)
            albedo[inside] = (
                ribs[inside][:, None] * np.array(paints[rng.integers(len(paints))]) * rng.uniform(0.85, 1.1)
            )
    return height, albedo


def solar_panels(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw rows of tilted, dark blue modules with pale frames; gaps between rows are not part of the object."""
    height, albedo = _blank(u)
    row = (v + 14) % 5.6
    inside = (np.abs(u) < 14) & (np.abs(v) < 14) & (row < 3.4)
    frame = ((u + 20) % 1.15 < 0.24) | (np.abs(row - 1.7) < 0.13)
    height[inside] = (1.0 + 0.35 * row)[inside]
    albedo[inside] = np.where(frame[..., None], (0.42, 0.45, 0.52), (0.10, 0.14, 0.28))[inside] * rng.uniform(0.95, 1.1)
    return height, albedo


def debris_heap(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a ragged heap of broken pieces: concrete, brick, timber, dark gaps."""
    height, albedo = _blank(u)
    theta = np.arctan2(v, u)
    edge = 4.6 * (1 + 0.18 * np.sin(2 * theta + rng.uniform(0, 6)) + 0.12 * np.sin(5 * theta + rng.uniform(0, 6)))
    fall = np.clip(1 - np.hypot(u, v) / edge, 0, 1)
    inside = fall > 0
    height[inside] = 0.3 + 2.0 * fall[inside]
    albedo[inside] = (0.42, 0.39, 0.36)
    stuff = [
        (0.72, 0.70, 0.66),
        (0.60, 0.34, 0.26),
        (0.50, 0.40, 0.28),
        (0.16, 0.15, 0.15),
        (0.80, 0.80, 0.82),
        (0.20, 0.32, 0.46),
    ]
    for _ in range(90):
        x, y = rng.normal(0, 2.3, 2)
        turn = rng.uniform(0, np.pi)
        a = (u - x) * np.cos(turn) + (v - y) * np.sin(turn)
        b = (v - y) * np.cos(turn) - (u - x) * np.sin(turn)
        piece = inside & (np.abs(a) < rng.uniform(0.3, 1.2)) & (np.abs(b) < rng.uniform(0.2, 0.5))
        height[piece] += rng.uniform(0.1, 0.5)
        albedo[piece] = stuff[rng.integers(len(stuff))]
    return height, albedo


def sports_court(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a tennis court: red apron, green or blue court, white lines; flat."""
    height, albedo = _blank(u)
    inside = (np.abs(u) < 15) & (np.abs(v) < 7.8)
    court = (np.abs(u) < 11.9) & (np.abs(v) < 5.5)
    height[inside] = FLAT
    albedo[inside] = (0.62, 0.32, 0.25)
    albedo[court] = rng.choice([(0.22, 0.45, 0.36), (0.22, 0.38, 0.58)])
    lines = np.abs(np.abs(u) - 11.9) < 0.14, np.abs(np.abs(v) - 5.5) < 0.14, np.abs(np.abs(v) - 4.1) < 0.13
    cross = (
        (np.abs(np.abs(u) - 6.4) < 0.13) & (np.abs(v) < 4.1),
        (np.abs(v) < 0.13) & (np.abs(u) < 6.4),
        np.abs(u) < 0.12,
    )
    marks = (court | (np.abs(u) < 12.1) & (np.abs(v) < 5.7)) & np.logical_or.reduce([*lines, *cross])
    albedo[marks] = 0.92
    return height, albedo


def swimming_pool(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a turquoise pool with a pale stone rim; flat."""
    height, albedo = _blank(u)
    outer = np.maximum(np.abs(u) - 3.2, 0) ** 2 + np.maximum(np.abs(v) - 0.6, 0) ** 2 < 2.2**2
    inner = np.maximum(np.abs(u) - 3.2, 0) ** 2 + np.maximum(np.abs(v) - 0.6, 0) ** 2 < 1.5**2
    height[outer] = FLAT
    albedo[outer] = (0.82, 0.79, 0.73)
    albedo[inner] = (0.28, 0.68, 0.78)
    albedo[inner] *= (1 + 0.06 * np.sin(3 * u + 2 * np.sin(2 * v)))[inner][:, None] * rng.uniform(0.95, 1.05)
    return height, albedo


def lorry(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw an articulated lorry: a coloured cab and a white trailer."""
    height, albedo = _blank(u)
    trailer = (u > -6.6) & (u < 4.2) & (np.abs(v) < 1.25)
    cab = (u > 4.6) & (u < 6.8) & (np.abs(v) < 1.15)
    height[trailer], height[cab] = 3.8, 3.2
    albedo[trailer] = 0.88
    albedo[trailer & (np.abs(u % 2.4 - 1.2) < 0.13)] = 0.74
    albedo[cab] = rng.choice([(0.75, 0.16, 0.13), (0.16, 0.32, 0.66)])
    albedo[cab & (u > 6.1) & (u < 6.5)] = (0.16, 0.18, 0.22)
    return height, albedo


def car(u: Array, v: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a car: body, dark windscreens, lighter roof."""
    height, albedo = _blank(u)
    body = np.maximum(np.abs(u) - 1.7, 0) ** 2 + np.maximum(np.abs(v) - 0.4, 0) ** 2 < 0.55**2
    cabin = (np.abs(u + 0.3) < 1.25) & (np.abs(v) < 0.75)
    roof = (np.abs(u + 0.35) < 0.75) & (np.abs(v) < 0.7)
    paint = np.array([(0.72, 0.10, 0.10), (0.90, 0.90, 0.91), (0.12, 0.22, 0.50)])[rng.integers(3)]
    height[body], height[cabin] = 0.9, 1.4
    albedo[body], albedo[cabin], albedo[roof] = paint, (0.10, 0.12, 0.15), paint
    return height, albedo


# name: (shape, radius in metres that encloses it, with a margin for those on land)
OBJECTS: dict[str, tuple[ObjectShape, float]] = {
    "storage tanks": (storage_tanks, 13.0),
    "solar panels": (solar_panels, 21.0),
    "containers": (containers, 16.0),
    "sports court": (sports_court, 18.0),
    "aircraft": (aircraft, 10.0),
    "debris heap": (debris_heap, 8.0),
    "swimming pool": (swimming_pool, 7.5),
}
VEHICLES: dict[str, tuple[ObjectShape, float]] = {"lorry": (lorry, 8.5), "car": (car, 3.5), "second car": (car, 3.5)}
