"""Laws of class names in a config: every way to write them down becomes ids and names, and comes back as it was."""

import json

import pytest
import yaml

from geood.config import Config, change_config, config_from_tree, folded, load_config, to_yaml
from geood.errors import ConfigError

VECTORS = {"images": ["a.tif"], "labels": ["l.gpkg"]}
RASTERS = {"images": ["a.tif"], "labels": ["l.tif"]}


def config(**data):
    return Config.model_validate({"data": data})


@pytest.mark.parametrize(
    ("given", "classes", "anomaly"),
    [
        ({"classes": ["land", "road"]}, {0: "land", 1: "road"}, []),
        ({"classes": "auto"}, {}, []),
        ({"classes": {3: "land", 7: "road"}, "anomaly": [5]}, {3: "land", 7: "road"}, [5]),
        ({"classes": ["land", "road"], "anomaly": ["boat", "car"]}, {0: "land", 1: "road"}, {253: "boat", 252: "car"}),
        ({"classes": {253: "land", 1: "road"}, "anomaly": ["boat"]}, {253: "land", 1: "road"}, {252: "boat"}),
        ({"classes": "auto", "anomaly": {6: "boat"}, "background": "Land"}, {}, {6: "boat"}),
    ],
)
def test_names_have_ids_and_come_back(given, classes, anomaly):
    made = config(**VECTORS, **given)
    assert (made.data.classes, made.data.anomaly) == (classes, anomaly)
    assert Config.model_validate(yaml.safe_load(to_yaml(made))) == made
    assert config_from_tree(json.loads(made.model_dump_json()), source="x") == made
    assert change_config(made, ["train.seed=1"]).data == made.data


def test_a_background_is_a_class_by_name_or_id():
    for given, wanted in (("Open  LAND", 4), (4, 4), (None, None)):
        assert config(**VECTORS, classes={4: "open land", 1: "road"}, background=given).data.background_id == wanted
    assert config(**VECTORS, classes="auto", background="x").data.background_id is None


def test_names_are_folded_by_case_and_blanks_alone():
    assert folded("  Built \t UP\n") == folded("built up") != folded("built-up")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (VECTORS | {"classes": ["land"]}, "got 1 class; give two at least, or auto"),
        (VECTORS | {"classes": {}}, "got 0 classes"),
        (VECTORS | {"classes": ["land", 3]}, r"give names, such as \[land, road\]"),
        (VECTORS | {"classes": ["a", "a"]}, r"ids \[0, 1\] have the same name a"),
        (VECTORS | {"classes": ["a", "b"], "anomaly": ["c", 5]}, "give ids, or names, or both as a map"),
        (VECTORS | {"classes": ["a", "b"], "anomaly": ["b"]}, "b: under both classes and anomaly"),
        (RASTERS | {"classes": ["a", "b"], "anomaly": ["boat"]}, r"l\.tif names rasters of ids; .* \{6: boat\}"),
        (RASTERS | {"classes": ["a", "b"], "background": "a"}, r"background is for vector labels, not l\.tif"),
        (VECTORS | {"classes": ["a", "b"], "background": "c"}, "background c is not one of classes"),
        (VECTORS | {"classes": "auto", "background": 3}, "with classes auto, give the name"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path, data, said):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": data}))
    with pytest.raises(ConfigError, match=rf"c\.yaml, line \d+: data.*{said}"):
        load_config(path)
