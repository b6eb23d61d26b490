"""Pages of the site that are made when it is built: from the commands, the config's schema, and files above `docs`.

MkDocs calls the functions whose names begin with `on_`. Three pages hold a line `<!-- made: NAME -->`, in whose place
stands what `MADE` gives: so the reference cannot tell anything else than the code. `BESIDE` are texts that have their
place elsewhere in the repository and are pages here too; links to them are turned.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from typer.main import get_command

import geood
from geood.cli.app import app
from geood.config import config_schema

ROOT = Path(__file__).parent.parent
BESIDE = {
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    **{f"benchmarks/{path.name}": f"benchmarks/results/{path.name}" for path in ROOT.glob("benchmarks/results/*.md")},
}
VALUES = {Path: "PATH", str: "TEXT", int: "N", float: "X"}  # shown for values of options
LINK = re.compile(r"(\]\()([^)#\s:]+\.md)(#[^)\s]*)?(\))")
CODE = re.compile(r"(?<!<pre>)<code>([^<]+)</code>")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
MARK = re.compile(r"^<!-- made: ([\w-]+) -->$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the texts that lie above `docs`."""
    from mkdocs.structure.files import File

    for page, place in BESIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put what is made in its place, and turn links between `docs` and what lies above it."""
    return linked(filled(markdown), page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Keep the name of an option in one line: a browser may break it behind each of its hyphens."""
    return CODE.sub(lambda code: OPTION.sub(r'<span class="option">\g<0></span>', code[0]), html)


def filled(markdown: str) -> str:
    """Return a page with its mark replaced by what is made."""
    return MARK.sub(lambda found: MADE[found[1]](), markdown)


def linked(markdown: str, page: str) -> str:
    """Return a page whose links lead to pages of the site, as they lead to files in the repository."""
    here = posixpath.dirname(BESIDE.get(page, f"docs/{page}"))
    pages = {place: name for name, place in BESIDE.items()}

    def turned(found: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(here, found[2]))
        target = pages.get(place, place.removeprefix("docs/") if place.startswith("docs/") else None)
        if target is None:
            return found[0]
        return f"{found[1]}{posixpath.relpath(target, posixpath.dirname(page) or '.')}{found[3] or ''}{found[4]}"

    return LINK.sub(turned, markdown)


def command_line() -> str:
    """Return the reference of all verbs, with their arguments and options."""
    return "\n\n".join(_verb(name, command) for name, command in verbs())


def verbs() -> Iterator[tuple[str, Any]]:
    """Yield each verb of the command line, as it is typed, with its command, in the order of `geood --help`."""
    for name, command in _commands(get_command(app)):
        nested = list(_commands(command))
        yield from ((f"{name} {inner}", each) for inner, each in nested) if nested else [(name, command)]


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    commands = getattr(group, "commands", {})
    yield from ((name, commands[name]) for name in (group.list_commands(None) if commands else ()))


def _verb(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    rows = [(f"`{_plain(p.metavar or p.name.upper())}`", p.help or "") for p in arguments]
    rows += [(f"`{_option(p)}`", _meaning(p)) for p in command.params if p.param_type_name == "option" and not p.hidden]
    typed = [_plain(p.metavar or p.name.upper()) if p.required else f"[{p.name.upper()}]" for p in arguments]
    usage = " ".join(["geood", name, *typed, "[OPTIONS]"])
    lines = [f"## geood {name}", command.help or "", f"```text\n{usage}\n```", "| given | meaning |", "|---|---|"]
    head, table = lines[:3], lines[3:] + [f"| {first} | {_cell(second)} |" for first, second in rows]
    return "\n\n".join([*head, "\n".join(table)])


def _plain(metavar: str) -> str:
    return metavar[1:-1] if metavar[:1] == "{" and metavar[-1:] == "}" else metavar


def _option(option: Any) -> str:
    name = max(option.opts, key=len)
    if option.is_flag:
        return name
    return f"{name} {_plain(option.metavar or _value(option.type_descriptor.annotation))}"


def _value(kind: Any) -> str:
    """Return what is shown for the value of an option that names none: its choices, or a word for its kind."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "/".join(str(choice.value) for choice in kind)
    if choices := get_args(kind):
        return "/".join(map(str, choices)) if all(isinstance(choice, str) for choice in choices) else _value(choices[0])
    return VALUES.get(kind, getattr(kind, "__name__", "VALUE").upper())


def _meaning(option: Any) -> str:
    default = option.default
    told = option.help or ""
    if option.required:
        return f"{told} **Required.**"
    default = default.value if isinstance(default, Enum) else default
    plain = isinstance(default, str | int | float | Path) and not isinstance(default, bool) and str(default) != "."
    return f"{told} Default: `{default}`." if plain else told


def configuration() -> str:
    """Return the reference of all keys of a config, section by section."""
    schema = config_schema()
    sections = ((name, _resolved(part, schema)) for name, part in schema["properties"].items())
    return "\n\n".join(_section(name, part, schema) for name, part in sections if "properties" in part)


def _section(name: str, part: dict[str, Any], schema: dict[str, Any]) -> str:
    required = part.get("required", [])
    rows = [
        f"| `{key}` | {_default(value) if key not in required else '*required*'} | {_cell(_kinds(value, schema))} | "
        f"{_cell(value.get('description', ''))} |"
        for key, value in part["properties"].items()
    ]
    head = ["| key | default | takes | meaning |", "|---|---|---|---|"]
    return f"## {name}\n\n{part.get('description', '')}\n\n" + "\n".join(head + rows)


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else part


def _default(value: dict[str, Any]) -> str:
    if "default" not in value:
        return "none"
    default = value["default"]
    words = {None: "null", True: "true", False: "false", "": '""'}
    text = words.get(default, default) if isinstance(default, str | bool | type(None)) else default
    return f"`{text}`"


def _kinds(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return in words what a key takes: type, choices, range."""
    value = _resolved(value, schema)
    if options := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(dict.fromkeys(_kinds(option, schema) for option in options))
    if choices := value.get("enum") or ([value["const"]] if "const" in value else None):
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = {"integer": "whole number", "boolean": "true or false", "string": "text", "null": "null", "object": "map"}
    if value.get("type") == "array":
        return f"list of {_kinds(value.get('items', {}), schema)}"
    bounds = [
        f"{word} {value[key]:g}"
        for key, word in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in value and abs(value[key]) < 1_000_000
    ]
    multiple = [f"a multiple of {value['multipleOf']:g}"] if "multipleOf" in value else []
    return ", ".join([kind.get(value.get("type", ""), value.get("type", "any")), *bounds, *multiple])


def _cell(text: str) -> str:
    """Return a text as it can stand in a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def public_names() -> str:
    """Return the directives from which the reference of the public names is made."""
    return "\n\n".join(f"::: geood.{name}" for name in sorted(geood.__all__, key=str.lower) if name != "__version__")


MADE: dict[str, Callable[[], str]] = {
    "command-line": command_line,
    "configuration": configuration,
    "public-names": public_names,
}
