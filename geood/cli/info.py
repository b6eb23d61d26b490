"""Verb `geood info`: the contents of every kind of file that geood reads or writes, by its ending.

A file that is not geood's own is refused with what it is and which verb takes it. Nothing here is computed: what is
shown was written by another verb. Names and values in files may hold anything, so all is shown cut and escaped.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any
from xml.etree import ElementTree

import typer

from geood.cli.printing import print_bundle, print_pairs
from geood.errors import ConfigError, DataError, counted, shown

MOST_ROWS, MOST_ALL = 5, 20  # rows that are shown of a long table; up to so many all are
MOST_BYTES = 200 << 20  # of a JSON file or of a project's XML that are read
HEAD_BYTES = 4096  # of an HTML page, in which its title stands
RUN_FILES = (
    "config.yaml",
    "versions.json",
    "inputs.json",
    "labels",
    "skipped.csv",
    "split.gpkg",
    "split.csv",
    "samples",
    "metrics.csv",
    "confusion.csv",
    "curves.png",
    "model.safetensors",
    "report.html",
)
# Vector files beside maps: columns of a layer by which they are known, the one that is counted, and what they are.
BESIDE = (
    ({"split"}, "split", "split of a training run: blocks of ground, and crops"),
    ({"class_id", "origin"}, "origin", "labels that geood feedback made of verdicts"),
    ({"row", "col", "height", "width"}, None, "windows without scores"),
)
VIEWED = {".png": "picture", ".webp": "picture", ".qml": "style of QGIS, taken with the layer of the same name"}
FOR_PROGRAMS = 160  # characters that are shown of a text that programs read
KINDS = "a bundle, a config, a score or class raster, polygons, a table, a report, a project, or a folder of these"


def info(file: Annotated[Path, typer.Argument(metavar="FILE", help=f"{KINDS[0].upper()}{KINDS[1:]}.")]) -> None:
    """Show the contents of any file or folder that geood writes."""
    try:
        if file.is_dir():
            _show_folder(file)
        elif file.is_file():
            _SHOWN.get(file.suffix.lower(), _show_bundle)(file)
        else:
            raise DataError(f"{file}: no such file; give {KINDS}")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); check that you may read it") from None


def _show_config(path: Path) -> None:
    from geood.config import load_config, to_yaml

    print(to_yaml(load_config(path)), end="")


def _show_bundle(path: Path) -> None:
    from geood.models import read_header

    print_bundle(read_header(path))


def _show_raster(path: Path) -> None:
    """Show the tags of a score raster or a class raster."""
    from geood.geo.gdal import open_raster
    from geood.geo.score_raster import PREDICT_TAG, RUN_TAG, TABLE_TAG, read_tags, score_tags

    with open_raster(path) as dataset:
        of_classes = dataset.dtypes[0] == "uint8" and "GEOOD_CLASSES" in dataset.tags()
        ours = any(key.startswith("GEOOD_") for key in dataset.tags())
        bands = counted(dataset.count, "band")
        kind = f"{bands} of {dataset.dtypes[0]}, {dataset.width} x {dataset.height} pixels"
    if not ours:
        raise DataError(
            f"{path}: not a raster of geood ({kind}), but perhaps a scene: `geood plan {path}` shows what a model "
            "would make of it, `gdalinfo` what it holds"
        )
    print_pairs({"raster": kind})
    tags = read_tags(path, dtype="uint8" if of_classes else "float32")
    print_pairs(tags | {key: _begun(tags[key]) for key in (PREDICT_TAG, RUN_TAG, TABLE_TAG) if key in tags})
    if not of_classes:
        score_tags(path)  # what is shown may be what is wrong


def _begun(text: str) -> str:
    """Return how a text for programs begins, if it is long: `gdalinfo` shows all of it."""
    return text if len(text) <= FOR_PROGRAMS else f"{text[:FOR_PROGRAMS]}... ({len(text):,} characters, for programs)"


def _show_polygons(path: Path) -> None:
    """Show layers, counts and verdicts of polygons; refuse other vector files with what they are good for."""
    import geopandas
    import pyogrio

    from geood.polygons import is_anomalies

    layers = _layers(path)
    if not is_anomalies(path):
        if _show_beside(path, layers):
            return
        held = ", ".join(shown(name) for name in layers) or "nothing"
        raise DataError(
            f"{path}: a vector file, but without anomalies of geood (layers: {held}); labels belong in data.labels of "
            "a config, an area of interest in --aoi"
        )
    with _opened(path) as plain:
        if path.suffix.lower() == ".parquet":
            frame = geopandas.read_parquet(plain)
        else:
            frame = pyogrio.read_dataframe(plain, layer="anomalies" if "anomalies" in layers else layers[0])
    print_pairs(
        {
            "polygons": f"{len(frame):,}",
            **({"layers": ", ".join(layers)} if layers else {}),
            "crs": "none" if frame.crs is None else frame.crs.to_string()[:80],
            "columns": ", ".join(column for column in frame.columns if column != "geometry"),
        }
    )
    if len(frame):
        print_pairs({"model": ", ".join(sorted(map(str, frame["model"].dropna().unique()))[:MOST_ROWS])})
        if {"rank", "area_m2", "class_name", "score_p95"} <= set(frame.columns):  # of which a person may remove some
            print_pairs(_areas(frame))
        print_pairs(_judged(frame))
    if path.suffix.lower() == ".gpkg":
        _show_run_table(path)


def _areas(frame: Any) -> dict[str, str]:
    """Return the areas of polygons and what the first by rank is, as lines; photographs have pixels and no metres."""
    from geood.calibration import in_digits

    first, area = frame.sort_values("rank").iloc[0], frame["area_m2"]
    sizes = f"{area.sum():,.0f} m2 in all, {in_digits(area.min())} m2 the smallest", f"{in_digits(first['area_m2'])} m2"
    if area.isna().all() and "area_px" in frame.columns:
        area = frame["area_px"]
        sizes = f"{area.sum():,.0f} px in all, {area.min():,.0f} px the smallest", f"{first['area_px']:,.0f} px"
    return {"area": sizes[0], "rank 1": f"{first['class_name']}, score {first['score_p95']:.4g}, {sizes[1]}"}


def _show_beside(path: Path, layers: list[str]) -> bool:
    """Show a split, labels of a feedback or failed tiles, and return True; False if the file is none of these."""
    import pyogrio

    with _opened(path) as plain:
        held = {name: pyogrio.read_dataframe(plain, layer=name, read_geometry=False) for name in layers}
    for columns, kind, meaning in BESIDE:
        if held and all(columns <= set(frame.columns) for frame in held.values()):
            counts = {name: str(len(frame)) for name, frame in held.items()}
            if kind:
                kinds = {name: frame[kind].value_counts().items() for name, frame in held.items()}
                counts = {k: f"{counts[k]} ({', '.join(f'{n} {shown(one)}' for one, n in kinds[k])})" for k in kinds}
            print_pairs({"polygons": meaning, **counts})
            return True
    return False


def _layers(path: Path) -> list[str]:
    """Return the layers of a vector file with geometry; none of Parquet, which has no names."""
    import pyogrio

    if path.suffix.lower() == ".parquet":
        return []
    with _opened(path) as plain:
        return [str(name) for name, kind in pyogrio.list_layers(plain) if kind is not None]


@contextmanager
def _opened(path: Path) -> Iterator[Path]:
    """Yield a plain path of a vector file, which is read without a server; a failure is an error of the file."""
    from geood.geo.ogr import local_file

    try:
        with local_file(path) as plain:
            yield plain
    except (OSError, RuntimeError, ValueError) as error:  # pyogrio's errors are RuntimeErrors, pyarrow's ValueErrors
        raise DataError(f"{path}: cannot be read as a vector file ({shown(error)}); copy it again") from None


def _judged(frame: Any) -> dict[str, str]:
    """Return how many polygons a person has judged, if the file asks for it."""
    if "verdict" not in frame.columns:
        return {}
    given = frame["verdict"].dropna()
    given = given[given.astype(str).str.strip() != ""]
    counts = ", ".join(f"{n} {shown(name)}" for name, n in given.value_counts().items())
    return {
        "judged": f"{len(given)} of {len(frame)}" + (f" ({counts}); geood audit tells what they say" * bool(counts))
    }


def _show_run_table(path: Path) -> None:
    """Show the verdicts on the scenes of a GeoPackage."""
    from geood.geo.gpkg import open_read_only

    with open_read_only(path) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "run" not in tables:
            return
        database.row_factory = sqlite3.Row
        for row in database.execute("SELECT * FROM run LIMIT ?", (MOST_ROWS,)):
            known = dict(row)
            cut = known.get("threshold")
            numbers = {"threshold": f"{cut:.6g}"} if isinstance(cut, int | float) else {}
            words = {key: known[key] for key in ("answer", "why") if known.get(key)}
            print_pairs({"scene": known.get("scene"), **numbers, **words})


def _show_table(path: Path) -> None:
    """Show what a CSV file is, its columns and its last rows."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); copy it again") from None
    columns = list(rows[0]) if rows else []
    meanings = (
        ({"stage", "step", "figure", "value"}, "figures of a training run, a row for each epoch and figure"),
        ({"scene", "threshold"}, "summary of predictions, a row for each scene"),
        ({"true class"}, "confusion of a training run: pixels of each true class by predicted class"),
        ({"path", "why"}, "images and labels that could not be read"),
        ({"image", "split"}, "photographs of a training run, a row for each"),
        ({"image"}, "figures of an evaluation, a row for each image"),
        ({"scene"}, "figures of an evaluation, a row for each scene or thing"),
    )
    meaning = next((text for wanted, text in meanings if wanted <= set(columns)), None)
    if meaning is None:
        raise DataError(f"{path}: not a table of geood (columns: {', '.join(map(shown, columns)) or 'none'})")
    print_pairs({"table": meaning, "rows": len(rows), "columns": ", ".join(map(str, columns))})
    shown_rows = rows if len(rows) <= MOST_ALL else rows[-MOST_ROWS:]
    if len(shown_rows) < len(rows):
        print_pairs({"shown": f"the last {len(shown_rows)}"})
    for row in shown_rows:
        print_pairs({"row": ", ".join(f"{key} {value}" for key, value in row.items() if value)})


