"""Laws of the YAML of configs: what people write is what is read, and nothing else than a ConfigError comes of it."""

import os
from pathlib import Path

import pytest
import yaml

from geood.config.loading import load_config, to_yaml
from geood.config.sections import Config
from geood.config.yaml_text import dump, read_value
from geood.errors import ConfigError
from support.configs import SMALL


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("010", 10),
        ("00", 0),
        ("-07", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("2020-13-45", "2020-13-45"),
        ("=", "="),
        ("1e-4", 1e-4),
        ("1e5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("'010'", "010"),
        ("!!str 010", "010"),
        ("~/scenes", "~/scenes"),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("{a: &x {k: 1}, b: {<<: *x, l: 2}}", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
    ],
)
def test_values_are_those_of_the_core_schema(text, value):
    read, _ = read_value(text)
    assert read == value and type(read) is type(value)


WORDS = "no 010 0o17 0x1F 1:30 1_000 2020-01-01 ~ = << 1e5 1. .5 .nan true on y + - ."
OTHERS = ("", "a: b", "- a", "\udce9", 10, 1e-5, 1e20, True, None, [], {}, {0: "no", 10: "yes"})


@pytest.mark.parametrize("value", [*WORDS.split(), *OTHERS])
def test_what_is_written_is_read_back_here_and_by_yaml_1_1(value):
    assert read_value(dump({"a": value}))[0] == {"a": value} == yaml.safe_load(dump({"a": value}))


def test_every_value_has_its_line():
    _, lines = read_value("a:\n  b: [1,\n    {c: 2}]\n010: x\n")
    assert lines[("a", "b", "1", "c")] == "line 3" and lines[("10",)] == "line 4"


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        ("{00: a, 01: b, 010: ten}", {0: "a", 1: "b", 10: "ten"}),
        ("{0: no, 1: yes}", {0: "no", 1: "yes"}),
        ("{0: a, 1: b, 1:30: c}", "data.classes.1:30: got '1:30'; input should be a valid integer"),
        ("{0: a, 1: a, 2: b}", "data.classes: ids [0, 1] have the same name a; give each class a name of its own"),
        ("{0: a, 1: b, 01: c}", "duplicate key data.classes.1; remove one"),
        ("{0: a, 1: 2}", "data.classes.1: got 2; input should be a valid string; put it in quotes"),
        ("{0: a, 1: true}", "data.classes.1: got True; input should be a valid string; put it in quotes"),
        ("{0: a, 1: ~}", "data.classes.1: got None; input should be a valid string; put it in quotes"),
    ],
)
def test_names_and_ids_of_classes_are_read_as_people_write_them(write, classes, wanted):
    path = write(SMALL.replace("{0: land, 1: road}", classes))
    if isinstance(wanted, dict):
        config = load_config(path)
        assert config.data.classes == wanted
        assert load_config(write(to_yaml(config), "again.yaml")) == config
    else:
        with pytest.raises(ConfigError) as error:
            load_config(path)
        assert f"{path}, line 4" in str(error.value) and wanted in str(error.value)


