"""Verbs before a training: `init` writes a first config, `check` looks at a config, `doctor` at this installation."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from geood.cli.options import Overwrite, Settings
from geood.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geood.preflight import FirstConfig, Inputs, Wishes


def init(
    images: Annotated[
        list[str], typer.Option(metavar="SCENES", help="Images: a file, folder or quoted pattern; repeatable.")
    ],
    labels: Annotated[
        list[str],
        typer.Option(metavar="FILE", help="Their labels: rasters of class ids, or a vector file; repeatable."),
    ],
    hold_out: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A class, by name or id, to be found and not learned; repeatable."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=NAME", help="Name of a class that the labels hold as a number; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The config to write.")] = Path("aerial.yaml"),
    label_layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Layer of a vector file with classes; repeatable, later ones on top."),
    ] = None,
    label_attribute: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attribute of a vector file that holds the classes.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what was guessed.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a first config from images and labels: what was found, what was guessed, how long it would train here."""
    from geood.atomic import check_output
    from geood.preflight import Inputs, Wishes, config_lines, first_config, write_config

    check_output(out, overwrite=overwrite)
    wishes = Wishes(tuple(hold_out or ()), _names(name or ()), tuple(label_layer or ()), label_attribute)
    inputs = Inputs.of(images, labels, wishes)
    for label, text in inputs.lines():
        print(f"{label:<11}{printable(text)}")
    if not yes and sys.stdin is not None and sys.stdin.isatty():
        wishes = _asked(inputs, wishes)
    made: FirstConfig = first_config(inputs, wishes)
    for label, text in config_lines(made):
        print(f"{label:<11}{printable(text)}")
    write_config(made, out, overwrite=overwrite)
    print(f"config     {out}")
    written = quote(str(out))
    print(printable(f"next       geood check {written}, then geood train {written}"))


def _names(given: Sequence[str]) -> dict[int, str]:
    """Return names by id, of texts such as `3=water`.

    Raises:
        ConfigError: a text is none of these.
    """
    names = {}
    for text in given:
        number, _, name = (part.strip() for part in text.partition("="))
        if not (number.isascii() and number.isdigit() and name):
            raise ConfigError(f"--name {printable(text)}: needed is a number and its name, such as --name 3=water")
        names[int(number)] = name
    return names


def _asked(inputs: Inputs, wishes: Wishes) -> Wishes:
    """Ask a person what the files do not tell: names of ids, what is to be held out."""
    from geood.preflight import Wishes

    labels, names = inputs.labels, dict(wishes.names)
    if not labels.text and not labels.masks:
        print("The labels hold numbers. Give each its name; Enter takes the one in brackets.")
        for found in labels.classes:
            default = names.get(found.class_id) or labels.id_names.get(found.class_id, f"class_{found.class_id}")
            names[found.class_id] = typer.prompt(f"  {found.class_id} ({100 * found.share:.3g} %)", default=default)
    held = wishes.hold_out
    while not held:
        said = typer.prompt(
            "Hold a class out, to be found as an anomaly? Its name or id, or Enter for none",
            default="",
            show_default=False,
        )
        if not said.strip():
            break
        try:
            held = tuple(_id_of(part, inputs, names) for part in said.split(","))
        except ConfigError:
            known = ", ".join(
                names.get(found.class_id) or labels.name_of(found) or str(found.class_id) for found in labels.classes
            )
            print(printable(f"None of the classes is called {said.strip()}; there are {known}."))
    return Wishes(held, names, wishes.layers, wishes.attribute)


def _id_of(said: str, inputs: Inputs, names: dict[int, str]) -> str:
    """Return what names a class in the labels: the id of a name that was just given, else what was said."""
    told = next((str(i) for i, name in names.items() if name.casefold() == said.strip().casefold()), said.strip())
    inputs.labels.find(told)
    return told


def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The config to look at.")],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="The picture; default: CONFIG.check.png, beside the config.")
    ] = None,
) -> None:
    """Tell in a minute what a training would find: networks, files, classes, crops, time. Draws images with labels."""
    from geood.config import load_config
    from geood.preflight import check_config, check_picture

    picture = out or config.with_suffix(".check.png")
    check_picture(picture)
    for label, text in check_config(load_config(config, settings or ()), picture):
        print(f"{label:<11}{printable(text)}")
    given = "".join(f" --set {quote(setting)}" for setting in settings or ())
    print(printable(f"next       geood train {quote(str(config))}{given}"))


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print all facts as JSON.")] = False,
) -> None:
    """Look at this installation: versions, GPU, drivers of GDAL, PROJ, memory and disk, weights at hand."""
    from geood.preflight import facts

    found = facts()
    if json:
        from json import dumps

        print(dumps([fact._asdict() for fact in found], indent=2, ensure_ascii=False))
    else:
        for fact in found:
            mark = {"fine": "", "note": " (!)", "fault": " (FAULT)"}[fact.state]
            print(f"{fact.name:<22} {printable(fact.value)}{mark}")
            if fact.remedy:
                print(f"{'':<22} {printable(fact.remedy)}")
    faults = [fact for fact in found if fact.state == "fault"]
    if faults:
        raise ConfigError(
            f"wrong here, {len(faults)} of {len(found)} things: " + ", ".join(fact.name for fact in faults)
        )
