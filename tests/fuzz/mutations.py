"""Mutations that several kinds share: of bytes, of text, and of trees of JSON values."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

Rng = np.random.Generator
WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
NUMBERS = (0, -1, 1, 2, 7, 255, 256, 65536, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, 1e-300, 1e300, 1.7e308)
NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "x", "0", "-1", "1e999", "nan", "null", "a\x00b", "\x1b[31mred\x1b[0m", "\ud800", "\u202e", "é" * 300)
PATHS = ("..", "../x", "/", "x/y", ".", "/nowhere/at/all", "~", "a;b", "a?b#c%20", "x\ny", "\udcff")


def pick(rng: Rng, choices: Any) -> Any:
    """Return one of a sequence, as it is: numpy would convert it."""
    return choices[int(rng.integers(len(choices)))]


def odd_value(rng: Rng) -> Any:
    """Return a value that a careless reader does not expect."""
    kind = rng.integers(8)
    if kind == 0:
        return pick(rng, (None, True, False))
    if kind in (1, 2):
        return pick(rng, NUMBERS)
    if kind == 3:
        return pick(rng, NOT_NUMBERS)
    if kind in (4, 5):
        return pick(rng, TEXTS)
    if kind == 6:
        return pick(rng, PATHS)
    return pick(rng, ([], {}, [[]], {"": None}, [None] * 5, list(range(100)), {"a": {"b": {}}}, ["x", 1, None]))


def damage(data: bytes, rng: Rng, most: int = 4) -> bytes:
    """Return bytes with one to `most` flips, cuts, insertions, repetitions, blanks or odd words."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, most + 1))):
        size = len(out)
        at, length = int(rng.integers(size + 1)), int(min(2 ** rng.integers(0, 13), size + 1))
        kind = int(rng.integers(8))
        if kind in (0, 1) and size:
            out[at % size] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = rng.bytes(int(min(length, 64)))
        elif kind == 5:
            out[at:at] = out[at : at + length]
        elif kind == 6:
            out[at : at + length] = bytes(len(out[at : at + length]))
        elif size:
            width = pick(rng, (1, 2, 4, 8))
            word = (pick(rng, WORDS) & (256**width - 1)).to_bytes(width, pick(rng, ("little", "big")))
            out[at : at + width] = word
    return bytes(out)


def edited(tree: Any, rng: Rng, most: int = 3) -> Any:
    """Return a copy of a JSON tree with one to `most` of its nodes replaced, dropped, wrapped, doubled or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(int(rng.integers(1, most + 1))):
        places = [(parent, key) for parent, key in _places(tree) if _there(parent, key)]
        if not places:
            return odd_value(rng)
        parent, key = pick(rng, places)
        kind = int(rng.integers(8))
        if kind <= 3:
            parent[key] = odd_value(rng)
        elif kind == 4:
            del parent[key]
        elif kind == 5:
            parent[key] = pick(rng, ([parent[key]], {"x": parent[key]}, [parent[key], parent[key]], str(parent[key])))
        elif kind == 6 and isinstance(parent[key], (int, float)):
            parent[key] = pick(rng, NUMBERS + NOT_NUMBERS)
        elif isinstance(parent, dict):
            parent[pick(rng, (*TEXTS, "extra"))] = parent.pop(key) if rng.integers(2) else copy.deepcopy(parent[key])
        else:
            parent.insert(int(rng.integers(len(parent) + 1)), odd_value(rng))
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found = []
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            found.append((tree, key))
            found += _places(tree[key])
    return found


def _there(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else key < len(parent)


def json_bytes(tree: Any) -> bytes:
    """Return JSON as Python reads it, NaN and half surrogates (escaped) included."""
    return json.dumps(tree).encode()


def odd_json(text: bytes, rng: Rng) -> bytes:
    """Return JSON that is no JSON, or hardly: damaged, deep, with endless numbers, with doubled keys."""
    kind = int(rng.integers(6))
    if kind == 0:
        depth = int(10 ** rng.uniform(1, 5.3))
        return b"[" * depth + b"]" * depth
    if kind == 1:
        return text.replace(b"1", b"1" * int(10 ** rng.uniform(1, 4)), 1)
    if kind == 2 and b"{" in text:
        return text.replace(b"{", b'{"a": 1, "a": 2, ', 1)
    if kind == 3:
        return text.replace(b'"', b"'")
    if kind == 4:
        return pick(rng, (b"", b"null", b"[]", b"{}", b"0", b'""', b"\xff\xfe{\x00}\x00", b"NaN", b"{" * 3))
    return damage(text, rng)