def test_words_for_true_and_false_are_true_and_false_alone(write):
    with pytest.raises(ConfigError, match=r"line 5: data\.quarter_turns: got 'yes'; .*write true or false"):
        load_config(write(SMALL + "  quarter_turns: yes\n"))


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "base.yaml").write_text(SMALL)
    text = "base: ~/base.yaml\ndata: {root: ~/scenes, images: [~/a.tif]}\nsegmenter: {weights: ~/w.safetensors}\n"
    config = load_config(write(text), ["train.stages_from=~/run"])
    home = str(tmp_path / "home")
    assert config.data.root == f"{home}/scenes" and config.data.images == [f"{home}/a.tif"]
    assert config.segmenter.weights == f"{home}/w.safetensors" and config.train.stages_from == f"{home}/run"
    assert load_config(write(SMALL), ["data.root=~/x"]).data.root == f"{home}/x"
    assert load_config(write(SMALL.replace("a.tif", "a~.tif"))).data.images == ["a~.tif"]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcd", "bcde", strict=True)
)
CHAIN = "l0: &l0 [x]\n" + "".join(f"l{i + 1}: &l{i + 1} [*l{i}]\n" for i in range(2000))
BAD = {
    "deep lists": "[" * 1000,
    "deep mappings": "{a: " * 1000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(300)),
    "an alias to itself": "data: &x\n  a: *x\n",
    "an alias to itself in a list": "data: &x [*x]\n",
    "a merge with itself": "data: &x {<<: *x}\n",
    "an alias to nothing": "data: *x\n",
    "a bomb": BOMB + "train: *e\n",
    "a chain": CHAIN,
    "!!int ''": "a: !!int ''",
    "!!bool x": "a: !!bool x",
    "!!timestamp x": "a: !!timestamp x",
    "!!binary x": "a: !!binary x",
    "!!set": "a: !!set {x}",
    "!!python": "a: !!python/object/apply:os.system [exit]",
    "!own": "a: !own x",
    "half a character": 'data: {root: "\\ud800"}\n',
    "half a character as a base": 'base: "\\ud800"\n',
    "a zero byte": 'base: "a\\0b"\n',
    "an escape sequence": 'data: "\\e[31m"\n',
    "an escape sequence as a key": '"\\e[31m": 1\n',
    "a tab in a name": 'data: {classes: {0: "a\\tb"}}\n',
    "a bell": "a: \x07\n",
    "a list as a key": "? [a]\n: b\n",
    "a mapping as a key": "{{a: b}: c}\n",
    "no text as a key": "{~: 1, true: 2, 3.5: 4}\n",
    "many digits": "a: " + "9" * 5000,
    "many hexadecimal digits": "a: 0x" + "f" * 9000,
    "a long key": "a" * 100_000 + ": 1\n",
    "a long value": "data: " + "a" * 100_000 + "\n",
    "many faults": "data: {images: [" + "1, " * 15_000 + "1]}\n",
    "many keys": "".join(f"key{i}: 1\n" for i in range(9000)),
    "too many values": "a: [" + "1, " * 30_000 + "1]\n",
    "too large": "# " + "a" * 1_100_000,
    "two documents": "a: 1\n---\nb: 2\n",
    "a base that is a device": "base: /dev/zero\n",
    "a base that is a folder": "base: /\n",
    "a base that is no file": "base: /proc/self/mem\n",
    "a base that waits": "base: /proc/kmsg\n",
    "a base with a long name": "base: " + "a" * 5000 + "\n",
    "a base of a user that is none": "base: ~nobody_here/x.yaml\n",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_config_made_to_do_harm_is_refused_in_few_words(write, text):
    with pytest.raises(ConfigError) as error:
        load_config(write(text))
    message = str(error.value)
    assert "my.yaml" in message or "base" in text
    assert len(message) < 6000 and message.replace("\n", "").isprintable()


def test_a_pipe_is_no_config(tmp_path, write):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", write("base: pipe.yaml\n")):
        with pytest.raises(ConfigError, match=r"pipe\.yaml"):
            load_config(path)


def test_bases_end_after_a_bounded_number(tmp_path, write):
    for i in range(60):
        write(f"base: c{i + 1}.yaml\n", f"c{i}.yaml")
    with pytest.raises(ConfigError, match="base of 20 files in a row"):
        load_config(tmp_path / "c0.yaml")


OVERRIDES = {
    "!!int": "data.classes=!!int ''",
    "!!timestamp": "x.y=!!timestamp x",
    "!!bool": "x.y=!!bool x",
    "an alias to itself": "train.seed=&a [*a]",
    "an escape sequence": "train.\x1b=1",
    "deep": f"train.seed={'[' * 1000}",
    "many digits": f"train.seed={'9' * 5000}",
    "no equals sign": "a" * 9000,
    "half a character": 'data.root="\\ud800"',
    "no text": "data.root=\udc80",
    "a number": "data.root=3",
}


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
def test_an_override_made_to_do_harm_is_refused_in_few_words(write, override):
    with pytest.raises(ConfigError) as error:
        load_config(write(SMALL), [override])
    assert len(str(error.value)) < 1000 and str(error.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        *(("flow", key) for key in ("steps", "layers", "growth")),
        *(("data", key) for key in ("crop_px", "crops", "workers")),
        *(("train", key) for key in ("batch", "flow_steps", "seed")),
        ("segmenter", "decoder_channels"),
    ],
)
def test_no_config_makes_geood_build_for_ever(write, section, key):
    for value in (2**63, 10**90):
        with pytest.raises(ConfigError, match=rf"{section}\.{key}: got .*less than"):
            load_config(write(SMALL), [f"{section}.{key}={value}"])


def test_a_byte_of_a_file_name_that_is_no_text_survives(tmp_path):
    """The folder of a config may have a name that is not UTF-8; a run keeps it in its config.yaml."""
    data = {"root": "/a\udce9", "images": ["a.tif"], "labels": ["b.tif"], "classes": {0: "a", 1: "b"}}
    config = Config.model_validate({"data": data})
    path = Path(tmp_path / "c.yaml")
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config