def _show_json(path: Path) -> None:
    """Show a JSON file: polygons, or the keys and plain values of an object."""
    if path.suffix.lower() == ".geojson":
        _show_polygons(path)
        return
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: has more than {MOST_BYTES >> 20} MiB, which no result of geood has")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({shown(error)}); copy it again") from None
    if isinstance(held, dict) and held.get("type") == "FeatureCollection":
        _show_polygons(path)
        return
    entries = held[:MOST_ROWS] if isinstance(held, list) else [held]
    item = held if isinstance(held, dict) else {f"entry {i}": one for i, one in enumerate(entries, 1)}
    if item.get("type") == "Feature" and isinstance(item.get("properties"), dict):
        item = {"id": item.get("id"), **item["properties"]}
    print_pairs({str(key): shown(value, most=200) for key, value in item.items()})


_PROJECT_FAILURES = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError),  # of archives: damaged, encrypted
    *(StopIteration, ElementTree.ParseError, ValueError, OSError),
)


def _show_project(path: Path) -> None:
    """Show the layers of a QGIS project, in its order."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".qgs"))
            if archive.getinfo(name).file_size > MOST_BYTES:
                raise DataError(f"{path}: its project has more than {MOST_BYTES >> 20} MiB; QGIS opens it")
            text = archive.read(name).decode("utf-8")
        if "<!ENTITY" in text:
            raise DataError(f"{path}: its project defines entities, which QGIS never writes; do not open it")
        tree = ElementTree.fromstring(text)
    except _PROJECT_FAILURES as error:
        raise DataError(f"{path}: cannot be read as a QGIS project ({shown(error)}); copy it again") from None
    print_pairs({"project": f"of QGIS {tree.get('version', 'unknown')}; open it there"})
    for layer in tree.iter("layer-tree-layer"):
        print_pairs({"layer": f"{layer.get('name')}  {layer.get('source')}"})


def _show_page(path: Path) -> None:
    """Show the title of a report."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8", "replace")
    title = head.partition("<title>")[2].partition("</title>")[0].strip()
    if "geood" not in head:
        raise DataError(f"{path}: a page, but not a report of geood; give {KINDS}")
    print_pairs({"report": title or path.stem, "open": f"in a browser: {path.absolute().as_uri()}"})


