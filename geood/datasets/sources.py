"""Choice between scenes and photographs as the source of a config's crops.

Only the module that the config needs is imported, since reading scenes loads TorchGeo.
"""

from __future__ import annotations

from pathlib import Path

from geood.config import Config
from geood.datasets.class_finding import settle_classes
from geood.datasets.crops import Crops


def open_crops(config: Config, folder: Path | None = None) -> Crops:
    """Return the training and validation crops of a config, from scenes or photographs as `data.kind` says.

    Vector labels are burnt to rasters in a folder, where they are found again the next time; None: a temporary one.
    Where the classes are left to the labels, the crops are those of a config with the classes found.

    Raises:
        DataError: a file is missing or cannot be used, labels and images do not fit, or no crop is left to train on.
    """
    config = settle_classes(config)
    if config.data.kind == "photos":
        from geood.datasets.photo_crops import open_photos

        return open_photos(config)
    from geood.datasets.scene_crops import open_scenes

    return open_scenes(config, folder)
