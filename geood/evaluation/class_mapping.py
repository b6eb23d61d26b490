"""What the classes of a data set are to a bundle: its own classes, anomalies, or things it was never told of.

Classes are the same where their names are, whatever their numbers, so a bundle trained on one set is measured on
another without a word changed in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from geood.catalog import DataSet
from geood.config import apply_override
from geood.constants import ANOMALY, IGNORE, INLIER
from geood.errors import ConfigError, DataError
from geood.models import ModelBundle


@dataclass(frozen=True)
class ClassMapping:
    """What the class ids of a data set are to a bundle; both tables take ids of one byte.

    `truth` is 0, 1 or 255, `channel` the bundle's channel or 255. `left_out` are classes that the bundle never learned
    and nobody calls anomalies, `leaked` those that are anomalies here though the bundle learned them.
    """

    truth: NDArray[np.uint8]
    channel: NDArray[np.uint8]
    left_out: tuple[str, ...]
    leaked: tuple[str, ...] = ()

    @property
    def shared(self) -> NDArray[np.intp]:
        """The channels of the bundle whose classes the set has too, ascending."""
        found: NDArray[np.intp] = np.unique(self.channel[self.channel != IGNORE]).astype(np.intp)
        return found

    @classmethod
    def of(cls, data_set: DataSet, bundle: ModelBundle | None, hold_out: Sequence[str] = ()) -> ClassMapping:
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
        official = bool(data_set.taxonomy.anomalies or data_set.held_out)  # its authors say what is anomalous
        held = {*hold_out, *data_set.held_out, *_held_by(data_set, bundle, official=official)}
        truth, channel = np.full(256, IGNORE, np.uint8), np.full(256, IGNORE, np.uint8)
        left_out, leaked = [], []
        for class_id, name in classes.items():
            if class_id in data_set.taxonomy.anomalies or name in held:
                truth[class_id] = ANOMALY
                leaked += [name] if name in channels else []
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
        return cls(truth, channel, tuple(left_out), tuple(leaked))


def _held_by(data_set: DataSet, bundle: ModelBundle | None, *, official: bool) -> list[str]:
    """Names of the classes that a bundle's user held out of training, where the set has them too.

    What was kept out because the training set's authors call it an anomaly counts as held out as well, but for sets
    whose own authors may say otherwise.
    """
    if bundle is None:
        return []
    data, classes = bundle.config.data, data_set.taxonomy.classes
    same_numbers = all(classes.get(class_id) == name for class_id, name in data.classes.items())
    if same_numbers and not (official and data.sets):
        return [classes[class_id] for class_id in data.anomaly if class_id in classes]
    return [name for name in data.hold_out if name in classes.values()]


def data_settings(settings: Sequence[str]) -> tuple[list[str], dict[int, int], list[str]]:
    """`data.hold_out` and `data.label_ids` of `section.key=value` settings, and the settings of other sections.

    Raises:
        ConfigError: another key of data, or a value of the wrong kind.
    """
    found: dict[str, Any] = {"hold_out": [], "label_ids": {}}
    tree, rest = {"data": found}, []
    for setting in settings:
        key = setting.partition("=")[0]
        if not key.startswith("data.") and key != "data":
            rest.append(setting)
        elif key.removeprefix("data.") not in found:
            raise ConfigError(f"--set {setting}: of data only hold_out and label_ids can be set for a named data set")
        else:
            apply_override(tree, setting)
    try:
        hold_out = TypeAdapter(list[str]).validate_python(found["hold_out"], strict=True)
        return hold_out, TypeAdapter(dict[int, int]).validate_python(found["label_ids"], strict=True), rest
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(
            f"--set data: got {fault['input']!r}; {fault['msg'].lower()}; for example data.hold_out=[car] or "
            "'data.label_ids={2: 255}'"
        ) from None
