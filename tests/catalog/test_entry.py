"""Laws of the catalog: tables that mean what the sets' own documentation says; names that help."""

import ast
import dataclasses
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from geood.catalog import CATALOG, DataSet, data_set, taxonomies
from geood.catalog.vocabulary import shared_vocabulary
from geood.constants import IGNORE
from geood.errors import ConfigError
from support import miniatures

TABLES = {
    "cityscapes": miniatures.CITYSCAPES,
    "vistas": miniatures.VISTAS_NP,
    "vistas-wilddash": miniatures.VISTAS_WILDDASH,
    "wilddash2": miniatures.WILDDASH,
    "bdd100k": miniatures.TRAIN_IDS,
    "bdd-anomaly": miniatures.TRAIN_IDS,
    "bdd-anomaly-361": miniatures.TRAIN_IDS,
    "streethazards": miniatures.STREETHAZARDS,
    "streethazards-densehybrid": miniatures.STREETHAZARDS | {4: IGNORE},
    "camvid": miniatures.CAMVID,
    "camvid-ood": miniatures.CAMVID | {12: 12},
    "lums": miniatures.LUMS,
    "lost-and-found": miniatures.LOST_AND_FOUND,
    "smiyc-lost-and-found": miniatures.LOST_AND_FOUND,
    "road-anomaly": {0: 0, 1: 1, 2: 1},
    "loveda": miniatures.LOVEDA,
    "landcoverai": miniatures.LANDCOVERAI,
    "openearthmap": miniatures.OPENEARTHMAP,
}
every_set = pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)


@every_set
def test_an_entry_is_whole(entry):
    assert isinstance(entry, DataSet) and entry.name == re.sub(r"[^a-z0-9-]", "", entry.name)
    assert entry.title and entry.source and entry.licence and entry.layouts and entry.splits
    names = [split.name for split in entry.splits]
    assert len(set(names)) == len(names) and entry.evaluated == entry.splits[-1]
    assert entry.name in miniatures.MINIATURES
    said = entry.description()
    for fact in (entry.title, entry.source, entry.licence, entry.layouts[0].images, entry.layouts[0].labels, *names):
        assert fact in said
    with pytest.raises(ConfigError, match=f"{entry.name} has no split nowhere; it has {names[0]}"):
        entry.split("nowhere")


@every_set
def test_every_number_and_colour_means_a_class_or_nothing(entry):
    classes = set(entry.taxonomy.classes)
    assert set(entry.ids.values()) | set((entry.colours or {}).values()) <= classes | {IGNORE}
    assert all(0 <= i < IGNORE for i in classes) and entry.taxonomy.anomalies <= classes
    assert set(entry.held_out) <= set(entry.taxonomy.classes.values())
    reached = set((entry.colours or entry.ids).values())
    assert classes - reached <= {entry.taxonomy.id_of(name) for name in entry.held_out}
    if entry.encoding == "ids":
        assert entry.ids[IGNORE] == IGNORE and entry.colours is None
    assert (entry.encoding == "colours") == (entry.colours is not None)
    assert (entry.encoding == "panoptic") == any(layout.segments for layout in entry.layouts)


@every_set
def test_counts_sizes_and_patterns_are_sound(entry):
    assert entry.size is None or min(entry.size) > 0
    assert entry.resolution_m is None or 0 < entry.resolution_m < 10
    for split in entry.splits:
        re.compile(split.ids)
        assert split.count is None or split.count > 0
        assert list(split.drop) == sorted(set(split.drop))
    for layout in entry.layouts:
        for template in (layout.images, layout.labels):
            assert "{id}" in template and not template.startswith("/")


@pytest.mark.parametrize("name", TABLES)
def test_ids_mean_what_the_documentation_of_the_set_says(name):
    entry = data_set(name)
    assert {n: i for n, i in entry.ids.items() if n not in (-1, IGNORE)} == {
        n: i for n, i in TABLES[name].items() if n != IGNORE
    }


def test_every_set_with_ids_of_its_own_is_compared():
    binary = {e.name for e in CATALOG.values() if dict(e.ids) == miniatures.BINARY}
    assert binary | set(TABLES) | {e.name for e in CATALOG.values() if e.colours} == set(CATALOG)


def test_colours_mean_what_the_documentation_of_the_set_says():
    assert data_set("uavid").colours == miniatures.UAVID
    assert data_set("potsdam").colours == data_set("vaihingen").colours == miniatures.ISPRS


