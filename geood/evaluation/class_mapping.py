"""Mapping of a data set's classes to those of a bundle: shared classes, anomalies, and classes it never learned.

Classes are matched by name, whatever their ids, so a bundle trained on one set can be measured on another without a
change to either.
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
from geood.errors import ConfigError, DataError, shown
from geood.models import ModelBundle


@dataclass(frozen=True)
class ClassMapping:
    """Lookup tables from a data set's class ids (0 to 255) to ground truth and to a bundle's channels.

    `truth` (256,) is 0 inlier, 1 anomaly or 255 ignore; `channel` (256,) is the bundle's channel or 255. `left_out` are
    classes that the bundle never learned and that are not declared anomalies, `leaked` those that are anomalies here
    though the bundle learned them.
    """

    truth: NDArray[np.uint8]
    channel: NDArray[np.uint8]
    left_out: tuple[str, ...]
    leaked: tuple[str, ...] = ()

    @property
    def shared(self) -> NDArray[np.intp]:
        """Channels of the bundle whose classes the set has too, ascending."""
        channels: NDArray[np.intp] = np.unique(self.channel[self.channel != IGNORE]).astype(np.intp)
        return channels

    @classmethod
    def of(cls, data_set: DataSet, bundle: ModelBundle | None, hold_out: Sequence[str] = ()) -> ClassMapping:
        """Match a set's classes with those of a bundle by name; without a bundle, all are inliers.

        Raises:
            ConfigError: `hold_out` has a name that is not a class of the set.
            DataError: the bundle learned none of the set's classes.
        """
        classes = data_set.taxonomy.classes
        strange = sorted(set(hold_out) - set(classes.values()))
        if strange:
            raise ConfigError(
                f"data.hold_out: {strange[0]} is not a class of {data_set.name}: {', '.join(classes.values())}"
            )
        channels = {name: i for i, name in bundle.class_names.items()} if bundle else {}
        official = bool(data_set.taxonomy.anomalies or data_set.held_out)  # its authors define the anomalies
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
    """Return the names of the set's classes that were held out of the bundle's training.

    Classes held out because the authors of the training set define them as anomalies count as well, except for sets
    whose own authors define the anomalies.
    """
    if bundle is None:
        return []
    data, classes = bundle.config.data, data_set.taxonomy.classes
    same_numbers = all(classes.get(class_id) == name for class_id, name in data.classes.items())
    if same_numbers and not (official and data.sets):
        return [classes[class_id] for class_id in data.anomaly if class_id in classes]
    return [name for name in data.hold_out if name in classes.values()]


def data_settings(settings: Sequence[str]) -> tuple[list[str], dict[int, int], list[str]]:
    """Split `section.key=value` settings into `data.hold_out`, `data.label_ids`, and those of other sections.

    Raises:
        ConfigError: another key of data is set, or a value has the wrong type.
    """
    values: dict[str, Any] = {"hold_out": [], "label_ids": {}}
    tree, rest = {"data": values}, []
    for setting in settings:
        key = setting.partition("=")[0]
        if not key.startswith("data.") and key != "data":
            rest.append(setting)
        elif key.removeprefix("data.") not in values:
            raise ConfigError(
                f"--set {shown(setting)}: of data only hold_out and label_ids can be set for a named data set"
            )
        else:
            apply_override(tree, setting)
    try:
        hold_out = TypeAdapter(list[str]).validate_python(values["hold_out"], strict=True)
        return hold_out, TypeAdapter(dict[int, int]).validate_python(values["label_ids"], strict=True), rest
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(
            f"--set data: got {shown(repr(fault['input']))}; {fault['msg'].lower()}; for example data.hold_out=[car] "
            "or 'data.label_ids={2: 255}'"
        ) from None


def folder_settings(settings: Sequence[str], *, class_ids: Sequence[int]) -> tuple[dict[int, int], list[int] | None]:
    """Return `data.label_ids` and `data.anomaly` (None: not set) of settings for a folder of scenes with labels.

    Raises:
        ConfigError: something else is set, or an anomaly is no id, or the id of a class.
    """
    own = [s for s in settings if s.startswith("data.anomaly=")]
    others = [s for s in settings if s not in own]
    if any(not s.startswith("data.label_ids=") for s in others):
        raise ConfigError(
            f"--set {shown(others[0])}: changes a config, and this is a folder, where only data.label_ids and "
            "data.anomaly can be set; give a config or leave --set out"
        )
    _, label_ids, _ = data_settings(others)
    if not own:
        return label_ids, None
    tree: dict[str, Any] = {"data": {"anomaly": []}}
    apply_override(tree, own[-1])
    given = tree["data"]["anomaly"]
    ids = list(given) if isinstance(given, list | dict) else None
    if ids is None or not all(type(i) is int and 0 <= i < IGNORE for i in ids):
        raise ConfigError(f"--set {shown(own[-1])}: give ids of the labels, 0 to 254, such as data.anomaly=[6]")
    if both := sorted({*ids} & {*class_ids}):
        raise ConfigError(f"--set {shown(own[-1])}: the model learned {both} as classes; give other ids")
    return label_ids, ids
