"""Laws of a run's inputs: other files are refused, and what was burnt into the run is told by its name."""

import json
import os
import shutil

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy as copy_raster

from geood.errors import DataError, OutputError
from geood.training.inputs import NOTE, check_inputs, inputs_of, note_inputs


@pytest.fixture
def begun(tmp_path):
    """A run that notes an image and burnt labels, and these files."""
    run, image = tmp_path / "run", tmp_path / "a.tif"
    burnt = run / "labels" / "a.0123456789abcdef.tif"
    burnt.parent.mkdir(parents=True)
    image.write_bytes(b"pixels")
    burnt.write_bytes(b"ids")
    note_inputs(run, inputs_of(run, [image, burnt, image]))
    return run, image, burnt


def test_the_same_files_are_taken(begun):
    run, image, burnt = begun
    os.utime(burnt)  # made again from the same shapes
    check_inputs(run, inputs_of(run, [image, burnt]))
    assert list(json.loads((run / NOTE).read_text())) == [str(image), "labels/a.0123456789abcdef.tif"]


@pytest.mark.parametrize("change", ["pixels", "time", "gone", "more", "shapes"])
def test_other_files_are_refused_and_taken_without_the_note(begun, change):
    run, image, burnt = begun
    files = [image, burnt]
    if change == "pixels":
        image.write_bytes(b"more pixels")
    elif change == "time":
        os.utime(image, ns=(1, 1))
    elif change == "gone":
        files.remove(image)
    elif change == "more":
        files.append(shutil.copy(image, image.with_name("b.tif")))
    else:
        files[1] = burnt.rename(burnt.with_name("a.fedcba9876543210.tif"))
    now = inputs_of(run, files)
    with pytest.raises(OutputError, match=r"was begun with other files, \d of \d differ.* remove .*inputs\.json"):
        check_inputs(run, now)
    (run / NOTE).unlink()
    check_inputs(run, now)


def test_what_was_noted_at_the_beginning_stays(begun):
    run = begun[0]
    note = (run / NOTE).read_text()
    note_inputs(run, {})
    assert (run / NOTE).read_text() == note


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_damaged_note_is_told(begun, text):
    run, image, burnt = begun
    (run / NOTE).write_text(text)
    with pytest.raises(OutputError, match=r"is damaged .*; remove it"):
        check_inputs(run, inputs_of(run, [image, burnt]))


def test_what_a_vrt_is_read_from_counts_without_statistics_beside_it(tmp_path):
    image, mosaic, run = tmp_path / "a.tif", tmp_path / "all.vrt", tmp_path / "run"
    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32643"}
    with rasterio.open(image, "w", **profile, transform=rasterio.Affine(1, 0, 0, 0, -1, 0)) as file:
        file.write(np.ones((1, 8, 8), np.uint8))
    copy_raster(image, mosaic, driver="VRT")
    run.mkdir()
    note_inputs(run, inputs_of(run, [mosaic]))
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset/>")
    check_inputs(run, inputs_of(run, [mosaic]))
    os.utime(image, ns=(1, 1))
    with pytest.raises(OutputError, match=r"begun with other files, 1 of 2 .*a\.tif"):
        check_inputs(run, inputs_of(run, [mosaic]))


def test_a_file_that_is_gone_is_told(begun):
    run, image, burnt = begun
    image.unlink()
    with pytest.raises(DataError, match=r"a\.tif: cannot be looked at"):
        inputs_of(run, [image, burnt])
