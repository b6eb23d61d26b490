"""Laws of names beside rasters of class ids: tables and styles of other programs are read, doubt gives no name."""

import geopandas as gpd
import pytest
from shapely.geometry import Point

from geood.preflight.id_names import MOST_BYTES, names_of_ids

TABLE = """<PAMDataset><PAMRasterBand band="1">
<CategoryNames><Category></Category><Category>else</Category></CategoryNames>
<GDALRasterAttributeTable tableType="thematic">
<FieldDefn index="0"><Name>Count</Name><Type>0</Type><Usage>1</Usage></FieldDefn>
<FieldDefn index="1"><Name>{value}</Name><Type>0</Type><Usage>{exact}</Usage></FieldDefn>
<FieldDefn index="2"><Name>remark</Name><Type>2</Type><Usage>0</Usage></FieldDefn>
<FieldDefn index="3"><Name>Class</Name><Type>2</Type><Usage>{name}</Usage></FieldDefn>
<Row index="0"><F>90</F><F>1</F><F>dull</F><F> open  water </F></Row>
<Row index="1"><F>80</F><F>7</F><F>dull</F><F>boat &amp; buoy</F></Row>
<Row index="2"><F>80</F><F>8</F><F>dull</F><F>8</F></Row>
<Row index="3"><F>80</F><F>-1</F><F>dull</F><F>outside</F></Row>
</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"""
CATEGORIES = """<PAMDataset><PAMRasterBand band="1"><CategoryNames>
<Category></Category><Category>slum</Category><Category>water</Category></CategoryNames></PAMRasterBand></PAMDataset>"""
STYLE = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22"><pipe><rasterrenderer band="1" type="paletted"><colorPalette>
<paletteEntry value="0" color="#ff0000" alpha="255" label="land"/>
<paletteEntry value="1" color="#0000ff" alpha="255" label="1"/>
<paletteEntry value="2" color="#0000ff" alpha="255" label="road"/>
</colorPalette></rasterrenderer></pipe></qgis>"""


@pytest.mark.parametrize("uses", [{"exact": 5, "name": 2}, {"exact": 0, "name": 0}], ids=["by use", "by name"])
def test_an_attribute_table_names_its_values(tmp_path, uses):
    (tmp_path / "a.tif.aux.xml").write_text(TABLE.format(value="Value", **uses))
    assert names_of_ids([tmp_path / "a.tif"]) == ({1: "open water", 7: "boat & buoy"}, ())


def test_category_names_are_numbered_from_0(tmp_path):
    (tmp_path / "a.tif.aux.xml").write_text(CATEGORIES)
    assert names_of_ids([tmp_path / "a.tif"]) == ({1: "slum", 2: "water"}, ())


def test_a_style_names_what_its_labels_do_not_only_number(tmp_path):
    (tmp_path / "a.qml").write_text(STYLE)
    assert names_of_ids([tmp_path / "a.tif"]) == ({0: "land", 2: "road"}, ())
    (tmp_path / "a.qml").write_text(STYLE.replace("paletted", "singlebandpseudocolor"))
    assert names_of_ids([tmp_path / "a.tif"]) == ({}, ())


def test_a_table_of_esri_is_read(tmp_path):
    rows = {"Value": [3, 4], "Count": [10, 20], "CLASS_NAME": ["field", None]}
    gpd.GeoDataFrame(rows, geometry=[Point(0, 0)] * 2).to_file(tmp_path / "rows.shp")
    (tmp_path / "rows.dbf").rename(tmp_path / "a.tif.vat.dbf")
    assert names_of_ids([tmp_path / "a.tif"]) == ({3: "field"}, ())


def test_a_table_that_is_another_format_is_not_opened(tmp_path):
    (tmp_path / "a.tif.vat.dbf").write_text("<OGRVRTDataSource><OGRVRTLayer name='a'/></OGRVRTDataSource>")
    names, [problem] = names_of_ids([tmp_path / "a.tif"])
    assert not names and "by its content it is no .dbf" in problem


def test_statistics_alone_name_nothing_and_hide_no_style(tmp_path):
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><PAMRasterBand band='1'><Metadata/></PAMRasterBand></PAMDataset>"
    )
    (tmp_path / "a.qml").write_text(STYLE)
    assert names_of_ids([tmp_path / "a.tif"])[0] == {0: "land", 2: "road"}


def test_files_that_differ_name_nothing_there_and_it_is_said(tmp_path):
    (tmp_path / "a.qml").write_text(STYLE)
    (tmp_path / "b.qml").write_text(STYLE.replace("road", "lane"))
    names, problems = names_of_ids([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert names == {0: "land"} and problems == ("files beside the labels name 2 differently: road and lane",)
    (tmp_path / "b.qml").unlink()
    (tmp_path / "a.qml").write_text(STYLE.replace("road", "Land"))
    assert names_of_ids([tmp_path / "a.tif"]) == ({}, ("files beside the labels name 0, 2 alike: land",))


@pytest.mark.parametrize("text", ["", "<qgis", STYLE.replace('value="0"', 'value="low"')], ids=["empty", "cut", "word"])
def test_what_cannot_be_read_is_said_and_stops_nothing(tmp_path, text):
    (tmp_path / "a.qml").write_text(text)
    (tmp_path / "b.tif.aux.xml").write_text(CATEGORIES)
    names, problems = names_of_ids([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert names == {1: "slum", 2: "water"}
    assert len(problems) == 1 and problems[0].startswith(f"names of classes are not read: {tmp_path / 'a.qml'}: ")


def test_a_table_that_says_it_has_more_rows_than_it_has_takes_no_memory_for_them(tmp_path):
    gpd.GeoDataFrame({"Value": [3], "Name": ["field"]}, geometry=[Point(0, 0)]).to_file(tmp_path / "rows.shp")
    table = bytearray((tmp_path / "rows.dbf").read_bytes())
    table[4:8] = (2_000_000).to_bytes(4, "little")
    (tmp_path / "a.tif.vat.dbf").write_bytes(table)
    names, [problem] = names_of_ids([tmp_path / "a.tif"])
    assert not names and "2,000,000 rows, for which it is too short" in problem


HOSTILE = {
    "unknown encoding": '<?xml version="1.0" encoding="foo"?><qgis/>',
    "no text": '<?xml version="1.0" encoding="hex"?><qgis/>',
    "entities": f'<!DOCTYPE qgis [<!ENTITY x "{"y" * 1000}">]>{STYLE.partition(">")[2].replace("land", "&x;")}',
    "undefined": STYLE.replace("<pipe>", "<pipe>&x;"),
    "large": STYLE + " " * MOST_BYTES,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_strangers_made_to_do_harm_is_said_and_stops_nothing(tmp_path, text):
    (tmp_path / "a.qml").write_text(text)
    names, [problem] = names_of_ids([tmp_path / "a.tif"])
    assert not names and problem.startswith(f"names of classes are not read: {tmp_path / 'a.qml'}: ")


def test_styles_within_styles_are_read_once(tmp_path):
    """Else each of them would read all entries again, and a file of some megabytes would take days."""
    depth = 20_000
    inner = '<paletteEntry value="1" label="road"/>' * depth
    outer = '<rasterrenderer type="paletted">' * depth
    (tmp_path / "a.qml").write_text(f"<q>{outer}{inner}{'</rasterrenderer>' * depth}</q>")
    assert names_of_ids([tmp_path / "a.tif"]) == ({1: "road"}, ())


@pytest.mark.parametrize("name", ["x" * 1000, "ro\u200bad", "\u202eroad"], ids=["long", "unseen", "turned round"])
def test_a_name_that_no_config_can_hold_is_none(tmp_path, name):
    (tmp_path / "a.qml").write_text(STYLE.replace("road", name), encoding="utf-8")
    assert names_of_ids([tmp_path / "a.tif"]) == ({0: "land"}, ())


def test_of_many_files_that_cannot_be_read_a_few_are_named(tmp_path):
    paths = [tmp_path / f"{i}.tif" for i in range(10)]
    for path in paths:
        path.with_suffix(".qml").write_text("<qgis")
    problems = names_of_ids(paths)[1]
    assert len(problems) == 4 and problems[-1] == "names beside 7 more label files are not read"


def test_a_row_without_a_value_names_nothing(tmp_path):
    rows = {"Value": [None, "4"], "Name": ["field", "road"]}
    gpd.GeoDataFrame(rows, geometry=[Point(0, 0)] * 2).to_file(tmp_path / "rows.shp")
    (tmp_path / "rows.dbf").rename(tmp_path / "a.tif.vat.dbf")
    assert names_of_ids([tmp_path / "a.tif"]) == ({4: "road"}, ())
