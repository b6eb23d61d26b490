"""Run folder of a training: its files, and the checks before a run is started, resumed or reused.

`config.yaml` (resolved), `split.gpkg` (scenes) or `split.csv` (photographs), `skipped.csv` (files that could not be
read), `labels/` (burnt polygons), `metrics.csv` (one row per figure), `confusion.csv` (classes of the last validation),
`versions.json`, `inputs.json` (sizes and times of what is read), `samples/`, `tensorboard/`, `checkpoints/STAGE.ckpt`
and, at the end, `model.safetensors`. This module reads and writes the folder; it does not train. Checkpoints are read
in `checkpoints`, inputs in `inputs`.
"""

from __future__ import annotations

import csv
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from geood._version import __version__
from geood.atomic import atomic_write, giving_up, lock_file
from geood.config import Config, default_kind, load_config, to_yaml
from geood.errors import ConfigError, OutputError, TrainingError, shown
from geood.models import OLD_STRIDES, Flow, Segmenter
from geood.training.checkpoints import DamagedCheckpoint, read_checkpoint
from geood.training.plans import plans

log = logging.getLogger("geood")
FREE = ("data.workers", "data.test_images", "data.test_labels", "score", "predict")  # these do not affect training
# Keys that a run must share with the run whose first stages it reuses, and exceptions among them.
SHARED = ("data", "bands", "segmenter", "flow", "train.seed")
APART = (
    *(f"data.{key}" for key in ("workers", "test_images", "test_labels")),
    *(f"segmenter.{key}" for key in ("outlier", "outlier_strides", "weights", "checkpointing")),
    "flow.checkpointing",
)
FILES = (
    "config.yaml",
    "split.gpkg",
    "split.csv",
    "skipped.csv",
    "metrics.csv",
    "confusion.csv",
    "versions.json",
    "inputs.json",
    "model.safetensors",
)
PACKAGES = ("torch", "timm", "torchgeo", "lightning", "rasterio", "numpy")  # whose versions are noted
LABELS = "labels"  # burnt while the crops are opened, before the folder is known to be a run
LOCK = ".lock"  # of the process that trains
BEFORE = (".config.partial.yaml", LOCK, LABELS)  # what a run may hold that has no config.yaml yet
FOLDERS = ("checkpoints", "samples", "tensorboard", LABELS)
UNKNOWN = {  # of runs that were begun before there was such a key
    ("train", "head_light"): 0.0,
    ("segmenter", "outlier_strides"): OLD_STRIDES,
}
FIELDS = ("stage", "step", "figure", "value")


def check_run(run: Path, config: Config, *, resume: bool) -> None:
    """Check that a run folder can be created, or that the existing one can be resumed; nothing is written yet.

    Raises:
        ConfigError: its config.yaml is damaged.
        OutputError: the folder holds a run and `resume` is False, a run with another config, or something else.
        TrainingError: its metrics.csv is damaged.
    """
    saved = run / "config.yaml"
    _check_kinds(run)
    if saved.exists() and not resume:
        raise OutputError(f"{run}: holds a run already; add --resume to go on with it, or give another --out")
    if saved.exists():
        changed = _changed(_stored(saved), config)
        if not (run / "model.safetensors").exists():
            changed = [key for key in changed if not _among(key, FREE)]
        if (run / "metrics.csv").exists():
            _metric_rows(run / "metrics.csv")
        if changed:
            raise OutputError(
                f"{run}: was begun with other values of {', '.join(changed)}; give those, or another --out"
            )
    elif run.exists() and (not run.is_dir() or any(p.name not in BEFORE for p in run.iterdir())):
        lacks = ", it has no config.yaml" if run.is_dir() else ""
        raise OutputError(f"{run}: exists and is not a run of geood{lacks}; give another --out")


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Hold a run folder, made if need be: nobody else trains in it meanwhile. What was made and is still empty goes.

    Raises:
        OutputError: another process trains in it, or it cannot be made.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{run}: cannot be made ({error.strerror}); give another --out") from None
    try:
        lock = lock_file(run / LOCK, busy="another training writes this run now; wait for it, or give another --out")
        try:
            yield
        finally:
            with giving_up(lock):
                (run / LOCK).unlink()
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def as_begun(run: Path, config: Config, *, given: Config) -> Config:
    """Return the config with which a run goes on: keys that `given` leaves to their defaults are as it was begun.

    Another version of geood may have other defaults. What was given and differs is left as it is, to be refused, and so
    is `data.root`, which is no choice of geood's; so is all if no config can have both together.

    Raises:
        ConfigError: the config of the run is damaged.
    """
    if not (run / "config.yaml").is_file():
        return config
    before, kept = _stored(run / "config.yaml"), dict[str, dict[str, Any]]()
    derived = given.score.kind == default_kind(given.segmenter, given.score)
    for name in _changed(before, config):
        section, _, key = name.partition(".")
        typed = section in given.model_fields_set and key in getattr(given, section).model_fields_set
        if name == "data.root" or (typed and not (name == "score.kind" and derived)):
            continue
        kept.setdefault(section, {})[key] = getattr(getattr(before, section), key)
    if not kept:
        return config
    sections = {section: getattr(config, section).model_copy(update=keys) for section, keys in kept.items()}
    mixed = config.model_copy(update=sections)
    try:
        Config.model_validate(mixed.model_dump())
    except ValidationError:
        return config
    return mixed


