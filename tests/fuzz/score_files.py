"""Score files of other tools: .npy headers and bytes, HDF5 with odd data sets and links, GeoTIFFs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fuzz.law import Case
from fuzz.material import HEIGHT, WIDTH, odd_tag, raster_bytes
from fuzz.mutations import Rng, damage, pick
from geood.datasets import Frame
from geood.evaluation.score_files import LARGEST, ScoreFiles

HUGE = 10**7  # a side of which no machine holds the square
TYPES = (
    "<f2",
    "<f4",
    "<f8",
    ">f4",
    "<i1",
    "<u2",
    "<i8",
    "<u8",
    "|b1",
    "<c8",
    "|O",
    "|S3",
    "<U2",
    "<M8[s]",
    "|V4",
    "<f16",
)
VALUES = (0.5, -1.0, 65504.0, 65520.0, 1e300, -(2.0**63), float("nan"), float("inf"), 5e-324)


def stock(_: Path) -> dict[str, bytes]:
    """Return valid score files by suffix."""
    scores = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    return {
        ".npy": _npy(scores),
        ".h5": _hdf5(lambda file: file.create_dataset("value", data=scores)),
        ".hdf5": _hdf5(lambda file: file.create_dataset("value", data=scores, chunks=(8, 8), compression="gzip")),
        ".tif": raster_bytes(scores[None], compress="deflate"),
    }


def case(rng: Rng, stock: dict[str, bytes]) -> Case:
    """Return a score file of the frame `a.png`."""
    suffix, kind = pick(rng, sorted(stock)), int(rng.integers(3))
    data, elsewhere = stock[suffix], False
    if kind == 0:
        data = damage(data, rng)
    elif suffix == ".npy":
        data = _odd_npy(data, rng) if kind == 1 else _npy(_odd_array(rng))
    elif suffix == ".tif":
        data = odd_tag(data, rng) if kind == 1 else raster_bytes(_real(rng)[None])
    else:
        data, elsewhere = _odd_hdf5(rng)
    files = {f"given/scores/a{suffix}": data, "given/other.bin": stock[".h5"]}
    return Case(files, {"elsewhere": elsewhere})


def run(box: Path, options: dict[str, Any], _: Any) -> list[str]:
    """Find and read the scores of the frame, which lie in that one file."""
    frame = Frame("a", box / "given" / "a.png", None)
    scores = ScoreFiles(box / "given" / "scores", [frame]).read(frame, (HEIGHT, WIDTH))
    assert scores.shape == (HEIGHT, WIDTH) and scores.dtype in (np.float16, np.float32)
    assert not options["elsewhere"], "scores of another file"
    assert not (np.abs(scores[np.isfinite(scores)]) > LARGEST).any()
    return []


def _npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def _odd_npy(data: bytes, rng: Rng) -> bytes:
    """Return an .npy file with another header; its length is that of the text, or not."""
    shape = pick(
        rng, (f"({HUGE}, {HUGE})", f"({HEIGHT},)", "(-1, 5)", f"({WIDTH}, {HEIGHT})", "()", "5", "(1e3, 2)", "('x',)")
    )
    text = pick(
        rng,
        (
            f"{{'descr': '<f4', 'fortran_order': {pick(rng, ('False', 'True', '1', 'None'))}, 'shape': {shape}, }}",
            f"{{'descr': '{pick(rng, TYPES)}', 'fortran_order': False, 'shape': ({HEIGHT}, {WIDTH}), }}",
            "{'descr': [('a', '<f4'), ('b', [('c', '<f2')])], 'fortran_order': False, 'shape': (5, 5)}",
            "(" * int(10 ** rng.uniform(0, 3.7)),
            "{'descr': '<f4'}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}",
            "'" * 3,
            "{" + "\\" * 5,
            "\x00",
            "lambda: 0",
        ),
    ).encode()
    text += b" " * int(rng.integers(64)) + pick(rng, (b"\n", b""))
    version = pick(rng, (b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x04\x00", b"\x00\xff"))
    width = 2 if version == b"\x01\x00" else 4
    length = len(text) if rng.integers(8) else int(rng.integers(1 << 16))
    return b"\x93NUMPY" + version + length.to_bytes(width, "little") + text + data[128:]


def _real(rng: Rng) -> Any:
    array = rng.random((HEIGHT, WIDTH)).astype(pick(rng, ("f4", "f8", "i2", "u1")))
    with np.errstate(invalid="ignore", over="ignore"):
        array[:4, :4] = np.array(pick(rng, VALUES)).astype(array.dtype)
    return array


def _odd_array(rng: Rng) -> Any:
    with np.errstate(all="ignore"):
        array = np.zeros(pick(rng, ((HEIGHT, WIDTH), (1, HEIGHT, WIDTH), (HEIGHT,), (), (0, 5), (2, HEIGHT, WIDTH))))
        array[...] = pick(rng, VALUES)
        try:
            return array.astype(pick(rng, TYPES))
        except (TypeError, ValueError):
            return array


def _without_zeros(value: Any) -> Any:
    """Return nested lists without zero bytes in their texts, which HDF5 cannot hold."""
    if isinstance(value, list):
        return [_without_zeros(each) for each in value]
    zero = "\0" if isinstance(value, str) else b"\0"
    return value.replace(zero, zero[:0]) if isinstance(value, (str, bytes)) else value


def _hdf5(fill: Any) -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        fill(file)
    return out.getvalue()


def _odd_hdf5(rng: Rng) -> tuple[bytes, bool]:
    """Return an HDF5 file in which `value` is something else, or lies in a ring, and whether it is in another file."""
    shape = (HEIGHT, WIDTH)

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout(shape=shape, dtype="f4")
        layout[:] = h5py.VirtualSource("../other.bin", "value", shape=shape)
        file.create_virtual_dataset("value", layout)

    def links(file: Any) -> None:
        file["value"], file["other"] = h5py.SoftLink("/other"), h5py.SoftLink("/value")

    def outside(file: Any) -> None:
        file["value"] = h5py.ExternalLink("../other.bin", "value")

    def raw(file: Any) -> None:
        file.create_dataset("value", shape, "f4", external=[("../other.bin", 0, HEIGHT * WIDTH * 4)])

    fills = (
        virtual,
        links,
        outside,
        raw,
        lambda file: file.create_dataset("value", (HUGE, HUGE), "f8", chunks=(64, 64)),
        lambda file: file.create_dataset("value", data=_without_zeros(_odd_array(rng).tolist())),
        lambda file: file.create_dataset("value", data="text"),
        lambda file: file.create_dataset("value", shape=None, dtype="f4"),
        lambda file: file.create_dataset("value", shape, h5py.string_dtype()),
        lambda file: file.create_dataset("value", shape, np.dtype([("a", "f4")])),
        lambda file: file.create_dataset("value", shape, h5py.ref_dtype),
        lambda file: file.create_dataset("value", shape, h5py.vlen_dtype("f4")),
        lambda file: file.create_group("value"),
        lambda file: file.create_dataset("values", shape, "f4"),
        lambda file: file.create_dataset("value", data=_real(rng)),
    )
    fill = pick(rng, fills)
    try:
        data = _hdf5(fill)
    except (TypeError, ValueError):  # HDF5 cannot hold such an array
        data = _hdf5(fills[-1])
    return data, fill in (virtual, outside, raw)
