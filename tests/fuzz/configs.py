"""Configs: YAML with odd tokens, tags, aliases, nesting, types and characters, with bases and overrides.

A config that loads must come back the same from the YAML that geood writes of it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fuzz.law import Case
from fuzz.mutations import PATHS, Rng, damage, pick
from geood.config import load_config, to_yaml
from geood.config.loading import change_config

TEXT = """\
data:
  images: ["*.tif"]
  labels: ["*.tif"]
  classes: {0: land, 1: road, 2: roof}
  anomaly: [7]
  crop_px: 64
segmenter:
  encoder: resnet10t
  outlier: head
flow: {steps: 1, layers: 1, growth: 8}
negatives:
  patch_max_px: 32
train:
  seed: 1
  batch: 2
  flow_lr: 1e-4
score:
  kind: hybrid
predict:
  tile_px: 64
"""
SETS = "data:\n  sets: [{name: cityscapes, folder: cs, split: train}]\n  hold_out: [person]\n"
SCALARS = (
    "010", "0o17", "0x1F", "1_000", "1:30", "no", "yes", "on", "off", "~", "null", ".inf", "-.inf", ".nan", "1e999",
    "1e-4", "-0", "2026-13-01", "2026-01-01", "=", "<<", "!!null", "''", '""', '"\\ud800"', '"\\x00"', '"\\e[31m"',
    "|-", ">", "-", "?", "&", "*", "!", "%", "@", "`", "2147483648", "99999999999999999999", "[]", "{}", "[[]]",
    "{a}", "{a:", "}", '"*.tif"', "1e-400", "0.0", "-1", "1.5", "true", "../..", "/proc/self/mem",
)  # fmt: skip
TAGS = (
    "!!int", "!!float", "!!bool", "!!null", "!!str", "!!binary", "!!timestamp", "!!set", "!!omap", "!!pairs",
    "!!seq", "!!map", "!!python/none", "!x", "!!python/object/apply:os.getcwd", "!!python/name:os.system",
    "!!python/tuple", "!<tag:yaml.org,2002:int>",
)  # fmt: skip
CHARACTERS = (
    "\x00",
    "\t",
    "\ufeff",
    "\x85",
    "\u2028",
    "\x1b[2J",
    "\u202e",
    "é",
    "𝔘",
    "\r",
    "\x7f",
    ":",
    "#",
    "'",
    '"',
    "{",
    "[",
)
KEYS = (
    "data.classes", "data.anomaly", "train.seed", "train.batch", "score.kind", "predict.tile_px", "data.images",
    "flow.steps", "x.y", "data",
)  # fmt: skip


def stock(_: Path) -> tuple[str, ...]:
    """Return valid configs."""
    return TEXT, SETS


def case(rng: Rng, stock: tuple[str, ...]) -> Case:
    """Return a config, perhaps with a base, and overrides of it."""
    text, overrides = stock[0] if rng.integers(6) else stock[1], []
    for _ in range(int(rng.integers(3)) if rng.integers(3) else 0):
        text = pick(rng, CHANGES)(text, rng)
    if rng.integers(2):
        text = _harmless(text, rng)
    files = {"given/config.yaml": text.encode("utf-8", "surrogatepass")}
    if not rng.integers(12):
        files["given/config.yaml"] = damage(files["given/config.yaml"], rng)
    if not rng.integers(6):
        base = pick(
            rng, ("config.yaml", "other.yaml", ".", "..", "/proc/self/mem", "missing.yaml", "{}", "''", "5", *PATHS)
        )
        files["given/config.yaml"] = f"base: {base}\n".encode("utf-8", "surrogatepass") + files["given/config.yaml"]
        other = pick(rng, (stock[0], "base: config.yaml\n", "", "[]", "data: 5\n", "base: ./././config.yaml\n"))
        files["given/other.yaml"] = other.encode()
    while not rng.integers(4):
        overrides.append(f"{pick(rng, KEYS)}{pick(rng, ('=', '=', '=', '', '==', ' = '))}{_value(rng)}")
    return Case(files, {"overrides": overrides})


def run(box: Path, options: dict[str, Any], _: Any) -> list[str]:
    """Load the config with its overrides, write it, and load that again."""
    config = load_config(box / "given" / "config.yaml", options["overrides"])
    again = box / "made" / "again.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(again) == config
    assert change_config(config, ["train.seed=5"]).train.seed == 5
    return [again.name]


def _value(rng: Rng) -> str:
    kind = int(rng.integers(9))
    if kind <= 4:
        return str(pick(rng, SCALARS))
    if kind == 5:
        return f"{pick(rng, TAGS)} {pick(rng, SCALARS)}"
    if kind == 6:
        depth = int(10 ** rng.uniform(1, 3.7))
        return pick(rng, ("[" * depth + "]" * depth, "{a: " * depth + "}" * depth, "[" * depth, "- " * depth + "x"))
    if kind == 7:
        return pick(
            rng, ("&a [*a]", "&a {x: *a}", "*missing", "&a [1, 2]", "{<<: &a {x: 1}}", "{<<: 5}", "{<<: [&a {}, *a]}")
        )
    return str(pick(rng, SCALARS)) * int(10 ** rng.uniform(0, 3))


def _other_value(text: str, rng: Rng) -> str:
    lines = text.split("\n")
    places = [i for i, line in enumerate(lines) if ":" in line]
    if places:
        at = pick(rng, places)
        lines[at] = f"{lines[at].partition(':')[0]}: {_value(rng)}"
    return "\n".join(lines)


def _swapped(text: str, rng: Rng) -> str:
    tokens = text.split(" ")
    a, b = (int(rng.integers(len(tokens))) for _ in range(2))
    tokens[a], tokens[b] = tokens[b], tokens[a]
    return " ".join(tokens)


def _lines_moved(text: str, rng: Rng) -> str:
    lines = text.split("\n")
    at, kind = int(rng.integers(len(lines))), int(rng.integers(4))
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(int(rng.integers(len(lines) + 1)), lines[at])
    elif kind == 2:
        lines[at] = " " * int(rng.integers(1, 5)) + lines[at]
    else:
        lines[at] = lines[at].lstrip()
    return "\n".join(lines)


def _put_in(text: str, rng: Rng) -> str:
    at = int(rng.integers(len(text) + 1))
    return text[:at] + pick(rng, (*CHARACTERS, *TAGS, *SCALARS)) + text[at:]


def _harmless(text: str, rng: Rng) -> str:
    """Return the text with changes that leave it a config: comments, anchors, other numbers, another order."""
    for old, choices in HARMLESS:
        if not rng.integers(3):
            text = text.replace(old, pick(rng, choices))
    head, *sections = re.split(r"^(?=\w)", text, flags=re.MULTILINE)
    rng.shuffle(sections)
    return head + "".join(sections)


def _aliases(text: str, rng: Rng) -> str:
    """Return the text with a value that grows tenfold with each of up to six aliases."""
    depth = int(rng.integers(1, 7))
    levels = "\n".join(f"  l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, depth))
    return f"data:\n  l0: &l0 [x, x]\n{levels}\n  images: *l{depth - 1}\n" + text.replace("data:\n", "", 1)


HARMLESS = (
    ("batch: 2", ("batch: &b 4", "batch: 0x2", "batch: 1_0", "batch: 2 # two", "batch: !!int 2", '"batch": 2')),
    ("seed: 1", ("seed: 0", "seed: 2147483647", "seed: +1", "seed: 0b1")),
    ("flow_lr: 1e-4", ("flow_lr: 0.0001", "flow_lr: 1.e-4", "flow_lr: !!float 1e-4", "flow_lr: .0001")),
    ("{0: land, 1: road, 2: roof}", ("{0: 'no', 1: \"road\", 2: é}", "{2: a, 1: b, 0: c}", "{0: &n x, 1: y, 254: z}")),
    ("[7]", ("[7, 9]", "\n    - 7", "[ 7 ,]", "[7]  # a comment")),
    ("data:", ("# a comment\ndata:", "--- # a document\ndata:", "%YAML 1.1\n---\ndata:")),
    ("\n", ("\r\n", " \n")),
)
CHANGES = (_other_value, _other_value, _other_value, _swapped, _lines_moved, _put_in, _put_in, _aliases)
