"""A bundle may be given as an object, a file or the folder of a run, with the same map; values show as HTML."""

import dataclasses
import shutil

import pytest
import rasterio

import geood
from geood.errors import BundleError, ConfigError
from geood.models import bundle_of, bundle_path_of, takes_bundle
from geood.notebook import html_table, html_text
from geood.prediction import predict
from support.rasters import picture, write_raster


@pytest.fixture
def run(tmp_path, bundle_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(bundle_path, folder / "model.safetensors")
    return folder


def test_an_object_a_file_and_a_run_are_one_bundle(run, bundle_path, bundle):
    assert bundle_of(bundle) is bundle and bundle_path_of(run) == run / "model.safetensors"
    assert bundle_of(run).identity == bundle_of(str(bundle_path)).identity == bundle.identity
    with pytest.raises(ConfigError, match="no model: give bundle="):
        bundle_path_of(None)
    with pytest.raises(BundleError):
        bundle_of(run / "none.safetensors")


def test_a_function_gets_a_path_while_it_runs(run, bundle):
    @takes_bundle
    def seen(*, bundle=None, bundle_path=None):
        assert bundle_path is None
        return (bundle, bundle is not None and bundle.is_file())

    assert seen() == (None, False)
    assert seen(bundle=str(run)) == seen(bundle_path=run) == (run / "model.safetensors", True)
    path, there = seen(bundle=bundle)
    assert there and not path.exists()
    with pytest.raises(ConfigError, match="former name"):
        seen(bundle=run, bundle_path=run)


def test_maps_of_each_are_the_same(run, bundle, tmp_path):
    scene = write_raster(tmp_path / "s.tif", picture(64, 64))
    maps = []
    for i, given in enumerate((bundle, run, run / "model.safetensors")):
        [made] = predict([scene], tmp_path / f"{i}.tif", bundle=given)
        with rasterio.open(made.scores) as scores:
            maps.append(scores.read(1))
        assert "valid pixels" in made._repr_html_() and f"{i}.tif" in made._repr_html_()
    assert (maps[0] == maps[1]).all() and (maps[1] == maps[2]).all()


def test_values_show_as_html_without_markup_of_their_own(bundle):
    assert "<th>classes</th><td>land, road, roof</td>" in bundle._repr_html_()
    assert all(f"<th>threshold at {rate}</th>" in bundle._repr_html_() for rate in bundle.thresholds)
    shown = html_table("<b>", {"a<": None, "n": 1 / 3, "x": "<script>" + "y" * 500})
    assert "<script>" not in shown and "0.333333" in shown and len(shown) < 500
    assert html_text("t", "a < b\n  c").endswith("<pre>a &lt; b\n  c</pre>")


def test_a_bundle_in_a_console_is_one_line(bundle):
    """Its networks and what was measured fill hundreds of screens."""
    assert repr(bundle) == str(bundle) == f"ModelBundle({bundle.identity}: land, road, roof; jsd)"
    assert repr(dataclasses.replace(bundle, identity="")) == "ModelBundle(not saved: land, road, roof; jsd)"


def test_errors_and_options_are_public():
    assert issubclass(geood.DataError, geood.GeoodError) and geood.SceneOptions(bands="3,2,1").bands == "3,2,1"
