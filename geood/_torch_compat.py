"""Workarounds for defects of torch installations: torchvision without CUDA, its slow import, MKL's first vector call.

Importing torchvision with a CPU-only torch: the public torchvision wheel is built against a CUDA torch. With a CPU-only
torch its compiled operators do not load, and `import torchvision` fails with `operator torchvision::nms does not
exist`, because it registers shape functions for two undeclared operators. TorchGeo and timm import torchvision,
although geood uses none of its operators. Declaring the two schemas first is enough for the import. If the real
operators load, nothing is done. Call `declare_missing_operators` before the first import of torchvision, timm or
torchgeo.

The import of torchvision also loads torch's compiler (`torch._dynamo`, and with it sympy and a good deal of
torch.distributed), more than a second of a core, for one function that asks whether a device can be compiled for; timm
does so for a mark on one of its. `compiler_on_demand` defers that until such a function is called, and
`import_torchvision` imports torchvision so.

The first exponential of a process: MKL's vector functions (exp, log, tanh ...) initialize themselves in their first
call. If two threads make it at the same time, one of them may get a low-accuracy variant: in one process out of three
to five, half of the first scores were off by 1e-4 (torch 2.13 on two cores). `start_vector_functions` makes that call
on one thread; modules that use these functions run it on import.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

COMPILER = "torch._dynamo"

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


@contextmanager
def compiler_on_demand() -> Iterator[None]:
    """Keep the import of torchvision, in this context, from loading torch's compiler; it is loaded when first used.

    Meanwhile two small modules stand in for it. Whatever other name is asked of them comes from the real ones, which
    take their places; other modules of the compiler cannot be imported here. Nothing is done where the compiler is
    loaded already.
    """
    if COMPILER in sys.modules:
        yield
        return
    standing_in = {name: _StandIn(name) for name in (COMPILER, f"{COMPILER}.utils")}
    sys.modules.update(standing_in)
    try:
        yield
    finally:
        for name, module in standing_in.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def import_torchvision() -> None:
    """Import torchvision, its missing operators declared, without torch's compiler."""
    declare_missing_operators()
    try:
        with compiler_on_demand():
            import_module("torchvision")
    except ImportError:  # of a version that needs more of the compiler
        import_module("torchvision")


class _StandIn(ModuleType):
    """Module in place of one of torch's compiler, which is loaded when anything but these functions is asked of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package, as the real one

    @staticmethod
    def is_compile_supported(device_type: str) -> Any:
        """Return what the compiler's function of this name does."""
        return import_module(f"{COMPILER}.utils").is_compile_supported(device_type)

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
        """Mark a function as not to be compiled; the compiler is loaded when it is called."""
        return import_module("torch._compile")._disable_dynamo(fn, recursive)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for each in (COMPILER, f"{COMPILER}.utils"):
            if isinstance(sys.modules.get(each), _StandIn):
                del sys.modules[each]
        return getattr(import_module(self.__name__), name)


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