def kept_defaults(config: Config, begun: Config) -> str:
    """Return in words what `as_begun` took from a run in place of the defaults of `config`; empty if nothing."""
    told = []
    for name in _changed(begun, config):
        section, _, key = name.partition(".")
        was, now = (getattr(getattr(each, section), key) for each in (begun, config))
        told.append(f"{name}: {shown(was)} (the default is {shown(now)})")
    return "; ".join(told)


def _stored(path: Path) -> Config:
    """Return the config that a run was begun with; keys that did not exist then are as all runs were (`UNKNOWN`).

    Raises:
        ConfigError: it is damaged.
    """
    config = load_config(path)
    for (section, key), was in UNKNOWN.items():
        part = getattr(config, section)
        if key not in part.model_fields_set:  # a run's own file names every key
            config = config.model_copy(update={section: part.model_copy(update={key: was})})
    return config


def _check_kinds(run: Path) -> None:
    """Check that what has the name of a file of a run is one, and what has that of a folder too."""
    checkpoints = [p.relative_to(run).as_posix() for p in (run / "checkpoints").glob("*.ckpt")]
    for names, kind in (((*FILES, *checkpoints), "file"), (FOLDERS, "folder")):
        for path in (run / name for name in names):
            if path.exists() and not (path.is_file() if kind == "file" else path.is_dir()):
                raise OutputError(f"{path}: is no {kind}, as it is in a run; move it away, or give another --out")