def _show_viewed(path: Path) -> None:
    """Say which other program shows a file."""
    suffix = path.suffix.lower()
    print_pairs({"file": VIEWED[suffix] + ("" if suffix == ".qml" else "; any viewer or browser opens it")})


def _show_onnx(path: Path) -> None:
    """Show what an exported ONNX file tells of itself."""
    from geood.export import read_metadata

    print_pairs(read_metadata(path))


def _show_folder(folder: Path) -> None:
    """Show a run folder, or the outputs in another folder."""
    if (folder / "config.yaml").is_file():
        bundle = folder / "model.safetensors"
        files = [name for name in RUN_FILES if (folder / name).exists()]
        print_pairs({"run": folder, "files": ", ".join(files)})
        if (folder / "metrics.csv").is_file():
            _show_table(folder / "metrics.csv")
        if bundle.is_file():
            _show_bundle(bundle)
        else:
            again = f"geood train {quote(str(folder / 'config.yaml'))} --out {quote(str(folder))} --resume"
            print_pairs({"model": f"not finished; go on with: {again}"})
        return
    known = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SHOWN)
    if not known:
        raise ConfigError(f"{folder}: a folder without files of geood; give {KINDS}")
    styles = [path for path in known if path.suffix.lower() == ".qml"]
    known = [path for path in known if path not in styles]  # of which there is nothing to tell
    told = [f"files that `geood info` tells more of: {len(known)}"] if known else []
    told += [f"styles for QGIS: {len(styles)}, taken with the layers of the same names"] if styles else []
    print_pairs({"folder": f"{folder}; {'; '.join(told)}"})
    for path in known[: 10 * MOST_ROWS]:
        print_pairs({path.suffix: path.name})


_SHOWN: dict[str, Callable[[Path], None]] = {
    ".yaml": _show_config,
    ".yml": _show_config,
    ".safetensors": _show_bundle,
    ".tif": _show_raster,
    ".tiff": _show_raster,
    ".gpkg": _show_polygons,
    ".geojson": _show_polygons,
    ".fgb": _show_polygons,
    ".parquet": _show_polygons,
    ".json": _show_json,
    ".csv": _show_table,
    ".qgz": _show_project,
    ".html": _show_page,
    ".onnx": _show_onnx,
    **dict.fromkeys(VIEWED, _show_viewed),
}
