"""Verb `geood project`: maps and their scenes as one QGIS project, whenever it is wanted.

It is a verb of its own and no option of `predict`: a project belongs to finished files, whichever command made them, is
made again after `polygonize`, and may hold several maps and scenes that lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geood.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    from geood.geo.qgis.project import ProjectLayer

# Layers of a GeoPackage from the top down, and whether they are ticked: those of a map, and those of a training split.
SHOWN = {"anomalies": True, "sample": False, "failed_tiles": True, "crops": True, "blocks": True}


def project(
    maps: Annotated[
        list[Path],
        typer.Argument(
            metavar="MAP...", help="Polygons or score rasters that geood wrote, or folders of them; also split.gpkg."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="X.qgz", help="The project.")],
    scene: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCENE", help="Image to be shown below, or its folder; repeatable; default: beside the map."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a project that exists.")] = False,
) -> None:
    """Put maps, their scores and scenes into a QGIS project, in their order and with their styles."""
    from geood.atomic import check_output
    from geood.geo.listing import some_of
    from geood.geo.qgis.project import raster_layer, write_project
    from geood.polygons import is_anomalies

    if out.suffix != ".qgz":
        raise ConfigError(f"{out}: a QGIS project ends in .qgz; choose such a name")
    check_output(out, overwrite=overwrite)
    given = [file for path in maps for file in _maps_in(path)]
    rasters = [raster for path in given for raster in _scores_of(path)]
    folders = [Path(each) for each in scene or () if Path(each).is_dir()]
    scenes, lost = _scenes_of(rasters, [each for each in scene or () if Path(each) not in folders], folders)
    groups = {path.stem: _layers(path, scores_shown=not scenes) for path in given}
    if len(groups) < len(given):
        raise ConfigError("two of the maps have the same name; make a project of each")
    if len(groups) == 1:
        groups = {"": next(iter(groups.values()))}
    images = [raster_layer(path, Path(path).name) for path in scenes]
    write_project(groups | {"": [*groups.get("", []), *images]}, out, overwrite=overwrite)
    shown = sum(map(len, groups.values())) + len(images)
    print(f"project    {out}: layers {shown} (maps {len(given)}, scenes {len(images)}); open it in QGIS")
    for path in given:
        if not _scores_of(path) and is_anomalies(path):
            print(printable(f"scores     none beside {path}: put its raster there, and repeat this with --overwrite"))
    where = f"in {', '.join(map(str, folders))}" if folders else "beside the map"
    if not images:
        print(printable(f"scene      none lies {where}; --scene SCENE --overwrite puts it below"))
    elif lost:
        print(printable(f"scene      none of {some_of(lost)} lies {where}; --scene SCENE --overwrite puts it below"))


def _maps_in(path: Path) -> Iterator[Path]:
    """Yield the maps that an argument names: itself, or those in a folder, each by its polygons if it has any.

    Raises:
        DataError: there is none.
    """
    from geood.polygons import maps_in

    if not path.exists():
        raise DataError(f"{path}: no such file; give polygons or a score raster that geood wrote, or a folder of them")
    if not path.is_dir():
        yield path
        return
    polygons, scores = maps_in(path)
    if not polygons and not scores:
        raise DataError(f"{path}: no map of geood in this folder; give one that `geood predict` wrote to")
    shared = {raster for path in polygons for raster in _scores_of(path)}
    yield from (*polygons, *(path for path in scores if path not in shared))


def _layers(path: Path, *, scores_shown: bool) -> list[ProjectLayer]:
    """Return the layers of one map from the top down: polygons, scores, classes."""
    from geood.geo.qgis.project import polygon_layers, raster_layer

    layers = [] if path.suffix == ".tif" else polygon_layers(path, shown=SHOWN)
    rasters = _scores_of(path)
    for scores in rasters:
        of = "" if len(rasters) == 1 else f" of {scores.stem.removeprefix(f'{path.stem}_')}"
        layers.append(raster_layer(scores, f"scores{of}", visible=scores_shown))
        classes = scores.with_suffix(".classes.tif")
        layers += [raster_layer(classes, f"classes{of}", visible=False)] if classes.exists() else []
    return layers


def _scores_of(path: Path) -> list[Path]:
    from geood.polygons import rasters_of

    return [path] if path.suffix == ".tif" else rasters_of(path)


def _scenes_of(rasters: Sequence[Path], given: Sequence[str], folders: Sequence[Path]) -> tuple[list[str], list[Path]]:
    """Return the images that are given and those found by name, and the rasters of maps whose image is not found.

    Where fewer images than maps are given, those of the other maps are looked for; one whose name no map tells may be
    of a map whose image is not found.
    """
    if given and not folders and len(given) >= len(rasters):
        return list(dict.fromkeys(given)), []
    told, names = {raster: _scene_name(raster) for raster in rasters}, {Path(each).name for each in given}
    sought = [raster for raster in rasters if folders or told[raster] not in names]
    found = {raster: _image_of(raster, told[raster], folders) for raster in sought}
    lost = [raster for raster, image in found.items() if image is None and told[raster] not in names]
    images = dict.fromkeys([*given, *(str(image) for image in found.values() if image)])
    return [*images], lost if len(lost) > len(names - {*told.values()}) else []


def _image_of(scores: Path, name: str, folders: Sequence[Path]) -> Path | None:
    """Return the image of a name, if it lies in a folder, or beside the scores of its map."""
    near = [folder / name for folder in folders or [scores.parent]] if name else []
    return next((path for path in near if path.is_file() and path.absolute() != scores.absolute()), None)


def _scene_name(scores: Path) -> str:
    """Return the name of the image that a map was made of, as the tags of its scores tell it; empty if they do not."""
    from geood.geo.score_raster import SCENE_TAG, read_tags

    return Path(read_tags(scores).get(SCENE_TAG, "")).name
