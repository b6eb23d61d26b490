"""Loading of YAML config files: base files, `--set` overrides, strict validation with line numbers.

`--set section.key=value` overrides one key for a run, and a file may override keys of another file, its `base`. Values
are not coerced and unknown keys are not ignored: an error names the file, the line, the dotted path, the value given,
the values allowed and the closest existing name. The sections themselves are in `config.sections`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from geood.config.sections import Config, SetConfig
from geood.config.versions import upgraded
from geood.config.yaml_text import Lines, dump, read_text, read_value
from geood.errors import ConfigError, shown

LONGEST_PATH = 500  # characters of a path or a sentence that a message repeats
MOST_FAULTS = 10  # that one message lists
DEEPEST_BASE = 20  # files, each the base of the one before
HINTS = {  # words for what YAML makes of a value, by pydantic's type of error
    "bool_type": "; write true or false",
    "string_type": "; put it in quotes to make it text",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply overrides and validate the result.

    A file may name another one under `base`, relative to itself, and then holds only the keys that differ from it.

    Args:
        path: a YAML file.
        overrides: strings `section.key=value`, applied in this order.

    Returns:
        The config. Its `data.root` is made absolute: a path in a file is relative to the file's folder, a path in an
        override to the current folder.

    Raises:
        ConfigError: the file cannot be read or the config is invalid; the message has one line per error.

    Example:
        >>> import geood
        >>> config = geood.load_config("aerial.yaml", ["train.seed=7", "score.kind=energy"])
        >>> config.train.seed, config.score.kind
        (7, 'energy')
    """
    path = Path(path)
    tree, lines = _read_with_base(path)
    if isinstance(tree.get("data"), dict):
        tree["data"].setdefault("root", str(path.resolve().parent))
    for override in overrides:
        dotted = apply_override(tree, override)
        lines[dotted] = f"--set {shown(override)}"
        if dotted == ("data", "root"):
            tree["data"]["root"] = _absolute(tree["data"]["root"])
    return _validate(tree, source=shown(str(path), most=LONGEST_PATH), lines=lines)


def _absolute(root: object) -> object:
    """Return a folder's absolute path; anything but text is left to validation."""
    return str(Path(os.path.expanduser(root)).resolve()) if isinstance(root, str) else root


