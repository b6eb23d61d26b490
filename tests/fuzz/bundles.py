"""Bundles: edits of the JSON header by type and by text, of the safetensors header, of tensors, and of bytes.

A bundle that loads must come back the same from `save`, scale pixels, and score; `geood info` must be able to show it.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz.law import Case
from fuzz.material import tiny_bundle
from fuzz.mutations import Rng, damage, edited, json_bytes, odd_json, pick
from geood.cli.app import info
from geood.errors import ConfigError, GeoodError
from geood.models.bundle import ModelBundle

SETTINGS = ((), ("score.kind=energy",), ("score.smooth_px=3",), ("score.temperature=2",), ("predict.tile_px=64",))
SHAPES = ([], [0], [1], [2**31], [2**40, 2**40], [-1], [1.5], "x", None, [3, 3, 3, 3])
DTYPES = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", "", 7, None)
MOST_BANDS = 16


def stock(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the safetensors header of a valid bundle, and its tensors' bytes."""
    import torch._dynamo  # noqa: F401  it makes a folder when it is first loaded, which a case may do

    data = tiny_bundle(folder).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def case(rng: Rng, stock: tuple[dict[str, Any], bytes]) -> Case:
    """Return a bundle whose header, tensors or bytes are not what they were."""
    header, tensors = stock
    told = json.loads(header["__metadata__"]["geood"])
    kind, header = int(rng.integers(20)), dict(header)
    if kind < 11:
        text = json_bytes(edited(told, rng)).decode()
    elif kind < 14:
        text = odd_json(json_bytes(told), rng).decode("utf-8", "replace")
    else:
        text = header["__metadata__"]["geood"]
    header["__metadata__"] = {"geood": text}
    if kind in (14, 15, 16):
        name = pick(rng, sorted(header))
        header[name] = _odd_tensor(header[name], rng)
    data = _written(json_bytes(header), tensors)
    if kind == 17:
        data = _written(odd_json(json_bytes(header), rng), tensors)
    elif kind == 18:
        data = _written(json_bytes(header), damage(tensors, rng))
    elif kind == 19:
        data = damage(data, rng)
    return Case({"given/model.safetensors": data}, {"settings": pick(rng, SETTINGS)})


def run(box: Path, options: dict[str, Any], _: Any) -> list[str]:
    """Show the bundle, load it, score with it, and save it again."""
    path = box / "given" / "model.safetensors"
    with redirect_stdout(io.StringIO()), suppress(GeoodError):
        info(path)
    bundle = ModelBundle.load(path)
    saved = box / "made" / "again.safetensors"
    again = bundle.save(saved)
    assert _text(ModelBundle.load(saved)) == _text(bundle)
    assert len(again.identity) == 12
    try:
        assert np.isfinite(bundle.threshold)
    except ConfigError:
        assert not bundle.thresholds or str(bundle.config.score.fpr) not in bundle.thresholds
    bundle = bundle.with_settings(options["settings"])
    if bundle.bands.count <= MOST_BANDS:
        pixels = np.full((bundle.bands.count, 32, 32), 100, np.uint8)
        image = bundle.bands.scale(pixels, np.ones((32, 32), np.bool_))
        score = bundle.score(torch.from_numpy(image)[None])
        assert score.shape == (1, 32, 32)
    return [saved.name]


def _text(bundle: ModelBundle) -> str:
    return json.dumps(bundle.header(), sort_keys=True)


def _odd_tensor(entry: Any, rng: Rng) -> Any:
    """Return the entry of one tensor in the safetensors header with an odd shape, type or place."""
    if not isinstance(entry, dict) or "shape" not in entry:
        return edited(entry, rng)
    kind, (start, end) = int(rng.integers(5)), entry["data_offsets"]
    if kind == 0:
        return entry | {"shape": pick(rng, (*SHAPES, entry["shape"][::-1], [*entry["shape"], 1]))}
    if kind == 1:
        return entry | {"dtype": pick(rng, DTYPES)}
    if kind == 2:
        return entry | {
            "data_offsets": pick(rng, ([end, start], [start, end + 4], [0, 2**63], [-4, 0], [], [start, "x"]))
        }
    return edited(entry, rng)


def _written(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors
