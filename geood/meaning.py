"""What the classes of a data set are to a bundle: its own classes, anomalies, or things it was never told of.

Classes are the same where their names are, whatever their numbers, so a bundle trained on one set is measured on
another without a word changed in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geood.bundle import ModelBundle
from geood.catalog import DataSet
from geood.config import IGNORE
from geood.errors import ConfigError, DataError
from geood.metrics import ANOMALY, INLIER


@dataclass(frozen=True)
class Meaning:
    """What the class ids of a data set are to a bundle; both tables take ids of one byte.

    `truth` is 0, 1 or 255, `channel` the bundle's channel or 255. `left_out` are classes that the bundle never learned
    and nobody calls anomalies.
    """

    truth: NDArray[np.uint8]
    channel: NDArray[np.uint8]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, data_set: DataSet, bundle: ModelBundle | None, hold_out: Sequence[str] = ()) -> Meaning:
        """The meaning of a set's classes, matched with those of a bundle by name; without one, all are inliers.

        Raises:
            ConfigError: `hold_out` names no class of the set.
            DataError: the bundle learned none of the set's classes.
        """
        classes = data_set.taxonomy.classes
        strange = sorted(set(hold_out) - set(classes.values()))
        if strange:
            raise ConfigError(
                f"data.hold_out: {strange[0]} is no class of {data_set.name}: {', '.join(classes.values())}"
            )
        channels = {name: i for i, name in bundle.class_names.items()} if bundle else {}
        official = bool(data_set.taxonomy.anomalies)  # the authors say what is anomalous and what is not
        held = {*hold_out, *data_set.held_out, *(() if official else _held_by(data_set, bundle))}
        truth, channel = np.full(256, IGNORE, np.uint8), np.full(256, IGNORE, np.uint8)
        left_out = []
        for class_id, name in classes.items():
            if class_id in data_set.taxonomy.anomalies or name in held:
                truth[class_id] = ANOMALY
            elif name in channels:
                truth[class_id], channel[class_id] = INLIER, channels[name]
            elif bundle is None or official:
                truth[class_id] = INLIER
            else:
                left_out.append(name)
        if not (truth == INLIER).any():
            raise DataError(
                f"{data_set.name} and this model share no class: {', '.join(classes.values())} against "
                f"{', '.join(channels)}; classes are matched by name"
            )
        return cls(truth, channel, tuple(left_out))


def _held_by(data_set: DataSet, bundle: ModelBundle | None) -> list[str]:
    """Names of the classes that a bundle's training held out, where it numbers its classes as the set does."""
    if bundle is None:
        return []
    data, classes = bundle.config.data, data_set.taxonomy.classes
    if any(classes.get(class_id) != name for class_id, name in data.classes.items()):
        return [name for name in data.hold_out if name in classes.values()]
    return [classes[class_id] for class_id in data.anomaly if class_id in classes]
