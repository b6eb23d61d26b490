"""Laws of classes found in labels: files are added up, names match in any case, the likeliest attribute is taken."""

from pathlib import Path

import pytest

from geood.errors import ConfigError, DataError
from geood.geo.labels.listing import FoundAttribute, FoundLayer, FoundValue, LabelFile
from geood.preflight import found_classes
from geood.preflight.found_classes import find_classes


def attribute(name, *values):
    return FoundAttribute(name, tuple(FoundValue(*value) for value in values))


def layer(name, *attributes):
    return FoundLayer(name, {"Polygon": 1}, "UTM", (0, 0, 1, 1), attributes, ())


@pytest.fixture
def files(monkeypatch):
    """Label files by name, as the listing would return them."""
    known = {}
    monkeypatch.setattr(found_classes, "list_labels", lambda path, buffer_m=None: known[path.name])

    def listed(*layers, kind="vector"):
        path = Path(f"l{len(known)}.gpkg")
        known[path.name] = LabelFile(path, kind, layers)
        return path

    return listed


def test_names_are_added_up_over_files_and_get_ids_by_the_alphabet(files):
    first = files(layer("a", attribute("class", ("Road", 2, 30.0), ("land", 1, 10.0))))
    second = files(layer("b", attribute("class", (" road ", 1, 20.0), ("water", 5, 5.0))))
    found = find_classes([first, second])
    assert [(c.class_id, c.name, c.number) for c in found.classes] == [(0, "land", 1), (1, "Road", 3), (2, "water", 5)]
    assert found.classes[1].share == pytest.approx(50 / 65) and found.text and found.attribute == "class"
    assert found.find("ROAD").class_id == found.find("1").class_id == 1
    with pytest.raises(ConfigError, match="no such class in the labels; they hold land, Road, water"):
        found.find("boat")


def test_a_rare_name_close_to_another_is_told_as_a_likely_slip(files):
    found = find_classes([files(layer("a", attribute("class", ("tree", 9, 90.0), ("tre", 1, 5.0), ("road", 9, 80.0))))])
    assert found.likely_slips() == [
        "tre is rare, and close to tree: if it is a slip of the pen, correct it in the labels"
    ]
    found = find_classes([files(layer("a", attribute("class", ("tree", 9, 90.0), ("trees", 9, 80.0))))])
    assert found.likely_slips() == []


def test_numbers_stay_ids_also_as_text(files):
    found = find_classes([files(layer("a", attribute("v", ("10", 2, 1.0), ("3", 1, 1.0))))])
    assert [(c.class_id, c.name) for c in found.classes] == [(3, None), (10, None)] and not found.text
    with pytest.raises(DataError, match="class ids are whole numbers"):
        find_classes([files(layer("a", attribute("v", (1.5, 2, 1.0), (2, 1, 1.0))))])
    with pytest.raises(DataError, match="class ids are whole numbers"):
        find_classes([files(layer("a", attribute("v", (float("inf"), 2, 1.0), (2, 1, 1.0))))])
    for odd in ("--3", "²", "1.5"):  # which are digits to some, and no numbers
        found = find_classes([files(layer("a", attribute("v", (odd, 2, 1.0), ("3", 1, 1.0))))])
        assert found.text and {c.name for c in found.classes} == {odd, "3"}
    with pytest.raises(ConfigError, match="no such class"):
        find_classes([files(layer("a", attribute("v", (1, 2, 1.0), (2, 1, 1.0))))]).find(" ")


def test_an_id_is_one_class_whether_a_file_holds_it_as_a_number_or_as_text(files):
    paths = [
        files(layer("a", attribute("v", *((value, 1, 10.0) for value in values))))
        for values in ((1, 2), ("1", "2.0"), (3.0,))
    ]
    found = find_classes(paths)
    assert [(c.class_id, c.name, c.number) for c in found.classes] == [(1, None, 2), (2, None, 2), (3, None, 1)]
    mixed = find_classes([*paths, files(layer("a", attribute("v", ("road", 1, 1.0), ("field", 1, 1.0))))])
    assert [(c.class_id, c.name) for c in mixed.classes if c.name is None] == [(1, None), (2, None), (3, None)]


