"""YAML as configs use it: the core schema of YAML 1.2, bounded in depth and size, each value with its line.

PyYAML reads YAML 1.1, where `no` is false, `010` is 8 and `1:30` is 90. Here they are the text "no", the number 10 and
the text "1:30". A config may come from anybody, so nesting, aliases and tags are bounded before any value is made.
Nothing is known of sections and keys.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.error import Mark, MarkedYAMLError
from yaml.reader import ReaderError

from geood.errors import ConfigError, shown

MOST_BYTES = 1_000_000  # of a file; the longest config of a run has a few thousand
MOST_VALUES = 20_000  # with aliases written out
DEEPEST = 20  # mappings and lists within each other; a config has four
PLAIN_TAGS = (None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
# The core schema (YAML 1.2.2, 10.3.2): tag, pattern, first characters; and the merge key, which anchors are used with.
CORE = (
    ("null", r"(?:~|null|Null|NULL|)", [*"~nN", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", [*"tTfF"]),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", [*"-+0123456789"]),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", [*"-+."]),
    ("merge", r"<<", ["<"]),
)
UNREADABLE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udc7f\\udd00-\\udfff]"
)  # \\udc80 to \\udcff: bytes of file names
MOST_DIGITS = 100
Lines = dict[tuple[str, ...], str]


class _Loader(yaml.SafeLoader):
    """Loader of PyYAML with the core schema, which refuses tags, deep nesting and unprintable text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - filled below

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in PLAIN_TAGS:
            raise _fault(f"the tag {shown(event.tag)} has no use here; leave it out", event.start_mark)
        self._depth += 1
        if self._depth > DEEPEST:
            raise _fault(f"nested more than {DEEPEST} deep", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and UNREADABLE.search(node.value):
            raise _fault(f"{shown(node.value)} holds a character that cannot be shown", node.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Dumper that puts text in quotes where YAML 1.1 or 1.2 would take it for something else."""


for _tag, _pattern, _first in CORE:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}$"), _first)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.lower()
    if len(text) > MOST_DIGITS:
        raise _fault(f"{shown(text)} is a number of {len(text)} digits", node.start_mark)
    return int(text[2:], 16 if text[1] == "x" else 8) if text[:2] in ("0x", "0o") else int(text)


def _float_number(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _float_number)


def read_value(text: str) -> tuple[Any, Lines]:
    """Return the value that a YAML text holds, and the line of each dotted path, such as "line 3".

    Raises:
        YAMLError: the text is not valid YAML, or beyond the bounds of this room; `problem_mark` tells the place.
    """
    lines: Lines = {}
    try:
        loader = _Loader(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position)
        character = shown(chr(error.character) if isinstance(error.character, int) else error.character)
        raise _fault(f"the character {character} is not allowed", Mark("", 0, line, 0, None, 0)) from None
    node = loader.get_single_node()
    if node is None:
        return None, lines
    _measure(node, {})
    _note(loader, node, at=(), lines=lines)
    return loader.construct_document(node), lines


def read_text(path: Path) -> str:
    """Read a config file, of bounded size.

    Raises:
        ConfigError: it cannot be read, is too large, or is not a text file.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{shown(str(path), most=500)}: is no file; give the path of a YAML config")
            data = file.read(MOST_BYTES + 1) or b""
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{shown(str(path), most=500)}: cannot be read ({shown(why)}); give a YAML config") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{path}: larger than {MOST_BYTES:,} bytes, so no config; a config is YAML, such as `geood init` writes"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; a config is YAML, such as `geood init` writes") from None


def dump(tree: Any) -> str:
    """Return a tree of plain values as YAML text that `read_value` reads back to an equal one."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _fault(problem: str, mark: Mark | None) -> MarkedYAMLError:
    return MarkedYAMLError(problem=problem, problem_mark=mark)


class _Size(NamedTuple):
    values: int
    depth: int


def _measure(node: yaml.Node, known: dict[int, _Size | None]) -> _Size:
    """Return the number of values in a node and their depth, with every alias written out.

    Raises:
        MarkedYAMLError: there are too many, they are too deep, or a value holds itself.
    """
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise _fault("an alias leads back to the value that holds it", node.start_mark)
        return size
    known[id(node)] = None  # at work
    within: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        within = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        within = node.value
    sizes = [_measure(part, known) for part in within]
    size = _Size(1 + sum(s.values for s in sizes), 1 + max((s.depth for s in sizes), default=0))
    if size.values > MOST_VALUES:
        raise _fault(f"more than {MOST_VALUES:,} values, with aliases written out", node.start_mark)
    if size.depth > DEEPEST:
        raise _fault(f"nested more than {DEEPEST} deep, with aliases written out", node.start_mark)
    known[id(node)] = size
    return size


def _note(loader: _Loader, node: yaml.Node, *, at: tuple[str, ...], lines: Lines) -> None:
    """Note the line of each value below a node.

    Raises:
        MarkedYAMLError: a key is there twice.
    """
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault("a key is a list or a mapping, and names are text or numbers", key.start_mark)
            name = key.value if key.tag.endswith(":merge") else loader.construct_object(key)
            here = (*at, str(name))
            if name in seen:
                raise _fault(f"duplicate key {'.'.join(map(shown, here))}; remove one", key.start_mark)
            seen.add(name)
            lines[here] = f"line {key.start_mark.line + 1}"
            _note(loader, value, at=here, lines=lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*at, str(i))] = f"line {value.start_mark.line + 1}"
            _note(loader, value, at=(*at, str(i)), lines=lines)
