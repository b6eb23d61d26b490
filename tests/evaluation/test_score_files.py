"""Laws of score files: what they hold is looked at before it is read, and none leads to another file."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import rasterio

from geood.errors import DataError
from geood.evaluation.score_files import ScoreFiles, read_scores
from support.rasters import write_raster

SHAPE = (6, 9)
SCORES = np.linspace(-2, 3, 54, dtype=np.float32).reshape(SHAPE)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i1", "u2", "i8", "u8"])
@pytest.mark.parametrize("suffix", ["npy", "h5", "tif"])
def test_numbers_of_every_type_come_back(tmp_path, dtype, suffix):
    path, scores = tmp_path / f"a.{suffix}", SCORES.clip(0).astype(dtype)
    if suffix == "npy":
        np.save(path, scores[None, ..., None])
    elif suffix == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("value", data=scores, chunks=(4, 4), compression="gzip")
    elif dtype == "f2":
        pytest.skip("rasterio writes no half precision")
    else:
        write_raster(path, scores.astype(scores.dtype.newbyteorder("=")), crs=None)
    np.testing.assert_array_equal(read_scores(path, SHAPE), scores)


@pytest.mark.parametrize(("dtype", "nodata"), [("f4", -9999), ("f8", -9999), ("i2", -1), ("u1", 0)])
def test_what_a_raster_declares_to_be_no_data_is_no_low_score(tmp_path, dtype, nodata):
    scores = np.where(np.arange(54).reshape(SHAPE) % 5 == 0, nodata, 1 + np.arange(54).reshape(SHAPE)).astype(dtype)
    write_raster(tmp_path / "a.tif", scores, crs=None, nodata=nodata)
    wanted = np.where(scores == nodata, np.nan, scores)
    np.testing.assert_array_equal(read_scores(tmp_path / "a.tif", SHAPE), wanted)
    frame = SimpleNamespace(name="a", image=Path("a.png"))
    np.testing.assert_array_equal(ScoreFiles(tmp_path, [frame]).read(frame, SHAPE), wanted)


@pytest.mark.parametrize("shape", [(1, 9), (6, 1), (1, 1)])
def test_an_axis_of_length_one_is_kept(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    assert read_scores(tmp_path / "a.npy", shape).shape == shape


@pytest.mark.parametrize("dtype", ["i4", "i8", "u8", "f8", "f4"])
def test_numbers_beyond_the_range_are_refused_and_those_at_its_end_are_kept(tmp_path, dtype):
    """Whatever their type: the least int64 has no absolute value, and the largest float64 is no float32."""
    frame = SimpleNamespace(name="a", image=Path("a.png"))
    kind = np.finfo(dtype) if dtype[0] == "f" else np.iinfo(dtype)
    for extreme in (kind.min, kind.max):
        if extreme:
            np.save(tmp_path / "a.npy", np.full(SHAPE, extreme, dtype))
            with pytest.raises(DataError, match="beyond 65504"):
                ScoreFiles(tmp_path, [frame]).read(frame, SHAPE)
    for fine in (65504, 0) if dtype[0] == "u" else (65504, -65504, 0):
        np.save(tmp_path / "a.npy", np.full(SHAPE, fine, dtype))
        read = ScoreFiles(tmp_path, [frame]).read(frame, SHAPE)
        assert read.dtype == np.float32 and (read == fine).all()


@pytest.mark.parametrize(
    ("scale", "shift", "told"),
    [(1, 0, False), (1e-9, 0, True), (1, 12_000, True), (1e-6, 1, True), (0, 3, False), (1e-4, 0, False)],
)
def test_scores_that_float16_cannot_tell_apart_are_told(tmp_path, scale, shift, told):
    frame = SimpleNamespace(name="a", image=Path("a.png"))
    scores = scale * SCORES.astype(float) + shift
    scores[0, 0] = np.nan
    np.save(tmp_path / "a.npy", scores)
    files = ScoreFiles(tmp_path, [frame])
    assert files.lost_in_rounding() is None
    files.read(frame, SHAPE)
    assert bool(files.lost_in_rounding()) == told


def test_scores_up_to_the_largest_float16_are_no_ties(tmp_path):
    scores = np.linspace(0, 65504, np.prod(SHAPE)).reshape(SHAPE)
    np.save(tmp_path / "a.npy", scores)
    files = ScoreFiles(tmp_path, [SimpleNamespace(name="a", image=Path("a.png"))])
    files.read(SimpleNamespace(name="a"), SHAPE)
    assert files.lost_in_rounding() is None


def npy(shape, descr="'<f4'", body=b"", *, version=(1, 0)):
    """A NumPy file with any header."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = len(head).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + head + body


