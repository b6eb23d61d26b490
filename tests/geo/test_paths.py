"""Laws of scenes wherever they lie: names, what tells them from others, and servers that are well, ill and dead."""

import os
import re
import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from geood.errors import DataError
from geood.geo import gdal
from geood.geo.addresses import display_name
from geood.geo.gdal import gdal_env, open_raster, reading
from geood.geo.grid import Window
from geood.geo.paths import ScenePath, fingerprint, gdal_name, is_remote, seen_from, stem, with_retries
from geood.geo.scene import Scene
from geood.geo.vrt import ALLOW
from support.http_server import CUT, DROP, HANG, STALL, serving
from support.rasters import picture, write_raster
from support.threads import in_threads

SIDE = 700


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    """No proxies, no credentials of the machine, and little patience."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith(("AWS_", "GS_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "GDAL_HTTP_RETRY_DELAY": "0.02",
        "GDAL_HTTP_CONNECTTIMEOUT": "2",
        "GDAL_HTTP_LOW_SPEED_TIME": "1",
        "GDAL_HTTP_LOW_SPEED_LIMIT": "5000000",
        "CPL_AWS_AUTODETECT_EC2": "NO",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes in several formats, of the same pixels where the format keeps them."""
    folder = tmp_path_factory.mktemp("served")
    # Tiles that fill more than GDAL fetches with the header.
    noise = np.random.default_rng(0).integers(1, 255, (3, SIDE, SIDE), "uint8")
    write_raster(folder / "a.tif", noise, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    shutil.copy(write_raster(folder / "bucket" / "b c.tif", noise), folder / "strips.tif")
    for name, driver in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.jp2", "JP2OpenJPEG")):
        rasterio.shutil.copy(folder / "a.tif", folder / name, driver=driver)
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        file.write(folder / "a.tif", "deep/a.tif")
    return folder


@pytest.fixture(scope="module")
def running(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture
def server(running):
    running.heal()
    return running


def whole(name):
    with Scene.open(name) as scene:
        pixels, valid = scene.read(scene.grid.window, scene.band_indexes)
    assert valid.all()
    return pixels


def refusal(name):
    with pytest.raises(DataError) as caught:
        whole(name)
    return str(caught.value)


# Names


def test_addresses_become_names_for_gdal():
    for scene, name in {
        "http://host/a.tif": "/vsicurl/http://host/a.tif",
        "https://host/a.tif?sig=a/b&x=1": "/vsicurl/https://host/a.tif?sig=a/b&x=1",
        "HTTPS://host/a.tif": "/vsicurl/https://host/a.tif",
        "s3://bucket/deep/a.tif": "/vsis3/bucket/deep/a.tif",
        "gs://bucket/a.tif": "/vsigs/bucket/a.tif",
        "az://container/a.tif": "/vsiaz/container/a.tif",
        "https://host/a.zip!deep/a.tif": "/vsizip/{/vsicurl/https://host/a.zip}/deep/a.tif",
        "https://host/a.zip/deep/a.tif": "/vsizip/{/vsicurl/https://host/a.zip}/deep/a.tif",
        "https://host/a.zip?sig=1!a.tif": "/vsizip/{/vsicurl/https://host/a.zip?sig=1}/a.tif",
        "zip+https://host/get!a.tif": "/vsizip/{/vsicurl/https://host/get}/a.tif",
        "s3://bucket/a.zip": "/vsizip/{/vsis3/bucket/a.zip}",
        "https://host/odd!name.tif": "/vsicurl/https://host/odd!name.tif",
    }.items():
        assert gdal_name(scene) == name
        assert gdal_name(name) == name
        assert is_remote(name)
        assert gdal_name(Path(scene.replace("HTTPS", "https"))) == name or scene.startswith("zip+")


def test_local_paths_are_absolute_and_name_the_same_file(tmp_path, monkeypatch):
    path = write_raster(tmp_path / "in" / "a!b c.tif", picture(8, 8))
    monkeypatch.chdir(tmp_path)
    names = {gdal_name(s) for s in ("in/a!b c.tif", "./in/../in/a!b c.tif", path, path.as_uri())}
    assert names == {str(path)} == {gdal_name(str(path))}
    assert not is_remote(str(path))
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    assert gdal_name("linked/a!b c.tif") == str(path)
    (tmp_path / "link.tif").symlink_to(path)
    assert gdal_name("link.tif") == str(tmp_path / "link.tif")  # companions lie beside the link


def test_a_raster_in_a_zip_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = picture(8, 9)
    write_raster(tmp_path / "x" / "a.tif", pixels)
    with zipfile.ZipFile("one.ZIP", "w") as one, zipfile.ZipFile("two.zip", "w") as two:
        for file in (one, two):
            file.write("x/a.tif", "deep/a.tif")
            file.writestr("readme.txt", "hello")
            file.writestr("__MACOSX/deep/._a.tif", "")
        two.write("x/a.tif", "b.tif")
    for scene in ("one.ZIP", "one.ZIP/deep/a.tif", "two.zip!deep/a.tif", "zip://two.zip!b.tif", "zip://one.ZIP"):
        np.testing.assert_array_equal(whole(gdal_name(scene)), pixels)
        assert not is_remote(gdal_name(scene))
        assert gdal_name(display_name(gdal_name(scene))) == gdal_name(scene)
    with pytest.raises(DataError, match=r"two\.zip: holds 2 rasters .*name it, as two\.zip/deep/a\.tif"):
        gdal_name("two.zip")
    Path("bad.zip").write_text("hello")
    with pytest.raises(DataError, match=r"bad\.zip: cannot be read as a zip"):
        gdal_name("bad.zip")
    with zipfile.ZipFile("none.zip", "w") as none:
        none.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"holds 0 rasters .*\.tif"):
        gdal_name("none.zip")
    assert "name one raster that is in it" in refusal(gdal_name("two.zip/c.tif"))
    Path("folder.zip").mkdir()
    write_raster(tmp_path / "folder.zip" / "a.tif", pixels)
    np.testing.assert_array_equal(whole(gdal_name("folder.zip/a.tif")), pixels)


def test_what_outputs_are_called(tmp_path, monkeypatch):
    (tmp_path / "tiles").mkdir()
    monkeypatch.chdir(tmp_path / "tiles")
    for scene, name in {
        "a.tif": "a",
        "x/a.b.tif": "a.b",
        "https://host/x/a%20b.tif?sig=1/2.3": "a b",
        "s3://bucket/a.tif": "a",
        "https://host/a.zip!deep/b.tif": "b",
        "a.zip": "a",
        "../tiles/": "tiles",
        ".": "tiles",
        "what?.tif": "what_",
        "/vsizip/{/x/a.zip}/b.tif": "b",
        "/vsizip/{/vsicurl/https://host/a.zip?b=1}": "a",
    }.items():
        assert stem(scene) == name
        assert stem(gdal_name(scene)) == name or scene == "a.zip"


# What tells a scene from others


def same(name, change):
    """Whether the identity of a scene stays through a change."""
    before = fingerprint(name)
    assert fingerprint(name) == before
    change()
    return fingerprint(name) == before


def later(path):
    """Touch a file so that its time differs."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def test_identity_changes_with_the_file_and_only_then(tmp_path):
    path = write_raster(tmp_path / "a.tif", picture(64, 64))
    assert same(str(path), lambda: whole(str(path)))
    assert same(str(path), lambda: (tmp_path / "b.tif").write_bytes(path.read_bytes()))
    assert not same(str(path), lambda: later(path))
    assert not same(str(path), lambda: write_raster(path, picture(64, 64, seed=1)))
    assert same(str(path), lambda: (tmp_path / "a.tif.aux.xml").write_text(_statistics()))  # as programs leave it
    assert not same(str(path), lambda: (tmp_path / "a.tif.aux.xml").write_text(_statistics(nodata=7)))
    with rasterio.open(path) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "c.tif", driver="GTiff")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    before = fingerprint(str(path))
    for file in ("a.tif", "a.tif.aux.xml"):
        (tmp_path / file).rename(moved / file)
    assert fingerprint(str(moved / "a.tif")) == before


def _statistics(nodata=None):
    known = f"<NoDataValue>{nodata}</NoDataValue>" if nodata is not None else ""
    item = '<Metadata><MDI key="STATISTICS_MEAN">3</MDI></Metadata>'
    return f'<PAMDataset><PAMRasterBand band="1">{known}{item}</PAMRasterBand></PAMDataset>'


def test_identity_sees_masks_and_overviews_beside_the_file(tmp_path):
    path = write_raster(tmp_path / "a.tif", picture(300, 300))

    def mask():
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(np.ones((300, 300), bool))

    def overviews():
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2])

    assert not same(str(path), mask) and (tmp_path / "a.tif.msk").exists()
    assert not same(str(path), overviews) and (tmp_path / "a.tif.ovr").exists()
    assert not same(str(path), lambda: later(tmp_path / "a.tif.msk"))
    assert not same(str(path), lambda: later(tmp_path / "a.tif.ovr"))


def test_identity_sees_through_a_vrt_of_a_vrt(tmp_path):
    paths = [write_raster(tmp_path / "deep" / f"{i}.tif", picture(32, 32, seed=i)) for i in range(2)]
    source = "<SimpleSource><SourceFilename relativeToVRT='{}'>{}</SourceFilename><SourceBand>1</SourceBand>"
    band = '<VRTRasterBand dataType="Byte" band="1">{}</VRTRasterBand>'
    vrt = '<VRTDataset rasterXSize="32" rasterYSize="32">{}</VRTDataset>'
    inline = vrt.format(band.format(source.format(0, paths[1]) + "</SimpleSource>")).replace("<", "&lt;")
    sources = [source.format(1, "0.tif"), source.format(0, inline)]
    (tmp_path / "deep" / "in.vrt").write_text(vrt.format(band.format("</SimpleSource>".join([*sources, ""]))))
    (tmp_path / "out.vrt").write_text(vrt.format(band.format(source.format(1, "deep/in.vrt") + "</SimpleSource>")))
    name = str(tmp_path / "out.vrt")
    assert same(name, lambda: write_raster(tmp_path / "deep" / "2.tif", picture(32, 32)))
    for path in paths:
        assert not same(name, lambda path=path: later(path))
    assert not same(name, paths[1].unlink)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_identity_sees_sources_whose_names_are_no_utf_8(tmp_path):
    odd = tmp_path / os.fsdecode(b"\xe9.tif")
    write_raster(tmp_path / "a.tif", picture(32, 32)).rename(odd)
    source = (
        '<SimpleSource><SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
    )
    vrt = '<VRTDataset rasterXSize="32" rasterYSize="32"><VRTRasterBand dataType="Byte" band="1">{}</VRTRasterBand>'
    for name, inner in (("in.vrt", odd.name), ("out.vrt", "in.vrt")):
        text = vrt.format(source.format(inner)) + "</VRTDataset>"
        (tmp_path / name).write_bytes(os.fsencode(text))
    assert not same(str(tmp_path / "out.vrt"), lambda: later(odd))


def test_identity_in_an_archive_is_that_of_the_archive(tmp_path):
    write_raster(tmp_path / "a.tif", picture(32, 32))
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(tmp_path / "a.tif", "a.tif")
    name = gdal_name(archive)
    assert int(fingerprint(name)["bytes"]) == archive.stat().st_size
    assert same(name, lambda: later(tmp_path / "a.tif"))
    assert not same(name, lambda: later(archive))


def test_identity_of_a_remote_scene_is_that_of_its_pixels(folder, server, tmp_path):
    path, name = folder / "changing.tif", "/vsicurl/" + server.url("changing.tif")
    shutil.copy(folder / "a.tif", path)
    assert same(name, lambda: later(path))
    state = fingerprint(name)
    assert "changed" not in state and int(state["bytes"]) == path.stat().st_size
    pixels = whole(str(path))
    pixels[0, SIDE // 2, SIDE // 2] += 1
    assert not same(name, lambda: write_raster(path, pixels, compress="deflate"))
    raw = [pixels, pixels.copy(), pixels.copy()]
    raw[1][2, -SIDE // 6, SIDE // 6] += 1
    found = []
    for one, nodata in ((raw[0], None), (raw[1], None), (raw[2], None), (raw[2], 3)):
        write_raster(path, one, nodata=nodata)
        found.append(fingerprint(name))
    assert found[0] == found[2] and found[0] != found[1] and found[3] not in found[:3]
    asked = len(server.requests)
    fingerprint(name)
    assert len(server.requests) - asked < 20
    with rasterio.MemoryFile((folder / "a.tif").read_bytes()) as memory:
        assert fingerprint(memory.name) == fingerprint(memory.name)


def test_a_vrt_of_remote_files_is_remote_and_told_by_its_pixels(folder, server, tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW, "YES")
    path = folder / "changing.tif"
    write_raster(path, picture(64, 64, bands=1))
    source = f"<SourceFilename>/vsicurl/{server.url('changing.tif')}</SourceFilename><SourceBand>1</SourceBand>"
    band = f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource>{source}</SimpleSource></VRTRasterBand>'
    vrt = tmp_path / "a.vrt"
    vrt.write_text(f'<VRTDataset rasterXSize="64" rasterYSize="64">{band}</VRTDataset>')
    assert is_remote(str(vrt))
    assert same(str(vrt), lambda: None)
    assert not same(str(vrt), lambda: write_raster(path, picture(64, 64, bands=1, seed=1)))
    assert not same(str(vrt), lambda: later(vrt))


# Servers


@pytest.mark.parametrize("name", ["a.tif", "strips.tif", "a.png", "a.jpg", "a.jp2", "a.zip"])
def test_a_healthy_server_gives_what_the_disk_has(folder, server, name):
    np.testing.assert_array_equal(whole(gdal_name(server.url(name))), whole(gdal_name(folder / name)))


def test_a_window_asks_for_a_part_only(server):
    with Scene.open(gdal_name(server.url("a.tif"))) as scene:
        asked = len(server.requests)
        scene.read(Window(0, 0, 100, 100), (1, 2, 3))
    ranges = [r.range.removeprefix("bytes=").split("-") for r in server.requests[asked:] if r.range]
    assert 0 < sum(int(end) - int(start) for start, end in ranges) < 200_000


def test_an_object_store_is_read_through_its_own_interface(folder, server, monkeypatch):
    for name, value in {
        "AWS_S3_ENDPOINT": server.address,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_NO_SIGN_REQUEST": "YES",
    }.items():
        monkeypatch.setenv(name, value)
    name = gdal_name("s3://bucket/b c.tif")
    np.testing.assert_array_equal(whole(name), whole(str(folder / "bucket" / "b c.tif")))
    assert refusal(gdal_name("s3://bucket/none.tif")).startswith("s3://bucket/none.tif: cannot be read as a raster")
    server.fail(503, every=2)
    np.testing.assert_array_equal(whole(name), whole(str(folder / "strips.tif")))
    monkeypatch.delenv("AWS_NO_SIGN_REQUEST")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "YES")
    monkeypatch.setenv("HOME", str(folder))
    assert "AWS_*" in refusal(name)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jp2"])
@pytest.mark.parametrize("plan", [{"every": 2}, {"first": 2}, {"after": 2, "first": 4}], ids=str)
@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_stumbles_is_asked_again(folder, server, name, plan, status):
    server.fail(status, **plan)
    np.testing.assert_array_equal(whole(gdal_name(server.url(name))), whole(str(folder / name)))


@pytest.mark.parametrize("name", ["a.tif", "strips.tif", "a.png", "a.jpg", "a.jp2"])
def test_what_a_broken_server_sends_is_an_error_or_right(folder, server, name):
    """Never wrong pixels in silence; and what failed does not stay failed."""
    wanted, address = whole(str(folder / name)), gdal_name(server.url(name))
    for action in (CUT, DROP, 403):
        for plan in ({"after": 2}, {"after": 3}, {"every": 3}, {"every": 4}):
            server.fail(action, **plan)
            try:
                found = whole(address)
            except DataError:
                server.heal()
                found = whole(address)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{action} {plan}")


@pytest.mark.parametrize("action", [CUT, DROP, STALL, HANG, 403, 404, 503])
def test_reading_goes_on_where_a_server_recovers(folder, server, action):
    """As the engine reads: what failed is closed, and opened anew after a wait."""
    name, opened = gdal_name(server.url("a.tif")), []

    def attempt():
        scene = opened.pop() if opened else Scene.open(name)
        try:
            found = scene.read(Window(100, 100, 300, 300), (1, 2, 3))[0]
        except BaseException:
            scene.close()
            raise
        opened.append(scene)
        return found

    first = attempt()
    server.fail(action, first=2 if action in (HANG, STALL) else 6, method="GET")
    with Scene.open(str(folder / "a.tif")) as scene:
        wanted = scene.read(Window(100, 100, 300, 300), (1, 2, 3))[0]
    np.testing.assert_array_equal(first, wanted)
    opened.pop().close()
    np.testing.assert_array_equal(with_retries(attempt, name=name, attempts=8, wait_s=0.01), wanted)
    assert len(opened) == 1
    opened.pop().close()


def test_threads_read_right_while_a_server_stumbles(folder, server):
    name, wanted, bad = gdal_name(server.url("a.tif")), whole(str(folder / "a.tif")), []
    server.fail(CUT, every=7)

    def work():
        found = with_retries(lambda: whole(name), name=name, attempts=12, wait_s=0.001)
        if not np.array_equal(found, wanted):
            bad.append(found)

    in_threads(work)
    assert not bad


@pytest.mark.parametrize(
    ("action", "plan", "said"),
    [
        (404, {}, r"code: 404\); there is no such file; check the address"),
        (403, {}, r"code: 403\); check the address, GDAL.s credentials"),
        (401, {}, r"code: 401\); check the address, GDAL.s credentials"),
        (500, {}, r"code: 500\); the server is overloaded or failing; try again later"),
        (503, {"after": 2}, r"code: 503\); the server is overloaded or failing"),
        (403, {"method": "GET"}, r"code: 403\); check the address, GDAL"),
        (CUT, {"after": 3, "first": 4}, r"the server answers, but did not send all of it: try again, or download"),
        (HANG, {}, r"too slow.*the server does not answer; try again later, or download the file"),
        (STALL, {"after": 2}, r"too slow.*does not answer|did not send all of it"),
    ],
)
def test_what_a_server_answered_is_told(server, action, plan, said, monkeypatch):
    monkeypatch.setitem(gdal._PROBE, "GDAL_HTTP_LOW_SPEED_TIME", "1")
    server.fail(action, **plan)
    text = refusal(gdal_name(server.url("a.tif") + "?sig=secret"))
    assert text.startswith(f"{server.url('a.tif')}: cannot be read") and "secret" not in text and "/vsi" not in text
    assert re.search(said, text), text


def test_servers_that_cannot_be_used(server):
    server.odd(ranges=False)
    assert "only sends whole files; download the file" in refusal(gdal_name(server.url("a.tif")))
    server.odd(claimed=-1000)
    assert "did not send all of it" in refusal(gdal_name(server.url("a.tif")))
    assert "does not answer; try again later" in refusal("/vsicurl/http://127.0.0.1:9/a.tif")
    assert "no such host" in refusal("/vsicurl/http://no-such-host.invalid/a.tif")
    server.heal()
    (text,) = {refusal(gdal_name(server.url("page.html")))}
    assert "404" in text


def test_a_page_that_is_no_raster(folder, server):
    (folder / "page.html").write_text("<html>sign in</html>" * 100)
    text = refusal(gdal_name(server.url("page.html")))
    assert "not recognized" in text and "give a GeoTIFF" in text and "/vsi" not in text


def test_a_dead_server_ends_in_time(server):
    server.fail(HANG)
    began = time.monotonic()
    refusal(gdal_name(server.url("a.tif")))
    assert time.monotonic() - began < 15


def test_a_file_that_comes_late_is_seen(folder, server):
    name = gdal_name(server.url("late.tif"))
    assert "404" in refusal(name)
    write_raster(folder / "late.tif", picture(20, 20))
    np.testing.assert_array_equal(whole(name), picture(20, 20))
    write_raster(folder / "late.tif", picture(20, 20, seed=5))
    np.testing.assert_array_equal(whole(name), picture(20, 20, seed=5))


# Settings and trying again


def test_the_environment_overrules_settings_for_servers(monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "9")
    with gdal_env("/vsicurl/http://host/a.tif"):
        found = rasterio.env.getenv()
        assert "GDAL_HTTP_MAX_RETRY" not in found
        assert found["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"
        assert found["CPL_VSIL_CURL_NON_CACHED"].startswith("/vsicurl/:")
    with gdal_env("/somewhere/a.tif"):
        assert "GDAL_DISABLE_READDIR_ON_OPEN" not in rasterio.env.getenv()


def test_the_cache_can_be_bounded(monkeypatch):
    monkeypatch.setattr(gdal, "_cache_bytes", gdal.CACHE_BYTES)
    gdal.limit_cache(2**26)
    with gdal_env():
        assert rasterio.env.getenv()["GDAL_CACHEMAX"] == 2**26


def test_trying_again_is_for_remote_scenes_and_their_failures(monkeypatch):
    waits, calls = [], []
    monkeypatch.setattr(time, "sleep", waits.append)

    def failing(times, error):
        def attempt():
            calls.append(1)
            if len(calls) <= times:
                raise error
            return "done"

        calls.clear()
        waits.clear()
        return attempt

    assert with_retries(failing(3, DataError("x")), name="/vsis3/b/a.tif", wait_s=0.5) == "done"
    assert waits == [0.5, 1, 2] and len(calls) == 4
    with pytest.raises(DataError):
        with_retries(failing(4, DataError("x")), name="/vsis3/b/a.tif")
    assert len(calls) == 4
    with pytest.raises(DataError):
        with_retries(failing(1, DataError("x")), name="/a.tif")
    with pytest.raises(ValueError):
        with_retries(failing(1, ValueError("x")), name="/vsis3/b/a.tif")
    assert len(calls) == 1 and not waits


def test_messages_hide_no_local_names_and_tell_no_secrets():
    assert display_name("/vsicurl/https://host/a.tif?sig=secret") == "https://host/a.tif"
    assert display_name("/vsizip/{/vsis3/bucket/a.zip}/b.tif") == "s3://bucket/a.zip!b.tif"
    assert display_name("/what?/a.tif") == "/what?/a.tif"
    assert display_name("https://host/a.zip?sig=secret!b.tif") == "https://host/a.zip"
    with (
        pytest.raises(DataError, match=r"^https://host/a\.tif: cannot be read \(x code: 404\)"),
        reading("/vsicurl/https://host/a.tif?s=1"),
    ):
        raise OSError("x code: 404")


def test_a_vrt_does_not_give_its_sources_away(server, tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW, "YES")
    source = f"<SourceFilename>/vsicurl/{server.url('a.tif')}?sig=secret</SourceFilename><SourceBand>1</SourceBand>"
    band = f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource>{source}</SimpleSource></VRTRasterBand>'
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="64" rasterYSize="64">{band}</VRTDataset>')
    for plan in ({}, {"after": 2}, {"after": 4}):
        server.fail(CUT, **plan)
        text = refusal(str(tmp_path / "a.vrt"))
        assert "secret" not in text and text.startswith(str(tmp_path / "a.vrt"))


def test_a_long_signed_address_is_not_told_in_part(server):
    text = refusal(gdal_name(server.url("page.txt") + "?sig=" + "secret" * 100))
    assert "secret" not in text


def test_no_trace_of_gdal_in_the_log(server, caplog, capfd):
    server.fail(503)
    with pytest.raises(DataError):
        open_raster(gdal_name(server.url("a.jp2")))
    server.fail(CUT, after=2)
    refusal(gdal_name(server.url("a.jp2")))
    assert not [r for r in caplog.records if r.name.startswith("rasterio") and r.levelname != "DEBUG"]
    assert capfd.readouterr() == ("", "")


def test_a_scene_path_looks_into_its_archive_when_it_is_opened(tmp_path):
    path = ScenePath(str(tmp_path / "cut.zip"))
    (tmp_path / "cut.zip").write_bytes(b"not a zip")
    assert (path.stem, path.given) == ("cut", str(tmp_path / "cut.zip"))
    with pytest.raises(DataError, match="zip file"):
        _ = path.opened
    remote = ScenePath("https://host/maps/a.tif?sig=secret")
    assert (remote.stem, remote.label) == ("a", "a.tif") and "secret" not in remote.shown


# Names that lead nowhere


def test_names_that_lead_nowhere_are_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link.tif").symlink_to("nowhere.tif")
    write_raster(tmp_path / "s.tif", picture(8, 8))
    shutil.copy("s.tif", "s.tif.gz")
    Path("s.tif.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    Path("s.tar").write_bytes(bytes(1024))
    for name, said in {
        "link.tif": "a link to nowhere.tif, which is not there; mend the link",
        "GTIFF_DIR:1:s.tif": "names of layers in a file (GTIFF_DIR:...) are not taken; save the layer",
        'NETCDF:"deep/x.nc":v': "names of layers in a file (NETCDF:...) are not taken",
        "s.tif.gz": "unpack it first: gunzip s.tif.gz",
        "s.tar": "unpack it first: tar -xf s.tar",
        "x" * 300 + ".tif": "cannot be looked at (File name too long)",
        os.fsdecode(b"\xff.tif"): "its name is not UTF-8, which GDAL needs; rename it",
        "t.tif": "no such file; did you mean s.tif?",
    }.items():
        assert said in refusal(gdal_name(name)), name


@pytest.mark.parametrize("name", ["x" * 251 + ".tif", "a b;c%20?#[1]'\"\t\n.tif", "\N{SNOWMAN}\u0301.tif"])
def test_odd_names_are_names(tmp_path, name):
    path = write_raster(tmp_path / "a.tif", picture(8, 8))
    path = path.rename(tmp_path / name)
    np.testing.assert_array_equal(whole(gdal_name(path)), picture(8, 8))
    assert fingerprint(gdal_name(path))["bytes"] == str(path.stat().st_size)


def test_hidden_members_of_an_archive_are_no_rasters(tmp_path):
    write_raster(tmp_path / "a.tif", picture(8, 8))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "a.tif", "in/a.tif")
        for name in ("in/._a.tif", "._b.tif", "__MACOSX/a.tif", ".hidden.tif"):
            archive.writestr(name, "junk")
    np.testing.assert_array_equal(whole(gdal_name(tmp_path / "z.zip")), picture(8, 8))


def test_a_path_is_told_from_a_folder_and_whole_on_another_drive(tmp_path, monkeypatch):
    assert seen_from(tmp_path / "a.tif", tmp_path) == "a.tif"
    assert seen_from(tmp_path / "a.tif", tmp_path / "runs") == "../a.tif"

    def refuse(*_):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    assert seen_from(tmp_path / "a.tif", tmp_path) == (tmp_path / "a.tif").as_posix()
