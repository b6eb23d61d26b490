"""The distribution is geood-toolkit, and the command speaks up where the other package called geood is installed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from geood import __version__
from geood._command import DISTRIBUTION as COMMAND_OF
from geood._command import other_package
from geood._version import DISTRIBUTION
from geood.config import reference_config

OTHER = "Metadata-Version: 2.1\nName: geood\nVersion: 0.1.6\n"


def run(*arguments, path=""):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(Path(__file__).parents[1])])}
    start = "import sys; from geood_toolkit import main; sys.argv[0] = 'geood'; main()"
    command = [sys.executable, "-c", start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", check=False)


def test_the_distribution_has_the_version_of_the_package():
    assert DISTRIBUTION == COMMAND_OF == "geood-toolkit" and version(DISTRIBUTION) == __version__
    assert other_package() is None


def test_the_version_names_command_and_distribution():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"geood {__version__} (distribution geood-toolkit)\n", "")


def test_the_other_package_is_spoken_of_and_the_command_goes_on(tmp_path):
    (tmp_path / "geood-0.1.6.dist-info").mkdir()
    (tmp_path / "geood-0.1.6.dist-info" / "METADATA").write_text(OTHER)
    done = run("--version", path=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"geood {__version__}")
    assert "another package called geood (0.1.6) is installed" in done.stderr and "pip uninstall geood" in done.stderr


@pytest.mark.parametrize(
    "init", ['__version__ = "0.1.6"', f'__version__ = "{__version__}"', "from nowhere import lost"]
)
def test_an_overwritten_package_is_not_run(tmp_path, init):
    """As pip leaves it where the other package came later: its `__init__`, which may fail, among our rooms."""
    (tmp_path / "geood-0.1.6.dist-info").mkdir()
    (tmp_path / "geood-0.1.6.dist-info" / "METADATA").write_text(OTHER)
    (tmp_path / "geood").mkdir()
    (tmp_path / "geood" / "__init__.py").write_text(init)
    done = run("--version", path=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert "has overwritten some of them" in done.stderr and "Traceback" not in done.stderr


def test_python_m_geood_is_the_command():
    done = subprocess.run([sys.executable, "-m", "geood", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout


def test_every_package_is_distributed():
    root = Path(__file__).parents[1]
    folders = {str(p.parent.relative_to(root)).replace(os.sep, ".") for p in (root / "geood").rglob("__init__.py")}
    listed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert set(listed) == folders | {"geood_toolkit", "geood.configs"}


def test_the_configs_are_installed_beside_the_code(tmp_path):
    """Messages point to them; the folder of the checkout is their one source."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["package-dir"]["geood.configs"] == "configs"
    patterns = settings["package-data"]["geood.configs"]
    shipped = {path.name for pattern in patterns for path in (ROOT / "configs").glob(pattern)}
    assert shipped == {path.name for path in (ROOT / "configs").iterdir()} and "geood.schema.json" in shipped
    assert reference_config() == ROOT / "configs" / "aerial.yaml"


ROOT = Path(__file__).parents[1]
OPTIONAL = {"dask_cuda"}  # used where it is installed, and not to be had for every machine


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def named(*groups):
    """Names of the distributions that pyproject.toml names as dependencies, or in these of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for group in groups for line in project["optional-dependencies"][group]]
    return {plain(re.match(r"[\w.-]+", line)[0]): line for line in lines}


def imported(folder):
    """Names of the distributions whose modules the files of a folder import."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    ours = (
        {path.stem for path in ROOT.iterdir()} | {path.stem for path in (ROOT / "tests").iterdir()} | {"geood_toolkit"}
    )
    owners, others = packages_distributions(), found - ours - OPTIONAL - sys.stdlib_module_names
    return {plain(owner) for module in others for owner in owners.get(module, [module])[:1]}


def test_what_the_package_imports_is_named():
    assert imported("geood") - {*named("hdf5", "export")} == set()


def test_what_the_tests_import_is_named():
    assert imported("tests") - {*named("dev")} <= {
        "pydantic-core",
        "referencing",
        "road-anomaly-benchmark",
    }  # pydantic and jsonschema bring them; a user's checkout


def test_each_bound_and_each_pin_is_told():
    """A dependency has a lowest version, which `make lowest` tries, and a pin, which `make test` takes."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {plain(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}
    for name, line in named("hdf5", "docs", "export", "dev").items():
        assert ">=" in line and name in pins, line
    assert len(pins) == sum("==" in line for line in text.splitlines())


def test_an_earlier_installation_of_this_package_is_not_the_other(tmp_path):
    (tmp_path / "geood-0.1.0.dist-info").mkdir()
    summary = (
        "Summary: Finds what a model was never taught, in aerial and satellite scenes and in road-driving images\n"
    )
    (tmp_path / "geood-0.1.0.dist-info" / "METADATA").write_text(OTHER + summary)
    assert run("--version", path=tmp_path).stderr == ""
