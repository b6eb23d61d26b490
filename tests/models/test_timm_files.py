"""Laws of deferred modules: they are not run before they are imported once more, and are whole then.

What timm and torchvision are after a network was made is held by `test_torch_compat`.
"""

import importlib
import sys

import pytest

from geood.models.timm_files import _Completion, deferred, network_maker, timm_library

FILES = {
    "__init__": "import ran; ran.order.append('pile')\nfrom pile.inner import late\nsize = 3\n",
    "inner/__init__": """
import ran; ran.order.append('inner')
from pile.inner.part import whole
def late(add): return 40 + add
class Kind: pass
""",
    "inner/part": "import ran; ran.order.append('part')\nwhole = 7\n",
    "inner/user": "import ran; ran.order.append('user')\nfrom pile.inner import late\n",
    "inner/asker": "from pile.inner import Kind\n",
    "broken": "import ran; ran.order.append('broken')\nif not ran.mended: raise OSError('not yet')\nmended = 1\n",
}
NAMES = ("pile", "pile.inner", "pile.broken")


@pytest.fixture
def order(tmp_path, monkeypatch):
    """The list in which the files of a package, all importable, note that they are run."""
    for name, text in FILES.items():
        path = tmp_path / "pile" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "ran.py").write_text("order, mended = [], False\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("ran").order
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pile", "ran")]:
        del sys.modules[name]
    for name in NAMES:
        _Completion.waiting.pop(name, None)


def test_deferred_modules_are_found_meanwhile_and_not_run(order):
    with deferred(NAMES):
        importlib.import_module("pile.inner")
    assert order == [] and not {"pile", "pile.inner"} & set(sys.modules)


def test_a_module_of_deferred_packages_is_run_alone_and_once_and_bound_to_them(order):
    with deferred(NAMES):
        part = importlib.import_module("pile.inner.part")
    assert order == ["part"] and part.whole == 7
    pile = importlib.import_module("pile")

    assert order == ["part", "pile", "inner"] and pile.inner.part is part and pile.size == 3
    assert (
        pile.__spec__.loader is pile.__loader__ is not None and pile.__loader__.get_source("pile") == FILES["__init__"]
    )


def test_the_next_import_runs_packages_before_their_modules_and_each_once(order):
    with deferred(NAMES):
        pass
    pile = importlib.import_module("pile.inner.part") and sys.modules["pile"]

    assert order == ["pile", "inner", "part"] and pile.inner.part.whole == 7 and pile.inner.Kind


def test_a_module_that_was_imported_before_stays_as_it_is(order):
    pile = importlib.import_module("pile")

    with deferred(NAMES):
        assert sys.modules["pile"] is pile and pile.inner.Kind
    assert sys.modules["pile"] is pile and order == ["pile", "inner", "part"]


def test_functions_taken_meanwhile_are_the_real_ones_when_they_are_called(order):
    for _ in range(2):  # deferred once more, they are there as well
        with deferred(NAMES):
            user = importlib.import_module("pile.inner.user")
    assert order == ["user"]
    assert user.late(add=2) == 42 and order == ["user", "pile", "inner", "part"]


def test_what_cannot_be_had_meanwhile_is_missed_as_in_any_import_and_there_afterwards(order):
    with deferred(NAMES), pytest.raises(ImportError, match="Kind"):
        importlib.import_module("pile.inner.asker")
    assert order == [] and importlib.import_module("pile.inner.asker").Kind is sys.modules["pile.inner"].Kind


def test_a_file_that_fails_fails_its_import_and_may_be_imported_again(order):
    with deferred(NAMES):
        pass
    for _ in range(2):
        with pytest.raises(OSError, match="not yet"):
            importlib.import_module("pile.broken")
    sys.modules["ran"].mended = True
    assert importlib.import_module("pile.broken").mended == 1 and order.count("broken") == 3


def test_a_module_that_is_nowhere_cannot_be_deferred_and_leaves_nothing(order):
    with pytest.raises(ModuleNotFoundError, match=r"pile\.nowhere"), deferred(("pile", "pile.nowhere")):
        pass
    assert "pile" not in sys.modules and order == []


@pytest.mark.parametrize("name", ["resnet10t", "densenet121", "densenet121.ra_in1k", "tv_densenet121"])
def test_networks_of_timm_are_made_also_by_their_tags_and_former_names(name):
    assert network_maker(name) is timm_library().create_model


@pytest.mark.parametrize("name", ["", "checkpoint", "_create_resnet", "no_such_network", "x(", "hf-hub:a/b"])
def test_other_names_are_no_networks(name):
    assert network_maker(name) is None
