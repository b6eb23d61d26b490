"""Check of a config before any training: networks, files, classes, crops, a picture, and the time on this machine.

All parts are looked at, whatever the ones before them found, so that one run tells everything that is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from geood.config import Config, DataConfig, folded
from geood.datasets import find_files, settle_classes, without_unreadable
from geood.errors import DataError, GeoodError, counted
from geood.geo.labels.reading import are_vectors
from geood.preflight.found_classes import FoundClass, FoundLabels, area_text, find_classes
from geood.preflight.imagery import look_at
from geood.preflight.machine import this_machine
from geood.preflight.picture import draw_crops
from geood.preflight.trial import Trial, quietly, try_crops
from geood.training import LONG_S, check_first, shortcuts

RARE = 0.001  # share of the labelled ground below which a class is called rare
FEW_CROPS, LITTLE_CLEAN = 500, 0.2  # training crops, and share of clean ones, that are remarked on
SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
Line = tuple[str, str]


def check_config(config: Config, picture: Path) -> Iterator[Line]:
    """Yield what can be known of a config before training, as (label, text) lines, and draw a picture of its crops.

    Args:
        config: the config.
        picture: the PNG to write; an existing one is replaced.

    Raises:
        GeoodError: something is wrong that would end a training; raised after everything was looked at, of the class of
            the first fault, with all of them in its message.
    """
    config, faults = settle_classes(config), list[GeoodError]()
    trial: list[Trial] = []
    parts: tuple[Callable[[], Iterator[Line]], ...] = (
        partial(_networks, config),
        partial(_files, config, trial),
        partial(_crops, config, trial),
        partial(_picture, trial, picture),
        partial(_time, trial),
    )
    for part in parts:
        try:
            yield from part()
        except GeoodError as error:
            faults += [error] if str(error) not in map(str, faults) else []
    if len(faults) > 1:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise type(faults[0])(f"{len(faults)} things would end a training:\n{listed}")
    if faults:
        raise faults[0]


def _networks(config: Config) -> Iterator[Line]:
    """Check networks and weights, which needs no data."""
    parameters = check_first(config)
    segmenter = config.segmenter
    weights = segmenter.weights or "random, and ImageNet weights are a much better start (segmenter.weights)"
    yield "encoder", f"{segmenter.encoder}, {parameters / 1e6:.1f} million parameters; weights: {weights}"
    if segmenter.weights and config.train.encoder_lr_factor == 1.0:
        yield "note", "train.encoder_lr_factor 0.25 changes pretrained weights gently; it is 1.0"


def _tried(config: Config, trial: list[Trial]) -> Trial:
    """Draw and screen some crops as training does, once: the trial is put into the list."""
    if not trial:
        with quietly():
            trial.append(try_crops(config))
    return trial[0]


def _files(config: Config, trial: list[Trial]) -> Iterator[Line]:
    """Look at images and labels, and compare the classes with those of the config."""
    data = config.data
    if data.sets:
        for entry in data.sets:
            yield "set", f"{entry.name}, split {entry.split}; geood data check {entry.name} FOLDER reads all of it"
        return
    find = partial(find_files, data.root, suffixes=SUFFIXES)
    lost = _left_out(config, trial, find) if data.unreadable == "skip" else set()
    images = [path for path in find(data.images, what="data.images") if path not in lost]
    if lost:
        yield "note", f"files that cannot be read and are left out: {len(lost)}, {sorted(lost)[0].name} first"
    imagery = look_at(images, nodata=config.bands.nodata)
    for line in imagery.lines():
        yield "images", line
    if imagery.suspected is not None:
        yield "note", f"much of a border is {imagery.suspected:g} and counts as data; bands.nodata, if that is nodata"
    labels = [path for path in find(data.labels, what="data.labels") if path not in lost]
    layers = [data.label_layer] if isinstance(data.label_layer, str) else data.label_layer or ()
    found = find_classes(labels, layers=layers, attribute=data.label_attribute, buffer_m=data.label_buffer_m)
    counted = "" if found.counted == len(labels) else f", of which {found.counted:,} were counted"
    yield "labels", f"{found.kinds}{counted}"
    for problem in found.problems:
        yield "note", problem
    yield from _classes(config, found)


def _left_out(config: Config, trial: list[Trial], find: Callable[..., list[Path]]) -> set[Path]:
    """Return the files that a training leaves out, also where something else, told with the crops, would end it."""
    with suppress(GeoodError):
        return {skipped.path for skipped in _tried(config, trial).crops.skipped}
    labels = find(config.data.labels, what="data.labels")
    files = [*find(config.data.images, what="data.images"), *([] if are_vectors(labels) else labels)]
    with quietly(logging.ERROR), suppress(DataError):  # without any that can be read, the first is told
        return {skipped.path for skipped in without_unreadable(files, lambda path: [path], what="files")[1]}
    return set()


def _classes(config: Config, labels: FoundLabels) -> Iterator[Line]:
    """Compare the classes in the labels with those of the config."""
    data = config.data
    held = {*data.anomaly, *(map(folded, data.anomaly.values()) if isinstance(data.anomaly, dict) else ())}
    by_name = {folded(name): class_id for class_id, name in data.classes.items()}
    met: set[int] = set()
    for found in sorted(labels.classes, key=lambda each: _is_held(each, data, held)):  # what is held out comes last
        meant = data.label_ids.get(found.class_id, found.class_id)
        learned = (
            by_name.get(folded(found.name)) if found.name is not None else meant if meant in data.classes else None
        )
        share = f"{100 * found.share:.3g} % of the labelled ground" + (f", {area_text(found.km2)}" if found.km2 else "")
        if learned is not None:
            met.add(learned)
            rare = ", rare: few crops will hold it" if found.share < RARE else ""
            yield "class", f"{learned} {data.classes[learned]}: {share}{rare}"
        elif _is_held(found, data, held):
            name = data.anomaly_names.get(meant)
            yield "anomaly", f"{found.name or (f'{meant} {name}' if name else meant)}: {share}"
        elif meant != 255:
            yield "note", f"{found.name or meant}: {share}; neither a class nor an anomaly, and ignored"
    made = {data.background_id, *data.label_ids.values()}  # which no number in the files is
    lost = [name for i, name in data.classes.items() if i not in met | made]
    if lost:
        yield "note", f"not in the labels: {', '.join(lost)}"


def _is_held(found: FoundClass, data: DataConfig, held: Container[int | str]) -> bool:
    """Tell whether a value in labels is an anomaly, by its name or its id."""
    meant = data.label_ids.get(found.class_id, found.class_id)
    return (meant if found.name is None else folded(found.name)) in held


def _crops(config: Config, trial: list[Trial]) -> Iterator[Line]:
    """Draw and screen some crops as training does; the trial is put into the list."""
    tried = _tried(config, trial)
    report = tried.crops.report
    looked_at = report.drawn - report.dropped_invalid
    most = (
        ", as many as data.validation_crops allows" if report.validation_crops == config.data.validation_crops else ""
    )
    yield "split", f"{counted(report.validation_crops, 'crop is', 'crops are')} kept for validation{most}"
    if tried.few_blocks:
        yield "note", tried.few_blocks
    bare = report.dropped_unlabelled / max(1, looked_at)
    left = {"with an anomaly": tried.with_anomaly, "without a label": bare}
    told = ", ".join(f"{100 * share:.0f} % {what}" for what, share in left.items() if share)
    out = f" (left out: {told})" if told else ""
    yield (
        "crops",
        f"{100 * tried.clean:.0f} % of {looked_at} can be trained on{out}: about {tried.expected:,} of "
        f"{config.data.crops:,}",
    )
    empty = report.dropped_invalid / max(1, report.drawn)
    if empty > 0.5:
        yield (
            "note",
            f"{100 * empty:.0f} % of the crops drawn hold too little data (data.min_valid) and are drawn again",
        )
    if tried.expected < FEW_CROPS or tried.clean < LITTLE_CLEAN:
        yield (
            "note",
            (
                f"few crops are left: {'make data.crop_px smaller, ' if tried.with_anomaly > 0.3 else ''}label more "
                "ground, or raise data.crops"
            ),
        )
    missing = [config.data.classes[i] for i, pixels in report.class_pixels.items() if not pixels]
    if missing:
        yield "note", f"in none of these crops: {', '.join(missing)}"


def _picture(trial: list[Trial], picture: Path) -> Iterator[Line]:
    """Draw crops with their labels, where there are any."""
    if trial:
        draw_crops(picture, trial[0].crops)
        yield "picture", f"{picture}: do labels and images lie on each other?"


def _time(trial: list[Trial]) -> Iterator[Line]:
    """Measure how long the training would take here."""
    if not trial:
        return
    pace = trial[0].pace()
    yield "machine", str(this_machine())
    for line in pace.lines():
        yield "stage", line
    total, said = pace.whole(trial[0].config.data.crops)
    yield "time", said
    if total > LONG_S and not pace.on_gpu:
        for text in shortcuts(trial[0].config):
            yield "shorter", text
