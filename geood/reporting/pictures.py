"""Pictures of a page as data URIs: JPEG for scenes, paletted PNG for scores, each within a number of bytes.

A page of 500 polygons has to open everywhere, so every picture has a budget: its quality is lowered until it fits, and
its size if that does not help. Nothing is known of what a picture shows.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from geood.errors import DataError, shown
from geood.geo.display import Picture, score_range

QUALITIES = (88, 80, 70, 58, 44, 30)
LEVELS = 128  # colours of a score layer; index 0 is transparent


def jpeg(picture: Picture, budget: int) -> str:
    """Return a picture (h, w, 3) in [0, 1] as a data URI of at most about `budget` bytes of JPEG."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))
    while True:
        for quality in QUALITIES:
            content = _encoded(image, "JPEG", quality=quality, optimize=True)
            if len(content) <= budget:
                return _uri("jpeg", content)
        if max(image.size) <= 16:
            return _uri("jpeg", content)
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.LANCZOS)


def score_layer(score: Picture, budget: int) -> tuple[str, float, float]:
    """Return scores (h, w) as a data URI of a PNG, transparent where NaN, and the range of its colours."""
    low, high = score_range(score)
    share = np.clip((np.nan_to_num(score) - low) / (high - low), 0, 1)
    index = np.where(np.isfinite(score), 1 + np.round(share * (LEVELS - 2)), 0).astype(np.uint8)
    colours = (colormaps["inferno"](np.linspace(0, 1, LEVELS - 1))[:, :3] * 255).round().astype(np.uint8)
    image = Image.fromarray(index, mode=None)
    while True:
        paletted = image.copy()
        paletted.putpalette(np.vstack([[255, 255, 255], colours]).astype(np.uint8).tobytes())
        content = _encoded(paletted, "PNG", optimize=True, transparency=0)
        if len(content) <= budget or max(image.size) <= 64:
            return _uri("png", content), low, high
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.NEAREST)


def scale_uri() -> str:
    """Return the colours of score layers from low to high as a picture one pixel high."""
    colours = (colormaps["inferno"](np.linspace(0, 1, 64))[None, :, :3] * 255).round().astype(np.uint8)
    return _uri("png", _encoded(Image.fromarray(colours), "PNG"))


def of_file(path: Path, budget: int) -> tuple[str, tuple[int, int]]:
    """Return a picture of a run folder as a data URI, and its width and height.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            plain = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({shown(error)}); remove it to go on without") from None
    content = _encoded(plain, "PNG", optimize=True)
    if len(content) <= budget:
        return _uri("png", content), plain.size
    pixels = np.asarray(plain, np.float32) / np.float32(255)
    return jpeg(pixels, budget), plain.size


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
