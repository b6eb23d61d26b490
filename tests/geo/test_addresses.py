"""Laws of addresses: what may be shown of them, whatever way they are spelled."""

import pytest

from geood.geo.addresses import display_name, holds_secret, public, reaches_server
from geood.geo.paths import ScenePath, gdal_name, stem

SECRET = [
    "https://bob:SECRET@host/x/a.tif",
    "https://bob:SE@CRET@host/x/a.tif",
    "https://host/x/a.tif?sig=SECRET.x/y z",
    "HTTPS://bob:SECRET@host/x/a.tif?token=SECRET.b",
    "zip+https://host/a.zip?sig=SECRET.b",
    "zip+HTTPS://u:SECRET@host/a.zip?sig=SECRET!deep/a.tif",
    "https://host/a.zip?sig=SECRET!deep/a.tif",
    "/vsicurl/https://bob:SECRET@host/a.tif?sig=SECRET",
    "/vsicurl?max_retry=3&url=https%3A%2F%2Fbob%3ASECRET%40host%2Fa.tif%3Fsig%3DSECRET",
    "/vsizip/{/vsicurl/https://bob:SECRET@host/a.zip?sig=SECRET}/a.tif",
]


@pytest.mark.parametrize("address", SECRET)
def test_no_name_for_people_or_files_holds_a_secret(address):
    scene = ScenePath(address)
    for told in (scene.public, scene.shown, scene.label, scene.stem, repr(scene), stem(address), display_name(address)):
        assert "SECRET" not in told and "CRET" not in told
    assert display_name(gdal_name(address)) == scene.shown and "://host" in scene.shown
    assert scene.stem == "a" and stem(gdal_name(address)) == "a"
    assert holds_secret(address) and holds_secret(gdal_name(address))
    assert "CRET" not in public(f"could not open '{gdal_name(address)}': 404") or "%3A" in address
    assert "CRET" in scene.opened  # GDAL needs it


def test_names_without_secrets_stay_as_they_are():
    for name in ("a.tif", "/x/what?.tif", "in/b@2x.tif", "a.zip!b.tif", "https://host/img@2x.tif", "s3://bucket/a.tif"):
        assert display_name(name) == name == ScenePath(name).public
        assert not holds_secret(name)
    assert public("tcp://host:8786 is gone") == "tcp://host:8786 is gone"
    assert public("tcp://user:pass@host:8786 is gone") == "tcp://host:8786 is gone"


def test_a_terminal_obeys_no_name():
    assert display_name("/x/\x1b[31ma\n.tif") == r"/x/\x1b[31ma\n.tif"
    assert "\x1b" not in display_name("/vsizip/{/x/a.zip}/\x1bb.tif")


def test_names_that_reach_servers():
    for name in (
        "/vsicurl/http://h/a.tif", "/vsicurl_streaming/http://h/a", "/vsicurl?url=http%3A%2F%2Fh", "/vsis3/b/a.tif",
        "/vsizip/{/vsigs/b/a.zip}/a.tif", "HTTP://h/a.tif", "WMS:http://h/wms", "wmts:http://h", 'NETCDF:"https://h/x":v',
        "/vsisubfile/0_9,/vsiaz/b/a.tif", "STACTA:x", "PLMosaic:x", "EEDAI:x",
    ):  # fmt: skip
        assert reaches_server(name), name
    for name in ("a.tif", "/x/WMS/a.tif", "/data/https/a.tif", "/vsizip/{/x/a.zip}/b.tif", "GTIFF_DIR:1:a.tif"):
        assert not reaches_server(name), name
