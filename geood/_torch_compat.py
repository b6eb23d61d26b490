"""Two things about torch that have to be put right before it is used.

The import of torchvision beside a torch that has no CUDA. The public torchvision wheel is built against a CUDA torch;
next to a CPU-only torch its compiled operators do not load, and `import torchvision` then stops at `operator
torchvision::nms does not exist`, because it describes shapes for two operators nobody declared. TorchGeo and timm
import torchvision although geood uses none of its operators. Declaring the two schemas first is enough for the import.
Where the real operators load, this room does nothing.

Call `declare_missing_operators` before the first import of torchvision, timm or torchgeo.

The first exponential of a process. MKL's vector functions (exp, log, tanh ...) get ready in their first call, and where
two threads make it together one of them may be served by a variant of low accuracy: in one process of three to five
half of the first scores were off by 1e-4 (torch 2.13 on two cores). `start_vector_functions` makes that call alone;
rooms that use these functions run it when they are imported.
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
        True if anything was declared, now or by an earlier call; False where the real operators are there (or
        torchvision is not installed or already imported).
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
    """Make the first call of a vector function in this process, on one thread."""
    import torch

    torch.exp(torch.zeros(1))


def _operators_load() -> bool:
    """Whether torchvision's compiled operators can be loaded next to this torch (loads them, as torchvision would)."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to mend
    libraries = [p for p in Path(spec.origin).parent.glob("_C*") if p.suffix in (".so", ".pyd", ".dylib")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries) and hasattr(torch.ops.torchvision, "nms")
