"""Tensors of a bundle: compared by name, shape and type with the networks of its header, then loaded.

The networks that a header asks for are first built without memory (on torch's device "meta"). Only if the file holds
just their tensors, by its own table of contents, are they built in earnest and filled, so that a file never takes more
memory than a few times its size. Nothing is known of headers, configs or JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from geood.errors import shown
from geood.models.encoder_bank import AXES, neighbours_elsewhere, spans
from geood.models.inlier_statistics import Inliers
from geood.models.tails import KNOTS

PARTS = ("segmenter", "flow", "inliers")
TYPES = {  # names of safetensors
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# The functions of `nn.init` among them call the methods where no mode sees it.
DRAWING = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
Network = TypeVar("Network", bound=nn.Module)
MOST_OF_FILE = 4  # times the file's size that the tensors of a segmenter may take while it is built, besides SLACK
SLACK = 1 << 26  # bytes
NARROW_AXES = 32  # most axes of a bank of stride 8 alone, as formats before 5 have it


class TensorKind(NamedTuple):
    """Shape and type of a tensor, which are known before it is read."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """Return them as in `F32 [3, 64]`."""
        return f"{self.dtype} {list(self.shape)}"


class BundleTensors:
    """Tensors of one bundle file, by part (segmenter, flow, inliers) and name; read when a network takes them."""

    def __init__(self, path: Path) -> None:
        """Read the file's table of contents.

        Raises:
            SafetensorError: the file is damaged.
            ValueError: it holds a tensor of no known part.
        """
        self._path = path
        self._kinds: dict[str, dict[str, TensorKind]] = {}
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                part, _, name = key.partition(".")
                if part not in PARTS or not name:
                    raise ValueError(f"it holds a tensor {shown(key)}, which belongs to no network")
                stored = file.get_slice(key)
                kind = TensorKind(tuple(stored.get_shape()), str(stored.get_dtype()))
                self._kinds.setdefault(part, {})[name] = kind

    def __contains__(self, part: str) -> bool:
        """Return whether there are tensors of a part."""
        return part in self._kinds

    def fill(self, part: str, make: Callable[..., Network], *arguments: Any) -> Network:
        """Build a network by calling `make` with arguments, which can be hashed, and load its tensors.

        A segmenter is built once, without its random numbers, in no more memory than its tensors justify. A flow
        computes with what it draws, so it is compared in a form without memory first.

        Raises:
            SafetensorError: the file is damaged.
            ValueError: it does not hold just the tensors of that network.
        """
        found = self._kinds.get(part, {})
        if part == "segmenter":
            with _Undrawn(MOST_OF_FILE * self._path.stat().st_size + SLACK):
                network = make(*arguments)
            _compare(part, found, _kinds_of(network))
        else:
            _compare(part, found, _wanted(make, *arguments))
            network = make(*arguments)
        network.load_state_dict(self._read(part))
        return network

    def inliers(self, classes: int, features: int, encoder: tuple[int, int], *, head: bool) -> Inliers | None:
        """Load the inlier statistics of `classes` classes and of features of so many channels; None without any.

        `features` are the decoder's, `encoder` those of the encoder at strides 8 and 16. Tails need the bank of the
        encoder and an outlier head.

        Raises:
            SafetensorError: the file is damaged.
            ValueError: the tensors are no such statistics.
        """
        kinds = self._kinds.get("inliers")
        if kinds is None:
            return None
        _compare("inliers", kinds, _of_inliers(kinds, classes, features, encoder))
        if not head and (tails := sorted(name for name in kinds if name.startswith("tail_"))):
            raise ValueError(f"it holds a tensor inliers.{tails[0]}, and its segmenter has no outlier head")
        tensors = self._read("inliers")
        if bent := [
            name for name in tensors if name.startswith("tail_") and not bool((tensors[name].diff() > 0).all())
        ]:
            raise ValueError(f"the numbers of its tensor inliers.{bent[0]} do not increase")
        reach = tensors.get("encoder_reach")
        if reach is not None and not bool((reach.isfinite() & (reach > 0)).all()):
            raise ValueError("its tensor inliers.encoder_reach is no distance")
        rows = tensors.get("encoder_classes")
        known = torch.arange(classes, dtype=torch.float32)
        if rows is not None and not bool((torch.isin(rows, known) & (rows.diff(prepend=rows[:1]) >= 0)).all()):
            raise ValueError("its tensor inliers.encoder_classes does not hold classes in order")
        if "tail_encoder_ratio" in tensors and (rows is None or not neighbours_elsewhere(spans(rows))):
            raise ValueError("it holds a tensor inliers.tail_encoder_ratio, and its bank is of one class")
        told = tensors.get("encoder_reviewed")
        if told is not None and not bool(((told == 0) | (told == 1)).all()):
            raise ValueError("its tensor inliers.encoder_reviewed holds other values than 0 and 1")
        return Inliers(tensors)

    def _read(self, part: str) -> dict[str, Tensor]:
        with safe_open(self._path, framework="pt") as file:
            return {name: file.get_tensor(f"{part}.{name}") for name in self._kinds[part]}


@lru_cache(maxsize=16)
def _wanted(make: Callable[..., nn.Module], *arguments: Any) -> Mapping[str, TensorKind]:
    """Return the tensors of a network, which is built without memory; that takes longer than to load a small one."""
    with torch.device("meta"), _Undrawn():
        return _kinds_of(make(*arguments))


def _kinds_of(network: nn.Module) -> dict[str, TensorKind]:
    return {name: TensorKind(tuple(t.shape), TYPES[t.dtype]) for name, t in network.state_dict().items()}


class _Undrawn(TorchFunctionMode):
    """Mode in which no random numbers are drawn: without memory, torch's compiler would be loaded for them.

    With a limit, tensors made in it that would take more bytes together are a ValueError, before they are touched.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self._left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DRAWING:
            return args[0] if args else kwargs["tensor"]
        made = func(*args, **(kwargs or {}))
        if func is torch.empty and self._left is not None:
            self._left -= made.nbytes
            if self._left < 0:
                raise ValueError("the network of its config is much larger than the file")
        return made


