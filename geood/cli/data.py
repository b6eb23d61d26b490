"""The verbs below `geood data`: which published data sets geood knows, and whether a copy of one is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geood.errors import ConfigError, DataError

data_app = typer.Typer(
    help="The published data sets: which there are, and whether yours is whole.", no_args_is_help=True
)


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Say all about one data set.")] = None,
) -> None:
    """The data sets that geood knows by name, with their source, licence and layout."""
    from geood.catalog import CATALOG, data_set

    if name:
        print(data_set(name).description())
        return
    width = max(map(len, CATALOG))
    for entry in CATALOG.values():
        print(f"{entry.name:<{width}}  {'train, evaluate' if entry.trains else 'evaluate':<15}  {entry.title}")
    print("\n`geood data list NAME` says where a set comes from, under which licence, and how its folder must look.")


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `geood data list`.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The folder that holds it.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.label_ids={2: 255}", help="Numbers in label files that stand for others."),
    ] = None,
) -> None:
    """Count the files of a data set, join its pairs, read all its labels, and say what is wrong."""
    from geood.catalog import data_set
    from geood.datasets import check_set

    chosen = data_set(name)
    label_ids: dict[int, int] = {}
    if settings:
        from geood.evaluation import data_settings

        hold_out, label_ids, rest = data_settings(settings)
        if hold_out or rest:
            raise ConfigError(f"--set {settings[0]}: the check takes data.label_ids alone")
    checks, faults = check_set(chosen, root, label_ids=label_ids)
    for check in checks:
        print("\n".join(check.lines(chosen)))
    if faults:
        raise DataError(f"{root}: {len(faults)} things to look at\n" + "\n".join(f"  {fault}" for fault in faults))
    print("whole, as far as geood can tell")
