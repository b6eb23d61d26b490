"""timm: whole, or no more of it than one network needs.

`import timm` runs a hundred files of networks, and torchvision and the client of a hub with them: half a second of a
core. A network needs the one file that defines it, and timm's layers. `network_maker` runs these alone. The packages
around them, and what they name but do not need, are deferred: they can be imported without being run, and are run when
they are imported the next time. So whoever imports timm or torchvision later in the same process finds them whole, with
the modules that were run before. Functions that were taken from a deferred module import it when they are called.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from torch import nn

from geood._torch_compat import compiler_on_demand, declare_missing_operators, import_torchvision

# What the file of a network imports without need; packages stand before their modules.
UNNEEDED = (
    *("timm", "timm.data", "timm.models", "timm.models._hub"),
    *("torchvision", "torchvision.models", "torchvision.models.feature_extraction", "torchvision.ops"),
)


def timm_library() -> Any:
    """Import the whole of timm on first use, which takes half a second, and torchvision before it."""
    import_torchvision()
    try:
        with compiler_on_demand():
            import timm
    except ImportError:  # of a version that needs more of the compiler
        import timm

    return timm


def network_maker(name: str) -> Callable[..., nn.Module] | None:
    """Return timm's `create_model`, with as many of its files run as a network needs; None: it has no such network."""
    declare_missing_operators()
    try:
        with deferred(UNNEEDED):
            timm, data, models = (sys.modules[package] for package in UNNEEDED[:3])
            vars(timm).setdefault("__version__", import_module("timm.version").__version__)
            constants = vars(import_module("timm.data.constants"))
            vars(data).update({key: value for key, value in constants.items() if key.isupper()})
            for file in _files_of(name, models.__path__):
                import_module(f"timm.models.{file}")
            known = import_module("timm.models._registry").is_model(name)
            make: Callable[..., nn.Module] = import_module("timm.models._factory").create_model
    except (ImportError, AttributeError):  # of a version whose files need more
        known, make = False, timm_library().create_model
    return make if known or timm_library().is_model(name) else None


def _files_of(name: str, folders: Sequence[str]) -> Iterator[str]:
    """Yield the names of the files in folders that define a network, whose name may have the tag of weights behind."""
    for folder in folders:
        for file in sorted(Path(folder).glob("*.py")):
            if _defines(file.read_text(encoding="utf-8"), name.partition(".")[0]):
                yield file.stem


def _defines(source: str, function: str) -> bool:
    return f"\ndef {function}(" in source


@contextmanager
def deferred(names: Sequence[str]) -> Iterator[None]:
    """Let modules be imported in this context without running those of `names` that are not imported yet."""
    found: list[ModuleType] = []
    try:
        for name in names:
            if name not in sys.modules:
                found.append(_unrun(name))
        yield
    finally:
        for module in found:
            del sys.modules[module.__name__]
            _Completion.waiting[module.__name__] = module
        if _Completion not in sys.meta_path:
            sys.meta_path.insert(0, _Completion)


def _unrun(name: str) -> ModuleType:
    """Put a module that is not run, with its functions, where imports look for it; return it."""
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = module_from_spec(spec)
    source: Any = getattr(spec.loader, "get_source", lambda _: None)(name)
    for function in re.findall(r"^def (\w+)", source or "", re.MULTILINE):
        setattr(module, function, partial(_called, name, function))
    sys.modules[name] = module
    return module


def _called(name: str, function: str, /, *arguments: Any, **keywords: Any) -> Any:
    return getattr(import_module(name), function)(*arguments, **keywords)


class _Completion(Loader):
    """Finder and loader of modules that were deferred: they are run as the modules that theirs are bound to."""

    waiting: ClassVar[dict[str, ModuleType]] = {}

    def __init__(self, module: ModuleType, loader: Loader) -> None:
        self.module, self.loader = module, loader

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return how a module is found by the other finders, and loaded by this one, if it waits for that."""
        module = cls.waiting.pop(name, None)
        spec = None if module is None else find_spec(name)
        if spec is not None and spec.loader is not None and module is not None:
            spec.loader = cls(module, spec.loader)
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that was deferred."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Run the file of the module; if that fails, it waits again."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        try:
            self.loader.exec_module(module)
        except BaseException:
            self.waiting[module.__name__] = module
            raise