NPY = {
    "empty": b"",
    "no NumPy": b"hello",
    "cut": npy("(6, 9)", body=b"123"),
    "another shape": npy("(9, 6)", body=bytes(216)),
    "huge": npy("(42000, 42000)"),
    "beyond any memory": npy("(10**15, 10**15)"),
    "2^63 rows": npy(f"({2**63}, 9)"),
    "a negative size": npy("(-6, 9)"),
    "a size true": npy("(True, 54)"),
    "flat": npy("(54,)", body=bytes(216)),
    "no axis": npy("()"),
    "a size of 5,000 digits": npy("(" + "1" * 5000 + ",)"),
    "objects": npy("(6, 9)", "'|O'", b"cos\nsystem\n"),
    "complex": npy("(6, 9)", "'<c8'", bytes(432)),
    "text": npy("(6, 9)", "'<U2'", bytes(432)),
    "records": npy("(6, 9)", "[('a', '<f4')]", bytes(216)),
    "an unknown type": npy("(6, 9)", "'<q9'"),
    "a type of any length": npy("(6, 9)", "'|V999999999'"),
    "a type that is none": npy("(6, 9)", "5"),
    "brackets": npy("(" * 9000),
    "open": npy("'''"),
    "minus": npy("-" * 9000 + "1"),
    "a call": npy("exit()"),
    "an odd escape": npy(r"'\d'"),
    "zero bytes": npy("\0"),
    "version 3": npy("(6, 9)", body=bytes(216), version=(3, 0)),
    "version 9": npy("(6, 9)", body=bytes(216), version=(9, 0)),
    "a header of 100,000 characters": npy("(6, 9)" + " " * 100_000, body=bytes(216), version=(2, 0)),
}


@pytest.mark.parametrize("content", NPY.values(), ids=NPY)
def test_a_numpy_file_that_is_none_is_refused_before_its_numbers_are_read(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    refused(path)


def refused(path, match="a"):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=match) as error:
            read_scores(path, SHAPE)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value) and len(str(error.value)) < 500 and str(error.value).isprintable()


def make_hdf5(path, make):
    with h5py.File(path, "w") as file:
        make(file)
    return path


HDF5 = {
    "nothing": lambda file: None,
    "a group": lambda file: file.create_group("value"),
    "another shape": lambda file: file.create_dataset("value", data=SCORES.T),
    "huge": lambda file: file.create_dataset("value", (42000, 42000), "f4", chunks=(1000, 1000), compression="gzip"),
    "huge of six bytes": lambda file: file.create_dataset("value", (10**12, 10**5), "f8", chunks=(100, 100)),
    "a number": lambda file: file.create_dataset("value", data=1.0),
    "no space": lambda file: file.create_dataset("value", data=h5py.Empty("f4")),
    "text": lambda file: file.create_dataset("value", data=np.full(SHAPE, "a", h5py.string_dtype())),
    "references": lambda file: file.create_dataset("value", SHAPE, h5py.ref_dtype),
    "a huge block": lambda file: file.create_dataset("value", SHAPE, "f4", chunks=(9000, 9000), maxshape=(None, None)),
    "a link to itself": lambda file: file.__setitem__("value", h5py.SoftLink("/value")),
    "a ring": lambda file: [
        file.__setitem__("value", h5py.SoftLink("/b")),
        file.__setitem__("b", h5py.SoftLink("/value")),
    ],
    "a link to nowhere": lambda file: file.__setitem__("value", h5py.SoftLink("/no")),
}


@pytest.mark.parametrize("make", HDF5.values(), ids=HDF5)
def test_hdf5_without_just_these_numbers_is_refused(tmp_path, make):
    refused(make_hdf5(tmp_path / "a.h5", make))


@pytest.mark.parametrize("kind", ["a link", "raw bytes", "a virtual data set"])
def test_hdf5_that_leads_to_another_file_is_refused(tmp_path, kind):
    other = make_hdf5(tmp_path / "other.h5", lambda file: file.create_dataset("value", data=SCORES))
    (tmp_path / "other.raw").write_bytes(SCORES.tobytes())

    def make(file):
        if kind == "a link":
            file["value"] = h5py.ExternalLink(str(other), "/value")
        elif kind == "raw bytes":
            file.create_dataset("value", SHAPE, "f4", external=[(str(tmp_path / "other.raw"), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(SHAPE, "f4")
            layout[:] = h5py.VirtualSource(str(other), "value", SHAPE)
            file.create_virtual_dataset("value", layout)

    refused(make_hdf5(tmp_path / "a.h5", make), "into the file itself")


def test_a_raster_is_looked_at_before_it_is_read(tmp_path):
    sparse = {"driver": "GTiff", "count": 1, "dtype": "float32", "SPARSE_OK": "TRUE"}
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", width=42000, height=42000, **sparse):
        pass
    refused(path, r"float32 of shape \(42000, 42000\)")
    refused(write_raster(path, np.stack([SCORES, SCORES])), r"of shape \(2, 6, 9\)")
    refused(write_raster(path, SCORES.astype("complex64")), "complex64")
    block = {"tiled": True, "blockxsize": 16000, "blockysize": 16000}
    with rasterio.open(path, "w", width=9, height=6, **sparse, **block):
        pass
    refused(path, "blocks of 1,024,000,000 bytes")
