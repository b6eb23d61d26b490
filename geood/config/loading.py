"""Loading of YAML config files: base files, `--set` overrides, strict validation with line numbers.

`--set section.key=value` overrides one key for a run, and a file may override keys of another file, its `base`. Values
are not coerced and unknown keys are not ignored: an error names the file, the line, the dotted path, the value given,
the values allowed and the closest existing name. The sections themselves are in `config.sections`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from geood.config.sections import Config, SetConfig
from geood.errors import ConfigError


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
        lines[dotted] = f"--set {override}"
        if dotted == ("data", "root"):
            tree["data"]["root"] = str(Path(str(tree["data"]["root"])).resolve())
    return _validate(tree, source=str(path), lines=lines)


def config_from_json(text: str, *, source: str) -> Config:
    """Parse a config from JSON text as written by `Config.model_dump_json`; `source` names the file in errors.

    Raises:
        ConfigError: the config does not fit this version of geood.
    """
    tree = json.loads(text)
    for key in ("classes", "label_ids"):
        tree["data"][key] = {int(k): v for k, v in _get(tree, ("data", key), {}).items()}
    return _validate(tree, source=source, lines={})


def change_config(config: Config, overrides: Sequence[str]) -> Config:
    """Return a copy of a config with overrides `section.key=value` applied.

    Raises:
        ConfigError: an override is malformed or the config is invalid; the message has one line per error.
    """
    tree = config.model_dump(mode="python")
    lines: dict[tuple[str, ...], str] = {}
    for override in overrides:
        lines[apply_override(tree, override)] = f"--set {override}"
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
    return yaml.safe_dump(config.model_dump(mode="python"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML loader with the floats of YAML 1.2: `1e-4` is a number, not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def _read_with_base(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """Return the mapping in a YAML file merged over that of its base, and the line of each dotted path."""
    tree, lines = _read_yaml(path)
    root = _get(tree, ("data", "root"), None)
    if isinstance(root, str):
        tree["data"]["root"] = str(path.resolve().parent / root)
    if "base" not in tree:
        return tree, lines
    base = tree.pop("base")
    if not isinstance(base, str):
        raise ConfigError(f"{path}, {lines[('base',)]}: base: got {base!r}; give the path of another config")
    if path.resolve() in below:
        raise ConfigError(f"{path}, {lines[('base',)]}: base: {base} leads back to this file; leave it out")
    under, under_lines = _read_with_base(path.parent / base, (*below, path.resolve()))
    if isinstance(tree.get("data"), dict) and isinstance(under.get("data"), dict):
        for key in _other_source(tree["data"]):
            under["data"].pop(key, None)
    for section, keys in tree.items():
        both = isinstance(keys, dict) and isinstance(under.get(section), dict)
        under[section] = under[section] | keys if both else keys
    return under, {at: f"{line} of {base}" for at, line in under_lines.items()} | lines


def _other_source(data: dict[str, Any]) -> tuple[str, ...]:
    """Return the data-source keys of a base that a file replaces by naming data sets or images itself."""
    if "sets" in data:
        named = ("images", "labels", "label_attribute", "label_layer", "classes", "anomaly")
        return (*named, "validation_images", "validation_labels", "test_images", "test_labels")
    return ("kind", "sets", "hold_out", "hold_out_by") if "images" in data else ()


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """Return the mapping in a YAML file and the line of each dotted path."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of a YAML config"
        raise ConfigError(f"{path}: no such config file{hint}")
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        tree = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; a config is YAML, such as configs/aerial.yaml") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}: not valid YAML ({problem}); check indentation and quotes there") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: a config is a mapping with sections such as data and train, got {type(tree).__name__}"
        )
    lines: dict[tuple[str, ...], str] = {}
    _note_lines(node, (), lines, path)
    return tree, lines


def _note_lines(node: yaml.Node | None, at: tuple[str, ...], lines: dict[tuple[str, ...], str], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            if here in lines:
                raise ConfigError(f"{path}, line {key.start_mark.line + 1}: duplicate key {'.'.join(here)}; remove one")
            lines[here] = f"line {key.start_mark.line + 1}"
            _note_lines(value, here, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*at, str(i))] = f"line {value.start_mark.line + 1}"


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
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or len(keys) != 2:
        raise ConfigError(f"--set {override}: the form is section.key=value, for example --set train.seed=1")
    section = tree.setdefault(keys[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"--set {override}: {keys[0]} is not a section in this config")
    try:
        section[keys[1]] = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {override}: the value is not valid YAML; put it in quotes") from None
    return keys


def _validate(tree: dict[str, Any], *, source: str, lines: dict[tuple[str, ...], str]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        faults = [_explain(fault, lines) for fault in error.errors()]
        raise ConfigError("\n".join(f"{source}, {fault}" for fault in faults)) from None


def _explain(fault: Any, lines: dict[tuple[str, ...], str]) -> str:
    """Format a pydantic error as `line N: path: got VALUE; what is allowed`."""
    at = tuple(str(part) for part in fault["loc"] if part != "[key]")
    where = next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), "top")
    path, kind = ".".join(at) or "config", fault["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(at[-1], _keys(at[:-1]), n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join((*at[:-1], near[0]))}?" if near else f"allowed: {', '.join(_keys(at[:-1]))}"
        return f"{where}: {path} is not a key; {hint}"
    if kind == "missing":
        return f"{where}: {path} is missing; it has no default, see configs/aerial.yaml"
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}: {path}: {message}"
    near = []
    if kind == "literal_error":
        near = difflib.get_close_matches(str(fault["input"]), re.findall(r"'([^']+)'", fault["ctx"]["expected"]), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{where}: {path}: got {fault['input']!r}; {message[0].lower()}{message[1:]}{hint}"


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
