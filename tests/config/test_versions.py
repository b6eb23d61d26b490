"""Laws of a config's version: older keys are upgraded wherever a config comes from, newer ones are refused."""

import pytest

from geood.config import config_from_tree, config_schema, load_config, to_yaml, versions
from geood.config.versions import CONFIG_VERSION, upgraded
from geood.errors import ConfigError

SMALL = """
data: {images: [a.tif], labels: [b.tif], classes: {0: land, 1: road}}
"""


def test_a_config_says_its_version_and_may_be_without_one(write):
    bare, said = load_config(write(SMALL)), load_config(write(f"version: {CONFIG_VERSION}\n{SMALL}"))
    assert bare == said and bare.version == CONFIG_VERSION
    assert load_config(write(to_yaml(bare))) == bare
    assert config_from_tree(bare.model_dump(mode="json"), source="it") == bare
    assert "version" in config_schema()["properties"]


@pytest.mark.parametrize("version", [CONFIG_VERSION + 1, 99])
def test_a_newer_one_is_refused_with_the_remedy(write, version):
    with pytest.raises(ConfigError, match=rf"my\.yaml, line 2: version: got {version}.*upgrade geood"):
        load_config(write(f"\nversion: {version}{SMALL}"))
    with pytest.raises(ConfigError, match=rf"its config: version: got {version}.*upgrade geood"):
        config_from_tree({"version": version}, source="its config")


@pytest.mark.parametrize("version", ["0", "-1", "'1'", "1.0", "true", "null", "[1]"])
def test_what_is_no_version_is_refused(write, version):
    with pytest.raises(ConfigError, match="version: got"):
        load_config(write(f"version: {version}{SMALL}"))


@pytest.fixture
def renamed(monkeypatch):
    """A geood of the next version, in which data.crop_px was once called data.crop_size."""

    def step(tree):
        data = tree.get("data")
        if not isinstance(data, dict) or "crop_size" not in data:
            return tree
        kept = {key: value for key, value in data.items() if key != "crop_size"}
        return tree | {"data": kept | {"crop_px": data["crop_size"]}}

    monkeypatch.setattr(versions, "CONFIG_VERSION", CONFIG_VERSION + 1)
    monkeypatch.setitem(versions.UPGRADERS, CONFIG_VERSION, step)


def test_a_key_of_another_name_is_read_from_files_bases_and_bundles(renamed, write):
    old = SMALL.replace("{images", "{crop_size: 192, images")
    assert load_config(write(old)).data.crop_px == 192
    write(old, "base.yaml")
    newer = load_config(write(f"version: {CONFIG_VERSION + 1}\nbase: base.yaml\ntrain: {{seed: 3}}\n"))
    assert (newer.data.crop_px, newer.train.seed) == (192, 3)
    tree = {"data": {"crop_size": 160, "images": ["a"], "labels": ["b"], "classes": {"0": "x", "1": "y"}}}
    assert config_from_tree(tree, source="its config").data.crop_px == 160
    with pytest.raises(ConfigError, match="crop_size is not a key"):
        load_config(write(f"version: {CONFIG_VERSION + 1}{old}"))


def test_what_is_given_is_left_alone():
    tree = {"data": 3}
    assert upgraded(tree, source="it") == {"data": 3, "version": CONFIG_VERSION} and tree == {"data": 3}
