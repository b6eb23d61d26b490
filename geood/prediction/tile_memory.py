"""Memory of one tile: exact for a limit that must be kept, and roughly, where it only has to be known what is safe.

It differs tenfold between encoders, and some scores need more than the network, so it is measured: a tile is scored on
torch's meta device (shapes without arithmetic), which takes a second a size and loads torch's compiler. Roughly it is
told by a pass over a few pixels, in 30 ms. Both count the bytes of tensors that live at once.
"""

from __future__ import annotations

import copy
import math
import os
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geood.models import ModelBundle, cut

SPARE = 1.2  # factor on the tensors of a tile, for fragmentation of the heap (1.05 to 1.15 measured)
BETWEEN = 1.2  # factor on the outputs of modules, for what is computed between them (1.1 to 1.2 measured)
FEW = (64, 96)  # pixels that they are measured on
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # control groups of Linux, and this process's


def tile_bytes(bundle: ModelBundle, side: int, halo_px: int | None = None) -> int:
    """Return the peak bytes of live tensors while a tile of side `side` gets score and classes, in float32.

    That is of all that is computed: the network, and on its answer the bundle's score, smoothed if it is to be.
    `halo_px` on each side are halo; None: as many as the bundle's tiles have.
    """
    network = copy.deepcopy(bundle.segmenter).to("meta")
    inliers = None if bundle.inliers is None else copy.deepcopy(bundle.inliers).to("meta")
    bare = replace(bundle, segmenter=network, inliers=inliers)
    halo_px = bundle.halo_px if halo_px is None else halo_px
    inner = slice(halo_px, side - halo_px)
    image = torch.empty(1, bundle.bands.count, side, side, device="meta")
    valid, kinds = torch.ones((1, side, side), device="meta").bool(), (bundle.config.score.kind,)
    region, core = bare.region_of((inner, inner), (side, side), kinds)
    alive = _Alive()
    with torch.inference_mode(), _EachOperation(alive):
        answer = bare.infer(image, kinds, region)
        score = bare.score_of(answer, cut(image, region), cut(valid, region), core=core)
        classes = answer.logits[:, :, *core].argmax(1).to(torch.uint8)
        del score, classes
    return alive.peak


def pixel_bytes(bundle: ModelBundle) -> float:
    """Return about how many bytes live tensors of the network take for each pixel of a tile, from a few pixels."""
    alive = _Alive()
    hooks = [
        module.register_forward_hook(lambda _module, _given, output: alive.see(output))
        for module in bundle.segmenter.modules()
    ]
    try:
        bundle.infer(torch.zeros(1, bundle.bands.count, *FEW), (bundle.config.score.kind,))
    finally:
        for hook in hooks:
            hook.remove()
    return BETWEEN * alive.peak / math.prod(FEW)


def machine_holds(bundle: ModelBundle, tile_px: int) -> bool:
    """Return whether half of this machine's memory, or of its container's or job's, holds such a tile for each core.

    Cores are those of the machine, however many are used: the tiles, and so the scores near their seams, must not
    depend on the number of workers.
    """
    from distributed.system import MEMORY_LIMIT  # the machine's, or its container's

    memory, cores = min(MEMORY_LIMIT, *_group_limits()), os.cpu_count() or 1
    side = tile_px + 2 * bundle.halo_px
    return bool(cores * SPARE * pixel_bytes(bundle) * side**2 <= memory / 2)


def _group_limits() -> list[float]:
    """Return the memory limits, in bytes, of the control groups that this process is in, nested ones of batch jobs too.

    Infinity is always among them.
    """
    files, limits = [], [math.inf]
    with suppress(OSError):  # another system
        for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root, name = (GROUPS / "memory", "memory.limit_in_bytes") if kinds else (GROUPS, "memory.max")
            inner = root / path.lstrip("/")
            files += [folder / name for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    for file in files:
        with suppress(OSError, ValueError):  # no such file, as of groups beyond a container, or no limit
            limits.append(int(file.read_text(encoding="utf-8")))
    return limits


class _Alive:
    """Counter of the bytes of live tensors, and of their peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def see(self, output: Any) -> None:
        """Count the tensors of an output, each memory once, for as long as it lives."""
        for tensor in tree_leaves(output):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size: int) -> None:
        self.now -= size


class _EachOperation(TorchDispatchMode):
    """Mode in which the output of each operation of torch is counted."""

    def __init__(self, alive: _Alive) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self._alive = alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._alive.see(output)
        return output
