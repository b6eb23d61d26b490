"""The distribution is geood-toolkit, and the command speaks up where the other package called geood is installed."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from geood import __version__
from geood._command import DISTRIBUTION as COMMAND_OF
from geood._command import other_package
from geood._version import DISTRIBUTION

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
    assert set(listed) == folders | {"geood_toolkit"}


def test_an_earlier_installation_of_this_package_is_not_the_other(tmp_path):
    (tmp_path / "geood-0.1.0.dist-info").mkdir()
    summary = (
        "Summary: Finds what a model was never taught, in aerial and satellite scenes and in road-driving images\n"
    )
    (tmp_path / "geood-0.1.0.dist-info" / "METADATA").write_text(OTHER + summary)
    assert run("--version", path=tmp_path).stderr == ""
