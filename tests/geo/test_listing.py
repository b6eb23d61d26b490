"""Laws of finding files: hidden ones and folders are none, a name is itself before it is a pattern, names pair."""

import unicodedata
from pathlib import Path

import pytest

from geood.datasets.files import find_files
from geood.errors import DataError
from geood.evaluation.scenes import _rasters
from geood.evaluation.submission import _images
from geood.geo.listing import files_in, files_matching, pair_by_name, why_no_pairs
from geood.geo.mosaic import _names
from geood.geo.paths import RASTERS
from geood.prediction.outputs import sources_of

SUFFIXES = (".tif", ".png")


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def named(paths, folder):
    return [Path(path).relative_to(folder).as_posix() for path in paths]


CLUTTER = ("a.txt", "._a.tif", ".ipynb_checkpoints/a.tif", ".x.gpkg.geood/a.tif", "__MACOSX/a.tif", "b.tif/inner.txt")


@pytest.fixture
def cluttered(tmp_path):
    return make(tmp_path / "survey [2024]", "a.tif", "c.TIF", "deep/d.tif", *CLUTTER)


def test_every_reader_of_a_folder_finds_the_same_files(cluttered):
    wanted = ["a.tif", "c.TIF"]
    assert named(files_in(cluttered, SUFFIXES), cluttered) == wanted
    assert named(_rasters(cluttered), cluttered) == wanted
    assert named(sources_of([cluttered], mosaic=False), cluttered) == wanted
    assert named(_names([cluttered]), cluttered) == wanted
    assert named(find_files(cluttered, ["."], what="x"), cluttered) == [*wanted, "deep/d.tif"]
    assert named(files_in(cluttered, SUFFIXES, deep=True), cluttered) == [*wanted, "deep/d.tif"]
    photos = make(cluttered / "photos", "a.png", "._a.png", "b.png/inner.txt")
    assert [frame.image.name for frame in _images(photos)] == ["a.png"]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.tif", ["a.tif"]),
        ("?.tif", ["a.tif"]),
        ("[ab].tif", ["a.tif"]),
        ("**/*.tif", ["a.tif", "deep/d.tif"]),
        ("**", ["a.tif", "a.txt", "b.tif/inner.txt", "c.TIF", "deep/d.tif"]),
        ("*/d.tif", ["deep/d.tif"]),
        ("deep/../a.tif", ["deep/../a.tif"]),
        (".*.tif", ["._a.tif"]),
        (".ipynb_checkpoints/*.tif", [".ipynb_checkpoints/a.tif"]),
        ("nothing/*.tif", []),
        ("a.tif/*.tif", []),
    ],
)
def test_patterns_are_matched_below_a_root_that_is_none(cluttered, pattern, wanted):
    assert named(files_matching(cluttered, pattern), cluttered) == wanted
    assert named(files_matching("/", str(cluttered / pattern)), cluttered) == wanted
    assert named(files_matching(cluttered.parent, f"survey [2024]/{pattern}"), cluttered) == wanted


def test_a_link_to_nowhere_is_an_error_and_one_to_a_file_is_that_file(cluttered):
    (cluttered / "e.tif").symlink_to(cluttered / "a.tif")
    assert named(files_in(cluttered, SUFFIXES), cluttered) == ["a.tif", "c.TIF", "e.tif"]
    (cluttered / "f.tif").symlink_to(cluttered / "gone.tif")
    (cluttered / "f.txt").symlink_to(cluttered / "gone.txt")
    for find in (
        lambda: files_in(cluttered, RASTERS),
        lambda: files_matching(cluttered, "*.tif"),
        lambda: find_files(cluttered, ["f.tif"], what="x"),
        lambda: sources_of([cluttered], mosaic=False),
    ):
        with pytest.raises(DataError, match=r"f\.tif: a link that leads nowhere \(.*gone\.tif\); repair it"):
            find()
    with pytest.raises(DataError, match="cannot be listed"):
        files_in(cluttered / "nowhere", SUFFIXES)


def test_two_spellings_of_one_name_are_one_name(tmp_path):
    one, two = (unicodedata.normalize(form, "forêt é.tif") for form in ("NFC", "NFD"))
    assert one != two
    make(tmp_path, two)
    assert files_matching(tmp_path, one) == files_matching(tmp_path, two) == [tmp_path / two]
    assert files_matching(tmp_path, unicodedata.normalize("NFC", "forê*.tif")) == [tmp_path / two]
    assert pair_by_name([Path(one)], [Path(two)]) == [[Path(two)]]


def paths(*names):
    return [Path(name) for name in names]


def test_the_longest_stem_pairs():
    images = paths("a.png", "a_2.png", "b.png")
    labels = paths("a_2_gt.png", "a.gt.png", "b-mask.tif")
    assert pair_by_name(images, labels) == [[labels[1]], [labels[0]], [labels[2]]]
    assert pair_by_name(images, labels[:2]) is None
    assert pair_by_name(paths("a.png", "a.jpg"), paths("a.tif")) is None
    assert pair_by_name(paths("a.png"), paths("ab.png")) is None


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (("p0.png", "p1.png", "p2.png"), ("p0.png", "p1.png"), "no labels for p2.png"),
        (("p0.png",), ("p0.png", "p3.png"), "no image for p3.png"),
        (
            ("p0.png", "p2.png"),
            ("p0.png", "P2.png"),
            "no labels for p2.png; no image for P2.png; P2.png and p2.png differ in upper and lower case",
        ),
        (("p.png",), ("p_a.png", "p_b.png"), "several labels for p.png (p_a.png, p_b.png)"),
        (("a.png", "a.jpg"), ("a.tif",), "a.png, a.jpg have one name"),
        (("a.png", *(f"{i}.png" for i in range(5))), ("a.png",), "no labels for 0.png, 1.png, 2.png and 2 more"),
    ],
)
def test_what_has_no_partner_is_named(images, labels, said):
    assert pair_by_name(paths(*images), paths(*labels)) is None
    assert why_no_pairs(paths(*images), paths(*labels)) == said


def test_a_pattern_passes_over_files_where_folders_are_meant(tmp_path):
    (tmp_path / "readme.txt").write_text("")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.tif").write_text("")
    assert list(files_matching(tmp_path, "*/**/*.tif")) == [tmp_path / "a" / "b" / "x.tif"]