def config_from_tree(tree: object, *, source: str) -> Config:
    """Check a config parsed from JSON, as `Config.model_dump` writes it; `source` names the file in errors.

    Raises:
        ConfigError: it is none, or does not fit this version of geood.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: not a mapping with sections such as data and train")
    tree = upgraded(tree, source=source)
    data = tree.get("data")
    if isinstance(data, dict):
        numbered = {
            key: _numbered(data[key]) for key in ("classes", "anomaly", "label_ids") if isinstance(data.get(key), dict)
        }
        tree = tree | {"data": data | numbered}
    return _validate(tree, source=source, lines={})


def _numbered(names: dict[Any, Any]) -> dict[Any, Any]:
    """Return a mapping whose keys are ids or numbers in label files again, which JSON makes text of."""
    return {
        int(key) if re.fullmatch(r"0|-?[1-9][0-9]{0,17}", str(key), re.ASCII) else key: v for key, v in names.items()
    }


def change_config(config: Config, overrides: Sequence[str]) -> Config:
    """Return a copy of a config with overrides `section.key=value` applied.

    Raises:
        ConfigError: an override is malformed or the config is invalid; the message has one line per error.
    """
    tree = config.model_dump(mode="python")
    lines: dict[tuple[str, ...], str] = {}
    for override in overrides:
        lines[apply_override(tree, override)] = f"--set {shown(override)}"
    if config.data.sets:  # derived from the sets, which may have changed
        del tree["data"]["classes"], tree["data"]["anomaly"]
    return _validate(tree, source="the model's config", lines=lines)


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file, for editors."""
    schema = Config.model_json_schema()
    schema["$defs"]["DataConfig"]["required"].remove("classes")  # derived if sets are given
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["base"]}]
    schema["properties"]["base"] = {
        "description": "another config file, whose keys this file overrides",
        "type": "string",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def to_yaml(config: Config) -> str:
    """Return the whole config as YAML text that `load_config` reads back to an equal config."""
    return dump(config.model_dump(mode="python"))


def _read_with_base(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Lines]:
    """Return the mapping in a YAML file merged over that of its base, and the line of each dotted path."""
    tree, lines = _read_yaml(path)
    root = _get(tree, ("data", "root"), None)
    if isinstance(root, str):
        tree["data"]["root"] = str(path.resolve().parent / os.path.expanduser(root))
    if "base" not in tree:
        return tree, lines
    base, place = tree.pop("base"), f"{shown(str(path), most=LONGEST_PATH)}, {lines.get(('base',), 'top')}: base"
    if not isinstance(base, str):
        raise ConfigError(f"{place}: got {shown(base)}; give the path of another config")
    if path.resolve() in below:
        raise ConfigError(f"{place}: {shown(base)} leads back to this file; leave it out")
    if len(below) == DEEPEST_BASE:
        raise ConfigError(
            f"{place}: {shown(base)} is the base of {DEEPEST_BASE} files in a row; leave some of them out"
        )
    beneath = path.parent / os.path.expanduser(base)
    under, under_lines = _read_with_base(beneath, (*below, path.resolve()))
    if isinstance(tree.get("data"), dict) and isinstance(under.get("data"), dict):
        for key in _other_source(tree["data"], under["data"]):
            under["data"].pop(key, None)
    for section, keys in tree.items():
        both = isinstance(keys, dict) and isinstance(under.get(section), dict)
        under[section] = under[section] | keys if both else keys
    return under, {at: f"{line} of {shown(base)}" for at, line in under_lines.items()} | lines


def _other_source(data: dict[str, Any], under: dict[str, Any]) -> tuple[str, ...]:
    """Return the data-source keys of a base that a file replaces by naming data sets or images itself.

    Images in the place of other images are of the same kind.
    """
    if "sets" in data:
        named = ("images", "labels", "classes", "anomaly")
        vectors = ("label_attribute", "label_layer", "label_buffer_m", "background")
        return (
            *named,
            *vectors,
            "validation_images",
            "validation_labels",
            "test_images",
            "test_labels",
            "reviewed_images",
            "reviewed_labels",
        )
    return ("kind", "sets", "hold_out", "hold_out_by") if "images" in data and "sets" in under else ()


def _read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """Return the mapping in a YAML file and the line of each dotted path."""
    named = shown(str(path), most=LONGEST_PATH)
    if not os.path.isfile(path):
        near = _neighbours(path)
        hint = (
            f"did you mean {shown(str(path.parent / near[0]), most=LONGEST_PATH)}?"
            if near
            else "give the path of a YAML config"
        )
        raise ConfigError(f"{named}: no such config file; {hint}")
    try:
        tree, lines = read_value(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"{named}{line}: not valid YAML ({shown(problem, most=200)}); check indentation and quotes there"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{named}: a config is a mapping with sections such as data and train, got {type(tree).__name__}"
        )
    return upgraded(tree, source=f"{named}, {lines.get(('version',), 'top')}"), lines


def _neighbours(path: Path) -> list[str]:
    """Return the name of a config beside a missing one that its name is close to, if there is one."""
    try:
        return difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
    except (OSError, ValueError):  # the folder cannot be listed
        return []


def _get(tree: Any, keys: Iterable[str], default: Any) -> Any:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return default
        tree = tree[key]
    return tree


def apply_override(tree: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set the value of one override `section.key=value` in `tree`, in place; return its path (section, key).

    Raises:
        ConfigError: the override is malformed, or its value is not valid YAML.
    """
    given = f"--set {shown(override)}"
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or len(keys) != 2:
        raise ConfigError(f"{given}: the form is section.key=value, for example --set train.seed=1")
    section = tree.setdefault(keys[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"{given}: {shown(keys[0])} is not a section in this config")
    try:
        section[keys[1]], _ = read_value(text)
    except yaml.YAMLError:
        raise ConfigError(f"{given}: the value is not valid YAML; put it in quotes") from None
    return keys


def _validate(tree: dict[str, Any], *, source: str, lines: Lines) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = [f"{source}, {_explain(fault, lines)}" for fault in found[:MOST_FAULTS]]
        if len(found) > MOST_FAULTS:
            faults.append(f"{source}: and {len(found) - MOST_FAULTS:,} more; correct these first")
        raise ConfigError("\n".join(faults)) from None


def _explain(fault: Any, lines: Lines) -> str:
    """Format a pydantic error as `line N: path: got VALUE; what is allowed`."""
    at = tuple(str(part) for part in fault["loc"] if not str(part).startswith("["))
    where = next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), "top")
    path, kind = ".".join(map(shown, at)) or "config", fault["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(at[-1][:LONGEST_PATH], _keys(at[:-1]), n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join((*at[:-1], near[0]))}?" if near else f"allowed: {', '.join(_keys(at[:-1]))}"
        return f"{where}: {path} is not a key; {hint}"
    if kind == "missing":
        return f"{where}: {path} is missing; it has no default, see {reference_config()}"
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}: {path}: {shown(message, most=LONGEST_PATH)}"
    given = shown(repr(fault["input"]))
    hint = HINTS.get(kind, "")
    if kind == "literal_error":
        near = difflib.get_close_matches(given, re.findall(r"'[^']+'", fault["ctx"]["expected"]), n=1)
        hint = f"; did you mean {near[0].strip(chr(39))}?" if near else ""
    return f"{where}: {path}: got {given}; {message[0].lower()}{message[1:]}{hint}"


def _keys(at: tuple[str, ...]) -> list[str]:
    """Return the names allowed below a path: the sections, or the keys of one section."""
    if not at:
        return list(Config.model_fields)
    if at[:2] == ("data", "sets"):
        return list(SetConfig.model_fields)
    field = Config.model_fields.get(at[0])
    if field is None or len(at) > 1:
        return []
    section = field.annotation if isinstance(field.annotation, type) else get_args(field.annotation)[0]
    return list(section.model_fields)


def reference_config() -> Path:
    """Return the path of `aerial.yaml`, the config that explains every key; the other configs lie beside it.

    In an installed package they are in its folder `configs`, in a checkout beside the package.
    """
    package = Path(__file__).parents[1]
    installed = package / "configs" / "aerial.yaml"
    return installed if installed.is_file() else package.parent / "configs" / "aerial.yaml"
