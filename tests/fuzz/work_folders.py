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

import geood.prediction.publication
from fuzz.law import Case
from fuzz.material import HEIGHT, WIDTH, quick_predictions, tiny_bundle
from fuzz.mutations import PATHS, Rng, damage, edited, json_bytes, odd_json, odd_value, pick
from geood.errors import OutputError, TilesFailedError
from geood.prediction import predict
from geood.prediction.journal import _HEADER, _RECORD, MAGIC, Journal
from support.rasters import picture, write_raster

around = quick_predictions
TILES, PUBLISHING = "x.tif", "x.geojson"  # outputs of the run that stops among its tiles, and of the other
RASTERS = ("x.scores.tif", "x.scores.qml", "x.scores.above.qml", "x.scores.classes.tif", "x.scores.classes.qml")
NAMES = {TILES: ["x.tif", "x.qml", "x.above.qml"], PUBLISHING: [PUBLISHING, "x.qml", *RASTERS]}
WORK, JOURNAL, NOTE = ".x.geood", "x.journal", "publishing.json"
MADE, GIVEN = "@MADE@", "@GIVEN@"  # in a stored note, for the folders of the box
VICTIM = "victim.txt"
STRANGE = ("x.txt", "x.tif", ".x", "y.journal", "lock", JOURNAL, NOTE, "mosaic.vrt", ".x.partial.tif", "summary.csv")


class Stock(NamedTuple):
    """A scene and a bundle, the outputs of unbroken runs, and two folders that were left behind, by their files."""

    scene: Path
    bundle: Path
    outputs: dict[str, dict[str, bytes]]
    tiles: dict[str, bytes]
    publishing: dict[str, bytes]


def stock(folder: Path) -> Stock:
    """Make two runs whole, one that stops at its third tile, and one that stops before its outputs get their names."""
    scene, bundle = write_raster(folder / "in" / "scene.tif", picture(HEIGHT, WIDTH)), tiny_bundle(folder)
    outputs = {}
    with quick_predictions():
        for out in NAMES:
            whole = folder / f"whole{out}"
            whole.mkdir()
            predict([scene], whole / out, bundle_path=bundle)
            outputs[out] = {p.name: p.read_bytes() for p in whole.iterdir()}
        append, left = Journal.append, iter(range(2))

        def two(self: Journal, *arguments: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            append(self, *arguments)

        with patch.object(Journal, "append", two):
            tiles = _left_behind(folder / TILES, scene, bundle, KeyboardInterrupt)
        with patch.object(geood.prediction.publication, "put_in_place", side_effect=OutputError("cut short")):
            publishing = _left_behind(folder / PUBLISHING, scene, bundle, OutputError)
    return Stock(scene, bundle, outputs, tiles, publishing)


def case(rng: Rng, stock: Stock) -> Case:
    """Return a work folder that was left behind, damaged or crafted."""
    kind, crafted, link = int(rng.integers(12)), True, None
    out = TILES if kind <= 6 or (kind >= 10 and rng.integers(2)) else PUBLISHING
    files = dict(stock.tiles if out == TILES else stock.publishing)
    if kind <= 5:
        crafted = False
        files[JOURNAL] = (_records_moved if kind <= 1 else damage)(files[JOURNAL], rng)
    elif kind == 6:
        files[JOURNAL] = _crafted(files[JOURNAL], rng)
    elif kind <= 9:
        crafted = kind != 7
        files[NOTE] = odd_json(files[NOTE], rng) if kind == 7 else _odd_note(files[NOTE], rng)
    elif kind == 10:
        files.pop(strange := pick(rng, STRANGE), None)
        files[strange if rng.integers(2) else f"{strange}/x"] = rng.bytes(20)
    else:
        link = pick(rng, (JOURNAL, NOTE, "lock", "x.tif", ".x.partial.tif", ""))
        files = {name: data for name, data in files.items() if link and name != link}
    work = {f"made/{WORK}/{name}": data for name, data in files.items()}
    return Case(work | {f"given/{VICTIM}": b"of value"}, {"out": out, "link": link, "crafted": crafted})


def run(box: Path, options: dict[str, Any], stock: Stock) -> list[str]:
    """Resume the run; a damaged folder costs work at most."""
    out, made = options["out"], box / "made"
    work = made / WORK
    if (note := work / NOTE).is_file():
        text = note.read_bytes().replace(MADE.encode(), str(made).encode())
        note.write_bytes(text.replace(GIVEN.encode(), str(box / "given").encode()))
    if options["link"] == "":
        work.symlink_to(box / "given")
    elif options["link"]:
        (work / options["link"]).symlink_to(box / "given" / VICTIM)
    try:
        predict([stock.scene], made / out, bundle_path=stock.bundle, resume=True)
    except TilesFailedError:
        assert options["crafted"]
        return [p.name for p in made.iterdir()]
    if not options["crafted"]:
        assert {p.name for p in made.iterdir()} >= {*NAMES[out]}
        for name in NAMES[out]:
            assert (made / name).read_bytes() == stock.outputs[out][name], f"{name} is not that of an unbroken run"
    return [*NAMES[out], *([work.name] if (work / "y.journal").exists() else [])]  # work on another scene


def kept(name: str) -> bool:
    """Return whether a name is that of the work folder, which stays after an error."""
    return name == WORK


def _left_behind(folder: Path, scene: Path, bundle: Path, error: type[BaseException]) -> dict[str, bytes]:
    """Return the files of the work folder that a run to `folder/NAME-OF-FOLDER` leaves, which ends with an error."""
    folder.mkdir()
    try:
        predict([scene], folder / folder.name, bundle_path=bundle)
    except error:
        pass
    else:
        raise AssertionError("the run should have ended early")
    files = {p.name: p.read_bytes() for p in (folder / WORK).iterdir()}
    shutil.rmtree(folder)
    return {
        name: data.replace(str(folder).encode(), MADE.encode()) if name == NOTE else data
        for name, data in files.items()
    }


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
    """Return a journal with records swapped, doubled, cut or dropped, or with junk at its end."""
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
        fields[5:11] = split, len(chunks) - split, 0, zlib.crc32(chunks[:split]), zlib.crc32(chunks[split:]), 0
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
    place = (
        f"{GIVEN}/{VICTIM}",
        f"../given/{VICTIM}",
        f"{MADE}/../given/{VICTIM}",
        f"{GIVEN}/y.failed_tiles.geojson",
        *PATHS,
    )
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
