"""Workarounds for two defects of torch installations: torchvision without CUDA, and MKL's first vector call.

Importing torchvision with a CPU-only torch: the public torchvision wheel is built against a CUDA torch. With a CPU-only
torch its compiled operators do not load, and `import torchvision` fails with `operator torchvision::nms does not
exist`, because it registers shape functions for two undeclared operators. TorchGeo and timm import torchvision,
although geood uses none of its operators. Declaring the two schemas first is enough for the import. If the real
operators load, nothing is done. Call `declare_missing_operators` before the first import of torchvision, timm or
torchgeo.

The first exponential of a process: MKL's vector functions (exp, log, tanh ...) initialize themselves in their first
call. If two threads make it at the same time, one of them may get a low-accuracy variant: in one process out of three
to five, half of the first scores were off by 1e-4 (torch 2.13 on two cores). `start_vector_functions` makes that call
on one thread; modules that use these functions run it on import.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_declared: Any = None  # the torch.library.Library; the schemas live as long as it does


def declare_missing_operators() -> bool:
    """Declare torchvision's two missing operator schemas if its compiled operators cannot be loaded.

    Returns:
        True if the schemas were declared, now or by an earlier call; False if the real operators load, or torchvision
        is not installed or already imported.
    """
    global _declared
    if _declared is not None:
        return True
    if "torchvision" in sys.modules or _operators_load():
        return False
    import torch

    _declared = torch.library.Library("torchvision", "DEF")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            _declared.define(schema)
    return True


def start_vector_functions() -> None:
    """Initialize MKL's vector functions in this process by a first call on one thread."""
    import torch

    torch.exp(torch.zeros(1))


def _operators_load() -> bool:
    """Load torchvision's compiled operators, as torchvision would; return False if they do not fit this torch."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # not installed: no workaround needed
    libraries = [p for p in Path(spec.origin).parent.glob("_C*") if p.suffix in (".so", ".pyd", ".dylib")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries) and hasattr(torch.ops.torchvision, "nms")