def test_the_two_mappings_of_vistas_differ_where_they_are_known_to():
    one, two = data_set("vistas"), data_set("vistas-wilddash")
    assert {n for n in one.ids if one.ids[n] != two.ids[n]} == {4, 5, 10, 11, 12, 16, 18, 26, 28, 36, 41, 43, 46}
    assert set(one.ids) == set(two.ids) == {*range(66), IGNORE}
    assert dataclasses.replace(one, name="", title="", ids={}, note="") == dataclasses.replace(
        two, name="", title="", ids={}, note=""
    )


def test_class_names_and_colours_of_cityscapes():
    names = "road sidewalk building wall fence pole traffic-light traffic-sign vegetation terrain sky person rider car"
    names += " truck bus train motorcycle bicycle"
    assert [n.replace(" ", "-") for n in taxonomies.CITYSCAPES.classes.values()] == names.split()
    colours = """128,64,128 244,35,232 70,70,70 102,102,156 190,153,153 153,153,153 250,170,30 220,220,0 107,142,35
        152,251,152 70,130,180 220,20,60 255,0,0 0,0,142 0,0,70 0,60,100 0,80,100 0,0,230 119,11,32"""
    spelled = [tuple(map(int, c.split(","))) for c in colours.split()]
    assert list(taxonomies.CITYSCAPES.colours.values()) == spelled


def declared(module):
    """The literal attributes of the one class in a module of TorchGeo, read from its source: its import takes long."""
    path = Path(find_spec("torchgeo").origin).parent / "datasets" / f"{module}.py"
    [cls] = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    found = {}
    for node in cls.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[target.id] = ast.literal_eval(node.value)
    return found


@pytest.mark.parametrize("name", ["potsdam", "vaihingen"])
def test_splits_colours_and_classes_of_both_cities_are_those_of_torchgeo(name):
    entry, other = data_set(name), declared(name)
    tiles = {
        split: {re.fullmatch(r"top_potsdam_(\w+)|top_mosaic_09cm_area(\d+)\.tif", n).expand(r"\1\2") for n in names}
        for split, names in other["splits"].items()
    }
    for split in entry.splits:
        assert {t for t in set().union(*tiles.values()) if re.fullmatch(split.ids, t)} == tiles[split.name]
        assert len(tiles[split.name]) == split.count
    assert set(tiles) == {split.name for split in entry.splits}
    colours = {tuple(colour): i - 1 for i, colour in enumerate(other["colormap"])}
    assert entry.colours == colours | {(255, 0, 0): IGNORE, (0, 0, 0): IGNORE}
    assert [n.lower().rstrip("s") for n in other["classes"][1:]] == list(entry.taxonomy.classes.values())


def test_a_name_that_is_none_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"citiscapes: no such data set; did you mean cityscapes\? `geood data list`"):
        data_set("citiscapes")
    with pytest.raises(ConfigError, match=r"zzzzzz: no such data set; `geood data list` shows all"):
        data_set("zzzzzz")


@pytest.mark.parametrize("name", [e.name for e in CATALOG.values() if e.trains])
def test_a_vocabulary_splits_the_taxonomy_in_what_is_learnt_and_what_is_not(name):
    entry = data_set(name)
    classes, anomaly = shared_vocabulary([name], [])
    assert set(classes) | set(anomaly) == set(entry.taxonomy.classes) and not set(classes) & set(anomaly)
    assert anomaly == sorted(entry.taxonomy.anomalies | {entry.taxonomy.id_of(n) for n in entry.held_out})
    first = next(iter(classes.values()))
    assert first not in shared_vocabulary([name], [first])[0].values()


def test_what_a_vocabulary_cannot_be_made_of_is_refused():
    classes, anomaly = shared_vocabulary(["cityscapes", "vistas", "wilddash2", "bdd100k"], ["person", "rider"])
    assert len(classes) == 17 and anomaly == [11, 12]
    assert shared_vocabulary(["bdd-anomaly", "cityscapes"], [])[1] == [16, 17, 18]
    for name in ("lost-and-found", "smiyc-anomaly", "fishyscapes-static-v2", "camvid-ood"):
        with pytest.raises(ConfigError, match=f"{name} has nothing to train on; it is for evaluation"):
            shared_vocabulary([name], [])
    with pytest.raises(ConfigError, match=r"the classes of cityscapes, uavid those of uavid; .* must share them"):
        shared_vocabulary(["cityscapes", "uavid"], [])
    with pytest.raises(ConfigError, match=r"hold_out: persn is not a class of cityscapes; did you mean person\?"):
        shared_vocabulary(["cityscapes"], ["persn"])
    with pytest.raises(ConfigError, match="hold_out: zzz is not a class of isprs; they are impervious surface,"):
        shared_vocabulary(["potsdam"], ["zzz"])
