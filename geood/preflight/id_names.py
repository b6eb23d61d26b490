"""Names of class ids that lie beside a raster: what GDAL, Esri and QGIS keep of them in files of their own.

Read are, in this order, `x.tif.aux.xml` (a raster attribute table, else category names), `x.tif.vat.dbf` (the attribute
table of Esri), and `x.qml` (the labels of a paletted style of QGIS). A name that is only its number is none. The files
may be anyone's: their size is bounded, and XML that defines entities is not read.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError

from geood.config import folded
from geood.constants import IGNORE
from geood.errors import DataError, counted, printable
from geood.geo.ogr import local_file

NAMING = ("class_name", "classname", "class", "label", "category", "name", "landcover", "land_cover", "type")
VALUING = ("value", "id", "class_id")
MOST_BYTES = 4 * 2**20  # a larger file of names is none
MOST_TOLD = 3  # files that cannot be read and are named
MOST_CHARACTERS = 200  # of a name, as in a config
TEXT, NAME, EXACT = "2", "2", "5"  # GDAL's numbers for a column of text, of names, and of values
_FAILURES = (expat.ExpatError, ElementTree.ParseError, DataSourceError, DataLayerError, DataError, OSError, ValueError)
Names = dict[int, str]
Row = tuple[Any, Any]


def names_of_ids(paths: Sequence[Path]) -> tuple[Names, tuple[str, ...]]:
    """Return the names that lie beside rasters of class ids, and sentences on what is wrong with them.

    An id that two files name differently has no name, and neither have two ids of one name.
    """
    given: dict[int, list[str]] = defaultdict(list)
    unread: list[str] = []
    for path in paths:
        try:
            found = _names_beside(path)
        except ValueError as error:
            unread.append(printable(f"names of classes are not read: {error}"))
            continue
        for class_id, name in found.items():
            given[class_id] += [name] if name not in given[class_id] else []
    more = len(unread) - MOST_TOLD
    problems = unread[:MOST_TOLD] + (
        [f"names beside {counted(more, 'more label file')} are not read"] if more > 0 else []
    )
    for class_id, own in sorted(given.items()):
        if len(own) > 1:
            said = printable(" and ".join(own[:2]))
            problems.append(f"files beside the labels name {class_id} differently: {said}")
    names = {class_id: own[0] for class_id, own in sorted(given.items()) if len(own) == 1}
    counts = Counter(map(folded, names.values()))
    for name in (name for name, number in counts.items() if number > 1):
        alike = ", ".join(str(class_id) for class_id, own in names.items() if folded(own) == name)
        problems.append(printable(f"files beside the labels name {alike} alike: {name}"))
    return {class_id: name for class_id, name in names.items() if counts[folded(name)] == 1}, tuple(problems)


def _names_beside(path: Path) -> Names:
    """Return the names beside one raster, of the first file that has any.

    Raises:
        ValueError: such a file cannot be read.
    """
    readers: tuple[tuple[Path, Callable[[Path], Names]], ...] = (
        (path.with_name(f"{path.name}.aux.xml"), _of_gdal),
        (path.with_name(f"{path.name}.vat.dbf"), _of_esri),
        (path.with_suffix(".qml"), _of_qgis),
    )
    for beside, read in readers:
        if not beside.is_file():
            continue
        try:
            if beside.stat().st_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES // 2**20} MB")
            names = read(beside)
        except _FAILURES as error:
            raise ValueError(f"{beside}: {error}") from error
        if names:
            return names
    return {}


def _of_gdal(path: Path) -> Names:
    """Return the names of a raster attribute table, else the category names, of the first band."""
    band = _parsed(path).find("PAMRasterBand")
    if band is None:
        return {}
    table = band.find("GDALRasterAttributeTable")
    named = _named(_rows(table)) if table is not None else {}
    return named or _named(enumerate(category.text or "" for category in band.iterfind("CategoryNames/Category")))


def _rows(table: ElementTree.Element) -> Iterator[Row]:
    """Yield value and name of each row of a raster attribute table."""
    columns = [
        (
            (field.findtext("Name") or "").strip().casefold(),
            field.findtext("Type") == TEXT,
            (field.findtext("Usage") or "").strip(),
        )
        for field in table.iterfind("FieldDefn")
    ]
    numbers = {name: i for i, (name, text, _) in enumerate(columns) if not text}
    texts = {name: i for i, (name, text, _) in enumerate(columns) if text}
    by_use = {use: i for i, (_, _, use) in reversed([*enumerate(columns)])}
    value, name = by_use.get(EXACT, _first(numbers, VALUING)), by_use.get(NAME, _first(texts, NAMING))
    if value is None or name is None:
        return
    for row in table.iterfind("Row"):
        cells = [cell.text or "" for cell in row.iterfind("F")]
        if len(cells) > max(value, name):
            yield cells[value], cells[name]


def _of_esri(path: Path) -> Names:
    """Return the names of the attribute table that Esri keeps beside a raster.

    Raises:
        ValueError: it ends before its rows do.
    """
    with local_file(path) as plain:
        head = plain.read_bytes()[:12].ljust(12, b"\0")
        _, rows, start, length = struct.unpack("<IIHH", head)
        if start + rows * length > path.stat().st_size:  # pyogrio takes memory for all that it says
            raise ValueError(f"says that it has {rows:,} rows, for which it is too short")
        table = pyogrio.read_dataframe(plain, read_geometry=False)
    columns = {str(column).casefold(): column for column in table.columns}
    value = next((columns[name] for name in VALUING if name in columns), None)
    texts = {name: column for name, column in columns.items() if table[column].dtype.kind not in "iufb"}
    name = _first(texts, NAMING)
    return {} if value is None or name is None else _named(zip(table[value], table[name].fillna(""), strict=True))


def _of_qgis(path: Path) -> Names:
    """Return the labels of a paletted style."""
    styles = (style for style in _parsed(path).iter("rasterrenderer") if style.get("type") == "paletted")
    entries = [] if (first := next(styles, None)) is None else first.iter("paletteEntry")
    return _named((entry.get("value", ""), entry.get("label", "")) for entry in entries)


def _first(columns: Mapping[str, Any], likely: Sequence[str]) -> Any:
    """Return the column with the likeliest name, else the first; None if there is none."""
    return next((columns[name] for name in likely if name in columns), next(iter(columns.values()), None))


def _named(rows: Iterable[Row]) -> Names:
    """Return names by id of (value, name) rows, without ids that labels cannot hold and names that no config can.

    Raises:
        ValueError: a value is no number.
    """
    names: Names = {}
    for value, text in rows:
        number, name = float(value), " ".join(str(text).split())
        if number.is_integer() and 0 <= number <= IGNORE and _is_name(name):
            names.setdefault(int(number), name)
    return names


def _is_name(text: str) -> bool:
    """Return whether a text may name a class: it is not only a number, not endless, and all of it is shown."""
    return 0 < len(text) <= MOST_CHARACTERS and printable(text) == text and not text.replace(".", "", 1).isdigit()


def _parsed(path: Path) -> ElementTree.Element:
    """Return the root of an XML file.

    Raises:
        ValueError: it is in an unknown encoding, or defines entities, of which few bytes make gigabytes.
        ExpatError: it is no XML.
    """
    content, first_look = path.read_bytes(), expat.ParserCreate()
    first_look.EntityDeclHandler = _refuse_entity
    try:
        first_look.Parse(content, True)
    except LookupError as error:
        raise ValueError(str(error)) from None
    return ElementTree.fromstring(content)


def _refuse_entity(name: str, *_: object) -> None:
    raise ValueError(f"defines the entity {name}, as no program that writes such files does")
