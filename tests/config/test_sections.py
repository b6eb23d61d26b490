"""Laws of the config: strict, every fault located, files and schema in step with the code."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from geood.config.loading import change_config, config_from_tree, config_schema, load_config, to_yaml
from geood.config.sections import Config, DataConfig, SegmenterConfig
from geood.config.versions import CONFIG_VERSION
from geood.errors import ConfigError
from support.configs import SMALL

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_loads(path):
    assert isinstance(load_config(path), Config)


PAPERS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "paper-768" in path.read_text() or "paper-" in path.name]


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.name)
def test_the_papers_configs_and_those_based_on_them_are_the_papers(path):
    config = load_config(path)
    negatives, train = config.negatives, config.train
    assert (negatives.source, negatives.sizes, negatives.shape) == ("flow", "uniform", "rectangle")
    assert (negatives.patches, negatives.tint, negatives.decoys, negatives.feather_px) == (1, 0.0, 0, 0)
    assert (train.third_stage, train.joint_flow_lr > 0, config.segmenter.outlier) == ("joint", True, "none")
    assert (config.loss.negative, config.loss.negative_weight, config.score.kind) == ("jsd", 0.03, "jsd")


def test_the_reference_names_every_key_once_with_its_default():
    tree = yaml.safe_load((CONFIGS / "aerial.yaml").read_text(encoding="utf-8"))
    assert list(tree) == list(Config.model_fields)
    assert tree.pop("version") == CONFIG_VERSION
    reference = load_config(CONFIGS / "aerial.yaml").model_dump()
    for section in tree:
        field = Config.model_fields[section]
        kind = DataConfig if section == "data" else field.annotation
        assert list(tree[section]) == list(kind.model_fields), section
        for key, one in kind.model_fields.items():
            given = [("data", key) for key in ("root", "images", "labels")] + [("score", "kind")]
            if one.default is not PydanticUndefined and (section, key) not in given:
                assert reference[section][key] == one.default, f"{section}.{key}"


@pytest.mark.parametrize(
    ("sections", "kind"),
    [
        ({}, "combined"),
        ({"data": {"kind": "photos"}}, "combined"),
        ({"score": {"encoder_bank": 0}}, "hybrid"),
        ({"score": {"smooth_px": 2}}, "combined"),
        ({"score": {"kind": "energy"}}, "energy"),
        ({"segmenter": {"outlier": "none"}, "train": {"third_stage": "joint"}}, "jsd"),
        ({"segmenter": {"outlier": "class"}, "train": {"third_stage": "joint"}}, "uno"),
    ],
)
def test_a_score_that_is_not_named_is_one_that_the_network_has(sections, kind):
    data = {"images": ["*.tif"], "labels": ["*.tif"], "classes": {0: "land", 1: "road"}} | sections.get("data", {})
    config = Config.model_validate(sections | {"data": data})
    assert config.score.kind == kind
    again = Config.model_validate(config.model_dump() | {"data": config.data.model_dump() | {"kind": "scenes"}})
    assert again.score.kind == kind  # once settled, it stays


def test_the_reference_explains_every_key():
    lines = (CONFIGS / "aerial.yaml").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("  ") and ":" in line and not line.startswith("   "):
            assert "#" in line, line


def test_the_shipped_schema_is_that_of_the_code():
    assert json.loads((CONFIGS / "geood.schema.json").read_text(encoding="utf-8")) == config_schema()


def test_yaml_and_json_round_trips(write):
    numbers = "data.label_ids={-1: 255, 0: 7, -2147483648: 9, 2147483647: 0}"  # as signed rasters hold them
    config = load_config(write(SMALL), ["train.batch=3", "data.anomaly=[7, 9]", numbers])
    assert load_config(write(to_yaml(config), "again.yaml")) == config
    assert config_from_tree(json.loads(config.model_dump_json()), source="here") == config


def test_named_sets_say_what_is_learned_and_what_is_held_out(write):
    text = "data:\n  sets: [{name: camvid}]\n  hold_out: [pedestrian, bicyclist]\n"
    config = load_config(write(text))
    assert (config.data.kind, sorted(config.data.classes), config.data.anomaly) == ("photos", list(range(9)), [9, 10])
    assert load_config(write(to_yaml(config), "again.yaml")) == config
    assert config_from_tree(json.loads(config.model_dump_json()), source="here") == config
    assert change_config(config, ["data.hold_out=[car]"]).data.anomaly == [8]


def test_what_is_held_out_has_the_names_of_the_config_or_of_its_data_sets(write):
    text = "data:\n  sets: [{name: camvid}]\n  hold_out: [pedestrian, bicyclist]\n"
    assert load_config(write(text)).data.anomaly_names == {9: "pedestrian", 10: "bicyclist"}
    assert load_config(write(SMALL), ["data.anomaly={9: slum}"]).data.anomaly_names == {9: "slum"}
    assert load_config(write(SMALL), ["data.anomaly=[9]"]).data.anomaly_names == {}


def test_exponents_without_a_dot_are_numbers(write):
    assert load_config(write(SMALL), ["train.flow_lr=1e-4"]).train.flow_lr == 1e-4


def test_root_starts_from_the_file_and_an_override_from_the_current_folder(write, tmp_path, monkeypatch):
    path = write(SMALL)
    assert load_config(path).data.root == str(tmp_path.resolve())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(path, ["data.root=x"]).data.root == str(tmp_path / "elsewhere" / "x")


# A config on the base of another one


def test_the_keys_of_the_file_win_and_all_others_are_the_base_s(write):
    write(
        SMALL + "  crop_px: 160\n  anomaly: [5]\ntrain: {seed: 3, batch: 2}\nscore: {temperature: 4.0}\n", "base.yaml"
    )
    config = load_config(
        write("base: base.yaml\ndata: {anomaly: [7, 9], classes: {0: sea, 4: ice}}\ntrain: {seed: 8}\n")
    )
    assert (config.data.anomaly, config.data.classes) == ([7, 9], {0: "sea", 4: "ice"})  # a key is replaced whole
    assert (config.train.seed, config.train.batch, config.score.temperature) == (8, 2, 4.0)
    assert (config.data.crop_px, config.data.images) == (160, ["a.tif"])
    assert config.flow == load_config(write(SMALL, "plain.yaml")).flow


def test_a_file_with_a_base_equals_the_same_keys_in_one_file(write):
    write(SMALL, "base.yaml")
    rest = "train: {seed: 8}\nnegatives: {patches: 2}\n"
    assert load_config(write("base: base.yaml\n" + rest)) == load_config(write(SMALL + rest, "whole.yaml"))
    assert load_config(write("base: base.yaml\n")) == load_config(write(SMALL, "whole.yaml"))


def test_a_file_may_take_its_pixels_from_elsewhere_than_its_base(write):
    named = "data: {sets: [{name: camvid}], hold_out: [car], crop_px: 128}\nnegatives: {patch_max_px: 64}\n"
    write(named, "named.yaml")
    write(SMALL + "  kind: photos\n  anomaly: [7]\n  crop_px: 128\nnegatives: {patch_max_px: 64}\n", "own.yaml")
    own = load_config(write("base: named.yaml\n" + SMALL)).data
    assert (own.kind, own.sets, own.hold_out, own.classes, own.crop_px) == (
        "scenes",
        [],
        [],
        {0: "land", 1: "road"},
        128,
    )
    other = load_config(write("base: own.yaml\ndata: {images: [b.png], labels: [b_ids.png]}\n")).data
    assert (other.kind, other.images, other.anomaly) == ("photos", ["b.png"], [7])
    back = load_config(write("base: own.yaml\ndata: {sets: [{name: camvid}]}\n")).data
    assert (back.kind, back.images, len(back.classes), back.anomaly, back.crop_px) == ("photos", [], 11, [], 128)


def test_a_base_may_have_a_base_each_beside_its_own_file(write, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(SMALL + "train: {seed: 1, batch: 1, joint_steps: 1}\n", "a/b/last.yaml")
    write("base: b/last.yaml\ntrain: {batch: 2, joint_steps: 2}\n", "a/middle.yaml")
    train = load_config(write("base: a/middle.yaml\ntrain: {joint_steps: 3}\n")).train
    assert (train.seed, train.batch, train.joint_steps) == (1, 2, 3)


@pytest.mark.parametrize(
    ("above", "below", "wanted"),
    [
        ("", "", "."),
        ("", "deep", "a/deep"),
        ("mine", "deep", "mine"),
        ("mine", "", "mine"),
        ("/there", "deep", "/there"),
    ],
)
def test_root_starts_from_the_file_that_states_it_or_else_from_the_one_that_is_loaded(
    write, tmp_path, above, below, wanted
):
    (tmp_path / "a").mkdir()
    write(SMALL + (f"  root: {below}\n" if below else ""), "a/base.yaml")
    path = write("base: a/base.yaml\n" + (f"data: {{root: {above}}}\n" if above else ""))
    assert load_config(path).data.root == str((tmp_path / wanted).resolve())


def test_overrides_win_over_both(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    write(SMALL + "  root: deep\ntrain: {seed: 1, batch: 2}\n", "base.yaml")
    path = write("base: base.yaml\ntrain: {seed: 5}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(path, ["train.seed=6", "train.batch=7", "data.root=x"])
    assert (config.train.seed, config.train.batch) == (6, 7)
    assert config.data.root == str(tmp_path / "elsewhere" / "x")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train: {seed: 1}\nbase: my.yaml\n", ["my.yaml, line 2: base: my.yaml leads back to this file; leave it out"]),
        ("base: loop.yaml\n", ["my.yaml, line 1: base: loop.yaml leads back"]),
        ("base: bsae.yaml\n", ["bsae.yaml: no such config file; did you mean", "base.yaml?"]),
        ("base: .\n", ["no such config file"]),
        ("base: 3\n", ["line 1: base: got 3; give the path of another config"]),
        ("base:\n", ["line 1: base: got None; give the path"]),
        ("base: [base.yaml]\n", ["base: got ['base.yaml']"]),
        ("base: list.yaml\n", ["list.yaml: a config is a mapping"]),
        ("base: broken.yaml\n", ["broken.yaml, line 3: not valid YAML"]),
        ("base: base.yaml\n", ["line 7 of base.yaml: train.sed is not a key; did you mean train.seed?"]),
        ("base: middle.yaml\n", ["line 7 of base.yaml", "train.sed is not a key"]),
        (
            "base: base.yaml\ntrain: {batch: none}\n",
            ["line 2: train.batch: got 'none'", "line 7 of base.yaml: train.sed"],
        ),
        ("base: base.yaml\ntrain: 3\n", ["my.yaml, line 2: train"]),
        ("base: sets.yaml\ndata: {images: [a.png]}\n", ["data.classes is missing"]),
    ],
)
def test_a_fault_in_or_on_a_base_is_refused_with_its_file_and_line(write, text, wanted):
    write(SMALL + "train:\n  batch: 2\n  sed: 1\n", "base.yaml")
    write("base: base.yaml\n", "middle.yaml")
    write("base: my.yaml\n", "loop.yaml")
    write("- 1\n", "list.yaml")
    write("data:\n  images: [\n", "broken.yaml")
    write("data:\n  sets: [{name: camvid}]\n", "sets.yaml")
    with pytest.raises(ConfigError) as error:
        load_config(write(text))
    for part in wanted:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (SMALL + "train:\n  sed: 1\n", ["line 6", "train.sed", "did you mean train.seed"]),
        (SMALL + "trian: {}\n", ["line 5", "trian", "did you mean train"]),
        (SMALL + "train:\n  batch: '8'\n", ["line 6", "train.batch", "'8'", "valid integer"]),
        (SMALL + "train:\n  batch: 8.0\n", ["train.batch", "8.0", "integer"]),
        (SMALL + "train:\n  precision: half\n", ["line 6", "'half'", "'32-true', '16-mixed' or 'bf16-mixed'"]),
        (
            SMALL + "score: {kind: max_softmx}\n",
            ["score.kind", "'max_softmx'", "'entropy'", "did you mean max_softmax?"],
        ),
        (SMALL + "data:\n  images: [c.tif]\n", ["line 5", "duplicate key data; remove one"]),
        (SMALL + "train: 3\n", ["line 5", "train"]),
        (SMALL.replace("  labels: [b.tif]\n", ""), ["line 1", "data: labels missing"]),
        (SMALL + "  anomaly: [1]\n", ["both classes and anomaly", "1"]),
        (SMALL + "  anomaly: [255]\n", ["255", "0 to 254"]),
        (SMALL + "  crop_px: 250\n", ["line 5", "data.crop_px", "250", "multiple of 32"]),
        (SMALL + "negatives: {patch_max_px: 200}\n", ["patch_max_px 200", "crop_px"]),
        (
            SMALL + "flow: {levels: 4}\nnegatives: {source: {phase: 1, flow: 1}, patch_max_px: 56}\n",
            ["patch_max_px", "multiple of 2^flow.levels = 16"],
        ),
        (SMALL + "score: {feature_bank: 5}\n", ["score.feature_bank", "5", "100 features"]),
        (SMALL + "negatives: {source: fow}\n", ["line 5", "negatives.source: got 'fow'", "did you mean flow?"]),
        (SMALL + "negatives: {source: {fow: 1}}\n", ["negatives.source.fow", "did you mean flow?"]),
        (SMALL + "negatives: {source: {phase: 0}}\n", ["negatives.source.phase: got 0", "greater than 0"]),
        (SMALL + "negatives: {source: {}}\n", ["negatives.source: got {}", "at least 1 item"]),
        (SMALL + "negatives: {source: {phase: 1, none: 1}}\n", ["source none cannot be mixed", "leave it out"]),
        (
            SMALL + "negatives: {source: {phase: 1, folder: 1}}\n",
            ["source folder and the key folder", "name the folder"],
        ),
        (SMALL + "negatives: {feather_px: 3}\n", ["feather_px 3", "blob of 8 px", "at most 1"]),
        (SMALL + "  images: [\n", ["not valid YAML"]),
        (SMALL + "train: {seed: 2020-13-45}\n", ["line 5", "'2020-13-45'", "valid integer"]),
        ("- 1\n", ["mapping"]),
        ("data:\n  sets: [{name: cityscape}]\n", ["cityscape", "did you mean cityscapes?"]),
        ("data:\n  sets: [{nam: camvid}]\n", ["line 2", "data.sets.0.nam", "did you mean data.sets.0.name?"]),
        ("data:\n  sets: [{name: camvid}, {name: cityscapes}]\n", ["classes of camvid", "must share them"]),
        ("data:\n  sets: [{name: smiyc-anomaly}]\n", ["nothing to train on"]),
        ("data:\n  sets: [{name: camvid}]\n  hold_out: [pedestrain]\n", ["did you mean pedestrian?"]),
        ("data:\n  sets: [{name: camvid}]\n  kind: scenes\n", ["kind follows from sets", "leave it out"]),
        ("data:\n  sets: [{name: camvid}]\n  images: [a.png]\n", ["leave one of them out"]),
        (SMALL + "  hold_out: [road]\n", ["hold_out is for sets", "under anomaly"]),
        (SMALL + "  label_ids: {2: 300}\n", ["label_ids map to [300]", "not in 0 to 255"]),
    ],
)
def test_a_fault_is_refused_with_place_value_and_remedy(write, text, wanted):
    path = write(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    for part in [str(path), *wanted]:
        assert part in str(error.value)


def test_a_missing_file_names_its_neighbour(write, tmp_path):
    write(SMALL, "aerial.yaml")
    with pytest.raises(ConfigError, match=r"aerail\.yaml: no such config file; did you mean .*aerial\.yaml"):
        load_config(tmp_path / "aerail.yaml")


@pytest.mark.parametrize("override", ["train.seed", "seed=1", "a.b.c=1", "train.seed=[", "train.sede=1"])
def test_a_bad_override_is_refused_and_named(write, override):
    with pytest.raises(ConfigError) as error:
        load_config(write(SMALL), [override])
    assert override in str(error.value)


@pytest.mark.parametrize("name", ["", " ", "\x1b[31mred", "a\nb", "half \ud800", "x" * 201, "turned \u202e"])
def test_a_class_name_that_cannot_be_shown_is_refused(name):
    tree = {"images": ["a.tif"], "labels": ["b.tif"], "classes": {0: "land", 1: name}}
    with pytest.raises(ValueError, match="is no name to be shown") as error:
        Config.model_validate({"data": tree})
    assert "\x1b" not in str(error.value.errors()[0]["msg"])


@pytest.mark.parametrize("strides", [[16, 8], [8, 8], [32], [0]])
def test_strides_that_a_head_cannot_see_are_refused(strides):
    with pytest.raises(ValidationError, match="outlier_strides"):
        SegmenterConfig(outlier_strides=strides)
    assert SegmenterConfig(outlier_strides=[]).outlier_strides == []


@pytest.mark.parametrize("key", ["tile_px", "halo_px"])
def test_a_tile_has_an_upper_bound(key):
    tree = {"images": ["a.tif"], "labels": ["b.tif"], "classes": {0: "land", 1: "road"}}
    with pytest.raises(ValueError, match="less than or equal"):
        Config.model_validate({"data": tree, "predict": {key: 1_000_000_000_000}})


def test_sections_are_frozen(write):
    config = load_config(write(SMALL))
    with pytest.raises(ValueError, match="frozen"):
        config.train.seed = 3
