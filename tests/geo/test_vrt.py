"""Laws of VRTs: what they name is found before GDAL opens it, and neither rings nor strange servers get through."""

import os
import zipfile
from xml.sax.saxutils import escape

import numpy as np
import pytest
import rasterio

from geood.errors import DataError
from geood.geo import gdal
from geood.geo.gdal import gdal_env, open_raster
from geood.geo.labels.id_rasters import open_id_raster
from geood.geo.paths import gdal_name, is_remote
from geood.geo.scene import Scene, SceneSource
from geood.geo.vrt import ALLOW, named_sources
from support.http_server import serving
from support.rasters import picture, write_raster

SIDE = 32
SOURCE = "<SimpleSource><SourceFilename{attributes}>{name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """A process in which no address was ever named, and little patience."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setattr(gdal, "_online", False)
    monkeypatch.setattr(gdal, "_may_ask", set())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_raster(folder / "a.tif", picture(SIDE, SIDE, bands=1))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as running:
        yield running


def vrt(*names, attributes="", times=1):
    parts = "".join(SOURCE.format(name=escape(str(name)), attributes=attributes) for name in names) * times
    band = f'<VRTRasterBand dataType="Byte" band="1">{parts}</VRTRasterBand>'
    return f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{band}</VRTDataset>'


def written(path, text):
    path.write_text(text)
    return path


def pixels(path):
    with Scene.open(str(path)) as scene:
        return scene.read(scene.grid.window)[0]


def refusal(path, opened=Scene.open):
    with pytest.raises(DataError) as caught:
        opened(path if opened is open_id_raster else str(path)).close()
    return str(caught.value)


def test_sources_are_found_as_gdal_finds_them(tmp_path):
    for text, name in {
        "<SourceFilename>/x/a.tif</SourceFilename>": "/x/a.tif",
        "< sourcefilename x='>'>\n /x/a&amp;b.tif</sourcefilename>": "/x/a&b.tif",
        '<SourceFilename relativeToVRT="1">a.tif</SourceFilename>': str(tmp_path / "a.tif"),
        "<SourceFilename relativetovrt = '1' >a.tif</SourceFilename>": str(tmp_path / "a.tif"),
        "<SourceFilename><![CDATA[/x/a&b.tif]]></SourceFilename>": "/x/a&b.tif",
        "<SourceFilename><!-- no -->&#47;vsicurl/http://h/a</SourceFilename>": "/vsicurl/http://h/a",
        '<SimpleSource SourceFilename="/x/a.tif"/>': "/x/a.tif",
        '<SourceDataset relativeToVRT="1">/vsis3/b/a.tif</SourceDataset>': "/vsis3/b/a.tif",
        '<SourceFilename relativeToVRT=" +02x">a.tif</SourceFilename>': str(tmp_path / "a.tif"),
        '<SourceFilename relativeToVRT="0">a.tif</SourceFilename>': "a.tif",
        "<SourceFilename <!-- ' --> relativeToVRT=<![CDATA[1]]>>a.tif</SourceFilename>": str(tmp_path / "a.tif"),
        "<SimpleSource SourceFilename=a.tif/>": "a.tif",
        "<SourceFilename>/x/&#x00002f;&copy.tif</SourceFilename>": "/x//&copy.tif",
    }.items():
        assert list(named_sources(text, tmp_path)) == [name], text
    in_doubt = '<SourceFilename relativeToVRT="yes">a.tif</SourceFilename>'
    assert list(named_sources(in_doubt, tmp_path)) == [str(tmp_path / "a.tif"), "a.tif"]
    assert list(named_sources("<!--<SourceFilename>a</SourceFilename>--><SRS>http://x</SRS>", tmp_path)) == []


# Marks that hide nothing from GDAL: what stands before and behind the bands of a VRT.
HIDING = {
    "comment in CDATA": ("<M><![CDATA[<!--]]></M>", "<M><![CDATA[-->]]></M>"),
    "comment in value": ('<M key="<!--"/>', '<M key="-->"/>'),
    "CDATA in value": ("<M key='<![CDATA['/>", "<M key=']]>'/>"),
    "CDATA in comment": ("<!--<![CDATA[-->", "<!--]]>-->"),
    "quotes in text": ('<M>SourceFilename="</M>', '<M>"</M>'),
    "quotes in CDATA": ("<M><![CDATA[<x y=']]></M>", "<M>'</M>"),
}


def hidden(text, hiding):
    before, behind = HIDING[hiding]
    return text.replace("<VRTRasterBand", f"{before}<VRTRasterBand", 1).replace("</VRTD", f"{behind}</VRTD")


# Servers


