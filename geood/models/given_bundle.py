"""A bundle as it may be given to a function: the object, its file, or the folder of its run.

What runs in several processes needs a file, which workers open by its path: an object is written to a temporary one for
as long as the function takes. What runs in this process needs the object: a path is loaded. No torch is imported for a
path alone.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from geood.errors import ConfigError

if TYPE_CHECKING:
    from geood.models.bundle import ModelBundle

BUNDLE_FILE = "model.safetensors"
AnyBundle: TypeAlias = "ModelBundle | str | Path"
P = ParamSpec("P")
T = TypeVar("T")


def bundle_of(given: AnyBundle) -> ModelBundle:
    """Return the bundle that was given as an object, a file or the folder of a run, without its flow.

    Raises:
        BundleError: the file is missing or is no bundle.
    """
    from geood.models.bundle import ModelBundle

    return ModelBundle.load(bundle_path_of(given), flow=False) if isinstance(given, str | Path) else given


def bundle_path_of(given: AnyBundle | None) -> Path:
    """Return the file of a bundle that was given as a file or the folder of a run.

    Raises:
        ConfigError: none was given.
    """
    if not isinstance(given, str | Path):
        raise ConfigError("no model: give bundle=, a ModelBundle, the path of its file, or the folder of its run")
    path = Path(given)
    return path / BUNDLE_FILE if path.is_dir() else path


def takes_bundle(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function whose keyword `bundle` may be an object as well; it is handed on as the path of a file.

    `bundle_path`, the keyword's former name, is taken too.
    """

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        keywords: dict[str, Any] = dict(named)
        former = keywords.pop("bundle_path", None)
        given = keywords.pop("bundle", None)
        if given is not None and former is not None:
            raise ConfigError("bundle and bundle_path were both given; bundle_path is its former name: leave that out")
        given = former if given is None else given
        if given is None:
            return function(*arguments, **keywords)
        if isinstance(given, str | Path):
            return function(*arguments, **keywords | {"bundle": bundle_path_of(given)})
        with tempfile.TemporaryDirectory(prefix="geood-") as folder:
            given.save(Path(folder) / BUNDLE_FILE)
            return function(*arguments, **keywords | {"bundle": Path(folder) / BUNDLE_FILE})

    return call