def test_shares_are_of_pixels_where_the_ground_of_some_is_not_known(files):
    paths = [files(layer("a", attribute("", (i, 30 * i, area))), kind="raster") for i, area in ((1, 90.0), (2, None))]
    found = find_classes(paths)
    assert [c.share for c in found.classes] == pytest.approx([1 / 3, 2 / 3])


def test_the_likeliest_attribute_is_chosen_and_said(files):
    path = files(
        layer(
            "plots",
            attribute("owner", ("x", 1, 1.0), ("y", 1, 1.0)),
            attribute("fid", *((i, 1, 1.0) for i in range(70))),
        ),
        layer("cover", attribute("Class", ("land", 1, 1.0), ("road", 1, 1.0)), attribute("note", ("same", 2, 2.0))),
    )
    found = find_classes([path])
    assert (found.layers, found.attribute, found.chosen) == (("cover",), "Class", True)
    assert found.unread == ("plots (1 Polygon)",)
    assert find_classes([path], layers=["plots"]).attribute == "owner"
    with pytest.raises(ConfigError, match="no layer roads; its layers are plots, cover"):
        find_classes([path], layers=["roads"])
    with pytest.raises(ConfigError, match="no attribute kind; it has owner, fid, Class, note"):
        find_classes([path], attribute="kind")
    with pytest.raises(DataError, match="no attribute looks like classes"):
        find_classes([path], attribute="fid")


def test_several_layers_are_put_together_and_later_ones_lie_on_top(files):
    cover = layer("cover", attribute("Class", ("land", 1, 1.0), ("road", 1, 1.0)))
    tracks, notes = (
        layer("tracks", attribute("class", ("track", 1, 0.0))),
        layer("notes", attribute("note", ("?", 1, 0))),
    )
    path = files(tracks, cover, notes)
    found = find_classes([path], layers=["cover", "tracks"])
    assert [c.name for c in found.classes] == ["land", "road", "track"] and found.attribute == "Class"
    assert found.layers == ("cover", "tracks") and found.unread == ("notes (1 Polygon)",)
    with pytest.raises(
        ConfigError, match=r"no attribute Class, as another layer than notes has; it has note\. The clas"
    ):
        find_classes([path], layers=["cover", "notes"])
    alone = files(layer("drawn", attribute("CLASS", ("land", 1, 1.0))))
    assert find_classes([alone]).layers == ()
    assert find_classes([path, alone]).layers == ("cover", "drawn"), "each file has a layer of its own name"
    with pytest.raises(ConfigError, match=r"l1\.gpkg: has none of the layers that are wanted; its layers are drawn"):
        find_classes([path, alone], layers=["cover"])


def test_files_that_name_the_column_differently_are_told_apart(files):
    one = files(layer("a", attribute("Class", ("land", 1, 1.0), ("road", 1, 1.0))))
    other = files(layer("b", attribute("Klasse", ("land", 1, 1.0))))
    with pytest.raises(
        ConfigError, match=r"l1\.gpkg: has no attribute Class, as l0\.gpkg has; it has Klasse\. .* rename"
    ):
        find_classes([one, other])


def test_shapes_without_a_class_are_counted(files):
    half = FoundLayer("a", {"Polygon": 3}, "UTM", (0, 0, 1, 1), (attribute("class", ("x", 1, 1.0), ("y", 1, 1.0)),), ())
    path = files(half)
    assert find_classes([path]).problems == ("shapes without a class, which are no labels: 1",)


def test_rasters_are_ids_and_kinds_do_not_mix(files):
    raster = files(layer("r", attribute("", (0, 90, 9.0), (4, 10, 1.0))), kind="raster")
    found = find_classes([raster])
    assert [c.class_id for c in found.classes] == [0, 4] and not found.vector and not found.masks
    with pytest.raises(DataError, match="mixed"):
        find_classes([raster, files(layer("a", attribute("class", ("x", 1, 1.0))))])


@pytest.mark.parametrize(
    ("systems", "problems"), [((None, None), ()), (("UTM", None), ("no CRS in 1 of 2 label files",))]
)
def test_rasters_without_a_crs_are_a_problem_beside_others_alone(files, systems, problems):
    """Labels of photographs have none."""
    rasters = [layer("r", attribute("", (0, 90, 9.0)))._replace(crs=crs) for crs in systems]
    assert find_classes([files(each, kind="raster") for each in rasters]).problems == problems
