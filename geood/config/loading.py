"""Config files: read once from YAML, checked strictly, every fault told with its place.

`--set section.key=value` changes one key for a run, and a file may change keys of another, its `base`. Nothing is
coerced and no key is ignored: what is wrong is refused with the file, the line, the dotted path, what came, what is
allowed and the nearest name that exists.
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
    """Read a config file, apply `section.key=value` overrides, check everything.

    A file may name another one under `base`, relative to itself, and then holds only what differs from that, key by
    key. `data.root` comes back absolute: a path in a file starts from that file's folder, one in an override from the
    current folder.

    Raises:
        ConfigError: with one line for each fault.
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
    """A config from JSON text, as `Config.model_dump_json` wrote it; `source` names the file in errors.

    Raises:
        ConfigError: if it does not fit this version of geood.
    """
    tree = json.loads(text)
    for key in ("classes", "label_ids"):
        tree["data"][key] = {int(k): v for k, v in _get(tree, ("data", key), {}).items()}
    return _validate(tree, source=source, lines={})


def change_config(config: Config, overrides: Sequence[str]) -> Config:
    """A config with some values changed by `section.key=value`.

    Raises:
        ConfigError: with one line for each fault.
    """
    tree = config.model_dump(mode="python")
    lines: dict[tuple[str, ...], str] = {}
    for override in overrides:
        lines[apply_override(tree, override)] = f"--set {override}"
    if config.data.sets:  # they follow from the sets, which may have changed
        del tree["data"]["classes"], tree["data"]["anomaly"]
    return _validate(tree, source="the model's config", lines=lines)


def config_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema = Config.model_json_schema()
    schema["$defs"]["DataConfig"]["required"].remove("classes")  # which follow from sets
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["base"]}]
    schema["properties"]["base"] = {"description": "another config, of which this file changes keys", "type": "string"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def to_yaml(config: Config) -> str:
    """The whole config as YAML text that `load_config` reads back to the same value."""
    return yaml.safe_dump(config.model_dump(mode="python"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: `1e-4` is a float here, as people write it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def _read_with_base(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The mapping in a YAML file laid over that of its base, and the place of each dotted path."""
    tree, lines = _read_yaml(path)
    root = _get(tree, ("data", "root"), None)
    if isinstance(root, str):
        tree["data"]["root"] = str(path.resolve().parent / root)
    if "base" not in tree:
        return tree, lines
    base = tree.pop("base")
    if not isinstance(base, str):
        raise ConfigError(f"{path}, {lines[('base',)]}: base: got {base!r}; it is the path of another config")
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
    """Keys of a base that say where its pixels come from, where a file says so itself in the other way."""
    if "sets" in data:
        named = ("images", "labels", "label_attribute", "classes", "anomaly")
        return (*named, "validation_images", "validation_labels", "test_images", "test_labels")
    return ("kind", "sets", "hold_out", "hold_out_by") if "images" in data else ()


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The mapping in a YAML file, and for each dotted path the place it stands at."""
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
                raise ConfigError(f"{path}, line {key.start_mark.line + 1}: {'.'.join(here)} stands here a second time")
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
    """Put one `section.key=value` into the tree; return its path.

    Raises:
        ConfigError: it has another form, or its value is no YAML.
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
    """One fault as `line N: path: what came; what is allowed`."""
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
    """Names that may stand at a path: the sections, or the keys of one section."""
    if not at:
        return list(Config.model_fields)
    if at[:2] == ("data", "sets"):
        return list(SetConfig.model_fields)
    field = Config.model_fields.get(at[0])
    if field is None or len(at) > 1:
        return []
    section = field.annotation if isinstance(field.annotation, type) else get_args(field.annotation)[0]
    return list(section.model_fields)
