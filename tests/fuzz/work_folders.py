"""Work folders that `--resume` goes on from: journals, notes of publishing, and files that geood does not make.

A run that is resumed from a damaged folder ends with the outputs of a run that nothing happened to, whatever is left of
the folder. A crafted one, whose checksums are right, may not lead to writing anywhere else.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import geood.prediction.outputs
from fuzz.law import Case
from fuzz.material import HEIGHT, WIDTH, quick_predictions, tiny_bundle
from fuzz.mutations import PATHS, Rng, damage, edited, json_bytes, odd_json, odd_value, pick
from geood.errors import OutputError, TilesFailedError
from geood.prediction import predict
from geood.prediction.journal import _HEADER, _RECORD, MAGIC, Journal
from support.rasters import picture, write_raster

around = quick_predictions
OUT = "x.geojson"
WORK = f"made/.{OUT}.geood"
JOURNAL, NOTE = f"{WORK}/x.journal", f"{WORK}/publishing.json"
NAMES = [OUT, "x.tif", "x.qml", "x.classes.tif", "x.classes.qml"]
MADE, GIVEN = "@MADE@", "@GIVEN@"  # in a stored note, for the folders of the box
VICTIM = "victim.txt"


class Stock(NamedTuple):
    """A scene and a bundle, the outputs of an unbroken run, and two folders that were left behind, by their files."""

    scene: Path
    bundle: Path
    outputs: dict[str, bytes]
    tiles: dict[str, bytes]
    publishing: dict[str, bytes]


def stock(folder: Path) -> Stock:
    """Make one run whole, one that stops at its third tile, and one that stops before its outputs get their names."""
    scene, bundle = write_raster(folder / "in" / "scene.tif", picture(HEIGHT, WIDTH)), tiny_bundle(folder)
    outputs = folder / "whole"
    outputs.mkdir()
    with quick_predictions():
        predict([scene], outputs / OUT, bundle_path=bundle)
        append, left = Journal.append, iter(range(2))

        def two(self: Journal, *arguments: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            append(self, *arguments)

        with patch.object(Journal, "append", two):
            tiles = _left_behind(folder / "tiles", scene, bundle, KeyboardInterrupt)
        with patch.object(geood.prediction.outputs, "_put_in_place", side_effect=OutputError("cut short")):
            publishing = _left_behind(folder / "publishing", scene, bundle, OutputError)
    return Stock(scene, bundle, {p.name: p.read_bytes() for p in outputs.iterdir()}, tiles, publishing)


def case(rng: Rng, stock: Stock) -> Case:
    """Return a work folder that was left behind, damaged or crafted."""
    kind, crafted, links = int(rng.integers(12)), False, {}
    if kind <= 5:
        files = dict(stock.tiles)
        files[JOURNAL] = _records_moved(files[JOURNAL], rng) if kind <= 1 else damage(files[JOURNAL], rng)
    elif kind == 6:
        files, crafted = dict(stock.tiles), True
        files[JOURNAL] = _crafted(files[JOURNAL], rng)
    elif kind <= 9:
        files, crafted = dict(stock.publishing), kind != 7
        files[NOTE] = odd_json(files[NOTE], rng) if kind == 7 else _odd_note(files[NOTE], rng)
    elif kind == 10:
        files = dict(pick(rng, (stock.tiles, stock.publishing)))
        strange = pick(rng, ("x.txt", "x.tif", ".x", "y.journal", "lock/x", "x.journal/x", "mosaic.vrt", "x.partial.tif"))
        if "/" in strange:
            files.pop(f"{WORK}/{strange.split('/')[0]}", None)
        files[f"{WORK}/{strange}"] = rng.bytes(20)
        crafted = True
    else:
        files, crafted = dict(pick(rng, (stock.tiles, stock.publishing))), True
        place = pick(rng, (JOURNAL, NOTE, f"{WORK}/lock", f"{WORK}/x.tif", f"{WORK}/.x.partial.tif", WORK))
        files = {name: data for name, data in files.items() if not name.startswith(place)}
        links[place] = f"given/{VICTIM}" if place != WORK else "given"
    return Case(files | {f"given/{VICTIM}": b"of value"}, {"links": links, "crafted": crafted})


def run(box: Path, options: dict[str, Any], stock: Stock) -> list[str]:
    """Resume the run; a damaged folder costs work at most."""
    note = box / NOTE
    if note.is_file():
        text = note.read_bytes().replace(MADE.encode(), str(box / "made").encode())
        note.write_bytes(text.replace(GIVEN.encode(), str(box / "given").encode()))
    for place, target in options["links"].items():
        (box / place).parent.mkdir(exist_ok=True)
        (box / place).symlink_to(box / target)
    try:
        predict([stock.scene], box / "made" / OUT, bundle_path=stock.bundle, resume=True)
    except TilesFailedError:
        assert options["crafted"]
        return [p.name for p in (box / "made").iterdir()]
    if not options["crafted"]:
        for name in NAMES:
            assert (box / "made" / name).read_bytes() == stock.outputs[name], f"{name} is not that of an unbroken run"
    return NAMES


def kept(name: str) -> bool:
    """Return whether a name is that of the work folder, which stays after an error."""
    return name == Path(WORK).name


def _left_behind(folder: Path, scene: Path, bundle: Path, error: type[BaseException]) -> dict[str, bytes]:
    """Return the files of the work folder that a run leaves which ends with an error."""
    folder.mkdir()
    try:
        predict([scene], folder / OUT, bundle_path=bundle)
    except error:
        pass
    else:
        raise AssertionError("the run should have ended early")
    work = folder / Path(WORK).name
    files = {f"{WORK}/{p.name}": p.read_bytes() for p in work.iterdir()}
    shutil.rmtree(folder)
    return {name: data.replace(str(folder).encode(), MADE.encode()) if name == NOTE else data for name, data in files.items()}


def _records(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return the head of a journal, and its records."""
    length, _ = _HEADER.unpack_from(data, len(MAGIC))
    at = len(MAGIC) + _HEADER.size + length
    head, records = data[:at], []
    while at < len(data):
        *_, one, other, _, _, _ = _RECORD.unpack_from(data, at)
        end = at + _RECORD.size + one + other
        records.append(data[at:end])
        at = end
    return head, records


