"""Negatives cut at random from a folder of unrelated photographs: classic outlier exposure.

All files are decoded once at the start, so that an empty folder or an unreadable file is found before training. A
photograph smaller than a patch is enlarged to the patch's size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geood.config import Config
from geood.errors import ConfigError, DataError
from geood.geo.listing import files_in

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class PhotographFolder:
    """Source of patches cut from the photographs below a folder; a `negative_sources.Photographs`.

    Raises:
        ConfigError: the training images have other than three bands.
        DataError: the folder is missing or holds no photograph, or a photograph cannot be read.
    """

    def __init__(self, folder: Path, *, bands: int) -> None:
        if bands != 3:
            raise ConfigError(
                f"negatives.source folder: photographs have 3 bands, but {bands} are used here; take another source, "
                "or choose three with bands.indexes"
            )
        if not folder.is_dir():
            raise DataError(f"negatives.folder: {folder} is not a folder; give a folder of photographs")
        self.files = files_in(folder, SUFFIXES, deep=True)
        if not self.files:
            raise DataError(f"negatives.folder: {folder} holds no photograph ({', '.join(SUFFIXES)}); name another")
        for path in self.files:
            with self._open(path) as photo:
                _rgb(photo, path)

    def __call__(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw patches (count, 3, height, width) float32 in [0, 1], each from a photograph drawn independently.

        Raises:
            DataError: a photograph cannot be read.
        """
        return torch.stack([self._patch(height, width, generator) for _ in range(count)])

    def _patch(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        path = self.files[_below(len(self.files), generator)]
        with self._open(path) as photo:
            scale = max(1.0, height / photo.height, width / photo.width)
            size = (max(width, round(photo.width * scale)), max(height, round(photo.height * scale)))
            left, top = _below(size[0] - width + 1, generator), _below(size[1] - height + 1, generator)
            whole = _rgb(photo, path)
            whole = whole if scale == 1 else whole.resize(size, Image.Resampling.BILINEAR)
            pixels = np.asarray(whole.crop((left, top, left + width, top + height)), np.float32)
        return torch.from_numpy(pixels / 255).movedim(-1, 0)

    @staticmethod
    def _open(path: Path) -> Image.Image:
        try:
            return Image.open(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: cannot be read as a photograph ({error}); copy it again or remove it") from None


def open_photographs(config: Config, bands: int) -> PhotographFolder | None:
    """Return the photographs that a config names for images of `bands` bands; None without any.

    Raises:
        ConfigError, DataError: see `PhotographFolder`.
    """
    folder = config.negatives.folder
    return None if folder is None else PhotographFolder(Path(config.data.root) / folder, bands=bands)


def _rgb(photo: Image.Image, path: Path) -> Image.Image:
    """Decode a photograph to RGB.

    Raises:
        DataError: the photograph is damaged, or has more than 8 bits a band.
    """
    if photo.mode.startswith(("I", "F")):
        raise DataError(f"{path}: has more than 8 bits a band (mode {photo.mode}); save it as 8 bit or remove it")
    try:
        return photo.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again or remove it") from None


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator, device=generator.device))