def _compare(part: str, found: Mapping[str, TensorKind], wanted: Mapping[str, TensorKind]) -> None:
    """Check that tensors are those of a network, by name, shape and type.

    Raises:
        ValueError: they are not; the message names the first.
    """
    for name, kind in wanted.items():
        if name not in found:
            raise ValueError(f"it lacks the tensor {part}.{name}, which the network of its config has")
        if found[name] != kind:
            raise ValueError(f"its tensor {part}.{name} is {found[name]}, and the network of its config has {kind}")
    if strange := sorted(set(found) - set(wanted)):
        raise ValueError(f"it holds a tensor {part}.{shown(strange[0])}, which the network of its config lacks")


def _of_inliers(
    found: Mapping[str, TensorKind], classes: int, features: int, encoder: tuple[int, int]
) -> dict[str, TensorKind]:
    """Return the tensors that inlier statistics consist of; their numbers of templates, axes and features are free."""
    free = ("log_templates", "axes", "bank", "mixture_centres", "encoder_near", "encoder_false")
    templates, axes, kept, centres, near, false = (_rows(found, name) for name in free)
    shapes: dict[str, tuple[int, ...]] = {
        "logit_mean": (classes,),
        "logit_std": (classes,),
        "log_templates": (templates, classes),
    }
    if "encoder_near" in found:
        narrow = _rows(found, "encoder_shift") == encoder[0]
        seen, most = (encoder[0], NARROW_AXES) if narrow else (sum(encoder), AXES)
        principal = min(most, seen)
        shapes |= {"encoder_shift": (seen,), "encoder_axes": (seen, principal), "encoder_near": (near, principal)}
        if "encoder_classes" in found:  # formats before 4 did not keep them
            shapes["encoder_classes"] = (near,)
            if "encoder_reviewed" in found:  # only where reviewed places are in the bank
                shapes["encoder_reviewed"] = (near,)
        if "encoder_false" in found or "encoder_reach" in found:  # only where false alarms were reviewed
            shapes |= {"encoder_false": (false, principal), "encoder_reach": (1,)}
    if "tail_encoder_knn" in found and "encoder_near" in found:
        shapes |= {"tail_hybrid": (KNOTS,), "tail_encoder_knn": (KNOTS,)}
        if "tail_encoder_ratio" in found:  # formats before 7 did not know it
            shapes["tail_encoder_ratio"] = (KNOTS,)
    if set(found) - set(shapes):
        shapes |= {
            "feature_mean": (features,),
            "feature_std": (features,),
            "axes": (axes, features),
            "unit_mean": (features,),
            "unit_std": (features,),
            "bank": (kept, features),
            "mixture_root": (features, features),
            "mixture_centres": (centres, features),
            "mixture_log_weights": (centres,),
        }
    return {name: TensorKind(shape, TYPES[torch.float32]) for name, shape in shapes.items()}


def _rows(found: Mapping[str, TensorKind], name: str) -> int:
    shape = found[name].shape if name in found else ()
    return max(1, shape[0]) if shape else 1