def make_run(run: Path, config: Config) -> None:
    """Create the run folder, if it does not exist, and write the config to it.

    Raises:
        OutputError: the folder cannot be created.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        with atomic_write(run / "config.yaml", alone=True) as partial:  # first: without it a folder is no run
            partial.write_text(to_yaml(config), encoding="utf-8")
        (run / "checkpoints").mkdir(exist_ok=True)
        write_versions(run)
    except OSError as error:
        raise OutputError(f"{run}: cannot be made ({error.strerror}); give another --out") from None


def take_stages(source: Path, config: Config, *, segmenter: Segmenter, flow: Flow | None) -> dict[str, float]:
    """Load the final weights of another run's first two stages into the networks; return their last figures.

    A stage with 0 steps in this config is skipped: its network starts afresh.

    Raises:
        ConfigError: that run has other data or networks, or did not finish those stages.
    """
    saved, key = source / "config.yaml", f"train.stages_from: {source}"
    if not saved.exists():
        raise ConfigError(f"{key} is not the folder of a run; name one that `geood train` made")
    before = load_config(saved)
    changed = [k for k in _changed(before, config) if _among(k, SHARED) and not _among(k, APART)]
    if flow is None:
        changed = [k for k in changed if not k.startswith("flow.")]
    if changed:
        raise ConfigError(f"{key} was trained with other values of {', '.join(changed)}; give those, or train anew")
    figures, whole = dict[str, float](), {plan.stage: plan.steps for plan in plans(before)}
    others = list[str]()
    for stage, network in (("segmenter", segmenter), ("flow", flow)):
        if network is None or not getattr(config.train, f"{stage}_steps"):
            continue
        state = _finished(source / "checkpoints" / f"{stage}.ckpt", whole.get(stage, 0), key=key)
        state = {k.removeprefix(f"{stage}."): v for k, v in state.items() if k.startswith(f"{stage}.")}
        try:
            network.take_classes(state) if isinstance(network, Segmenter) else network.load_state_dict(state)
        except RuntimeError as error:
            others.append(f"its stage {stage} has other weights than this config's network ({shown(error, most=200)})")
        figures |= last_metrics(source / "metrics.csv", stage)
    if others:
        raise ConfigError(
            f"{key}: the checkpoint of {' and that of '.join(others)}; give a run of this geood, or train anew"
        )
    return figures


def _finished(checkpoint: Path, steps: int, *, key: str) -> dict[str, Any]:
    """Return the weights in a checkpoint of a stage, which must have done `steps` steps."""
    stage = checkpoint.stem
    anew = f"train such a run first, or start the {stage} afresh here with train.{stage}_steps: 0"
    if not checkpoint.exists():
        raise ConfigError(f"{key} has no stage {stage}; {anew}")
    try:
        stored = read_checkpoint(checkpoint)
    except DamagedCheckpoint as error:
        raise ConfigError(f"{key}: {checkpoint.name} cannot be read ({error}); {anew}") from None
    if stored.steps < steps:
        raise ConfigError(
            f"{key} has done {stored.steps} of {steps} steps of its stage {stage}; go on with it (geood train --resume)"
        )
    return stored.weights


def _changed(before: Config, now: Config) -> list[str]:
    """List the keys, as section.key, whose values differ."""
    old, new = (config.model_dump(exclude={"version"}) for config in (before, now))
    return [f"{section}.{key}" for section in new for key in new[section] if new[section][key] != old[section][key]]


def _among(key: str, names: tuple[str, ...]) -> bool:
    return key in names or key.partition(".")[0] in names


def append_metrics(path: Path, stage: str, step: int, figures: dict[str, float]) -> None:
    """Append a row for each figure to metrics.csv."""
    added = [dict(zip(FIELDS, (stage, step, name, f"{value:.6g}"), strict=True)) for name, value in figures.items()]
    _write_rows(path, [*(_metric_rows(path) if path.exists() else ()), *added])


def write_confusion(path: Path, names: Sequence[str], counts: NDArray[np.int64]) -> None:
    """Write the confusion of classes as CSV: a row for each true class, a column for each predicted one, in pixels."""
    with atomic_write(path, alone=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true class", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))


def write_versions(run: Path) -> None:
    """Note in `versions.json` what trains: geood, Python, the packages that matter, and the device."""
    noted = {"geood": __version__, "python": platform.python_version(), "system": platform.platform()}
    noted |= {package: version(package) for package in PACKAGES}
    noted["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    _warn_of_other_versions(run / "versions.json", noted)
    with atomic_write(run / "versions.json", alone=True) as partial:
        partial.write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")


def _warn_of_other_versions(path: Path, now: Mapping[str, str]) -> None:
    """Log a warning if a run was begun by other versions, or on another device: it ends with other weights then."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(before, dict):
        return
    other = [
        f"{what}: {shown(before[what])} before, {now[what]} now"
        for what in now
        if what not in ("system", "python") and what in before and before[what] != now[what]
    ]
    if other:
        log.warning(
            "%s: begun otherwise, so it does not end as an unbroken run would (%s)", path.parent, "; ".join(other)
        )


def trim_metrics(path: Path, stage: str, step: int) -> None:
    """Drop rows of a stage after `step`: they come from steps that are about to be repeated."""
    if path.exists():
        rows = _metric_rows(path)
        kept = [r for r in rows if r["stage"] != stage or int(r["step"]) <= step]
        if len(kept) < len(rows):
            _write_rows(path, kept)


def last_metrics(path: Path, stage: str) -> dict[str, float]:
    """Return the last validation figures of a stage, named `stage/figure`."""
    figures = {}
    for row in _metric_rows(path) if path.exists() else []:
        kind, _, figure = row["figure"].partition("/")
        if row["stage"] == stage and kind == "val":
            figures[f"{stage}/{figure}"] = float(row["value"])
    return figures


def _write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Replace metrics.csv by these rows, atomically."""
    with atomic_write(path, alone=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def _metric_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if tuple(row) != FIELDS or None in row.values():
                raise ValueError(f"a row is not {', '.join(FIELDS)}")
            int(row["step"]), float(row["value"])
    except (OSError, ValueError, csv.Error) as error:
        raise TrainingError(
            f"{path}: is damaged ({shown(error)}); restore it, or remove it to go on without the figures in it"
        ) from None
    return rows