def service(address):
    return f"<GDAL_WMS><Service name='TMS'><ServerUrl>{address}</ServerUrl></Service></GDAL_WMS>"


SPELLINGS = {
    "plain": lambda at: vrt(f"/vsicurl/{at}"),
    "http": vrt,
    "upper": lambda at: vrt(at.replace("http", "HTTP")),
    "streaming": lambda at: vrt(f"/vsicurl_streaming/{at}"),
    "subfile": lambda at: vrt(f"/vsisubfile/0_900,/vsicurl/{at}"),
    "connection": lambda at: vrt(f"vrt:///vsicurl/{at}?bands=1"),
    "inline": lambda at: vrt(vrt(f"/vsicurl/{at}")),
    "cdata": lambda at: vrt("CDATA").replace("CDATA", f"<![CDATA[/vsicurl/{at}]]>"),
    "reference": lambda at: vrt("NAME").replace("NAME", f"&#47;vsicurl/{at}"),
    "metadata": lambda at: vrt("a.tif").replace(
        "<VRTRasterBand", f"<Metadata>/vsicurl/{at}</Metadata><VRTRasterBand", 1
    ),
    "wms inline": lambda at: vrt(service(at)),
    "wms": service,
    "wms by prefix": lambda at: vrt(f"WMS:{at}"),
    "wcs": lambda at: f"<WCS_GDAL><ServiceURL>{at}?</ServiceURL><CoverageName>x</CoverageName></WCS_GDAL>",
    "wmts": lambda at: f"<GDAL_WMTS><GetCapabilitiesUrl>{at}</GetCapabilitiesUrl></GDAL_WMTS>",
    "opendap": lambda at: vrt(f'NETCDF:"{at}":v'),
    "text before inline": lambda at: vrt("x" + vrt(f"/vsicurl/{at}"), attributes=' relativeToVRT="1"'),
    **{f"inline, {kind}": lambda at, kind=kind: vrt(hidden(vrt(f"/vsicurl/{at}"), kind)) for kind in HIDING},
    **{kind: lambda at, kind=kind: hidden(vrt(service(at)), kind) for kind in HIDING},
    "reference system": lambda at: with_part(f"<SRS>{escape(at)}</SRS>"),
    "reference system of points": lambda at: with_part(f'<GCPList Projection="{escape(at)}"/>'),
    "reference system of positions": lambda at: with_part(f'<Metadata><MDI key="SRS">{escape(at)}</MDI></Metadata>'),
    "behind metadata": lambda at: with_part(f"<Metadata/><SRS>{escape(at)}</SRS><Metadata></Metadata>"),
    "warp": lambda at: WARPED.format(at=escape(at)),
    "warp option": lambda at: with_part(f'<GDALWarpOptions><Option name="DST_SRS">{at}</Option></GDALWarpOptions>'),
}


def with_part(part):
    return vrt("a.tif").replace("<VRTRasterBand", f"{part}<VRTRasterBand", 1)


_PLACE = "<{0}GeoTransform>0,1,0,0,0,-1</{0}GeoTransform><{0}InvGeoTransform>0,1,0,0,0,-1</{0}InvGeoTransform>"
WARPED = (
    f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}" subClass="VRTWarpedDataset">'
    '<GeoTransform>0,1,0,0,0,-1</GeoTransform><VRTRasterBand dataType="Byte" band="1" subClass="VRTWarpedRasterBand"/>'
    '<GDALWarpOptions><SourceDataset relativeToVRT="1">image.tif</SourceDataset>'
    '<BandList><BandMapping src="1" dst="1"/></BandList><Transformer><GenImgProjTransformer>'
    f"{_PLACE.format('Src')}<ReprojectTransformer><ReprojectionTransformer><SourceSRS>{{at}}</SourceSRS>"
    f"<TargetSRS>{{at}}</TargetSRS></ReprojectionTransformer></ReprojectTransformer>{_PLACE.format('Dst')}"
    "</GenImgProjTransformer></Transformer></GDALWarpOptions></VRTDataset>"
)


