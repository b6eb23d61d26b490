"""Commands below `geood data`: list the published data sets that geood knows, and check a local copy of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geood.errors import ConfigError, DataError

data_app = typer.Typer(help="List the published data sets, and check a copy of one.", no_args_is_help=True)


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show everything about one data set.")] = None,
) -> None:
    """List the data sets that geood knows by name, with their source, licence and layout."""
    from geood.catalog import CATALOG, data_set

    if name:
        print(data_set(name).description())
        return
    width = max(map(len, CATALOG))
    for entry in CATALOG.values():
        print(f"{entry.name:<{width}}  {'train, evaluate' if entry.trains else 'evaluate':<15}  {entry.title}")
    print("\n`geood data list NAME` shows the source and licence of a set, and the layout of its folder.")


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `geood data list`.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The folder that holds it.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.label_ids={2: 255}", help="Ids to replace in label files."),
    ] = None,
) -> None:
    """Count the files of a data set, pair images with labels, read all labels, and report what is wrong."""
    from geood.catalog import data_set
    from geood.datasets import check_set

    chosen = data_set(name)
    label_ids: dict[int, int] = {}
    if settings:
        from geood.evaluation import data_settings

        hold_out, label_ids, rest = data_settings(settings)
        if hold_out or rest:
            raise ConfigError(f"--set {settings[0]}: the check takes only data.label_ids")
    checks, faults = check_set(chosen, root, label_ids=label_ids)
    for check in checks:
        print("\n".join(check.lines(chosen)))
    if faults:
        raise DataError(f"{root}: problems found: {len(faults)}\n" + "\n".join(f"  {fault}" for fault in faults))
    print("complete, as far as geood can tell")