def _records_moved(data: bytes, rng: Rng) -> bytes:
    """Return a journal with records swapped, doubled, cut, dropped or of another run's head; each is whole or broken."""
    head, records = _records(data)
    at, kind = int(rng.integers(len(records))), int(rng.integers(5))
    if kind == 0:
        records.reverse()
    elif kind == 1:
        records.insert(int(rng.integers(len(records) + 1)), records[at])
    elif kind == 2:
        records[at] = records[at][: int(rng.integers(len(records[at])))]
    elif kind == 3:
        del records[at]
    else:
        records.append(rng.bytes(int(rng.integers(1, 200))))
    return head + b"".join(records)


def _crafted(data: bytes, rng: Rng) -> bytes:
    """Return a journal with an odd field in a record, or an odd key, and a checksum that fits."""
    head, records = _records(data)
    if not rng.integers(3):
        text = json_bytes(edited(json.loads(head[len(MAGIC) + _HEADER.size :]), rng))
        if not rng.integers(3):
            text = odd_json(text, rng)
        return MAGIC + _HEADER.pack(len(text), zlib.crc32(text)) + text + b"".join(records)
    at = int(rng.integers(len(records)))
    mark, tile, *fields = _RECORD.unpack_from(records[at])
    kind = int(rng.integers(4))
    if kind == 0:
        tile = pick(rng, (0, 3, 4, 5, 2**31, 2**32 - 1))
    elif kind == 1:
        fields[0] = pick(rng, (0, -1, 2**62))
    elif kind == 2:
        fields[int(rng.integers(1, 5))] = pick(rng, (float("nan"), float("inf"), 1e300, -1.0))
    else:
        chunks = rng.bytes(int(rng.integers(60)))
        split = int(rng.integers(len(chunks) + 1))
        fields[5:9] = split, len(chunks) - split, zlib.crc32(chunks[:split]), zlib.crc32(chunks[split:])
        records[at] = records[at][: _RECORD.size] + chunks
    new = _RECORD.pack(mark, tile, *fields[:-1], 0)
    records[at] = new[:-4] + zlib.crc32(new).to_bytes(4, "little") + records[at][_RECORD.size :]
    return head + b"".join(records)


def _odd_note(data: bytes, rng: Rng) -> bytes:
    """Return a note that names other outputs, or has values of other types."""
    tree = json.loads(data)
    if rng.integers(2):
        return json_bytes(edited(tree, rng))
    names = [(parent, key) for parent, key in _texts(tree)]
    parent, key = pick(rng, names)
    place = (f"{GIVEN}/{VICTIM}", f"../given/{VICTIM}", f"{MADE}/../given/{VICTIM}", f"{GIVEN}/y.failed_tiles.geojson", *PATHS)
    parent[key] = pick(rng, place) if rng.integers(6) else odd_value(rng)
    return json_bytes(tree)


def _texts(tree: Any) -> list[tuple[Any, Any]]:
    found = []
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        value = tree[key]
        if isinstance(value, str):
            found.append((tree, key))
        elif isinstance(value, (dict, list)):
            found += _texts(value)
    return found