@pytest.mark.parametrize("no_proxy", [None, "*"])
@pytest.mark.parametrize("name", ["a.tif", "a.vrt"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_local_file_makes_requests(tmp_path, server, monkeypatch, spelling, name, no_proxy):
    if no_proxy:  # libcurl heeds it, whatever proxy GDAL asks for
        monkeypatch.setenv("no_proxy", no_proxy)
        monkeypatch.setenv("NO_PROXY", no_proxy)
    write_raster(tmp_path / "image.tif", picture(SIDE, SIDE, bands=1))
    path = written(tmp_path / name, SPELLINGS[spelling](server.url("a.tif?sig=SECRET")))
    asked = len(server.requests)
    for opened in (Scene.open, open_id_raster):
        said = refusal(path, opened)
        assert str(path) in said and "SECRET" not in said
        assert ("names a server" in said and ALLOW in said) or "not recognized" in said
    assert len(server.requests) == asked


def test_metadata_may_hold_addresses(tmp_path):
    write_raster(tmp_path / "a.tif", picture(SIDE, SIDE, bands=1))
    item = '<Metadata><MDI key="licence">see https://host/licence?x=1</MDI></Metadata>'
    xml = '<Metadata domain="xml:XMP" format="xml"><x xmlns="http://www.w3.org/x"/></Metadata>'
    text = vrt("a.tif", attributes=' relativeToVRT="1"').replace("<VRTRasterBand", f"{item}{xml}<VRTRasterBand", 1)
    np.testing.assert_array_equal(pixels(written(tmp_path / "a.vrt", text)), pixels(tmp_path / "a.tif"))


@pytest.mark.parametrize("spelling", ["plain", "wms", "inline"])
def test_no_source_of_a_source_makes_requests(tmp_path, server, spelling):
    written(tmp_path / "deep.tif", SPELLINGS[spelling](server.url("a.tif")))
    written(tmp_path / "mid.vrt", vrt("deep.tif", attributes=' relativeToVRT="1"'))
    top = written(tmp_path / "top.tif", vrt(tmp_path / "mid.vrt"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top.vrt", vrt(tmp_path / "mid.vrt"))
        archive.writestr("own.vrt", SPELLINGS["plain"](server.url("a.tif")))
    asked = len(server.requests)
    for path in (top, tmp_path / "a.zip/top.vrt", tmp_path / "a.zip/own.vrt"):
        assert "names a server" in refusal(gdal_name(path))
    assert len(server.requests) == asked


@pytest.mark.parametrize("scheme", ["/vsicurl/http", "http"])
def test_no_tag_makes_requests(tmp_path, server, scheme):
    """Overviews may lie elsewhere than the image, by a tag of it."""
    path = write_raster(tmp_path / "a.tif", picture(SIDE, SIDE))
    address = server.url("a.tif").replace("http", scheme)
    item = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{address}</MDI></Metadata>'
    written(tmp_path / "a.tif.aux.xml", f"<PAMDataset>{item}</PAMDataset>")
    asked = len(server.requests)
    assert "whose overviews are on a server" in refusal(path)
    written(tmp_path / "out.vrt", vrt(path))
    pixels(tmp_path / "out.vrt")  # the overviews of a source are another matter: GDAL cannot make requests at all
    assert len(server.requests) == asked


def test_gdal_is_offline_until_an_address_is_named(monkeypatch):
    def options(name):
        with gdal_env(name):
            return set(rasterio.env.getenv())

    assert set(gdal.OFFLINE) <= options("/x/a.tif")
    with gdal_env("/x/a.tif"), gdal_env("/vsicurl/http://host/a.tif"):
        assert not any(rasterio._env.get_gdal_config(key) for key in gdal.OFFLINE)
    assert not set(gdal.OFFLINE) & options("/x/a.tif")


def test_what_the_user_asked_for_is_fetched(tmp_path, folder, server, monkeypatch):
    path = written(tmp_path / "a.vrt", vrt(f"/vsicurl/{server.url('a.tif')}"))
    assert is_remote(str(path))
    wanted = pixels(folder / "a.tif")
    with Scene.open(SceneSource(str(path), servers=True)) as scene:  # as a worker gets it
        np.testing.assert_array_equal(scene.read(scene.grid.window)[0], wanted)
    monkeypatch.setattr(gdal, "_may_ask", set())
    refusal(path)
    written(folder / "there.vrt", vrt("a.tif", attributes=' relativeToVRT="1"'))
    np.testing.assert_array_equal(pixels(gdal_name(server.url("there.vrt"))), wanted)
    monkeypatch.setenv(ALLOW, "YES")
    np.testing.assert_array_equal(pixels(path), wanted)


# Rings


def test_a_vrt_of_itself_is_refused_by_every_way(tmp_path, folder, server):
    beside = ' relativeToVRT="1"'
    made = {
        "itself": written(tmp_path / "itself.vrt", vrt("itself.vrt", attributes=beside)),
        "other": written(tmp_path / "one.vrt", vrt("two.vrt", attributes=beside)),
        "inline": written(tmp_path / "inline.tif", vrt(vrt(tmp_path / "inline.tif"))),
        "connection": written(tmp_path / "by.vrt", vrt(f"vrt://{tmp_path / 'by.vrt'}?bands=1")),
        "dotted": written(tmp_path / "dot.vrt", vrt(f"../{tmp_path.name}/dot.vrt", attributes=beside)),
        "link": written(tmp_path / "link.vrt", vrt("linked.tif", attributes=beside)),
        "hard link": written(tmp_path / "hard.vrt", vrt("harder.tif", attributes=beside)),
    }
    written(tmp_path / "two.vrt", vrt("one.vrt", attributes=beside))
    (tmp_path / "linked.tif").symlink_to("link.vrt")
    os.link(tmp_path / "hard.vrt", tmp_path / "harder.tif")
    for path in (*made.values(), written(tmp_path / "above.vrt", vrt(made["other"]))):
        assert "leads back to itself" in refusal(path) and str(path) in refusal(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.vrt", vrt(f"/vsizip/{{{tmp_path / 'a.zip'}}}/x.vrt"))
    assert "leads back" in refusal(gdal_name(tmp_path / "a.zip/x.vrt"))
    address = f"/vsicurl/{server.url('ring.vrt')}"
    written(folder / "ring.vrt", vrt(address))
    assert "leads back" in refusal(address)


@pytest.mark.parametrize("hiding", HIDING)
def test_no_ring_hides_behind_marks(tmp_path, hiding):
    text = vrt("a.vrt", attributes=' relativeToVRT="1"')
    assert "leads back to itself" in refusal(written(tmp_path / "a.vrt", hidden(text, hiding)))
    image = write_raster(tmp_path / "a.tif", picture(SIDE, SIDE, bands=1))
    np.testing.assert_array_equal(pixels(written(tmp_path / "b.vrt", hidden(vrt(image), hiding))), pixels(image))


@pytest.mark.parametrize("relative", ['"01"', '"2"', '"-1"', '" +1x"', '"&#49;"', "1", "<![CDATA[1]]>", '"yes"'])
def test_no_ring_hides_behind_what_gdal_takes_for_true(tmp_path, relative):
    text = vrt("a.vrt", attributes=f" relativeToVRT={relative}")
    assert "leads back to itself" in refusal(written(tmp_path / "a.vrt", text))


def test_a_doctype_is_refused(tmp_path):
    text = vrt("a.tif").replace("<VRTRasterBand", '<!DOCTYPE x "<!--"><VRTRasterBand', 1)
    assert "DOCTYPE" in refusal(written(tmp_path / "a.vrt", text))


def test_one_image_may_be_named_often_and_deep_but_not_beyond_reason(tmp_path):
    image = write_raster(tmp_path / "a.tif", picture(SIDE, SIDE, bands=1))
    path = written(tmp_path / "0.vrt", vrt(image, image))
    for level in range(1, 15):
        path = written(tmp_path / f"{level}.vrt", vrt(path, times=2 if level < 4 else 1))
    np.testing.assert_array_equal(pixels(path), pixels(image))
    for level in range(15, 17):
        path = written(tmp_path / f"{level}.vrt", vrt(path))
    assert "16 VRTs within one another" in refusal(path)
    path = image
    for level in range(8):
        path = written(tmp_path / f"many{level}.vrt", vrt(path, times=10))
    assert "100,000,000 times" in refusal(path)


def test_pipes_and_devices_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    assert "neither a file" in refusal(tmp_path / "pipe.tif")
    assert "neither a file" in refusal(written(tmp_path / "a.vrt", vrt("pipe.tif", attributes=' relativeToVRT="1"')))
    assert "neither a file" in refusal("/dev/zero")


def test_only_formats_of_files_are_opened(tmp_path):
    written(tmp_path / "a.csv", "location\n")
    for text in ('{"stac_version": "1.0.0", "type": "Feature"}', "<MRF_META></MRF_META>", "<Capabilities/>"):
        assert "cannot be read as a raster" in refusal(written(tmp_path / "a.tif", text))
    with open_raster(write_raster(tmp_path / "b.tif", picture(8, 8))) as dataset:
        assert dataset.driver in gdal.DRIVERS


@pytest.mark.parametrize(
    "kernel",
    ["", "<Kernel/>", "<Kernel><Size>0</Size></Kernel>", "<!-- <Kernel><Size>3</Size> -->", "<M k='<Kernel><Size>3'/>"],
)
def test_a_filter_without_a_kernel_is_refused_as_gdal_would_end_the_process(tmp_path, kernel):
    write_raster(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8))
    source = f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>1</SourceBand>{kernel}'
    band = (
        f'<VRTRasterBand dataType="Byte" band="1"><KernelFilteredSource>{source}</KernelFilteredSource></VRTRasterBand>'
    )
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="8" rasterYSize="8">{band}</VRTDataset>')
    with pytest.raises(DataError, match="filtered without a kernel"):
        open_raster(tmp_path / "a.vrt")
